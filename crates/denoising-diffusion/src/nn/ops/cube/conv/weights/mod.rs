//! Gradients of the weights of convolutions: for `x [b, h, w, c_in]` and `dy [b, h, w, c_out]`, with stride 1 and "same" padding,
//!
//! ```text
//! dw[o, i, ky, kx] = sum over positions p of dy[p, o] x[p + (ky, kx) - center, i]
//! ```
//!
//! This is a matrix product with a small result and a sum over all positions. Burn's kernels give each cube the whole sum, so that only a few cubes
//! work, or first write the shifted images side by side: nine times their memory, in a launch each. Here, the positions are divided: [`cuda`] on
//! CUDA's tensor cores, [`matrices`] on any matrix units.

mod cuda;
mod matrices;

use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::tensor::CubeTensor;

use super::dims;
use super::padding::{beginning, whole_images};

/// Whether a device can compute with this type and a kernel `[kh, kw]`, and Burn's kernels are no better.
///
/// Ours are not tuned against those, because one of them gave zeros for a row of 7x7 kernels of 3 channels on the software CUDA.
pub(super) fn takes(client: &Client, dtype: DType, kernel @ [kh, kw]: [usize; 2]) -> bool {
    // For 1x1, Burn's kernels divide the positions, too.
    cuda::values(client, dtype, kernel).is_some() || kh * kw > 1 && matrices::takes(client, dtype)
}

/// The gradient of `weight [c_out, c_in, kh, kw]`, in its type.
pub(super) fn gradient(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let shape @ [c_out, c_in, kh, kw] = dims(&weight);
    let channels_last =
        |rows, [c_out, c_in]: [usize; 2]| CubeBackend::float_reshape(rows, Shape::new([c_out, kh, kw, c_in]));
    let gradient = match cuda::values(&x.client, x.dtype, [kh, kw]) {
        Some(values) => {
            let whole @ [whole_out, whole_in] = [c_out, c_in].map(|c| c.next_multiple_of(values.width));
            let [x, dy] = [x, dy].map(|images| whole_images(images, values.width));
            let rows = cuda::product(values, x, [whole_out, whole_in, kh, kw], dy, weight.dtype);
            beginning(channels_last(rows, whole), [c_out, kh, kw, c_in])
        }
        None => channels_last(matrices::product(x, shape, dy, weight.dtype), [c_out, c_in]),
    };
    CubeBackend::float_permute(gradient, &[0, 3, 1, 2])
}
