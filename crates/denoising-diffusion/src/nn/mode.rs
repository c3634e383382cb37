//! Mode is two independent questions: does a layer behave as in training, and are gradients recorded? Here, the four answers are types and functions,
//! so that none of them can be forgotten:
//!
//! | | no gradient | gradient |
//! |---|---|---|
//! | train behaviour | [`TrainNoGrad::of`] | the network itself, on an autodiff device |
//! | eval behaviour | [`EvalMode::eval`] with plain inputs | [`EvalMode::eval`] with inputs that require gradients |
//!
//! Everything that samples or measures takes `&Eval<M>`. Only [`EvalMode::eval`] makes one, and it makes a copy, so nothing has to be switched back,
//! whatever happens to the copy.

use std::ops::Deref;

use burn::module::Module;
use burn::tensor::{DType, Device};

use super::{params, sweeps};

/// A copy of a network in eval behaviour: dropout is off, batch statistics are the stored ones, no parameter records gradients.
/// Gradients with respect to an input are still available: call it on `x.autodiff().require_grad()`.
#[derive(Clone, Debug)]
pub struct Eval<M>(M);

impl<M> Deref for Eval<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}

impl<M: Module> Eval<M> {
    /// The same network on another device.
    pub(crate) fn on(&self, device: &Device) -> Self {
        Self(self.0.clone().fork(device))
    }

    /// The same network with its weights in the form in which this device's convolutions of data of type `dtype` read them.
    pub(crate) fn for_data(self, dtype: DType) -> Self {
        Self(sweeps::for_data(self.0, dtype))
    }
}

/// The only way to get an [`Eval`].
pub trait EvalMode: Module {
    /// A copy in eval behaviour. The original keeps its mode, weights and statistics.
    fn eval(&self) -> Eval<Self> {
        Eval(self.valid())
    }
}

impl<M: Module> EvalMode for M {}

/// A copy of a network in train behaviour that records no gradients: for the first pass of self-conditioning. The batch statistics that it updates
/// are the network's own, as in training.
#[derive(Clone, Debug)]
pub struct TrainNoGrad<M>(M);

impl<M: Module> TrainNoGrad<M> {
    /// Inputs must be on the network's (autodiff) device; otherwise layers do not behave as in training.
    pub fn of(model: &M) -> Self {
        // Clones share a parameter that Burn has not drawn yet, so switching its gradients off in one would switch them off in all.
        params::draw(model);
        Self(model.clone().no_grad())
    }
}

impl<M> Deref for TrainNoGrad<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}
