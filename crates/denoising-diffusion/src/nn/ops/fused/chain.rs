//! Kernels made of kernels: one after the other, or recomputing what the backward pass needs instead of keeping it.

use std::fmt::Debug;

use burn_flex::FlexTensor;

use super::Kernel;

/// `B` applied to the result of `A` (which has `NA` inputs), followed by the other inputs of `B`: `N = NA + NB - 1` inputs in all.
#[derive(Clone, Debug)]
pub(super) struct Then<A, B, const NA: usize, const NB: usize>(pub(super) A, pub(super) B);

/// `K`, keeping only its inputs: the backward pass begins by computing what it needs from them (Chen et al. 2016, "Training deep nets with sublinear
/// memory cost").
#[derive(Clone, Debug)]
pub(super) struct Recompute<K>(pub(super) K);

fn array<T: Debug, const N: usize>(items: impl Iterator<Item = T>) -> [T; N] {
    let items: Vec<T> = items.collect();
    <[T; N]>::try_from(items).unwrap_or_else(|items| unreachable!("{} inputs instead of {N}", items.len()))
}

/// The inputs of `A`, and the other inputs of `B`.
fn split<const N: usize, const NA: usize>(inputs: [FlexTensor; N]) -> ([FlexTensor; NA], Vec<FlexTensor>) {
    let mut inputs = inputs.into_iter();
    (array(inputs.by_ref().take(NA)), inputs.collect())
}

fn join<const NB: usize>(first: FlexTensor, rest: Vec<FlexTensor>) -> [FlexTensor; NB] {
    array(std::iter::once(first).chain(rest))
}

impl<A, B, const NA: usize, const NB: usize, const N: usize> Kernel<N> for Then<A, B, NA, NB>
where
    A: Kernel<NA>,
    B: Kernel<NB>,
{
    type Saved = (A::Saved, B::Saved);

    fn forward(&self, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved) {
        let (first, rest) = split(inputs);
        let (between, saved) = self.0.forward(first);
        let (y, saved_later) = self.1.forward(join(between, rest));
        (y, (saved, saved_later))
    }

    fn saved(&self, inputs: [FlexTensor; N]) -> Self::Saved {
        let (first, rest) = split(inputs);
        let (between, saved) = self.0.forward(first);
        (saved, self.1.saved(join(between, rest)))
    }

    fn backward(&self, saved: Self::Saved, dy: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        let wanted_first: [bool; NA] = array(wanted[..NA].iter().copied());
        let any = wanted_first.contains(&true);
        let wanted_later: [bool; NB] = array(std::iter::once(any).chain(wanted[NA..].iter().copied()));
        let mut later = self.1.backward(saved.1, dy, wanted_later).into_iter();
        let first = match later.next().flatten().filter(|_| any) {
            Some(between) => self.0.backward(saved.0, between, wanted_first),
            None => std::array::from_fn(|_| None),
        };
        array(first.into_iter().chain(later))
    }
}

impl<K: Kernel<N>, const N: usize> Kernel<N> for Recompute<K> {
    type Saved = [FlexTensor; N];

    fn forward(&self, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved) {
        (self.0.forward(inputs.clone()).0, inputs)
    }

    fn saved(&self, inputs: [FlexTensor; N]) -> Self::Saved {
        inputs
    }

    fn backward(&self, inputs: Self::Saved, dy: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N] {
        self.0.backward(self.0.saved(inputs), dy, wanted)
    }
}
