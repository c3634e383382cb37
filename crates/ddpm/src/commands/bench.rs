//! `ddpm bench`: the time of a training step and of a forward pass, using the trainer's own step. Not here: comparing with others.

use std::time::{Duration, Instant};

use burn::tensor::{Tensor, TensorData};
use clap::{Args, ValueEnum};
use denoising_diffusion::data::DataLayout;
use denoising_diffusion::device::is_cpu;
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig, ElucidatedConfig, FormulationConfig};
use denoising_diffusion::models::{
    Calls, DitConfig, Extent, ImageNetwork, KarrasUnetConfig, NetworkConfig, NetworkInput, PerStage, RecordingState,
    Unet1dConfig, UnetConfig, UvitConfig,
};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::nn::{EvalMode, Init};
use denoising_diffusion::noise::{Purpose, Stream};
use denoising_diffusion::train::{EmaConfig, StepReport, TrainConfig, Trainer};
use serde_json::json;

use crate::failure::{Failure, FailureExt, Result};
use crate::machine::{Machine, NetworkMachineArgs};
use crate::numbers::at_least;
use crate::out_of_memory::Work;
use crate::output::{self, Rows, note, thousands};

/// Number of timed training steps, and of forward passes, in a round on the CPU, after one of each that is not timed. On a GPU, at least this many.
const REPEATS: usize = 5;
/// How long a GPU works before it is timed, so that its clock has risen; and how long it is timed.
const WARM_UP: Duration = Duration::from_secs(1);
const TIMED: Duration = Duration::from_secs(2);

/// Measure training steps and forward passes.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// s: U-Net, dim 32, mults 1,2,4, 32 images of 1x28x28; m: dim 64, mults 1,2,4,8, 16 images of 3x32x32 (m128: 128 of them; g: 32 of
    /// 3x128x128); others: small networks of that kind
    #[arg(long)]
    config: Config,
    /// Rounds; the result is the median over rounds of the median within each
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = at_least(1_u16))]
    rounds: u16,
    /// Recompute activations in the backward pass instead of keeping them
    #[arg(long)]
    checkpoint_activations: bool,
    /// On GPUs, record the passes of a step and the forward pass once, and replay them
    #[arg(long)]
    device_graph: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// Measure a round for each line on stdin, and print a JSON object for each, for programs that measure others in between
    #[arg(long, hide = true, conflicts_with_all = ["rounds", "json"])]
    on_request: bool,
    #[command(flatten)]
    machine: NetworkMachineArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Config {
    S,
    M,
    M128,
    G,
    Unet1d,
    Uvit,
    Dit,
    Karras,
    #[value(name = "karras3d")]
    Karras3d,
}

impl Config {
    /// The network, and the shape `[b, c, h, w]` of a batch.
    fn parts(self) -> (NetworkConfig, [usize; 4]) {
        let unet = |dim, dim_mults: &[usize], channels| {
            NetworkConfig::Unet(UnetConfig { dim, dim_mults: dim_mults.to_vec(), channels, ..UnetConfig::default() })
        };
        let karras = |dim, dim_max, attn_res: &[usize], attn_dim_head, layout, [depth, height, width]: [usize; 3]| {
            NetworkConfig::KarrasUnet(KarrasUnetConfig {
                dim,
                dim_max,
                channels: 3,
                num_downsamples: 2,
                num_blocks_per_stage: PerStage::All(2),
                attn_res: attn_res.to_vec(),
                attn_dim_head,
                extent: Some(Extent { layout, depth, height, width }),
                ..KarrasUnetConfig::default()
            })
        };
        match self {
            Self::S => (unet(32, &[1, 2, 4], 1), [32, 1, 28, 28]),
            Self::M => (unet(64, &[1, 2, 4, 8], 3), [16, 3, 32, 32]),
            Self::M128 => (unet(64, &[1, 2, 4, 8], 3), [128, 3, 32, 32]),
            Self::G => (unet(64, &[1, 2, 4, 8], 3), [32, 3, 128, 128]),
            Self::Unet1d => {
                let config = Unet1dConfig { dim: 32, dim_mults: vec![1, 2, 4], channels: 1, ..Unet1dConfig::default() };
                (NetworkConfig::Unet1d(config), [32, 1, 1, 256])
            }
            Self::Uvit => {
                let config = UvitConfig { dim: 32, dim_mults: vec![1, 2, 4], vit_depth: 4, ..UvitConfig::default() };
                (NetworkConfig::Uvit(config), [16, 3, 32, 32])
            }
            Self::Dit => {
                let (hidden_size, depth, num_heads) = (Some(192), Some(6), Some(3));
                // That of diffusers has an embedding for one class and one for no class.
                let config = DitConfig { hidden_size, depth, num_heads, num_classes: 1, ..DitConfig::default() };
                (NetworkConfig::Dit(config), [16, 3, 32, 32])
            }
            Self::Karras => (karras(32, 128, &[16, 8], 64, DataLayout::Images, [1, 32, 32]), [8, 3, 32, 32]),
            Self::Karras3d => (karras(16, 64, &[4], 32, DataLayout::Volumes, [8, 16, 16]), [4, 3, 8 * 16, 16]),
        }
    }

    /// A formulation with small noise levels for networks whose embedding needs them.
    fn diffusion(self) -> DiffusionConfig {
        match self.parts().0.fourier_time() {
            true => FormulationConfig::Elucidated(ElucidatedConfig::default()).into(),
            false => DiffusionConfig::default(),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

/// Medians of a round, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Round {
    train_step: f64,
    forward: f64,
}

pub fn run(args: &BenchArgs) -> Result {
    let machine = args.machine.start(Work::Bench)?;
    let (network, [batch, ..]) = args.config.parts();
    let mut subject = Subject::new(args, &machine)?;
    if args.on_request {
        return on_request(&mut subject);
    }
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        let round = rayon::scope(|_| subject.round())?;
        note(format!("round {number}: train step {:.1} ms, forward {:.1} ms", round.train_step, round.forward));
        rounds.push(round);
    }
    let train_step = median(rounds.iter().map(|round| round.train_step).collect());
    let forward = median(rounds.iter().map(|round| round.forward).collect());
    let images_per_s = batch as f64 / train_step * 1e3;
    let peak = peak_rss_mib();
    let parameters = network.num_parameters()?;
    if args.json {
        return output::json(&json!({
            "config": args.config.name(),
            "train_step_ms": train_step,
            "forward_ms": forward,
            "images_per_s": images_per_s,
            "peak_rss_mib": peak,
            "device_memory_mib": subject.device_memory_mib(),
            "parameters": parameters,
            "batch": batch,
            "threads": machine.threads,
            "device": machine.name,
            "device_graph": args.device_graph,
            "rounds": rounds.iter().map(|round| json!({ "train_step_ms": round.train_step, "forward_ms": round.forward }))
                .collect::<Vec<_>>(),
        }));
    }
    let mut rows = Rows::default();
    rows.row("configuration", format!("{}, {} parameters, batch {batch}", args.config.name(), thousands(parameters)))
        .row("device", format!("{}, {} threads", machine.name, machine.threads))
        .row("train step", format!("{train_step:.1} ms{}", if args.device_graph { ", passes recorded" } else { "" }))
        .row("forward", format!("{forward:.1} ms"))
        .row("training", format!("{images_per_s:.1} images/s"));
    if let Some(peak) = peak {
        rows.row("peak memory", format!("{peak:.0} MiB"));
    }
    if let Some(memory) = subject.device_memory_mib() {
        rows.row("device memory", format!("{memory:.0} MiB"));
    }
    output::result(rows.aligned())
}

/// Measures one round for each line on stdin, after an initial round and a line that says that all is ready.
fn on_request(subject: &mut Subject) -> Result {
    let round = |subject: &mut Subject| rayon::scope(|_| subject.round());
    round(subject)?;
    output::json(&json!({ "ready": true }))?;
    for line in std::io::stdin().lines() {
        line.context("cannot read stdin")?;
        let Round { train_step, forward } = round(subject)?;
        output::json(&json!({
            "train_step_ms": train_step,
            "forward_ms": forward,
            "peak_rss_mib": peak_rss_mib(),
            "device_memory_mib": subject.device_memory_mib(),
        }))?;
    }
    Ok(())
}

/// What is measured: a network in training, and one batch.
struct Subject {
    trainer: Trainer<ImageNetwork>,
    images: Tensor<4>,
    times: Tensor<1>,
}

impl Subject {
    fn new(args: &BenchArgs, machine: &Machine) -> Result<Self> {
        let (network, dims) = args.config.parts();
        let BenchArgs { checkpoint_activations, device_graph, .. } = *args;
        let config = TrainConfig { checkpoint_activations, device_graph, ..TrainConfig::default() };
        let device = machine.device();
        let diffusion = Diffusion::new(&args.config.diffusion())?;
        let training = machine.device().clone().autodiff();
        let network = network.build(&mut Init::new(0, &training))?;
        let mut stream = Stream::new(0, Purpose::SampleInit, 0, 0);
        let pixels: Vec<f32> = (0..dims.iter().product()).map(|_| stream.uniform() as f32).collect();
        let (batch, most) = (dims[0], if diffusion.formulation().tells_large_times() { 1000.0 } else { 1.0 });
        let times: Vec<f32> = (0..batch).map(|i| most * i as f32 / batch as f32).collect();
        Ok(Self {
            trainer: Trainer::new(network, diffusion, config, EmaConfig::default(), &training)?,
            images: Tensor::from_data(TensorData::new(pixels, dims), device),
            times: Tensor::from_data(TensorData::new(times, [batch]), device),
        })
    }

    fn round(&mut self) -> Result<Round> {
        while self.trainer.config().device_graph && self.trainer.recording_state() == RecordingState::NotTried {
            self.trainer.submit(vec![self.images.clone()]);
        }
        if let RecordingState::Refused(why) = self.trainer.recording_state() {
            return Err(has_no_effect(&why));
        }
        let device = self.images.device();
        let made = |report: Option<StepReport>| report.is_none_or(|report| report.skipped.is_none());
        let trainer = &mut self.trainer;
        let step = |trainer: &mut Trainer<ImageNetwork>| made(trainer.submit(vec![self.images.clone()]));
        let train_step = match is_cpu(&device) {
            true => median_ms(|| step(trainer))?,
            false => steady_ms(|last| step(trainer) && (!last || made(trainer.settle()) && device.sync().is_ok()))?,
        };
        if !made(trainer.settle()) {
            return Err(not_finite());
        }
        let model = self.trainer.model().eval().for_predictions();
        let device_graph = self.trainer.config().device_graph;
        let calls = Calls::new(&model, device_graph);
        let output = || calls.predict(NetworkInput::new(self.images.clone(), self.times.clone()));
        while device_graph && calls.recording_state() == RecordingState::NotTried {
            output();
        }
        if let RecordingState::Refused(why) = calls.recording_state() {
            return Err(has_no_effect(&why));
        }
        let is_finite = |output: Tensor<4>| host_values(output).iter().all(|value| value.is_finite());
        let forward = match is_cpu(&device) {
            true => median_ms(|| is_finite(output()))?,
            false => steady_ms(|last| {
                let output = output();
                !last || is_finite(output)
            })?,
        };
        Ok(Round { train_step, forward })
    }

    /// Memory that the process has reserved on a GPU so far, MiB.
    fn device_memory_mib(&self) -> Option<f64> {
        let usage = self.images.device().memory_pool_usage()?;
        Some(usage.bytes_reserved as f64 / f64::from(1 << 20))
    }
}

/// The median time of `work`, which returns whether its result was finite.
fn median_ms(mut work: impl FnMut() -> bool) -> Result<f64> {
    let mut times = Vec::with_capacity(REPEATS);
    for repeat in 0..=REPEATS {
        let start = Instant::now();
        if !work() {
            return Err(not_finite());
        }
        if repeat > 0 {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(median(times))
}

/// The mean time of `work` when run many times in a row. The device need only be waited for in the last call, which returns whether all results were
/// finite.
fn steady_ms(mut work: impl FnMut(bool) -> bool) -> Result<f64> {
    let mut timed = |count: usize| {
        let start = Instant::now();
        let fine = (1..=count).all(|number| work(number == count));
        if fine { Ok(start.elapsed().as_secs_f64()) } else { Err(not_finite()) }
    };
    // Measured over several: a single call would include waiting for the device.
    let mut each = timed(REPEATS)? / REPEATS as f64;
    let many = |span: Duration, each: f64| ((span.as_secs_f64() / each).ceil() as usize).max(REPEATS);
    let count = many(WARM_UP, each);
    each = timed(count)? / count as f64;
    let count = many(TIMED, each);
    Ok(timed(count)? / count as f64 * 1e3)
}

fn has_no_effect(why: &str) -> Failure {
    Failure::failed(format!("--device-graph has no effect: {why}"))
}

fn not_finite() -> Failure {
    Failure::failed("a result was not finite, so the measurement is meaningless")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The peak resident memory of this process, MiB; only available on Linux.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use denoising_diffusion::data::ImageShape;
    use denoising_diffusion::train::step_estimate;

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    /// Peaks in MiB that this command reported on the CPU, keeping activations and recomputing them.
    #[test]
    fn estimates_of_memory_fit_what_was_measured() {
        for (config, peaks) in [
            (Config::S, [409, 265]),
            (Config::M, [926, 860]),
            (Config::Unet1d, [219, 134]),
            (Config::Uvit, [308, 183]),
            (Config::Dit, [471, 199]),
            (Config::Karras, [284, 157]),
            (Config::Karras3d, [139, 101]),
        ] {
            let (network, [batch_size, channels, height, width]) = config.parts();
            let shape = ImageShape { channels, height, width };
            for (checkpoint_activations, peak) in [false, true].into_iter().zip(peaks) {
                let train = TrainConfig { batch_size, checkpoint_activations, ..TrainConfig::default() };
                let parameters = network.num_parameters().unwrap();
                let estimate = step_estimate(&network, parameters, shape, &train).unwrap() as f64 / (1 << 20) as f64;
                let ratio = estimate / f64::from(peak);
                assert!(
                    (0.8..1.2).contains(&ratio),
                    "{config:?}, activations computed again: {checkpoint_activations}: {estimate} MiB, measured {peak}"
                );
            }
        }
    }
}
