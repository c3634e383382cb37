//! Progress of sampling on stderr, and ending it early.

use std::ops::ControlFlow;

use denoising_diffusion::generate::{GenerateError, Generator};
use denoising_diffusion::models::{Calls, ImageNetwork, RecordingState};
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;
use denoising_diffusion::train::StopSignal;

use crate::failure::Failure;
use crate::output::note;

/// Shows the progress of sampling, and ends it when requested.
pub struct SamplingProgress {
    shown: StderrProgress,
    /// Steps done in all batches together.
    done: u64,
    stop: StopSignal,
}

impl SamplingProgress {
    /// For `steps` steps in all batches together.
    pub fn new(steps: usize, stop: &StopSignal) -> Self {
        Self { shown: StderrProgress::new(Task::Sample, 0, steps as u64), done: 0, stop: stop.clone() }
    }

    /// Records one more step of a batch.
    pub fn see(&mut self) -> ControlFlow<()> {
        self.done += 1;
        self.shown.update(Status { step: self.done, ..Status::default() });
        if self.stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Must be called when sampling has ended, however it ended.
    pub fn finish(mut self, generator: &Generator<'_, ImageNetwork>) {
        self.shown.finish();
        tell_if_launched(generator);
    }
}

/// Turns an interruption into `Failure::interrupted`: Ctrl-C is not reported as an error.
pub fn or_interrupted(error: GenerateError) -> Failure {
    match error {
        GenerateError::Interrupted(_) => Failure::interrupted(),
        error => error.into(),
    }
}

/// If networks should have been recorded but were launched, says why.
fn tell_if_launched(generator: &Generator<'_, ImageNetwork>) {
    let own = [Some(&generator.model), generator.weak.as_ref()];
    let replicas = generator.replicas.iter().flat_map(|replica| [Some(&replica.model), replica.weak.as_ref()]);
    for state in own.into_iter().chain(replicas).flatten().map(Calls::recording_state) {
        if let RecordingState::Refused(why) = state {
            return note(format!("warning: --device-graph has no effect: {why}"));
        }
    }
}
