//! The blocks of a U-Net as one operation each, which keep only their inputs and compute the rest again in the backward pass.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::super::{ConvWeights, Resampling, ResidualBlock};
use super::attention::{FullAttention, LinearAttention};
use super::chain::{Recompute, Then};
use super::conv::{Conv, ConvAdd, ConvSkip};
use super::norm::{RmsNorm, RmsNormAdd, RmsNormScaled, Silu};
use super::{FusedOps, or_zeros};

/// `x`, `weight`, `bias`, `g`, `scale_shift`, `weight`, `bias`, `g`, `residual`.
pub(super) type Residual = Recompute<Then<Then<Then<Conv, RmsNormScaled, 3, 3>, Conv, 5, 3>, RmsNormAdd, 7, 3>>;

/// The same with `skip` after `x`.
pub(super) type ResidualSkip = Recompute<Then<Then<Then<ConvSkip, RmsNormScaled, 4, 3>, Conv, 6, 3>, RmsNormAdd, 8, 3>>;

type Attend<A> = Then<Then<RmsNorm, Conv, 2, 3>, A, 4, 2>;

/// `x`, `g`, `weight`, `bias`, `mem_kv`, `weight`, `bias`, `residual`.
pub(super) type Attention = Recompute<Then<Attend<FullAttention>, ConvAdd, 5, 4>>;

/// `x`, `g`, `weight`, `bias`, `mem_kv`, `weight`, `bias`, `g`, `residual`.
pub(super) type Linear = Recompute<Then<Then<Attend<LinearAttention>, Conv, 5, 3>, RmsNormAdd, 7, 3>>;

const CONV: Conv = Conv(Resampling::Keep);

pub(super) fn residual() -> Residual {
    Recompute(Then(Then(Then(CONV, RmsNormScaled), CONV), RmsNormAdd(Silu::With)))
}

pub(super) fn residual_skip() -> ResidualSkip {
    Recompute(Then(Then(Then(ConvSkip, RmsNormScaled), CONV), RmsNormAdd(Silu::With)))
}

fn attend<A>(attention: A) -> Attend<A> {
    Then(Then(RmsNorm(Silu::Without), CONV), attention)
}

pub(super) fn attention() -> Attention {
    Recompute(Then(attend(FullAttention), ConvAdd))
}

pub(super) fn linear() -> Linear {
    Recompute(Then(Then(attend(LinearAttention), CONV), RmsNormAdd(Silu::Without)))
}

/// See [`ResidualBlock`].
pub fn residual_block(block: ResidualBlock, x: Tensor<4>, skip: Option<Tensor<4>>) -> Tensor<4> {
    let ResidualBlock { conv1, g1, scale_shift, conv2, g2, residual } = block;
    let (b1, b2) = (or_zeros(conv1.bias, &conv1.weight), or_zeros(conv2.bias, &conv2.weight));
    let (w1, w2) = (conv1.weight.into_dispatch(), conv2.weight.into_dispatch());
    let (b1, b2) = (b1.into_dispatch(), b2.into_dispatch());
    let (g1, g2, s, r) =
        (g1.into_dispatch(), g2.into_dispatch(), scale_shift.into_dispatch(), residual.into_dispatch());
    let x = x.into_dispatch();
    Tensor::from_dispatch(match skip {
        None => <Dispatch as FusedOps>::residual_block(x, w1, b1, g1, s, w2, b2, g2, r),
        Some(skip) => {
            <Dispatch as FusedOps>::residual_skip_block(x, skip.into_dispatch(), w1, b1, g1, s, w2, b2, g2, r)
        }
    })
}

/// See [`super::super::attention_block_recomputed`].
pub fn attention_block(
    x: Tensor<4>,
    g: Tensor<1>,
    to_qkv: ConvWeights,
    mem_kv: Tensor<4>,
    to_out: ConvWeights,
) -> Tensor<4> {
    let (b1, b2) = (or_zeros(to_qkv.bias, &to_qkv.weight), or_zeros(to_out.bias, &to_out.weight));
    let (w1, w2) = (to_qkv.weight.into_dispatch(), to_out.weight.into_dispatch());
    let (b1, b2, memory) = (b1.into_dispatch(), b2.into_dispatch(), mem_kv.into_dispatch());
    let (x, g, residual) = (x.clone().into_dispatch(), g.into_dispatch(), x.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::attention_block(x, g, w1, b1, memory, w2, b2, residual))
}

/// See [`super::super::linear_attention_block_recomputed`].
pub fn linear_attention_block(
    x: Tensor<4>,
    g: Tensor<1>,
    to_qkv: ConvWeights,
    mem_kv: Tensor<4>,
    to_out: ConvWeights,
    out_g: Tensor<1>,
) -> Tensor<4> {
    let (b1, b2) = (or_zeros(to_qkv.bias, &to_qkv.weight), or_zeros(to_out.bias, &to_out.weight));
    let (w1, w2) = (to_qkv.weight.into_dispatch(), to_out.weight.into_dispatch());
    let (b1, b2, memory) = (b1.into_dispatch(), b2.into_dispatch(), mem_kv.into_dispatch());
    let (x, g, residual) = (x.clone().into_dispatch(), g.into_dispatch(), x.into_dispatch());
    let g2 = out_g.into_dispatch();
    Tensor::from_dispatch(<Dispatch as FusedOps>::linear_attention_block(x, g, w1, b1, memory, w2, b2, g2, residual))
}
