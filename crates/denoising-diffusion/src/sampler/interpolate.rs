//! Interpolation between two batches of data (Ho et al. 2020, section 4.4).

use burn::tensor::Tensor;

use super::ddpm::{PosteriorVariance, ddpm};
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted};
use crate::diffusion::{Denoiser, NoiseLevel};

/// Both batches (in the network's range) are noised to `levels[0]`, mixed as `(1 - lambda) x1 + lambda x2` and denoised by
/// ancestral steps. `noises` are the two draws of noise. The mixture keeps its level: denoising starts at the level of noising,
/// where the reference starts one below it.
pub fn interpolate<const D: usize>(
    denoiser: &impl Denoiser<D>,
    [x1, x2]: [Tensor<D>; 2],
    lambda: f64,
    levels: &[NoiseLevel],
    noises: [Tensor<D>; 2],
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let Some(level) = levels.first() else {
        return Ok(x1 * (1.0 - lambda) + x2 * lambda);
    };
    let [n1, n2] = noises;
    let noised = |x: Tensor<D>, n: Tensor<D>| x * level.alpha + n * level.sigma;
    let mixed = noised(x1, n1) * (1.0 - lambda) + noised(x2, n2) * lambda;
    ddpm(denoiser, mixed, levels, PosteriorVariance::Small, noise, callback)
}
