//! Rectified flow, also known as flow matching (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747):
//! `x = (1 - t) x_start + t eps`, and the network predicts the velocity `eps - x_start`.

use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;
use super::distribution::inverse_normal_cdf;
use super::error::{DiffusionConfigError, check};
use super::formulation::Formulation;
use super::prediction::Prediction;

/// How t is drawn in training (Esser et al. 2024, arXiv:2403.03206, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeDistribution {
    /// Uniform in (0, 1).
    Uniform,
    /// `logit(t)` normal.
    #[default]
    LogitNormal,
    /// `1 - u - s (cos^2(pi u / 2) - 1 + u)`.
    Mode,
    /// `1 - 1 / (tan(pi u / 2) + 1)`: the log-SNR of the cosine schedule.
    Cosmap,
}

/// Options.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RectifiedFlowConfig {
    pub time_distribution: TimeDistribution,
    /// Mean and standard deviation of logit(t) (0 and 1 if absent).
    pub logit_mean: Option<f64>,
    pub logit_std: Option<f64>,
    /// s of the mode distribution, in [-1, 2 / (pi - 2)] (1.29 if absent).
    pub mode_scale: Option<f64>,
    /// Shift towards more noise at every t, for large images: `t' = shift t / (1 + (shift - 1) t)` in training and sampling (ibid., eq. 23).
    pub flow_shift: f64,
    /// The network's time input at t = 1 (1000 if absent); use 1 for networks that embed time by Fourier features.
    pub time_scale: Option<f64>,
}

impl Default for RectifiedFlowConfig {
    fn default() -> Self {
        Self {
            time_distribution: TimeDistribution::default(),
            logit_mean: None,
            logit_std: None,
            mode_scale: None,
            flow_shift: 1.0,
            time_scale: None,
        }
    }
}

/// Default time input of the network at t = 1; sinusoids are made for numbers up to about a thousand.
const TOLD: f64 = 1000.0;
/// Fourier features, whose frequencies are about 1, resolve times up to about this.
const LARGE: f64 = 15.0;
/// The cleanest sigma of spacings other than the formulation's own.
const CLEANEST: f64 = 0.001;
const STEPS: usize = 100;

impl RectifiedFlowConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        let owners = [
            ("logit_mean", self.logit_mean, TimeDistribution::LogitNormal),
            ("logit_std", self.logit_std, TimeDistribution::LogitNormal),
            ("mode_scale", self.mode_scale, TimeDistribution::Mode),
        ];
        for (option, given, owner) in owners {
            if given.is_some() && owner != self.time_distribution {
                return Err(DiffusionConfigError::Contradiction {
                    option,
                    with: format!("`time_distribution = \"{}\"`", self.time_distribution.name()),
                    why: "it belongs to another distribution of t",
                });
            }
        }
        let (mean, std, scale) = (self.logit_mean(), self.logit_std(), self.mode_scale());
        check(mean.is_finite(), "logit_mean", "a number", mean)?;
        check(std.is_finite() && std > 0.0, "logit_std", "a number above 0", std)?;
        let largest = 2.0 / (std::f64::consts::PI - 2.0);
        check((-1.0..=largest).contains(&scale), "mode_scale", "in [-1, 1.75]", scale)?;
        let shift = self.flow_shift;
        check(shift.is_finite() && shift > 0.0, "flow_shift", "a number above 0", shift)?;
        let scale = self.time_scale();
        check(scale.is_finite() && scale > 0.0, "time_scale", "a number above 0", scale)
    }

    /// For a network that embeds time by Fourier features: its time input is t itself, unless `time_scale` is set.
    #[must_use]
    pub fn for_fourier_time(self) -> Self {
        Self { time_scale: self.time_scale.or(Some(1.0)), ..self }
    }

    fn time_scale(&self) -> f64 {
        self.time_scale.unwrap_or(TOLD)
    }

    fn logit_mean(&self) -> f64 {
        self.logit_mean.unwrap_or(0.0)
    }

    fn logit_std(&self) -> f64 {
        self.logit_std.unwrap_or(1.0)
    }

    fn mode_scale(&self) -> f64 {
        self.mode_scale.unwrap_or(1.29)
    }
}

impl TimeDistribution {
    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::LogitNormal => "logit_normal",
            Self::Mode => "mode",
            Self::Cosmap => "cosmap",
        }
    }
}

/// The formulation. Its time is t before the shift.
#[derive(Clone, Copy, Debug)]
pub struct RectifiedFlow(pub RectifiedFlowConfig);

impl RectifiedFlow {
    fn at(&self, sigma: f64) -> NoiseLevel {
        NoiseLevel { alpha: 1.0 - sigma, sigma, time: self.0.time_scale() * sigma }
    }
}

impl Formulation for RectifiedFlow {
    fn time(&self, u: f64) -> f64 {
        let (quarter, config) = (std::f64::consts::FRAC_PI_2, &self.0);
        match config.time_distribution {
            TimeDistribution::Uniform => u,
            TimeDistribution::LogitNormal => {
                1.0 / (1.0 + (-config.logit_mean() - config.logit_std() * inverse_normal_cdf(u)).exp())
            }
            // In the paper, t falls with u.
            TimeDistribution::Mode => {
                let u = 1.0 - u;
                1.0 - u - config.mode_scale() * ((quarter * u).cos().powi(2) - 1.0 + u)
            }
            TimeDistribution::Cosmap => 1.0 - 1.0 / ((quarter * u).tan() + 1.0),
        }
    }

    fn level(&self, t: f64) -> NoiseLevel {
        let shift = self.0.flow_shift;
        self.at((shift * t / (1.0 + (shift - 1.0) * t)).clamp(0.0, 1.0))
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.at(1.0 / (1.0 + (0.5 * log_snr).exp()))
    }

    fn prediction(&self) -> Prediction {
        Prediction::Flow
    }

    fn loss_weight(&self, _: &NoiseLevel) -> f64 {
        1.0
    }

    fn levels(&self, steps: usize) -> Vec<NoiseLevel> {
        let t = |k: usize| k as f64 / steps as f64;
        (1..=steps).rev().map(|k| self.level(t(k))).chain([NoiseLevel::CLEAN]).collect()
    }

    fn range(&self) -> [NoiseLevel; 2] {
        [self.at(1.0), self.at(CLEANEST)]
    }

    fn default_steps(&self) -> usize {
        STEPS
    }

    fn tells_large_times(&self) -> bool {
        self.0.time_scale() > LARGE
    }
}
