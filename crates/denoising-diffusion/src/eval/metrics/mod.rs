//! Metrics on tables of features: mathematics on plain slices, with the same result on any number of threads. Not here: images, networks, files.

use std::ops::ControlFlow;

mod distances;
pub mod draws;
pub mod estimate;
pub mod features;
pub mod fid;
pub mod frechet;
pub mod inception_score;
pub mod kid;
mod kid_kernels;
mod linalg;
pub mod neighbours;
pub mod prdc;
mod projection;
pub mod sliced_wasserstein;
pub mod spectrum;
pub mod statistics;
mod sums;
pub mod table_error;

/// Called with the share of the work that is done, from 0 to 1; can stop it.
pub type OnShare<'a> = &'a mut dyn FnMut(f64) -> ControlFlow<()>;
