//! Averages that are kept while training, so that one of any length can be made of them afterwards. Not here: what they are made into
//! (`post_hoc`), and files (`snapshots`).

use burn::module::Module;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::average::Average;
use super::ema::BufferPolicy;
use super::sweep::Clip;
use super::trainer::PowerEmaState;
use crate::nn::params::ParamsError;
use crate::post_hoc::{Profile, ProfileError};

/// Which averages are kept, and when; `Default` keeps none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostHocConfig {
    /// Their lengths as [`Profile`]s have them. Karras et al. keep 0.05 and 0.1.
    pub post_hoc_sigma_rels: Vec<f64>,
    /// Steps between snapshots; absent: with every checkpoint.
    pub post_hoc_every: Option<u64>,
}

impl PostHocConfig {
    /// The averages.
    ///
    /// # Errors
    /// A length that no average has.
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

/// One average, of power-function profile, brought up to date after every step.
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
    /// Starts as a copy of `model`, of which nothing is left after the first step.
    pub(super) fn new(model: &M, profile: Profile) -> Self {
        Self { average: Average::new(model), profile }
    }

    /// After the `step`-th step (1-based) that changed something, or perhaps not: then neither does this.
    pub(super) fn update(&mut self, model: &M, step: u64, clip: &Clip) {
        self.average.take_in(model, self.profile.share_at(step), BufferPolicy::Copy, clip);
    }

    pub(super) fn state(&self) -> PowerEmaState {
        PowerEmaState { sigma_rel: self.profile.sigma_rel(), weights: self.average.to_state_dict() }
    }

    /// The average as it was, found among those that were saved.
    pub(super) fn restore(&mut self, saved: &[PowerEmaState]) -> Result<(), ParamsError> {
        let sigma_rel = self.profile.sigma_rel();
        let Some(state) = saved.iter().find(|state| state.sigma_rel == sigma_rel) else {
            return Err(ParamsError::Missing { name: format!("the average of sigma_rel {sigma_rel}") });
        };
        self.average.restore(&state.weights)
    }
}
