//! The interface to our CPU kernels: one Burn backend extension, implemented for the flex backend and, with gradients, for autodiff over it. A kernel
//! is a [`Kernel`]: a forward and a backward pass on flex tensors.
//!
//! Tensors are contiguous, `f32` and channels-last. What an operation computes is documented in [`super`].

mod attention;
mod blocks;
mod chain;
mod conv;
mod extension;
mod layer_norm;
mod magnitude;
mod norm;
mod pointwise;
mod pooling;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, Flex};
use burn::tensor::{Bytes, DType, Shape, Tensor};
use burn_flex::{FlexTensor, Layout};
use denoising_diffusion_kernels::dropout::Mask;

use extension::FusedOps;

use super::tape::{self, Device, Kernel, run};
use super::{AxisResize, Pointwise, Pool, Resampling, Window};

pub use blocks::{attention_block, linear_attention_block, residual_block};

impl Device for Flex {
    fn ready(tensor: FlexTensor) -> FlexTensor {
        whole(tensor)
    }
}

/// [`tape::track`] on the CPU.
fn track<C: CheckpointStrategy, K: Kernel<N>, const N: usize>(
    kernel: K,
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
) -> FloatTensor<Autodiff<Flex, C>> {
    tape::track::<_, C, _, _>(kernel, inputs)
}

/// The tensor as one contiguous slice.
fn whole(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The values of a tensor that is [`whole`].
fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous f32")
}

/// The sizes of a tensor of rank `D`.
fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims()
}

/// A tensor of the given sizes. `fill` must write every value and read none.
fn tensor<const D: usize>(dims: [usize; D], fill: impl FnOnce(&mut [f32])) -> FlexTensor {
    let shape = Shape::from(dims);
    let mut values = unspecified(shape.num_elements());
    fill(&mut values);
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// Values that are to be overwritten; clearing them would cost as much as many kernels. Debug builds do, so that a kernel that forgets a value fails
/// every test.
fn unspecified(len: usize) -> Vec<f32> {
    #[cfg(all(not(debug_assertions), any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let mut values = Vec::<f32>::with_capacity(len);
        // SAFETY: the memory is there, and every bit pattern is an f32. Fresh memory counts as uninitialised, which no `&mut [f32]` may refer to. For
        // all the compiler knows, assembly that gets its address (and is not marked `nomem`) has written it; so it holds some values.
        unsafe {
            std::arch::asm!("/* {0} */", in(reg) values.as_mut_ptr(), options(nostack, preserves_flags));
            values.set_len(len);
        }
        values
    }
    #[cfg(not(all(not(debug_assertions), any(target_arch = "x86_64", target_arch = "aarch64"))))]
    vec![f32::NAN; len]
}

/// A gradient that is computed only if it is wanted.
fn when(wanted: bool, gradient: impl FnOnce() -> FlexTensor) -> Option<FlexTensor> {
    wanted.then(gradient)
}

/// See [`super::conv2d_resampled`].
pub fn conv2d(x: Tensor<4>, resampling: Resampling, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    let bias = or_zeros(bias, &weight);
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::conv2d(x, resampling, weight, bias))
}

/// See [`super::conv2d_skip`].
pub fn conv2d_skip(x: Tensor<4>, skip: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    let bias = or_zeros(bias, &weight).into_dispatch();
    let (x, skip, weight) = (x.into_dispatch(), skip.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::conv2d_skip(x, skip, weight, bias))
}

/// See [`super::conv2d_add`].
pub fn conv2d_add(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, residual: Tensor<4>) -> Tensor<4> {
    let bias = or_zeros(bias, &weight).into_dispatch();
    let (x, weight, residual) = (x.into_dispatch(), weight.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::conv2d_add(x, weight, bias, residual))
}

/// See [`super::conv2d_relu`].
pub fn conv2d_relu(x: Tensor<4>, window: Window, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::conv2d_relu(x, window, weight, bias))
}

/// See [`super::pool2d`].
pub fn pool2d(x: Tensor<4>, pool: Pool) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::pool2d(x.into_dispatch(), pool))
}

fn or_zeros(bias: Option<Tensor<1>>, weight: &Tensor<4>) -> Tensor<1> {
    bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &weight.device()))
}

/// See [`super::rms_norm`].
pub fn rms_norm(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    let (x, g) = (x.into_dispatch(), g.into_dispatch());
    Tensor::from_dispatch(match residual {
        Some(residual) => <Dispatch as FusedOps>::rms_norm_add(x, g, residual.into_dispatch()),
        None => <Dispatch as FusedOps>::rms_norm(x, g),
    })
}

/// See [`super::rms_norm_silu`].
pub fn rms_norm_silu(x: Tensor<4>, g: Tensor<1>, residual: Option<Tensor<4>>) -> Tensor<4> {
    let (x, g) = (x.into_dispatch(), g.into_dispatch());
    Tensor::from_dispatch(match residual {
        Some(residual) => <Dispatch as FusedOps>::rms_norm_silu_add(x, g, residual.into_dispatch()),
        None => <Dispatch as FusedOps>::rms_norm_silu(x, g),
    })
}

/// See [`super::rms_norm_scaled_silu`].
pub fn rms_norm_scaled_silu(x: Tensor<4>, g: Tensor<1>, scale_shift: Tensor<2>) -> Tensor<4> {
    let (x, g, scale_shift) = (x.into_dispatch(), g.into_dispatch(), scale_shift.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::rms_norm_scaled_silu(x, g, scale_shift))
}

/// See [`super::layer_norm_scaled`].
pub fn layer_norm_scaled(x: Tensor<4>, scale_shift: Tensor<2>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::layer_norm_scaled(x.into_dispatch(), scale_shift.into_dispatch()))
}

/// See [`super::gated_add`].
pub fn gated_add(x: Tensor<4>, gate: Tensor<2>, residual: Tensor<4>) -> Tensor<4> {
    let (x, gate, residual) = (x.into_dispatch(), gate.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::gated_add(x, gate, residual))
}

/// See [`super::unit_rows`].
pub fn unit_rows(x: Tensor<4>, factor: f64, floor: f64) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::unit_rows(x.into_dispatch(), factor as f32, floor as f32))
}

/// See [`super::gated_silu`].
pub fn gated_silu(x: Tensor<4>, gate: Tensor<2>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::gated_silu(x.into_dispatch(), gate.into_dispatch()))
}

/// See [`super::add_scaled`].
pub fn add_scaled(a: Tensor<4>, b: Tensor<4>, factor: f64) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::add_scaled(a.into_dispatch(), b.into_dispatch(), factor as f32))
}

/// See [`super::join_scaled`].
pub fn join_scaled(first: Tensor<4>, second: Tensor<4>, factors: [f64; 2]) -> Tensor<4> {
    let (first, second) = (first.into_dispatch(), second.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::join_scaled(first, second, factors.map(|factor| factor as f32)))
}

/// See [`super::resize_axis`]; for the second axis.
pub fn resize_axis(x: Tensor<4>, resize: AxisResize) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::resize_axis(x.into_dispatch(), resize))
}

/// See [`super::pointwise`].
pub fn pointwise(f: Pointwise, x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::pointwise(x.into_dispatch(), f))
}

/// See [`super::dropout`].
pub fn dropout(x: Tensor<4>, mask: Mask) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::dropout(x.into_dispatch(), mask))
}

/// See [`super::attention`].
pub fn full_attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::full_attention(qkv.into_dispatch(), mem_kv.into_dispatch()))
}

/// See [`super::linear_attention`].
pub fn linear_attention(qkv: Tensor<4>, mem_kv: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::linear_attention(qkv.into_dispatch(), mem_kv.into_dispatch()))
}
