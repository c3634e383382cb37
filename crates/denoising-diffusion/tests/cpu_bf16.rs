//! Networks whose products the CPU's matrix unit computes in bf16 stay close to the same networks in f32. Where there is no such unit, bf16 is f32.

use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;
use denoising_diffusion::data::DataLayout;
use denoising_diffusion::device::{computes_in_bf16, is_cpu};
use denoising_diffusion::diffusion::{ContinuousTimeConfig, Diffusion, FormulationConfig};
use denoising_diffusion::models::{
    Dit, DitConfig, Extent, KarrasUnet, KarrasUnetConfig, Network, PerStage, Unet, Unet1dConfig, UnetConfig, Uvit,
    UvitConfig,
};
use denoising_diffusion::nn::Init;
use denoising_diffusion::nn::ops::Precision;
use denoising_diffusion::recipe::ArithmeticConfig;
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};

mod common;
use common::device::test_device;
use common::outcome::{assert_close, device, outcome};

/// Runs `work` in a precision, which is the process's: tests take turns.
fn with_precision<T>(precision: Precision, work: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    ArithmeticConfig { precise: false, precision }.set_on(&test_device());
    let result = work();
    ArithmeticConfig::default().set_on(&test_device());
    result
}

/// Whether this device is the CPU, and has the unit.
fn applies() -> bool {
    is_cpu(&test_device()) && computes_in_bf16(&test_device())
}

/// Outputs and gradients, relative to the size of each.
fn is_close(name: &str, network: &impl Network, size: [usize; 2]) {
    let exact = with_precision(Precision::F32, || outcome(network, size));
    let rounded = with_precision(Precision::Bf16, || outcome(network, size));
    // A gradient that is a difference of large ones has their rounding.
    let allowed = |_: &str, size: f64, largest: f64| 0.05 * size + 1e-3 * largest;
    let furthest = assert_close(name, &exact, &rounded, allowed).into_iter().fold(0.0, f64::max);
    assert_eq!(furthest > 1e-4, applies(), "{name}: differs by {furthest}");
}

/// Sizes at which convolutions and attention are multiplied in bf16.
fn unet() -> UnetConfig {
    UnetConfig {
        dim: 16,
        dim_mults: vec![1, 2],
        channels: 1,
        full_attn: Some(PerStage::Each(vec![true, false])),
        attn_dim_head: PerStage::All(16),
        ..UnetConfig::default()
    }
}

#[test]
fn outputs_and_gradients_in_bf16_are_close_to_those_in_f32() {
    let init = || Init::new(0, &device());
    is_close("unet", &Unet::new(&unet(), &mut init()).unwrap(), [12, 12]);
    let sequences = Unet1dConfig { dim: 16, dim_mults: vec![1, 2], channels: 2, ..Unet1dConfig::default() };
    is_close("unet1d", &Unet::new(&sequences.unet(), &mut init()).unwrap(), [1, 20]);
    let config = UvitConfig {
        dim: 16,
        dim_mults: vec![1, 2],
        channels: 1,
        vit_depth: 1,
        vit_dropout: 0.0,
        ..UvitConfig::default()
    };
    is_close("uvit", &Uvit::new(&config, &mut init()).unwrap(), [8, 8]);
}

fn trainer<M: Network>(network: M, lr: f64) -> Trainer<M> {
    let config = TrainConfig { batch_size: 4, lr, ..TrainConfig::default() };
    let formulation = match network.resolves_large_times() {
        true => FormulationConfig::default(),
        false => FormulationConfig::ContinuousTime(ContinuousTimeConfig::default()),
    };
    let diffusion = Diffusion::new(&formulation.into()).unwrap();
    Trainer::new(network, diffusion, config, EmaConfig::default(), &test_device()).unwrap()
}

/// Losses of training on a few images of side `side`.
fn losses<M: Network>(precision: Precision, steps: usize, side: usize, network: M) -> Vec<f64> {
    let pixels = side * side;
    let images: Vec<f32> = (0..4 * pixels).map(|i| ((i / side + i / pixels) as f32).sin() / 2.0 + 0.5).collect();
    let images = Tensor::<1>::from_floats(images.as_slice(), &test_device()).reshape([4, 1, side, side]);
    with_precision(precision, || {
        let mut trainer = trainer(network, 2e-3);
        (0..steps).map(|_| trainer.step(vec![images.clone()]).loss).collect()
    })
}

/// Means of the losses, in quarters, are within 3 % of those in f32.
fn follows<M: Network>(steps: usize, side: usize, network: impl Fn(&mut Init) -> M) {
    let made = || network(&mut Init::new(0, &device()));
    let (exact, rounded) = (losses(Precision::F32, steps, side, made()), losses(Precision::Bf16, steps, side, made()));
    assert_eq!(exact != rounded, applies());
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    for (part, (exact, rounded)) in exact.chunks(steps / 4).zip(rounded.chunks(steps / 4)).enumerate() {
        let ratio = mean(rounded) / mean(exact);
        assert!((0.97..1.03).contains(&ratio), "quarter {part}: {ratio}");
    }
}

#[test]
fn training_in_bf16_follows_training_in_f32() {
    follows(40, 12, |init| Unet::new(&unet(), init).unwrap());
    // More than 128 tokens: attention is in bf16, too.
    let dit = DitConfig {
        hidden_size: Some(32),
        depth: Some(2),
        num_heads: Some(2),
        patch_size: 1,
        channels: 1,
        ..DitConfig::default()
    };
    follows(24, 12, |init| Dit::new(&dit, init).unwrap());
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
    follows(24, 8, |init| KarrasUnet::new(&karras, init).unwrap());
}

#[test]
fn a_run_in_bf16_has_the_same_bits_every_time() {
    let run = || losses(Precision::Bf16, 3, 12, Unet::new(&unet(), &mut Init::new(0, &device())).unwrap());
    assert_eq!(run(), run());
}
