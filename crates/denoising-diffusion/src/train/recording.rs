//! The passes of a training step recorded on the device, and asked for as one thing from then on: what CUDA and ROCm call a graph. The host then asks
//! for a step in a few launches instead of hundreds, which is what the time of a step of a small network is made of on a fast GPU.
//!
//! A recording reads and writes the memory that it was made with, so everything that it reads lies where it lay: batches are copied to one place, and
//! weights are changed in place. It is only used if it gave, for two batches, the losses and norms that launches give, to the bit.

use std::any::Any;

use burn::backend::{Backend, Dispatch};
use burn::tensor::Device;

use super::passes::Passes;
use super::sweep::{self, Found};
use crate::diffusion::Prepared;

/// Steps that are launched before: by then the device's kernels are tuned, and memory lies where it stays.
const WARM_UP: u32 = 3;

/// Where the recording of a step's passes stands.
pub enum Recording {
    /// So many steps were launched.
    Launched(u32),
    /// A [`Recorded`] of the batches' rank.
    Recorded(Box<dyn AnyRecorded>),
    /// It is not to be, and why.
    Refused(String),
}

pub trait AnyRecorded: Any + Send + Sync {}

impl<const D: usize> AnyRecorded for Recorded<D> {}

impl Default for Recording {
    fn default() -> Self {
        Self::Launched(0)
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Launched(steps) => f.debug_tuple("Launched").field(steps).finish(),
            Self::Recorded(_) => f.write_str("Recorded"),
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

impl Recording {
    /// The passes over `batch`, if they are recorded; else, once it is time, what `record` makes. `None` if they are to be launched.
    pub fn run<const D: usize>(
        &mut self,
        batch: &Prepared<D>,
        record: impl FnOnce() -> Result<Recorded<D>, String>,
    ) -> Option<Passes> {
        if let Self::Recorded(recorded) = self {
            let any: &mut dyn Any = &mut **recorded;
            match any.downcast_mut::<Recorded<D>>().filter(|recorded| recorded.is_current()) {
                // A batch of another kind is launched; those after it need not be.
                Some(recorded) if !recorded.batch.is_like(batch) => return None,
                Some(recorded) => match recorded.run(batch) {
                    Ok(passes) => return Some(passes),
                    Err(why) => *self = Self::Refused(why),
                },
                None => *self = Self::Launched(WARM_UP - 1),
            }
        }
        let Self::Launched(steps) = self else { return None };
        *steps += 1;
        if *steps <= WARM_UP {
            return None;
        }
        match record() {
            Ok(recorded) => {
                let passes = recorded.passes.clone();
                *self = Self::Recorded(Box::new(recorded));
                Some(passes)
            }
            Err(why) => {
                *self = Self::Refused(why);
                None
            }
        }
    }
}

/// Recorded passes and the memory that they work in.
pub struct Recorded<const D: usize> {
    /// What they read beside the weights.
    batch: Prepared<D>,
    /// What they write.
    passes: Passes,
    replay: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// [`sweep::moves`] when they were recorded.
    moves: u64,
}

impl<const D: usize> Recorded<D> {
    /// Records `passes`, which the device must be able to do from tensors alone, and leaves what they give for `batch`. `other` is a batch to try the
    /// recording with.
    pub fn new(
        device: &Device,
        batch: &Prepared<D>,
        other: &Prepared<D>,
        passes: impl Fn(&Prepared<D>) -> Passes,
    ) -> Result<Self, String> {
        let device = device.clone().inner();
        let dispatch = device.as_dispatch().clone();
        let mut place = batch.in_own_memory();
        // What is launched from here on leaves behind the memory that the recording takes, which can have no other.
        Dispatch::graph_prepare(&dispatch).map_err(|error| innermost(&error))?;
        let mut expected = Vec::new();
        for batch in [other, batch] {
            place.take_over(batch);
            expected.push(found(&passes(&place)));
        }
        if let Err(error) = Dispatch::graph_start_capture(&dispatch) {
            // Takes back the preparation.
            let _ = Dispatch::graph_stop_capture(&dispatch);
            return Err(innermost(&error));
        }
        let recorded = passes(&place);
        let graph = Dispatch::graph_stop_capture(&dispatch).map_err(|error| innermost(&error))?;
        let replay = move || {
            // SAFETY: the recording's memory is alive: `Recorded` owns what it writes and what it reads of batches, temporaries lie on pages that the
            // device keeps for it, and weights lie where they lay as long as `is_current`. One queue takes the work of all threads, in order.
            unsafe { Dispatch::graph_replay(&dispatch, &graph) }.map_err(|error| innermost(&error))
        };
        let moves = sweep::moves();
        let mut recorded = Self { batch: place, passes: recorded, replay: Box::new(replay), moves };
        for (batch, expected) in [other, batch].into_iter().zip(expected) {
            let got = found(&recorded.run(batch)?);
            if bits(&got) != bits(&expected) {
                return Err(format!("replayed, passes give {}; launched, {}", in_words(&got), in_words(&expected)));
            }
        }
        Ok(recorded)
    }

    /// Whether weights lie where the recording reads them.
    fn is_current(&self) -> bool {
        self.moves == sweep::moves()
    }

    /// The recorded passes over a batch that is like the recorded one.
    fn run(&mut self, batch: &Prepared<D>) -> Result<Passes, String> {
        self.batch.take_over(batch);
        (self.replay)()?;
        Ok(self.passes.clone())
    }
}

/// The cause that lies innermost, in a line: CubeCL's errors are of many.
fn innermost(error: &impl std::fmt::Display) -> String {
    let words = error.to_string();
    let cause = words.rsplit("Caused by:").next().unwrap_or(&words);
    cause.trim().lines().next().unwrap_or_default().to_string()
}

/// Of all that was found; NaN is like NaN.
fn bits(found: &Found) -> Vec<u64> {
    found.losses.iter().chain(&found.squared_norms).chain(&found.grad_scale).map(|value| value.to_bits()).collect()
}

fn in_words(found: &Found) -> String {
    let (losses, norm) = (&found.losses, found.squared_norms.iter().sum::<f64>().sqrt());
    format!("losses {losses:?} and gradients of norm {norm:?}")
}

fn found(passes: &Passes) -> Found {
    passes.question.read().wait_for_all()
}
