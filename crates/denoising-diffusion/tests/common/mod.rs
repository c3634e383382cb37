//! What several test binaries need.

pub mod device;
pub mod outcome;
