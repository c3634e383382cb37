//! Elucidated diffusion, EDM (Karras et al. 2022, arXiv:2206.00364): `x = x_start + sigma eps`, the network preconditioned so that its
//! input and target have variance one at every sigma, sigma drawn log-normally.

use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;
use super::distribution::inverse_normal_cdf;
use super::error::{DiffusionConfigError, check};
use super::formulation::Formulation;
use super::prediction::Prediction;

/// Options; `Default` is the paper's. The S_* parameters of its stochastic sampler belong to sampling, not to training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ElucidatedConfig {
    /// Cleanest and noisiest sigma of sampling.
    pub sigma_min: f64,
    pub sigma_max: f64,
    /// Standard deviation of the data, on the network's scale.
    pub sigma_data: f64,
    /// Spacing of the sampling levels: sigma^(1/rho) is evenly spaced.
    pub rho: f64,
    /// Mean and standard deviation of ln sigma in training.
    pub p_mean: f64,
    pub p_std: f64,
}

impl Default for ElucidatedConfig {
    fn default() -> Self {
        Self { sigma_min: 0.002, sigma_max: 80.0, sigma_data: 0.5, rho: 7.0, p_mean: -1.2, p_std: 1.2 }
    }
}

/// Default steps of ancestral sampling; the paper has none.
const STEPS: usize = 250;

impl ElucidatedConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        let Self { sigma_min, sigma_max, sigma_data, rho, p_mean, p_std } = *self;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        check(positive(sigma_min), "sigma_min", "a number above 0", sigma_min)?;
        check(sigma_max.is_finite() && sigma_max > sigma_min, "sigma_max", "above `sigma_min`", sigma_max)?;
        check(positive(sigma_data), "sigma_data", "a number above 0", sigma_data)?;
        check(positive(rho), "rho", "a number above 0", rho)?;
        check(p_mean.is_finite(), "p_mean", "a number", p_mean)?;
        check(positive(p_std), "p_std", "a number above 0", p_std)
    }
}

/// The formulation. Its time is sigma; the network's time input is `ln(sigma) / 4`.
#[derive(Clone, Copy, Debug)]
pub struct Elucidated(pub ElucidatedConfig);

impl Formulation for Elucidated {
    fn time(&self, u: f64) -> f64 {
        (self.0.p_mean + self.0.p_std * inverse_normal_cdf(u)).exp()
    }

    fn level(&self, sigma: f64) -> NoiseLevel {
        NoiseLevel { alpha: 1.0, sigma, time: sigma.ln() / 4.0 }
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.level((-0.5 * log_snr).exp())
    }

    fn prediction(&self) -> Prediction {
        Prediction::Elucidated { sigma_data: self.0.sigma_data }
    }

    /// `lambda(sigma) c_out^2 = 1`.
    fn loss_weight(&self, _: &NoiseLevel) -> f64 {
        1.0
    }

    fn levels(&self, steps: usize) -> Vec<NoiseLevel> {
        let ElucidatedConfig { sigma_min, sigma_max, rho, .. } = self.0;
        let sigmas = super::spacing::karras_sigmas(sigma_min, sigma_max, rho, steps);
        sigmas.into_iter().map(|sigma| self.level(sigma)).chain([NoiseLevel::CLEAN]).collect()
    }

    fn range(&self) -> [NoiseLevel; 2] {
        [self.0.sigma_max, self.0.sigma_min].map(|sigma| self.level(sigma))
    }

    fn init_deviation(&self) -> f64 {
        self.0.sigma_max
    }

    fn default_steps(&self) -> usize {
        STEPS
    }

    /// 35 evaluations (Karras et al. 2022, table 2).
    fn default_heun_steps(&self) -> Option<usize> {
        Some(18)
    }

    fn tells_large_times(&self) -> bool {
        false
    }
}
