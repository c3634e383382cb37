//! Every operation in plain tensor operations: used on backends for which we have no kernels, and what tests compare the kernels with.

use std::f64::consts::PI;

use burn::tensor::module::{avg_pool2d, conv2d as conv2d_nchw, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, FloatDType, Tensor, TensorData, activation};
use denoising_diffusion_kernels::dropout::Mask;

use crate::nn::layer_norm;

use super::{AxisResize, Computation, Pointwise, Pool, Pooling, Resampling, Window};

/// Channels last to channels first.
pub fn to_nchw(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}

/// Channels first to channels last.
pub fn to_nhwc(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

/// `tensor` in the type of `x`, because both factors of a product must have the same type.
pub(super) fn like<const D: usize, const E: usize>(x: &Tensor<D>, tensor: Tensor<E>) -> Tensor<E> {
    tensor.cast(x.dtype())
}

/// `f(x)`, computed in f32 and returned in the type of `x`.
pub fn in_f32<const D: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F32 => f(x),
        dtype => f(x.cast(FloatDType::F32)).cast(dtype),
    }
}

/// Softmax, computed in f32 and returned in the type of `x`.
fn softmax(x: Tensor<4>, dim: usize) -> Tensor<4> {
    in_f32(x, |x| activation::softmax(x, dim))
}

/// See [`super::conv2d`].
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    let (weight, bias) = (like(&x, weight), bias.map(|bias| like(&x, bias)));
    let [_, _, kh, kw] = weight.dims();
    to_nhwc(conv2d_nchw(to_nchw(x), weight, bias, same_padding([kh, kw])))
}

/// Stride 1, with zeros around the image such that a kernel of this size does not change the image's size.
pub fn same_padding([kh, kw]: [usize; 2]) -> ConvOptions<2> {
    ConvOptions::new([1, 1], [kh / 2, kw / 2], [1, 1], 1)
}

/// See [`super::conv2d_resampled`].
pub fn conv2d_resampled(x: Tensor<4>, resampling: Resampling, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    conv2d(resampled(x, resampling), weight, bias)
}

/// See [`Resampling`].
pub fn resampled(x: Tensor<4>, resampling: Resampling) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    match resampling {
        Resampling::Keep => x,
        Resampling::Halve => {
            let blocks = x.reshape([b, h / 2, 2, w / 2, 2, c]).permute([0, 1, 3, 5, 2, 4]);
            blocks.reshape([b, h / 2, w / 2, 4 * c])
        }
        Resampling::Double => x.reshape([b, h, 1, w, 1, c]).expand([b, h, 2, w, 2, c]).reshape([b, 2 * h, 2 * w, c]),
    }
}

/// See [`super::conv2d_skip`].
pub fn conv2d_skip(x: Tensor<4>, skip: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    conv2d(Tensor::cat(vec![x, skip], 3), weight, bias)
}

/// See [`super::conv2d_add`].
pub fn conv2d_add(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, residual: Tensor<4>) -> Tensor<4> {
    conv2d(x, weight, bias) + residual
}

/// See [`super::conv2d_relu`].
pub fn conv2d_relu(x: Tensor<4>, window: Window, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    let options = ConvOptions::new([window.stride; 2], window.padding, [1, 1], 1);
    activation::relu(to_nhwc(conv2d_nchw(to_nchw(x), weight, Some(bias), options)))
}

/// See [`super::pool2d`].
pub fn pool2d(x: Tensor<4>, pool: Pool) -> Tensor<4> {
    let Pool { pooling, window, stride, padding } = pool;
    let x = to_nchw(x);
    to_nhwc(match pooling {
        Pooling::Max => {
            let options = MaxPoolOptions::new([window; 2]).with_stride([stride; 2]).with_padding([padding; 2]);
            max_pool2d(x, options)
        }
        Pooling::Mean => {
            let options = AvgPoolOptions::new([window; 2]).with_stride([stride; 2]).with_padding([padding; 2]);
            avg_pool2d(x, options.with_count_include_pad(false))
        }
    })
}

/// See [`super::rms_norm`].
pub fn rms_norm(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    in_f32(x, |x| plus(rms_normalised(x, g), residual))
}

/// See [`super::rms_norm_silu`].
pub fn rms_norm_silu(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    in_f32(x, |x| plus(activation::silu(rms_normalised(x, g)), residual))
}

/// See [`super::rms_norm_scaled_silu`].
pub fn rms_norm_scaled_silu(x: Tensor<4>, g: Tensor<1>, scale_shift: Tensor<2>) -> Tensor<4> {
    let [b, _, _, c] = x.dims();
    let scale = scale_shift.clone().narrow(1, 0, c).reshape([b, 1, 1, c]);
    let shift = scale_shift.narrow(1, c, c).reshape([b, 1, 1, c]);
    in_f32(x, |x| activation::silu(rms_normalised(x, g) * (scale + 1.0) + shift))
}

/// For f32.
fn rms_normalised(x: Tensor<4>, g: Tensor<1>) -> Tensor<4> {
    let channels = g.dims()[0];
    // The floor is applied under the root, where it keeps the gradient for zeros finite.
    let norm = x.clone().square().sum_dim(3).clamp_min(1e-24).sqrt();
    x / norm * (g * (channels as f64).sqrt()).unsqueeze()
}

/// See [`super::layer_norm_scaled`].
pub fn layer_norm_scaled(x: Tensor<4>, scale_shift: Tensor<2>) -> Tensor<4> {
    let [b, _, _, c] = x.dims();
    let part = |i: usize| scale_shift.clone().narrow(1, i * c, c).reshape([b, 1, 1, c]);
    in_f32(x, |x| layer_norm(x) * (part(0) + 1.0) + part(1))
}

/// See [`super::gated_add`].
pub fn gated_add(x: Tensor<4>, gate: Tensor<2>, residual: Tensor<4>) -> Tensor<4> {
    let [b, c] = gate.dims();
    in_f32(x, |x| plus(x * gate.reshape([b, 1, 1, c]), Some(residual)))
}

/// See [`super::gated_silu`].
pub fn gated_silu(x: Tensor<4>, gate: Tensor<2>) -> Tensor<4> {
    let [b, c] = gate.dims();
    in_f32(x, |x| activation::silu(x * gate.reshape([b, 1, 1, c])))
}

/// See [`super::unit_rows`].
pub fn unit_rows(x: Tensor<4>, factor: f64, floor: f64) -> Tensor<4> {
    in_f32(x, |x| {
        // As above.
        let norm = x.clone().square().sum_dim(3).clamp_min(floor * floor).sqrt();
        x * (norm.recip() * factor)
    })
}

/// See [`super::add_scaled`].
pub fn add_scaled(a: Tensor<4>, b: Tensor<4>, factor: f64) -> Tensor<4> {
    in_f32(a, |a| a + b.cast(FloatDType::F32) * factor)
}

/// See [`super::join_scaled`].
pub fn join_scaled(first: Tensor<4>, second: Tensor<4>, factors: [f64; 2]) -> Tensor<4> {
    Tensor::cat(vec![first * factors[0], second * factors[1]], 3)
}

/// See [`super::resize_axis`]; for the second axis. Interpolation is between centres (PyTorch's `align_corners = False`), with the ends repeated.
pub fn resize_axis(x: Tensor<4>, resize: AxisResize) -> Tensor<4> {
    let [outer, n, middle, c] = x.dims();
    let to = [outer, resize.length(n), middle, c];
    match resize {
        AxisResize::HalveByMean => x.reshape([outer, n / 2, 2, middle * c]).mean_dim(2).reshape(to),
        AxisResize::DoubleLinearly => {
            let part = |first: usize, count: usize| x.clone().narrow(1, first, count);
            let (left, right) = match n {
                1 => (x.clone(), x.clone()),
                _ => (
                    Tensor::cat(vec![part(0, 1), part(0, n - 1)], 1),
                    Tensor::cat(vec![part(1, n - 1), part(n - 1, 1)], 1),
                ),
            };
            let near = x.clone() * 0.75;
            Tensor::stack::<5>(vec![left * 0.25 + near.clone(), near + right * 0.25], 2).reshape(to)
        }
    }
}

/// See [`super::pointwise`].
pub fn pointwise(f: Pointwise, x: Tensor<4>) -> Tensor<4> {
    in_f32(x, |x| match f {
        Pointwise::Silu => activation::silu(x),
        Pointwise::GeluTanh => {
            let inner = (x.clone() * x.clone() * 0.044715 + 1.0) * x.clone() * (2.0 / PI).sqrt();
            x * 0.5 * (inner.tanh() + 1.0)
        }
    })
}

/// Adds `residual`, of either type, to `x`, which is f32.
fn plus(x: Tensor<4>, residual: Option<Tensor<4>>) -> Tensor<4> {
    match residual {
        Some(residual) => x + residual.cast(FloatDType::F32),
        None => x,
    }
}

/// See [`super::dropout`]; the mask is computed on the host.
pub fn dropout(x: Tensor<4>, mask: Mask) -> Tensor<4> {
    let shape = x.shape();
    let factors: Vec<f32> = (0..shape.num_elements() as u64).map(|i| mask.factor(i)).collect();
    let factors = Tensor::from_data(TensorData::new(factors, shape), &x.device());
    in_f32(x, |x| x * factors)
}

/// See [`super::attention`].
pub fn attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    let [b, h, w, _] = qkv.dims();
    let n = h * w;
    let [_, heads, m, d] = mem_kv.dims();
    let [q, k, v] = split_heads(qkv, heads, d); // [b, heads, n, d]
    let memory = |i: usize| like(&q, mem_kv.clone().narrow(0, i, 1)).expand([b, heads, m, d]);
    // An empty tensor cannot be expanded.
    let (k, v) = match m {
        0 => (k, v),
        _ => (Tensor::cat(vec![memory(0), k], 2), Tensor::cat(vec![memory(1), v], 2)),
    };
    let q = q * (d as f64).powf(-0.5);
    let out = if n <= ONE_BLOCK { attend(q, k, v) } else { attend_in_blocks(q, k, v) };
    out.swap_dims(1, 2).reshape([b, h, w, heads * d])
}

/// The largest number of queries whose scores may exist at the same time: a few MB per head.
const ONE_BLOCK: usize = 1024;
/// Number of queries per block, if there are more.
const BLOCK: usize = 256;

/// Attention of `q [b, heads, n, d]`, already divided by √d, with `k` and `v` `[b, heads, m + n, d]`.
fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    softmax(q.matmul(k.swap_dims(2, 3)), 3).matmul(v)
}

/// The same for one block of queries at a time. The tape does not keep the scores but computes them again, so the whole n x n matrix never exists.
fn attend_in_blocks(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let n = q.dims()[2];
    let block = Computation::new(|inputs| {
        let [q, k, v] = inputs.try_into().map(|all: [_; 3]| all.map(Tensor::from_dispatch)).expect("three tensors");
        attend(q, k, v).into_dispatch()
    });
    let attended = |start: usize| {
        let q = q.clone().narrow(2, start, BLOCK.min(n - start));
        let inputs = [q, k.clone(), v.clone()].map(Tensor::into_dispatch);
        Tensor::from_dispatch(block.clone().recomputed(inputs.into()))
    };
    Tensor::cat((0..n).step_by(BLOCK).map(attended).collect(), 2)
}

/// See [`super::linear_attention`].
pub fn linear_attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    let [b, h, w, _] = qkv.dims();
    let [_, heads, d, m] = mem_kv.dims();
    let [q, k, v] = split_heads(qkv, heads, d); // [b, heads, n, d]
    let memory = |i: usize| like(&q, mem_kv.clone().narrow(0, i, 1)).swap_dims(2, 3).expand([b, heads, m, d]);
    let (k, v) = match m {
        0 => (k, v),
        _ => (Tensor::cat(vec![memory(0), k], 2), Tensor::cat(vec![memory(1), v], 2)),
    };
    let q = softmax(q, 3) * (d as f64).powf(-0.5);
    let context = softmax(k, 2).swap_dims(2, 3).matmul(v); // [b, heads, d, d]
    q.matmul(context).swap_dims(1, 2).reshape([b, h, w, heads * d])
}

/// `[b, h, w, 3 * heads * d]` to q, k and v, each `[b, heads, h w, d]`.
fn split_heads(qkv: Tensor<4>, heads: usize, d: usize) -> [Tensor<4>; 3] {
    let [b, h, w, _] = qkv.dims();
    [0, 1, 2].map(|i| qkv.clone().narrow(3, i * heads * d, heads * d).reshape([b, h * w, heads, d]).swap_dims(1, 2))
}
