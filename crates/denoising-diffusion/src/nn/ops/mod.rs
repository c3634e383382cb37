//! The few operations that take most of a network's time, channels-last. Each exists twice: in plain tensor operations (`plain`), and as our own CPU
//! kernel behind Burn's backend extension (`fused`), which is used whenever the tensors are f32 on the CPU. Some also exist as kernels for GPUs
//! (`cube`). Tests compare the kernels with the plain operations.
//!
//! Data may be bf16 (see [`Precision`]). Outputs have the type of the data; weights, and what data are scaled, shifted and gated by, stay f32.

#[cfg(feature = "cube")]
pub(crate) mod cube;
mod dropout;
mod fused;
pub mod plain;
mod recompute;
mod settings;
mod tape;
#[cfg(test)]
mod tests;

use burn::tensor::{DType, Tensor};

use crate::device::is_cpu;

pub use denoising_diffusion_kernels::activation::Pointwise;
pub use denoising_diffusion_kernels::pooling::Pooling;
pub use denoising_diffusion_kernels::resize::AxisResize;
pub(crate) use dropout::reads_key_on_device;
pub use dropout::{DropoutKey, dropout};
pub use plain::{in_f32, to_nchw, to_nhwc};
pub(crate) use recompute::Computation;
pub use settings::{
    Activations, CpuArithmetic, Precision, UnknownPrecision, activations, precision, set_activations,
    set_cpu_arithmetic, set_precision,
};

/// How the sides of an image change before a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Each 2x2 block of pixels becomes channels, new channel `4 c + 2 row + column` (the reference's order).
    Halve,
    /// Nearest-neighbour doubling.
    Double,
    /// Unchanged.
    Keep,
}

/// Whether our CPU kernels can take a tensor.
fn on_cpu(tensor: &Tensor<4>) -> bool {
    tensor.dtype() == DType::F32 && is_cpu(&tensor.device())
}

/// Whether blocks on `x` should keep only their inputs and there are kernels for that; see [`recompute`](crate::nn::recompute) for other blocks.
pub fn recomputes(x: &Tensor<4>) -> bool {
    activations() == Activations::Recompute && on_cpu(x)
}

/// Calls the version of an operation with GPU kernels that suits the device of its first argument.
macro_rules! dispatch {
    ($op:ident($first:expr $(, $other:expr)*)) => {{
        let first = $first;
        if on_cpu(&first) {
            return fused::$op(first $(, $other)*);
        }
        #[cfg(feature = "cube")]
        if cube::takes(&first) {
            return cube::$op(first $(, $other)*);
        }
        plain::$op(first $(, $other)*)
    }};
}

/// Stride 1, "same" zero padding: `x [b, h, w, c_in]`, `weight [c_out, c_in, k, k]` with `k` odd, `bias [c_out]` to
/// `[b, h, w, c_out]`.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    if on_cpu(&x) {
        return fused::conv2d(x, Resampling::Keep, weight, bias);
    }
    #[cfg(feature = "cube")]
    if cube::takes(&x) {
        let is_narrow_enough = cube::narrow_convolutions_sum_in_f32(&x, weight.dims());
        let convolve = |x: Tensor<4>| cube::conv2d(x, weight, bias);
        return if is_narrow_enough { convolve(x) } else { in_f32(x, convolve) };
    }
    plain::conv2d(x, weight, bias)
}

/// [`conv2d`] of the resampled `x`; [`Resampling::Halve`] needs even sides and `k = 1`. The resampled image is not stored.
pub fn conv2d_resampled(x: Tensor<4>, resampling: Resampling, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    if on_cpu(&x) {
        fused::conv2d(x, resampling, weight, bias)
    } else {
        conv2d(plain::resampled(x, resampling), weight, bias)
    }
}

/// Whether [`conv2d_skip`] takes `x` and `skip` without joining them. If not, callers that use both twice should join them once.
pub fn takes_in_parts(x: &Tensor<4>) -> bool {
    on_cpu(x)
}

/// Concatenates `x [b, h, w, c]` and `skip [b, h, w, d]`: `[b, h, w, c + d]`.
pub fn join(x: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "cube")]
    if cube::takes(&x) {
        return cube::join(x, skip);
    }
    Tensor::cat(vec![x, skip], 3)
}

/// [`conv2d`] of `x` and `skip`, concatenated along the channels without being copied together.
pub fn conv2d_skip(x: Tensor<4>, skip: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    if on_cpu(&x) { fused::conv2d_skip(x, skip, weight, bias) } else { conv2d(join(x, skip), weight, bias) }
}

/// [`conv2d`] plus `residual [b, h, w, c_out]`.
pub fn conv2d_add(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, residual: Tensor<4>) -> Tensor<4> {
    if on_cpu(&x) { fused::conv2d_add(x, weight, bias, residual) } else { conv2d(x, weight, bias) + residual }
}

/// The positions of a convolution's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pixels from one window to the next, vertically and horizontally.
    pub stride: usize,
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: [usize; 2],
}

/// `max(conv(x), 0)`: `x [b, h, w, c_in]`, `weight [c_out, c_in, kh, kw]`, `bias [c_out]`.
pub fn conv2d_relu(x: Tensor<4>, window: Window, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    if on_cpu(&x) { fused::conv2d_relu(x, window, weight, bias) } else { plain::conv2d_relu(x, window, weight, bias) }
}

/// A pooling with square windows. Positions in the padding are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub pooling: Pooling,
    pub window: usize,
    pub stride: usize,
    pub padding: usize,
}

/// The largest or the mean value of each window, channel by channel: `x [b, h, w, c]`.
pub fn pool2d(x: Tensor<4>, pool: Pool) -> Tensor<4> {
    if on_cpu(&x) { fused::pool2d(x, pool) } else { plain::pool2d(x, pool) }
}

/// `x / max(|x|_2, 1e-12) * sqrt(c) * g + residual` over the last dimension: `x [b, h, w, c]`, `g [c]`, `residual` like `x`.
pub fn rms_norm(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    dispatch!(rms_norm(x, g, residual))
}

/// `silu(rms_norm(x)) + residual`.
pub fn rms_norm_silu(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    dispatch!(rms_norm_silu(x, g, residual))
}

/// `silu(rms_norm(x) * (scale + 1) + shift)`, where scale and shift are the halves of `scale_shift [b, 2 c]`.
pub fn rms_norm_scaled_silu(x: Tensor<4>, g: Tensor<1>, scale_shift: Tensor<2>) -> Tensor<4> {
    if on_cpu(&x) {
        fused::rms_norm_scaled_silu(x, g, scale_shift)
    } else {
        plain::rms_norm_scaled_silu(x, g, scale_shift)
    }
}

/// [`conv2d`] without the bias, and the bias, if the following norm adds it.
#[cfg(feature = "cube")]
fn unbiased(x: &Tensor<4>, conv: &ConvWeights) -> Option<(Tensor<4>, Tensor<1>)> {
    let bias = conv.bias.clone().filter(|_| cube::takes(x))?;
    Some((conv2d(x.clone(), conv.weight.clone(), None), bias))
}

/// [`rms_norm`] of [`conv2d`]. The kernels for GPUs add the bias during normalisation, and sum its gradient there as well.
pub fn conv2d_rms_norm(x: Tensor<4>, conv: ConvWeights, g: Tensor<1>, residual: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "cube")]
    if let Some((x, bias)) = unbiased(&x, &conv) {
        return cube::biased_rms_norm(x, bias, g, residual, cube::Then::Nothing);
    }
    rms_norm(conv2d(x, conv.weight, conv.bias), g, Some(residual))
}

/// [`rms_norm_silu`] of [`conv2d`]; see [`conv2d_rms_norm`].
pub fn conv2d_rms_norm_silu(x: Tensor<4>, conv: ConvWeights, g: Tensor<1>, residual: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "cube")]
    if let Some((x, bias)) = unbiased(&x, &conv) {
        return cube::biased_rms_norm(x, bias, g, residual, cube::Then::Silu);
    }
    rms_norm_silu(conv2d(x, conv.weight, conv.bias), g, Some(residual))
}

/// [`rms_norm_scaled_silu`] of [`conv2d`]; see [`conv2d_rms_norm`].
pub fn conv2d_rms_norm_scaled_silu(x: Tensor<4>, conv: ConvWeights, g: Tensor<1>, scale_shift: Tensor<2>) -> Tensor<4> {
    #[cfg(feature = "cube")]
    if let Some((x, bias)) = unbiased(&x, &conv) {
        return cube::biased_rms_norm_scaled_silu(x, bias, g, scale_shift);
    }
    rms_norm_scaled_silu(conv2d(x, conv.weight, conv.bias), g, scale_shift)
}

/// `(x - mean) / sqrt(variance + 1e-6) (scale + 1) + shift` over the last dimension, where scale and shift are the halves of `scale_shift [b, 2 c]`:
/// `x [b, h, w, c]`.
pub fn layer_norm_scaled(x: Tensor<4>, scale_shift: Tensor<2>) -> Tensor<4> {
    dispatch!(layer_norm_scaled(x, scale_shift))
}

/// `residual + x gate`: `x` and `residual` `[b, h, w, c]`, `gate [b, c]`.
pub fn gated_add(x: Tensor<4>, gate: Tensor<2>, residual: Tensor<4>) -> Tensor<4> {
    dispatch!(gated_add(x, gate, residual))
}

/// `silu(x gate)`: `x [b, h, w, c]`, `gate [b, c]`.
pub fn gated_silu(x: Tensor<4>, gate: Tensor<2>) -> Tensor<4> {
    dispatch!(gated_silu(x, gate))
}

/// `x factor / max(|x|_2, floor)` over the last dimension. Where the norm is below the floor, the gradient is that of a constant factor.
pub fn unit_rows<const D: usize>(x: Tensor<D>, factor: f64, floor: f64) -> Tensor<D> {
    let dims = x.dims();
    let unit = |x: Tensor<4>| dispatch!(unit_rows(x, factor, floor));
    unit(x.reshape(in_four(dims, D - 1))).reshape(dims)
}

/// `a + factor b`, of the same shape.
pub fn add_scaled<const D: usize>(a: Tensor<D>, b: Tensor<D>, factor: f64) -> Tensor<D> {
    let dims = a.dims();
    let [a, b] = [a, b].map(|x| x.reshape(in_four(dims, D - 1)));
    let add = |a: Tensor<4>, b| dispatch!(add_scaled(a, b, factor));
    add(a, b).reshape(dims)
}

/// Concatenates `[b, h, w, c]` and `[b, h, w, d]`, each multiplied by a number: `[b, h, w, c + d]`.
pub fn join_scaled(first: Tensor<4>, second: Tensor<4>, factors: [f64; 2]) -> Tensor<4> {
    dispatch!(join_scaled(first, second, factors))
}

/// Halves or doubles one axis, not the last; an axis that is halved must have even length.
pub fn resize_axis<const D: usize>(x: Tensor<D>, axis: usize, resize: AxisResize) -> Tensor<D> {
    let mut dims = x.dims();
    let along = in_four(dims, axis);
    dims[axis] = resize.length(dims[axis]);
    let resized = |x: Tensor<4>| dispatch!(resize_axis(x, resize));
    resized(x.reshape(along)).reshape(dims)
}

/// The sizes before an axis, along it, between it and the last, and along the last. (Rows of the last axis are kept, because on CUDA there are gaps
/// between them.)
fn in_four<const D: usize>(dims: [usize; D], axis: usize) -> [usize; 4] {
    let product = |dims: &[usize]| dims.iter().product();
    if axis == D - 1 {
        return [1, 1, product(&dims[..axis]), dims[axis]];
    }
    [product(&dims[..axis]), dims[axis], product(&dims[axis + 1..D - 1]), dims[D - 1]]
}

/// `x weight^T + bias` for each pair of `weight [c_out, c_in]` and `bias [c_out]`, with `x [b, c_in]`; `None` if it is not faster to compute them
/// together.
pub fn linears(x: &Tensor<2>, layers: &[(Tensor<2>, Tensor<1>)]) -> Option<Vec<Tensor<2>>> {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if cube::takes(x) && layers.len() > 1 {
        return cube::linears(x, layers);
    }
    let _ = (x, layers);
    None
}

/// SiLU (Hendrycks and Gimpel 2016) of each value.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    pointwise(Pointwise::Silu, x)
}

/// Applies a function to each value.
pub fn pointwise<const D: usize>(f: Pointwise, x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if cube::takes(&x) {
        return cube::pointwise(f, x);
    }
    let dims = x.dims();
    let flat = x.reshape([1, 1, 1, -1]);
    let y = if on_cpu(&flat) { fused::pointwise(f, flat) } else { plain::pointwise(f, flat) };
    y.reshape(dims)
}

/// The same values in memory of their own for the whole run; the tensors are flat and not on a tape.
pub(crate) fn copied(all: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if all.iter().all(cube::takes) {
        return for_long(all, cube::copied);
    }
    let copy = |tensor: Tensor<1>| {
        let device = tensor.device();
        Tensor::from_data(tensor.into_data(), &device)
    };
    all.into_iter().map(copy).collect()
}

/// Runs `work` so that its device allocations go into long-lived memory, where free blocks are found again by size.
#[cfg(all(feature = "cube", not(feature = "fusion")))]
fn for_long(all: Vec<Tensor<1>>, work: impl Fn(Vec<Tensor<1>>) -> Vec<Tensor<1>> + Send) -> Vec<Tensor<1>> {
    match all.first().map(Tensor::device) {
        Some(device) => device.memory_persistent_allocations(all, work),
        None => all,
    }
}

/// Converts flat tensors, which are not on a tape, to another type: on GPUs with few launches.
pub(crate) fn cast(all: Vec<Tensor<1>>, dtype: DType) -> Vec<Tensor<1>> {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if all.iter().all(cube::takes) {
        return for_long(all, |all| cube::cast(all, dtype));
    }
    all.into_iter().map(|tensor| tensor.cast(dtype)).collect()
}

/// `softmax(q k^T / sqrt(d)) v` per head, over memory and positions: `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, m, d]` to `[b, h, w, heads d]`.
/// The matrix of all pairs of positions is never stored as a whole. `m` may be 0.
pub fn attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    if on_cpu(&qkv) {
        return fused::full_attention(qkv, mem_kv);
    }
    #[cfg(feature = "cube")]
    if cube::takes_attention(&qkv, mem_kv.dims()[3]) {
        return cube::attention(qkv, mem_kv);
    }
    plain::attention(qkv, mem_kv)
}

/// `context = softmax_n(k) v^T`, `out = context^T softmax_d(q) / sqrt(d)` per head, over memory and positions:
/// `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, d, m]` to `[b, h, w, heads d]`. `m` may be 0.
pub fn linear_attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    if on_cpu(&qkv) {
        return fused::linear_attention(qkv, mem_kv);
    }
    #[cfg(feature = "cube")]
    if cube::takes_linear_attention(&qkv, mem_kv.dims()[2]) {
        return cube::linear_attention(qkv, mem_kv);
    }
    plain::linear_attention(qkv, mem_kv)
}

/// Weights of a convolution.
#[derive(Clone, Debug)]
pub struct ConvWeights {
    pub weight: Tensor<4>,
    pub bias: Option<Tensor<1>>,
}

/// Convolution, [`rms_norm_scaled_silu`], convolution, [`rms_norm_silu`] plus a residual, with [`Activations::Recompute`]. `conv1` applies to `x`,
/// concatenated with `skip` if given.
#[derive(Clone, Debug)]
pub(crate) struct ResidualBlock {
    pub conv1: ConvWeights,
    pub g1: Tensor<1>,
    pub scale_shift: Tensor<2>,
    pub conv2: ConvWeights,
    pub g2: Tensor<1>,
    pub residual: Tensor<4>,
}

impl ResidualBlock {
    /// `x [b, h, w, c]` to `[b, h, w, c_out]`, where [`recomputes`] says so: there are kernels for the CPU only.
    pub fn forward_recomputed(self, x: Tensor<4>, skip: Option<Tensor<4>>) -> Tensor<4> {
        fused::residual_block(self, x, skip)
    }
}

/// [`rms_norm`], convolution, [`attention`], convolution, plus `x`, with [`Activations::Recompute`]; for the CPU
/// only, as above.
pub(crate) fn attention_block_recomputed(
    x: Tensor<4>,
    g: Tensor<1>,
    to_qkv: ConvWeights,
    mem_kv: Tensor<4>,
    to_out: ConvWeights,
) -> Tensor<4> {
    fused::attention_block(x, g, to_qkv, mem_kv, to_out)
}

/// [`rms_norm`], convolution, [`linear_attention`], convolution, [`rms_norm`] with `out_g`, plus `x`, with [`Activations::Recompute`]; for
/// the CPU only, as above.
pub(crate) fn linear_attention_block_recomputed(
    x: Tensor<4>,
    g: Tensor<1>,
    to_qkv: ConvWeights,
    mem_kv: Tensor<4>,
    to_out: ConvWeights,
    out_g: Tensor<1>,
) -> Tensor<4> {
    fused::linear_attention_block(x, g, to_qkv, mem_kv, to_out, out_g)
}
