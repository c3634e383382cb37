//! Convolutions with stride 1 and "same" padding: `x [b, h, w, c_in]`, `weight [c_out, c_in, kh, kw]` to `[b, h, w, c_out]`; and their gradients. Each
//! is computed by a kernel of ours ([`images`], [`weights`]) where the device has what it needs, else by Burn's.

mod block;
mod factors;
mod images;
mod padding;
mod weights;

use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::tensor::CubeTensor;

use super::super::plain::same_padding;
use images::{Of, product};
use padding::{beginning, whole_bias, whole_images, whole_weight};

/// Whether all three passes are ours for data of this type and kernels `[kh, kw]`; they sum in f32.
pub(super) fn takes(client: &Client, dtype: DType, kernel: [usize; 2]) -> bool {
    images::values(client, dtype, kernel).is_some() && weights::takes(client, dtype, kernel)
}

/// The convolution, plus `bias [c_out]`.
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let ([b, h, w, _], [c_out, _, kh, kw]) = (dims(&x), dims(&weight));
    if let Some(values) = images::values(&x.client, x.dtype, [kh, kw]) {
        let (x, weight) = (whole_images(x, values.width), whole_weight(weight, values.width));
        let bias = bias.map(|bias| whole_bias(bias, values.width));
        return beginning(product(Of::X, values, x, weight, bias), [b, h, w, c_out]);
    }
    to_nhwc(CubeBackend::conv2d(to_nchw(x), weight, bias, same_padding([kh, kw])))
}

/// The gradient of `x`, which gives its shape.
pub(super) fn x_backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let [_, _, kh, kw] = dims(&weight);
    if let Some(values) = images::values(&dy.client, dy.dtype, [kh, kw]) {
        let (dy, weight) = (whole_images(dy, values.width), whole_weight(weight, values.width));
        return beginning(product(Of::Dy, values, dy, weight, None), dims(&x));
    }
    to_nhwc(CubeBackend::conv2d_x_backward(to_nchw(x), weight, to_nchw(dy), same_padding([kh, kw])))
}

/// The gradient of `weight`, in its type.
pub(super) fn weight_backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let [_, _, kh, kw] = dims(&weight);
    if weights::takes(&x.client, x.dtype, [kh, kw]) {
        return weights::gradient(x, weight, dy);
    }
    CubeBackend::conv2d_weight_backward(to_nchw(x), weight, to_nchw(dy), same_padding([kh, kw]))
}

fn dims(tensor: &CubeTensor) -> [usize; 4] {
    tensor.meta.shape()[..].try_into().expect("four axes")
}

fn to_nchw(x: CubeTensor) -> CubeTensor {
    CubeBackend::float_permute(x, &[0, 3, 1, 2])
}

fn to_nhwc(x: CubeTensor) -> CubeTensor {
    CubeBackend::float_permute(x, &[0, 2, 3, 1])
}
