//! SDE-DPM-Solver++(2M).

use burn::tensor::Tensor;

use super::dpmpp_2m::LastEstimate;
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, walk_once};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at `levels[0]` to the last level (Lu et al. 2022, arXiv:2211.01095, section 5, for eta 1; eta as in k-diffusion). With `d` as in
/// [`dpmpp_2m`](super::dpmpp_2m()), to which it reduces at eta 0, and `q = e^-h`:
/// `x_s = (sigma_s / sigma_t) q^eta x_t + alpha_s (1 - q^(1 + eta)) d + sigma_s sqrt(1 - q^(2 eta)) z`. If `eta` is above 0, pure noise (q = 0) is
/// replaced by new noise. `eta` is at least 0. Ignores [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub fn dpmpp_sde_2m<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    eta: f64,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let dims = x.dims();
    let mut last = LastEstimate::default();
    walk_once(denoiser, x, levels, callback, |index, x, estimate, [t, s]| {
        let d = last.extrapolate(&estimate.x_start, [t, s]);
        let q = (t.alpha * s.sigma) / (t.sigma * s.alpha);
        let next = x * (s.sigma / t.sigma * q.powf(eta)) + d * (s.alpha * (1.0 - q.powf(1.0 + eta)));
        let up = s.sigma * (1.0 - q.powf(2.0 * eta)).sqrt();
        if up > 0.0 { next + noise.step(index, dims) * up } else { next }
    })
}
