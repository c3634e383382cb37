//! What a run has to know of its own log. It is taken from the file once, when the run starts or resumes, and then from each record that is appended:
//! reading a long log again at every checkpoint would take longer and longer. Nothing is known that is not in the file, which stays the authority.

use serde_json::Value;

use crate::report::Series;
use crate::report::log::{self, EvaluationRecord, Record};

/// Of the records of a log, what decides about the next steps, and the points of the curves.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Logged {
    /// The step of the last record, and the kinds of all records of that step.
    last: (u64, Vec<String>),
    evaluations: Vec<EvaluationRecord>,
    losses: Vec<(f64, f64)>,
    held_out: Vec<(f64, f64)>,
}

impl Logged {
    pub(super) fn of(records: &[Value]) -> Self {
        let mut logged = Self::default();
        records.iter().for_each(|record| logged.add(record));
        logged
    }

    /// Takes note of the record that follows.
    pub(super) fn add(&mut self, record: &Value) {
        let (step, kind) = (record["step"].as_u64().unwrap_or_default(), record["kind"].as_str().unwrap_or_default());
        if step != self.last.0 {
            self.last = (step, Vec::new());
        }
        self.last.1.push(kind.to_string());
        let alone = std::slice::from_ref(record);
        self.losses.extend(log::points(alone, "step", "loss"));
        self.held_out.extend(log::points(alone, "held_out", "held_out_loss"));
        if kind == "evaluation"
            && let Ok(Record::Evaluation(evaluation)) = serde_json::from_value(record.clone())
        {
            self.evaluations.push(evaluation);
        }
    }

    /// Whether there is a record of this kind at a step, than which none in the log is later.
    pub(super) fn has(&self, kind: &str, step: u64) -> bool {
        self.last.0 == step && self.last.1.iter().any(|there| there == kind)
    }

    /// All evaluations so far, ordered by step.
    pub(super) fn evaluations(&self) -> &[EvaluationRecord] {
        &self.evaluations
    }

    /// The loss curves, without those that have nothing to show yet.
    pub(super) fn curves(&self) -> Vec<Series> {
        let curves = [("training loss", &self.losses), ("held-out loss", &self.held_out)];
        let has_points = |points: &[(f64, f64)]| points.iter().any(|(_, y)| y.is_finite() && *y > 0.0);
        let series = |(name, points): (&str, &Vec<_>)| Series { name: name.to_string(), points: points.clone() };
        curves.into_iter().filter(|(_, points)| has_points(points)).map(series).collect()
    }
}
