//! Heun's method.

use burn::tensor::Tensor;

use super::churn::Churn;
use super::exponential::eps_of;
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, walk};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at `levels[0]` to the last level (Karras et al. 2022, arXiv:2206.00364, algorithm 2): an Euler step of
/// `d(x / alpha) / d(sigma / alpha) = eps`, then the same step with the mean of the slopes at both ends,
/// `x_s = alpha_s (x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) (eps_t + eps_s) / 2)`. Second order, two estimates per step; only the
/// first one where the second slope does not exist or misleads (see `SLOPE_IS_CONSTANT`). Ignores
/// [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub fn heun<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    churn: &Churn,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let (dims, steps) = (x.dims(), levels.len().saturating_sub(1));
    walk(x, levels, callback, |index, x, x_self_cond, [t, s]| {
        let two_slopes = has_two_slopes([t, s]);
        let (x, t) = churn.apply(denoiser, x, t, steps, || noise.step(index, dims));
        let x_start = denoiser.denoise(x.clone(), t, x_self_cond).x_start;
        let eps = eps_of(&x, &x_start, t);
        let euler = x_start.clone() * s.alpha + eps.clone() * s.sigma;
        if !two_slopes {
            return (euler, x_start);
        }
        let x_start = denoiser.denoise(euler.clone(), s, Some(x_start)).x_start;
        let half_step = 0.5 * (s.sigma - s.alpha * t.sigma / t.alpha);
        let correction = (eps_of(&euler, &x_start, s) - eps) * half_step;
        (euler + correction, x_start)
    })
}

/// Where `sigma / alpha` is above this, the slope is essentially the noise in x and stays constant until data become visible: there the Euler step
/// is exact up to a relative error of `(deviation of the data / sigma)^2`. Our schedules begin at 1,800 or 20,000 and fall below 10 in their first
/// step; half of such a step times the small change of slope at its end would be many times x. Karras et al. begin at 80.
const SLOPE_IS_CONSTANT: f64 = 100.0;

/// Whether the step from t to s uses the mean of two slopes, and so two estimates.
pub(super) fn has_two_slopes([t, s]: [NoiseLevel; 2]) -> bool {
    t.sigma <= SLOPE_IS_CONSTANT * t.alpha && !s.is_clean()
}
