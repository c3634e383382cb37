//! The passes of a training step, recorded after warm-up. Weights are changed in place, so that a recording keeps reading the network's weights.

use burn::tensor::Device;

use super::passes::{Batch, Passes};
use super::sweep;
use crate::recording::{Place, Recorded};

/// Number of steps launched before recording: by then the device's kernels are tuned, and memory addresses are stable.
const WARM_UP: u32 = 3;

/// State of the recording of a step's passes.
pub enum Recording {
    /// Number of steps launched so far.
    Launched(u32),
    Recorded(Box<RecordedPasses>),
    /// Not possible, and why.
    Refused(String),
}

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
    /// Whether the passes of the next step must be launched as warm-up; counts the step if so.
    pub fn warms_up(&mut self) -> bool {
        match self {
            Self::Launched(steps) if *steps < WARM_UP => {
                *steps += 1;
                true
            }
            _ => false,
        }
    }

    /// The passes over `batches`, if they are recorded or can be recorded now with `record`. `None` if they must be launched.
    pub fn run(
        &mut self,
        batches: &Vec<Batch>,
        record: impl FnOnce() -> Result<RecordedPasses, String>,
    ) -> Option<Passes> {
        let ran = match self {
            Self::Refused(_) => return None,
            Self::Launched(_) => record().and_then(|mut recorded| {
                let passes = recorded.run(batches)?;
                *self = Self::Recorded(Box::new(recorded));
                Ok(passes)
            }),
            Self::Recorded(recorded) => {
                if !recorded.is_current() {
                    *self = Self::Launched(WARM_UP);
                    return None;
                }
                // Batches of a different kind are launched; later ones may be replayed again.
                if !recorded.0.input().is_like(batches) {
                    return None;
                }
                recorded.run(batches)
            }
        };
        ran.map_err(|why| *self = Self::Refused(why)).ok()
    }
}

/// Recorded passes, and the value of [`sweep::moves`] when they were recorded.
pub struct RecordedPasses(Recorded<Vec<Batch>, Passes>, u64);

impl RecordedPasses {
    /// Records `passes`; `inputs` are used to test the recording.
    pub fn new(
        device: &Device,
        inputs: [&Vec<Batch>; 2],
        passes: impl Fn(&Vec<Batch>) -> Passes,
    ) -> Result<Self, String> {
        let numbers = |passes: &Passes| {
            let found = passes.question.read().wait();
            found.losses.iter().chain(&found.squared_norms).chain(&found.grad_scale).copied().collect()
        };
        // SAFETY: apart from the batches, passes read only weights, whose addresses are unchanged as long as `is_current`.
        let recorded = unsafe { Recorded::new(device, inputs, passes, numbers) }?;
        Ok(Self(recorded, sweep::moves()))
    }

    /// Whether weights are still where the recording reads them.
    fn is_current(&self) -> bool {
        self.1 == sweep::moves()
    }

    fn run(&mut self, batches: &Vec<Batch>) -> Result<Passes, String> {
        self.0.run(batches).cloned()
    }
}
