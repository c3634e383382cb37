//! How good samples are: features, metrics, and what a reader must know to trust them.
//!
//! Not here: drawing samples ([`crate::generate`]), and files that are not about evaluation.

pub mod inception;
pub mod result;
