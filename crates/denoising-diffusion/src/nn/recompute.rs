//! Blocks of a network that keep only their inputs for the backward pass, which computes the rest again (Chen et al. 2016, "Training deep nets with
//! sublinear memory cost"), on any device and for any block. Not here: the blocks of a U-Net on the CPU, which have kernels for this (`ops`).

use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

use super::dropout::Draws;
use super::ops::{Activations, Computation, activations};

/// `forward(block, x, cond)`, where `x` are data, all of one rank, and `cond` are the block's conditions. With [`Activations::Recompute`], only these
/// and the parameters are kept. `forward` must not use other tensors that have gradients, and must give the same result every time, apart from the
/// draws of [`Dropout`](super::Dropout), which are repeated.
///
/// # Panics
/// If it has to be recomputed and there are more than 64 tensors in all.
pub fn block<M, const D: usize, const N: usize, const K: usize>(
    block: &M,
    x: [Tensor<D>; N],
    cond: [Tensor<2>; K],
    forward: fn(&M, [Tensor<D>; N], [Tensor<2>; K]) -> Tensor<D>,
) -> Tensor<D>
where
    M: Module + Sync + 'static,
{
    if activations() == Activations::Keep || !x.iter().any(|x| x.device().is_autodiff()) {
        return forward(block, x, cond);
    }
    let mut inputs: Vec<DispatchTensor> = x.into_iter().map(Tensor::into_dispatch).collect();
    inputs.extend(cond.into_iter().map(Tensor::into_dispatch));
    block.visit(&mut Parameters(&mut inputs));
    let (block, draws) = (block.clone(), Draws::now());
    let computation = Computation::new(move |inputs| {
        let mut inputs = Inputs(inputs.into_iter());
        let x = std::array::from_fn(|_| inputs.next());
        let cond = std::array::from_fn(|_| inputs.next());
        let block = block.clone().map(&mut inputs);
        draws.clone().from_here(|| forward(&block, x, cond)).into_dispatch()
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

/// The inputs of a computation: data, conditions, and a tensor for each of the block's parameters, which it replaces.
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
