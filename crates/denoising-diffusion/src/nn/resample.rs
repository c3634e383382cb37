//! Halving and doubling of an image's sides.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Conv2d, Init};

/// How the sides change between two stages of a U-Net. The innermost stage keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Each 2x2 block of pixels becomes channels, then a 1x1 convolution.
    Halve,
    /// Nearest-neighbour doubling, then a 3x3 convolution.
    Double,
    /// A 3x3 convolution.
    Keep,
}

/// A change of size with the convolution that belongs to it.
#[derive(Module, Debug)]
pub struct Resample {
    pub conv: Conv2d,
    #[module(skip)]
    kind: Resampling,
}

impl Resample {
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, kind: Resampling) -> Self {
        let conv = match kind {
            Resampling::Halve => Conv2d::new(init, 4 * dim_in, dim_out, 1),
            Resampling::Double | Resampling::Keep => Conv2d::new(init, dim_in, dim_out, 3),
        };
        Self { conv, kind }
    }

    /// `[b, h, w, c_in]` to `[b, h/2, w/2, c_out]`, `[b, 2h, 2w, c_out]` or `[b, h, w, c_out]`; sides to be halved are even.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(match self.kind {
            Resampling::Halve => pixel_unshuffle(x),
            Resampling::Double => nearest_double(x),
            Resampling::Keep => x,
        })
    }
}

/// `[b, 2h, 2w, c] -> [b, h, w, 4c]`, new channel `4 c + 2 row + column` (the reference's order).
fn pixel_unshuffle(x: Tensor<4>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    x.reshape([b, h / 2, 2, w / 2, 2, c]).permute([0, 1, 3, 5, 2, 4]).reshape([b, h / 2, w / 2, 4 * c])
}

/// `[b, h, w, c] -> [b, 2h, 2w, c]`
fn nearest_double(x: Tensor<4>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    x.reshape([b, h, 1, w, 1, c]).expand([b, h, 2, w, 2, c]).reshape([b, 2 * h, 2 * w, c])
}
