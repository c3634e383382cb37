//! Our kernels for GPUs: written in CubeCL's dialect of Rust, which is compiled at run time for whatever the tensors are on (CUDA, ROCm, Metal,
//! Vulkan, WebGPU, or the CPU as a test device). A kernel has a file; `extension` puts them behind Burn's backends. What an operation
//! computes is documented in [`super`]; what is not here runs in plain tensor operations.
//!
//! A kernel reads each value once per pass where it can, computes in f32 and takes f32, bf16 and f16. None waits for the device or asks it anything:
//! launches depend on shapes alone, and sums are added in an order that the shape decides.

mod columns;
mod extension;
mod gated_add;
mod lanes;
mod layer_norm;
mod linear_attention;
mod math;
mod ops;
mod optim;
mod pointwise;
mod rms_norm;
mod rows;
#[cfg(test)]
pub(crate) mod tests;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Tensor};
use denoising_diffusion_kernels::optim::AdamStep;

use crate::nn::params::host_values;

use super::Pointwise;
use extension::{CubeKernels, CubeOps};
use rms_norm::Then;

/// Whether these kernels can take a tensor.
pub fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    matches!(tensor.device().inner().as_dispatch(), DispatchDevice::Cube(_))
        && matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// Whether [`linear_attention`] can take these queries, keys and values of heads of `dim` channels.
pub fn takes_linear_attention(qkv: &Tensor<4>, dim: usize) -> bool {
    match qkv.device().inner().as_dispatch() {
        DispatchDevice::Cube(device) => takes(qkv) && linear_attention::takes(&device.client(), dim),
        _ => false,
    }
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
    let (x, g) = (x.into_dispatch(), g.into_dispatch());
    Tensor::from_dispatch(match residual {
        Some(residual) => <Dispatch as CubeOps>::cube_rms_norm_add(x, g, residual.into_dispatch(), then),
        None => <Dispatch as CubeOps>::cube_rms_norm(x, g, then),
    })
}

/// See [`super::rms_norm_scaled_silu`].
pub fn rms_norm_scaled_silu(x: Tensor<4>, g: Tensor<1>, scale_shift: Tensor<2>) -> Tensor<4> {
    let (x, g, scale_shift) = (x.into_dispatch(), g.into_dispatch(), scale_shift.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_rms_norm_scaled(x, g, scale_shift))
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

/// See [`super::linear_attention`].
pub fn linear_attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    let (qkv, mem_kv) = (qkv.into_dispatch(), mem_kv.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_linear_attention(qkv, mem_kv))
}

/// See [`super::pointwise`].
pub fn pointwise<const D: usize>(f: Pointwise, x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_pointwise(x.into_dispatch(), f))
}

/// One Adam step on a parameter and its two moments, all flat; none of them on the tape.
pub fn adam(step: &AdamStep, [w, m, v]: [Tensor<1>; 3], gradient: Tensor<1>) -> [Tensor<1>; 3] {
    let (w, m, v, gradient) = (w.into_dispatch(), m.into_dispatch(), v.into_dispatch(), gradient.into_dispatch());
    let (w, m, v) = <Dispatch as CubeKernels>::adam(w, m, v, gradient, *step);
    [w, m, v].map(Tensor::from_dispatch)
}

/// `average + weight (w - average)`, flat tensors.
pub fn lerp(average: Tensor<1>, w: Tensor<1>, weight: f64) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as CubeKernels>::lerp(average.into_dispatch(), w.into_dispatch(), weight))
}

/// The sum of squares of each of these flat tensors. The device is waited for once, not for each of them.
pub fn squared_norms(gradients: &[&Tensor<1>]) -> Vec<f64> {
    let Some(first) = gradients.first() else { return Vec::new() };
    let parts: Vec<usize> = gradients.iter().map(|gradient| optim::parts(gradient.dims()[0])).collect();
    let mut sums = Tensor::<1>::empty([parts.iter().sum::<usize>()], &first.device()).into_dispatch();
    let mut from = 0;
    for (gradient, parts) in gradients.iter().zip(&parts) {
        sums = <Dispatch as CubeKernels>::squares(sums, (*gradient).clone().into_dispatch(), from);
        from += parts;
    }
    let sums = host_values(Tensor::<1>::from_dispatch(sums));
    let mut rest = sums.as_slice();
    let mut sum = |parts: &usize| {
        let (of_this, others) = rest.split_at(*parts);
        rest = others;
        of_this.iter().map(|&part| f64::from(part)).sum()
    };
    parts.iter().map(&mut sum).collect()
}
