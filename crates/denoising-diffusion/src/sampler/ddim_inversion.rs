//! DDIM in reverse: the noise from which a deterministic solver makes given data.

use burn::tensor::Tensor;

use super::step::{Callback, Interrupted, walk};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at the last of `levels` (given as to any sampler, noisiest first) up to `levels[0]`: DDIM's deterministic step (Song et al. 2020,
/// arXiv:2010.02502, section 4.3 and eq. 14) in the other direction, with the estimate made at the lower level s:
/// `x_t = alpha_t x_start + sigma_t eps`. First order: [`ddim`](super::ddim()) over the same levels returns to `x` as the number of steps grows.
///
/// Clean data contains no noise whose direction could be followed. That step instead uses the eps of `alpha_t x` at the level above, which is one
/// step of the iteration that solves DDIM's last step for x_t. Steps are counted from the clean end.
pub fn ddim_inversion<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let upwards: Vec<NoiseLevel> = levels.iter().rev().copied().collect();
    walk(x, &upwards, callback, |_, x, x_self_cond, [s, t]| {
        if s.is_clean() {
            let scaled = x * (t.alpha / s.alpha);
            let estimate = denoiser.denoise(scaled.clone(), t, x_self_cond);
            return (scaled.clone() + estimate.eps(scaled, t) * t.sigma, estimate.x_start);
        }
        let estimate = denoiser.denoise(x.clone(), s, x_self_cond);
        let next = estimate.x_start.clone() * t.alpha + estimate.eps(x, s) * t.sigma;
        (next, estimate.x_start)
    })
}
