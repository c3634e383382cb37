//! The options of sampling and their checks.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::churn::Churn;
use super::ddpm::PosteriorVariance;
use super::kind::SamplerKind;
use crate::diffusion::{Formulation, GuidanceConfig, NoiseLevels, Output};

/// How samples are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Images per grid.
    pub num_samples: usize,
    pub sampler: SamplerKind,
    /// Steps from noise to data; if absent: the formulation's default for `ddpm`, at most 50 for the others, 18 for `heun` under `elucidated`.
    pub sampling_timesteps: Option<usize>,
    /// Which noise levels the steps visit; if absent, see [`levels_for`](Self::levels_for).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_levels: Option<NoiseLevels>,
    /// rho of `noise_levels = "karras"`.
    pub karras_rho: f64,
    /// Amount of noise, for solvers with this option: 0 (none) to 1 (as in ancestral sampling).
    #[serde(alias = "ddim_sampling_eta")]
    pub eta: Option<f64>,
    /// Variance of `ddpm`'s steps; if absent: the learned one if the network has learned one, kept between the small and the large one, else the
    /// small one.
    pub posterior_variance: Option<PosteriorVariance>,
    /// Noise added by `euler` and `heun` before each step and removed by it (Karras et al. 2022, algorithm 2).
    pub s_churn: f64,
    /// Range of `sigma / alpha` in which it is added; no upper end if `s_tmax` is absent.
    pub s_tmin: f64,
    pub s_tmax: Option<f64>,
    /// Standard deviation of that noise.
    pub s_noise: f64,
    /// Images per batch while sampling.
    pub sample_batch_size: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            num_samples: 25,
            sampler: SamplerKind::default(),
            sampling_timesteps: None,
            noise_levels: None,
            karras_rho: 7.0,
            eta: None,
            posterior_variance: None,
            s_churn: 0.0,
            s_tmin: 0.0,
            s_tmax: None,
            s_noise: 1.0,
            sample_batch_size: 64,
        }
    }
}

/// Why sampling options are invalid.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SampleConfigError {
    #[error("`{key}` must be at least 1, got 0")]
    Zero { key: &'static str },
    #[error("`{key}` must be {expected}, got {got}")]
    Value { key: &'static str, expected: &'static str, got: f64 },
    #[error("`{key}` must lie between 1 and `timesteps` ({timesteps}), got {got}")]
    SamplingTimesteps { key: &'static str, timesteps: usize, got: usize },
    #[error("`{key}` must be at most {most}, got {got}")]
    TooManySteps { key: &'static str, most: usize, got: usize },
    #[error("`{key}` belongs to {belongs_to}, but the sampler is {sampler}")]
    OtherSampler { key: &'static str, belongs_to: &'static str, sampler: &'static str },
    #[error("`posterior_variance = \"learned\"` needs `diffusion = \"learned_variance\"`")]
    VarianceNotLearned,
    #[error("`cfg_plus_plus` cannot be used with `sampler = \"{sampler}\"`: use ddim, euler or euler_ancestral")]
    CfgPlusPlus { sampler: &'static str },
}

/// Default number of steps of solvers that do not need as many as training has. Measured: docs/samplers.md.
const STEPS: usize = 50;
/// Steps from which evenly spaced log-SNR is better than the levels of evenly spaced t.
const MANY_STEPS: usize = 10;
/// Steps at most: each has a level in memory, and more are a mistake.
const MOST_STEPS: usize = 1_000_000;

impl SampleConfig {
    /// Steps from noise to data.
    pub fn steps(&self, formulation: &dyn Formulation) -> usize {
        let few = || formulation.default_steps().min(STEPS);
        self.sampling_timesteps.unwrap_or_else(|| match self.sampler {
            SamplerKind::Ddpm => formulation.default_steps(),
            SamplerKind::Heun => formulation.default_heun_steps().unwrap_or_else(few),
            _ => few(),
        })
    }

    /// Which noise levels the steps visit. If nothing is said: evenly spaced log-SNR for solvers that are exact in it, in discrete time unless its
    /// last level is pure noise, from 10 steps on; the formulation's own otherwise. Evenly spaced t leave the last step, which is of first order, too
    /// far to go. Measured: docs/samplers.md.
    pub fn levels_for(&self, formulation: &dyn Formulation) -> NoiseLevels {
        let discrete = formulation.timesteps().is_some() && !formulation.range()[0].is_pure_noise();
        let usual = discrete && self.sampler.prefers_log_snr() && self.steps(formulation) >= MANY_STEPS;
        self.noise_levels.unwrap_or(if usual { NoiseLevels::LogSnr } else { NoiseLevels::Trained })
    }

    /// Evaluations of the network per image: some solvers need two in most steps. A learned schedule counts as it is before training.
    pub fn evaluations(&self, formulation: &dyn Formulation) -> usize {
        let steps = self.steps(formulation);
        self.sampler.evaluations(&self.levels_for(formulation).of(formulation, steps, self.karras_rho))
    }

    /// Whether steps add noise.
    pub fn draws_noise(&self) -> bool {
        self.sampler == SamplerKind::Ddpm || self.eta() > 0.0 || (self.sampler.churns() && self.s_churn > 0.0)
    }

    pub(super) fn eta(&self) -> f64 {
        self.eta.or(self.sampler.default_eta()).unwrap_or(0.0)
    }

    pub(super) fn churn(&self) -> Churn {
        let &Self { s_churn, s_tmin, s_noise, .. } = self;
        Churn { s_churn, s_tmin, s_tmax: self.s_tmax.unwrap_or(f64::INFINITY), s_noise }
    }

    /// Refuses options that contradict each other, or the formulation.
    ///
    /// # Errors
    /// [`SampleConfigError`].
    pub fn validate(&self, formulation: &dyn Formulation) -> Result<(), SampleConfigError> {
        for (key, value) in [("num_samples", self.num_samples), ("sample_batch_size", self.sample_batch_size)] {
            if value == 0 {
                return Err(SampleConfigError::Zero { key });
            }
        }
        self.check_steps("sampling_timesteps", self.steps(formulation), formulation)?;
        self.check_values()?;
        self.check_owners()?;
        match (self.posterior_variance, formulation.output()) {
            (Some(PosteriorVariance::Learned), Output::Prediction | Output::Weighted(_)) => {
                Err(SampleConfigError::VarianceNotLearned)
            }
            _ => Ok(()),
        }
    }

    /// Refuses guidance that the sampler does not support.
    ///
    /// # Errors
    /// [`SampleConfigError::CfgPlusPlus`].
    pub fn check_guidance(&self, guidance: &GuidanceConfig) -> Result<(), SampleConfigError> {
        if guidance.cfg_plus_plus && !self.sampler.renoises() {
            return Err(SampleConfigError::CfgPlusPlus { sampler: self.sampler.name() });
        }
        Ok(())
    }

    /// Checks that `got` steps are possible.
    ///
    /// # Errors
    /// Too many steps for a formulation in discrete time, more than 1,000,000, or none.
    pub fn check_steps(
        &self,
        key: &'static str,
        got: usize,
        formulation: &dyn Formulation,
    ) -> Result<(), SampleConfigError> {
        // The other spacings can use levels between the T levels.
        let integral = matches!(self.noise_levels, None | Some(NoiseLevels::Trained | NoiseLevels::Trailing));
        match formulation.timesteps().filter(|_| integral) {
            Some(timesteps) if got > timesteps || got == 0 => {
                Err(SampleConfigError::SamplingTimesteps { key, timesteps, got })
            }
            _ if got == 0 => Err(SampleConfigError::Zero { key }),
            _ if got > MOST_STEPS => Err(SampleConfigError::TooManySteps { key, most: MOST_STEPS, got }),
            _ => Ok(()),
        }
    }

    fn check_values(&self) -> Result<(), SampleConfigError> {
        let value = |ok: bool, key, expected, got| {
            if ok { Ok(()) } else { Err(SampleConfigError::Value { key, expected, got }) }
        };
        let (eta, s_tmax) = (self.eta.unwrap_or(0.0), self.s_tmax.unwrap_or(f64::INFINITY));
        let at_least_0 = |x: f64| x.is_finite() && x >= 0.0;
        value((0.0..=1.0).contains(&eta), "eta", "in [0, 1]", eta)?;
        value(self.karras_rho.is_finite() && self.karras_rho > 0.0, "karras_rho", "a number above 0", self.karras_rho)?;
        value(at_least_0(self.s_churn), "s_churn", "a number of at least 0", self.s_churn)?;
        value(at_least_0(self.s_tmin), "s_tmin", "a number of at least 0", self.s_tmin)?;
        value(s_tmax > self.s_tmin, "s_tmax", "above `s_tmin`", s_tmax)?;
        value(self.s_noise.is_finite() && self.s_noise > 0.0, "s_noise", "a number above 0", self.s_noise)
    }

    /// Refuses options that the sampler does not read: setting one is a mistake.
    fn check_owners(&self) -> Result<(), SampleConfigError> {
        let sampler = self.sampler;
        let defaults = Self::default();
        let not_read =
            |key, belongs_to| Err(SampleConfigError::OtherSampler { key, belongs_to, sampler: sampler.name() });
        if self.eta.is_some_and(|eta| eta > 0.0) && sampler.default_eta().is_none() {
            return not_read("eta", "ddim, euler_ancestral, dpmpp_sde_2m and dpmpp_sde_3m");
        }
        // Files of older runs have "small" for every sampler.
        let says = self.posterior_variance.is_some_and(|variance| variance != PosteriorVariance::Small);
        if says && sampler != SamplerKind::Ddpm {
            return not_read("posterior_variance", "ddpm");
        }
        let churn = [
            ("s_churn", self.s_churn != defaults.s_churn),
            ("s_tmin", self.s_tmin != defaults.s_tmin),
            ("s_tmax", self.s_tmax.is_some()),
            ("s_noise", self.s_noise != defaults.s_noise),
        ];
        match churn.into_iter().find(|(_, given)| *given && !sampler.churns()) {
            Some((key, _)) => not_read(key, "euler and heun"),
            None => Ok(()),
        }
    }
}
