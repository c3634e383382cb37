//! How data is noised, what the network predicts, how the loss is weighted; and the [`Denoiser`] that comes out of it, the one
//! thing that samplers see. Not here: samplers, and anything that trains.

pub mod config;
mod denoiser;
mod gaussian;
mod immiscible;
pub mod schedule;

pub use config::{BetaSchedule, GaussianConfig, GaussianConfigError, Objective};
pub use denoiser::{Denoiser, Estimate, NoiseLevel};
pub use gaussian::{Draws, GaussianDenoiser, GaussianDiffusion};
pub use immiscible::least_distance_assignment;
