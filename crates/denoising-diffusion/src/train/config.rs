//! The options of a training run that do not belong to data, network or formulation, and their checks.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::adam::AdamConfig;
use super::ema::EmaConfig;
use super::lr::LrSchedule;
use super::power_ema::PostHocConfig;
use crate::post_hoc::ProfileError;

/// Options of a [`Trainer`](super::Trainer) and the run around it; `Default` is the reference's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Images per backward pass.
    pub batch_size: usize,
    /// Backward passes per optimizer step.
    pub accumulate: usize,
    pub lr: f64,
    pub lr_schedule: LrSchedule,
    pub warmup_steps: u64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_eps: f64,
    /// Decoupled weight decay (AdamW): weights shrink by `lr` times this in each step; 0: off.
    pub weight_decay: f64,
    /// Gradients are scaled down so that their global norm is at most this.
    pub max_grad_norm: f64,
    /// Keep only the inputs of each block of the network for the backward pass and recompute the rest: less memory, more time. The numbers are the
    /// same to the bit for U-Nets without dropout on the CPU, otherwise up to the order in which gradients are added.
    pub checkpoint_activations: bool,
    /// On a GPU, record the passes of a step, and the network that samples are drawn from, once and replay them as one unit, where possible: less
    /// work for the host, more memory, the same bits.
    pub device_graph: bool,
    /// Whether a run also writes its log as event files for TensorBoard.
    pub tensorboard: bool,
    /// Seeds weights, data order, noise levels, noise and samples.
    pub seed: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Steps between sample grids; 0: none; if absent, with every checkpoint.
    pub sample_every: Option<u64>,
    /// Steps between measurements of the held-out loss; 0: none; if absent, with every checkpoint.
    pub held_out_every: Option<u64>,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Number of latest checkpoints to keep, in addition to those that contain a file named `keep`.
    pub keep: usize,
    /// Every checkpoint whose step is a multiple of this is marked with a file named `keep`.
    pub keep_every: Option<u64>,
    /// Number of consecutive steps without a finite loss and gradient that ends the run.
    pub max_skipped: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 100_000,
            batch_size: 16,
            accumulate: 1,
            lr: 1e-4,
            lr_schedule: LrSchedule::Constant,
            warmup_steps: 0,
            adam_beta1: 0.9,
            adam_beta2: 0.99,
            adam_eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            checkpoint_activations: false,
            device_graph: false,
            tensorboard: false,
            seed: 0,
            save_every: 1000,
            sample_every: None,
            held_out_every: None,
            log_every: 10,
            keep: 3,
            keep_every: None,
            max_skipped: 10,
        }
    }
}

/// Backward passes per step at most: more are a mistake.
const MOST_ACCUMULATED: usize = 1_000_000;

/// Why training options are invalid.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TrainConfigError {
    #[error("`{key}` must be at least 1, got 0")]
    Zero { key: &'static str },
    #[error("`{key}` must be {expected}, got {got}")]
    Value { key: &'static str, expected: &'static str, got: f64 },
    #[error(
        "`warmup_steps` must be at least 1 for `lr_schedule = \"inverse_sqrt\"`, whose decay begins after them; got 0"
    )]
    InverseSqrtNeedsWarmup,
    #[error("`post_hoc_sigma_rels` contains a length that is not possible")]
    PostHoc(#[from] ProfileError),
    #[error("`post_hoc_sigma_rels` contains {0} twice")]
    PostHocTwice(f64),
    #[error("`post_hoc_every` is set, but `post_hoc_sigma_rels` is empty")]
    PostHocNothing,
}

impl TrainConfig {
    /// Options of the optimizer.
    pub fn adam(&self) -> AdamConfig {
        let Self { adam_beta1: beta1, adam_beta2: beta2, adam_eps: eps, weight_decay, max_grad_norm, .. } = *self;
        AdamConfig { beta1, beta2, eps, weight_decay, max_grad_norm }
    }

    /// Steps between sample grids; 0: there are none.
    pub fn sample_interval(&self) -> u64 {
        self.sample_every.unwrap_or(self.save_every)
    }

    /// Steps between measurements of the held-out loss; 0: there are none.
    pub fn held_out_interval(&self) -> u64 {
        self.held_out_every.unwrap_or(self.save_every)
    }

    pub fn validate(&self) -> Result<(), TrainConfigError> {
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("accumulate", self.accumulate as u64),
            ("save_every", self.save_every),
            ("log_every", self.log_every),
            ("keep", self.keep as u64),
            ("keep_every", self.keep_every.unwrap_or(1)),
            ("max_skipped", self.max_skipped),
        ];
        for (key, value) in counts {
            not_zero(key, value)?;
        }
        let accumulate = self.accumulate as f64;
        value(self.accumulate <= MOST_ACCUMULATED, "accumulate", "at most 1000000", accumulate)?;
        let positive = |x: f64| x > 0.0 && x.is_finite();
        value(positive(self.lr), "lr", "a finite number above 0", self.lr)?;
        value((0.0..1.0).contains(&self.adam_beta1), "adam_beta1", "in [0, 1)", self.adam_beta1)?;
        value((0.0..1.0).contains(&self.adam_beta2), "adam_beta2", "in [0, 1)", self.adam_beta2)?;
        value(positive(self.adam_eps), "adam_eps", "a finite number above 0", self.adam_eps)?;
        let decays = self.weight_decay >= 0.0 && self.weight_decay * self.lr < 1.0;
        value(decays, "weight_decay", "at least 0 and below 1 / lr", self.weight_decay)?;
        value(self.max_grad_norm > 0.0, "max_grad_norm", "above 0 (`inf` clips nothing)", self.max_grad_norm)?;
        if self.lr_schedule == LrSchedule::InverseSqrt && self.warmup_steps == 0 {
            return Err(TrainConfigError::InverseSqrtNeedsWarmup);
        }
        Ok(())
    }
}

impl EmaConfig {
    pub fn validate(&self) -> Result<(), TrainConfigError> {
        not_zero("ema_update_every", self.ema_update_every)?;
        value((0.0..=1.0).contains(&self.ema_decay), "ema_decay", "in [0, 1]", self.ema_decay)?;
        value((0.0..=1.0).contains(&self.ema_min_value), "ema_min_value", "in [0, 1]", self.ema_min_value)?;
        value(self.ema_inv_gamma > 0.0, "ema_inv_gamma", "above 0", self.ema_inv_gamma)?;
        value(self.ema_power >= 0.0, "ema_power", "at least 0", self.ema_power)
    }
}

impl PostHocConfig {
    pub fn validate(&self) -> Result<(), TrainConfigError> {
        self.profiles()?;
        let all = &self.post_hoc_sigma_rels;
        if let Some((_, twice)) = all.iter().enumerate().find(|(i, sigma_rel)| all[..*i].contains(sigma_rel)) {
            return Err(TrainConfigError::PostHocTwice(*twice));
        }
        if all.is_empty() && self.post_hoc_every.is_some() {
            return Err(TrainConfigError::PostHocNothing);
        }
        not_zero("post_hoc_every", self.post_hoc_every.unwrap_or(1))
    }
}

pub(super) fn not_zero(key: &'static str, value: u64) -> Result<(), TrainConfigError> {
    if value == 0 { Err(TrainConfigError::Zero { key }) } else { Ok(()) }
}

pub(super) fn value(ok: bool, key: &'static str, expected: &'static str, got: f64) -> Result<(), TrainConfigError> {
    if ok { Ok(()) } else { Err(TrainConfigError::Value { key, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a step takes is collected in a list before it is made.
    #[test]
    fn numbers_that_no_list_has_room_for_are_refused() {
        let config = |accumulate| TrainConfig { accumulate, ..TrainConfig::default() };
        assert_eq!(config(MOST_ACCUMULATED).validate(), Ok(()));
        assert_eq!(config(0).validate(), Err(TrainConfigError::Zero { key: "accumulate" }));
        let error = config(MOST_ACCUMULATED + 1).validate().unwrap_err().to_string();
        assert_eq!(error, "`accumulate` must be at most 1000000, got 1000001");
    }
}
