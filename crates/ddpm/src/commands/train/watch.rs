//! What is shown of a training run: its events as they come, and the result.

use std::path::PathBuf;
use std::time::Instant;

use denoising_diffusion::data::ChannelStatistics;
use denoising_diffusion::eval::held_out::HeldOutLoss;
use denoising_diffusion::eval::result::Measurement;
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;
use denoising_diffusion::train::{Event, Expected, Outcome};
use serde_json::json;

use crate::evaluation::not_stored;
use crate::failure::{Result, chain};
use crate::output::{self, Rows};
use crate::plan::Plan;

/// `fid 12.3, swd 0.031`.
fn numbers(measurements: &[Measurement]) -> String {
    measurements.iter().map(|m| format!("{} {:.4}", m.name, m.value)).collect::<Vec<_>>().join(", ")
}

/// What an evaluation will cost.
fn in_words(expected: &Expected) -> String {
    let Expected { samples, asked, seconds, seconds_once } = *expected;
    let fewer = if samples < asked { format!(" (of {asked}, limited by the time budget)") } else { String::new() };
    let once = if seconds_once > 0.0 {
        format!(", of which {:.0} s for the real images, only the first time", seconds_once)
    } else {
        String::new()
    };
    format!("evaluation: {samples} samples{fewer}, about {seconds:.0} s{once}")
}

/// Shows a run's events and remembers what its result lines need.
pub(super) struct Watch {
    progress: StderrProgress,
    /// Progress of a part of an evaluation: which, of how many steps.
    evaluating: Option<(Task, usize, StderrProgress)>,
    started: Instant,
    loss: Option<f64>,
    held_out: Option<HeldOutLoss>,
    grid: Option<PathBuf>,
    checkpoint: Option<PathBuf>,
    skipped: u64,
}

impl Watch {
    pub(super) fn new(done: u64, steps: u64) -> Self {
        Self {
            progress: StderrProgress::new(Task::Train, done, steps),
            evaluating: None,
            started: Instant::now(),
            loss: None,
            held_out: None,
            grid: None,
            checkpoint: None,
            skipped: 0,
        }
    }

    pub(super) fn see(&mut self, event: Event<'_>) {
        match event {
            Event::Step { report, images_per_s } => {
                self.loss = Some(report.loss);
                let (step, loss, images_per_s) = (report.step, Some(report.loss), Some(images_per_s));
                self.progress.update(Status { step, loss, images_per_s });
            }
            Event::Skipped { report, cause, skipped } => {
                self.skipped = skipped;
                let (step, kind, tensor) = (report.step, cause.kind, &cause.tensor);
                self.progress.note(&format!("warning: step {step} skipped: {kind} not finite, first in `{tensor}`"));
            }
            Event::NotRecorded { why } => {
                self.progress.note(&format!("warning: --device-graph has no effect on steps: {why}"));
            }
            Event::HeldOut { step, loss } => {
                let quarters = loss.by_quarter.map(|quarter| format!("{quarter:.4}")).join(", ");
                let (mean, n) = (loss.mean, loss.n);
                self.held_out = Some(*loss);
                self.progress
                    .note(&format!("step {step}: held-out loss {mean:.4} on {n} images (by quarter of t: {quarters})"));
            }
            Event::Sampling { .. } => {}
            Event::Evaluating { task, done, total } => self.see_evaluating(task, done, total),
            Event::Expected(expected) => self.progress.note(&in_words(expected)),
            Event::Evaluation { step, measurements, best } => {
                let best = best.map_or(String::new(), |name| format!(" (best {name} so far)"));
                self.progress.note(&format!("step {step}: {}{best}", numbers(measurements)));
            }
            Event::NotSampled { step, why } => {
                self.progress.note(&format!("warning: step {step}: no samples: {}", chain(why)));
            }
            Event::NotEvaluated { step, why } => {
                self.evaluating = None;
                self.progress.note(&format!("warning: step {step} is not evaluated: {}", chain(why)));
            }
            Event::NotStored { why } => self.progress.note(&not_stored(why)),
            Event::NotDrawn { why } => {
                self.progress.note(&format!("warning: the loss curve could not be drawn: {}", chain(why)))
            }
            Event::NotSaved { why } => {
                self.progress.note(&format!("warning: the state after the error could not be saved: {}", chain(why)))
            }
            Event::Samples { step, path, of_samples, of_data } => {
                self.grid = Some(path.to_path_buf());
                self.progress.note(&format!("step {step}: samples {}", path.display()));
                if of_samples.is_faint_beside(of_data) {
                    let largest = |of: &ChannelStatistics| of.deviation.iter().copied().fold(0.0, f64::max);
                    let (own, data) = (largest(of_samples), largest(of_data));
                    self.progress.note(&format!(
                        "warning: step {step}: the samples are almost constant (standard deviation {own:.4}, that of the data {data:.4})"
                    ));
                }
            }
            Event::Checkpoint { step, path } => {
                self.checkpoint = Some(path.to_path_buf());
                self.progress.note(&format!("step {step}: checkpoint {}", path.display()));
            }
        }
    }

    pub(super) fn finish(&mut self) {
        self.progress.finish();
    }

    fn see_evaluating(&mut self, task: Task, done: usize, total: usize) {
        let same = |(at, of, _): &(Task, usize, StderrProgress)| (*at, *of) == (task, total);
        if !self.evaluating.as_ref().is_some_and(same) {
            self.evaluating = Some((task, total, StderrProgress::new(task, 0, total as u64)));
        }
        if let Some((.., progress)) = &mut self.evaluating {
            progress.update(Status { step: done as u64, ..Status::default() });
        }
        if done >= total {
            self.evaluating = None;
        }
    }

    pub(super) fn report(&self, plan: &Plan, outcome: Outcome, step: u64, as_json: bool) -> Result {
        // A path need not be text, which JSON is.
        let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        if as_json {
            return output::json(&json!({
                "outcome": match outcome { Outcome::Finished => "finished", Outcome::Stopped => "interrupted" },
                "run": output::path(&plan.dir),
                "step": step,
                "steps": plan.recipe.train.steps,
                "loss": self.loss,
                "held_out_loss": self.held_out.map(|loss| loss.mean),
                "held_out_loss_by_quarter": self.held_out.map(|loss| loss.by_quarter),
                "skipped": self.skipped,
                "grid": shown(&self.grid),
                "checkpoint": shown(&self.checkpoint),
                "parameters": plan.parameters,
                "seconds": self.started.elapsed().as_secs_f64(),
            }));
        }
        let mut rows = Rows::default();
        rows.row("run folder", plan.dir.display()).row("step", format!("{step} of {}", plan.recipe.train.steps));
        let lines = [
            ("loss", self.loss.map(|loss| format!("{loss:.4}"))),
            ("held-out loss", self.held_out.map(|loss| format!("{:.4}", loss.mean))),
            ("skipped steps", (self.skipped > 0).then(|| self.skipped.to_string())),
            ("samples", shown(&self.grid)),
            ("checkpoint", shown(&self.checkpoint)),
        ];
        for (name, value) in lines {
            if let Some(value) = value {
                rows.row(name, value);
            }
        }
        output::result(rows.aligned())
    }
}
