//! Work recorded on a device, and asked for as one thing from then on: what CUDA and ROCm call a graph. The host then asks for it in one launch instead
//! of hundreds, which is what the time of a small network is made of on a fast GPU.
//!
//! A recording reads and writes the memory that it was made with, so everything that it reads lies where it lay: inputs are copied to one place. It is
//! only used if it gave, for two inputs, the numbers that launches give, to the bit.
//!
//! Not here: what is recorded (a training step's passes in `train`, a network's in `models`).

use burn::backend::{Backend, Dispatch};
use burn::tensor::{Device, Int, Tensor};

use crate::device::is_cpu;
use crate::nn::Vectors;
use crate::nn::ops::DropoutKey;

/// Where recording some work stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordingState {
    /// It was launched so far: it is not to be recorded, or its time has not come.
    NotTried,
    Recorded,
    /// It is launched for good, and why.
    Refused(String),
}

/// What recorded work reads, in a place of its own.
pub trait Place {
    /// The same values in memory that nobody else holds.
    fn in_own_memory(&self) -> Self;

    /// Whether both have the same tensors, of the same shapes.
    fn is_like(&self, other: &Self) -> bool;

    /// Becomes `other`, which is [like](Self::is_like) it; all tensors stay where they lie if nobody else holds them.
    fn take_over(&mut self, other: &Self);
}

fn taking_over<P: Place>(mut place: P, other: &P) -> P {
    place.take_over(other);
    place
}

impl<const D: usize> Place for Tensor<D> {
    fn in_own_memory(&self) -> Self {
        taking_over(self.zeros_like(), self)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.dims() == other.dims()
    }

    fn take_over(&mut self, other: &Self) {
        let all: [_; D] = other.dims().map(|size| 0..size);
        self.inplace(|own| own.slice_assign(all, other.clone()));
    }
}

impl Place for Tensor<1, Int> {
    fn in_own_memory(&self) -> Self {
        taking_over(self.zeros_like(), self)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.dims() == other.dims()
    }

    fn take_over(&mut self, other: &Self) {
        self.inplace(|own| own.slice_assign(0..other.dims()[0], other.clone()));
    }
}

/// A place of each of these fields, which are all that the type has.
macro_rules! place_of_fields {
    ($type:ident { $($field:ident),* }) => {
        impl $crate::recording::Place for $type {
            fn in_own_memory(&self) -> Self {
                Self { $($field: self.$field.in_own_memory()),* }
            }

            fn is_like(&self, other: &Self) -> bool {
                true $(&& self.$field.is_like(&other.$field))*
            }

            fn take_over(&mut self, other: &Self) {
                $(self.$field.take_over(&other.$field);)*
            }
        }
    };
}
pub(crate) use place_of_fields;

place_of_fields!(Vectors { values, given });

impl Place for DropoutKey {
    fn in_own_memory(&self) -> Self {
        match self {
            Self::Words(_) => self.clone(),
            Self::OnDevice(key) => Self::OnDevice(key.in_own_memory()),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Words(_), Self::Words(_)) | (Self::OnDevice(_), Self::OnDevice(_)))
    }

    fn take_over(&mut self, other: &Self) {
        match (self, other) {
            (Self::OnDevice(own), Self::OnDevice(other)) => own.take_over(other),
            (own, other) => *own = other.clone(),
        }
    }
}

impl<T: Place> Place for Option<T> {
    fn in_own_memory(&self) -> Self {
        self.as_ref().map(T::in_own_memory)
    }

    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Some(one), Some(other)) => one.is_like(other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }

    fn take_over(&mut self, other: &Self) {
        if let (Some(own), Some(other)) = (self, other) {
            own.take_over(other);
        }
    }
}

impl<T: Place> Place for Vec<T> {
    fn in_own_memory(&self) -> Self {
        self.iter().map(T::in_own_memory).collect()
    }

    fn is_like(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other).all(|(one, other)| one.is_like(other))
    }

    fn take_over(&mut self, other: &Self) {
        self.iter_mut().zip(other).for_each(|(own, other)| own.take_over(other));
    }
}

/// Why nothing is recorded on this device, if that is known beforehand.
pub fn why_not_on(device: &Device) -> Option<&'static str> {
    match is_cpu(device) {
        true => Some("only GPUs can record"),
        false if cfg!(feature = "fusion") => Some("the program fuses operations (feature `fusion`)"),
        false => None,
    }
}

/// Work that was recorded, and the memory that it works in.
pub struct Recorded<I, O> {
    input: I,
    output: O,
    replay: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl<I: Place, O> Recorded<I, O> {
    /// Records `work`, which the device must be able to do from tensors alone. `inputs`, which are like each other, are to try the recording with;
    /// `numbers` reads an output, for comparison.
    ///
    /// # Errors
    /// In words: the device does not record that, or what it recorded gives other numbers.
    ///
    /// # Safety
    /// As long as this is [run](Self::run), whatever `work` reads beside its input must lie where it lies.
    pub unsafe fn new(
        device: &Device,
        inputs: [&I; 2],
        work: impl Fn(&I) -> O,
        numbers: impl Fn(&O) -> Vec<f64>,
    ) -> Result<Self, String> {
        let dispatch = device.clone().inner().as_dispatch().clone();
        let mut place = inputs[0].in_own_memory();
        // What is launched from here on leaves behind the memory that the recording takes, which can have no other.
        Dispatch::graph_prepare(&dispatch).map_err(|error| innermost(&error))?;
        let expected = inputs.map(|input| {
            place.take_over(input);
            numbers(&work(&place))
        });
        if let Err(error) = Dispatch::graph_start_capture(&dispatch) {
            // Takes back the preparation.
            let _ = Dispatch::graph_stop_capture(&dispatch);
            return Err(innermost(&error));
        }
        let output = work(&place);
        let graph = Dispatch::graph_stop_capture(&dispatch).map_err(|error| innermost(&error))?;
        let replay = move || {
            // SAFETY: the recording's memory is alive: `Recorded` owns input and output, temporaries lie on pages that the device keeps for it, and
            // the caller of `new` has promised the rest. One queue takes the work of all threads, in order.
            unsafe { Dispatch::graph_replay(&dispatch, &graph) }.map_err(|error| innermost(&error))
        };
        let mut recorded = Self { input: place, output, replay: Box::new(replay) };
        for (input, expected) in inputs.into_iter().zip(expected) {
            let got = numbers(recorded.run(input)?);
            let same =
                |at: usize| got.get(at).map(|value| value.to_bits()) == expected.get(at).map(|value| value.to_bits());
            if let Some(at) = (0..got.len().max(expected.len())).find(|&at| !same(at)) {
                let in_words = |numbers: &[f64]| numbers.get(at).map_or("none".to_string(), f64::to_string);
                return Err(format!(
                    "the replay gives other numbers than ordinary launches ({} instead of {})",
                    in_words(&got),
                    in_words(&expected)
                ));
            }
        }
        Ok(recorded)
    }

    /// What it was made for inputs like.
    pub fn input(&self) -> &I {
        &self.input
    }

    /// The output for an input that is like those that it was made for. The next call overwrites it where it lies.
    ///
    /// # Errors
    /// In words.
    pub fn run(&mut self, input: &I) -> Result<&O, String> {
        self.input.take_over(input);
        (self.replay)()?;
        Ok(&self.output)
    }
}

/// The cause that lies innermost, in a line: CubeCL's errors are of many.
fn innermost(error: &impl std::fmt::Display) -> String {
    let words = error.to_string();
    let cause = words.rsplit("Caused by:").next().unwrap_or(&words);
    cause.trim().lines().next().unwrap_or_default().to_string()
}
