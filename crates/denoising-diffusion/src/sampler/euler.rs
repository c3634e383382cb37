//! Euler's method.

use burn::tensor::Tensor;

use super::churn::Churn;
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, walk};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at `levels[0]` to the last level by Euler steps of the probability flow `d(x / alpha) / d(sigma / alpha) = eps`
/// (Karras et al. 2022, arXiv:2206.00364, eq. 1), with churn (ibid., algorithm 2 without lines 9 to 11):
/// `x_s = alpha_s (x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) eps) = alpha_s x_start + sigma_s eps`. First order. Without
/// churn it is [`ddim`](super::ddim()) with eta 0.
pub fn euler<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    churn: &Churn,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let (dims, steps) = (x.dims(), levels.len().saturating_sub(1));
    walk(x, levels, callback, |index, x, x_self_cond, [t, s]| {
        let (x, t) = churn.apply(denoiser, x, t, steps, || noise.step(index, dims));
        let estimate = denoiser.denoise(x.clone(), t, x_self_cond);
        let next = estimate.x_start.clone() * s.alpha + estimate.eps(x, t) * s.sigma;
        (next, estimate.x_start)
    })
}
