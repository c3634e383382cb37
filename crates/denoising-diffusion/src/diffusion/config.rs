//! The options of [`GaussianDiffusion`](super::GaussianDiffusion) and their checks. Not here: the tables and the loss.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the network predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Objective {
    /// The noise `eps` (Ho et al. 2020).
    #[serde(rename = "pred_noise", alias = "eps")]
    PredNoise,
    /// The clean data `x_start`.
    #[serde(rename = "pred_x0", alias = "x_start")]
    PredX0,
    /// The velocity `v = sqrt(alphas_cumprod) eps - sqrt(1 - alphas_cumprod) x_start` (Salimans and Ho 2022, appendix D).
    #[default]
    #[serde(rename = "pred_v", alias = "v")]
    PredV,
}

/// How noise grows with `t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// `betas` linear from `1e-4` to `0.02`, both times `1000 / T` (Ho et al. 2020).
    Linear,
    /// `alphas_cumprod` a squared cosine with offset `s` (Nichol and Dhariwal 2021, eq. 17).
    Cosine,
    /// `alphas_cumprod` a sigmoid cut out between `start` and `end`, of temperature `tau` (Jabri et al. 2022, algorithm 5).
    #[default]
    Sigmoid,
}

/// Options of [`GaussianDiffusion`](super::GaussianDiffusion); `Default` is the reference's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianConfig {
    /// `T`, the number of noise levels.
    pub timesteps: usize,
    pub objective: Objective,
    pub beta_schedule: BetaSchedule,
    /// Offset of the cosine schedule (0.008 if absent).
    pub cosine_s: Option<f64>,
    /// Where the sigmoid is cut off on the left (-3 if absent).
    pub sigmoid_start: Option<f64>,
    /// Where the sigmoid is cut off on the right (3 if absent).
    pub sigmoid_end: Option<f64>,
    /// Temperature of the sigmoid (1 if absent).
    pub sigmoid_tau: Option<f64>,
    /// Data lie in [0, 1] and are mapped to [-1, 1] for the network, samples back; without it data are taken as they are.
    pub auto_normalize: bool,
    /// Strength of noise that is constant over each channel (about 0.1 lets samples be very dark or bright); 0 is off.
    pub offset_noise_strength: f64,
    /// Weighs the loss by `min(SNR, gamma)` (Hang et al. 2023).
    pub min_snr_loss_weight: bool,
    /// `gamma` of the above.
    pub min_snr_gamma: f64,
    /// Assigns noise to the images of a batch so that the sum of distances is least (Li et al. 2024).
    pub immiscible: bool,
}

impl Default for GaussianConfig {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            objective: Objective::default(),
            beta_schedule: BetaSchedule::default(),
            cosine_s: None,
            sigmoid_start: None,
            sigmoid_end: None,
            sigmoid_tau: None,
            auto_normalize: true,
            offset_noise_strength: 0.0,
            min_snr_loss_weight: false,
            min_snr_gamma: 5.0,
            immiscible: false,
        }
    }
}

/// Why a [`GaussianConfig`] describes no diffusion.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GaussianConfigError {
    #[error("`timesteps` must be at least 2 (one step of noise cannot be undone in steps), got {0}")]
    Timesteps(usize),
    #[error("`{key}` belongs to `beta_schedule = \"{belongs_to}\"`, but the schedule is \"{schedule}\"")]
    OtherSchedule { key: &'static str, belongs_to: &'static str, schedule: &'static str },
    #[error("`{key}` must be {expected}, got {got}")]
    Value { key: &'static str, expected: &'static str, got: f64 },
}

impl BetaSchedule {
    /// The schedule's name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Sigmoid => "sigmoid",
        }
    }
}

impl GaussianConfig {
    /// Refuses options that contradict each other or have no meaning.
    pub fn validate(&self) -> Result<(), GaussianConfigError> {
        if self.timesteps < 2 {
            return Err(GaussianConfigError::Timesteps(self.timesteps));
        }
        self.check_schedule_parameters()?;
        let value = |ok: bool, key, expected, got| {
            if ok { Ok(()) } else { Err(GaussianConfigError::Value { key, expected, got }) }
        };
        let finite = |x: f64| x.is_finite();
        let (s, gamma, offset) = (self.cosine_s.unwrap_or(0.008), self.min_snr_gamma, self.offset_noise_strength);
        let (start, end) = (self.sigmoid_start.unwrap_or(-3.0), self.sigmoid_end.unwrap_or(3.0));
        let tau = self.sigmoid_tau.unwrap_or(1.0);
        value(finite(s) && s >= 0.0, "cosine_s", "a number of at least 0", s)?;
        value(finite(start) && finite(end) && start < end, "sigmoid_start", "below `sigmoid_end`", start)?;
        value(finite(tau) && tau > 0.0, "sigmoid_tau", "a number above 0", tau)?;
        value(finite(gamma) && gamma > 0.0, "min_snr_gamma", "a number above 0", gamma)?;
        value(finite(offset) && offset >= 0.0, "offset_noise_strength", "a number of at least 0", offset)
    }

    fn check_schedule_parameters(&self) -> Result<(), GaussianConfigError> {
        let given = [
            ("cosine_s", self.cosine_s, BetaSchedule::Cosine),
            ("sigmoid_start", self.sigmoid_start, BetaSchedule::Sigmoid),
            ("sigmoid_end", self.sigmoid_end, BetaSchedule::Sigmoid),
            ("sigmoid_tau", self.sigmoid_tau, BetaSchedule::Sigmoid),
        ];
        for (key, value, belongs_to) in given {
            if value.is_some() && self.beta_schedule != belongs_to {
                return Err(GaussianConfigError::OtherSchedule {
                    key,
                    belongs_to: belongs_to.name(),
                    schedule: self.beta_schedule.name(),
                });
            }
        }
        Ok(())
    }
}
