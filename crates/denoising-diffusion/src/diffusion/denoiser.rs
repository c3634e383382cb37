//! The interface that samplers use: an estimate of clean data from noisy data.

use burn::tensor::Tensor;

/// A level of noise: `x = alpha x_start + sigma eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Weight of the clean data.
    pub alpha: f64,
    /// Weight of the noise.
    pub sigma: f64,
    /// The time input of the network (Gaussian diffusion: t; -1 for clean data).
    pub time: f64,
}

impl NoiseLevel {
    /// No noise at all.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0, time: -1.0 };

    /// Whether there is no noise left to remove.
    pub fn is_clean(&self) -> bool {
        self.sigma == 0.0
    }

    /// Whether the data are invisible: next to the noise, an f32 cannot hold a signal this weak. Schedules that end in noise seldom reach alpha = 0
    /// exactly: the cosine of a quarter turn is 6e-17.
    pub fn is_pure_noise(&self) -> bool {
        self.alpha < f64::from(f32::EPSILON) * self.sigma
    }

    /// `ln(alpha^2 / sigma^2)`, the logarithm of the signal-to-noise ratio: infinite for clean data, minus infinite for pure noise.
    pub fn log_snr(&self) -> f64 {
        2.0 * (self.alpha / self.sigma).ln()
    }

    /// Variance of `x_t` given `x_s` for a cleaner level `s`: `sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2`
    /// (Kingma et al. 2021, "Variational diffusion models", eq. 4).
    pub fn variance_given(&self, s: &NoiseLevel) -> f64 {
        (self.sigma.powi(2) - (self.alpha / s.alpha * s.sigma).powi(2)).max(0.0)
    }

    /// Variance of `x_s` given `x_t` and `x_start` (ibid., eq. 25); zero if `s` is clean.
    pub fn posterior_variance(&self, s: &NoiseLevel) -> f64 {
        self.variance_given(s) * (s.sigma / self.sigma).powi(2)
    }
}

/// A denoiser's result for noisy data.
#[derive(Clone, Debug)]
pub struct Estimate<const D: usize> {
    /// The clean data, `[b, c, ...]`.
    pub x_start: Tensor<D>,
    /// The estimate that gives the direction back to noise, if it differs from `x_start` (CFG++: the unconditional one).
    pub renoise: Option<Tensor<D>>,
    /// If the network learned the variance of a step: 0 for that of the posterior ("small"), 1 for that of q(x_t | x_s) ("large"), linear in the
    /// logarithm between them, `[b, c, ...]`.
    pub variance: Option<Tensor<D>>,
}

impl<const D: usize> Estimate<D> {
    /// Only an estimate of clean data.
    pub fn of(x_start: Tensor<D>) -> Self {
        Self { x_start, renoise: None, variance: None }
    }

    /// The noise in `x`: `eps = (x - alpha x_start) / sigma`, using `renoise` as the estimate if there is one.
    pub fn eps(&self, x: Tensor<D>, level: NoiseLevel) -> Tensor<D> {
        let x_start = self.renoise.as_ref().unwrap_or(&self.x_start);
        (x - x_start.clone() * level.alpha) / level.sigma
    }
}

/// Estimates clean data from noisy data. `D` is the rank of a batch `[b, c, ...]`.
pub trait Denoiser<const D: usize> {
    /// The estimate for a batch at one noise level. `x_self_cond` is the previous step's estimate, for networks that take one.
    fn denoise(&self, x: Tensor<D>, level: NoiseLevel, x_self_cond: Option<Tensor<D>>) -> Estimate<D>;

    /// The level with this [`log_snr`](NoiseLevel::log_snr), for solvers that need levels between the given ones.
    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel;
}
