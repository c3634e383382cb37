//! Dropout whose draws can be repeated: each takes the next number of a count, which with a seed says what is drawn (on one kind of device), so that
//! a block that is computed again drops out the same.

use std::sync::{Mutex, PoisonError};

use burn::module::Module;
use burn::nn::{Dropout as Layer, DropoutConfig};
use burn::tensor::{Device, Tensor};

use crate::noise::{Purpose, Stream};

/// Where draws stand, for the whole process: Burn's operations carry no context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    seed: u64,
    /// How many were made since.
    count: u64,
}

static DRAWS: Mutex<Draws> = Mutex::new(Draws { seed: 0, count: 0 });

fn with<T>(change: impl FnOnce(&mut Draws) -> T) -> T {
    change(&mut DRAWS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Begins a count, and seeds Burn's own generator on this device, which layers of others draw from.
pub fn seed(device: &Device, seed: u64) {
    with(|draws| *draws = Draws { seed, count: 0 });
    device.seed(seed);
}

impl Draws {
    /// Where they stand.
    pub fn now() -> Self {
        with(|draws| *draws)
    }

    /// How many were made since the generator was seeded.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Runs `work` as it ran, or is about to run, from here on. What is drawn afterwards is not changed by a repetition.
    pub fn from_here<T>(self, work: impl FnOnce() -> T) -> T {
        let before = with(|draws| std::mem::replace(draws, self));
        let result = work();
        if before != self {
            with(|draws| *draws = before);
        }
        result
    }
}

/// In train behaviour, zeros in place of a part `prob` of the values, and the others over `1 - prob`.
#[derive(Module, Debug)]
pub struct Dropout {
    layer: Layer,
}

impl Dropout {
    /// `prob` in [0, 1).
    pub fn new(prob: f64) -> Self {
        Self { layer: DropoutConfig::new(prob).init() }
    }

    /// Whether values of `x` will be dropped out.
    pub fn drops<const D: usize>(&self, x: &Tensor<D>) -> bool {
        self.layer.prob > 0.0 && self.layer.training.is_enabled() && x.device().is_autodiff()
    }

    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if !self.drops(&x) {
            return x;
        }
        let Draws { seed, count } = with(|draws| {
            let now = *draws;
            draws.count += 1;
            now
        });
        x.device().seed(Stream::new(seed, Purpose::Dropout, count, 0).next_u64());
        self.layer.forward(x)
    }
}
