//! The exponential moving average of a network, from which samples are drawn: when it is updated, and how much. Not here: its storage (`average`).

use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::average::Average;
use super::sweep::Clip;
use crate::nn::params::ParamsError;
use crate::nn::{Eval, EvalMode};
use crate::weights::StateDict;

/// How floating-point buffers (running statistics) are treated; integer buffers are always copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BufferPolicy {
    /// The average copies the network's current buffers: they are averages already.
    #[default]
    Copy,
    /// They are averaged like weights, as in ema-pytorch.
    Lerp,
}

/// Options of [`Ema`]; `Default` is that of the reference's Trainer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmaConfig {
    /// The largest decay.
    pub ema_decay: f64,
    /// Number of calls per update.
    pub ema_update_every: u64,
    /// Up to this call, an update is a copy.
    pub ema_update_after_step: u64,
    pub ema_inv_gamma: f64,
    pub ema_power: f64,
    /// The smallest decay after copying has ended.
    pub ema_min_value: f64,
    pub ema_buffers: BufferPolicy,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self {
            ema_decay: 0.995,
            ema_update_every: 10,
            ema_update_after_step: 100,
            ema_inv_gamma: 1.0,
            ema_power: 2.0 / 3.0,
            ema_min_value: 0.0,
            ema_buffers: BufferPolicy::Copy,
        }
    }
}

/// The action of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Update {
    Nothing,
    Copy,
    Lerp { decay: f64 },
}

impl EmaConfig {
    /// The decay at call number `call` (0-based): `1 - (1 + e / inv_gamma)^-power` with `e = call - update_after_step`,
    /// between `min_value` and `decay`; 0 while e <= 0.
    pub fn decay_at(&self, call: u64) -> f64 {
        let after = call.saturating_sub(self.ema_update_after_step) as f64;
        if after <= 0.0 {
            return 0.0;
        }
        let decay = 1.0 - (1.0 + after / self.ema_inv_gamma).powf(-self.ema_power);
        decay.max(self.ema_min_value).min(self.ema_decay)
    }

    fn update_at(&self, call: u64) -> Update {
        match call {
            0 => Update::Copy,
            _ if !call.is_multiple_of(self.ema_update_every) => Update::Nothing,
            _ if call <= self.ema_update_after_step => Update::Copy,
            _ => Update::Lerp { decay: self.decay_at(call) },
        }
    }
}

/// A moving average of a network's weights. Its network is in eval behaviour from the start and shares no storage with the one in training.
#[derive(Clone, Debug)]
pub struct Ema<M> {
    average: Average<M>,
    config: EmaConfig,
    calls: u64,
}

impl<M: Module> Ema<M> {
    /// An average that starts as a copy of `model`.
    pub fn new(model: &M, config: EmaConfig) -> Self {
        Self { average: Average::new(model), config, calls: 0 }
    }

    /// Must be called after every optimizer step.
    pub fn update(&mut self, model: &M) {
        self.update_clipped(model, &Clip::Known(1.0));
    }

    /// [`update`](Self::update) after a step that may turn out to have changed nothing, which only the device knows yet. In that case nothing
    /// changes but the count, see [`take_back`](Self::take_back).
    pub(super) fn update_clipped(&mut self, model: &M, clip: &Clip) {
        let call = self.calls;
        self.calls += 1;
        let share = match self.config.update_at(call) {
            Update::Nothing => return,
            Update::Copy => 1.0,
            Update::Lerp { decay } => 1.0 - decay,
        };
        self.average.take_in(model, share, self.config.ema_buffers, clip);
    }

    /// Undoes the count of the latest [`update_clipped`](Self::update_clipped), which turned out to change nothing.
    pub(super) fn take_back(&mut self) {
        self.calls -= 1;
    }

    /// The decay that the latest call used, or would have used if an update had been due.
    pub fn decay(&self) -> f64 {
        self.config.decay_at(self.calls.saturating_sub(1))
    }

    /// The number of calls of [`update`](Self::update).
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The averaged network, ready for sampling or measurements.
    pub fn eval(&self) -> Eval<M> {
        self.average.network().eval()
    }

    /// The averaged weights.
    pub fn to_state_dict(&self) -> StateDict {
        self.average.to_state_dict()
    }

    /// Restores the average after `calls` calls.
    pub fn restore(&mut self, state: &StateDict, calls: u64) -> Result<(), ParamsError> {
        self.average.restore(state)?;
        self.calls = calls;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_follows_the_published_sequence() {
        let config = EmaConfig::default();
        for (call, decay) in [(110, 0.79782), (120, 0.868623), (200, 0.953891), (1100, 0.990007)] {
            assert!((config.decay_at(call) - decay).abs() < 1e-6, "{call}: {}", config.decay_at(call));
        }
        assert!(config.decay_at(2920) < 0.995);
        assert_eq!(config.decay_at(2930), 0.995);
    }

    #[test]
    fn copies_until_update_after_step_then_lerps_when_due() {
        let config = EmaConfig::default();
        assert_eq!(config.update_at(0), Update::Copy);
        assert_eq!(config.update_at(5), Update::Nothing);
        assert_eq!(config.update_at(100), Update::Copy);
        assert_eq!(config.update_at(101), Update::Nothing);
        assert!(matches!(config.update_at(110), Update::Lerp { decay } if decay > 0.79));
    }
}
