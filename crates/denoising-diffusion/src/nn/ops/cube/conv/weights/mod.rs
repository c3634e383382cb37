//! Gradients of the weights of convolutions: for `x [b, h, w, c_in]` and `dy [b, h, w, c_out]`, with stride 1 and "same" padding,
//!
//! ```text
//! dw[o, i, ky, kx] = sum over positions p of dy[p, o] x[p + (ky, kx) - center, i]
//! ```
//!
//! This is a matrix product with a small result and a sum over all positions. Burn's kernels give each cube the whole sum, so that only a few cubes
//! work, or first write the shifted images side by side: nine times their memory, in a launch each. Here, the positions are divided: [`cuda`] for
//! whole vectors of channels on CUDA's tensor cores, [`matrices`] for any number on any matrix units.

mod cuda;
mod matrices;

use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::tensor::CubeTensor;

use super::dims;

/// Whether a device can compute with these types and weights `[c_out, c_in, kh, kw]`, and Burn's kernels are no better.
///
/// Ours are not tuned against those, because one of them gave zeros for a row of 7x7 kernels of 3 channels on the software CUDA.
pub(super) fn takes(client: &Client, dtype: DType, weight: [usize; 4]) -> bool {
    let [_, _, kh, kw] = weight;
    // For 1x1, Burn's kernels divide the positions, too.
    cuda::values(client, dtype, weight).is_some() || kh * kw > 1 && matrices::takes(client, dtype)
}

/// The gradient of `weight [c_out, c_in, kh, kw]`, in its type.
pub(super) fn gradient(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let shape @ [c_out, c_in, kh, kw] = dims(&weight);
    let channels_last = match cuda::values(&x.client, x.dtype, shape) {
        Some(values) => cuda::product(values, x, shape, dy, weight.dtype),
        None => matrices::product(x, shape, dy, weight.dtype),
    };
    let channels_last = CubeBackend::float_reshape(channels_last, Shape::new([c_out, kh, kw, c_in]));
    CubeBackend::float_permute(channels_last, &[0, 3, 1, 2])
}
