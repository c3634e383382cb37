//! Shared by the evaluating commands: a parser, which metrics can be measured, progress and Ctrl-C of the library's evaluations.

use std::ops::ControlFlow;

use denoising_diffusion::data::Dataset;
use denoising_diffusion::eval::config::EvaluateConfig;
use denoising_diffusion::eval::evaluate::{EvaluateError, Watch};
use denoising_diffusion::eval::metric::Metric;
use denoising_diffusion::eval::needs::{Facts, Unmeasurable, measurable};
use denoising_diffusion::eval::result::JudgedOn;
use denoising_diffusion::interop::InteropError;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;
use denoising_diffusion::train::StopSignal;

use crate::failure::{Failure, Result, chain};
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

    fn not_stored(&mut self, why: &InteropError) {
        let line = not_stored(why);
        match &mut self.progress {
            Some(progress) => progress.note(&line),
            None => note(line),
        }
    }
}

/// The warning for features that could not be stored.
pub fn not_stored(why: &InteropError) -> String {
    format!("warning: cannot store the features for later use: {}", chain(why))
}

/// The metrics that can be measured. Others are an error if they were requested by name, otherwise they are skipped with a note.
pub fn those_measurable(metrics: &[Metric], by_name: bool, facts: &Facts<'_>) -> Result<Vec<Metric>> {
    let (can, cannot) = measurable(metrics, facts);
    if let Some((metric, why)) = cannot.first().filter(|_| by_name || can.is_empty()) {
        let failure = Failure::usage(format!("{metric}: {why}"));
        return Err(match hint(why) {
            Some(hint) => failure.hint(hint),
            None => failure,
        });
    }
    // One line for each reason.
    for (i, (_, why)) in cannot.iter().enumerate() {
        if cannot[..i].iter().all(|(_, other)| other != why) {
            let of_it = cannot.iter().filter(|(_, other)| other == why);
            note(format!("skipping {}: {why}", listed(of_it.map(|(metric, _)| *metric))));
        }
    }
    Ok(can)
}

fn hint(why: &Unmeasurable) -> Option<&'static str> {
    let held_out = JudgedOn::HeldOut.images();
    match why {
        Unmeasurable::NoImages(_) => Some("for sequences and volumes, use swd, spectrum and neighbours"),
        Unmeasurable::NoSplit => Some("give a run folder whose data have not changed, and no DATA"),
        Unmeasurable::NoConditions(_) => Some("give a run folder and no DATA: the run's own data have conditions"),
        Unmeasurable::TooFew { what, .. } if *what == held_out => {
            Some("train with held-out images (--held-out), or leave this metric out of --metrics")
        }
        _ => None,
    }
}

/// `fid, kid and is`.
pub fn listed(metrics: impl Iterator<Item = Metric>) -> String {
    let names: Vec<&str> = metrics.map(Metric::name).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// The recipe, with its evaluations limited to metrics that can be measured. The metrics that a recipe measures by default do not count as requested
/// by name.
pub fn with_measurable(recipe: Recipe, dataset: &Dataset, held_out: usize) -> Result<Recipe> {
    let config = &recipe.evaluate;
    if config.evaluate_every.is_none() {
        return Ok(recipe);
    }
    let shape = dataset.shape();
    let facts = Facts {
        layout: dataset.layout(),
        shape: [shape.channels, shape.height, shape.width],
        samples: config.evaluate_samples,
        real: config.evaluate_real.map_or(dataset.len(), |n| n.min(dataset.len())),
        held_out: Some(held_out),
        judged: (JudgedOn::HeldOut, held_out),
        judged_lack_conditions: false,
        diffusion: &recipe.diffusion,
    };
    let by_name = config.metrics != EvaluateConfig::default().metrics || config.best_metric.is_some();
    let metrics = those_measurable(&config.metrics, by_name, &facts)?;
    Ok(Recipe { evaluate: EvaluateConfig { metrics, ..config.clone() }, ..recipe })
}

/// Turns an interruption into `Failure::interrupted`: Ctrl-C is not reported as an error.
pub fn or_interrupted(error: EvaluateError) -> Failure {
    match error {
        EvaluateError::Interrupted => Failure::interrupted(),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_end_in_and() {
        for (count, list) in [(0, ""), (1, "fid"), (2, "fid and kid"), (4, "fid, kid, is and prdc")] {
            assert_eq!(listed(Metric::ALL.into_iter().take(count)), list);
        }
    }
}
