//! A copy of a network's buffers (running statistics, not fixed frequencies) from before a step, to undo the step: the forward pass changes them
//! before it is known whether the loss is finite.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use crate::nn::params::{self, MapTensor, Role, VisitTensor};
use crate::weights::StateDict;

/// Floating-point buffers that forward passes change, by name, on the host.
#[derive(Default)]
pub struct Buffers(StateDict);

impl Buffers {
    /// The buffers of `model`.
    pub fn of<M: Module>(model: &M) -> Self {
        // Flushes what is pending on this thread.
        let _ = model.valid();
        let mut buffers = Self::default();
        params::visit(model, &mut buffers);
        buffers
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `model` with these buffers put back.
    pub fn restored<M: Module>(mut self, model: M) -> M {
        // Flushes what this thread's forward pass left pending, so that nothing overwrites the restored values later.
        let _ = model.valid();
        params::map(model, &mut self)
    }
}

/// Whether a buffer holds fixed frequencies, which no pass changes. All layers use this name for them.
fn is_constant(name: &str) -> bool {
    name.rsplit('.').next() == Some("weights")
}

impl VisitTensor for Buffers {
    fn visit<const D: usize>(&mut self, name: &str, role: Role, tensor: &Tensor<D>) {
        if role == Role::Buffer && !is_constant(name) {
            self.0.insert(name, params::host_tensor(tensor.clone()));
        }
    }
}

impl MapTensor for Buffers {
    fn map<const D: usize>(&mut self, name: &str, role: Role, tensor: Tensor<D>) -> Tensor<D> {
        match self.0.get(name) {
            Some(host) if role == Role::Buffer => {
                let dims: [usize; D] = tensor.dims();
                Tensor::from_data(TensorData::new(host.values.clone(), dims), &tensor.device())
            }
            _ => tensor,
        }
    }
}
