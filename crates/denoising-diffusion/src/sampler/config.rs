//! The options of sampling and their checks.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ddpm::PosteriorVariance;

/// A solver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Ancestral sampling.
    Ddpm,
    #[default]
    Ddim,
}

/// How samples are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Images per grid.
    pub num_samples: usize,
    pub sampler: SamplerKind,
    /// Evaluations of the network per image; absent: T for `ddpm`, at most 100 for `ddim`.
    pub sampling_timesteps: Option<usize>,
    /// Noise of `ddim`, 0 (none) to 1 (as ancestral sampling).
    pub ddim_sampling_eta: f64,
    /// Variance of `ddpm`'s steps.
    pub posterior_variance: PosteriorVariance,
    /// Images per batch while sampling.
    pub sample_batch_size: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            num_samples: 25,
            sampler: SamplerKind::Ddim,
            sampling_timesteps: None,
            ddim_sampling_eta: 0.0,
            posterior_variance: PosteriorVariance::Small,
            sample_batch_size: 64,
        }
    }
}

/// Why options make no sampler.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SampleConfigError {
    #[error("`{key}` must be at least 1, got 0")]
    Zero { key: &'static str },
    #[error("`ddim_sampling_eta` must lie in [0, 1], got {0}")]
    Eta(f64),
    #[error("`sampling_timesteps` must lie between 1 and `timesteps` ({timesteps}), got {got}")]
    SamplingTimesteps { timesteps: usize, got: usize },
    #[error("`ddim_sampling_eta` belongs to `sampler = \"ddim\"`, but the sampler is \"ddpm\"")]
    EtaWithoutDdim,
    #[error("`posterior_variance` belongs to `sampler = \"ddpm\"`, but the sampler is \"ddim\"")]
    VarianceWithoutDdpm,
}

impl SampleConfig {
    /// Evaluations of the network per image.
    pub fn steps(&self, timesteps: usize) -> usize {
        self.sampling_timesteps.unwrap_or(match self.sampler {
            SamplerKind::Ddpm => timesteps,
            SamplerKind::Ddim => timesteps.min(100),
        })
    }

    /// `timesteps` is the T of the formulation.
    pub fn validate(&self, timesteps: usize) -> Result<(), SampleConfigError> {
        for (key, value) in [("num_samples", self.num_samples), ("sample_batch_size", self.sample_batch_size)] {
            if value == 0 {
                return Err(SampleConfigError::Zero { key });
            }
        }
        let got = self.steps(timesteps);
        if got == 0 || got > timesteps {
            return Err(SampleConfigError::SamplingTimesteps { timesteps, got });
        }
        let eta = self.ddim_sampling_eta;
        if !(0.0..=1.0).contains(&eta) {
            return Err(SampleConfigError::Eta(eta));
        }
        match self.sampler {
            SamplerKind::Ddpm if eta != 0.0 => Err(SampleConfigError::EtaWithoutDdim),
            SamplerKind::Ddim if self.posterior_variance == PosteriorVariance::Large => {
                Err(SampleConfigError::VarianceWithoutDdpm)
            }
            _ => Ok(()),
        }
    }
}
