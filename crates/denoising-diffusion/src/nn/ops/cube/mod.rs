//! Our kernels for GPUs: written in CubeCL's dialect of Rust, which is compiled at run time for the device that holds the tensors (CUDA, ROCm, Metal,
//! Vulkan, WebGPU, or the CPU as a test device). Each kernel has a file; `passes` and `extension` put them behind Burn's backends. What an operation
//! computes is documented in [`super`]; operations that are not here run in plain tensor operations.
//!
//! A kernel reads each value once per pass where it can, computes in f32 and takes f32, bf16 and f16. None waits for the device or asks it anything:
//! launches depend on shapes and the kind of device alone, as does the order in which sums are added.

mod add_scaled;
mod attention;
// This module and the others without `fusion` take lists of tensors, which cannot be described to Burn's fusion: with it, Burn's operations are used.
#[cfg(not(feature = "fusion"))]
mod clip;
mod columns;
mod conv;
mod dropout;
mod extension;
mod gate;
#[cfg(not(feature = "fusion"))]
mod gather;
mod join;
mod lanes;
mod layer_norm;
mod linear_attention;
#[cfg(not(feature = "fusion"))]
mod linears;
mod math;
mod ops;
#[cfg(not(feature = "fusion"))]
mod optim;
mod passes;
mod pointwise;
mod resize;
mod rms_norm;
mod rows;
#[cfg(not(feature = "fusion"))]
mod sweeps;
mod tensor_cores;
#[cfg(test)]
pub(crate) mod tests;
mod unit_rows;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use denoising_diffusion_kernels::dropout::Mask;

use super::{AxisResize, DropoutKey, Pointwise, plain};
use extension::CubeOps;
#[cfg(not(feature = "fusion"))]
pub use linears::linears;
pub use rms_norm::Then;
#[cfg(not(feature = "fusion"))]
pub use sweeps::{Clip, Clipping, Reading, adam, cast, clip, copied, force_unit_rows, lerp, moves};
use unit_rows::Length;

/// Whether these kernels can take a tensor.
pub fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    matches!(tensor.device().inner().as_dispatch(), DispatchDevice::Cube(_))
        && matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// The queue of a GPU.
fn client(device: &Device) -> Option<Client> {
    match device.clone().inner().as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.client()),
        _ => None,
    }
}

/// Whether Burn multiplies f32 matrices with the 11 bits of TF32 on this device, as CubeK does on tensor cores that can.
pub fn multiplies_in_tf32(device: &Device) -> bool {
    client(device).is_some_and(|client| client.properties().supports_type(ElemType::Float(FloatKind::TF32)))
}

/// Bytes of the largest tensor that a GPU can hold.
pub fn largest_tensor(device: &Device) -> Option<u64> {
    client(device).map(|client| client.properties().memory.max_page_size)
}

/// Whether convolutions of `x`, which is not f32, by weights `[c_out, c_in, kh, kw]`, and their gradients, sum in f32. Ours do. So do Burn's on tensor
/// cores that can (Metal's matrices sum bf16 in bf16), which with enough channels ought to be the fastest of what its tuner tries (not seen on
/// hardware). Its direct kernels, which it uses if it has no tuner, sum in the type of their data: then a gradient of weights is a sum over all
/// positions with 8 bits of mantissa.
pub fn narrow_convolutions_sum_in_f32(x: &Tensor<4>, [c_out, c_in, kh, kw]: [usize; 4]) -> bool {
    if client(&x.device()).is_some_and(|client| conv::takes(&client, x.dtype(), [kh, kw])) {
        return true;
    }
    let wide = [c_out, c_in].iter().all(|channels| *channels >= 32 && channels % 8 == 0);
    cfg!(feature = "autotune") && wide && has_matrices_that_sum_in_f32(&x.device(), x.dtype())
}

/// Whether a device multiplies matrices of this type with sums in f32.
fn has_matrices_that_sum_in_f32(device: &Device, dtype: DType) -> bool {
    let Some(client) = client(device) else { return false };
    let matmul = &client.properties().features.matmul;
    let (elem, f32) = (dtype_to_storage_type(dtype), ElemType::Float(FloatKind::F32));
    matmul.cmma.iter().chain(&matmul.mma).any(|mma| (mma.a_type, mma.b_type, mma.cd_type) == (elem, elem, f32))
}

/// Whether [`attention`] can take these queries, keys and values with heads of `dim` channels, and is faster than plain operations.
pub fn takes_attention(qkv: &Tensor<4>, dim: usize) -> bool {
    let [_, h, w, _] = qkv.dims();
    takes(qkv) && client(&qkv.device()).is_some_and(|client| attention::takes(&client, qkv.dtype(), h * w, dim))
}

/// Whether [`linear_attention`] can take these queries, keys and values with heads of `dim` channels.
pub fn takes_linear_attention(qkv: &Tensor<4>, dim: usize) -> bool {
    takes(qkv) && client(&qkv.device()).is_some_and(|client| linear_attention::takes(&client, dim))
}

/// See [`super::rms_norm`].
pub fn rms_norm(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    normed(x, g, residual, Then::Nothing)
}

/// See [`super::rms_norm_silu`].
pub fn rms_norm_silu(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    normed(x, g, residual, Then::Silu)
}

fn normed(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>, then: Then) -> Tensor<4> {
    let y = Tensor::from_dispatch(<Dispatch as CubeOps>::cube_rms_norm(x.into_dispatch(), g.into_dispatch(), then));
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

/// [`rms_norm`] (or, with `then`, [`rms_norm_silu`]) of `x + bias`, plus `residual`.
pub fn biased_rms_norm(x: Tensor<4>, bias: Tensor<1>, g: Tensor<1>, residual: Tensor<4>, then: Then) -> Tensor<4> {
    let bias = plain::like(&x, bias);
    let (x, bias, g, residual) = (x.into_dispatch(), bias.into_dispatch(), g.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_rms_norm_add(x, bias, g, residual, then))
}

/// [`super::rms_norm_scaled_silu`] of `x + bias`.
pub fn biased_rms_norm_scaled_silu(x: Tensor<4>, bias: Tensor<1>, g: Tensor<1>, scale_shift: Tensor<2>) -> Tensor<4> {
    let bias = plain::like(&x, bias);
    let (x, bias, g) = (x.into_dispatch(), bias.into_dispatch(), g.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_rms_norm_scaled(x, bias, g, scale_shift.into_dispatch()))
}

/// See [`super::layer_norm_scaled`].
pub fn layer_norm_scaled(x: Tensor<4>, scale_shift: Tensor<2>) -> Tensor<4> {
    let (x, scale_shift) = (x.into_dispatch(), scale_shift.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_layer_norm_scaled(x, scale_shift))
}

/// See [`super::gated_add`].
pub fn gated_add(x: Tensor<4>, gate: Tensor<2>, residual: Tensor<4>) -> Tensor<4> {
    let (x, gate, residual) = (x.into_dispatch(), gate.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_gated_add(x, gate, residual))
}

/// See [`super::gated_silu`].
pub fn gated_silu(x: Tensor<4>, gate: Tensor<2>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_gated_silu(x.into_dispatch(), gate.into_dispatch()))
}

/// See [`super::unit_rows`].
pub fn unit_rows(x: Tensor<4>, factor: f64, floor: f64) -> Tensor<4> {
    let length = Length { factor: factor as f32, floor: floor as f32 };
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_unit_rows(x.into_dispatch(), length))
}

/// See [`super::add_scaled`].
pub fn add_scaled(a: Tensor<4>, b: Tensor<4>, factor: f64) -> Tensor<4> {
    let (a, b) = (a.into_dispatch(), b.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_add_scaled(a, b, factor as f32))
}

/// See [`super::resize_axis`]; for the second axis.
pub fn resize_axis(x: Tensor<4>, resize: AxisResize) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_resize_axis(x.into_dispatch(), resize))
}

/// See [`super::join`].
pub fn join(x: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_join(x.into_dispatch(), skip.into_dispatch(), None))
}

/// See [`super::join_scaled`].
pub fn join_scaled(first: Tensor<4>, second: Tensor<4>, factors: [f64; 2]) -> Tensor<4> {
    let (first, second) = (first.into_dispatch(), second.into_dispatch());
    let factors = Some(factors.map(|factor| factor as f32));
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_join(first, second, factors))
}

/// See [`super::conv2d`].
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    let (weight, bias) = (plain::like(&x, weight).into_dispatch(), bias.map(|bias| plain::like(&x, bias)));
    let x = x.into_dispatch();
    Tensor::from_dispatch(match bias {
        Some(bias) => <Dispatch as CubeOps>::cube_biased_conv2d(x, weight, bias.into_dispatch()),
        None => <Dispatch as CubeOps>::cube_conv2d(x, weight),
    })
}

/// See [`super::attention`].
pub fn attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    let (qkv, mem_kv) = (qkv.into_dispatch(), mem_kv.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_attention(qkv, mem_kv))
}

/// See [`super::linear_attention`].
pub fn linear_attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    let (qkv, mem_kv) = (qkv.into_dispatch(), mem_kv.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_linear_attention(qkv, mem_kv))
}

/// See [`super::dropout`]; `mask` has everything but the key.
pub fn dropout<const D: usize>(x: Tensor<D>, key: DropoutKey, mask: Mask) -> Tensor<D> {
    let DropoutKey::OnDevice(key) = key.on_device(&x.device()) else { unreachable!("it was just put there") };
    let key = if x.device().is_autodiff() { Tensor::from_inner(key) } else { key };
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_dropout(x.into_dispatch(), key.into_dispatch(), mask))
}

/// See [`super::pointwise`].
pub fn pointwise<const D: usize>(f: Pointwise, x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_pointwise(x.into_dispatch(), f))
}
