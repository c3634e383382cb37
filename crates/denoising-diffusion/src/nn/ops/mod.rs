//! The few operations that networks spend their time on, channels-last. Each exists in plain tensor operations (`plain`);
//! the CPU backend may run a kernel of ours instead.

pub mod plain;

pub use plain::{attention, conv2d, linear_attention, rms_norm, rms_norm_silu, to_nchw, to_nhwc};
