//! Gradients of the weights of convolutions: for `x [b, h, w, c_in]` and `dy [b, h, w, c_out]`, with stride 1 and "same" padding,
//!
//! ```text
//! dw[o, i, ky, kx] = sum over positions p of dy[p, o] x[p + (ky, kx) - center, i]
//! ```
//!
//! This is a matrix product with a small result and a sum over all positions. Burn's kernels give each cube the whole sum, so that only a few cubes
//! work, or first write the shifted images side by side: nine times their memory, in a launch each. Ours ([`products`]) divides the positions. It is
//! used wherever the device has matrix units, and not tuned against Burn's kernels, because one of those gave zeros for a row of 7x7 kernels of 3
//! channels on the software CUDA.

mod products;

use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::super::plain::same_padding;
use products::{ours, takes};

/// The gradient of `weight [c_out, c_in, kh, kw]`, in its type.
pub(super) fn backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let [_, _, kh, kw] = dims(&weight);
    // For 1x1, Burn's kernels divide the positions, too.
    let shares = kh * kw > 1 && takes(&x);
    if shares { ours(x, weight, dy) } else { burns(x, weight, dy) }
}

fn dims(tensor: &CubeTensor) -> [usize; 4] {
    tensor.meta.shape()[..].try_into().expect("four axes")
}

/// Computes it with Burn's kernels.
fn burns(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let [_, _, kh, kw] = dims(&weight);
    let to_nchw = |tensor| CubeBackend::float_permute(tensor, &[0, 3, 1, 2]);
    CubeBackend::conv2d_weight_backward(to_nchw(x), weight, to_nchw(dy), same_padding([kh, kw]))
}
