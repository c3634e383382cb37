//! How good samples are: features, metrics, and what a reader needs to know to trust them.
//!
//! Not here: drawing samples ([`crate::generate`]), and files that are not about evaluation.

pub mod accuracy;
pub mod config;
mod copies;
pub mod evaluate;
pub mod extract;
pub mod flow_likelihood;
pub mod held_out;
pub mod images;
pub mod inception;
pub mod likelihood;
pub mod metric;
pub mod metrics;
pub mod needs;
mod pixels;
pub mod result;
pub mod statistics_file;
