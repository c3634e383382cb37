//! One file per command: typed arguments in, library calls, results out.

pub mod average;
pub mod bench;
pub mod convert;
pub mod devices;
pub mod edit;
pub mod eval;
pub mod fid;
pub mod info;
pub mod inspect;
pub mod list;
pub mod sample;
pub mod stats;
pub mod train;
pub mod train_classifier;
