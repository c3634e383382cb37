//! Denoising diffusion implicit models (Song et al. 2020, eq. 12), over any levels of noise.

use burn::tensor::Tensor;

use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, Step, report};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at `levels[0]` to the last level. `eta` in [0, 1]: 0 is deterministic, 1 adds the noise of ancestral sampling.
/// `eps = (x_t - alpha_t x_start) / sigma_t`, `up = eta sqrt(posterior variance)`,
/// `x_s = alpha_s x_start + sqrt(sigma_s^2 - up^2) eps + up z`.
pub fn ddim<const D: usize>(
    denoiser: &impl Denoiser<D>,
    mut x: Tensor<D>,
    levels: &[NoiseLevel],
    eta: f64,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let total = levels.len().saturating_sub(1);
    let mut x_start = None;
    for (index, pair) in levels.windows(2).enumerate() {
        let (t, s) = (pair[0], pair[1]);
        let estimate = denoiser.denoise(x.clone(), t, x_start.take());
        let up = eta * t.posterior_variance(&s).sqrt();
        let along_eps = (s.sigma.powi(2) - up.powi(2)).max(0.0).sqrt();
        let eps = (x - estimate.clone() * t.alpha) / t.sigma;
        x = estimate.clone() * s.alpha + eps * along_eps;
        if up > 0.0 {
            let z = noise.step(index, x.dims());
            x = x + z * up;
        }
        report(Step { index, total, x: &x, x_start: &estimate }, callback)?;
        x_start = Some(estimate);
    }
    Ok(x)
}
