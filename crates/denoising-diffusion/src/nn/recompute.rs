//! Blocks of a network that keep nothing but their inputs for the backward pass, which computes the rest again (Chen et al. 2016, "Training deep nets
//! with sublinear memory cost"). On any device, for any block without dropout: what is dropped out is drawn once, and could not be drawn again.
//! Not here: the blocks of a U-Net on the CPU, which have kernels for it (`ops`).

use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

use super::ops::{Activations, Computation, activations};

/// `forward(block, x, cond)`, where `x` are data, all of one rank, and `cond` what the block is conditioned on. With [`Activations::Recompute`] only
/// these and the parameters are kept, if the block is `repeatable`: `forward` gives the same every time. It uses no other tensors that have
/// gradients.
pub fn block<M, const D: usize, const N: usize, const K: usize>(
    block: &M,
    repeatable: bool,
    x: [Tensor<D>; N],
    cond: [Tensor<2>; K],
    forward: fn(&M, [Tensor<D>; N], [Tensor<2>; K]) -> Tensor<D>,
) -> Tensor<D>
where
    M: Module + Sync + 'static,
{
    let recomputes = repeatable && activations() == Activations::Recompute;
    if !recomputes || !x.iter().any(|x| x.device().is_autodiff()) {
        return forward(block, x, cond);
    }
    let mut inputs: Vec<DispatchTensor> = x.into_iter().map(Tensor::into_dispatch).collect();
    inputs.extend(cond.into_iter().map(Tensor::into_dispatch));
    block.visit(&mut Parameters(&mut inputs));
    let block = block.clone();
    let computation = Computation::new(move |inputs| {
        let mut inputs = Inputs(inputs.into_iter());
        let x = std::array::from_fn(|_| inputs.next());
        let cond = std::array::from_fn(|_| inputs.next());
        forward(&block.clone().map(&mut inputs), x, cond).into_dispatch()
    });
    Tensor::from_dispatch(computation.recomputed(inputs))
}

/// Collects a block's parameters.
struct Parameters<'a>(&'a mut Vec<DispatchTensor>);

impl ModuleVisitor for Parameters<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(param.val().into_dispatch());
    }
}

/// What a computation is given: data, conditions, and a tensor for each of the block's parameters, which it replaces.
struct Inputs(std::vec::IntoIter<DispatchTensor>);

impl Inputs {
    fn next<const D: usize>(&mut self) -> Tensor<D> {
        let Some(tensor) = self.0.next() else { unreachable!("as many tensors as were handed over") };
        Tensor::from_dispatch(tensor)
    }
}

impl ModuleMapper for Inputs {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, _, mapper) = param.consume();
        Param::from_mapped_value(id, self.next(), mapper)
    }
}
