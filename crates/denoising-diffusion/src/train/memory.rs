//! Estimate of the memory that a training will take, from the options of its network, before anything is made. Not here: measuring it.

use super::config::TrainConfig;
use crate::data::{DataLayout, ImageShape};
use crate::models::{DitConfig, KarrasUnetConfig, NetworkConfig, NetworkConfigError, PerStage, UnetConfig, UvitConfig};
use crate::nn::Axes;

/// Memory of the process besides tensors: program, stacks, buffers.
const BASE_BYTES: u64 = 60 << 20;
/// Number of values kept for the backward pass, per pixel of a stage.
struct Kept {
    /// Per channel of its two residual blocks and of its resampling layer.
    blocks: u64,
    /// Per channel of its attention's input.
    attention: u64,
    /// Per channel of its attention heads.
    heads: u64,
}

impl Kept {
    /// Outputs of two convolutions and two normalisations in each block; normalised inputs and outputs; query, key, value, output.
    const ALL: Self = Self { blocks: 9, attention: 3, heads: 4 };
    /// The inputs of each block and of the attention.
    const INPUTS: Self = Self { blocks: 3, attention: 1, heads: 0 };

    fn values(&self, pixels: u64, dim: usize, inner: usize) -> u64 {
        pixels.saturating_mul((self.blocks + self.attention) * dim as u64 + self.heads * inner as u64)
    }
}

/// Number of values kept for the backward pass, added up block by block.
#[derive(Default)]
struct Tally {
    kept: u64,
    /// For blocks that are recomputed, one at a time: the peak of the largest one.
    again: u64,
}

/// How a block is recomputed in the backward pass.
#[derive(Clone, Copy)]
enum Again {
    /// By a kernel.
    Kernel,
    /// With its own tape, which holds gradients in addition to the kept values.
    Tape,
}

impl Tally {
    /// Adds a block that keeps `all` values or, if it is recomputed, its `inputs`.
    fn add(&mut self, again: Option<Again>, all: u64, inputs: u64) {
        self.kept = self.kept.saturating_add(if again.is_some() { inputs } else { all });
        self.again = self.again.max(match again {
            None => 0,
            Some(Again::Kernel) => all,
            Some(Again::Tape) => all.saturating_mul(2),
        });
    }

    fn values(&self) -> u64 {
        self.kept.saturating_add(self.again)
    }
}

/// Peak memory of training in bytes, including additional averages: that of a step or, if larger, that of writing a checkpoint, which holds weights,
/// moments and averages twice. `parameters` is the network's number of weights, `shape` that of an example. [`u64::MAX`] if it is
/// more.
///
/// # Errors
/// Options that describe no network.
pub fn memory_estimate(
    network: &NetworkConfig,
    parameters: u64,
    shape: ImageShape,
    train: &TrainConfig,
    averages: u64,
) -> Result<u64, NetworkConfigError> {
    let of_weights = |times: u64| values(parameters.saturating_mul(times));
    let step = step_estimate(network, parameters, shape, train)?.saturating_add(of_weights(averages));
    Ok(step.max(of_weights(8 + 2 * averages).saturating_add(BASE_BYTES)))
}

/// Peak memory of a step in bytes: weights, gradients, two moments, average, and what the forward pass keeps for the backward pass. The constants
/// fit measured peaks of small networks of each kind, on the CPU, within a fifth. For a custom network only the weights are known.
///
/// # Errors
/// Options that describe no network.
pub fn step_estimate(
    network: &NetworkConfig,
    parameters: u64,
    shape: ImageShape,
    train: &TrainConfig,
) -> Result<u64, NetworkConfigError> {
    let again = |how| train.checkpoint_activations.then_some(how);
    let kept = match network {
        NetworkConfig::Unet(unet) => kept_by_unet(unet, shape, again(Again::Kernel))?,
        NetworkConfig::Unet1d(config) => kept_by_unet(&config.unet(), shape, again(Again::Kernel))?,
        NetworkConfig::Dit(dit) => kept_by_dit(dit, shape, again(Again::Tape)),
        NetworkConfig::Uvit(uvit) => kept_by_uvit(uvit, shape, again(Again::Tape))?,
        NetworkConfig::KarrasUnet(karras) => kept_by_karras_unet(karras, shape, again(Again::Tape)),
        NetworkConfig::Custom { .. } => 0,
    };
    let kept = kept.saturating_mul(train.batch_size as u64);
    Ok(values(parameters.saturating_mul(5).saturating_add(kept)).saturating_add(BASE_BYTES))
}

/// Bytes of `count` values: a quarter more for blocks waiting for reuse, and for rounding up of block sizes.
fn values(count: u64) -> u64 {
    count.saturating_mul(5)
}

/// Number of values per image, from the widths of the stages.
fn kept_by_unet(unet: &UnetConfig, shape: ImageShape, again: Option<Again>) -> Result<u64, NetworkConfigError> {
    let stages = unet.stages()?;
    let (mut tally, mut pixels) = (Tally::default(), (shape.height * shape.width) as u64);
    let mut add = |pixels: u64, dim: usize, inner: usize| {
        tally.add(again, Kept::ALL.values(pixels, dim, inner), Kept::INPUTS.values(pixels, dim, inner));
    };
    for stage in &stages {
        let inner = stage.heads * stage.dim_head;
        add(pixels, stage.dim_in, inner); // encoder
        add(pixels, stage.dim_out, inner); // decoder
        if stage.is_last {
            add(pixels, stage.dim_out, inner); // middle
        } else {
            pixels /= if unet.axes == Axes::Both { 4 } else { 2 };
        }
    }
    Ok(tally.values())
}

/// Number of values per image: stages like those of a U-Net, and a transformer with as many tokens as the innermost stage has pixels.
fn kept_by_uvit(uvit: &UvitConfig, shape: ImageShape, again: Option<Again>) -> Result<u64, NetworkConfigError> {
    /// Number of heads times their width in the linear attentions.
    const INNER: usize = 128;
    let outer = uvit.patch_size * uvit.image_transform.factor();
    let mut pixels = (shape.height * shape.width / (outer * outer)) as u64;
    let (mut tally, mut inner) = (Tally::default(), uvit.first_dim());
    for (mult, factor) in uvit.dim_mults.iter().zip(uvit.factors()?) {
        let dim = uvit.dim * mult;
        for dim in [inner, dim] {
            tally.add(
                again.map(|_| Again::Kernel),
                Kept::ALL.values(pixels, dim, INNER),
                Kept::INPUTS.values(pixels, dim, INNER),
            );
        }
        pixels /= (factor * factor) as u64;
        inner = dim;
    }
    let (hidden, heads, drops) = (inner as u64, uvit.attn_heads as u64, uvit.vit_dropout > 0.0);
    let attention = 8 * heads * uvit.attn_dim_head as u64 + if drops { 2 * heads * pixels } else { 0 };
    for _ in 0..uvit.vit_depth {
        let all = pixels.saturating_mul(8 * hidden + 6 * hidden * uvit.ff_mult as u64 + attention);
        tally.add(again, all, pixels * hidden);
    }
    Ok(tally.values())
}

/// Number of values per example: the inputs, activations and outputs of the two convolutions of each block, in encoder and decoder.
fn kept_by_karras_unet(karras: &KarrasUnetConfig, shape: ImageShape, again: Option<Again>) -> u64 {
    let (mut positions, mut tally) = ((shape.height * shape.width) as u64, Tally::default());
    let axes = match karras.extent.map(|extent| extent.layout) {
        Some(DataLayout::Sequences) => 2,
        Some(DataLayout::Volumes) => 8,
        _ => 4,
    };
    let blocks = match &karras.num_blocks_per_stage {
        PerStage::All(blocks) => *blocks,
        PerStage::Each(blocks) => blocks.iter().copied().max().unwrap_or(0),
    };
    for stage in 0..=karras.num_downsamples {
        let dim = (karras.dim << stage).min(karras.dim_max) as u64;
        // In encoder and decoder, and one more in each where the size changes.
        for _ in 0..2 * blocks {
            tally.add(again, 10 * positions * dim, positions * dim);
        }
        for _ in 0..2 {
            tally.add(again, 6 * positions * dim, positions * dim);
        }
        positions /= axes;
    }
    tally.values()
}

/// Number of values per image: for each block what its kernels save, and its hidden layer before and after GELU. Attention weights are not kept.
fn kept_by_dit(dit: &DitConfig, shape: ImageShape, again: Option<Again>) -> u64 {
    let tokens = (shape.height * shape.width / (dit.patch_size * dit.patch_size)) as u64;
    let (hidden, mlp) = (dit.hidden_size() as u64, dit.mlp_dim() as u64);
    let mut tally = Tally::default();
    for _ in 0..dit.depth() {
        tally.add(again, tokens.saturating_mul(6 * hidden + 2 * mlp), tokens * hidden);
    }
    tally.values()
}
