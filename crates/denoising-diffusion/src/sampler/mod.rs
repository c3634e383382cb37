//! How noise becomes data: one short function per solver, given one [`Denoiser`](crate::diffusion::Denoiser), a list of noise levels, a callback
//! and, for stochastic solvers, a source of noise. Samplers never see a network, a schedule or a trainer.
//!
//! Levels are listed noisiest first and strictly decreasing; clean data is usually the last, but a list may end before it. All solvers work for any
//! (alpha, sigma): variance preserving, alpha = 1 (Karras et al. 2022), straight paths (rectified flow). Many of their equations use
//! `sigma / alpha`, the noise of `x / alpha`, or `lambda = ln(alpha / sigma)`, half of [`log_snr`](crate::diffusion::NoiseLevel::log_snr). Where
//! these are infinite, or too large for what they multiply, solvers take a step that is exact for a constant estimate: from
//! [pure noise](crate::diffusion::NoiseLevel::is_pure_noise), in the first steps only, that of [`ddim`], or, if they add noise, one that replaces
//! all of the noise, or part of it, by new noise; to clean data (sigma = 0), in the last, the estimate itself.

mod churn;
mod config;
mod ddim;
mod ddim_inversion;
mod ddpm;
mod dpmpp_2m;
mod dpmpp_2s;
mod dpmpp_sde_2m;
mod dpmpp_sde_3m;
mod euler;
mod euler_ancestral;
mod exponential;
mod heun;
mod interpolate;
mod kind;
mod lagrange;
mod lms;
mod noise_source;
mod repaint;
mod step;
#[cfg(test)]
mod tests;
mod unipc;

pub use churn::Churn;
pub use config::{SampleConfig, SampleConfigError};
pub use ddim::ddim;
pub use ddim_inversion::ddim_inversion;
pub use ddpm::{PosteriorVariance, ddpm};
pub use dpmpp_2m::dpmpp_2m;
pub use dpmpp_2s::dpmpp_2s;
pub use dpmpp_sde_2m::dpmpp_sde_2m;
pub use dpmpp_sde_3m::dpmpp_sde_3m;
pub use euler::euler;
pub use euler_ancestral::euler_ancestral;
pub use heun::heun;
pub use interpolate::{noised_mixture, slerp};
pub use kind::SamplerKind;
pub use lms::lms;
pub use noise_source::{NoiseSource, SeededNoise};
pub use repaint::{Jumps, Known, RePaint, RePaintStep, inpaint, repaint_schedule};
pub use step::{Callback, Interrupted, Step, ignore};
pub use unipc::{UnipcOrder, unipc};
