//! Dropout whose draws can be repeated: each takes the next number of a count, which with a key says what is dropped, so that a block that is computed
//! again drops out the same, and every device drops the same.

use std::sync::{Mutex, PoisonError};

use burn::module::Module;
use burn::nn::{Dropout as Layer, DropoutConfig};
use burn::tensor::{Device, Tensor};

use super::ops::{self, DropoutKey};

/// Where draws stand, for the whole process: Burn's operations carry no context.
#[derive(Clone, Debug)]
pub struct Draws {
    key: DropoutKey,
    /// How many were made since.
    count: u64,
    /// Which counts were begun before this one.
    begun: u64,
}

static DRAWS: Mutex<Draws> = Mutex::new(Draws { key: DropoutKey::Words([0; 2]), count: 0, begun: 0 });

fn with<T>(change: impl FnOnce(&mut Draws) -> T) -> T {
    change(&mut DRAWS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Begins a count, and seeds Burn's own generator on this device, which layers of others draw from.
pub fn seed(device: &Device, seed: u64) {
    begin(key(seed));
    device.seed(seed);
}

/// The key of a seed.
pub fn key(seed: u64) -> DropoutKey {
    DropoutKey::Words([seed as u32, (seed >> 32) as u32])
}

/// Begins a count with this key.
pub fn begin(key: DropoutKey) {
    with(|draws| *draws = Draws { key, count: 0, begun: draws.begun + 1 });
}

/// Lets go of the count's key, which whoever gave it may then change where it lies.
pub fn let_go() {
    with(|draws| draws.key = DropoutKey::Words([0; 2]));
}

impl Draws {
    /// Where they stand.
    pub fn now() -> Self {
        with(|draws| draws.clone())
    }

    /// How many were made since the count began.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Runs `work` as it ran, or is about to run, from here on. What is drawn afterwards is not changed by a repetition.
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
        let Draws { key, count, .. } = with(|draws| {
            if ops::reads_key_on_device(&x) {
                // Once for all draws of this count.
                draws.key = draws.key.clone().on_device(&x.device());
            }
            let now = draws.clone();
            draws.count += 1;
            now
        });
        ops::dropout(x, &key, count, self.layer.prob)
    }
}
