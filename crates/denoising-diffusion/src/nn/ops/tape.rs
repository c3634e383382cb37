//! An operation with its own backward pass, on the tensors of one backend: everything that Burn needs around it, once. The operations are in
//! [`super::fused`] (the CPU) and [`super::cube`](super) (GPUs).

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex};

/// A backend for which we have kernels.
pub(super) trait Device: Backend {
    /// A tensor in the form that the kernels take.
    fn ready(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// A differentiable operation of `N` tensors.
pub(super) trait Kernel<const N: usize, B: Backend = Flex>: Clone + Debug + Send + 'static {
    /// What the backward pass needs.
    type Saved: Clone + Debug + Send + 'static;

    fn forward(&self, inputs: [FloatTensor<B>; N]) -> (FloatTensor<B>, Self::Saved);

    /// What [`forward`](Kernel::forward) saves, without its output if that is not needed.
    fn saved(&self, inputs: [FloatTensor<B>; N]) -> Self::Saved {
        self.forward(inputs).1
    }

    /// Gradients of the inputs that are `wanted`; others may be omitted.
    fn backward(&self, saved: Self::Saved, dy: FloatTensor<B>, wanted: [bool; N]) -> [Option<FloatTensor<B>>; N];
}

/// Runs a kernel without recording gradients.
pub(super) fn run<B: Device, K: Kernel<N, B>, const N: usize>(
    kernel: K,
    inputs: [FloatTensor<B>; N],
) -> FloatTensor<B> {
    kernel.forward(inputs.map(B::ready)).0
}

/// Runs a kernel and records it for the backward pass.
pub(super) fn track<B: Device, C: CheckpointStrategy, K: Kernel<N, B>, const N: usize>(
    kernel: K,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
) -> FloatTensor<Autodiff<B, C>> {
    let (mut primitives, mut nodes) = (Vec::with_capacity(N), Vec::with_capacity(N));
    for input in inputs {
        let (primitive, node) = input.into_parts();
        primitives.push(B::ready(primitive));
        nodes.push(node);
    }
    let Ok(inputs) = <[FloatTensor<B>; N]>::try_from(primitives) else { unreachable!("N inputs give N primitives") };
    let Ok(nodes) = <[_; N]>::try_from(nodes) else { unreachable!("N inputs give N nodes") };
    let (y, saved) = kernel.forward(inputs);
    match Recorded(kernel).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(saved, y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}

/// A kernel on the tape.
#[derive(Clone, Debug)]
struct Recorded<K>(K);

impl<B: Device, K: Kernel<N, B>, const N: usize> Backward<B, N> for Recorded<K> {
    type State = K::Saved;

    fn backward(self, ops: Ops<K::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = B::ready(grads.consume::<B>(&ops.node));
        let wanted = std::array::from_fn(|i| ops.parents[i].is_some());
        let gradients = self.0.backward(ops.state, dy, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}
