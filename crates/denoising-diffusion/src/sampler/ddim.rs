//! Denoising diffusion implicit models (Song et al. 2020, arXiv:2010.02502, eq. 12), over any levels of noise.

use burn::tensor::Tensor;

use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, walk_once};
use crate::diffusion::{Denoiser, Estimate, NoiseLevel};

/// From `x` at `levels[0]` to the last level. `eta` in [0, 1]: 0 is deterministic, 1 adds the noise of ancestral sampling.
/// `eps = (x_t - alpha_t x_start) / sigma_t`, `up = eta sqrt(posterior variance)`,
/// `x_s = alpha_s x_start + sqrt(sigma_s^2 - up^2) eps + up z`.
pub fn ddim<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    eta: f64,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let dims = x.dims();
    walk_once(denoiser, x, levels, callback, |index, x, estimate, pair| {
        ddim_step(x, estimate, pair, eta, || noise.step(index, dims))
    })
}

/// One step from level t to level s.
pub(super) fn ddim_step<const D: usize>(
    x: Tensor<D>,
    estimate: &Estimate<D>,
    [t, s]: [NoiseLevel; 2],
    eta: f64,
    draw: impl FnOnce() -> Tensor<D>,
) -> Tensor<D> {
    let up = eta * t.posterior_variance(&s).sqrt();
    let along_eps = (s.sigma.powi(2) - up.powi(2)).max(0.0).sqrt();
    let next = estimate.x_start.clone() * s.alpha + estimate.eps(x, t) * along_eps;
    if up > 0.0 { next + draw() * up } else { next }
}
