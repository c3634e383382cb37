//! What samplers see of a formulation and its network.

use burn::tensor::Tensor;

/// A level of noise: `x = alpha x_start + sigma eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Weight of the clean data.
    pub alpha: f64,
    /// Weight of the noise.
    pub sigma: f64,
    /// What the network is told (Gaussian diffusion: t; -1 for clean data).
    pub time: f64,
}

impl NoiseLevel {
    /// No noise at all.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0, time: -1.0 };

    /// Variance of `x_t` given `x_s` for a cleaner level `s`: `sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2`
    /// (Kingma et al. 2021, "Variational diffusion models", eq. 4).
    pub fn variance_given(&self, s: &NoiseLevel) -> f64 {
        (self.sigma.powi(2) - (self.alpha / s.alpha * s.sigma).powi(2)).max(0.0)
    }

    /// Variance of `x_s` given `x_t` and `x_start` (ibid., eq. 25); zero where `s` is clean.
    pub fn posterior_variance(&self, s: &NoiseLevel) -> f64 {
        self.variance_given(s) * (s.sigma / self.sigma).powi(2)
    }
}

/// Estimates clean data from noisy data. `D` is the rank of a batch `[b, c, ...]`.
pub trait Denoiser<const D: usize> {
    /// The estimate of `x_start` for a batch at one noise level. `x_self_cond` is the estimate of the step before, for networks
    /// that take one.
    fn denoise(&self, x: Tensor<D>, level: NoiseLevel, x_self_cond: Option<Tensor<D>>) -> Tensor<D>;
}
