//! The precision in which a table of numbers was stored before it was read as `f32`. Not here: element types of tensors in files (`dtype.rs`).

use half::{bf16, f16};

/// A floating-point format, recognised by the values that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TablePrecision {
    F16,
    Bf16,
    F32,
}

impl TablePrecision {
    /// The coarsest format that has all of these values: a state dict in half precision may have been saved as one of f32.
    pub fn of(values: &[f32]) -> Self {
        let all = |same: fn(f32) -> bool| values.iter().all(|&value| !value.is_finite() || same(value));
        // Most values of bf16 are values of f16, too, but hardly the other way round.
        if all(|value| bf16::from_f32(value).to_f32() == value) {
            Self::Bf16
        } else if all(|value| f16::from_f32(value).to_f32() == value) {
            Self::F16
        } else {
            Self::F32
        }
    }

    /// The largest distance between a number and the stored value that it was rounded to.
    pub fn rounding(self, stored: f64) -> f64 {
        let (digits, least_exponent) = match self {
            Self::F16 => (11, -14),
            Self::Bf16 => (8, -126),
            Self::F32 => (24, -126),
        };
        // A value of 0 has the spacing of the smallest ones.
        let exponent = (stored.abs().log2().floor() as i32).max(least_exponent);
        2f64.powi(exponent - digits)
    }

    /// Its name, if it is half precision.
    pub fn half(self) -> Option<&'static str> {
        match self {
            Self::F16 => Some("f16"),
            Self::Bf16 => Some("bf16"),
            Self::F32 => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_recognised_by_their_values() {
        let values: Vec<f32> = (1..50).map(|i| i as f32 * 0.0123).collect();
        let halves = |of: fn(f32) -> f32| values.iter().map(|&value| of(value)).collect::<Vec<_>>();
        assert_eq!(TablePrecision::of(&values), TablePrecision::F32);
        assert_eq!(TablePrecision::of(&halves(|x| f16::from_f32(x).to_f32())), TablePrecision::F16);
        assert_eq!(TablePrecision::of(&halves(|x| bf16::from_f32(x).to_f32())), TablePrecision::Bf16);
        assert_eq!(TablePrecision::of(&[f32::INFINITY, f32::NAN, 0.5]), TablePrecision::Bf16);
    }

    #[test]
    fn no_number_is_rounded_further() {
        for x in [0.0, 1e-7, 3e-6, 6.2e-5, 0.017, 0.5, 0.9999, 5.0, 3e4] {
            let stored = [
                (TablePrecision::F16, f16::from_f64(x).to_f64()),
                (TablePrecision::Bf16, bf16::from_f64(x).to_f64()),
                (TablePrecision::F32, f64::from(x as f32)),
            ];
            for (precision, stored) in stored {
                let rounding = precision.rounding(stored);
                assert!((x - stored).abs() <= rounding, "{precision:?} {x}");
                assert!(rounding <= (stored * 0.004).max(3e-8), "{precision:?} {x}");
            }
        }
    }
}
