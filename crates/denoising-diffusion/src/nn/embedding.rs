//! Embeddings of the noise level.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use super::Init;

/// Sines, then cosines, of `time * theta^(-k / (dim/2 - 1))`, k = 0..dim/2 (Vaswani et al. 2017, section 3.5).
#[derive(Module, Debug)]
pub struct SinusoidalPosEmb {
    dim: usize,
    theta: f64,
}

impl SinusoidalPosEmb {
    /// `dim` even and at least 4.
    pub fn new(dim: usize, theta: f64) -> Self {
        Self { dim, theta }
    }

    /// `[b] -> [b, dim]`
    pub fn forward(&self, time: Tensor<1>) -> Tensor<2> {
        let half = self.dim / 2;
        let rate = self.theta.ln() / (half - 1) as f64;
        let frequencies: Vec<f32> = (0..half).map(|k| (-rate * k as f64).exp() as f32).collect();
        let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &time.device());
        sin_cos(time.unsqueeze_dim(1) * frequencies)
    }
}

/// Sines and cosines of `2 pi time weights`, behind `time` itself; the weights are learned or stay as they were drawn.
#[derive(Module, Debug)]
pub struct FourierPosEmb {
    /// `[dim / 2]`
    pub weights: Param<Tensor<1>>,
}

/// Whether Fourier frequencies are learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourierWeights {
    Learned,
    Fixed,
}

impl FourierPosEmb {
    /// `dim` even.
    pub fn new(init: &mut Init, dim: usize, kind: FourierWeights) -> Self {
        let weights = init.normal([dim / 2]);
        Self { weights: weights.set_require_grad(kind == FourierWeights::Learned) }
    }

    /// `[b] -> [b, dim + 1]`
    pub fn forward(&self, time: Tensor<1>) -> Tensor<2> {
        let time = time.unsqueeze_dim::<2>(1);
        let angles = time.clone() * self.weights.val().unsqueeze::<2>() * std::f64::consts::TAU;
        Tensor::cat(vec![time, sin_cos(angles)], 1)
    }
}

fn sin_cos(angles: Tensor<2>) -> Tensor<2> {
    Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
}
