//! The loops over rows of channels of group normalisation: sums go down columns, so every channel has its own.

use super::rows::{load, store};
use crate::activation::{Activation, silu, silu_slope};
use crate::simd::{Simd, simd_fn};

/// Rows that one pass over the columns takes in, to load and store sums less often.
const ROWS: usize = 4;

/// Calls `$body` for vectors of channels, whole ones and the rest, and for all rows: [`ROWS`] at a time and then one by one.
///
/// `$body` is generic over the rows, whether the vector is whole, and `$flag`; it gets the first row, channel and lanes.
macro_rules! for_tiles {
    ($rows:expr, $c:expr, $body:ident::<$s:ident $(, $flag:tt)*>, |$row:ident, $k:ident, $n:ident| ($($arg:expr),*)) => {
        let (rows, c) = ($rows, $c);
        let mut $row = 0;
        while $row < rows {
            let step = if rows - $row >= ROWS { ROWS } else { 1 };
            let mut $k = 0;
            while $k < c {
                let $n = (c - $k).min($s::LANES);
                match (step == ROWS, $n == $s::LANES) {
                    (true, true) => $body::<$s, ROWS, true $(, $flag)*>($($arg),*),
                    (true, false) => $body::<$s, ROWS, false $(, $flag)*>($($arg),*),
                    (false, true) => $body::<$s, 1, true $(, $flag)*>($($arg),*),
                    (false, false) => $body::<$s, 1, false $(, $flag)*>($($arg),*),
                }
                $k += $s::LANES;
            }
            $row += step;
        }
    };
}

simd_fn! {
    /// Of every channel a centre near its mean.
    ///
    /// # Safety
    /// `x` holds whole rows of `centre.len()` values, at least one.
    pub(super) unsafe fn centres<S>(x: &[f32], centre: &mut [f32]) {
        debug_assert!(!x.is_empty());
        centre.fill(0.0);
        let c = centre.len();
        let (count, x, sum) = (x.len() / c, x.as_ptr(), centre.as_mut_ptr());
        for_tiles!(count, c, sum_tile::<S>, |row, k, n| (x.add(row * c + k), c, n, sum.add(k)));
        centre.iter_mut().for_each(|sum| *sum /= count as f32);
    }
}

simd_fn! {
    /// sums[0] += x - centre, sums[1] += (x - centre)^2, of every channel.
    ///
    /// # Safety
    /// `x` holds whole rows of `centre.len()` values, `sums` has two.
    pub(super) unsafe fn moments<S>(x: &[f32], centre: &[f32], sums: &mut [f32]) {
        let c = centre.len();
        debug_assert!(sums.len() == 2 * c);
        let (count, x, centre, sums) = (x.len() / c, x.as_ptr(), centre.as_ptr(), sums.as_mut_ptr());
        for_tiles!(count, c, moments_tile::<S>, |row, k, n| (x.add(row * c + k), c, n, centre.add(k), sums.add(k)));
    }
}

#[inline(always)]
unsafe fn sum_tile<S: Simd, const R: usize, const WHOLE: bool>(x: *const f32, c: usize, n: usize, sum: *mut f32) {
    unsafe {
        let mut total = load::<S, WHOLE>(sum, n);
        for row in 0..R {
            total = S::add(total, load::<S, WHOLE>(x.add(row * c), n));
        }
        store::<S, WHOLE>(sum, total, n);
    }
}

#[inline(always)]
unsafe fn moments_tile<S: Simd, const R: usize, const WHOLE: bool>(
    x: *const f32,
    c: usize,
    n: usize,
    centre: *const f32,
    sums: *mut f32,
) {
    unsafe {
        let centre = load::<S, WHOLE>(centre, n);
        let (mut sum, mut squares) = (load::<S, WHOLE>(sums, n), load::<S, WHOLE>(sums.add(c), n));
        for row in 0..R {
            let d = S::sub(load::<S, WHOLE>(x.add(row * c), n), centre);
            (sum, squares) = (S::add(sum, d), S::fma(d, d, squares));
        }
        store::<S, WHOLE>(sums, sum, n);
        store::<S, WHOLE>(sums.add(c), squares, n);
    }
}

simd_fn! {
    /// y = activation((x - mean) gain + shift) + residual, with mean, gain and shift the first rows of `map`.
    ///
    /// # Safety
    /// `x`, `residual` and `y` have the same whole number of rows of `c` values, `map` has three at least.
    pub(super) unsafe fn forward<S>(
        x: &[f32],
        c: usize,
        map: &[f32],
        activation: Activation,
        residual: Option<&[f32]>,
        y: &mut [f32],
    ) {
        debug_assert!(map.len() >= 3 * c && x.len() == y.len());
        let (count, x, y, map) = (x.len() / c, x.as_ptr(), y.as_mut_ptr(), map.as_ptr());
        let r = residual.map_or(x, <[f32]>::as_ptr);
        match (activation, residual.is_some()) {
            (Activation::Identity, false) => {
                for_tiles!(count, c, forward_tile::<S, false, false>, |row, k, n| (x, r, y, row * c + k, c, n, map.add(k)));
            }
            (Activation::Identity, true) => {
                for_tiles!(count, c, forward_tile::<S, false, true>, |row, k, n| (x, r, y, row * c + k, c, n, map.add(k)));
            }
            (Activation::Silu, false) => {
                for_tiles!(count, c, forward_tile::<S, true, false>, |row, k, n| (x, r, y, row * c + k, c, n, map.add(k)));
            }
            (Activation::Silu, true) => {
                for_tiles!(count, c, forward_tile::<S, true, true>, |row, k, n| (x, r, y, row * c + k, c, n, map.add(k)));
            }
        }
    }
}

#[inline(always)]
unsafe fn forward_tile<S: Simd, const R: usize, const WHOLE: bool, const SILU: bool, const RESIDUAL: bool>(
    x: *const f32,
    residual: *const f32,
    y: *mut f32,
    first: usize,
    c: usize,
    n: usize,
    map: *const f32,
) {
    unsafe {
        let (mean, gain) = (load::<S, WHOLE>(map, n), load::<S, WHOLE>(map.add(c), n));
        let shift = load::<S, WHOLE>(map.add(2 * c), n);
        for row in 0..R {
            let at = first + row * c;
            let mut out = S::fma(S::sub(load::<S, WHOLE>(x.add(at), n), mean), gain, shift);
            if SILU {
                out = silu::<S>(out);
            }
            if RESIDUAL {
                out = S::add(out, load::<S, WHOLE>(residual.add(at), n));
            }
            store::<S, WHOLE>(y.add(at), out, n);
        }
    }
}

simd_fn! {
    /// du = dy activation'((x - mean) gain + shift), sums[0] += du, sums[1] += du (x - mean).
    ///
    /// # Safety
    /// `x`, `dy` and `du` have the same whole number of rows of `c` values, `map` has three at least, `sums` has two.
    pub(super) unsafe fn outer_grad<S>(
        x: &[f32],
        dy: &[f32],
        c: usize,
        map: &[f32],
        activation: Activation,
        du: &mut [f32],
        sums: &mut [f32],
    ) {
        debug_assert!(map.len() >= 3 * c && sums.len() == 2 * c);
        let (count, x, dy, du, map) = (x.len() / c, x.as_ptr(), dy.as_ptr(), du.as_mut_ptr(), map.as_ptr());
        let sums = sums.as_mut_ptr();
        match activation {
            Activation::Identity => {
                for_tiles!(count, c, outer_tile::<S, false>, |row, k, n| (
                    x, dy, du, row * c + k, c, n, map.add(k), sums.add(k)
                ));
            }
            Activation::Silu => {
                for_tiles!(count, c, outer_tile::<S, true>, |row, k, n| (
                    x, dy, du, row * c + k, c, n, map.add(k), sums.add(k)
                ));
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
unsafe fn outer_tile<S: Simd, const R: usize, const WHOLE: bool, const SILU: bool>(
    x: *const f32,
    dy: *const f32,
    du: *mut f32,
    first: usize,
    c: usize,
    n: usize,
    map: *const f32,
    sums: *mut f32,
) {
    unsafe {
        let (mean, gain) = (load::<S, WHOLE>(map, n), load::<S, WHOLE>(map.add(c), n));
        let shift = load::<S, WHOLE>(map.add(2 * c), n);
        let (mut sum, mut sum_x) = (load::<S, WHOLE>(sums, n), load::<S, WHOLE>(sums.add(c), n));
        for row in 0..R {
            let at = first + row * c;
            let centred = S::sub(load::<S, WHOLE>(x.add(at), n), mean);
            let mut d = load::<S, WHOLE>(dy.add(at), n);
            if SILU {
                d = S::mul(d, silu_slope::<S>(S::fma(centred, gain, shift)));
            }
            (sum, sum_x) = (S::add(sum, d), S::fma(d, centred, sum_x));
            store::<S, WHOLE>(du.add(at), d, n);
        }
        store::<S, WHOLE>(sums, sum, n);
        store::<S, WHOLE>(sums.add(c), sum_x, n);
    }
}

simd_fn! {
    /// dx = du gain - corrections[0] - (x - mean) corrections[1], in place of du.
    ///
    /// # Safety
    /// `x` and `dx` have the same whole number of rows of `c` values, `map` has two at least, `corrections` has two.
    pub(super) unsafe fn inner_grad<S>(x: &[f32], c: usize, map: &[f32], corrections: &[f32], dx: &mut [f32]) {
        debug_assert!(map.len() >= 2 * c && corrections.len() == 2 * c);
        let (count, x, dx, map, corrections) = (x.len() / c, x.as_ptr(), dx.as_mut_ptr(), map.as_ptr(), corrections.as_ptr());
        for_tiles!(count, c, inner_tile::<S>, |row, k, n| (x, dx, row * c + k, c, n, map.add(k), corrections.add(k)));
    }
}

#[inline(always)]
unsafe fn inner_tile<S: Simd, const R: usize, const WHOLE: bool>(
    x: *const f32,
    dx: *mut f32,
    first: usize,
    c: usize,
    n: usize,
    map: *const f32,
    corrections: *const f32,
) {
    unsafe {
        let (mean, gain) = (load::<S, WHOLE>(map, n), load::<S, WHOLE>(map.add(c), n));
        let of_one = load::<S, WHOLE>(corrections, n);
        let of_x = load::<S, WHOLE>(corrections.add(c), n);
        for row in 0..R {
            let at = first + row * c;
            let centred = S::sub(load::<S, WHOLE>(x.add(at), n), mean);
            let d = S::sub(S::mul(load::<S, WHOLE>(dx.add(at), n), gain), of_one);
            store::<S, WHOLE>(dx.add(at), S::sub(d, S::mul(centred, of_x)), n);
        }
    }
}
