//! Communication between a run and its caller: events in one direction, the request to stop in the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::evaluation::Expected;
use super::run::RunError;
use super::step_report::{NonFinite, StepReport};
use crate::data::ChannelStatistics;
use crate::eval::held_out::HeldOutLoss;
use crate::eval::result::Measurement;
use crate::generate::GenerateError;
use crate::interop::InteropError;
use crate::report::ReportError;
use crate::task::Task;

/// Asks a run to stop: it finishes its step, writes a checkpoint and returns.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What happens during a run, for the caller to show.
#[derive(Debug)]
pub enum Event<'a> {
    Step {
        report: &'a StepReport,
        images_per_s: f64,
    },
    Skipped {
        report: &'a StepReport,
        cause: &'a NonFinite,
        skipped: u64,
    },
    /// Sent once if `device_graph` is set but the passes of steps are launched anyway.
    NotRecorded {
        why: &'a str,
    },
    HeldOut {
        step: u64,
        loss: &'a HeldOutLoss,
    },
    /// A step of the batch of samples that starts at image `first`.
    Sampling {
        first: usize,
        step: usize,
        steps: usize,
    },
    Samples {
        step: u64,
        path: &'a Path,
        of_samples: &'a ChannelStatistics,
        of_data: &'a ChannelStatistics,
    },
    /// The sample grid could not be drawn; training continues.
    NotSampled {
        step: u64,
        why: &'a GenerateError,
    },
    /// Sent before the first evaluation, and before the first one with another number of samples or another time budget.
    Expected(&'a Expected),
    Evaluating {
        task: Task,
        done: usize,
        total: usize,
    },
    /// `best` names the number by which this is the best evaluation so far.
    Evaluation {
        step: u64,
        measurements: &'a [Measurement],
        best: Option<&'a str>,
    },
    /// An evaluation failed; training continues.
    NotEvaluated {
        step: u64,
        why: &'a RunError,
    },
    /// Features of an evaluation could not be stored for the next one; the evaluation continues.
    NotStored {
        why: &'a InteropError,
    },
    /// The loss curve could not be drawn; it is tried again with the next checkpoint.
    NotDrawn {
        why: &'a ReportError,
    },
    /// After an error, the state trained so far could not be saved either.
    NotSaved {
        why: &'a RunError,
    },
    Checkpoint {
        step: u64,
        path: &'a Path,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps were made.
    Finished,
    /// It was asked to stop, and its state was saved.
    Stopped,
}
