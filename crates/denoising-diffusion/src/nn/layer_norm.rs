//! Layer normalisation: without weights, for transformers with adaptive normalisation, and with weights.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Init;
use super::ops::in_f32;

/// Added to the variance if there are no weights.
pub(super) const EPS: f64 = 1e-6;

/// `(x - mean) / sqrt(variance + 1e-6)` over the last dimension (Ba et al. 2016), `[b, h, w, c]`.
pub fn layer_norm(x: Tensor<4>) -> Tensor<4> {
    normalised(x, EPS)
}

/// `(x - mean) / sqrt(variance + 1e-5) weight + bias` over the last dimension.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[c]`
    pub weight: Param<Tensor<1>>,
    /// `[c]`
    pub bias: Param<Tensor<1>>,
}

impl LayerNorm {
    pub fn new(init: &mut Init, dim: usize) -> Self {
        Self { weight: init.ones([dim]), bias: init.zeros([dim]) }
    }

    /// `[b, h, w, c] -> [b, h, w, c]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        in_f32(x, |x| normalised(x, 1e-5) * self.weight.val().unsqueeze() + self.bias.val().unsqueeze())
    }
}

fn normalised(x: Tensor<4>, eps: f64) -> Tensor<4> {
    let x = x.clone() - x.mean_dim(3);
    let variance = x.clone().square().mean_dim(3);
    x / (variance + eps).sqrt()
}
