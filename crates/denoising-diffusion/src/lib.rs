//! Train, sample and evaluate denoising diffusion models.
//!
//! The parts, each building on those before it: [`nn`] (layers, modes), [`models`] (networks), [`diffusion`] (formulations, which give a
//! [`Denoiser`](diffusion::Denoiser)), [`sampler`] (noise to data), [`generate`] and [`edit`] (images from a network and from images), [`eval`]
//! (metrics), [`train`] (trainer, moving average, checkpoints, run folder), [`recipe`] (a training run described by a TOML file). They are supported
//! by [`data`], [`noise`], [`post_hoc`], [`weights`], [`interop`], [`model_file`], [`classifier_file`] and [`report`], and by [`device`],
//! [`atomic_file`], [`digest`] and [`task`]. `ARCHITECTURE.md` in the repository gives the reasons.

pub mod atomic_file;
pub mod classifier_file;
pub mod data;
pub mod device;
pub mod diffusion;
pub mod digest;
pub mod edit;
pub mod eval;
pub mod generate;
pub mod interop;
pub mod model_file;
pub mod models;
pub mod nn;
pub mod noise;
pub mod post_hoc;
pub mod recipe;
mod recording;
pub mod report;
pub mod sampler;
pub mod task;
#[cfg(test)]
mod testing;
pub mod train;
pub mod weights;
mod weights_file;
