//! Dropout with repeatable draws. Each draw takes the next number of a counter, which together with a key determines what is dropped. So a
//! recomputed block drops the same values, and every device drops the same.

use std::sync::{Mutex, PoisonError};

use burn::module::Module;
use burn::nn::{Dropout as Layer, DropoutConfig};
use burn::tensor::{Device, Tensor};

use super::ops::{self, DropoutKey};

/// The state of the draws, which is global to the process because Burn's operations carry no context.
#[derive(Clone, Debug)]
pub struct Draws {
    key: DropoutKey,
    /// Number of draws since the count began.
    count: u64,
    /// Number of counts begun before this one.
    begun: u64,
}

static DRAWS: Mutex<Draws> = Mutex::new(Draws { key: DropoutKey::Words([0; 2]), count: 0, begun: 0 });

fn with<T>(change: impl FnOnce(&mut Draws) -> T) -> T {
    change(&mut DRAWS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Begins a count, and seeds Burn's own generator on this device, which layers that are not ours use.
pub fn seed(device: &Device, seed: u64) {
    begin(key(seed));
    device.seed(seed);
}

/// The key for a seed.
pub fn key(seed: u64) -> DropoutKey {
    DropoutKey::Words([seed as u32, (seed >> 32) as u32])
}

/// Begins a count with this key.
pub fn begin(key: DropoutKey) {
    with(|draws| *draws = Draws { key, count: 0, begun: draws.begun + 1 });
}

/// Releases the count's key, so that its owner can change it in place.
pub fn let_go() {
    with(|draws| draws.key = DropoutKey::Words([0; 2]));
}

impl Draws {
    /// The current state.
    pub fn now() -> Self {
        with(|draws| draws.clone())
    }

    /// Number of draws since the count began.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Runs `work` with the draws that follow this state, as it ran before or is about to run. Later draws do not depend on the repetition.
    pub fn from_here<T>(self, work: impl FnOnce() -> T) -> T {
        let here = (self.begun, self.count);
        let before = with(|draws| std::mem::replace(draws, self));
        let result = work();
        if (before.begun, before.count) != here {
            with(|draws| *draws = before);
        }
        result
    }
}

/// In train behaviour, sets a fraction `prob` of the values to zero and divides the others by `1 - prob`.
///
/// On a GPU, the count's key lies in the device's memory, where recorded work reads it. So all draws of a count must be on one device.
#[derive(Module, Debug)]
pub struct Dropout {
    layer: Layer,
}

impl Dropout {
    /// `prob` in [0, 1).
    pub fn new(prob: f64) -> Self {
        Self { layer: DropoutConfig::new(prob).init() }
    }

    /// Whether `forward` would drop values of `x`.
    pub fn drops<const D: usize>(&self, x: &Tensor<D>) -> bool {
        self.layer.prob > 0.0 && self.layer.training.is_enabled() && x.device().is_autodiff()
    }

    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if !self.drops(&x) {
            return x;
        }
        let Draws { key, count, .. } = with(|draws| {
            if ops::reads_key_on_device(&x) {
                // Uploaded once for all draws of this count.
                draws.key = draws.key.clone().on_device(&x.device());
            }
            let now = draws.clone();
            draws.count += 1;
            now
        });
        ops::dropout(x, &key, count, self.layer.prob)
    }
}
