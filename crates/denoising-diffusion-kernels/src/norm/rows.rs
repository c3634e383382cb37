//! The loops over rows of channels; one row fits the first-level cache, so several passes over it cost little.

use crate::activation::{Activation, silu, silu_slope};
use crate::simd::{LANES, Simd, simd_fn};

/// Norms are clamped to this from below, as in PyTorch's `normalize`.
const MIN_NORM: f32 = 1e-12;

/// The norm of a row, not clamped.
#[inline(always)]
unsafe fn norm<S: Simd>(x: *const f32, c: usize) -> f32 {
    unsafe {
        let mut sums = [S::splat(0.0); 2];
        let mut k = 0;
        while k + 2 * LANES <= c {
            let (a, b) = (S::load(x.add(k)), S::load(x.add(k + LANES)));
            sums = [S::fma(a, a, sums[0]), S::fma(b, b, sums[1])];
            k += 2 * LANES;
        }
        while k < c {
            let a = S::load_n(x.add(k), c - k);
            sums[0] = S::fma(a, a, sums[0]);
            k += LANES;
        }
        S::sum(S::add(sums[0], sums[1])).sqrt()
    }
}

simd_fn! {
    /// y = activation(x / max(|x|, 1e-12) gain + shift) + residual for every row of `gain.len()` values.
    ///
    /// # Safety
    /// `x`, `residual` and `y` have the same whole number of rows, `shift` has one.
    pub(super) unsafe fn forward<S>(
        x: &[f32],
        gain: &[f32],
        shift: &[f32],
        activation: Activation,
        residual: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let c = gain.len();
        let mut at = 0;
        while at < x.len() {
            let (x, y) = (x.as_ptr().add(at), y.as_mut_ptr().add(at));
            let norm = norm::<S>(x, c);
            // Written so that a NaN stays.
            let inverse = S::splat(1.0 / if norm < MIN_NORM { MIN_NORM } else { norm });
            let mut k = 0;
            while k < c {
                let n = (c - k).min(LANES);
                let unit = S::mul(S::load_n(x.add(k), n), inverse);
                let u = S::fma(unit, S::load_n(gain.as_ptr().add(k), n), S::load_n(shift.as_ptr().add(k), n));
                let mut out = match activation {
                    Activation::Identity => u,
                    Activation::Silu => silu::<S>(u),
                };
                if let Some(residual) = residual {
                    out = S::add(out, S::load_n(residual.as_ptr().add(at + k), n));
                }
                S::store_n(y.add(k), out, n);
                k += LANES;
            }
            at += c;
        }
    }
}

simd_fn! {
    /// With `unit = x / max(|x|, 1e-12)` and `du = dy activation'(unit gain + shift)`, for every row:
    /// dx = (du gain - unit sum(du gain unit)) / |x|, where the second term is absent if the norm was clamped;
    /// `sums[0] += du`, `sums[1] += du unit`.
    ///
    /// # Safety
    /// `x`, `dy` and `dx` have the same whole number of rows, `shift` and `du` have one, `sums` has two.
    pub(super) unsafe fn backward<S>(
        x: &[f32],
        dy: &[f32],
        gain: &[f32],
        shift: &[f32],
        activation: Activation,
        dx: &mut [f32],
        sums: &mut [f32],
        du: &mut [f32],
    ) {
        let c = gain.len();
        let (gain, shift, du) = (gain.as_ptr(), shift.as_ptr(), du.as_mut_ptr());
        let (sum_du, sum_unit) = (sums.as_mut_ptr(), sums.as_mut_ptr().add(c));
        let mut at = 0;
        while at < x.len() {
            let (x, dy, dx) = (x.as_ptr().add(at), dy.as_ptr().add(at), dx.as_mut_ptr().add(at));
            let norm = norm::<S>(x, c);
            let clamped = norm < MIN_NORM;
            let inverse = S::splat(1.0 / if clamped { MIN_NORM } else { norm });
            let mut dot = S::splat(0.0);
            let mut k = 0;
            while k < c {
                let n = (c - k).min(LANES);
                let unit = S::mul(S::load_n(x.add(k), n), inverse);
                let gain = S::load_n(gain.add(k), n);
                let mut d = S::load_n(dy.add(k), n);
                if activation == Activation::Silu {
                    d = S::mul(d, silu_slope::<S>(S::fma(unit, gain, S::load_n(shift.add(k), n))));
                }
                S::store_n(du.add(k), d, n);
                S::store_n(sum_du.add(k), S::add(S::load_n(sum_du.add(k), n), d), n);
                S::store_n(sum_unit.add(k), S::fma(d, unit, S::load_n(sum_unit.add(k), n)), n);
                dot = S::fma(S::mul(d, gain), unit, dot);
                k += LANES;
            }
            let dot = S::splat(if clamped { 0.0 } else { S::sum(dot) });
            let mut k = 0;
            while k < c {
                let n = (c - k).min(LANES);
                let unit = S::mul(S::load_n(x.add(k), n), inverse);
                let d = S::mul(S::load_n(du.add(k), n), S::load_n(gain.add(k), n));
                S::store_n(dx.add(k), S::mul(S::sub(d, S::mul(unit, dot)), inverse), n);
                k += LANES;
            }
            at += c;
        }
    }
}
