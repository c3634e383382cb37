//! The report of a training step. Not here: making a step.

use thiserror::Error;

use super::config::TrainConfigError;
use crate::diffusion::Misfit;

/// Report of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    /// The weighted loss, averaged over the step's images.
    pub loss: f64,
    /// The global norm of the gradients before clipping; NaN if the step was skipped.
    pub grad_norm: f64,
    pub lr: f64,
    pub ema_decay: f64,
    /// Set if the step was skipped: it changed neither weights, statistics, optimizer nor average.
    pub skipped: Option<NonFinite>,
}

/// The first non-finite value in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// `images`, `loss`, or the name of a weight, or of the tensor whose gradient is non-finite.
    pub tensor: String,
    pub kind: NonFiniteKind,
}

/// Where a non-finite value appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFiniteKind {
    Loss,
    /// The loss was finite.
    Gradient,
}

impl std::fmt::Display for NonFiniteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loss => "loss",
            Self::Gradient => "gradient",
        })
    }
}

/// Why no trainer could be made.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TrainerError {
    #[error(transparent)]
    Config(#[from] TrainConfigError),
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error("the network has nothing to train: build it on an autodiff device (`device.autodiff()`)")]
    NothingToTrain,
}

/// Why training cannot continue.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TrainError {
    #[error("{count} steps in a row had no finite {kind}; the first non-finite tensor in the last one: `{tensor}`")]
    NonFinite { count: u64, tensor: String, kind: NonFiniteKind },
}
