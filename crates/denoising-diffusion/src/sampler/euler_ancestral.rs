//! Euler's method with noise as in ancestral sampling, as in k-diffusion.

use burn::tensor::Tensor;

use super::ddim::ddim;
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted};
use crate::diffusion::{Denoiser, NoiseLevel};

/// From `x` at `levels[0]` to the last level, in terms of `x / alpha` and `sigma / alpha`:
/// `sigma_up = eta sqrt(sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2)`, `sigma_down = sqrt(sigma_s^2 - sigma_up^2)`, an Euler step to sigma_down,
/// then noise of sigma_up. `eta` in [0, 1]; 0 is [`euler`](super::euler()).
///
/// This is DDIM under another name: `alpha_s sigma_up` is eta times the posterior's deviation, and Euler's step down to sigma_down is
/// `x_start + sigma_down eps`. Hence there is no second implementation.
pub fn euler_ancestral<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    eta: f64,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    ddim(denoiser, x, levels, eta, noise, callback)
}
