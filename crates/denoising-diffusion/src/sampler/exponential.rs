//! Shared by the deterministic solvers: the step that is exact for a constant estimate, and the noise in x.

use burn::tensor::Tensor;

use crate::diffusion::NoiseLevel;

/// The probability flow from level t to level s if the estimate were constant in between (Lu et al. 2022, arXiv:2211.01095, proposition 4.1):
/// `x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) x_start`, `h = lambda_s - lambda_t`; this is DDIM's step. Written without h, which is
/// infinite from pure noise and to clean data.
pub(super) fn exponential_step<const D: usize>(x: Tensor<D>, x_start: Tensor<D>, [t, s]: [NoiseLevel; 2]) -> Tensor<D> {
    let ratio = s.sigma / t.sigma;
    x * ratio + x_start * (s.alpha - t.alpha * ratio)
}

/// `(x - alpha x_start) / sigma`: the slope of `x / alpha` along `sigma / alpha`. For solvers of higher order, which take the noise and the data
/// from the same estimate and ignore [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub(super) fn eps_of<const D: usize>(x: &Tensor<D>, x_start: &Tensor<D>, level: NoiseLevel) -> Tensor<D> {
    (x.clone() - x_start.clone() * level.alpha) / level.sigma
}

/// `lambda = ln(alpha / sigma)`.
pub(super) fn lambda(level: NoiseLevel) -> f64 {
    0.5 * level.log_snr()
}
