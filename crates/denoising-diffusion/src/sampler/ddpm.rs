//! Ancestral sampling (Ho et al. 2020, algorithm 2), over any levels of noise.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, walk};
use crate::diffusion::{Denoiser, NoiseLevel};

/// The variance of the noise that each step adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PosteriorVariance {
    /// That of q(x_s | x_t, x_start): optimal if data were a single point. The reference's only choice.
    #[default]
    Small,
    /// That of q(x_t | x_s), `beta_t` between neighbours: optimal if data were white noise. The published CIFAR-10 FID of 3.17
    /// needs it.
    Large,
}

/// From `x` at `levels[0]` to the last level, one step per pair of neighbours. With `a = alpha_t / alpha_s` and
/// `v = sigma_t^2 - a^2 sigma_s^2`: `x_s = (a sigma_s^2 x_t + alpha_s v x_start) / sigma_t^2 + sqrt(variance) z`.
/// A step to clean data adds no noise.
pub fn ddpm<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    variance: PosteriorVariance,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    walk(denoiser, x, levels, callback, |index, x, estimate, [t, s]| {
        let (a, v) = (t.alpha / s.alpha, t.variance_given(&s));
        let dims = x.dims();
        let mean = x * (a * (s.sigma / t.sigma).powi(2)) + estimate.x_start.clone() * (s.alpha * v / t.sigma.powi(2));
        if s.sigma == 0.0 {
            return mean;
        }
        let variance = match variance {
            PosteriorVariance::Small => t.posterior_variance(&s),
            PosteriorVariance::Large => v,
        };
        mean + noise.step(index, dims) * variance.sqrt()
    })
}
