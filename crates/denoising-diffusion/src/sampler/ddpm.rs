//! Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, algorithm 2), over any levels of noise.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, walk_once};
use crate::diffusion::{Denoiser, Estimate, NoiseLevel};

/// The variance of the noise that each step adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PosteriorVariance {
    /// That of q(x_s | x_t, x_start): optimal if the data were a single point. The reference's only choice.
    #[default]
    Small,
    /// That of q(x_t | x_s), `beta_t` between neighbours: optimal if the data were white noise. The published CIFAR-10 FID of 3.17 needs it.
    Large,
    /// What the network learned, between the two (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15), element by element:
    /// `exp(v ln large + (1 - v) ln small)`, v being [`Estimate::variance`]. Equals [`Small`](Self::Small) if the network learned none.
    Learned,
}

/// From `x` at `levels[0]` to the last level, one step per pair of neighbours. With `a = alpha_t / alpha_s` and `v = sigma_t^2 - a^2 sigma_s^2`:
/// `x_s = (a sigma_s^2 x_t + alpha_s v x_start) / sigma_t^2 + sqrt(variance) z`. A step to clean data adds no noise. [`Estimate::renoise`] is
/// ignored: the posterior's mean uses one estimate.
pub fn ddpm<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    variance: PosteriorVariance,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let dims = x.dims();
    walk_once(denoiser, x, levels, callback, |index, x, estimate, pair| {
        ddpm_step(x, estimate, pair, variance, || noise.step(index, dims))
    })
}

/// One step from level t to level s.
pub(super) fn ddpm_step<const D: usize>(
    x: Tensor<D>,
    estimate: &Estimate<D>,
    [t, s]: [NoiseLevel; 2],
    variance: PosteriorVariance,
    draw: impl FnOnce() -> Tensor<D>,
) -> Tensor<D> {
    let (a, large) = (t.alpha / s.alpha, t.variance_given(&s));
    let mean = x * (a * (s.sigma / t.sigma).powi(2)) + estimate.x_start.clone() * (s.alpha * large / t.sigma.powi(2));
    // Not left to the match below: a step to clean data has small variance 0, whose logarithm is minus infinity.
    if s.is_clean() {
        return mean;
    }
    let small = t.posterior_variance(&s);
    match (variance, &estimate.variance) {
        (PosteriorVariance::Large, _) => mean + draw() * large.sqrt(),
        (PosteriorVariance::Learned, Some(v)) => {
            let deviation = (v.clone() * (0.5 * (large / small).ln())).exp() * small.sqrt();
            mean + draw() * deviation
        }
        (PosteriorVariance::Small | PosteriorVariance::Learned, _) => mean + draw() * small.sqrt(),
    }
}

/// A denoiser whose learned variances are clamped to their bounds. A network that is hardly trained, or that sees input unlike its training data,
/// may exceed them, and the samples then diverge.
pub(super) struct WithinBounds<'a, T>(pub &'a T);

impl<const D: usize, T: Denoiser<D>> Denoiser<D> for WithinBounds<'_, T> {
    fn denoise(&self, x: Tensor<D>, level: NoiseLevel, x_self_cond: Option<Tensor<D>>) -> Estimate<D> {
        let estimate = self.0.denoise(x, level, x_self_cond);
        Estimate { variance: estimate.variance.map(|variance| variance.clamp(0.0, 1.0)), ..estimate }
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.0.level_at_log_snr(log_snr)
    }
}
