//! Training: one step ([`Trainer`]), what surrounds it in a run folder ([`Run`]), and the parts they are made of; and the training of the
//! classifier that guides a network ([`train_classifier`]). Not here: which loss, which network, which sampler.

mod adam;
mod ahead;
mod average;
mod best;
mod buffers;
mod checkpoint;
mod classifier;
mod classifier_run;
mod config;
mod ema;
mod evaluation;
mod event;
mod folder;
mod gradients;
mod lr;
mod open;
mod pace;
mod passes;
mod periodic;
mod power_ema;
mod recording;
mod run;
mod snapshots;
mod step_folders;
mod step_report;
mod sweep;
mod trainer;

pub use adam::{Adam, AdamConfig};
pub use checkpoint::{CheckpointError, CheckpointState, Checkpoints, Rejected, weights_name};
pub use classifier::{ClassifierStep, ClassifierTrainConfig, ClassifierTrainer};
pub use classifier_run::{ClassifierEvent, ClassifierSetup, ClassifierTrainError, train_classifier};
pub use config::{TrainConfig, TrainConfigError};
pub use ema::{BufferPolicy, Ema, EmaConfig};
pub use evaluation::{EvaluateSetup, Expected};
pub use event::{Event, Outcome, StopSignal};
pub use folder::is_free;
pub use gradients::{GradNorm, NamedGradients};
pub use lr::{LrSchedule, learning_rate};
pub use open::Repair;
pub use power_ema::{PostHocConfig, PowerEmaError};
pub use run::{Run, RunError, RunSetup};
pub use snapshots::{Averaged, Snapshots, SnapshotsError};
pub use step_report::{NonFinite, NonFiniteKind, StepReport, TrainError};
pub use trainer::{PowerEmaState, Trainer, TrainerState};
