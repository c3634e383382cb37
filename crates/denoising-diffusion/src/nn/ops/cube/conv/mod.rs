//! Convolutions with stride 1 and "same" padding: `x [b, h, w, c_in]`, `weight [c_out, c_in, kh, kw]` to `[b, h, w, c_out]`; and their gradients. Each
//! is computed by a kernel of ours ([`images`], [`weights`]) where the device has what it needs, else by Burn's.

mod block;
mod factors;
mod images;
mod weights;

use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::tensor::CubeTensor;

use super::super::plain::same_padding;
use images::{Of, product};

/// Whether all three passes are ours for data of this type and weights of this shape; they sum in f32.
pub(super) fn takes(client: &Client, dtype: DType, weight: [usize; 4]) -> bool {
    images::values(client, dtype, weight).is_some() && weights::takes(client, dtype, weight)
}

/// The convolution, plus `bias [c_out]`.
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let shape = dims(&weight);
    if let Some(values) = images::values(&x.client, x.dtype, shape) {
        return product(Of::X, values, x, weight, bias);
    }
    to_nhwc(CubeBackend::conv2d(to_nchw(x), weight, bias, padding(shape)))
}

/// The gradient of `x`, which gives its shape.
pub(super) fn x_backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let shape = dims(&weight);
    if let Some(values) = images::values(&dy.client, dy.dtype, shape) {
        return product(Of::Dy, values, dy, weight, None);
    }
    to_nhwc(CubeBackend::conv2d_x_backward(to_nchw(x), weight, to_nchw(dy), padding(shape)))
}

/// The gradient of `weight`, in its type.
pub(super) fn weight_backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let shape = dims(&weight);
    if weights::takes(&x.client, x.dtype, shape) {
        return weights::gradient(x, weight, dy);
    }
    CubeBackend::conv2d_weight_backward(to_nchw(x), weight, to_nchw(dy), padding(shape))
}

fn dims(tensor: &CubeTensor) -> [usize; 4] {
    tensor.meta.shape()[..].try_into().expect("four axes")
}

fn padding([_, _, kh, kw]: [usize; 4]) -> burn::tensor::ops::ConvOptions<2> {
    same_padding([kh, kw])
}

fn to_nchw(x: CubeTensor) -> CubeTensor {
    CubeBackend::float_permute(x, &[0, 3, 1, 2])
}

fn to_nhwc(x: CubeTensor) -> CubeTensor {
    CubeBackend::float_permute(x, &[0, 2, 3, 1])
}
