//! CPU kernels for training denoising diffusion networks.
//!
//! Plain slices in, plain slices out: f32, contiguous, activations channels-last (`[batch, height, width, channels]`), weights in PyTorch's layouts
//! (convolution `[c_out, c_in, kh, kw]`, linear `[out, in]`). Every kernel comes with its gradient. [`random`] provides the random numbers for noise.
//!
//! Work is distributed over rayon's current thread pool, in tasks determined by shape, so results have the same bits on any number of threads. On
//! x86-64 the kernels use AVX-512, or AVX2 and FMA, depending on the CPU, chosen at run time; on 64-bit ARM they use NEON; elsewhere a portable
//! version of the same code runs. Convolutions and full attention can multiply in bf16 on machines with a matrix unit for that ([`multiplies_bf16`]).
//!
//! This is not a tensor library: it infers no shapes, allocates nothing for the caller, records no graph, and has no strides or broadcasts. Slices of
//! the wrong length are programming errors and panic.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod dropout;
mod gemm;
mod matrix_unit;
pub mod memory;
pub mod mix;
pub mod norm;
pub mod optim;
mod par;
pub mod pooling;
pub mod random;
pub mod resize;
mod simd;
#[cfg(test)]
mod testing;

pub use matrix_unit::multiplies_bf16;
