//! Two-dimensional convolution on channels-last data.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Init, ops};

/// `y = x * weight + bias`, stride 1, "same" zero padding: `[b, h, w, c_in] -> [b, h, w, c_out]`.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[c_out, c_in, k, k]`, `k` odd.
    pub weight: Param<Tensor<4>>,
    /// `[c_out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Conv2d {
    /// A convolution with a bias and a kernel of `kernel` by `kernel` (odd).
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, kernel: usize) -> Self {
        let fan_in = dim_in * kernel * kernel;
        let weight = init.uniform([dim_out, dim_in, kernel, kernel], fan_in);
        Self { weight, bias: Some(init.uniform([dim_out], fan_in)) }
    }

    /// The same without a bias.
    pub fn without_bias(init: &mut Init, dim_in: usize, dim_out: usize, kernel: usize) -> Self {
        Self { weight: init.uniform([dim_out, dim_in, kernel, kernel], dim_in * kernel * kernel), bias: None }
    }

    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }
}
