//! The kernels and sizes that are measured: those of two networks, and others that are measured on request.
//!
//! Network m is a U-Net of width 64 with multipliers 1, 2, 4, 8 on 32 x 32 images, batch 16; s one of width 32 with 1, 2, 4 on 28 x 28 images, batch
//! 32. `tools/bench/kernels.py` gets this list from the program, so there is only one.

use super::work::{Pass, Work};
use Pass::{Backward, Forward, InputGrad, Step, WeightGrad};
use denoising_diffusion_kernels::attention::{AttentionShape, Factors};
use denoising_diffusion_kernels::conv::{Conv2dShape, ConvAlgorithm};
use denoising_diffusion_kernels::norm::RmsNormShape;

/// A kernel at one size.
pub struct Case {
    /// What is computed.
    pub kernel: String,
    /// The network and the size.
    pub shape: String,
    pub work: Work,
}

impl Case {
    pub fn name(&self) -> String {
        format!("{} {}", self.kernel, self.shape)
    }
}

/// Name and batch.
type Network = (&'static str, usize);
const M: Network = ("m", 16);
const S: Network = ("s", 32);

#[derive(Clone, Copy)]
enum Kind {
    One,
    Three,
    /// 3 x 3 without Winograd.
    Direct,
    /// 3 x 3 after doubling the image in both directions.
    Doubled,
    Seven,
    /// 2 x 2 pixels become one: a pixel unshuffle and a 1 x 1 convolution.
    Halving,
}
use Kind::*;

/// Input and output channels, and the side of the input.
type Conv = (Network, Kind, usize, usize, usize);

const CONVS: &[Conv] = &[
    (M, Three, 64, 64, 32),
    (M, Three, 128, 64, 32),
    (M, Three, 128, 128, 16),
    (M, Three, 192, 128, 16),
    (M, Three, 256, 256, 8),
    (M, Three, 384, 256, 8),
    (M, Three, 512, 512, 4),
    (M, Three, 768, 512, 4),
    (S, Three, 32, 32, 28),
    (S, Three, 64, 32, 28),
    (S, Three, 64, 64, 14),
    (S, Three, 96, 64, 14),
    (S, Three, 128, 128, 7),
    (S, Three, 192, 128, 7),
    (M, One, 64, 384, 32),
    (M, One, 128, 64, 32),
    (S, One, 32, 384, 28),
    (M, Seven, 3, 64, 32),
    (M, Halving, 64, 64, 32),
    (M, Doubled, 128, 64, 16),
    (M, Direct, 64, 64, 32),
];
const MORE_CONVS: &[Conv] = &[
    (M, One, 128, 384, 16),
    (M, One, 192, 128, 16),
    (M, One, 256, 384, 8),
    (M, One, 512, 384, 4),
    (M, One, 768, 512, 4),
    (S, Seven, 1, 32, 28),
    (M, Halving, 128, 256, 8),
    (S, Halving, 32, 32, 28),
    (M, Direct, 128, 128, 16),
    (M, Direct, 256, 256, 8),
    (M, Direct, 512, 512, 4),
];

/// Channels and side.
type Norm = (Network, usize, usize);

/// With scale, shift and SiLU.
const RMS_NORMS: &[Norm] = &[(M, 64, 32), (M, 512, 4), (S, 32, 28)];
const MORE_RMS_NORMS: &[Norm] = &[(M, 128, 16), (M, 256, 8)];
/// Without scale, shift and SiLU.
const MORE_PLAIN_RMS_NORMS: &[Norm] = &[(M, 64, 32), (M, 128, 16), (M, 256, 8), (M, 512, 4), (S, 32, 28)];

/// Side.
type Attention = (Network, usize);
const LINEAR_ATTENTIONS: &[Attention] = &[(M, 32), (S, 28)];
const MORE_LINEAR_ATTENTIONS: &[Attention] = &[(M, 16), (S, 14), (S, 7)];
const ATTENTIONS: &[Attention] = &[(M, 4), (M, 16)];
const MORE_ATTENTIONS: &[Attention] = &[(M, 8), (M, 32), (S, 7)];

/// Number of parameters of the optimizer's step, and of values of an activation.
const PARAMETERS: usize = 4 << 20;
const VALUES: usize = 1 << 20;

/// All cases of the two networks, or `all` cases.
pub fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |kernel: String, shape: String, work| cases.push(Case { kernel, shape, work });
    for conv in chosen(all, CONVS, MORE_CONVS) {
        let (kernel, shape, work) = convolution(conv);
        for pass in [Forward, InputGrad, WeightGrad] {
            add(format!("{kernel} {}", pass.name()), shape.clone(), work(pass));
        }
    }
    let scaled = chosen(all, RMS_NORMS, MORE_RMS_NORMS).map(|norm| (norm, true));
    let plain = chosen(all, &[], MORE_PLAIN_RMS_NORMS).map(|norm| (norm, false));
    for (((network, batch), channels, side), scaled) in scaled.chain(plain) {
        let shape = RmsNormShape { batch, positions: side * side, channels };
        for pass in [Forward, Backward] {
            let kernel = format!("rms_norm{} {}", if scaled { "_silu" } else { "" }, pass.name());
            add(kernel, format!("{network} {channels}@{side}"), Work::RmsNorm { shape, scaled, pass });
        }
    }
    let linear = chosen(all, LINEAR_ATTENTIONS, MORE_LINEAR_ATTENTIONS).map(|attention| (attention, true));
    let full = chosen(all, ATTENTIONS, MORE_ATTENTIONS).map(|attention| (attention, false));
    for (((network, batch), side), linear) in linear.chain(full) {
        let shape = AttentionShape { batch, positions: side * side, heads: 4, head_dim: 32, memory: 4 };
        for pass in [Forward, Backward] {
            let kernel = format!("{}attention {}", if linear { "linear_" } else { "" }, pass.name());
            add(
                kernel,
                format!("{network} n {}", side * side),
                Work::Attention { shape, linear, factors: Factors::F32, pass },
            );
        }
    }
    add(format!("clip_adam_ema {}", Step.name()), "4M".into(), Work::Optimizer { len: PARAMETERS });
    if all {
        for pass in [Forward, Backward] {
            add(format!("silu {}", pass.name()), "1M".into(), Work::Silu { len: VALUES, pass });
        }
    }
    cases
}

fn chosen<'a, T: Copy>(all: bool, first: &'a [T], more: &'a [T]) -> impl Iterator<Item = T> + 'a {
    first.iter().chain(if all { more } else { &[] }).copied()
}

/// Name, size, and what computes a pass.
fn convolution(
    ((network, batch), kind, in_channels, out_channels, side): Conv,
) -> (&'static str, String, impl Fn(Pass) -> Work) {
    let (name, kernel, stride, upsample) = match kind {
        One => ("conv1x1", 1, 1, 1),
        Three => ("conv3x3", 3, 1, 1),
        Direct => ("conv3x3_direct", 3, 1, 1),
        Doubled => ("conv3x3_doubled", 3, 1, 2),
        Seven => ("conv7x7", 7, 1, 1),
        Halving => ("conv2x2_stride2", 2, 2, 1),
    };
    let padding = if stride == 1 { kernel / 2 } else { 0 };
    let shape = Conv2dShape {
        batch,
        height: side,
        width: side,
        upsample,
        in_channels,
        out_channels,
        kernel: [kernel; 2],
        stride,
        padding: [padding; 2],
    };
    let algorithm = if matches!(kind, Direct) { ConvAlgorithm::Direct } else { ConvAlgorithm::Auto };
    let channels = match kind {
        Three | Direct if in_channels == out_channels => format!("{in_channels}"),
        _ => format!("{in_channels}->{out_channels}"),
    };
    let work = move |pass| Work::Conv { shape, algorithm, pass };
    (name, format!("{network} {channels}@{side}"), work)
}
