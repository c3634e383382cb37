//! The linear layer.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Init;

/// `y = x weight^T + bias`: `[b, c_in] -> [b, c_out]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[c_out, c_in]`
    pub weight: Param<Tensor<2>>,
    /// `[c_out]`
    pub bias: Param<Tensor<1>>,
}

impl Linear {
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize) -> Self {
        Self { weight: init.uniform([dim_out, dim_in], dim_in), bias: init.uniform([dim_out], dim_in) }
    }

    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}
