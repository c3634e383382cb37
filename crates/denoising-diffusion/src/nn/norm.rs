//! Root-mean-square normalisation over channels, with the operations that follow it in a U-Net block.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Init, ops};

/// `y = x / max(|x|_2, 1e-12) * sqrt(c) * g` over the last dimension (Zhang and Sennrich 2019, but without the epsilon in their mean, as in the
/// reference).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[c]`
    pub g: Param<Tensor<1>>,
}

impl RmsNorm {
    pub fn new(init: &mut Init, dim: usize) -> Self {
        Self { g: init.ones([dim]) }
    }

    /// `[b, h, w, c] -> [b, h, w, c]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::rms_norm(x, self.g.val(), None)
    }

    /// `silu(norm(x))`
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        ops::rms_norm_silu(x, self.g.val(), None)
    }
}
