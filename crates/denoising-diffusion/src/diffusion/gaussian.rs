//! Gaussian diffusion in discrete time (Ho et al. 2020): `x_t = sqrt(alphas_cumprod_t) x_start + sqrt(1 - alphas_cumprod_t) eps`,
//! t = 0..T.

use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;
use super::error::DiffusionConfigError;
use super::formulation::{Formulation, Output};
use super::prediction::{Objective, Prediction};
use super::schedule::{ScheduleConfig, Tables};

/// Options; `Default` is the reference's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GaussianConfig {
    #[serde(flatten)]
    pub schedule: ScheduleConfig,
    pub objective: Objective,
    /// Weight of the prediction's squared error; absent: as [`LossWeight::Noise`].
    pub loss_weight: Option<LossWeight>,
}

/// How the squared error of predicted data, or of v, is weighted. That of predicted noise has weight 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeight {
    /// Weighted to equal the squared error of the noise (the reference's choice): SNR for data, alpha^2 for v. At pure noise that weight is 0, so
    /// the network never learns what to do there.
    #[default]
    Noise,
    /// 1 (Salimans and Ho 2022, arXiv:2202.00512, section 4, "SNR+1" for v; Lin et al. 2023, arXiv:2305.08891, section 3.2).
    Uniform,
}

impl GaussianConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        self.schedule.validate()?;
        refuse_noise_at_zero_snr(&self.schedule, self.objective)
    }

    /// The weight used: if the last level is pure noise, the network must learn what to do there, so `Uniform` is the default then.
    fn loss_weight(&self) -> LossWeight {
        let usual = if self.schedule.zero_terminal_snr { LossWeight::Uniform } else { LossWeight::Noise };
        self.loss_weight.unwrap_or(usual)
    }

    pub(super) fn build(&self, tables: Tables) -> GaussianDiffusion {
        GaussianDiffusion { loss_weight: self.loss_weight(), ..GaussianDiffusion::with_tables(tables, self.objective) }
    }
}

/// At a level without signal, predicted noise says nothing about the data.
pub(super) fn refuse_noise_at_zero_snr(
    schedule: &ScheduleConfig,
    objective: Objective,
) -> Result<(), DiffusionConfigError> {
    if schedule.zero_terminal_snr && objective == Objective::PredNoise {
        return Err(DiffusionConfigError::Contradiction {
            option: "zero_terminal_snr",
            with: "`objective = \"pred_noise\"`".to_string(),
            why: "at the last level x is the noise itself, and predicting it says nothing about the data",
        });
    }
    Ok(())
}

/// A table of noise levels and the quantity predicted at them: Gaussian diffusion, and the other formulations in discrete time.
#[derive(Clone, Debug)]
pub struct GaussianDiffusion {
    pub(super) tables: Tables,
    pub(super) prediction: Prediction,
    pub(super) output: Output,
    pub(super) loss_weight: LossWeight,
}

impl GaussianDiffusion {
    pub fn new(config: &GaussianConfig) -> Self {
        config.build(Tables::new(&config.schedule))
    }

    /// With a schedule that has no name.
    pub fn with_tables(tables: Tables, objective: Objective) -> Self {
        Self { tables, prediction: objective.into(), output: Output::Prediction, loss_weight: LossWeight::Noise }
    }
}

impl Formulation for GaussianDiffusion {
    fn time(&self, u: f64) -> f64 {
        let timesteps = self.tables.timesteps();
        ((u * timesteps as f64) as usize).min(timesteps - 1) as f64
    }

    fn level(&self, time: f64) -> NoiseLevel {
        self.tables.level(time)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.tables.level_at_log_snr(log_snr)
    }

    fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// For predicted noise, with learned variance and for weighted objectives, 1. For the other objectives, 1 or the weight that makes the loss
    /// equal to that on the noise (Hang et al. 2023, section 3.4), depending on [`LossWeight`].
    fn loss_weight(&self, level: &NoiseLevel) -> f64 {
        match (self.output, self.prediction) {
            _ if self.loss_weight == LossWeight::Uniform => 1.0,
            (Output::Prediction, Prediction::XStart) => (level.alpha / level.sigma).powi(2),
            (Output::Prediction, Prediction::V) => level.alpha.powi(2),
            _ => 1.0,
        }
    }

    fn levels(&self, steps: usize) -> Vec<NoiseLevel> {
        self.tables.spaced_levels(steps)
    }

    fn range(&self) -> [NoiseLevel; 2] {
        [(self.tables.timesteps() - 1) as f64, 0.0].map(|t| self.tables.level(t))
    }

    fn output(&self) -> Output {
        self.output
    }

    fn timesteps(&self) -> Option<usize> {
        Some(self.tables.timesteps())
    }

    fn default_steps(&self) -> usize {
        self.tables.timesteps()
    }

    fn tables(&self) -> Option<&Tables> {
        Some(&self.tables)
    }
}
