//! Noise added before a step and removed by it (Karras et al. 2022, arXiv:2206.00364, algorithm 2, lines 4 to 6).

use std::f64::consts::SQRT_2;

use burn::tensor::Tensor;

use crate::diffusion::{Denoiser, NoiseLevel};

/// How much noise is added, and where. In terms of `sigma / alpha`, so that the numbers mean the same under every schedule. The default is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// Total over the run: each of N steps multiplies its sigma by `1 + min(s_churn / N, sqrt(2) - 1)`. At least 0; 0 is none.
    pub s_churn: f64,
    /// Steps from a sigma below this one get none.
    pub s_tmin: f64,
    /// Steps from a sigma above this one get none.
    pub s_tmax: f64,
    /// Standard deviation of the noise: slightly above 1 makes up for a network that removes too much.
    pub s_noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self { s_churn: 0.0, s_tmin: 0.0, s_tmax: f64::INFINITY, s_noise: 1.0 }
    }
}

impl Churn {
    /// Adds noise to `x` at level `t`, in a run of `steps` steps, and returns it with its new level: `sigma_hat = sigma (1 + gamma)`,
    /// `x_hat = x + s_noise sqrt(sigma_hat^2 - sigma^2) z`, for `x / alpha` and `sigma / alpha`.
    pub(super) fn apply<const D: usize>(
        &self,
        denoiser: &impl Denoiser<D>,
        x: Tensor<D>,
        t: NoiseLevel,
        steps: usize,
        draw: impl FnOnce() -> Tensor<D>,
    ) -> (Tensor<D>, NoiseLevel) {
        let gamma = (self.s_churn / steps as f64).min(SQRT_2 - 1.0);
        let sigma = t.sigma / t.alpha;
        // Pure noise cannot be made noisier.
        if gamma <= 0.0 || t.is_pure_noise() || !(self.s_tmin..=self.s_tmax).contains(&sigma) {
            return (x, t);
        }
        let sigma_hat = sigma * (1.0 + gamma);
        let hat = denoiser.level_at_log_snr(-2.0 * sigma_hat.ln());
        let added = self.s_noise * (sigma_hat.powi(2) - sigma.powi(2)).sqrt();
        (x * (hat.alpha / t.alpha) + draw() * (hat.alpha * added), hat)
    }
}
