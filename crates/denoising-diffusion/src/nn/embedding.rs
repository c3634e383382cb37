//! Embeddings of the noise level and of classes.

use std::sync::{Mutex, PoisonError};

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};

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
        let frequencies = self.frequencies(&time.device());
        sin_cos(time.unsqueeze_dim(1) * frequencies)
    }

    /// `[1, dim / 2]`. Uploaded once per device, because a recorded training step cannot upload.
    fn frequencies(&self, device: &Device) -> Tensor<2> {
        type Key = (Device, bool, usize, u64);
        static KNOWN: Mutex<Vec<(Key, Tensor<2>)>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (device.clone(), device.is_autodiff(), self.dim, self.theta.to_bits());
        if let Some((_, found)) = known.iter().find(|(of, _)| *of == key) {
            return found.clone();
        }
        let half = self.dim / 2;
        let rate = self.theta.ln() / (half - 1) as f64;
        let frequencies: Vec<f32> = (0..half).map(|k| (-rate * k as f64).exp() as f32).collect();
        let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), device);
        known.push((key, frequencies.clone()));
        frequencies
    }
}

/// `time` itself, then sines and cosines of `2 pi time weights`; the weights are learned or stay as they were drawn.
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

/// A learned vector for each of `n` items.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[n, dim]`
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Vectors from the standard normal distribution, as PyTorch draws them.
    pub fn new(init: &mut Init, n: usize, dim: usize) -> Self {
        Self { weight: init.normal([n, dim]) }
    }

    /// The vector of each `index` in 0..n, and `other` `[dim]` for index n: `[b] -> [b, dim]`. The caller must ensure that no index is larger;
    /// indices are not checked.
    pub fn forward_or(&self, index: Tensor<1, Int>, other: Tensor<1>) -> Tensor<2> {
        Tensor::cat(vec![self.weight.val(), other.unsqueeze()], 0).select(0, index)
    }
}

pub(super) fn sin_cos(angles: Tensor<2>) -> Tensor<2> {
    Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
}
