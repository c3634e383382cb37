//! Which checkpoint is the best. It is determined from the evaluations in the log at every save and every resume, so that a process that dies
//! between writing a checkpoint and marking it leaves no wrong mark for long. Not here: measuring, and what a mark is.

use super::evaluation::EvaluateSetup;
use super::run::{Run, RunError};
use crate::eval::metric::{Metric, better};
use crate::eval::result::Better;
use crate::models::Network;
use crate::report::log::EvaluationRecord;

impl<M: Network> Run<M> {
    /// The number by which the evaluation of `step` is the best among itself and all evaluations with a checkpoint; `step` need not have one yet.
    pub(super) fn best_by<'a>(&self, setup: &'a EvaluateSetup, step: u64) -> Result<Option<&'a str>, RunError> {
        let Some(name) = setup.config.best() else { return Ok(None) };
        let known = self.checkpoints.steps()?;
        let best = best_step(name, self.logged.evaluations(), |other| other == step || known.contains(&other));
        Ok((best == Some(step)).then_some(name))
    }

    /// Marks the best of the existing checkpoints. If no number is configured that decides, none is marked; until that number has been measured, an
    /// existing mark stays.
    pub(super) fn mark_best(&self) -> Result<(), RunError> {
        let Some(setup) = &self.setup.evaluate else { return Ok(()) };
        let Some(name) = setup.config.best() else { return Ok(self.checkpoints.mark_best(None)?) };
        let known = self.checkpoints.steps()?;
        match best_step(name, self.logged.evaluations(), |step| known.contains(&step)) {
            Some(step) => Ok(self.checkpoints.mark_best(Some(step))?),
            None => Ok(()),
        }
    }
}

/// The step of the best evaluation by the number `name` among those whose checkpoint is `known`; of equals, the first. A non-finite number is never
/// the best. Numbers that depend on samples are compared only at equal sample count, that of the last evaluation.
fn best_step(name: &str, evaluations: &[EvaluationRecord], known: impl Fn(u64) -> bool) -> Option<u64> {
    let better = better(name);
    if better == Better::Neither {
        return None;
    }
    let samples = evaluations.iter().rev().find(|evaluation| evaluation.values.contains_key(name))?.samples;
    let any_number = Metric::with_number(name).is_some_and(|metric| !metric.needs_samples());
    evaluations
        .iter()
        .filter(|evaluation| known(evaluation.step) && (any_number || evaluation.samples == samples))
        .filter_map(|evaluation| Some((evaluation.step, *evaluation.values.get(name)?)))
        .filter(|(_, value)| value.is_finite())
        .map(|(step, value)| (step, if better == Better::Higher { -value } else { value }))
        .min_by(|(_, left), (_, right)| left.total_cmp(right))
        .map(|(step, _)| step)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn record(step: u64, samples: u64, name: &str, value: f64) -> EvaluationRecord {
        EvaluationRecord {
            step,
            samples,
            asked: samples,
            budget_s: None,
            values: BTreeMap::from([(name.to_string(), value)]),
            standard_errors: BTreeMap::new(),
            seconds: 0.0,
        }
    }

    fn records(name: &str, values: &[f64]) -> Vec<EvaluationRecord> {
        values.iter().zip(1..).map(|(&value, step)| record(step, 8, name, value)).collect()
    }

    const ALL: fn(u64) -> bool = |_| true;

    #[test]
    fn the_best_is_the_first_of_equals_and_finite() {
        for (name, values, best) in [
            ("fid", &[3.0, 2.0, 2.0, 2.5][..], Some(2)),
            ("is", &[3.0, 2.0, 3.0, 2.5], Some(1)),
            ("fid", &[f64::NAN, 9.0, f64::NEG_INFINITY], Some(2)),
            ("precision", &[f64::NAN, f64::INFINITY], None),
            ("swd", &[], None),
            ("neighbours", &[-9.0, 0.0], None),
        ] {
            assert_eq!(best_step(name, &records(name, values), ALL), best, "{name} {values:?}");
        }
        assert_eq!(best_step("kid", &records("fid", &[1.0]), ALL), None, "not measured");
    }

    #[test]
    fn only_checkpoints_that_are_there_count() {
        let evaluations = records("fid", &[3.0, 1.0, 2.0]);
        assert_eq!(best_step("fid", &evaluations, |step| step != 2), Some(3));
        assert_eq!(best_step("fid", &evaluations, |_| false), None);
    }

    #[test]
    fn samples_compare_with_as_many_only() {
        let mut evaluations = records("fid", &[1.0, 3.0]);
        evaluations.push(record(3, 16, "fid", 2.0));
        evaluations.push(record(4, 32, "loss", 0.5));
        assert_eq!(
            best_step("fid", &evaluations, ALL),
            Some(3),
            "the last number of samples with which fid was measured"
        );
        let losses = [record(1, 8, "loss", 1.0), record(2, 16, "loss", 2.0)];
        assert_eq!(best_step("loss", &losses, ALL), Some(1), "the loss rests on no samples");
    }
}
