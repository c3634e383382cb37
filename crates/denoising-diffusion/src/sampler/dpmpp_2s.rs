//! DPM-Solver++(2S).

use burn::tensor::Tensor;

use super::exponential::exponential_step;
use super::step::{Callback, Interrupted, walk};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at `levels[0]` to the last level (Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2): the estimate halfway in lambda, at the
/// level given by [`Denoiser::level_at_log_snr`], then the whole step with it: `x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) x_start_mid`.
/// Second order, two estimates per step; first order with one estimate where there is no midpoint: from pure noise and to clean data. Ignores
/// [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub fn dpmpp_2s<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    walk(x, levels, callback, |_, x, x_self_cond, [t, s]| {
        let mut x_start = denoiser.denoise(x.clone(), t, x_self_cond).x_start;
        if has_halfway([t, s]) {
            let mid = denoiser.level_at_log_snr(0.5 * (t.log_snr() + s.log_snr()));
            let x_mid = exponential_step(x.clone(), x_start.clone(), [t, mid]);
            x_start = denoiser.denoise(x_mid, mid, Some(x_start)).x_start;
        }
        (exponential_step(x, x_start.clone(), [t, s]), x_start)
    })
}

/// Whether there is a level halfway between t and s, which needs a second estimate.
pub(super) fn has_halfway([t, s]: [NoiseLevel; 2]) -> bool {
    !t.is_pure_noise() && !s.is_clean()
}
