//! Weights on the host: named `f32` tensors, sorted by name, and which of a run's weights they are. Not here: files, networks, and what the names
//! mean.

use std::collections::BTreeMap;
use std::collections::btree_map;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which weights of a training run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsKind {
    /// The moving average, which samples are drawn from.
    #[default]
    Ema,
    /// The network in training.
    Model,
}

impl WeightsKind {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Ema, Self::Model];

    /// Its name in model cards.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ema => "ema",
            Self::Model => "model",
        }
    }

    /// A short description for people.
    pub fn about(self) -> &'static str {
        match self {
            Self::Ema => "The moving average",
            Self::Model => "The network in training",
        }
    }
}

/// Tensors that do not have the required names, shapes or sizes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateDictError {
    #[error("a tensor of shape {shape:?} needs {expected} values, got {got}")]
    ValueCount { shape: Vec<usize>, expected: usize, got: usize },
    #[error("tensor `{name}` (shape {expected:?}) is missing")]
    Missing { name: String, expected: Vec<usize> },
    #[error("tensor `{name}` must have shape {expected:?}, got {got:?}")]
    Shape { name: String, expected: Vec<usize>, got: Vec<usize> },
}

/// A tensor on the host: `values` in row-major order, as many as the product of `shape` (1 for a scalar, shape `[]`).
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A tensor in borrowed memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    pub shape: &'a [usize],
    pub values: &'a [f32],
}

impl TensorView<'_> {
    /// Checks that shape and values agree, which public fields do not guarantee.
    pub(crate) fn check(&self) -> Result<(), StateDictError> {
        let expected = element_count(self.shape).unwrap_or(usize::MAX);
        if expected == self.values.len() {
            return Ok(());
        }
        Err(StateDictError::ValueCount { shape: self.shape.to_vec(), expected, got: self.values.len() })
    }
}

impl HostTensor {
    /// A tensor of these values.
    ///
    /// # Errors
    /// `values` does not fill `shape`.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Result<Self, StateDictError> {
        let tensor = Self { shape: shape.into(), values };
        tensor.check()?;
        Ok(tensor)
    }

    /// The same values with another shape of the same size.
    pub fn reshaped(self, shape: impl Into<Vec<usize>>) -> Result<Self, StateDictError> {
        Self::new(shape, self.values)
    }

    /// The same tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { shape: &self.shape, values: &self.values }
    }

    fn check(&self) -> Result<(), StateDictError> {
        self.view().check()
    }
}

/// The number of values of a shape, unless it overflows.
fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))
}

/// Tensors by name, like PyTorch's `state_dict()`. Iterates in sorted order of names, so that files made of it are reproducible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    tensors: BTreeMap<String, HostTensor>,
}

impl StateDict {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor and returns the one that had this name before.
    pub fn insert(&mut self, name: impl Into<String>, tensor: HostTensor) -> Option<HostTensor> {
        self.tensors.insert(name.into(), tensor)
    }

    pub fn get(&self, name: &str) -> Option<&HostTensor> {
        self.tensors.get(name)
    }

    pub fn remove(&mut self, name: &str) -> Option<HostTensor> {
        self.tensors.remove(name)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor with this name and shape. Errors state what was expected and what was found.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&HostTensor, StateDictError> {
        let Some(tensor) = self.get(name) else {
            return Err(StateDictError::Missing { name: name.to_string(), expected: shape.to_vec() });
        };
        if tensor.shape != shape {
            return Err(StateDictError::Shape {
                name: name.to_string(),
                expected: shape.to_vec(),
                got: tensor.shape.clone(),
            });
        }
        Ok(tensor)
    }

    /// The tensors whose names start with `prefix`, without the prefix. Include the dot: `"model."`.
    pub fn strip_prefix(&self, prefix: &str) -> Self {
        self.iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor.clone())))
            .collect()
    }

    /// All tensors, their names prefixed.
    pub fn with_prefix(self, prefix: &str) -> Self {
        self.tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
    }

    /// Adds all tensors of `other`, which replace tensors of the same names.
    pub fn merge(&mut self, other: Self) {
        self.tensors.extend(other.tensors);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &HostTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Number of values in all tensors together.
    pub fn value_count(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.values.len()).sum()
    }

    /// Names of the tensors that hold a NaN or an infinity.
    pub fn non_finite(&self) -> Vec<&str> {
        self.iter().filter(|(_, tensor)| tensor.values.iter().any(|x| !x.is_finite())).map(|(name, _)| name).collect()
    }
}

impl FromIterator<(String, HostTensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, HostTensor)>>(tensors: I) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }
}

impl IntoIterator for StateDict {
    type Item = (String, HostTensor);
    type IntoIter = btree_map::IntoIter<String, HostTensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], value: f32) -> HostTensor {
        HostTensor::new(shape, vec![value; shape.iter().product()]).unwrap()
    }

    #[test]
    fn require_names_expected_and_got() {
        let state: StateDict = [("a.weight".to_string(), tensor(&[2, 3], 0.0))].into_iter().collect();
        assert!(state.require("a.weight", &[2, 3]).is_ok());
        let wrong = state.require("a.weight", &[3, 2]).unwrap_err().to_string();
        assert_eq!(wrong, "tensor `a.weight` must have shape [3, 2], got [2, 3]");
        let missing = state.require("a.bias", &[3]).unwrap_err().to_string();
        assert_eq!(missing, "tensor `a.bias` (shape [3]) is missing");
    }

    #[test]
    fn prefixes_come_off_and_go_on() {
        let state: StateDict = [("model.a".to_string(), tensor(&[1], 1.0)), ("betas".to_string(), tensor(&[2], 2.0))]
            .into_iter()
            .collect();
        let inner = state.strip_prefix("model.");
        assert_eq!(inner.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!(inner.with_prefix("model.").names().collect::<Vec<_>>(), ["model.a"]);
    }

    #[test]
    fn non_finite_tensors_are_named() {
        let mut state = StateDict::new();
        state.insert("good", tensor(&[2], 1.0));
        state.insert("nan", tensor(&[], f32::NAN));
        state.insert("inf", tensor(&[3], f32::NEG_INFINITY));
        assert_eq!(state.non_finite(), ["inf", "nan"]);
        assert_eq!(state.value_count(), 6);
    }

    #[test]
    fn values_must_fill_the_shape() {
        assert!(HostTensor::new([2, 2], vec![0.0; 3]).unwrap_err().to_string().contains("needs 4 values, got 3"));
        assert!(HostTensor::new([usize::MAX, 2], vec![]).is_err());
        assert!(tensor(&[2, 3], 0.0).reshaped([1, 6, 1]).is_ok());
        assert!(tensor(&[2, 3], 0.0).reshaped([5]).is_err());
    }
}
