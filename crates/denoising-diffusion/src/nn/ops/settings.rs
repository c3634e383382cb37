//! How operations are computed, for the whole process, because Burn's operations carry no context of their own. No setting changes the result beyond
//! rounding (which in bf16 is to 8 bits).

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How convolutions and full attention are computed on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuArithmetic {
    /// Convolutions by Winograd's algorithm where that is faster: relative errors of some 1e-5.
    Fast,
    /// Products and sums only: relative errors of some 1e-6.
    Precise,
    /// Factors of convolutions, layers on every pixel or patch, and full attention rounded to bf16, sums in f32, if the processor has a
    /// [matrix unit](crate::device::computes_in_bf16) for that; few channels, and machines without one: [`Fast`](Self::Fast). Data and everything
    /// else stay f32.
    Bf16,
}

/// What blocks keep for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Everything that it needs.
    Keep,
    /// Their inputs; the rest is computed again, with the same result.
    Recompute,
}

/// The precision in which networks compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout, except on GPUs that [can](crate::device::multiplies_in_tf32) multiply matrices in TF32: there Burn does so, without a switch.
    #[default]
    F32,
    /// Only on such GPUs: factors of matrix products and convolutions have 11 bits of mantissa; sums and everything else are in f32.
    Tf32,
    /// Data between the layers, and the products of convolutions and attention, are in bf16 (sums in f32). Weights, gradients of weights, optimizer,
    /// average, norms, softmax, embeddings of the noise level and losses stay in f32. On the CPU, [`CpuArithmetic::Bf16`] takes its place
    /// ([`ArithmeticConfig::set_on`](crate::recipe::ArithmeticConfig::set_on)).
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

/// A word that is not the name of a [`Precision`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected f32, tf32 or bf16, found `{0}`")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> Result<Self, UnknownPrecision> {
        [Self::F32, Self::Tf32, Self::Bf16]
            .into_iter()
            .find(|precision| precision.to_string() == text)
            .ok_or_else(|| UnknownPrecision(text.to_owned()))
    }
}

static CPU_ARITHMETIC: AtomicU8 = AtomicU8::new(CpuArithmetic::Fast as u8);
static RECOMPUTE: AtomicBool = AtomicBool::new(false);
static BF16: AtomicBool = AtomicBool::new(false);

/// Sets how the CPU computes from now on; initially it is [`CpuArithmetic::Fast`].
pub fn set_cpu_arithmetic(arithmetic: CpuArithmetic) {
    CPU_ARITHMETIC.store(arithmetic as u8, Ordering::Relaxed);
}

pub(super) fn cpu_arithmetic() -> CpuArithmetic {
    [CpuArithmetic::Precise, CpuArithmetic::Bf16]
        .into_iter()
        .find(|&arithmetic| arithmetic as u8 == CPU_ARITHMETIC.load(Ordering::Relaxed))
        .unwrap_or(CpuArithmetic::Fast)
}

/// Sets what blocks keep from now on; initially it is [`Activations::Keep`].
pub fn set_activations(activations: Activations) {
    RECOMPUTE.store(activations == Activations::Recompute, Ordering::Relaxed);
}

/// See [`set_activations`].
pub fn activations() -> Activations {
    if RECOMPUTE.load(Ordering::Relaxed) { Activations::Recompute } else { Activations::Keep }
}

/// Sets the precision of networks from now on; initially it is [`Precision::F32`]. Read by [`Network::predict`](crate::models::Network::predict).
pub fn set_precision(precision: Precision) {
    BF16.store(precision == Precision::Bf16, Ordering::Relaxed);
}

/// See [`set_precision`]. No operation distinguishes `Tf32` from `F32`, so `Tf32` is returned as `F32`.
pub fn precision() -> Precision {
    if BF16.load(Ordering::Relaxed) { Precision::Bf16 } else { Precision::F32 }
}
