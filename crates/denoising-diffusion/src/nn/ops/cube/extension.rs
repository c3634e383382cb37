//! The operations that layers call, with gradients, as a Burn backend extension. The passes that they consist of are in [`passes`](super::passes).

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Cube, backend_extension};
use denoising_diffusion_kernels::dropout::Mask;

use super::super::tape::{run, track};
use super::super::{AxisResize, Pointwise};
use super::ops::{
    AddScaled, Attention, BiasedConv, Conv, Dropout, Each, GatedAdd, GatedSilu, Join, LayerNormScaled, LinearAttention,
    Resize, RmsNorm, RmsNormAdd, RmsNormScaled, UnitRows,
};
use super::rms_norm::Then;
use super::unit_rows::Length;

#[backend_extension(Cube, Autodiff)]
pub trait CubeOps: burn::backend::Backend {
    fn cube_rms_norm(x: FloatTensor<Self>, g: FloatTensor<Self>, then: Then) -> FloatTensor<Self>;
    fn cube_rms_norm_add(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        then: Then,
    ) -> FloatTensor<Self>;
    fn cube_rms_norm_scaled(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cube_layer_norm_scaled(x: FloatTensor<Self>, scale_shift: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_gated_add(x: FloatTensor<Self>, gate: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_gated_silu(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_unit_rows(x: FloatTensor<Self>, length: Length) -> FloatTensor<Self>;
    fn cube_add_scaled(a: FloatTensor<Self>, b: FloatTensor<Self>, factor: f32) -> FloatTensor<Self>;
    fn cube_resize_axis(x: FloatTensor<Self>, resize: AxisResize) -> FloatTensor<Self>;
    fn cube_join(x: FloatTensor<Self>, skip: FloatTensor<Self>, factors: Option<[f32; 2]>) -> FloatTensor<Self>;
    fn cube_conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_biased_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cube_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_linear_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_dropout(x: FloatTensor<Self>, key: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self>;
    fn cube_pointwise(x: FloatTensor<Self>, f: Pointwise) -> FloatTensor<Self>;
}

impl CubeOps for Cube {
    fn cube_rms_norm(x: FloatTensor<Self>, g: FloatTensor<Self>, then: Then) -> FloatTensor<Self> {
        run(RmsNorm(then), [x, g])
    }

    fn cube_rms_norm_add(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        then: Then,
    ) -> FloatTensor<Self> {
        run(RmsNormAdd(then), [x, bias, g, residual])
    }

    fn cube_rms_norm_scaled(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        run(RmsNormScaled, [x, bias, g, scale_shift])
    }

    fn cube_layer_norm_scaled(x: FloatTensor<Self>, scale_shift: FloatTensor<Self>) -> FloatTensor<Self> {
        run(LayerNormScaled, [x, scale_shift])
    }

    fn cube_gated_add(x: FloatTensor<Self>, gate: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self> {
        run(GatedAdd, [x, gate, residual])
    }

    fn cube_gated_silu(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        run(GatedSilu, [x, gate])
    }

    fn cube_unit_rows(x: FloatTensor<Self>, length: Length) -> FloatTensor<Self> {
        run(UnitRows(length), [x])
    }

    fn cube_add_scaled(a: FloatTensor<Self>, b: FloatTensor<Self>, factor: f32) -> FloatTensor<Self> {
        run(AddScaled(factor), [a, b])
    }

    fn cube_resize_axis(x: FloatTensor<Self>, resize: AxisResize) -> FloatTensor<Self> {
        run(Resize(resize), [x])
    }

    fn cube_join(x: FloatTensor<Self>, skip: FloatTensor<Self>, factors: Option<[f32; 2]>) -> FloatTensor<Self> {
        run(Join(factors), [x, skip])
    }

    fn cube_conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        run(Conv, [x, weight])
    }

    fn cube_biased_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        run(BiasedConv, [x, weight, bias])
    }

    fn cube_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self> {
        run(Attention, [qkv, mem_kv])
    }

    fn cube_linear_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self> {
        run(LinearAttention, [qkv, mem_kv])
    }

    fn cube_dropout(x: FloatTensor<Self>, key: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self> {
        run(Dropout(mask), [x, key])
    }

    fn cube_pointwise(x: FloatTensor<Self>, f: Pointwise) -> FloatTensor<Self> {
        run(Each(f), [x])
    }
}

impl<C: CheckpointStrategy> CubeOps for Autodiff<Cube, C> {
    fn cube_rms_norm(x: FloatTensor<Self>, g: FloatTensor<Self>, then: Then) -> FloatTensor<Self> {
        track::<_, C, _, _>(RmsNorm(then), [x, g])
    }

    fn cube_rms_norm_add(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        then: Then,
    ) -> FloatTensor<Self> {
        track::<_, C, _, _>(RmsNormAdd(then), [x, bias, g, residual])
    }

    fn cube_rms_norm_scaled(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<_, C, _, _>(RmsNormScaled, [x, bias, g, scale_shift])
    }

    fn cube_layer_norm_scaled(x: FloatTensor<Self>, scale_shift: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<_, C, _, _>(LayerNormScaled, [x, scale_shift])
    }

    fn cube_gated_add(x: FloatTensor<Self>, gate: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<_, C, _, _>(GatedAdd, [x, gate, residual])
    }

    fn cube_gated_silu(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<_, C, _, _>(GatedSilu, [x, gate])
    }

    fn cube_unit_rows(x: FloatTensor<Self>, length: Length) -> FloatTensor<Self> {
        track::<_, C, _, _>(UnitRows(length), [x])
    }

    fn cube_add_scaled(a: FloatTensor<Self>, b: FloatTensor<Self>, factor: f32) -> FloatTensor<Self> {
        track::<_, C, _, _>(AddScaled(factor), [a, b])
    }

    fn cube_resize_axis(x: FloatTensor<Self>, resize: AxisResize) -> FloatTensor<Self> {
        track::<_, C, _, _>(Resize(resize), [x])
    }

    fn cube_join(x: FloatTensor<Self>, skip: FloatTensor<Self>, factors: Option<[f32; 2]>) -> FloatTensor<Self> {
        track::<_, C, _, _>(Join(factors), [x, skip])
    }

    fn cube_conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<_, C, _, _>(Conv, [x, weight])
    }

    fn cube_biased_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        track::<_, C, _, _>(BiasedConv, [x, weight, bias])
    }

    fn cube_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<_, C, _, _>(Attention, [qkv, mem_kv])
    }

    fn cube_linear_attention(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> FloatTensor<Self> {
        track::<_, C, _, _>(LinearAttention, [qkv, mem_kv])
    }

    fn cube_dropout(x: FloatTensor<Self>, key: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self> {
        track::<_, C, _, _>(Dropout(mask), [x, key])
    }

    fn cube_pointwise(x: FloatTensor<Self>, f: Pointwise) -> FloatTensor<Self> {
        track::<_, C, _, _>(Each(f), [x])
    }
}
