//! How operations are computed, for the whole process: Burn's operations carry no context of their own. No setting changes what is
//! computed beyond rounding.

use std::sync::atomic::{AtomicBool, Ordering};

/// How exactly convolutions are computed on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPrecision {
    /// Winograd's algorithm where it is faster: relative errors of some 1e-5.
    Fast,
    /// Products and sums only: relative errors of some 1e-6.
    Precise,
}

/// What blocks keep for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// All that it needs.
    Keep,
    /// Their inputs; the rest is computed again, to the same bits. On the CPU only; elsewhere a device with Burn's own
    /// `gradient_checkpointing` does the like.
    Recompute,
}

static PRECISE: AtomicBool = AtomicBool::new(false);
static RECOMPUTE: AtomicBool = AtomicBool::new(false);

/// Sets the precision of convolutions from now on; at the start it is [`ConvPrecision::Fast`].
pub fn set_conv_precision(precision: ConvPrecision) {
    PRECISE.store(precision == ConvPrecision::Precise, Ordering::Relaxed);
}

pub(super) fn conv_precision() -> ConvPrecision {
    if PRECISE.load(Ordering::Relaxed) { ConvPrecision::Precise } else { ConvPrecision::Fast }
}

/// Sets what blocks keep from now on; at the start it is [`Activations::Keep`].
pub fn set_activations(activations: Activations) {
    RECOMPUTE.store(activations == Activations::Recompute, Ordering::Relaxed);
}

/// See [`set_activations`].
pub fn activations() -> Activations {
    if RECOMPUTE.load(Ordering::Relaxed) { Activations::Recompute } else { Activations::Keep }
}
