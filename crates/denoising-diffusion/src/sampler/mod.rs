//! How noise becomes data: one short function per solver over one [`Denoiser`](crate::diffusion::Denoiser), a list of noise levels
//! that ends in clean data, a source of noise and a callback. Samplers never see a network, a schedule or a trainer.

mod config;
mod ddim;
mod ddpm;
mod interpolate;
mod noise_source;
mod step;
#[cfg(test)]
mod tests;

pub use config::{SampleConfig, SampleConfigError, SamplerKind};
pub use ddim::ddim;
pub use ddpm::{PosteriorVariance, ddpm};
pub use interpolate::interpolate;
pub use noise_source::{NoiseSource, SeededNoise};
pub use step::{Callback, Interrupted, Step, ignore};
