//! SDE-DPM-Solver++(3M).

use burn::tensor::Tensor;

use super::dpmpp_2m::halfway;
use super::exponential::lambda;
use super::lagrange::lagrange_integrals;
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, walk_once};
use crate::diffusion::{Denoiser, NoiseLevel};

/// Estimates that a step is made from.
const ORDER: usize = 3;
/// Steps of lambda beyond which the two newest are used, as by [`dpmpp_sde_2m`](super::dpmpp_sde_2m()): so far away from the estimates, a parabola through
/// three of them does more harm than good.
const LARGE: f64 = 0.5;

/// From `x` at `levels[0]` to the last level, as [`dpmpp_sde_2m`](super::dpmpp_sde_2m()), with the last three estimates in place of two
/// (k-diffusion's `dpmpp_3m_sde`). With `q = e^-h`:
/// `x_s = (sigma_s / sigma_t) q^eta x_t + alpha_s I + sigma_s sqrt(1 - q^(2 eta)) z`, where `I` is the integral of
/// `(1 + eta) e^(-(1 + eta) (lambda_s - lambda)) x_start(lambda)` over the step and x_start(lambda) the polynomial through the estimates.
/// Without noise (eta 0) this is DPM-Solver++ of third order, but for large steps, which are those of second order. One estimate per step; the second
/// step uses two, the first one and that to clean data one. `eta` at least 0. Ignores [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub fn dpmpp_sde_3m<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    eta: f64,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let dims = x.dims();
    // (lambda, x_start), the newest first.
    let mut estimates: Vec<(f64, Tensor<D>)> = Vec::new();
    walk_once(denoiser, x, levels, callback, |index, x, estimate, [t, s]| {
        let q = (t.alpha * s.sigma) / (t.sigma * s.alpha);
        estimates.insert(0, (lambda(t), estimate.x_start.clone()));
        estimates.truncate(ORDER);
        let whole = 1.0 - q.powf(1.0 + eta);
        let weights = match &estimates[..] {
            [_] => vec![whole],
            _ if s.is_clean() => vec![whole],
            [(now, _), (last, _), ..] if lambda(s) - now > LARGE => {
                let c = halfway([*last, *now, lambda(s)]);
                vec![(1.0 + c) * whole, -c * whole]
            }
            several => weights(several, [t, s], 1.0 + eta),
        };
        let start = x * (s.sigma / t.sigma * q.powf(eta));
        let parts = estimates.iter().zip(weights).map(|((_, x_start), weight)| x_start.clone() * (weight * s.alpha));
        let next = parts.fold(start, |x, part| x + part);
        if t.is_pure_noise() {
            // Its lambda is infinite.
            estimates.clear();
        }
        let up = s.sigma * (1.0 - q.powf(2.0 * eta)).sqrt();
        if up > 0.0 { next + noise.step(index, dims) * up } else { next }
    })
}

/// The weight of each estimate in the integral of `rate e^(-rate (lambda_s - lambda)) x_start(lambda)` over the step; lambda is counted from its
/// beginning, in steps.
fn weights<const D: usize>(estimates: &[(f64, Tensor<D>)], [t, s]: [NoiseLevel; 2], rate: f64) -> Vec<f64> {
    let h = lambda(s) - lambda(t);
    let nodes: Vec<f64> = estimates.iter().map(|(at, _)| (at - lambda(t)) / h).collect();
    lagrange_integrals(&nodes, [0.0, 1.0], |u| rate * h * (-rate * h * (1.0 - u)).exp())
}
