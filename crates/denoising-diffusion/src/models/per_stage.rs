//! Options that may differ from stage to stage. Not here: which options these are.

use serde::{Deserialize, Serialize};

/// One value for all stages, or one value per stage (outermost first).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerStage<T> {
    All(T),
    Each(Vec<T>),
}

impl<T: Clone> PerStage<T> {
    /// The values of `stages` stages, or `None` if a list of another length was given.
    pub fn resolve(&self, stages: usize) -> Option<Vec<T>> {
        match self {
            PerStage::All(value) => Some(vec![value.clone(); stages]),
            PerStage::Each(values) => (values.len() == stages).then(|| values.clone()),
        }
    }

    /// Number of values.
    pub(crate) fn given(&self) -> usize {
        match self {
            PerStage::All(_) => 1,
            PerStage::Each(values) => values.len(),
        }
    }
}
