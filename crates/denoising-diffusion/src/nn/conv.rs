//! Convolution of channels-last data: of images, and of sequences, which are images of height 1.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Init, ops};

/// The axes along which a network's kernels extend and its resampling acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Axes {
    /// Both axes of an image.
    #[default]
    Both,
    /// The axis of a sequence, which is stored as an image of height 1.
    Width,
}

impl Axes {
    /// Height and width of a kernel of size `kernel`.
    pub fn kernel(self, kernel: usize) -> [usize; 2] {
        match self {
            Self::Both => [kernel, kernel],
            Self::Width => [1, kernel],
        }
    }
}

/// `y = x * weight + bias`, stride 1, "same" zero padding: `[b, h, w, c_in] -> [b, h, w, c_out]`.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[c_out, c_in, k, k]` or `[c_out, c_in, 1, k]`, `k` odd.
    pub weight: Param<Tensor<4>>,
    /// `[c_out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Conv2d {
    /// A convolution with a bias and a kernel of `kernel` by `kernel` (odd).
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, kernel: usize) -> Self {
        Self::along(init, Axes::Both, dim_in, dim_out, kernel)
    }

    /// The same along the given axes.
    pub fn along(init: &mut Init, axes: Axes, dim_in: usize, dim_out: usize, kernel: usize) -> Self {
        let [height, width] = axes.kernel(kernel);
        let fan_in = dim_in * height * width;
        let weight = init.uniform([dim_out, dim_in, height, width], fan_in);
        Self { weight, bias: Some(init.uniform([dim_out], fan_in)) }
    }

    /// The same without a bias.
    pub fn without_bias(init: &mut Init, dim_in: usize, dim_out: usize, kernel: usize) -> Self {
        Self { weight: init.uniform([dim_out, dim_in, kernel, kernel], dim_in * kernel * kernel), bias: None }
    }

    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d(x, self.weight.val(), self.bias())
    }

    /// The convolution of the resampled image; see [`ops::conv2d_resampled`].
    pub fn forward_resampled(&self, x: Tensor<4>, resampling: ops::Resampling) -> Tensor<4> {
        ops::conv2d_resampled(x, resampling, self.weight.val(), self.bias())
    }

    /// The convolution of `x`, concatenated with `skip` along the channels if given.
    pub fn forward_skip(&self, x: Tensor<4>, skip: Option<Tensor<4>>) -> Tensor<4> {
        match skip {
            Some(skip) => ops::conv2d_skip(x, skip, self.weight.val(), self.bias()),
            None => self.forward(x),
        }
    }

    /// `conv(x) + residual`
    pub fn forward_add(&self, x: Tensor<4>, residual: Tensor<4>) -> Tensor<4> {
        ops::conv2d_add(x, self.weight.val(), self.bias(), residual)
    }

    pub(super) fn weights(&self) -> ops::ConvWeights {
        ops::ConvWeights { weight: self.weight.val(), bias: self.bias() }
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }
}
