//! The linear layer, and many of one input.

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

/// What many layers make of one input: all at once, where the device is faster so, else each when it is asked for.
#[derive(Clone, Debug)]
pub struct Linears {
    x: Tensor<2>,
    ready: HashMap<ParamId, Tensor<2>>,
}

impl Linears {
    /// Of `x` `[b, c_in]`, by these layers and, when they are asked for, others.
    pub fn new<'a>(x: Tensor<2>, layers: impl IntoIterator<Item = &'a Linear>) -> Self {
        let layers: Vec<&Linear> = layers.into_iter().collect();
        let weights: Vec<_> = layers.iter().map(|layer| (layer.weight.val(), layer.bias.val())).collect();
        let results = ops::linears(&x, &weights).unwrap_or_default();
        Self { x, ready: layers.iter().map(|layer| layer.weight.id).zip(results).collect() }
    }

    /// What this layer makes of it: `[b, c_out]`.
    pub fn of(&self, layer: &Linear) -> Tensor<2> {
        self.ready.get(&layer.weight.id).cloned().unwrap_or_else(|| layer.forward(self.x.clone()))
    }
}
