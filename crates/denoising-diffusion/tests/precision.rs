//! Mixed precision: networks in bf16 stay close to the same networks in f32, with weights and gradients in f32. On the CPU plain tensor
//! operations stand in for a GPU's.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Device, Int, Tensor};
use denoising_diffusion::data::DataLayout;
use denoising_diffusion::diffusion::{Diffusion, GaussianConfig, ScheduleConfig};
use denoising_diffusion::models::{
    Dit, DitConfig, Downsampling, Extent, KarrasUnetConfig, Network, NetworkConfig, NetworkInput, PerStage, Unet,
    Unet1dConfig, UnetConfig, Uvit, UvitConfig,
};
use denoising_diffusion::nn::ops::{Precision, set_precision};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::nn::{Init, Vectors};
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::train::{EmaConfig, NamedGradients, TrainConfig, Trainer};

#[path = "common/device.rs"]
mod common;
use common::test_device;

/// Runs `work` in a precision, which is the process's: tests take turns.
fn with_precision<T>(precision: Precision, work: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    set_precision(precision);
    let result = work();
    set_precision(Precision::F32);
    result
}

fn device() -> Device {
    test_device().autodiff()
}

fn noise<const D: usize>(index: u64, dims: [usize; D]) -> Tensor<D> {
    normal_batch(1, Purpose::SampleInit, index, 0, dims, &device())
}

/// Two examples with all that the network can be told.
fn input(network: &impl Network<4>, [h, w]: [usize; 2]) -> NetworkInput<4> {
    let (c, told) = (network.channels(), network.condition_channels());
    let vectors = (network.vector_dim() > 0).then(|| {
        let rows = (0..2 * network.vector_dim()).map(|i| (i as f32).sin()).collect();
        Vectors::of_rows(rows, network.vector_dim(), |row| row == 0, &device())
    });
    NetworkInput {
        x: noise(0, [2, c, h, w]),
        time: Tensor::from_floats([3.0, 700.0], &device()),
        x_self_cond: network.self_condition().then(|| noise(2, [2, c, h, w])),
        classes: (network.num_classes() > 0).then(|| Tensor::<1, Int>::from_ints([0, 1], &device())),
        condition: (told > 0).then(|| noise(4, [2, told, h, w])),
        vectors,
    }
}

/// The output, and the gradients of a sum of it, by parameter.
fn outcome(network: &impl Network<4>, size: [usize; 2]) -> Vec<(String, Vec<f32>)> {
    let output = network.predict(input(network, size));
    assert_eq!(output.dtype(), DType::F32);
    let cotangent = noise(6, output.dims());
    let gradients = NamedGradients::take(network, &mut (output.clone() * cotangent).sum().backward());
    let gradients = gradients.iter().map(|(name, gradient)| {
        assert_eq!(gradient.dtype(), DType::F32, "{name}");
        (name.to_string(), host_values(gradient.clone()))
    });
    std::iter::once(("output".to_string(), host_values(output))).chain(gradients).collect()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// bf16 has a relative rounding error of up to 2^-9 per operation, and some tens of operations stand one behind the other.
fn is_close(name: &str, network: &impl Network<4>, size: [usize; 2]) {
    let exact = with_precision(Precision::F32, || outcome(network, size));
    let rounded = with_precision(Precision::Bf16, || outcome(network, size));
    assert_eq!(exact.len(), rounded.len());
    let largest = exact.iter().map(|(_, v)| norm(v.iter().copied())).fold(0.0, f64::max);
    for ((what, exact), (_, rounded)) in exact.iter().zip(&rounded) {
        let difference = norm(exact.iter().zip(rounded).map(|(a, b)| a - b));
        let size = norm(exact.iter().copied());
        // A gradient that is a difference of large ones has their rounding.
        assert!(difference <= 0.05 * size + 1e-3 * largest, "{name}, {what}: {difference} of {size}");
        if what == "output" {
            assert!(difference > 1e-4 * size, "{name}: computed in f32");
        }
    }
}

#[test]
fn outputs_and_gradients_in_bf16_are_close_to_those_in_f32() {
    let small = UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 2, ..UnetConfig::default() };
    let told = UnetConfig {
        self_condition: true,
        condition_channels: 1,
        num_classes: 2,
        vector_dim: 3,
        full_attn: Some(PerStage::All(true)),
        downsample: Downsampling::Strided,
        num_mem_kv: 0,
        learned_sinusoidal_cond: true,
        ..small.clone()
    };
    for (name, config) in [("unet", small.clone()), ("unet with everything", told)] {
        is_close(name, &Unet::new(&config, &mut Init::new(0, &device())).unwrap(), [4, 6]);
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
    // A new network gives zeros: a few steps give it something to say.
    let network = Dit::new(&config, &mut Init::new(0, &device())).unwrap();
    let mut trainer = trainer(network, 1e-2);
    let images = noise(8, [4, 1, 4, 4]);
    let condition = noise(12, [4, 1, 4, 4]);
    for _ in 0..20 {
        let examples = denoising_diffusion::diffusion::Examples {
            classes: Some(vec![0, 1, 0, 1]),
            condition: Some(condition.clone().inner()),
            ..images.clone().inner().into()
        };
        trainer.step(vec![examples]);
    }
    is_close("dit", trainer.model(), [4, 4]);
}

fn trainer<M: Network<4>>(network: M, lr: f64) -> Trainer<M> {
    let schedule = ScheduleConfig { timesteps: 100, ..Default::default() };
    let diffusion = Diffusion::new(&GaussianConfig { schedule, ..Default::default() }.into()).unwrap();
    let config = TrainConfig { batch_size: 4, lr, ..TrainConfig::default() };
    Trainer::new::<4>(network, diffusion, config, EmaConfig::default(), &test_device())
}

#[test]
fn training_in_bf16_follows_training_in_f32() {
    let config = UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
    let images: Vec<f32> = (0..4 * 64).map(|i| ((i / 8 + i / 64) as f32).sin() / 2.0 + 0.5).collect();
    let images = Tensor::<1>::from_floats(images.as_slice(), &test_device()).reshape([4, 1, 8, 8]);
    let losses = |precision| {
        with_precision(precision, || {
            let mut trainer = trainer(Unet::new(&config, &mut Init::new(0, &device())).unwrap(), 2e-3);
            let losses = (0..80).map(|_| trainer.step(vec![images.clone()]).loss);
            losses.collect::<Vec<f64>>()
        })
    };
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (exact, rounded) = (losses(Precision::F32), losses(Precision::Bf16));
    assert_ne!(exact, rounded);
    assert!(mean(&exact[60..]) < 0.5 * mean(&exact[..5]), "it learns");
    for part in [0..20, 20..40, 40..60, 60..80] {
        let ratio = mean(&rounded[part.clone()]) / mean(&exact[part.clone()]);
        assert!((0.97..1.03).contains(&ratio), "steps {part:?}: {ratio}");
    }
}

#[test]
fn a_network_that_takes_no_bf16_runs_in_f32() {
    let config = UvitConfig {
        dim: 8,
        dim_mults: vec![1, 2],
        channels: 1,
        vit_depth: 1,
        vit_dropout: 0.0,
        ..UvitConfig::default()
    };
    let network = Uvit::new(&config, &mut Init::new(0, &device())).unwrap();
    let output = || host_values(network.predict(input(&network, [8, 8])));
    assert_eq!(with_precision(Precision::F32, output), with_precision(Precision::Bf16, output));
}

/// A plan asks the options, a step the network.
#[test]
fn options_and_networks_say_the_same() {
    let extent = Some(Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 });
    let configs = [
        NetworkConfig::Unet(UnetConfig { dim: 8, dim_mults: vec![1, 2], ..UnetConfig::default() }),
        NetworkConfig::Unet1d(Unet1dConfig { dim: 8, dim_mults: vec![1, 2], ..Unet1dConfig::default() }),
        NetworkConfig::Dit(DitConfig {
            hidden_size: Some(8),
            depth: Some(1),
            num_heads: Some(2),
            ..DitConfig::default()
        }),
        NetworkConfig::Uvit(UvitConfig { dim: 8, dim_mults: vec![1, 2], vit_depth: 1, ..UvitConfig::default() }),
        NetworkConfig::KarrasUnet(KarrasUnetConfig { dim: 8, dim_max: 16, extent, ..KarrasUnetConfig::default() }),
    ];
    for config in configs {
        let network = config.build(&mut Init::new(0, &device())).unwrap();
        assert_eq!(config.takes_bf16(), network.takes_bf16(), "{config:?}");
    }
}
