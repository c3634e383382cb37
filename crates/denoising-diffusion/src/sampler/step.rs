//! The loop over noise levels that all samplers share, and its report to the caller after each step.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use thiserror::Error;

use crate::diffusion::{Denoiser, Estimate, NoiseLevel};

/// The state after one step, for progress bars, previews and trajectories.
#[derive(Debug)]
pub struct Step<'a, const D: usize> {
    /// Counted from 0.
    pub index: usize,
    /// Number of steps.
    pub total: usize,
    /// The data after this step, `[b, c, ...]`, on the network's scale.
    pub x: &'a Tensor<D>,
    /// The latest estimate of clean data that the step used.
    pub x_start: &'a Tensor<D>,
}

/// Called after each step; `Break` ends sampling with [`Interrupted`].
pub type Callback<'a, const D: usize> = dyn FnMut(&Step<'_, D>) -> ControlFlow<()> + 'a;

/// A callback that does nothing.
pub fn ignore<const D: usize>(_: &Step<'_, D>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Sampling ended early because a callback asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("sampling was interrupted after step {done} of {total}")]
pub struct Interrupted {
    pub done: usize,
    pub total: usize,
}

/// One step per pair of neighbouring levels: `step(index, x_t, x_self_cond, [t, s])` returns x_s and the latest estimate of clean data, which is
/// also the next step's `x_self_cond`.
pub(super) fn walk<const D: usize>(
    mut x: Tensor<D>,
    levels: &[NoiseLevel],
    callback: &mut Callback<'_, D>,
    mut step: impl FnMut(usize, Tensor<D>, Option<Tensor<D>>, [NoiseLevel; 2]) -> (Tensor<D>, Tensor<D>),
) -> Result<Tensor<D>, Interrupted> {
    let total = levels.len().saturating_sub(1);
    let mut x_self_cond = None;
    for (index, pair) in levels.windows(2).enumerate() {
        let (next, x_start) = step(index, x, x_self_cond.take(), [pair[0], pair[1]]);
        x = next;
        if callback(&Step { index, total, x: &x, x_start: &x_start }).is_break() {
            return Err(Interrupted { done: index + 1, total });
        }
        x_self_cond = Some(x_start);
    }
    Ok(x)
}

/// The same for solvers that need one estimate per step, at its beginning: `step(index, x_t, estimate, [t, s])` returns x_s.
pub(super) fn walk_once<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    callback: &mut Callback<'_, D>,
    mut step: impl FnMut(usize, Tensor<D>, &Estimate<D>, [NoiseLevel; 2]) -> Tensor<D>,
) -> Result<Tensor<D>, Interrupted> {
    walk(x, levels, callback, |index, x, x_self_cond, [t, s]| {
        let estimate = denoiser.denoise(x.clone(), t, x_self_cond);
        (step(index, x, &estimate, [t, s]), estimate.x_start)
    })
}
