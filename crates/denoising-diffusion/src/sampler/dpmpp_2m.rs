//! DPM-Solver++(2M).

use burn::tensor::Tensor;

use super::exponential::{exponential_step, lambda};
use super::step::{Callback, Interrupted, walk_once};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at `levels[0]` to the last level (Lu et al. 2022, arXiv:2211.01095, algorithm 2). With `h = lambda_s - lambda_t` and h' of the
/// step before: `d = (1 + h / 2h') x_start - (h / 2h') x_start'`, `x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) d`.
/// Second order, one estimate per step; first order in the first step and in one to clean data. Ignores
/// [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub fn dpmpp_2m<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let mut last = LastEstimate::default();
    walk_once(denoiser, x, levels, callback, |_, x, estimate, pair| {
        exponential_step(x, last.extrapolate(&estimate.x_start, pair), pair)
    })
}

/// c of the estimate halfway from `now` to `next`, on the line through those at `last` and `now`: `1 + c` times the newer one less c times the older.
pub(super) fn halfway([last, now, next]: [f64; 3]) -> f64 {
    0.5 * (next - now) / (now - last)
}

/// The previous step's estimate and its lambda, unless that level was pure noise.
#[derive(Debug, Default)]
pub(super) struct LastEstimate<const D: usize>(Option<(f64, Tensor<D>)>);

impl<const D: usize> LastEstimate<D> {
    /// The estimate halfway through the step, on the line (in lambda) through the previous estimate and the current one, `x_start`; `x_start` itself
    /// if there is no line or the step has no midpoint.
    pub(super) fn extrapolate(&mut self, x_start: &Tensor<D>, [t, s]: [NoiseLevel; 2]) -> Tensor<D> {
        let present = (!t.is_pure_noise()).then(|| (lambda(t), x_start.clone()));
        match std::mem::replace(&mut self.0, present) {
            Some((lambda_last, last)) if !s.is_clean() => {
                let c = halfway([lambda_last, lambda(t), lambda(s)]);
                x_start.clone() * (1.0 + c) - last * c
            }
            _ => x_start.clone(),
        }
    }
}
