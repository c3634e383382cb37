//! Training, saving, loading, resuming, evaluating.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion::data::ImageBatch;
use denoising_diffusion::data::{DataLayout, ImageShape};
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig, Examples, FormulationConfig, RectifiedFlowConfig};
use denoising_diffusion::eval::flow_likelihood::negative_log_likelihood;
use denoising_diffusion::eval::held_out::held_out_loss;
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::likelihood::{LikelihoodError, bits_per_dim};
use denoising_diffusion::generate::{Depth, Samples};
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::model_file::{ModelCard, ModelFile};
use denoising_diffusion::models::{
    DitConfig, Downsampling, Extent, KarrasUnetConfig, Network, NetworkConfig, PerStage, Unet1dConfig, UnetConfig,
    UvitConfig,
};
use denoising_diffusion::nn::params::{host_values, load_state_dict, num_trainable};
use denoising_diffusion::nn::{Eval, EvalMode, Init};
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::sampler::SampleConfig;
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};
use denoising_diffusion::weights::StateDict;

use crate::mlp::{Mlp, SHAPE, Takes, learned_schedule, scheduled};
use crate::points;
use crate::variants::{self, Variant};

const BATCH: usize = 6;
/// Chosen so that of the first five batches some are given an earlier estimate and some are not.
const SEED: u64 = 1;

/// A network under a formulation, and how to make and to load it.
struct Case<'a, M> {
    name: &'a str,
    diffusion: Diffusion,
    shape: [usize; 3],
    network: NetworkConfig,
    build: &'a dyn Fn(u64, &Device) -> M,
    load: &'a dyn Fn(&ModelFile) -> Eval<M>,
}

fn bits(state: &StateDict) -> Vec<(String, Vec<u32>)> {
    state.iter().map(|(name, tensor)| (name.to_string(), tensor.values.iter().map(|v| v.to_bits()).collect())).collect()
}

impl<M: Network> Case<'_, M> {
    fn data(&self, batch: u64) -> Examples {
        let device = Device::flex();
        let first = batch * BATCH as u64;
        if self.shape == SHAPE {
            let data = points::batch(&self.diffusion, first, BATCH, &device);
            return Examples { classes: Some(points::classes(first, BATCH)), ..data.into() };
        }
        let [c, h, w] = self.shape;
        let noise = normal_batch(9, Purpose::Evaluation, first, 0, [BATCH, c, h, w], &device);
        (noise * 0.2 + 0.5).clamp(0.0, 1.0).into()
    }

    fn trainer(&self, seed: u64) -> Trainer<M> {
        let device = Device::flex();
        let train = TrainConfig { batch_size: BATCH, lr: 1e-2, seed: SEED, ..TrainConfig::default() };
        let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 1, ..EmaConfig::default() };
        let model = (self.build)(seed, &device.clone().autodiff());
        Trainer::new(model, self.diffusion.clone(), train, ema, &device).unwrap()
    }

    fn train(&self, trainer: &mut Trainer<M>, steps: std::ops::Range<u64>) {
        for step in steps {
            let report = trainer.step(vec![self.data(step)]);
            let finite = report.loss.is_finite() && report.grad_norm.is_finite() && report.skipped.is_none();
            assert!(finite, "{}: {report:?}", self.name);
        }
    }

    /// Five steps, and three and two with a restart between, on a network of other initial weights.
    fn trained(&self) -> Trainer<M> {
        let (mut whole, mut begun, mut resumed) = (self.trainer(1), self.trainer(1), self.trainer(2));
        self.train(&mut whole, 0..5);
        self.train(&mut begun, 0..3);
        resumed.restore(&begun.state()).unwrap();
        self.train(&mut resumed, 3..5);
        let (whole_state, resumed_state) = (whole.state(), resumed.state());
        for (a, b) in [
            (&whole_state.model, &resumed_state.model),
            (&whole_state.ema, &resumed_state.ema),
            (&whole_state.adam, &resumed_state.adam),
        ] {
            assert!(bits(a) == bits(b), "{}: a resumed training differs", self.name);
        }
        assert!(bits(&whole_state.model) != bits(&begun.state().model), "{}: training changes weights", self.name);
        whole
    }

    fn card(&self, step: u64) -> ModelCard {
        let [channels, height, width] = self.shape;
        ModelCard {
            step,
            ..ModelCard::new(
                self.network.clone(),
                self.diffusion.config().unwrap().clone(),
                ImageShape { channels, height, width },
            )
        }
    }

    fn samples(&self, model: &Eval<M>, diffusion: &Diffusion) -> Vec<f32> {
        let sample = SampleConfig { sampling_timesteps: Some(3), ..SampleConfig::default() };
        let request = Request::new(&sample, 2, 3, self.shape);
        let generator = Generator::new(model, diffusion, &Device::flex());
        let images = generator.generate(&request).unwrap();
        let [c, h, w] = self.shape;
        assert_eq!((images.shape, images.data.len()), ([3, c, h, w], 3 * c * h * w), "{}", self.name);
        images.data
    }

    /// The held-out loss, the bound and the likelihood, finite.
    fn measured(&self, model: &Eval<M>, diffusion: &Diffusion) -> Vec<f64> {
        let (device, data) = (Device::flex(), self.data(7).data);
        let loss = held_out_loss(model, diffusion, [data.clone()].into_iter(), 3, &device).unwrap();
        let halves = [data.clone().narrow(0, 0, BATCH / 2), data.clone().narrow(0, BATCH / 2, BATCH / 2)];
        let in_halves = held_out_loss(model, diffusion, halves.into_iter(), 3, &device).unwrap();
        let near = (loss.mean - in_halves.mean).abs() < 1e-4 * loss.mean;
        assert!(near, "{}: the loss depends on the size of the batch: {loss:?} {in_halves:?}", self.name);
        let mut measured = vec![loss.mean];
        measured.extend(loss.standard_error);
        measured.extend(loss.by_quarter);
        let held_out = ImageBatch::new(data.dims(), host_values(data)).unwrap();
        let held_out = Images::from(Samples::of(&held_out, Depth::Float));
        let mut on_batch = |_| ControlFlow::Continue(());
        let parts = held_out.examples(4).unwrap();
        let bits = bits_per_dim(model, diffusion, parts, 8, 3, &device, &mut on_batch);
        let parts = held_out.examples(4).unwrap();
        let nll = negative_log_likelihood(model, diffusion, parts, 2, 3, &device, &mut on_batch);
        let undefined = |error: &LikelihoodError| {
            let normalised = diffusion.shared().auto_normalize;
            assert!(matches!(error, LikelihoodError::Undefined) && !normalised, "{}: {error}", self.name);
        };
        match &bits {
            Ok(bits) => measured.extend([bits.total, bits.prior, bits.diffusion, bits.reconstruction]),
            Err(error) => undefined(error),
        }
        assert!(measured.iter().all(|v| v.is_finite() && *v >= 0.0), "{}: {measured:?}", self.name);
        assert!(loss.mean > 0.0, "{}: {loss:?}", self.name);
        match &nll {
            Ok(nll) => measured.extend([nll.total, nll.standard_error, nll.prior, nll.volume]),
            Err(error) => undefined(error),
        }
        assert!(measured.iter().all(|v| v.is_finite()) && bits.is_ok() == nll.is_ok(), "{}: {measured:?}", self.name);
        measured
    }

    fn check(&self, dir: &Path) {
        let trainer = self.trained();
        let path = dir.join("model.safetensors");
        let file = ModelFile { card: self.card(5), state: trainer.ema().to_state_dict() };
        file.write(&path).unwrap();
        let read = ModelFile::read(&path).unwrap();
        assert_eq!((&read.card, bits(&read.state)), (&file.card, bits(&file.state)), "{}", self.name);

        let (model, loaded, diffusion) = (
            trainer.ema().eval(),
            (self.load)(&read),
            Diffusion::with_betas(&read.card.diffusion, read.card.betas.clone()).unwrap(),
        );
        let to_bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let [before, after] = [self.measured(&model, &self.diffusion), self.measured(&loaded, &diffusion)].map(to_bits);
        assert_eq!(before, after, "{}", self.name);
        assert_eq!(self.samples(&model, &self.diffusion), self.samples(&loaded, &diffusion), "{}", self.name);
    }
}

fn check_mlp(name: &str, config: &DiffusionConfig, takes: Takes, dir: &Path) {
    let diffusion = Diffusion::new(config).unwrap();
    let network = NetworkConfig::Custom { name: "mlp".to_string() };
    let build = |seed, device: &Device| Mlp::new(&diffusion, takes, seed, device);
    match learned_schedule(&diffusion) {
        None => {
            let load = |file: &ModelFile| load_state_dict(build(3, &Device::flex()), &file.state).unwrap().eval();
            Case { name, diffusion: diffusion.clone(), shape: SHAPE, network, build: &build, load: &load }.check(dir);
        }
        Some(options) => {
            let build = |seed, device: &Device| scheduled(build(seed, device), options, seed, device);
            let load = |file: &ModelFile| load_state_dict(build(3, &Device::flex()), &file.state).unwrap().eval();
            Case { name, diffusion: diffusion.clone(), shape: SHAPE, network, build: &build, load: &load }.check(dir);
        }
    }
}

#[test]
fn every_formulation_with_its_own_options() {
    let dir = tempfile::tempdir().unwrap();
    for Variant { name, config } in variants::own(12) {
        check_mlp(&name, &config, Takes::Nothing, dir.path());
    }
}

#[test]
fn every_formulation_with_the_shared_options() {
    let dir = tempfile::tempdir().unwrap();
    for Variant { name, config } in variants::shared(12) {
        check_mlp(&name, &config, Takes::Nothing, dir.path());
    }
}

#[test]
fn every_formulation_with_an_earlier_estimate() {
    let dir = tempfile::tempdir().unwrap();
    for Variant { name, config } in variants::own(12).into_iter().chain(variants::shared(12)) {
        check_mlp(&name, &config, Takes::EarlierEstimate, dir.path());
    }
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let given = (0..5).filter(|&n| diffusion.draw(SEED, 0, n, [1, 1, 1, 2], &Device::flex()).self_condition).count();
    assert!((1..5).contains(&given), "{given}");
}

#[test]
fn every_formulation_with_classes() {
    let dir = tempfile::tempdir().unwrap();
    for Variant { name, config } in variants::own(12) {
        check_mlp(&name, &config, Takes::Classes, dir.path());
    }
}

/// Every network, small, and a shape that it is for. Without dropout, whose generator all tests of the process share. A U-ViT's time embedding is made for levels in a small range.
fn networks(out_dim: usize, self_condition: bool, large_times: bool) -> Vec<(NetworkConfig, [usize; 3])> {
    let out_dim = Some(out_dim);
    let (dim, channels) = (4, 1);
    let unet = UnetConfig { dim, dim_mults: vec![1], channels, out_dim, self_condition, ..UnetConfig::default() };
    let strided =
        UnetConfig { dim_mults: vec![1, 2], downsample: Downsampling::Strided, num_mem_kv: 0, ..unet.clone() };
    let unet1d =
        Unet1dConfig { dim, dim_mults: vec![1, 2], channels, out_dim, self_condition, ..Unet1dConfig::default() };
    let (hidden_size, depth, num_heads) = (Some(8), Some(1), Some(2));
    let dit = DitConfig { hidden_size, depth, num_heads, channels, out_dim, ..DitConfig::default() };
    let uvit = UvitConfig {
        dim,
        dim_mults: vec![1, 2],
        channels,
        out_dim,
        vit_depth: 1,
        vit_dropout: 0.0,
        ..Default::default()
    };
    let mut networks = vec![
        (NetworkConfig::Unet(unet), [1, 8, 8]),
        (NetworkConfig::Unet(strided), [1, 4, 8]),
        (NetworkConfig::Unet1d(unet1d), [1, 1, 12]),
        (NetworkConfig::Dit(dit), [1, 8, 8]),
    ];
    let karras = |layout, [depth, height, width]: [usize; 3]| {
        let extent = Some(Extent { layout, depth, height, width });
        let config =
            KarrasUnetConfig { dim, dim_max: 8, channels, out_dim, self_condition, extent, ..Default::default() };
        let small = KarrasUnetConfig { num_downsamples: 1, num_blocks_per_stage: PerStage::All(1), ..config };
        let network = KarrasUnetConfig { attn_res: vec![4], attn_dim_head: 4, fourier_dim: 4, dropout: 0.0, ..small };
        (NetworkConfig::KarrasUnet(network), [channels, depth * height, width])
    };
    if !large_times {
        networks.push((NetworkConfig::Uvit(uvit), [1, 8, 8]));
        networks.push(karras(DataLayout::Sequences, [1, 1, 8]));
        networks.push(karras(DataLayout::Images, [1, 8, 8]));
        networks.push(karras(DataLayout::Volumes, [2, 4, 4]));
    }
    networks
}

/// The networks themselves, once for each formulation.
#[test]
fn every_formulation_with_every_network() {
    let dir = tempfile::tempdir().unwrap();
    // Told small times, rectified flow takes those networks, too.
    let small_times = FormulationConfig::RectifiedFlow(RectifiedFlowConfig::default().for_fourier_time());
    let formulations = FormulationConfig::all().into_iter().chain([small_times]);
    for (formulation, self_condition) in formulations.zip([true, false].into_iter().cycle()) {
        let name = formulation.name();
        let config = DiffusionConfig::from(formulation);
        let large_times = Diffusion::new(&config).unwrap().formulation().tells_large_times();
        let networks = networks(config.out_channels(1), self_condition, large_times);
        for (number, (network, shape)) in networks.into_iter().enumerate() {
            let dir = dir.path().join(number.to_string());
            std::fs::create_dir_all(&dir).unwrap();
            let diffusion = Diffusion::new(&config.clone().for_size(shape[1], shape[2])).unwrap();
            let build = |seed, device: &Device| network.build(&mut Init::new(seed, device)).unwrap();
            let load = |file: &ModelFile| file.build(&Device::flex()).unwrap().0;
            let values = num_trainable(&build(0, &Device::flex().autodiff())) as u64;
            // Fixed frequencies are no trained values.
            let fixed = if matches!(network, NetworkConfig::KarrasUnet(_)) { 2 } else { 0 };
            assert_eq!(network.num_parameters().unwrap(), values + fixed, "{network:?}");
            let state = to_state_dict(&build(0, &Device::flex()));
            let shapes = state.iter().map(|(name, tensor)| (name.to_string(), tensor.shape.clone()));
            assert_eq!(network.tensors().unwrap(), shapes.collect(), "{network:?}");
            let network = network.clone();
            Case { name, diffusion, shape, network, build: &build, load: &load }.check(&dir);
        }
    }
}

/// Data that the tests above do not share with training: what is measured depends on it.
#[test]
fn a_loss_depends_on_the_data() {
    let device = Device::flex();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let model = Mlp::new(&diffusion, Takes::Nothing, 1, &device).eval();
    let of = |value: f32| {
        let data = Tensor::<4>::from_data(TensorData::new(vec![value; 8], [4, 1, 1, 2]), &device);
        held_out_loss(&model, &diffusion, [data].into_iter(), 3, &device).unwrap().mean
    };
    assert_ne!(of(0.2), of(0.8));
}
