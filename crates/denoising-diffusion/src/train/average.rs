//! A network whose weights are an average of another one's, in separate storage. Not here: how much is added when (`ema`, `power_ema`).

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;

use super::ema::BufferPolicy;
use super::sweep::{self, Clip};
use crate::nn::params::{self, ParamsError, Role, VisitTensor};
use crate::nn::sweeps::{self, Field};
use crate::weights::StateDict;

/// The averaged network, in eval behaviour from the start; it shares no storage with the network in training.
#[derive(Clone, Debug)]
pub(super) struct Average<M> {
    /// `None` only while it is being replaced.
    network: Option<M>,
}

impl<M: Module> Average<M> {
    /// Starts as a copy of `model`.
    pub(super) fn new(model: &M) -> Self {
        Self { network: Some(sweeps::settled(model.valid())) }
    }

    /// average += share (weights - average); a share of 1 copies. If `clip` says that the step must change nothing, neither does this.
    pub(super) fn take_in(&mut self, model: &M, share: f64, buffers: BufferPolicy, clip: &Clip) {
        let is_copied = |role: Role| share == 1.0 || role == Role::Buffer && buffers == BufferPolicy::Copy;
        let mut online = online_tensors(model);
        for copied in [false, true] {
            if !online.values().any(|(role, _)| is_copied(*role) == copied) {
                continue;
            }
            let takes = |field: Field<'_>| {
                let (role, _) = online.get(field.name)?;
                if is_copied(*role) == copied { online.remove(field.name).map(|(_, tensor)| tensor) } else { None }
            };
            let share = if copied { 1.0 } else { share };
            let sweep = |taken: Vec<(Tensor<1>, Tensor<1>)>| {
                sweep::lerp(taken.into_iter().map(|(average, w)| [average, w]).collect(), share, clip)
            };
            self.network = self.network.take().map(|network| sweeps::replace(network, takes, sweep));
        }
    }

    pub(super) fn network(&self) -> &M {
        self.network.as_ref().expect("taking in puts the network back")
    }

    pub(super) fn to_state_dict(&self) -> StateDict {
        params::to_state_dict(self.network())
    }

    pub(super) fn restore(&mut self, state: &StateDict) -> Result<(), ParamsError> {
        self.network = Some(sweeps::settled(params::load_state_dict(self.network().clone(), state)?));
        Ok(())
    }
}

/// The tensors of the network in training, plain and flat, by name.
fn online_tensors<M: Module>(model: &M) -> BTreeMap<String, (Role, Tensor<1>)> {
    struct Collect(BTreeMap<String, (Role, Tensor<1>)>);
    impl VisitTensor for Collect {
        fn visit<const D: usize>(&mut self, name: &str, role: Role, tensor: &Tensor<D>) {
            let plain = if tensor.is_autodiff() { tensor.clone().inner() } else { tensor.clone() };
            self.0.insert(name.to_string(), (role, sweeps::flat(name, plain)));
        }
    }
    // `valid` flushes running statistics that are pending for this thread.
    let _ = model.valid();
    let mut collect = Collect(BTreeMap::new());
    params::visit(model, &mut collect);
    collect.0
}
