//! From patches to pixels.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::ops::in_f32;
use super::{Init, ops, pixel_shuffle};

/// A transposed convolution whose windows are side by side: every position becomes a block of `patch` by `patch` pixels.
#[derive(Module, Debug)]
pub struct Unpatchify {
    /// `[c_in, c_out, patch, patch]`
    pub weight: Param<Tensor<4>>,
    /// `[c_out]`
    pub bias: Param<Tensor<1>>,
}

impl Unpatchify {
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, patch: usize) -> Self {
        let fan = dim_out * patch * patch;
        Self { weight: init.uniform([dim_in, dim_out, patch, patch], fan), bias: init.uniform([dim_out], fan) }
    }

    /// `[b, h, w, c_in] -> [b, h patch, w patch, c_out]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [c_in, c_out, patch, _] = weight.dims();
        let weight = weight.reshape([c_in, c_out * patch * patch]).transpose().unsqueeze_dims(&[2, 3]);
        in_f32(pixel_shuffle(ops::conv2d(x, weight, None), patch), |x| x + self.bias.val().unsqueeze())
    }
}
