//! The operations as Burn sees them: one backend extension, for the flex backend and for autodiff over it. Nothing is computed here.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, backend_extension};
use burn_flex::FlexTensor;
use denoising_diffusion_kernels::dropout::Mask;

use super::super::{AxisResize, Pointwise, Pool, Resampling, Window};
use super::attention::{FullAttention, LinearAttention};
use super::conv::{Conv, ConvAdd, ConvRelu, ConvSkip};
use super::layer_norm::{GatedAdd, LayerNormScaled};
use super::magnitude::{AddScaled, GatedSilu, JoinScaled, Resize, Unit};
use super::norm::{RmsNorm, RmsNormAdd, RmsNormScaled, Silu};
use super::pointwise::{Dropout, Each};
use super::pooling::Pooled;
use super::{blocks, run, track};

/// The operations, as Burn dispatches them. A convolution without a bias is given zeros.
#[backend_extension(Flex, Autodiff)]
#[allow(clippy::too_many_arguments, reason = "the parameters of a block")]
pub trait FusedOps: burn::backend::Backend {
    fn conv2d(
        x: FloatTensor<Self>,
        resampling: Resampling,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn conv2d_skip(
        x: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn conv2d_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn conv2d_relu(
        x: FloatTensor<Self>,
        window: Window,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn pool2d(x: FloatTensor<Self>, pool: Pool) -> FloatTensor<Self>;
    fn rms_norm(x: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rms_norm_add(x: FloatTensor<Self>, g: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rms_norm_silu(x: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rms_norm_silu_add(x: FloatTensor<Self>, g: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rms_norm_scaled_silu(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn layer_norm_scaled(x: FloatTensor<Self>, scale_shift: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gated_add(x: FloatTensor<Self>, gate: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self>;
    fn unit_rows(x: FloatTensor<Self>, factor: f32, floor: f32) -> FloatTensor<Self>;
    fn gated_silu(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;
    fn add_scaled(a: FloatTensor<Self>, b: FloatTensor<Self>, factor: f32) -> FloatTensor<Self>;
    fn join_scaled(first: FloatTensor<Self>, second: FloatTensor<Self>, factors: [f32; 2]) -> FloatTensor<Self>;
    fn resize_axis(x: FloatTensor<Self>, resize: AxisResize) -> FloatTensor<Self>;
    fn pointwise(x: FloatTensor<Self>, f: Pointwise) -> FloatTensor<Self>;
    fn dropout(x: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self>;
    fn full_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self>;
    fn linear_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self>;
    fn residual_block(
        x: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        g1: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        g2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn residual_skip_block(
        x: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        g1: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        g2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn attention_block(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        mem_kv: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn linear_attention_block(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        mem_kv: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        g2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl FusedOps for Flex {
    fn conv2d(x: FlexTensor, resampling: Resampling, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        run(Conv(resampling), [x, weight, bias])
    }

    fn conv2d_skip(x: FlexTensor, skip: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        run(ConvSkip, [x, skip, weight, bias])
    }

    fn conv2d_add(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, residual: FlexTensor) -> FlexTensor {
        run(ConvAdd, [x, weight, bias, residual])
    }

    fn conv2d_relu(x: FlexTensor, window: Window, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        run(ConvRelu(window), [x, weight, bias])
    }

    fn pool2d(x: FlexTensor, pool: Pool) -> FlexTensor {
        run(Pooled(pool), [x])
    }

    fn rms_norm(x: FlexTensor, g: FlexTensor) -> FlexTensor {
        run(RmsNorm(Silu::Without), [x, g])
    }

    fn rms_norm_add(x: FlexTensor, g: FlexTensor, residual: FlexTensor) -> FlexTensor {
        run(RmsNormAdd(Silu::Without), [x, g, residual])
    }

    fn rms_norm_silu(x: FlexTensor, g: FlexTensor) -> FlexTensor {
        run(RmsNorm(Silu::With), [x, g])
    }

    fn rms_norm_silu_add(x: FlexTensor, g: FlexTensor, residual: FlexTensor) -> FlexTensor {
        run(RmsNormAdd(Silu::With), [x, g, residual])
    }

    fn rms_norm_scaled_silu(x: FlexTensor, g: FlexTensor, scale_shift: FlexTensor) -> FlexTensor {
        run(RmsNormScaled, [x, g, scale_shift])
    }

    fn layer_norm_scaled(x: FlexTensor, scale_shift: FlexTensor) -> FlexTensor {
        run(LayerNormScaled, [x, scale_shift])
    }

    fn gated_add(x: FlexTensor, gate: FlexTensor, residual: FlexTensor) -> FlexTensor {
        run(GatedAdd, [x, gate, residual])
    }

    fn unit_rows(x: FlexTensor, factor: f32, floor: f32) -> FlexTensor {
        run(Unit { factor, floor }, [x])
    }

    fn gated_silu(x: FlexTensor, gate: FlexTensor) -> FlexTensor {
        run(GatedSilu, [x, gate])
    }

    fn add_scaled(a: FlexTensor, b: FlexTensor, factor: f32) -> FlexTensor {
        run(AddScaled(factor), [a, b])
    }

    fn join_scaled(first: FlexTensor, second: FlexTensor, factors: [f32; 2]) -> FlexTensor {
        run(JoinScaled(factors), [first, second])
    }

    fn resize_axis(x: FlexTensor, resize: AxisResize) -> FlexTensor {
        run(Resize(resize), [x])
    }

    fn pointwise(x: FlexTensor, f: Pointwise) -> FlexTensor {
        run(Each(f), [x])
    }

    fn dropout(x: FlexTensor, mask: Mask) -> FlexTensor {
        run(Dropout(mask), [x])
    }

    fn full_attention(qkv: FlexTensor, mem_kv: FlexTensor) -> FlexTensor {
        run(FullAttention, [qkv, mem_kv])
    }

    fn linear_attention(qkv: FlexTensor, mem_kv: FlexTensor) -> FlexTensor {
        run(LinearAttention, [qkv, mem_kv])
    }

    fn residual_block(
        x: FlexTensor,
        w1: FlexTensor,
        b1: FlexTensor,
        g1: FlexTensor,
        scale_shift: FlexTensor,
        w2: FlexTensor,
        b2: FlexTensor,
        g2: FlexTensor,
        residual: FlexTensor,
    ) -> FlexTensor {
        run(blocks::residual(), [x, w1, b1, g1, scale_shift, w2, b2, g2, residual])
    }

    fn residual_skip_block(
        x: FlexTensor,
        skip: FlexTensor,
        w1: FlexTensor,
        b1: FlexTensor,
        g1: FlexTensor,
        scale_shift: FlexTensor,
        w2: FlexTensor,
        b2: FlexTensor,
        g2: FlexTensor,
        residual: FlexTensor,
    ) -> FlexTensor {
        run(blocks::residual_skip(), [x, skip, w1, b1, g1, scale_shift, w2, b2, g2, residual])
    }

    fn attention_block(
        x: FlexTensor,
        g: FlexTensor,
        w1: FlexTensor,
        b1: FlexTensor,
        mem_kv: FlexTensor,
        w2: FlexTensor,
        b2: FlexTensor,
        residual: FlexTensor,
    ) -> FlexTensor {
        run(blocks::attention(), [x, g, w1, b1, mem_kv, w2, b2, residual])
    }

    fn linear_attention_block(
        x: FlexTensor,
        g: FlexTensor,
        w1: FlexTensor,
        b1: FlexTensor,
        mem_kv: FlexTensor,
        w2: FlexTensor,
        b2: FlexTensor,
        g2: FlexTensor,
        residual: FlexTensor,
    ) -> FlexTensor {
        run(blocks::linear(), [x, g, w1, b1, mem_kv, w2, b2, g2, residual])
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn conv2d(
        x: FloatTensor<Self>,
        resampling: Resampling,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 3>(Conv(resampling), [x, weight, bias])
    }

    fn conv2d_skip(
        x: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 4>(ConvSkip, [x, skip, weight, bias])
    }

    fn conv2d_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 4>(ConvAdd, [x, weight, bias, residual])
    }

    fn conv2d_relu(
        x: FloatTensor<Self>,
        window: Window,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 3>(ConvRelu(window), [x, weight, bias])
    }

    fn pool2d(x: FloatTensor<Self>, pool: Pool) -> FloatTensor<Self> {
        track::<C, _, 1>(Pooled(pool), [x])
    }

    fn rms_norm(x: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 2>(RmsNorm(Silu::Without), [x, g])
    }

    fn rms_norm_add(x: FloatTensor<Self>, g: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 3>(RmsNormAdd(Silu::Without), [x, g, residual])
    }

    fn rms_norm_silu(x: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 2>(RmsNorm(Silu::With), [x, g])
    }

    fn rms_norm_silu_add(x: FloatTensor<Self>, g: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 3>(RmsNormAdd(Silu::With), [x, g, residual])
    }

    fn rms_norm_scaled_silu(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 3>(RmsNormScaled, [x, g, scale_shift])
    }

    fn layer_norm_scaled(x: FloatTensor<Self>, scale_shift: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 2>(LayerNormScaled, [x, scale_shift])
    }

    fn gated_add(x: FloatTensor<Self>, gate: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 3>(GatedAdd, [x, gate, residual])
    }

    fn unit_rows(x: FloatTensor<Self>, factor: f32, floor: f32) -> FloatTensor<Self> {
        track::<C, _, 1>(Unit { factor, floor }, [x])
    }

    fn gated_silu(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 2>(GatedSilu, [x, gate])
    }

    fn add_scaled(a: FloatTensor<Self>, b: FloatTensor<Self>, factor: f32) -> FloatTensor<Self> {
        track::<C, _, 2>(AddScaled(factor), [a, b])
    }

    fn join_scaled(first: FloatTensor<Self>, second: FloatTensor<Self>, factors: [f32; 2]) -> FloatTensor<Self> {
        track::<C, _, 2>(JoinScaled(factors), [first, second])
    }

    fn resize_axis(x: FloatTensor<Self>, resize: AxisResize) -> FloatTensor<Self> {
        track::<C, _, 1>(Resize(resize), [x])
    }

    fn pointwise(x: FloatTensor<Self>, f: Pointwise) -> FloatTensor<Self> {
        track::<C, _, 1>(Each(f), [x])
    }

    fn dropout(x: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self> {
        track::<C, _, 1>(Dropout(mask), [x])
    }

    fn full_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 2>(FullAttention, [qkv, mem_kv])
    }

    fn linear_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<C, _, 2>(LinearAttention, [qkv, mem_kv])
    }

    fn residual_block(
        x: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        g1: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        g2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 9>(blocks::residual(), [x, w1, b1, g1, scale_shift, w2, b2, g2, residual])
    }

    fn residual_skip_block(
        x: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        g1: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        g2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 10>(blocks::residual_skip(), [x, skip, w1, b1, g1, scale_shift, w2, b2, g2, residual])
    }

    fn attention_block(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        mem_kv: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 8>(blocks::attention(), [x, g, w1, b1, mem_kv, w2, b2, residual])
    }

    fn linear_attention_block(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        mem_kv: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        g2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<C, _, 9>(blocks::linear(), [x, g, w1, b1, mem_kv, w2, b2, g2, residual])
    }
}
