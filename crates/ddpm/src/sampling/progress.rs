//! How far sampling is, on stderr, and how it ends early.

use std::ops::ControlFlow;

use denoising_diffusion::generate::{GenerateError, Generator, Progress as At, Request};
use denoising_diffusion::models::{Calls, ImageNetwork, RecordingState};
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;
use denoising_diffusion::train::StopSignal;

use crate::failure::Failure;
use crate::output::note;

/// Shows how far sampling is, and ends it where that was asked for.
pub struct SamplingProgress {
    shown: StderrProgress,
    batch_size: usize,
    stop: StopSignal,
}

impl SamplingProgress {
    /// Of a request whose batches take so many steps each.
    pub fn new(request: &Request<'_>, steps: usize, stop: &StopSignal) -> Self {
        Self {
            shown: StderrProgress::new(Task::Sample, 0, (request.batches() * steps) as u64),
            batch_size: request.sample.sample_batch_size,
            stop: stop.clone(),
        }
    }

    pub fn see(&mut self, at: &At<'_>) -> ControlFlow<()> {
        self.shown.update(Status { step: at.steps_done(self.batch_size) as u64, ..Status::default() });
        if self.stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// However sampling by a generator ended.
    pub fn finish(mut self, generator: &Generator<'_, ImageNetwork>) {
        self.shown.finish();
        tell_if_launched(generator);
    }
}

/// Ctrl-C is no error to tell.
pub fn or_interrupted(error: GenerateError) -> Failure {
    match error {
        GenerateError::Interrupted(_) => Failure::interrupted(),
        error => error.into(),
    }
}

/// Says why networks that were to be recorded were launched, if they were.
fn tell_if_launched(generator: &Generator<'_, ImageNetwork>) {
    let calls = [Some(&generator.model), generator.weak.as_ref()].into_iter().flatten();
    for state in calls.map(Calls::recording_state) {
        if let RecordingState::Refused(why) = state {
            return note(format!("warning: --device-graph has no effect: {why}"));
        }
    }
}
