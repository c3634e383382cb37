//! A training, and samples, whose batches are spread over devices that run the same kernels come to what they come to on one: `just test-device cuda`,
//! or, on two devices made of software, `CUDA_DEVICES=2 just test-soft-cuda`. Where there is one device, it takes turns with itself.

#[path = "common/device.rs"]
mod device;
#[path = "common/state.rs"]
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use denoising_diffusion::data::{DataLayout, ImageBatch};
use denoising_diffusion::diffusion::{
    ContinuousTimeConfig, Diffusion, DiffusionConfig, ElucidatedConfig, Examples, FormulationConfig, NoiseSchedule,
};
use denoising_diffusion::generate::{BatchStep, ClassifierGradient, GenerateError, Generator, Replica, Request};
use denoising_diffusion::models::{
    Calls, Extent, ImageNetwork, KarrasUnetConfig, LearnedSchedule, LearnedScheduleOptions, Network, NetworkConfig,
    RecordingState, Scheduled, UnetConfig,
};
use denoising_diffusion::nn::{Eval, EvalMode, Init};
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::sampler::{SampleConfig, SamplerKind};
use denoising_diffusion::train::{EmaConfig, ReplicasError, TrainConfig, Trainer};
use device::{second_device, test_device};
use state::assert_same;

/// Dropout draws from one generator per process: one training at a time.
static ALONE: Mutex<()> = Mutex::new(());

const BATCH: usize = 2;

fn trainer<M: Network>(network: M, diffusion: &DiffusionConfig, config: &TrainConfig) -> Trainer<M> {
    let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 1, ..EmaConfig::default() };
    Trainer::new(network, Diffusion::new(diffusion).unwrap(), config.clone(), ema, &test_device()).unwrap()
}

fn config(accumulate: usize) -> TrainConfig {
    TrainConfig { batch_size: BATCH, accumulate, ..TrainConfig::default() }
}

/// Devices beside the test's own.
fn others(count: usize) -> Vec<Device> {
    vec![second_device().unwrap_or_else(test_device); count]
}

/// Of the third step, one batch is spoiled.
fn batches(step: u64, count: usize) -> Vec<Examples> {
    let batch = |part| {
        let data = normal_batch(9, Purpose::Evaluation, BATCH as u64 * step, part, [BATCH, 1, 8, 8], &Device::flex());
        let mut data: Tensor<4> = (data * 0.2 + 0.5).clamp(0.0, 1.0);
        if (step, part) == (2, 1) {
            data = data.slice_fill([0..1, 0..1, 2..3, 2..3], f32::INFINITY);
        }
        Examples { classes: Some(vec![step as u32 % 3, 1]), ..data.into() }
    };
    (0..count as u32).map(batch).collect()
}

/// Trains on one device and on `1 + more`, and holds both trainings to the same bits.
fn assert_spreads<M: Network>([one, many]: [Trainer<M>; 2], more: usize) {
    let _alone = ALONE.lock();
    let count = one.config().accumulate;
    let (mut one, mut many) = (one, many.with_replicas(&others(more)).unwrap());
    for step in 0..4 {
        let [a, b] = [&mut one, &mut many].map(|trainer| trainer.step(batches(step, count)));
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
        assert_eq!(a.skipped.is_some(), step == 2);
    }
    assert_same(&one.state(), &many.state());
}

fn unet() -> UnetConfig {
    UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() }
}

/// Five batches on two devices: the last round is not full. Dropout, self-conditioning, classes that are dropped, noise that is assigned.
#[test]
fn what_is_drawn_is_drawn_for_the_batch_and_not_for_the_device() {
    let unet = UnetConfig { dropout: 0.1, self_condition: true, num_classes: 3, class_drop_prob: 0.5, ..unet() };
    let mut diffusion = DiffusionConfig::default();
    diffusion.shared.offset_noise_strength = 0.1;
    diffusion.shared.immiscible = true;
    let init = || Init::new(1, &test_device().autodiff());
    let build = || trainer(NetworkConfig::Unet(unet.clone()).build(&mut init()).unwrap(), &diffusion, &config(5));
    assert_spreads([build(), build()], 1);
}

/// Weights whose norms are forced after the step.
#[test]
fn three_devices_come_to_what_one_comes_to() {
    let karras = KarrasUnetConfig {
        dim: 8,
        dim_max: 8,
        channels: 1,
        num_downsamples: 1,
        attn_res: vec![],
        extent: Some(Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 }),
        ..KarrasUnetConfig::default()
    };
    let diffusion = FormulationConfig::Elucidated(ElucidatedConfig::default()).into();
    let init = || Init::new(1, &test_device().autodiff());
    let build =
        || trainer(NetworkConfig::KarrasUnet(karras.clone()).build(&mut init()).unwrap(), &diffusion, &config(3));
    assert_spreads([build(), build()], 2);
}

/// It is trained beside the network.
#[test]
fn a_learned_schedule_is_on_every_device() {
    let learned = ContinuousTimeConfig { noise_schedule: NoiseSchedule::Learned, ..ContinuousTimeConfig::default() };
    let diffusion = FormulationConfig::ContinuousTime(learned).into();
    let options = LearnedScheduleOptions { hidden_dim: 16, frac_gradient: 1.0, log_snr: [13.3, -5.0] };
    let build = || {
        let init = &mut Init::new(1, &test_device().autodiff());
        let network = NetworkConfig::Unet(unet()).build(init).unwrap();
        let noise_schedule = LearnedSchedule::new(init, options);
        trainer(Scheduled { network, noise_schedule }, &diffusion, &config(2))
    };
    assert_spreads([build(), build()], 1);
}

#[test]
fn a_training_goes_on_on_other_devices() {
    let _alone = ALONE.lock();
    let diffusion = DiffusionConfig::default();
    let build = |seed| {
        let network = NetworkConfig::Unet(unet()).build(&mut Init::new(seed, &test_device().autodiff())).unwrap();
        trainer(network, &diffusion, &config(2))
    };
    let (mut whole, mut begun, mut resumed) = (build(1), build(1), build(2).with_replicas(&others(1)).unwrap());
    for step in [0, 1, 3] {
        whole.step(batches(step, 2));
    }
    for step in [0, 1] {
        begun.step(batches(step, 2));
    }
    resumed.restore(&begun.state()).unwrap();
    resumed.step(batches(3, 2));
    assert_same(&whole.state(), &resumed.state());
}

#[test]
fn what_cannot_be_spread_is_refused() {
    let _alone = ALONE.lock();
    let diffusion = DiffusionConfig::default();
    let build = |config: TrainConfig| {
        let network = NetworkConfig::Unet(unet()).build(&mut Init::new(1, &test_device().autodiff())).unwrap();
        trainer(network, &diffusion, &config)
    };
    let error = build(config(2)).with_replicas(&others(2)).unwrap_err();
    assert_eq!(error, ReplicasError::TooFewBatches { devices: 3, batches: 2 });
    if device::is_elsewhere() {
        assert_eq!(build(config(2)).with_replicas(&[Device::flex()]).unwrap_err(), ReplicasError::CpuAndGpu);
    }
    let mut recording = build(TrainConfig { device_graph: true, ..config(2) }).with_replicas(&others(1)).unwrap();
    recording.step(batches(0, 2));
    assert!(matches!(recording.recording_state(), RecordingState::Refused(_)));
}

/// Steps of each batch of samples.
const STEPS: usize = 4;
/// In batches of two, the last of one.
const SAMPLES: usize = 7;

/// A network on this device.
fn sampled(device: &Device) -> Eval<ImageNetwork> {
    let unet = UnetConfig { num_classes: 3, condition_channels: 1, ..unet() };
    NetworkConfig::Unet(unet).build(&mut Init::new(1, &device.clone().autodiff())).unwrap().eval()
}

/// Classes of the samples: the first of each batch tells it from the others.
const CLASSES: [u32; SAMPLES] = [0, 1, 2, 0, 1, 2, 3];

/// Samples drawn on the test's device and so many others, each with its own classifier, if any: with noise in each step, classes and conditions.
fn draw(
    more: usize,
    classifiers: &[&ClassifierGradient<'_>],
    watch: &mut dyn FnMut(&BatchStep<'_>) -> ControlFlow<()>,
) -> Result<ImageBatch, GenerateError> {
    let (device, others) = (test_device(), others(more));
    let (model, copies) = (sampled(&device), others.iter().map(sampled).collect::<Vec<_>>());
    // Nothing may be recorded where others work, whatever is asked for.
    let replica = |(place, (device, copy)): (usize, (&Device, _))| Replica {
        device: device.clone(),
        model: Calls::new(copy, true),
        weak: None,
        classifier: classifiers.get(1 + place).copied(),
    };
    let replicas = others.iter().zip(&copies).enumerate().map(replica).collect();
    let classifier = classifiers.first().copied();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let generator =
        Generator { replicas, classifier, ..Generator::new(Calls::new(&model, more > 0), &diffusion, &device) };
    let conditions = (0..SAMPLES * 64).map(|i| (i * i % 17) as f32 / 16.0).collect();
    let conditions = ImageBatch::new([SAMPLES, 1, 8, 8], conditions).unwrap();
    let sample = SampleConfig {
        sampler: SamplerKind::EulerAncestral,
        sampling_timesteps: Some(STEPS),
        sample_batch_size: 2,
        ..SampleConfig::default()
    };
    let request = Request {
        classes: Some(&CLASSES),
        conditions: Some(&conditions),
        ..Request::new(&sample, 3, SAMPLES, [1, 8, 8])
    };
    generator.generate_watched(&request, watch)
}

#[test]
fn samples_are_those_of_one_device() {
    let bits = |images: ImageBatch| images.data.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let one = bits(draw(0, &[], &mut |_| ControlFlow::Continue(())).unwrap());
    for more in [1, 2, 5] {
        let mut seen = BTreeMap::<usize, Vec<usize>>::new();
        let many = draw(more, &[], &mut |at| {
            assert_eq!(at.steps, STEPS);
            seen.entry(at.first).or_default().push(at.step);
            ControlFlow::Continue(())
        });
        assert_eq!(bits(many.unwrap()), one);
        assert_eq!(seen, [0, 2, 4, 6].map(|first| (first, vec![1, 2, 3, 4])).into());
    }
}

/// Else the time would decide which device's kernels draw an image, and they may round differently: the second device is done with its batches
/// before the first one goes on.
#[test]
fn batches_have_their_devices_whichever_is_faster() {
    let drawn = Mutex::new(BTreeSet::new());
    let note = |place: usize, classes: &[u32]| {
        let batch = CLASSES.chunks(2).position(|batch| batch == classes).unwrap();
        drawn.lock().unwrap().insert((batch, place));
    };
    let slow = |x: Tensor<4>, _, classes: &[u32]| {
        note(0, classes);
        let wait_until = Instant::now() + Duration::from_secs(20);
        while !drawn.lock().unwrap().iter().any(|(batch, _)| *batch == 3) && Instant::now() < wait_until {
            thread::sleep(Duration::from_millis(1));
        }
        x.zeros_like()
    };
    let fast = |x: Tensor<4>, _, classes: &[u32]| {
        note(1, classes);
        x.zeros_like()
    };
    draw(1, &[&slow, &fast], &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(drawn.into_inner().unwrap(), [(0, 0), (1, 1), (2, 0), (3, 1)].into());
}

#[test]
fn sampling_on_several_devices_stops_where_it_is_told_to() {
    for stop_at in [1, 5, STEPS * 3] {
        let mut steps = 0;
        let images = draw(1, &[], &mut |_| {
            steps += 1;
            if steps < stop_at { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(matches!(images, Err(GenerateError::Interrupted(_))), "{stop_at}");
        assert_eq!(steps, stop_at, "nobody is told of a step after that");
    }
}

/// A device without memory left is a panic, which the program tells.
#[test]
fn the_panic_of_a_device_is_handed_on() {
    let classifier = |x: Tensor<4>, _, classes: &[u32]| {
        assert_ne!(classes[0], 2, "of this class there is nothing");
        x.zeros_like()
    };
    let drawn =
        catch_unwind(AssertUnwindSafe(|| draw(1, &[&classifier, &classifier], &mut |_| ControlFlow::Continue(()))));
    let panic = *drawn.unwrap_err().downcast::<String>().unwrap();
    assert!(panic.contains("of this class there is nothing"), "{panic}");
}
