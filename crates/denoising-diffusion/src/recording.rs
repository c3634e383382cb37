//! Work that is recorded on a device once and then replayed: what CUDA and ROCm call a graph. The host needs one launch instead of hundreds, and
//! launches are what takes the time when a small network runs on a fast GPU.
//!
//! A recording reads and writes the memory that it was made with, so whatever it reads must stay in place: inputs are copied to a fixed place. A
//! recording is only used if it gave, for two inputs, the same numbers as launches, to the bit.
//!
//! Not here: what is recorded (the passes of a training step in `train`, a network's in `models`).

use burn::backend::{Backend, Dispatch};
use burn::tensor::{Device, Int, Tensor};

use crate::device::is_cpu;
use crate::nn::Vectors;
use crate::nn::ops::DropoutKey;

/// How far the recording of some work has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordingState {
    /// The work has been launched so far: it is not to be recorded, or not yet.
    NotTried,
    Recorded,
    /// The work will always be launched, for this reason.
    Refused(String),
}

/// The inputs of recorded work, in memory of their own.
pub trait Place {
    /// The same values in memory that nobody else holds.
    fn in_own_memory(&self) -> Self;

    /// Whether both have the same tensors, of the same shapes.
    fn is_like(&self, other: &Self) -> bool;

    /// Takes the values of `other`, which must be [like](Self::is_like) it; all tensors stay where they are in memory if nobody else holds them.
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

/// Implements [`Place`] for a type that has exactly these fields.
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

/// What is added to inputs to try a recording with others.
const OFFSET: f64 = 0.37;

/// Other values in every place, for the input that a recording is tried with beside the real one.
pub fn other_values<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone() + OFFSET
}

/// Another class of each example, whatever the number of classes: 0 becomes 1, which is a class or stands for none, and others the one below.
pub fn other_classes(classes: &Tensor<1, Int>) -> Tensor<1, Int> {
    (classes.clone() - 1).abs()
}

/// Other vectors. What says whether they are given becomes a number in between or beyond, so that vectors that were not given count as well.
pub fn other_vectors(vectors: &Vectors) -> Vectors {
    Vectors { values: other_values(&vectors.values), given: other_values(&vectors.given) }
}

/// Why nothing can be recorded on this device, if that is known beforehand.
pub fn why_not_on(device: &Device) -> Option<&'static str> {
    match is_cpu(device) {
        true => Some("only GPUs can record"),
        false if cfg!(feature = "fusion") => Some("the program fuses operations (feature `fusion`)"),
        false => None,
    }
}

/// Recorded work and the memory that it uses.
pub struct Recorded<I, O> {
    input: I,
    output: O,
    replay: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl<I: Place, O> Recorded<I, O> {
    /// Records `work`, which may use nothing but tensors on the device. The recording is tried with `inputs`, which must be like each other and differ
    /// in all of their tensors: one that they share might be in the recording as it was, and nobody would see it;
    /// `numbers` reads an output, for the comparison with launches.
    ///
    /// # Errors
    /// The device cannot record this, or the recording gives other numbers; the reason in words.
    ///
    /// # Safety
    /// Whatever `work` reads besides its input must stay where it is in memory for as long as this is [run](Self::run).
    pub unsafe fn new(
        device: &Device,
        inputs: [&I; 2],
        work: impl Fn(&I) -> O,
        numbers: impl Fn(&O) -> Vec<f64>,
    ) -> Result<Self, String> {
        let dispatch = device.clone().inner().as_dispatch().clone();
        let mut place = inputs[0].in_own_memory();
        // Launches from here on leave behind the memory that the recording needs; it cannot get any other.
        Dispatch::graph_prepare(&dispatch).map_err(|error| innermost(&error))?;
        let expected = inputs.map(|input| {
            place.take_over(input);
            numbers(&work(&place))
        });
        if let Err(error) = Dispatch::graph_start_capture(&dispatch) {
            // Undoes the preparation.
            let _ = Dispatch::graph_stop_capture(&dispatch);
            return Err(innermost(&error));
        }
        let output = work(&place);
        let graph = Dispatch::graph_stop_capture(&dispatch).map_err(|error| innermost(&error))?;
        let replay = move || {
            // SAFETY: the recording's memory is alive: `Recorded` owns input and output, the device keeps the pages of temporaries for it, and the
            // caller of `new` has promised the rest. One queue takes the work of all threads, in order.
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

    /// An input like those that this recording takes.
    pub fn input(&self) -> &I {
        &self.input
    }

    /// The output for an input, which must be like those that the recording was made with. The next call overwrites it.
    ///
    /// # Errors
    /// The device cannot replay the recording; the reason in words.
    pub fn run(&mut self, input: &I) -> Result<&O, String> {
        self.input.take_over(input);
        (self.replay)()?;
        Ok(&self.output)
    }
}

/// The innermost cause, as one line: CubeCL nests its errors deeply.
fn innermost(error: &impl std::fmt::Display) -> String {
    let words = error.to_string();
    let cause = words.rsplit("Caused by:").next().unwrap_or(&words);
    cause.trim().lines().next().unwrap_or_default().to_string()
}
