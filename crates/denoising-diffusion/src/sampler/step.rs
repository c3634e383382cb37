//! What a sampler tells its caller after each step.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use thiserror::Error;

/// The state after one step. Progress bars, previews and trajectories hang on it.
#[derive(Debug)]
pub struct Step<'a, const D: usize> {
    /// 0-based.
    pub index: usize,
    /// Number of steps.
    pub total: usize,
    /// The data after this step, `[b, c, ...]`, not yet mapped back to the data's range.
    pub x: &'a Tensor<D>,
    /// The estimate of clean data that the step was made with.
    pub x_start: &'a Tensor<D>,
}

/// Called after each step; `Break` ends sampling with [`Interrupted`].
pub type Callback<'a, const D: usize> = dyn FnMut(&Step<'_, D>) -> ControlFlow<()> + 'a;

/// A callback for those who need none.
pub fn ignore<const D: usize>(_: &Step<'_, D>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Sampling ended early because a callback said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("sampling was interrupted after step {done} of {total}")]
pub struct Interrupted {
    pub done: usize,
    pub total: usize,
}

/// Reports step `index` and turns the caller's answer into a result.
pub(super) fn report<const D: usize>(step: Step<'_, D>, callback: &mut Callback<'_, D>) -> Result<(), Interrupted> {
    match callback(&step) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Interrupted { done: step.index + 1, total: step.total }),
    }
}
