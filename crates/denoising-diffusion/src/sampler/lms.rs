//! Linear multistep, as in k-diffusion.

use burn::tensor::Tensor;

use super::exponential::{eps_of, exponential_step};
use super::lagrange::lagrange_integrals;
use super::step::{Callback, Interrupted, walk_once};
use crate::diffusion::{Denoiser, NoiseLevel};

/// Number of slopes used in a step.
const ORDER: usize = 4;

/// From `x` at `levels[0]` to the last level: `d(x / alpha) / d(sigma / alpha) = eps` (Karras et al. 2022, arXiv:2206.00364, eq. 1), eps being the
/// polynomial in `sigma / alpha` through the last four slopes, integrated exactly (Adams-Bashforth with steps of any length). One estimate per step.
/// Fourth order except at the start: the first step uses one slope (Euler's method), the second two. Ignores
/// [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub fn lms<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    // (sigma / alpha, eps), the newest first.
    let mut slopes: Vec<(f64, Tensor<D>)> = Vec::new();
    walk_once(denoiser, x, levels, callback, |_, x, estimate, [t, s]| {
        let x_start = &estimate.x_start;
        let constant_slope = exponential_step(x.clone(), x_start.clone(), [t, s]);
        if t.is_pure_noise() || s.is_clean() {
            return constant_slope;
        }
        let (from, to) = (t.sigma / t.alpha, s.sigma / s.alpha);
        let eps = eps_of(&x, x_start, t);
        slopes.insert(0, (from, eps.clone()));
        slopes.truncate(ORDER);
        let nodes: Vec<f64> = slopes.iter().map(|(node, _)| *node).collect();
        let weights = lagrange_integrals(&nodes, [from, to], |_| 1.0);
        // The weights sum to `to - from`. Adding whole slopes to `x s.alpha / t.alpha` would be equivalent but lose precision where t.alpha is
        // nearly 0 and both are huge.
        let earlier = slopes.iter().zip(weights).skip(1);
        earlier.fold(constant_slope, |x, ((_, slope), weight)| x + (slope.clone() - eps.clone()) * (weight * s.alpha))
    })
}
