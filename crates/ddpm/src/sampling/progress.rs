//! How far sampling is, on stderr, and how it ends early.

use std::ops::ControlFlow;

use denoising_diffusion::generate::{GenerateError, Generator};
use denoising_diffusion::models::{Calls, ImageNetwork, RecordingState};
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;
use denoising_diffusion::train::StopSignal;

use crate::failure::Failure;
use crate::output::note;

/// Shows how far sampling is, and ends it where that was asked for.
pub struct SamplingProgress {
    shown: StderrProgress,
    /// Steps of all batches together.
    done: u64,
    stop: StopSignal,
}

impl SamplingProgress {
    /// Of so many steps, of all batches together.
    pub fn new(steps: usize, stop: &StopSignal) -> Self {
        Self { shown: StderrProgress::new(Task::Sample, 0, steps as u64), done: 0, stop: stop.clone() }
    }

    /// One more step of a batch is done.
    pub fn see(&mut self) -> ControlFlow<()> {
        self.done += 1;
        self.shown.update(Status { step: self.done, ..Status::default() });
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
    let own = [Some(&generator.model), generator.weak.as_ref()];
    let replicas = generator.replicas.iter().flat_map(|replica| [Some(&replica.model), replica.weak.as_ref()]);
    for state in own.into_iter().chain(replicas).flatten().map(Calls::recording_state) {
        if let RecordingState::Refused(why) = state {
            return note(format!("warning: --device-graph has no effect: {why}"));
        }
    }
}
