//! A run folder: training in a loop, with log, held-out loss, sample grids, loss curve and checkpoints.
//!
//! ```text
//! RUN/config.toml  log.jsonl  loss.svg  loss.png  samples/step-00001000.png  checkpoints/step-00001000/
//! ```
//!
//! Everything is written before the checkpoint of the same step, and a resumed run cuts the log back to its checkpoint: whenever the
//! process dies, going on gives what an uninterrupted run would have given.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use thiserror::Error;

use super::checkpoint::{CheckpointError, CheckpointState, Checkpoints, Rejected, read_state};
use super::evaluation::EvaluateSetup;
use super::event::{Event, Outcome, StopSignal};
use super::periodic::Periodic;
use super::trainer::{NonFiniteKind, StepReport, TrainError, Trainer};
use crate::atomic_file::{remove_leftovers, write_atomically};
use crate::data::{Batch, DataError, Dataset, Flip, ImageShape, Loader, LoaderConfig, Subset};
use crate::diffusion::{Examples, GuidanceConfig};
use crate::eval::evaluate::EvaluateError;
use crate::eval::images::Images;
use crate::generate::{GenerateError, Generator};
use crate::model_file::ModelCard;
use crate::models::{Calls, Network};
use crate::nn::Eval;
use crate::nn::params::{ParamsError, num_trainable};
use crate::report::log::{CheckpointRecord, Record, RunLog, SkipReason, SkipRecord, StartRecord, StepRecord};
use crate::report::{CurveOptions, ImageBatch, ReportError, Series, log, save_curve_png, save_curve_svg};
use crate::sampler::SampleConfig;

/// What a run needs beside its trainer.
#[derive(Clone, Debug)]
pub struct RunSetup {
    /// The run folder.
    pub dir: PathBuf,
    /// The resolved configuration, written to `config.toml`.
    pub config_toml: String,
    /// What exported weights say of themselves; step and decay are filled in.
    pub card: ModelCard,
    pub sample: SampleConfig,
    /// Of the samples, in the run's grids and evaluations.
    pub guidance: GuidanceConfig,
    /// Evaluations, if there are any.
    pub evaluate: Option<EvaluateSetup>,
    pub train: Subset,
    pub held_out: Subset,
    pub flip: Flip,
    /// Threads that decode; 0 chooses.
    pub workers: usize,
    /// The device in words, for the log.
    pub device_name: String,
}

/// Why a run ended early.
#[derive(Debug, Error)]
pub enum RunError {
    #[error("{path} exists already; a run never overwrites another one")]
    Exists { path: PathBuf },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} has no checkpoint to go on from")]
    NothingToResume { path: PathBuf },
    #[error("the data is not what this run was trained on: its digest is {got}, the checkpoint names {expected}")]
    OtherData { expected: String, got: String },
    #[error("the checkpoint was made with seed {expected}, not {got}")]
    OtherSeed { expected: u64, got: u64 },
    #[error("the checkpoint does not fit the network")]
    Weights(#[from] ParamsError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Training(#[from] TrainError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("no samples could be drawn")]
    Samples(#[source] GenerateError),
    #[error("the samples could not be evaluated")]
    Evaluation(#[from] EvaluateError),
}

/// Why a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saving {
    /// Its step came, or it is the best so far; the log says so.
    Due,
    /// The run ends here for now, which leaves no trace in the log.
    Stopping,
}

/// A run in progress.
#[derive(Debug)]
pub struct Run<M> {
    pub(super) trainer: Trainer<M>,
    pub(super) setup: RunSetup,
    loader: Loader,
    pub(super) log: RunLog,
    pub(super) checkpoints: Checkpoints,
}

impl<M: Network<4>> Run<M> {
    /// Starts a run in a folder that does not exist yet, or is empty.
    pub fn create(trainer: Trainer<M>, setup: RunSetup) -> Result<Self, RunError> {
        let dir = setup.dir.clone();
        if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
            return Err(RunError::Exists { path: dir });
        }
        Self::start(trainer, setup)
    }

    fn start(trainer: Trainer<M>, setup: RunSetup) -> Result<Self, RunError> {
        let dir = setup.dir.clone();
        let loader = open_loader(&trainer, &setup)?;
        std::fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let config = dir.join("config.toml");
        write_atomically(&config, |out| out.write_all(setup.config_toml.as_bytes()))
            .map_err(io_error("write", &config))?;
        let mut log = RunLog::create(dir.join("log.jsonl"))?;
        log.append(&Record::Start(StartRecord {
            step: 0,
            version: setup.card.version.clone(),
            seed: trainer.config().seed,
            parameters: num_trainable(trainer.model()) as u64,
            images: setup.train.len() as u64,
            device: setup.device_name.clone(),
        }))?;
        let checkpoints = Checkpoints::new(dir.join("checkpoints"));
        Ok(Self { trainer, setup, loader, log, checkpoints })
    }

    /// Goes on from the latest checkpoint that is whole; a run that ended before its first one starts over. `trainer` is fresh, made
    /// from the run's own configuration. Also returns the checkpoints that were passed over because they are damaged.
    pub fn resume(mut trainer: Trainer<M>, setup: RunSetup) -> Result<(Self, Vec<Rejected>), RunError> {
        let checkpoints = Checkpoints::new(setup.dir.join("checkpoints"));
        checkpoints.remove_leftovers()?;
        for folder in [setup.dir.clone(), setup.dir.join("samples")].iter().filter(|folder| folder.is_dir()) {
            remove_leftovers(folder).map_err(io_error("clean up", folder))?;
        }
        let Some((info, path, rejected)) = checkpoints.latest()? else {
            return Ok((Self::start_over(trainer, setup)?, Vec::new()));
        };
        let (got, expected) = (setup.train.dataset().digest().to_string(), info.data_digest.clone());
        if got != expected {
            return Err(RunError::OtherData { expected, got });
        }
        if trainer.config().seed != info.seed {
            return Err(RunError::OtherSeed { expected: info.seed, got: trainer.config().seed });
        }
        trainer.restore(&read_state(&path, &info)?)?;
        let loader = open_loader(&trainer, &setup)?;
        let (log, _) = RunLog::open_for_resume(setup.dir.join("log.jsonl"), info.step)?;
        let run = Self { trainer, setup, loader, log, checkpoints };
        run.mark_best()?;
        Ok((run, rejected))
    }

    fn start_over(trainer: Trainer<M>, setup: RunSetup) -> Result<Self, RunError> {
        if !setup.dir.join("config.toml").is_file() {
            return Err(RunError::NothingToResume { path: setup.dir.clone() });
        }
        let log = setup.dir.join("log.jsonl");
        if log.exists() {
            std::fs::remove_file(&log).map_err(io_error("remove", &log))?;
        }
        Self::start(trainer, setup)
    }

    pub fn trainer(&self) -> &Trainer<M> {
        &self.trainer
    }

    /// Trains until all steps are made or `stop` asks for an end; in both cases, and if training fails, the state is saved.
    pub fn train(&mut self, stop: &StopSignal, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Outcome, RunError> {
        let steps = self.trainer.config().steps;
        let mut pace = Pace::start();
        let mut told_why = false;
        // What a stop in the middle of this step's periodic work left undone.
        let mut periodic = self.periodic(self.trainer.step_count(), stop, on_event)?;
        while self.trainer.step_count() < steps {
            if stop.is_requested() || periodic == Periodic::GivenUp {
                let progress = self.settle(&mut pace, on_event)?;
                self.save(Saving::Stopping, on_event)?;
                return progress.map(|()| Outcome::Stopped).map_err(RunError::from);
            }
            let batches = self.next_batches()?;
            let submitted = self.trainer.submit(batches);
            if let (false, Some(Err(why))) = (told_why, self.trainer.is_recorded()) {
                on_event(Event::NotRecorded { why });
                told_why = true;
            }
            let mut progress = self.record(submitted, &mut pace, on_event)?;
            let step = self.trainer.step_count();
            if progress.is_err() || step == steps || self.is_due(step) {
                progress = progress.and(self.settle(&mut pace, on_event)?);
            }
            if let Err(error) = progress {
                self.save(Saving::Stopping, on_event)?;
                return Err(error.into());
            }
            periodic = self.periodic(step, stop, on_event)?;
            if periodic != Periodic::NotDue {
                pace = Pace::start();
            }
        }
        if periodic == Periodic::GivenUp {
            self.save(Saving::Stopping, on_event)?;
            return Ok(Outcome::Stopped);
        }
        self.draw_curve()?;
        Ok(Outcome::Finished)
    }

    /// What draws the run's samples from a copy of its average.
    pub(super) fn generator<'a>(&'a self, eval: &'a Eval<M>) -> Generator<'a, M> {
        let calls = Calls::new(eval, self.trainer.config().device_graph);
        Generator { guidance: self.setup.guidance.clone(), ..Generator::new(calls, self.trainer.diffusion()) }
    }

    /// The classes of `count` samples, one after the other, where the network is told classes.
    pub(super) fn classes_of_samples(&self, count: usize) -> Option<Vec<u32>> {
        let num_classes = self.trainer.model().num_classes() as u32;
        (num_classes > 0).then(|| (0..count as u32).map(|i| i % num_classes).collect())
    }

    /// What `count` samples belong to, where the data have conditions: those of held-out images, if there are any.
    pub(super) fn conditions_of_samples(&self, count: usize) -> Result<Option<ImageBatch>, DataError> {
        self.samples_belong_to().conditions(count)
    }

    /// The vectors that `count` samples belong to, likewise.
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

    fn next_batches(&mut self) -> Result<Vec<Examples<4>>, DataError> {
        let (dataset, device) = (self.setup.train.dataset().clone(), self.trainer.device());
        let batches = 0..self.trainer.config().accumulate;
        batches.map(|_| Ok(to_examples(self.loader.next_batch()?, &dataset, &device))).collect()
    }

    /// Waits for the step in flight, if there is one, and [records](Self::record) it: the log must have it before anything that comes after it.
    fn settle(
        &mut self,
        pace: &mut Pace,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Result<(), TrainError>, RunError> {
        let settled = self.trainer.settle();
        self.record(settled, pace, on_event)
    }

    /// Logs and tells of a step that is known to be made or skipped. The inner error: training cannot go on.
    fn record(
        &mut self,
        report: Option<StepReport>,
        pace: &mut Pace,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Result<(), TrainError>, RunError> {
        let Some(report) = report else { return Ok(Ok(())) };
        let images_per_s = pace.images_per_s(self.images_per_step());
        self.record_step(&report, images_per_s, on_event)?;
        Ok(self.trainer.check_progress(&report))
    }

    fn record_step(
        &mut self,
        report: &StepReport,
        images_per_s: f64,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), RunError> {
        let step = report.step;
        if let Some(cause) = &report.skipped {
            let skipped = self.trainer.skipped();
            let tensor = cause.tensor.clone();
            let reason = match cause.kind {
                NonFiniteKind::Loss => SkipReason::NonFiniteLoss,
                NonFiniteKind::Gradient => SkipReason::NonFiniteGradient,
            };
            self.log.append(&Record::Skipped(SkipRecord { step, skipped, tensor, reason }))?;
            on_event(Event::Skipped { report, cause, skipped });
            return Ok(());
        }
        let config = self.trainer.config();
        if step.is_multiple_of(config.log_every) || step == config.steps {
            let StepReport { loss, grad_norm, lr, ema_decay, .. } = *report;
            self.log.append(&Record::Step(StepRecord { step, loss, grad_norm, lr, ema_decay, images_per_s }))?;
        }
        on_event(Event::Step { report, images_per_s });
        Ok(())
    }

    pub(super) fn save(&mut self, saving: Saving, on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), RunError> {
        let state = self.trainer.state();
        let step = state.step;
        let config = self.trainer.config();
        if saving != Saving::Stopping {
            let folder = format!("checkpoints/step-{step:08}");
            self.log.append(&Record::Checkpoint(CheckpointRecord { step, folder }))?;
        }
        self.log.sync()?;
        let info = CheckpointState {
            version: self.setup.card.version.clone(),
            step,
            skipped: state.skipped,
            skipped_in_a_row: state.skipped_in_a_row,
            adam_steps: state.adam_steps,
            ema_calls: state.ema_calls,
            seed: config.seed,
            data_digest: self.setup.train.dataset().digest().to_string(),
        };
        let card = ModelCard { step, ema_decay: Some(self.trainer.ema().decay()), ..self.setup.card.clone() };
        let path = self.checkpoints.save(&state, &info, &card)?;
        if config.keep_every.is_some_and(|every| step.is_multiple_of(every)) {
            self.checkpoints.mark(step)?;
        }
        self.mark_best()?;
        self.checkpoints.prune(config.keep)?;
        self.draw_curve()?;
        on_event(Event::Checkpoint { step, path: &path });
        Ok(())
    }

    /// The loss curve, from the log. A run too short for a curve has none.
    fn draw_curve(&self) -> Result<(), RunError> {
        let records = log::read(self.setup.dir.join("log.jsonl"))?;
        let series = |name: &str, kind: &str, field: &str| Series {
            name: name.to_string(),
            points: log::points(&records, kind, field),
        };
        let mut curves =
            vec![series("training loss", "step", "loss"), series("held-out loss", "held_out", "held_out_loss")];
        curves.retain(|curve| curve.points.iter().any(|(_, y)| y.is_finite() && *y > 0.0));
        if curves.is_empty() {
            return Ok(());
        }
        let options = CurveOptions::default();
        save_curve_svg(self.setup.dir.join("loss.svg"), &curves, &options)?;
        save_curve_png(self.setup.dir.join("loss.png"), &curves, &options)?;
        Ok(())
    }
}

fn open_loader<M>(trainer: &Trainer<M>, setup: &RunSetup) -> Result<Loader, DataError> {
    let config = trainer.config();
    let loader =
        LoaderConfig { batch_size: config.batch_size, seed: config.seed, flip: setup.flip, workers: setup.workers };
    let first = trainer.step_count() * config.accumulate as u64;
    Loader::start_at(setup.train.clone(), loader, first)
}

/// A batch with what the network is told of it.
pub(super) fn to_examples(batch: Batch, dataset: &Dataset, device: &Device) -> Examples<4> {
    let tensor = |values: Vec<f32>, shape: ImageShape| {
        let dims = [batch.indices.len(), shape.channels, shape.height, shape.width];
        Tensor::from_data(TensorData::new(values, dims), device)
    };
    let condition = batch.conditions.zip(dataset.condition_shape());
    Examples {
        data: tensor(batch.images, dataset.shape()),
        classes: batch.classes,
        condition: condition.map(|(values, shape)| tensor(values, shape)),
        vectors: batch.vectors,
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RunError {
    let path = path.to_owned();
    move |source| RunError::Io { action, path, source }
}

/// Images per second, smoothed over the last steps.
#[derive(Debug)]
struct Pace {
    last: Instant,
    seconds_per_step: Option<f64>,
}

impl Pace {
    fn start() -> Self {
        Self { last: Instant::now(), seconds_per_step: None }
    }

    fn images_per_s(&mut self, images: usize) -> f64 {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        let smoothed = self.seconds_per_step.map_or(seconds, |before| 0.9 * before + 0.1 * seconds);
        self.seconds_per_step = Some(smoothed);
        images as f64 / smoothed
    }
}
