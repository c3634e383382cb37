//! How data is noised, what the network predicts, how the loss is weighted; and the resulting [`Denoiser`], the only thing that samplers see. A
//! formulation is one type in one file, and a line in [`FormulationConfig`]. Not here: samplers, and anything that trains.

mod classifier;
mod config;
mod continuous_time;
mod denoiser;
mod distribution;
mod elucidated;
mod error;
mod fit;
mod formulation;
mod gaussian;
mod guidance;
mod immiscible;
mod learned_variance;
mod loss;
mod network_denoiser;
mod prediction;
mod prepared;
mod process;
mod rectified_flow;
pub mod schedule;
mod spacing;
#[cfg(test)]
mod tests;
mod weighted_objective;

pub use classifier::ClassifierGuidance;
pub use config::{DiffusionConfig, FormulationConfig, SharedConfig};
pub use continuous_time::{ContinuousTime, ContinuousTimeConfig, NoiseSchedule, SimpleConfig};
pub use denoiser::{Denoiser, Estimate, NoiseLevel};
pub use distribution::inverse_normal_cdf;
pub use elucidated::{Elucidated, ElucidatedConfig};
pub use error::DiffusionConfigError;
pub use fit::Misfit;
pub use formulation::{Formulation, Output};
pub use gaussian::{GaussianConfig, GaussianDiffusion, LossWeight};
pub use guidance::{GuidanceConfig, Threshold, projection};
pub use immiscible::least_distance_assignment;
pub use learned_variance::{LearnedVariance, LearnedVarianceConfig, VarianceReading};
pub use loss::Examples;
pub use network_denoiser::{NetworkDenoiser, Push};
pub use prediction::{Coefficients, Objective, Prediction};
pub use prepared::Prepared;
pub use process::{Diffusion, Draws};
pub use rectified_flow::{RectifiedFlow, RectifiedFlowConfig, TimeDistribution};
pub use schedule::{BetaSchedule, ScheduleConfig};
pub use spacing::NoiseLevels;
pub(crate) use spacing::even_in_log_snr;
pub use weighted_objective::{ObjectiveWeights, WeightedObjectiveConfig};
