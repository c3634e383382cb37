//! An operation made of operations that keeps only its inputs: the backward pass runs it again, with a tape of its own. Not here: its use for blocks
//! of networks ([`nn::recompute`](crate::nn::recompute)).

use std::fmt;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor,
    DispatchTensorKind, Flex, GradientCheckpointingStrategy,
};

/// The largest number of inputs of such an operation.
const INPUTS: usize = 64;

/// Computes one tensor from several, with the same result each time.
#[derive(Clone)]
pub struct Computation(Arc<dyn Fn(Vec<DispatchTensor>) -> DispatchTensor + Send + Sync>);

impl Computation {
    pub fn new(compute: impl Fn(Vec<DispatchTensor>) -> DispatchTensor + Send + Sync + 'static) -> Self {
        Self(Arc::new(compute))
    }

    /// The result for these tensors, which are all on one device.
    ///
    /// # Panics
    /// With more than 64 tensors, on a tape.
    pub fn recomputed(self, inputs: Vec<DispatchTensor>) -> DispatchTensor {
        let tape = inputs.iter().find_map(|input| match (&input.kind, input.autodiff) {
            (DispatchTensorKind::Autodiff(kind), DispatchAutodiffContext::Enabled(strategy)) => Some((kind, strategy)),
            _ => None,
        });
        let Some((kind, strategy)) = tape else { return (self.0)(inputs) };
        match **kind {
            DispatchTensorKind::Flex(_) => self.on_tape::<Flex>(inputs, strategy),
            #[cfg(feature = "cube")]
            DispatchTensorKind::Cube(_) => self.on_tape::<burn::backend::Cube>(inputs, strategy),
            // A backend that is not one of ours: its tape keeps everything.
            _ => (self.0)(inputs),
        }
    }

    fn on_tape<B: Dispatched>(
        self,
        inputs: Vec<DispatchTensor>,
        strategy: GradientCheckpointingStrategy,
    ) -> DispatchTensor {
        let inputs = inputs.into_iter().map(B::tracked).collect();
        let y = match strategy {
            GradientCheckpointingStrategy::Disabled => self.record::<B, NoCheckpointing>(inputs),
            GradientCheckpointingStrategy::Balanced => self.record::<B, BalancedCheckpointing>(inputs),
        };
        let kind = DispatchTensorKind::Autodiff(Box::new(B::kind(BackendTensor::Autodiff(y))));
        DispatchTensor { kind, autodiff: DispatchAutodiffContext::Enabled(strategy) }
    }

    fn record<B: Dispatched, C: CheckpointStrategy>(
        self,
        inputs: Vec<FloatTensor<Autodiff<B>>>,
    ) -> FloatTensor<Autodiff<B>> {
        let count = inputs.len();
        assert!(count <= INPUTS, "a block of {count} tensors cannot be computed again, only one of up to {INPUTS}");
        // The tape takes a number of parents that is known at compile time: the last one stands in for missing ones.
        let nodes = std::array::from_fn(|i| inputs[i.min(count - 1)].node());
        let inputs: Vec<FloatTensor<B>> = inputs.into_iter().map(|input| input.into_primitive()).collect();
        // In train behaviour, which layers recognise by the device, but without a gradient.
        let y = B::tracked((self.0)(inputs.iter().cloned().map(on_tape::<B>).collect())).into_primitive();
        match (Again { count }).prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((inputs, self), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
}

impl fmt::Debug for Computation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computation")
    }
}

/// A backend to which tensors are dispatched.
trait Dispatched: Backend {
    fn kind(tensor: BackendTensor<Self>) -> DispatchTensorKind;

    fn backend(kind: DispatchTensorKind) -> BackendTensor<Self>;

    /// A tensor on the tape; a constant if it was on none.
    fn tracked(tensor: DispatchTensor) -> FloatTensor<Autodiff<Self>> {
        match tensor.kind {
            DispatchTensorKind::Autodiff(kind) => Self::backend(*kind).autodiff(),
            kind => Autodiff::<Self>::from_inner(Self::backend(kind).float()),
        }
    }
}

impl Dispatched for Flex {
    fn kind(tensor: BackendTensor<Self>) -> DispatchTensorKind {
        DispatchTensorKind::Flex(tensor)
    }

    fn backend(kind: DispatchTensorKind) -> BackendTensor<Self> {
        match kind {
            DispatchTensorKind::Flex(tensor) => tensor,
            other => panic!("tensors of one computation on two devices: {other:?}"),
        }
    }
}

#[cfg(feature = "cube")]
impl Dispatched for burn::backend::Cube {
    fn kind(tensor: BackendTensor<Self>) -> DispatchTensorKind {
        DispatchTensorKind::Cube(tensor)
    }

    fn backend(kind: DispatchTensorKind) -> BackendTensor<Self> {
        match kind {
            DispatchTensorKind::Cube(tensor) => tensor,
            other => panic!("tensors of one computation on two devices: {other:?}"),
        }
    }
}

/// A tensor on a tape, without a gradient.
fn on_tape<B: Dispatched>(tensor: FloatTensor<B>) -> DispatchTensor {
    let kind = B::kind(BackendTensor::Float(tensor));
    <Dispatch as AutodiffBackend>::from_inner(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

/// The backward pass.
#[derive(Clone, Debug)]
struct Again {
    /// Number of inputs.
    count: usize,
}

impl<B: Dispatched> Backward<B, INPUTS> for Again {
    type State = (Vec<FloatTensor<B>>, Computation);

    fn backward(self, ops: Ops<Self::State, INPUTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = on_tape::<B>(grads.consume::<B>(&ops.node));
        let parents = &ops.parents[..self.count];
        let (tensors, computation) = ops.state;
        let inputs: Vec<DispatchTensor> = tensors
            .into_iter()
            .zip(parents)
            .map(|(tensor, parent)| Dispatch::float_set_require_grad(on_tape::<B>(tensor), parent.is_some()))
            .collect();
        let y = (computation.0)(inputs.clone());
        // The gradient of this sum with respect to y is dy.
        let gradients = <Dispatch as AutodiffBackend>::backward(Dispatch::float_sum(Dispatch::float_mul(y, dy)));
        for (input, parent) in inputs.iter().zip(parents) {
            if let Some(parent) = parent
                && let Some(gradient) = <Dispatch as AutodiffBackend>::grad(input, &gradients)
            {
                grads.register::<B>(parent.id, B::backend(gradient.kind).float());
            }
        }
    }
}
