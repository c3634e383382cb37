//! Mixed precision: networks in bf16 stay close to the same networks in f32, with weights and gradients in f32. On the CPU plain tensor
//! operations stand in for a GPU's.

use std::sync::{Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::Tensor;
use denoising_diffusion::data::{DataLayout, augment};
use denoising_diffusion::diffusion::{
    ContinuousTimeConfig, Diffusion, Examples, FormulationConfig, GaussianConfig, ScheduleConfig,
};
use denoising_diffusion::models::{
    Dit, DitConfig, Downsampling, Extent, ImageTransform, KarrasUnet, KarrasUnetConfig, Network, NetworkInput,
    PerStage, Unet, Unet1dConfig, UnetConfig, Uvit, UvitConfig,
};
use denoising_diffusion::nn::Init;
use denoising_diffusion::nn::ops::{Precision, set_precision};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};

mod common;
use common::device::test_device;
use common::outcome::{assert_close, device, input, noise, outcome};

/// Runs `work` in a precision, which is the process's: tests take turns.
fn with_precision<T>(precision: Precision, work: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    set_precision(precision);
    let result = work();
    set_precision(Precision::F32);
    result
}

/// bf16 has a relative rounding error of up to 2^-9 per operation, and some tens of operations stand one behind the other.
fn is_close(name: &str, network: &impl Network, size: [usize; 2]) {
    is_within(0.05, name, network, size);
}

/// Outputs and gradients, relative to the size of each.
fn is_within(tolerance: f64, name: &str, network: &impl Network, size: [usize; 2]) {
    let exact = with_precision(Precision::F32, || outcome(network, size));
    let rounded = with_precision(Precision::Bf16, || outcome(network, size));
    // A gradient that is a difference of large ones has their rounding.
    let allowed = |_: &str, size: f64, largest: f64| tolerance * size + 1e-3 * largest;
    let differences = assert_close(name, &exact, &rounded, allowed);
    assert!(differences[0] > 1e-4, "{name}: computed in f32");
}

#[test]
fn outputs_and_gradients_in_bf16_are_close_to_those_in_f32() {
    let small = UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 2, ..UnetConfig::default() };
    let told = UnetConfig {
        self_condition: true,
        condition_channels: 1,
        num_classes: 2,
        vector_dim: 3,
        augment_labels: true,
        full_attn: Some(PerStage::All(true)),
        downsample: Downsampling::Strided,
        num_mem_kv: 0,
        learned_sinusoidal_cond: true,
        ..small.clone()
    };
    for (name, config) in [("unet", small.clone()), ("unet with everything", told)] {
        // The seed as below: with some, a gradient differs by up to 0.09 on CPUs and GPUs.
        is_close(name, &Unet::new(&config, &mut Init::new(1, &device())).unwrap(), [4, 6]);
    }
    let dropout = UnetConfig { dropout: 0.5, ..small.clone() };
    let network = Unet::new(&dropout, &mut Init::new(0, &device())).unwrap();
    let outputs = with_precision(Precision::Bf16, || outcome(&network, [4, 6]));
    assert!(outputs.iter().all(|(_, values)| values.iter().all(|value| value.is_finite())));
    let sequences = Unet1dConfig { dim: 8, dim_mults: vec![1, 2], channels: 2, ..Unet1dConfig::default() };
    is_close("unet1d", &Unet::new(&sequences.unet(), &mut Init::new(0, &device())).unwrap(), [1, 12]);
}

#[test]
fn a_transformer_in_bf16_is_close_to_one_in_f32() {
    let config = DitConfig {
        hidden_size: Some(16),
        depth: Some(2),
        num_heads: Some(2),
        channels: 1,
        num_classes: 2,
        condition_channels: 1,
        ..DitConfig::default()
    };
    let network = Dit::new(&config, &mut Init::new(0, &device())).unwrap();
    let trainer = trained(network, [4, 4], 20);
    is_close("dit", trainer.model(), [4, 4]);
}

/// After a few steps: some networks give zeros at first.
fn trained<M: Network>(network: M, [h, w]: [usize; 2], steps: usize) -> Trainer<M> {
    let (told, vector_dim) = (network.condition_channels(), network.vector_dim());
    let examples = Examples {
        data: noise(8, [4, network.channels(), h, w]).inner(),
        classes: (network.num_classes() > 0).then(|| vec![0, 1, 0, 1]),
        condition: (told > 0).then(|| noise(12, [4, told, h, w]).inner()),
        vectors: (vector_dim > 0).then(|| (0..4 * vector_dim).map(|i| (i as f32).cos()).collect()),
        augment_labels: network.augment_labels().then(|| (0..4 * augment::LABELS).map(|i| (i as f32).sin()).collect()),
    };
    with_precision(Precision::F32, || {
        let mut trainer = trainer(network, 1e-2);
        for _ in 0..steps {
            trainer.step(vec![examples.clone()]);
        }
        trainer
    })
}

fn trainer<M: Network>(network: M, lr: f64) -> Trainer<M> {
    let schedule = ScheduleConfig { timesteps: 100, ..Default::default() };
    let formulation = match network.resolves_large_times() {
        true => FormulationConfig::Gaussian(GaussianConfig { schedule, ..Default::default() }),
        false => FormulationConfig::ContinuousTime(ContinuousTimeConfig::default()),
    };
    let diffusion = Diffusion::new(&formulation.into()).unwrap();
    let config = TrainConfig { batch_size: 4, lr, ..TrainConfig::default() };
    Trainer::new(network, diffusion, config, EmaConfig::default(), &test_device()).unwrap()
}

/// Means of the losses of `steps`, in quarters, are within 3 % of those in f32.
fn follows<M: Network>(steps: usize, lr: f64, network: impl Fn(&mut Init) -> M) {
    let images: Vec<f32> = (0..4 * 64).map(|i| ((i / 8 + i / 64) as f32).sin() / 2.0 + 0.5).collect();
    let images = Tensor::<1>::from_floats(images.as_slice(), &test_device()).reshape([4, 1, 8, 8]);
    let losses = |precision| {
        with_precision(precision, || {
            let mut trainer = trainer(network(&mut Init::new(0, &device())), lr);
            let losses = (0..steps).map(|_| trainer.step(vec![images.clone()]).loss);
            losses.collect::<Vec<f64>>()
        })
    };
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (exact, rounded) = (losses(Precision::F32), losses(Precision::Bf16));
    assert_ne!(exact, rounded);
    assert!(mean(&exact[3 * steps / 4..]) < 0.5 * mean(&exact[..5]), "it learns");
    for (part, (exact, rounded)) in exact.chunks(steps / 4).zip(rounded.chunks(steps / 4)).enumerate() {
        let ratio = mean(rounded) / mean(exact);
        assert!((0.97..1.03).contains(&ratio), "quarter {part}: {ratio}");
    }
}

#[test]
fn training_in_bf16_follows_training_in_f32() {
    let unet = UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
    follows(80, 2e-3, |init| Unet::new(&unet, init).unwrap());
    let extent = Some(Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 });
    let karras = KarrasUnetConfig {
        dim: 16,
        dim_max: 32,
        channels: 1,
        attn_dim_head: 16,
        dropout: 0.0,
        num_downsamples: 1,
        num_blocks_per_stage: PerStage::All(1),
        extent,
        ..KarrasUnetConfig::default()
    };
    follows(40, 2e-2, |init| KarrasUnet::new(&karras, init).unwrap());
}

#[test]
fn a_u_net_around_a_transformer_in_bf16_is_close_to_one_in_f32() {
    let config = UvitConfig {
        dim: 8,
        dim_mults: vec![1, 2],
        channels: 1,
        num_classes: 2,
        vector_dim: 3,
        augment_labels: true,
        condition_channels: 1,
        vit_depth: 2,
        vit_dropout: 0.0,
        ..UvitConfig::default()
    };
    let patches = UvitConfig { patch_size: 2, ..config.clone() };
    let haar = UvitConfig { image_transform: ImageTransform::Haar, ..config.clone() };
    for (name, config) in [("uvit", &config), ("uvit of patches", &patches), ("uvit of Haar's bands", &haar)] {
        // Few pixels and sharp attention: gradients of the middle are sums of few terms of both signs. With other seeds, on CPUs and GPUs alike, there
        // may be a pixel with so small a norm that its rounding changes a gradient by half.
        is_within(0.15, name, &Uvit::new(config, &mut Init::new(5, &device())).unwrap(), [8, 8]);
    }
    let dropout = UvitConfig { vit_dropout: 0.5, ..config };
    let network = Uvit::new(&dropout, &mut Init::new(0, &device())).unwrap();
    let outputs = with_precision(Precision::Bf16, || outcome(&network, [8, 8]));
    assert!(outputs.iter().all(|(_, values)| values.iter().all(|value| value.is_finite())));
}

#[test]
fn a_magnitude_preserving_network_in_bf16_is_close_to_one_in_f32() {
    for (layout, [depth, height, width]) in
        [(DataLayout::Images, [1, 8, 8]), (DataLayout::Sequences, [1, 1, 16]), (DataLayout::Volumes, [4, 4, 4])]
    {
        let config = KarrasUnetConfig {
            dim: 8,
            dim_max: 16,
            channels: 1,
            num_classes: 2,
            vector_dim: 3,
            condition_channels: 1,
            attn_dim_head: 8,
            dropout: 0.0,
            num_downsamples: 1,
            num_blocks_per_stage: PerStage::All(1),
            extent: Some(Extent { layout, depth, height, width }),
            ..KarrasUnetConfig::default()
        };
        let size = [depth * height, width];
        let network = KarrasUnet::new(&config, &mut Init::new(0, &device())).unwrap();
        let trainer = trained(network, size, 5);
        // As above.
        is_within(0.15, &format!("karras_unet of {layout:?}"), trainer.model(), size);
    }
}

/// A network that gives what it was given.
#[derive(Module, Debug)]
struct Identity;

impl Network for Identity {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        input.x
    }

    fn channels(&self) -> usize {
        1
    }
}

#[test]
fn a_network_that_takes_no_bf16_runs_in_f32() {
    let output = || host_values(Identity.predict(input(&Identity, [8, 8])));
    assert_eq!(with_precision(Precision::F32, output), with_precision(Precision::Bf16, output));
}
