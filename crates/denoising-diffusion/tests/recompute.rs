//! Activations that are computed again in the backward pass: every network gives the same, and the same gradients.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::Tensor;
use denoising_diffusion::data::DataLayout;
use denoising_diffusion::models::{
    Dit, DitConfig, Extent, KarrasUnet, KarrasUnetConfig, Network, PerStage, Unet, UnetConfig, Uvit, UvitConfig,
};
use denoising_diffusion::nn::ops::{Activations, set_activations};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::nn::{Dropout, Init, Linear, TrainNoGrad, dropout, recompute};

mod common;
use common::outcome::{assert_close, device, input, noise, outcome};

/// Runs `work` with blocks that keep something, which is the process's: tests take turns.
fn with_activations<T>(activations: Activations, work: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    set_activations(activations);
    let result = work();
    set_activations(Activations::Keep);
    result
}

fn gives_the_same(name: &str, network: &impl Network, size: [usize; 2]) {
    let run = |activations| {
        with_activations(activations, || {
            dropout::seed(&device(), 5);
            outcome(network, size)
        })
    };
    let (kept, recomputed) = (run(Activations::Keep), run(Activations::Recompute));
    // Gradients of what is used several times are added in another order.
    assert_close(
        name,
        &kept,
        &recomputed,
        |what, size, largest| {
            if what == "output" { 0.0 } else { 1e-5 * size + 1e-6 * largest }
        },
    );
    let plain = |activations| {
        with_activations(activations, || {
            dropout::seed(&device(), 5);
            host_values(TrainNoGrad::of(network).predict(input(network, size)))
        })
    };
    assert_eq!(plain(Activations::Recompute), plain(Activations::Keep), "{name} without gradients");
}

#[test]
fn networks_give_the_same_with_activations_computed_again() {
    let init = &mut Init::new(0, &device());
    let unet = UnetConfig {
        dim: 8,
        dim_mults: vec![1, 2],
        channels: 1,
        self_condition: true,
        num_classes: 2,
        ..UnetConfig::default()
    };
    gives_the_same("unet", &Unet::new(&unet, init).unwrap(), [4, 6]);
    let dropping = UnetConfig { dropout: 0.3, ..unet };
    gives_the_same("unet with dropout", &Unet::new(&dropping, init).unwrap(), [4, 6]);
    let dit = DitConfig {
        hidden_size: Some(16),
        depth: Some(3),
        num_heads: Some(2),
        channels: 1,
        num_classes: 2,
        ..DitConfig::default()
    };
    gives_the_same("dit", &Dit::new(&dit, init).unwrap(), [4, 4]);
    let uvit = UvitConfig {
        dim: 8,
        dim_mults: vec![1, 2],
        channels: 1,
        vit_depth: 2,
        vit_dropout: 0.3,
        ..UvitConfig::default()
    };
    gives_the_same("uvit", &Uvit::new(&uvit, init).unwrap(), [8, 8]);
    let karras = KarrasUnetConfig {
        dim: 8,
        dim_max: 16,
        channels: 1,
        num_classes: 2,
        attn_dim_head: 8,
        dropout: 0.3,
        num_downsamples: 1,
        num_blocks_per_stage: PerStage::All(2),
        extent: Some(Extent { layout: DataLayout::Volumes, depth: 4, height: 4, width: 4 }),
        ..KarrasUnetConfig::default()
    };
    gives_the_same("karras_unet", &KarrasUnet::new(&karras, init).unwrap(), [16, 4]);
}

static RUNS: AtomicUsize = AtomicUsize::new(0);

#[derive(Module, Debug)]
struct Square {
    linear: Linear,
    dropout: Dropout,
}

impl Square {
    fn new(dropout: f64) -> Self {
        Self { linear: Linear::new(&mut Init::new(0, &device()), 3, 3), dropout: Dropout::new(dropout) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        recompute::block(self, [x], [], |block, [x], []| {
            RUNS.fetch_add(1, Ordering::Relaxed);
            block.dropout.forward(block.linear.forward(x).square())
        })
    }
}

#[test]
fn blocks_run_again_in_the_backward_pass_only() {
    let square = Square::new(0.0);
    let runs = |activations, backward| {
        with_activations(activations, || {
            let before = RUNS.load(Ordering::Relaxed);
            let y = square.forward(noise(0, [2, 3]));
            if backward {
                y.sum().backward();
            }
            RUNS.load(Ordering::Relaxed) - before
        })
    };
    assert_eq!(runs(Activations::Keep, true), 1);
    assert_eq!(runs(Activations::Recompute, false), 1);
    assert_eq!(runs(Activations::Recompute, true), 2);
}

/// Each call drops out other values, the same after the same seed, and a repetition does not disturb what comes after it.
#[test]
fn draws_go_on_after_a_repetition() {
    let square = Square::new(0.5);
    let x: Tensor<2> = noise(0, [8, 3]);
    let draws = |activations| {
        with_activations(activations, || {
            dropout::seed(&device(), 1);
            let mut results = Vec::new();
            for _ in 0..3 {
                let y = square.forward(x.clone());
                results.push(host_values(y.clone()));
                y.sum().backward();
            }
            results
        })
    };
    let kept = draws(Activations::Keep);
    assert_eq!(kept, draws(Activations::Recompute));
    assert_ne!(kept[0], kept[1]);
    assert_ne!(kept[1], kept[2]);
}
