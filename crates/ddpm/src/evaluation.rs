//! What the evaluating commands share: a parser, progress and Ctrl-C of the library's evaluations.

use std::ops::ControlFlow;

use denoising_diffusion::eval::evaluate::{EvaluateError, Watch};
use denoising_diffusion::report::{Progress, Status, StderrProgress, Task};
use denoising_diffusion::train::StopSignal;

use crate::failure::Failure;
use crate::output::note;

/// Shows an evaluation on stderr.
pub struct StderrWatch {
    stop: StopSignal,
    progress: Option<StderrProgress>,
}

impl StderrWatch {
    pub fn new(stop: &StopSignal) -> Self {
        Self { stop: stop.clone(), progress: None }
    }
}

impl Watch for StderrWatch {
    fn start(&mut self, task: Task, total: usize) {
        self.progress = Some(StderrProgress::new(task, 0, total as u64));
    }

    fn done(&mut self, done: usize) -> ControlFlow<()> {
        if let Some(progress) = &mut self.progress {
            progress.update(Status { step: done as u64, ..Status::default() });
        }
        if self.stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(&mut self) {
        if let Some(mut progress) = self.progress.take() {
            progress.finish();
        }
    }

    fn note(&mut self, line: &str) {
        match &mut self.progress {
            Some(progress) => progress.note(line),
            None => note(line),
        }
    }
}

/// For clap: a number of images that can be compared with others.
pub fn at_least_two(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n >= 2).ok_or_else(|| "a number of images, at least 2".to_string())
}

/// Ctrl-C is no error to tell.
pub fn or_interrupted(error: EvaluateError) -> Failure {
    match error {
        EvaluateError::Interrupted => Failure::interrupted(),
        error => error.into(),
    }
}
