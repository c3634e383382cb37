//! The linear layer, and many linear layers with the same input.

use std::collections::HashMap;

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;

use super::{Init, ops};

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

    /// Weights from Xavier's uniform distribution (Glorot and Bengio 2010); the bias is initially zero.
    pub fn xavier(init: &mut Init, dim_in: usize, dim_out: usize) -> Self {
        let bound = (6.0 / (dim_in + dim_out) as f64).sqrt();
        Self { weight: init.uniform_within([dim_out, dim_in], bound), bias: init.zeros([dim_out]) }
    }

    /// Weights from a normal distribution with the given standard deviation; the bias is initially zero.
    pub fn normal(init: &mut Init, dim_in: usize, dim_out: usize, deviation: f64) -> Self {
        Self { weight: init.normal_of([dim_out, dim_in], deviation), bias: init.zeros([dim_out]) }
    }

    /// Weights and bias are initially zero.
    pub fn zeros(init: &mut Init, dim_in: usize, dim_out: usize) -> Self {
        Self { weight: init.zeros([dim_out, dim_in]), bias: init.zeros([dim_out]) }
    }

    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}

/// The outputs of many layers for one input: computed all at once if that is faster on the device, otherwise each when it is requested.
#[derive(Clone, Debug)]
pub struct Linears {
    x: Tensor<2>,
    ready: HashMap<ParamId, Tensor<2>>,
}

impl Linears {
    /// For `x` `[b, c_in]`, with these layers; the outputs of others are computed when they are requested.
    pub fn new<'a>(x: Tensor<2>, layers: impl IntoIterator<Item = &'a Linear>) -> Self {
        let layers: Vec<&Linear> = layers.into_iter().collect();
        let weights: Vec<_> = layers.iter().map(|layer| (layer.weight.val(), layer.bias.val())).collect();
        let results = ops::linears(&x, &weights).unwrap_or_default();
        Self { x, ready: layers.iter().map(|layer| layer.weight.id).zip(results).collect() }
    }

    /// The output of this layer: `[b, c_out]`.
    pub fn of(&self, layer: &Linear) -> Tensor<2> {
        self.ready.get(&layer.weight.id).cloned().unwrap_or_else(|| layer.forward(self.x.clone()))
    }
}
