//! The loops over rows of channels of RMS normalisation. A few rows at a time fit into the first-level cache, so that several passes over them read
//! memory only once.

use crate::activation::{Activation, silu, silu_slope};
use crate::simd::{MAX_LANES, Simd, simd_fn};

/// Lower bound of norms, as in PyTorch's `normalize`.
const MIN_NORM: f32 = 1e-12;

/// Number of narrow rows that are processed together: they share the loads of per-channel values, and one square root and division.
const ROWS: usize = 4;
/// Number of channels from which on rows are processed one by one: hardware prefetching follows one row, not four.
const WIDE: usize = 128;

/// The first values at `p`: a whole vector, or `n` if not `WHOLE`.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, const WHOLE: bool>(p: *const f32, n: usize) -> S::V {
    unsafe { if WHOLE { S::load(p) } else { S::load_n(p, n) } }
}

#[inline(always)]
pub(super) unsafe fn store<S: Simd, const WHOLE: bool>(p: *mut f32, v: S::V, n: usize) {
    unsafe { if WHOLE { S::store(p, v) } else { S::store_n(p, v, n) } }
}

/// The norms of `R` rows, not clamped, and the inverses of the clamped norms.
#[inline(always)]
unsafe fn norms<S: Simd, const R: usize, const WHOLE: bool>(x: *const f32, c: usize) -> [[f32; MAX_LANES]; 2] {
    unsafe {
        let (mut norms, mut inverse) = ([1.0f32; MAX_LANES], [0.0f32; MAX_LANES]);
        for (row, norm) in norms[..R].iter_mut().enumerate() {
            let x = x.add(row * c);
            let mut sums = [S::splat(0.0); 2];
            let mut k = 0;
            while k + 2 * S::LANES <= c {
                let (a, b) = (S::load(x.add(k)), S::load(x.add(k + S::LANES)));
                sums = [S::fma(a, a, sums[0]), S::fma(b, b, sums[1])];
                k += 2 * S::LANES;
            }
            while k < c {
                let a = load::<S, WHOLE>(x.add(k), c - k);
                sums[0] = S::fma(a, a, sums[0]);
                k += S::LANES;
            }
            *norm = S::sum(S::add(sums[0], sums[1]));
        }
        let norm = S::sqrt(S::load(norms.as_ptr()));
        S::store(norms.as_mut_ptr(), norm);
        // The order of arguments lets a NaN through.
        S::store(inverse.as_mut_ptr(), S::div(S::splat(1.0), S::max(S::splat(MIN_NORM), norm)));
        [norms, inverse]
    }
}

/// Calls `$body` for all rows: [`ROWS`] at a time if they are narrow; with whole vectors only if they divide the channels.
macro_rules! for_rows {
    ($rows:expr, $c:expr, $body:ident::<$s:ident $(, $flag:tt)*>, |$at:ident| ($($arg:expr),*)) => {
        let (rows, c) = ($rows, $c);
        let mut row = 0;
        if c % $s::LANES == 0 && c < WIDE {
            while row + ROWS <= rows {
                let $at = row * c;
                $body::<$s, ROWS, true $(, $flag)*>($($arg),*);
                row += ROWS;
            }
        }
        while row < rows {
            let $at = row * c;
            if c % $s::LANES == 0 {
                $body::<$s, 1, true $(, $flag)*>($($arg),*);
            } else {
                $body::<$s, 1, false $(, $flag)*>($($arg),*);
            }
            row += 1;
        }
    };
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
        let (count, x, y, affine) = (x.len() / c, x.as_ptr(), y.as_mut_ptr(), [gain.as_ptr(), shift.as_ptr()]);
        match (activation, residual.map(<[f32]>::as_ptr)) {
            (Activation::Identity, None) => {
                for_rows!(count, c, forward_rows::<S, false, false>, |at| (x.add(at), affine, c, x, y.add(at)));
            }
            (Activation::Identity, Some(r)) => {
                for_rows!(count, c, forward_rows::<S, false, true>, |at| (x.add(at), affine, c, r.add(at), y.add(at)));
            }
            (Activation::Silu, None) => {
                for_rows!(count, c, forward_rows::<S, true, false>, |at| (x.add(at), affine, c, x, y.add(at)));
            }
            (Activation::Silu, Some(r)) => {
                for_rows!(count, c, forward_rows::<S, true, true>, |at| (x.add(at), affine, c, r.add(at), y.add(at)));
            }
        }
    }
}

/// `R` rows of [`forward`].
#[inline(always)]
unsafe fn forward_rows<S: Simd, const R: usize, const WHOLE: bool, const SILU: bool, const RESIDUAL: bool>(
    x: *const f32,
    [gain, shift]: [*const f32; 2],
    c: usize,
    residual: *const f32,
    y: *mut f32,
) {
    unsafe {
        let [_, inverse] = norms::<S, R, WHOLE>(x, c);
        let mut k = 0;
        while k < c {
            let n = c - k;
            let (gain, shift) = (load::<S, WHOLE>(gain.add(k), n), load::<S, WHOLE>(shift.add(k), n));
            for (row, &inverse) in inverse[..R].iter().enumerate() {
                let at = row * c + k;
                let unit = S::mul(load::<S, WHOLE>(x.add(at), n), S::splat(inverse));
                let mut out = S::fma(unit, gain, shift);
                if SILU {
                    out = silu::<S>(out);
                }
                if RESIDUAL {
                    out = S::add(out, load::<S, WHOLE>(residual.add(at), n));
                }
                store::<S, WHOLE>(y.add(at), out, n);
            }
            k += S::LANES;
        }
    }
}

simd_fn! {
    /// With `unit = x / max(|x|, 1e-12)` and `du = dy activation'(unit gain + shift)`, for every row:
    /// dx = (du gain - unit sum(du gain unit)) / |x|, where the second term is absent if the norm was clamped;
    /// `sums[0] += du`, `sums[1] += du unit`.
    ///
    /// # Safety
    /// `x`, `dy` and `dx` have the same whole number of rows, `shift` has one, `sums` has two.
    pub(super) unsafe fn backward<S>(
        x: &[f32],
        dy: &[f32],
        gain: &[f32],
        shift: &[f32],
        activation: Activation,
        dx: &mut [f32],
        sums: &mut [f32],
    ) {
        let c = gain.len();
        let (count, x, dy, dx, sums) = (x.len() / c, x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr(), sums.as_mut_ptr());
        let affine = [gain.as_ptr(), shift.as_ptr()];
        match activation {
            Activation::Identity => {
                for_rows!(count, c, backward_rows::<S, false>, |at| (x.add(at), dy.add(at), affine, c, dx.add(at), sums));
            }
            Activation::Silu => {
                for_rows!(count, c, backward_rows::<S, true>, |at| (x.add(at), dy.add(at), affine, c, dx.add(at), sums));
            }
        }
    }
}

/// `R` rows of [`backward`].
#[inline(always)]
unsafe fn backward_rows<S: Simd, const R: usize, const WHOLE: bool, const SILU: bool>(
    x: *const f32,
    dy: *const f32,
    [gain, shift]: [*const f32; 2],
    c: usize,
    dx: *mut f32,
    sums: *mut f32,
) {
    unsafe {
        let [norms, inverse] = norms::<S, R, WHOLE>(x, c);
        let (sum_du, sum_unit) = (sums, sums.add(c));
        let mut dots = [S::splat(0.0); R];
        let mut k = 0;
        while k < c {
            let n = c - k;
            let (gain, shift) = (load::<S, WHOLE>(gain.add(k), n), load::<S, WHOLE>(shift.add(k), n));
            let mut total_du = load::<S, WHOLE>(sum_du.add(k), n);
            let mut total_unit = load::<S, WHOLE>(sum_unit.add(k), n);
            for (row, dot) in dots.iter_mut().enumerate() {
                let at = row * c + k;
                let unit = S::mul(load::<S, WHOLE>(x.add(at), n), S::splat(inverse[row]));
                let mut du = load::<S, WHOLE>(dy.add(at), n);
                if SILU {
                    du = S::mul(du, silu_slope::<S>(S::fma(unit, gain, shift)));
                }
                total_du = S::add(total_du, du);
                total_unit = S::fma(du, unit, total_unit);
                let du = S::mul(du, gain);
                *dot = S::fma(du, unit, *dot);
                // Stored where the result will be.
                store::<S, WHOLE>(dx.add(at), du, n);
            }
            store::<S, WHOLE>(sum_du.add(k), total_du, n);
            store::<S, WHOLE>(sum_unit.add(k), total_unit, n);
            k += S::LANES;
        }
        for (row, dot) in dots.into_iter().enumerate() {
            let dot = S::splat(if norms[row] < MIN_NORM { 0.0 } else { S::sum(dot) });
            let inverse = S::splat(inverse[row]);
            let mut k = 0;
            while k < c {
                let (n, at) = (c - k, row * c + k);
                let unit = S::mul(load::<S, WHOLE>(x.add(at), n), inverse);
                let du = load::<S, WHOLE>(dx.add(at), n);
                store::<S, WHOLE>(dx.add(at), S::mul(S::sub(du, S::mul(unit, dot)), inverse), n);
                k += S::LANES;
            }
        }
    }
}
