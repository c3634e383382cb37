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

    /// Weights from Xavier's uniform distribution (Glorot and Bengio 2010), no bias to begin with.
    pub fn xavier(init: &mut Init, dim_in: usize, dim_out: usize) -> Self {
        let bound = (6.0 / (dim_in + dim_out) as f64).sqrt();
        Self { weight: init.uniform_within([dim_out, dim_in], bound), bias: init.zeros([dim_out]) }
    }

    /// Weights from a normal distribution of a given deviation, no bias to begin with.
    pub fn normal(init: &mut Init, dim_in: usize, dim_out: usize, deviation: f64) -> Self {
        Self { weight: init.normal_of([dim_out, dim_in], deviation), bias: init.zeros([dim_out]) }
    }

    /// Gives zeros to begin with.
    pub fn zeros(init: &mut Init, dim_in: usize, dim_out: usize) -> Self {
        Self { weight: init.zeros([dim_out, dim_in]), bias: init.zeros([dim_out]) }
    }

    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}
