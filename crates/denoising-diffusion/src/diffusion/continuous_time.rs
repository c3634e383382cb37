//! Gaussian diffusion in continuous time (Kingma et al. 2021, arXiv:2107.00630): t in [0, 1], noise levels given by their log-SNR, which is also the
//! network's time input. Three families of schedules: those of the reference's continuous-time classes, and those of simple diffusion (Hoogeboom et
//! al. 2023, arXiv:2301.11093), shifted for the size of the images.

use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;
use super::error::{DiffusionConfigError, check};
use super::formulation::Formulation;
use super::prediction::{Objective, Prediction};
use super::schedule::variance_preserving;
use crate::models::{LearnedScheduleOptions, ScheduleWeights};

/// How log-SNR falls with t.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseSchedule {
    /// `-ln(exp(1e-4 + 10 t^2) - 1)`: linear betas in the limit of many steps.
    #[default]
    Linear,
    /// `-ln(1 / cos^2(pi/2 (t + s) / (1 + s)) - 1)`, s = 0.008.
    Cosine,
    /// A monotone network between the endpoints of the linear schedule, trained with the denoiser (Kingma et al. 2021, appendix H).
    Learned,
}

/// Options of `continuous_time`; `Default` is the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContinuousTimeConfig {
    pub noise_schedule: NoiseSchedule,
    pub objective: Objective,
    /// Hidden units of the learned schedule (1024 if absent).
    pub learned_schedule_hidden_dim: Option<usize>,
    /// Share of the gradient that reaches the learned schedule, in [0, 1] (1 if absent).
    pub learned_schedule_frac_gradient: Option<f64>,
}

impl Default for ContinuousTimeConfig {
    fn default() -> Self {
        Self {
            noise_schedule: NoiseSchedule::Linear,
            objective: Objective::PredNoise,
            learned_schedule_hidden_dim: None,
            learned_schedule_frac_gradient: None,
        }
    }
}

/// Options of `simple`; `Default` is the reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SimpleConfig {
    pub objective: Objective,
    /// Shifts log-SNR by `2 ln(noise_d / image_d)`: images of side `image_d` get the noise levels of images of side `noise_d`.
    pub noise_d: Option<f64>,
    /// Interpolates between two shifts: `noise_d_low` at t = 1, `noise_d_high` at t = 0.
    pub noise_d_low: Option<f64>,
    pub noise_d_high: Option<f64>,
    /// Side of the images; if absent, that of the data (of a square with as many pixels).
    pub image_d: Option<f64>,
}

const STEPS: usize = 500;
/// Hidden units of a learned schedule at most: more are a mistake.
const MOST_HIDDEN: usize = 1_000_000;
/// Offset of the cosine schedule.
const COSINE_S: f64 = 0.008;
/// Lower bound of the cosine: cos(pi / 2) in f32, as the reference computes it. In f64 the log-SNR would fall to -75 at t = 1, where sampling
/// starts, a level unlike any seen in training, whose t are below 1; with this bound it ends at -33.9.
const LEAST_COSINE: f64 = 4.371_139e-8;

impl ContinuousTimeConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        let hidden = self.learned_schedule_hidden_dim.map(|n| n as f64);
        let share = self.learned_schedule_frac_gradient;
        for (option, given) in [("learned_schedule_hidden_dim", hidden), ("learned_schedule_frac_gradient", share)] {
            if given.is_some() && self.noise_schedule != NoiseSchedule::Learned {
                return Err(DiffusionConfigError::Contradiction {
                    option,
                    with: "a schedule that is not learned".to_string(),
                    why: "it belongs to `noise_schedule = \"learned\"`",
                });
            }
        }
        let LearnedScheduleOptions { hidden_dim, frac_gradient: share, .. } = self.learned_options();
        let hidden = hidden_dim as f64;
        check(hidden_dim >= 1, "learned_schedule_hidden_dim", "at least 1", hidden)?;
        check(hidden_dim <= MOST_HIDDEN, "learned_schedule_hidden_dim", "at most 1000000", hidden)?;
        check((0.0..=1.0).contains(&share), "learned_schedule_frac_gradient", "in [0, 1]", share)
    }

    /// Options of the learned schedule.
    fn learned_options(&self) -> LearnedScheduleOptions {
        LearnedScheduleOptions {
            hidden_dim: self.learned_schedule_hidden_dim.unwrap_or(1024),
            frac_gradient: self.learned_schedule_frac_gradient.unwrap_or(1.0),
            log_snr: [0.0, 1.0].map(linear),
        }
    }

    pub(super) fn build(&self) -> ContinuousTime {
        let schedule = match self.noise_schedule {
            NoiseSchedule::Linear => LogSnr::Linear,
            NoiseSchedule::Cosine => LogSnr::Cosine,
            NoiseSchedule::Learned => LogSnr::Learned { options: self.learned_options(), weights: None },
        };
        ContinuousTime { schedule, objective: self.objective, signal_weighs_v: false }
    }
}

impl SimpleConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        let sides = [
            ("noise_d", self.noise_d),
            ("noise_d_low", self.noise_d_low),
            ("noise_d_high", self.noise_d_high),
            ("image_d", self.image_d),
        ];
        for (key, side) in sides {
            let side = side.unwrap_or(1.0);
            check(side.is_finite() && side > 0.0, key, "a number above 0", side)?;
        }
        let contradiction =
            |option, with: &str, why| Err(DiffusionConfigError::Contradiction { option, with: with.to_string(), why });
        match (self.noise_d, self.noise_d_low, self.noise_d_high) {
            (Some(_), None, None) | (None, Some(_), Some(_)) | (None, None, None) => Ok(()),
            (Some(_), ..) => contradiction("noise_d", "`noise_d_low` or `noise_d_high`", "one shifts, two interpolate"),
            (None, Some(_), None) => {
                contradiction("noise_d_low", "`noise_d_high` unset", "they are the two ends of a range")
            }
            (None, None, Some(_)) => {
                contradiction("noise_d_high", "`noise_d_low` unset", "they are the two ends of a range")
            }
        }
    }

    pub(super) fn build(&self) -> ContinuousTime {
        // Without an image size there is nothing to shift by: the plan fills in the size of the data.
        let image_d = self.image_d.or(self.noise_d).or(self.noise_d_low).unwrap_or(1.0);
        let shift = |noise_d: f64| 2.0 * (noise_d / image_d).ln();
        let [at_0, at_1] = match (self.noise_d, self.noise_d_low, self.noise_d_high) {
            (Some(noise_d), ..) => [shift(noise_d); 2],
            (None, Some(low), Some(high)) => [shift(high), shift(low)],
            _ => [0.0; 2],
        };
        let schedule = LogSnr::ShiftedCosine { at_0, at_1 };
        ContinuousTime { schedule, objective: self.objective, signal_weighs_v: true }
    }
}

/// log-SNR as a function of t.
#[derive(Clone, Debug)]
enum LogSnr {
    Linear,
    Cosine,
    /// A cosine in log-SNR between -15 and 15, plus a shift that moves from one value at t = 0 to another at t = 1.
    ShiftedCosine {
        at_0: f64,
        at_1: f64,
    },
    /// Before training: a straight line between its endpoints.
    Learned {
        options: LearnedScheduleOptions,
        weights: Option<ScheduleWeights>,
    },
}

fn linear(t: f64) -> f64 {
    -(1e-4 + 10.0 * t * t).exp_m1().ln()
}

impl LogSnr {
    fn at(&self, t: f64) -> f64 {
        let quarter = std::f64::consts::FRAC_PI_2;
        match self {
            Self::Linear => linear(t),
            Self::Cosine => {
                let cos = ((t + COSINE_S) / (1.0 + COSINE_S) * quarter).cos().max(LEAST_COSINE);
                -(cos.powi(-2) - 1.0).max(1e-5).ln()
            }
            Self::ShiftedCosine { at_0, at_1 } => {
                let [low, high] = [15.0_f64, -15.0].map(|log_snr| (-0.5 * log_snr).exp().atan());
                -2.0 * (low + t * (high - low)).tan().ln() + t * at_1 + (1.0 - t) * at_0
            }
            Self::Learned { weights: Some(weights), .. } => weights.log_snr(t),
            Self::Learned { options, weights: None } => {
                let [clean, noisy] = options.log_snr;
                clean + (noisy - clean) * t
            }
        }
    }
}

/// Diffusion in continuous time.
#[derive(Clone, Debug)]
pub struct ContinuousTime {
    schedule: LogSnr,
    objective: Objective,
    /// Whether the error of v is weighted by alpha^2, which makes the loss equal to the loss on noise.
    signal_weighs_v: bool,
}

impl Formulation for ContinuousTime {
    fn time(&self, u: f64) -> f64 {
        u
    }

    fn level(&self, t: f64) -> NoiseLevel {
        self.level_at_log_snr(self.schedule.at(t))
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        NoiseLevel { time: log_snr, ..variance_preserving(log_snr) }
    }

    fn prediction(&self) -> Prediction {
        self.objective.into()
    }

    fn loss_weight(&self, level: &NoiseLevel) -> f64 {
        match self.objective {
            Objective::PredV if self.signal_weighs_v => level.alpha.powi(2),
            Objective::PredX0 => (level.alpha / level.sigma).powi(2),
            _ => 1.0,
        }
    }

    fn levels(&self, steps: usize) -> Vec<NoiseLevel> {
        let t = |k: usize| k as f64 / steps as f64;
        (1..=steps).rev().map(|k| self.level(t(k))).chain([NoiseLevel::CLEAN]).collect()
    }

    fn range(&self) -> [NoiseLevel; 2] {
        [self.level(1.0), self.level(0.0)]
    }

    fn default_steps(&self) -> usize {
        STEPS
    }

    fn tells_large_times(&self) -> bool {
        false
    }

    fn learned_schedule(&self) -> Option<LearnedScheduleOptions> {
        match &self.schedule {
            LogSnr::Learned { options, .. } => Some(*options),
            _ => None,
        }
    }

    fn with_schedule(&self, weights: ScheduleWeights) -> Option<Box<dyn Formulation>> {
        let options = self.learned_schedule()?;
        Some(Box::new(Self { schedule: LogSnr::Learned { options, weights: Some(weights) }, ..self.clone() }))
    }
}
