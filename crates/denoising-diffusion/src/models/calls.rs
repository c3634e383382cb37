//! Calls of a network in eval behaviour for sampling: launched, or recorded once and replayed.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;

use super::{Network, NetworkInput};
use crate::nn::Eval;
use crate::nn::params::host_values;
use crate::recording::{
    Place, Recorded, RecordingState, other_classes, other_values, other_vectors, place_of_fields, why_not_on,
};

/// Number of calls with one kind of input that are launched before recording: by then the device's kernels are tuned.
const WARM_UP: u32 = 2;

/// Maximum number of kinds of inputs that are recorded: each recording has its own memory.
const MOST_KINDS: usize = 8;

/// How a network is called: launched each time, or replayed from recordings.
pub struct Calls<'a, M> {
    model: &'a Eval<M>,
    recordings: Option<Arc<Mutex<Recordings>>>,
}

impl<M> Clone for Calls<'_, M> {
    fn clone(&self) -> Self {
        Self { model: self.model, recordings: self.recordings.clone() }
    }
}

/// Calls that are always launched.
impl<'a, M: Network> From<&'a Eval<M>> for Calls<'a, M> {
    fn from(model: &'a Eval<M>) -> Self {
        Self::new(model, false)
    }
}

impl<'a, M: Network> Calls<'a, M> {
    /// With `device_graph`, calls are recorded for each kind of input, if the device supports it; results are bit-identical to launched calls.
    /// Without it, and if gradients are needed, they are launched.
    pub fn new(model: &'a Eval<M>, device_graph: bool) -> Self {
        Self { model, recordings: device_graph.then(Arc::default) }
    }

    /// The same network, always launched.
    pub fn launched(&self) -> Self {
        Self { model: self.model, recordings: None }
    }

    /// The network.
    pub fn network(&self) -> &'a Eval<M> {
        self.model
    }

    /// Whether calls are recorded, or why they cannot be.
    pub fn recording_state(&self) -> RecordingState {
        let Some(recordings) = &self.recordings else { return RecordingState::NotTried };
        let recordings = recordings.lock().unwrap_or_else(PoisonError::into_inner);
        match &recordings.refused {
            Some(why) => RecordingState::Refused(why.clone()),
            None if recordings.kinds.iter().any(|kind| matches!(kind, Kind::Recorded(_))) => RecordingState::Recorded,
            None => RecordingState::NotTried,
        }
    }

    /// [`Network::predict`], replayed if a recording exists.
    pub fn predict(&self, input: NetworkInput) -> Tensor<4> {
        let Some(recordings) = &self.recordings else { return self.model.predict(input) };
        // The lock is held while a recording is made or replayed, which is work of GPUs, but not while the network is launched: a thread that waits
        // for the pool there may be given other work that calls the network.
        let recorded = recordings.lock().unwrap_or_else(PoisonError::into_inner).run(self.model, &input);
        recorded.unwrap_or_else(|| self.model.predict(input))
    }
}

/// The recordings of a network.
#[derive(Default)]
struct Recordings {
    /// One per kind of input.
    kinds: Vec<Kind>,
    /// Why nothing can be recorded.
    refused: Option<String>,
}

#[allow(clippy::large_enum_variant, reason = "a few, in one list")]
enum Kind {
    /// Not recorded yet: an example of the inputs, and the number of launched calls with such inputs.
    Launched(NetworkInput, u32),
    Recorded(Recorded<NetworkInput, Tensor<4>>),
}

impl Recordings {
    /// The network's output, in memory of its own; `None` if the network must be launched.
    fn run<M: Network>(&mut self, model: &Eval<M>, input: &NetworkInput) -> Option<Tensor<4>> {
        if self.refused.is_none() {
            self.refused = why_not_on(&input.x.device()).map(str::to_string);
        }
        // A replay cannot record gradients.
        if self.refused.is_some() || input.x.is_autodiff() {
            return None;
        }
        let Some(kind) = self.kinds.iter_mut().find(|kind| kind.input().is_like(input)) else {
            if self.kinds.len() < MOST_KINDS {
                self.kinds.push(Kind::Launched(input.clone(), 1));
            }
            return None;
        };
        match kind.run(model, input) {
            Ok(output) => output,
            Err(why) => {
                self.refused = Some(why);
                self.kinds.clear();
                None
            }
        }
    }
}

impl Kind {
    fn input(&self) -> &NetworkInput {
        match self {
            Self::Launched(input, _) => input,
            Self::Recorded(recorded) => recorded.input(),
        }
    }

    fn run<M: Network>(&mut self, model: &Eval<M>, input: &NetworkInput) -> Result<Option<Tensor<4>>, String> {
        if let Self::Launched(_, calls) = self {
            *calls += 1;
            if *calls <= WARM_UP {
                return Ok(None);
            }
            *self = Self::Recorded(record(model, input)?);
        }
        match self {
            // A copy, in one launch.
            Self::Recorded(recorded) => Ok(Some(recorded.run(input)?.clone() * 1.0)),
            Self::Launched(..) => Ok(None),
        }
    }
}

fn record<M: Network>(model: &Eval<M>, input: &NetworkInput) -> Result<Recorded<NetworkInput, Tensor<4>>, String> {
    let other = other_input(input);
    let work = |input: &NetworkInput| model.predict(input.clone());
    let numbers = |output: &Tensor<4>| host_values(output.clone()).into_iter().map(f64::from).collect();
    // SAFETY: the weights of an `Eval` never change, and `Calls`, the only owner of its recordings, borrows it.
    unsafe { Recorded::new(&input.x.device(), [&other, input], work, numbers) }
}

/// An input like this one, all of whose tensors have other values.
fn other_input(input: &NetworkInput) -> NetworkInput {
    let NetworkInput { x, time, x_self_cond, classes, condition, vectors, augment_labels } = input;
    NetworkInput {
        x: other_values(x),
        time: other_values(time),
        x_self_cond: x_self_cond.as_ref().map(other_values),
        classes: classes.as_ref().map(other_classes),
        condition: condition.as_ref().map(other_values),
        vectors: vectors.as_ref().map(other_vectors),
        augment_labels: augment_labels.as_ref().map(other_values),
    }
}

place_of_fields!(NetworkInput { x, time, x_self_cond, classes, condition, vectors, augment_labels });

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::nn::Vectors;

    /// A recording that had one of its inputs in it as it was would give the same for both.
    #[test]
    fn recordings_are_tried_with_inputs_that_differ_in_everything() {
        let device = Device::flex();
        let data = |value: f64| Tensor::full([4, 1, 2, 2], value, &device);
        let classes = Tensor::from_data(TensorData::new(vec![0_i64, 1, 2, 3], [4]), &device);
        let input = NetworkInput {
            x: data(-0.37),
            time: Tensor::from_floats([0.0, 1.0, -3.0, 999.0], &device),
            x_self_cond: Some(data(0.0)),
            classes: Some(classes),
            condition: Some(data(0.5)),
            vectors: Some(Vectors::of_rows(vec![0.0; 8], 2, |i| i < 2, &device)),
            augment_labels: Some(Tensor::zeros([4, 9], &device)),
        };
        let other = other_input(&input);
        assert!(input.is_like(&other));
        let tensors = |input: &NetworkInput| {
            let vectors = input.vectors.clone().unwrap();
            let classes = input.classes.clone().unwrap().float();
            let data = [input.x.clone(), input.x_self_cond.clone().unwrap(), input.condition.clone().unwrap()];
            let data = data.map(host_values).into_iter();
            let rest = [classes, input.time.clone()].map(host_values);
            let rows = [vectors.values, vectors.given, input.augment_labels.clone().unwrap()].map(host_values);
            data.chain(rest).chain(rows).collect::<Vec<_>>()
        };
        let (values, others) = (tensors(&input), tensors(&other));
        for (at, (values, others)) in values.iter().zip(&others).enumerate() {
            assert!(values.iter().zip(others).all(|(value, other)| value != other), "{at}: {values:?} {others:?}");
        }
        assert_eq!(others[3], [1.0, 0.0, 1.0, 2.0], "classes that there are");
    }
}
