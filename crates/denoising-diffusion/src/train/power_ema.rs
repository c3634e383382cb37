//! Averages kept while training, from which an average of any length can be made afterwards. Not here: how it is made (`post_hoc`), and files
//! (`snapshots`).

use burn::module::Module;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::average::Average;
use super::ema::BufferPolicy;
use super::sweep::Clip;
use super::trainer::PowerEmaState;
use crate::nn::params::ParamsError;
use crate::post_hoc::{Profile, ProfileError};

/// Which averages are kept, and when they are stored; `Default` keeps none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostHocConfig {
    /// Their lengths, see [`Profile`]. Karras et al. keep 0.05 and 0.1.
    pub post_hoc_sigma_rels: Vec<f64>,
    /// Steps between snapshots; if absent, with every checkpoint.
    pub post_hoc_every: Option<u64>,
}

impl PostHocConfig {
    /// The profiles of these averages.
    ///
    /// # Errors
    /// If no average can have such a length.
    pub fn profiles(&self) -> Result<Vec<Profile>, ProfileError> {
        self.post_hoc_sigma_rels.iter().copied().map(Profile::new).collect()
    }
}

/// Why averages cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum PowerEmaError {
    #[error("averages over all steps can only be kept from the first step on")]
    Begun,
    #[error("the average of sigma_rel {sigma_rel} would be kept twice")]
    Twice { sigma_rel: f64 },
    #[error("averages of any length are not possible for a network with running statistics")]
    RunningStatistics,
}

/// One average with a power-function profile, updated after every step.
#[derive(Clone, Debug)]
pub(super) struct PowerEma<M> {
    average: Average<M>,
    profile: Profile,
}

impl<M> PowerEma<M> {
    pub(super) fn profile(&self) -> Profile {
        self.profile
    }
}

impl<M: Module> PowerEma<M> {
    /// Starts as a copy of `model`, which the first step overwrites.
    pub(super) fn new(model: &M, profile: Profile) -> Self {
        Self { average: Average::new(model), profile }
    }

    /// Updates after the `step`-th effective step (1-based). If that step turns out to change nothing, neither does this.
    pub(super) fn update(&mut self, model: &M, step: u64, clip: &Clip) {
        self.average.take_in(model, self.profile.share_at(step), BufferPolicy::Copy, clip);
    }

    pub(super) fn state(&self) -> PowerEmaState {
        PowerEmaState { sigma_rel: self.profile.sigma_rel(), weights: self.average.to_state_dict() }
    }

    /// Restores the average from the saved ones.
    pub(super) fn restore(&mut self, saved: &[PowerEmaState]) -> Result<(), ParamsError> {
        let sigma_rel = self.profile.sigma_rel();
        let Some(state) = saved.iter().find(|state| state.sigma_rel == sigma_rel) else {
            return Err(ParamsError::Missing { name: format!("the average of sigma_rel {sigma_rel}") });
        };
        self.average.restore(&state.weights)
    }
}
