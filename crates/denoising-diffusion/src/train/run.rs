//! A run folder: training in a loop, with log, held-out loss, sample grids, loss curve and checkpoints.
//!
//! ```text
//! RUN/config.toml  log.jsonl  loss.svg  loss.png  samples/step-00001000.png  checkpoints/step-00001000/  snapshots/step-00001000/
//! ```
//!
//! Everything is written before the checkpoint of the same step, and a resumed run truncates the log to its checkpoint: whenever the process dies,
//! resuming gives what an uninterrupted run would have given. Not here: how a run starts and resumes (`open`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::Device;
use thiserror::Error;

use super::checkpoint::{CheckpointError, CheckpointState, Checkpoints};
use super::evaluation::EvaluateSetup;
use super::event::{Event, Outcome, StopSignal};
use super::folder::Lock;
use super::logged::Logged;
use super::pace::Pace;
use super::periodic::Periodic;
use super::replicas::AverageOnDevices;
use super::snapshots::{Snapshots, SnapshotsError};
use super::step_report::{NonFiniteKind, StepReport, TrainError};
use super::trainer::Trainer;
use crate::data::{ChannelStatistics, DataError, Flip, Loader, Subset};
use crate::diffusion::GuidanceConfig;
use crate::eval::evaluate::EvaluateError;
use crate::eval::images::{Images, Picked};
use crate::generate::{GenerateError, Generator, Replica};
use crate::model_file::ModelCard;
use crate::models::{Calls, Network, RecordingState};
use crate::nn::Eval;
use crate::nn::params::ParamsError;
use crate::report::log::{CheckpointRecord, Record, RunLog, SkipReason, SkipRecord, StepRecord};
use crate::report::tensorboard::EventFile;
use crate::report::{CurveOptions, ReportError, save_curve_png, save_curve_svg};
use crate::sampler::SampleConfig;

#[cfg(test)]
mod tests;

/// What a run needs in addition to its trainer.
#[derive(Clone, Debug)]
pub struct RunSetup {
    /// The run folder.
    pub dir: PathBuf,
    /// The resolved configuration, written to `config.toml`.
    pub config_toml: String,
    /// Names and values of the settings that must not change on resume. They are stored with each checkpoint and compared then; if empty, nothing is
    /// compared.
    pub settings: BTreeMap<String, String>,
    /// Metadata of exported weights; step and decay are filled in.
    pub card: ModelCard,
    pub sample: SampleConfig,
    /// Guidance of samples, in the run's grids and evaluations.
    pub guidance: GuidanceConfig,
    /// Steps between snapshots of the post-hoc averages, if the trainer keeps any.
    pub snapshot_every: u64,
    /// Evaluations, if any.
    pub evaluate: Option<EvaluateSetup>,
    pub train: Subset,
    pub held_out: Subset,
    pub flip: Flip,
    /// See [`LoaderConfig::augment`](crate::data::LoaderConfig::augment).
    pub augment: f64,
    /// Decoding threads; 0: chosen automatically.
    pub workers: usize,
    /// Description of the device, for the log.
    pub device_name: String,
}

/// Why a run ended early.
#[derive(Debug, Error)]
pub enum RunError {
    #[error("{path} exists already; a run never overwrites another one")]
    Exists { path: PathBuf },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} has no checkpoint to continue from")]
    NothingToResume { path: PathBuf },
    #[error("another process trains in {path}")]
    InUse { path: PathBuf },
    #[error("{path} is no longer the folder of this run: it was moved or removed")]
    Gone { path: PathBuf },
    #[error("{log} mentions a checkpoint of step {step}, but there is none in {checkpoints}")]
    CheckpointsLost { log: PathBuf, step: u64, checkpoints: PathBuf },
    #[error(
        "the data are not those that this run was trained on: their digest is {got}, but the checkpoint has {expected}"
    )]
    OtherData { expected: String, got: String },
    #[error("the checkpoint was made with seed {expected}, not {got}")]
    OtherSeed { expected: u64, got: u64 },
    #[error("`{key}` is {got}, but the checkpoint was made with {expected}")]
    OtherSetting { key: String, expected: String, got: String },
    #[error("the checkpoint does not match the network")]
    Weights(#[from] ParamsError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Training(#[from] TrainError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("step {step} could not be logged")]
    NotLogged { step: u64, source: ReportError },
    #[error("no samples could be drawn")]
    Samples(#[source] GenerateError),
    #[error("the samples could not be evaluated")]
    Evaluation(#[from] EvaluateError),
}

/// Why a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saving {
    /// It is due, or it is the best so far; the log records it.
    Due,
    /// The run stops for now, which leaves no trace in the log.
    Stopping,
    /// Training cannot continue. An earlier checkpoint that differs only by skipped steps is as good.
    Diverged,
}

/// What the latest checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) step: u64,
    /// Number of steps that changed something.
    pub(super) adam_steps: u64,
}

impl From<&CheckpointState> for Saved {
    fn from(state: &CheckpointState) -> Self {
        Self { step: state.step, adam_steps: state.adam_steps }
    }
}

/// A run in progress.
#[derive(Debug)]
pub struct Run<M> {
    pub(super) trainer: Trainer<M>,
    pub(super) setup: RunSetup,
    pub(super) loader: Loader,
    pub(super) log: RunLog,
    /// What is in the log.
    pub(super) logged: Logged,
    /// The log for TensorBoard, if it is wanted.
    pub(super) events: Option<EventFile>,
    pub(super) checkpoints: Checkpoints,
    /// What was last saved or resumed from.
    pub(super) saved: Option<Saved>,
    /// Statistics of training images, once samples have been compared with them.
    pub(super) data_statistics: Option<ChannelStatistics>,
    /// Held for the lifetime of the run.
    pub(super) lock: Lock,
}

impl<M: Network> Run<M> {
    pub fn trainer(&self) -> &Trainer<M> {
        &self.trainer
    }

    /// Trains until all steps are made or `stop` is requested; in both cases, and after an error, the state is saved. Called again, it continues
    /// with the step that was not made.
    pub fn train(&mut self, stop: &StopSignal, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Outcome, RunError> {
        let mut pace = Pace::start();
        let outcome = self.train_steps(stop, &mut pace, on_event);
        if let Err(error) = &outcome {
            self.save_in_spite_of(error, &mut pace, on_event);
        }
        outcome
    }

    fn train_steps(
        &mut self,
        stop: &StopSignal,
        pace: &mut Pace,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome, RunError> {
        self.rewind()?;
        let steps = self.trainer.config().steps;
        let mut told_why = false;
        // What a stop left undone in the middle of this step's periodic work.
        let mut periodic = self.periodic(self.trainer.step_count(), stop, on_event)?;
        while self.trainer.step_count() < steps {
            if stop.is_requested() || periodic == Periodic::GivenUp {
                self.settle(pace, on_event)?;
                self.save(Saving::Stopping, on_event)?;
                return Ok(Outcome::Stopped);
            }
            let batches = self.next_batches()?;
            let submitted = self.trainer.submit(batches);
            if !told_why && let RecordingState::Refused(why) = self.trainer.recording_state() {
                on_event(Event::NotRecorded { why: &why });
                told_why = true;
            }
            self.record(submitted, pace, on_event)?;
            let step = self.trainer.step_count();
            if step == steps || self.is_due(step) {
                self.settle(pace, on_event)?;
            }
            periodic = self.periodic(step, stop, on_event)?;
            if periodic != Periodic::NotDue {
                *pace = Pace::start();
            }
        }
        if periodic == Periodic::GivenUp {
            self.save(Saving::Stopping, on_event)?;
            return Ok(Outcome::Stopped);
        }
        self.draw_curve(on_event);
        Ok(Outcome::Finished)
    }

    /// Saves what was trained before an error. That error is the one to report, whether or not saving succeeds.
    fn save_in_spite_of(&mut self, error: &RunError, pace: &mut Pace, on_event: &mut dyn FnMut(Event<'_>)) {
        let saving = match error {
            RunError::Training(_) => Saving::Diverged,
            // Saving has just failed, or the log lacks an entry that must precede a checkpoint.
            RunError::Checkpoint(_) | RunError::NotLogged { .. } => return,
            // What is there may be another run's.
            RunError::Gone { .. } => return,
            _ => Saving::Stopping,
        };
        let saved = match self.settle(pace, on_event) {
            Ok(()) | Err(RunError::Training(_)) => self.save(saving, on_event),
            Err(error) => Err(error),
        };
        if let Err(error) = saved {
            on_event(Event::NotSaved { why: &error });
        }
    }

    /// The generator of the run's samples, from copies of its average.
    pub(super) fn generator<'a>(&'a self, average: &'a AverageOnDevices<M>) -> Generator<'a, M> {
        let calls = |eval| Calls::new(eval, self.trainer.config().device_graph);
        let replica = |(device, eval): &'a (Device, Eval<M>)| Replica {
            device: device.clone(),
            model: calls(eval),
            weak: None,
            classifier: None,
        };
        Generator {
            guidance: self.setup.guidance.clone(),
            replicas: average.others.iter().map(replica).collect(),
            ..Generator::new(calls(&average.eval), self.trainer.diffusion(), &self.trainer.device())
        }
    }

    /// The classes of `count` samples for a grid, if the network takes classes: all in turn.
    pub(super) fn classes_of_samples(&self, count: usize) -> Option<Vec<u32>> {
        self.classes_or(count, || None)
    }

    /// The classes of `count` samples to be compared with `real` images: in the same proportions.
    pub(super) fn classes_of_measured(&self, count: usize, real: &Images) -> Option<Vec<u32>> {
        self.classes_or(count, || real.classes_by_share(count))
    }

    /// Classes, if the network takes them: those of the examples whose conditions or vectors the samples use, else those from `alone`, else all in
    /// turn.
    fn classes_or(&self, count: usize, alone: impl FnOnce() -> Option<Vec<u32>>) -> Option<Vec<u32>> {
        let model = self.trainer.model();
        let num_classes = model.num_classes();
        if num_classes == 0 {
            return None;
        }
        let belong = model.condition_channels() > 0 || model.vector_dim() > 0;
        let classes = belong.then(|| self.samples_belong_to().classes(count)).flatten().or_else(alone);
        Some(classes.unwrap_or_else(|| (0..num_classes as u32).cycle().take(count).collect()))
    }

    /// The condition images of `count` samples, if the data have them: those of held-out images, if there are any.
    pub(super) fn conditions_of_samples(&self, count: usize) -> Option<Picked> {
        self.samples_belong_to().conditions(count)
    }

    /// The conditioning vectors of `count` samples, likewise.
    pub(super) fn vectors_of_samples(&self, count: usize) -> Option<Vec<f32>> {
        self.samples_belong_to().vectors(count).filter(|_| self.trainer.model().vector_dim() > 0)
    }

    fn samples_belong_to(&self) -> Images {
        let from = if self.setup.held_out.is_empty() { &self.setup.train } else { &self.setup.held_out };
        Images::of_data(from.clone())
    }

    fn images_per_step(&self) -> usize {
        self.trainer.config().batch_size * self.trainer.config().accumulate
    }

    /// Waits for the step in flight, if any, and [records](Self::record) it: the log must contain it before anything that comes after it.
    fn settle(&mut self, pace: &mut Pace, on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), RunError> {
        let settled = self.trainer.settle();
        self.record(settled, pace, on_event)
    }

    /// Appends a record to the log, whose pictures must be there.
    pub(super) fn note(&mut self, record: &Record) -> Result<(), ReportError> {
        self.log.append(record)?;
        self.logged.add(&serde_json::to_value(record).expect("just written"));
        match &mut self.events {
            Some(events) => events.append(record),
            None => Ok(()),
        }
    }

    /// Logs and reports a completed or skipped step, and returns an error if training cannot continue.
    fn record(
        &mut self,
        report: Option<StepReport>,
        pace: &mut Pace,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), RunError> {
        let Some(report) = report else { return Ok(()) };
        let images_per_s = pace.images_per_s(self.images_per_step());
        self.record_step(&report, images_per_s, on_event)
            .map_err(|source| RunError::NotLogged { step: report.step, source })?;
        Ok(self.trainer.check_progress(&report)?)
    }

    fn record_step(
        &mut self,
        report: &StepReport,
        images_per_s: f64,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ReportError> {
        let step = report.step;
        if let Some(cause) = &report.skipped {
            let skipped = self.trainer.skipped();
            let tensor = cause.tensor.clone();
            let reason = match cause.kind {
                NonFiniteKind::Loss => SkipReason::NonFiniteLoss,
                NonFiniteKind::Gradient => SkipReason::NonFiniteGradient,
            };
            self.note(&Record::Skipped(SkipRecord { step, skipped, tensor, reason }))?;
            on_event(Event::Skipped { report, cause, skipped });
            return Ok(());
        }
        let config = self.trainer.config();
        if step.is_multiple_of(config.log_every) || step == config.steps {
            let StepReport { loss, grad_norm, lr, ema_decay, .. } = *report;
            self.note(&Record::Step(StepRecord { step, loss, grad_norm, lr, ema_decay, images_per_s }))?;
        }
        on_event(Event::Step { report, images_per_s });
        Ok(())
    }

    /// Makes sure that the state is in a checkpoint. An existing one is not rewritten: if the process died meanwhile, it could be lost.
    pub(super) fn save(&mut self, saving: Saving, on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), RunError> {
        let now = Saved { step: self.trainer.step_count(), adam_steps: self.trainer.adam_steps() };
        if saving == Saving::Diverged && self.saved.is_some_and(|saved| saved.adam_steps == now.adam_steps) {
            return Ok(());
        }
        self.check_folder()?;
        let step = now.step;
        if saving == Saving::Due {
            let folder = format!("checkpoints/step-{step:08}");
            self.note(&Record::Checkpoint(CheckpointRecord { step, folder }))?;
        }
        self.log.sync()?;
        if self.saved.is_none_or(|saved| saved.step != step) {
            self.write_checkpoint()?;
            self.saved = Some(now);
        }
        self.mark_best()?;
        self.prune()?;
        self.draw_curve(on_event);
        on_event(Event::Checkpoint { step, path: &self.checkpoints.path_of(step) });
        Ok(())
    }

    fn write_checkpoint(&mut self) -> Result<(), CheckpointError> {
        let state = self.trainer.state();
        let info = CheckpointState {
            version: self.setup.card.version.clone(),
            step: state.step,
            skipped: state.skipped,
            skipped_in_a_row: state.skipped_in_a_row,
            adam_steps: state.adam_steps,
            ema_calls: state.ema_calls,
            seed: self.trainer.config().seed,
            data_digest: self.setup.train.dataset().digest().to_string(),
            settings: self.setup.settings.clone(),
            value_range: self.setup.card.value_range,
            post_hoc_sigma_rels: self.trainer.sigma_rels(),
        };
        let ema_decay = Some(self.trainer.ema().decay());
        let card = ModelCard { step: state.step, ema_decay, ..self.setup.card.clone() };
        self.checkpoints.save(&state, &info, &card, self.is_kept(state.step))?;
        Ok(())
    }

    /// Writes a snapshot of the post-hoc averages after this step.
    pub(super) fn save_snapshots(&mut self, step: u64) -> Result<(), RunError> {
        let card = ModelCard { step, ..self.setup.card.clone() };
        Ok(self.snapshots().save(&card, self.trainer.adam_steps(), self.trainer.power_emas())?)
    }

    pub(super) fn snapshots(&self) -> Snapshots {
        Snapshots::of_run(&self.setup.dir)
    }

    /// Deletes the checkpoints that need not be kept. Deletes none while steps are being skipped: if the run has diverged, the older ones are all
    /// that is left.
    pub(super) fn prune(&self) -> Result<(), CheckpointError> {
        match self.trainer.skipped_in_a_row() {
            0 => self.checkpoints.prune(self.trainer.config().keep, self.trainer.step_count()),
            _ => Ok(()),
        }
    }

    /// Whether the checkpoint of a step must never be deleted.
    pub(super) fn is_kept(&self, step: u64) -> bool {
        self.trainer.config().keep_every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Refuses to write into a folder that is not this run's any more.
    pub(super) fn check_folder(&self) -> Result<(), RunError> {
        let path = &self.setup.dir;
        if self.lock.is_of(path) { Ok(()) } else { Err(RunError::Gone { path: path.clone() }) }
    }

    /// Draws the loss curve, unless the run is too short for one. It can be drawn again from the log, so that an error does not end the run.
    fn draw_curve(&self, on_event: &mut dyn FnMut(Event<'_>)) {
        let curves = self.logged.curves();
        if curves.is_empty() {
            return;
        }
        let options = CurveOptions::default();
        let drawn = save_curve_svg(self.setup.dir.join("loss.svg"), &curves, &options)
            .and_then(|()| save_curve_png(self.setup.dir.join("loss.png"), &curves, &options));
        if let Err(why) = drawn {
            on_event(Event::NotDrawn { why: &why });
        }
    }
}
