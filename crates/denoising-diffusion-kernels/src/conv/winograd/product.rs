//! The matrix products between the transforms: rows of transformed tiles times panels of transformed kernels. What they work on
//! fits the second-level cache; callers see to that.

use crate::gemm::{PANEL, step};
use crate::simd::{LANES, Simd, prefetch, simd_fn};

/// Terms after which a caller begins a new sum: rounding grows with the terms of one sum.
pub(super) const TERMS_PER_SUM: usize = 128;

/// Rows of a register tile.
const ROWS: usize = 6;

simd_fn! {
    /// `dst[i, 16 p + j] (+)= sum over k of a[i, k] b[p, k, j]` for i < `rows`, k < `len` (at least 1), p < `panels`, j < 16.
    ///
    /// Rows of `a` and `dst` begin `a_stride` and `dst_stride` apart, panels of `b` `b_stride`. With `add` the products are added to what is
    /// there.
    ///
    /// # Safety
    /// All addresses must be valid as described, and nobody else may access the destination.
    pub(super) unsafe fn multiply<S>(
        rows: usize,
        len: usize,
        panels: usize,
        a: *const f32,
        a_stride: usize,
        b: *const f32,
        b_stride: usize,
        add: bool,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        for panel in 0..panels {
            let b = b.add(panel * b_stride);
            let dst = dst.add(panel * PANEL);
            let mut i = 0;
            while i + ROWS <= rows {
                tile::<S, ROWS>(len, a.add(i * a_stride), a_stride, b, add, dst.add(i * dst_stride), dst_stride);
                i += ROWS;
            }
            let (a, dst) = (a.add(i * a_stride), dst.add(i * dst_stride));
            match rows - i {
                5 => tile::<S, 5>(len, a, a_stride, b, add, dst, dst_stride),
                4 => tile::<S, 4>(len, a, a_stride, b, add, dst, dst_stride),
                3 => tile::<S, 3>(len, a, a_stride, b, add, dst, dst_stride),
                2 => tile::<S, 2>(len, a, a_stride, b, add, dst, dst_stride),
                1 => tile::<S, 1>(len, a, a_stride, b, add, dst, dst_stride),
                _ => {}
            }
        }
    }
}

/// R rows of one panel of [`multiply`].
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    len: usize,
    a: *const f32,
    a_stride: usize,
    mut b: *const f32,
    add: bool,
    dst: *mut f32,
    dst_stride: usize,
) {
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|r| a.add(r * a_stride));
        let mut sums = [[S::splat(0.0); 2]; R];
        let mut k = 0;
        // Runs at least once, and says so: else the sums travel between registers.
        loop {
            // Most likely the next panel: while the rows pass by this one, the next comes into the first-level cache.
            prefetch(b.wrapping_add(len * PANEL));
            sums = step::<S, R, 2>(sums, rows.map(|row| row.wrapping_add(k)), b);
            (k, b) = (k + 1, b.wrapping_add(PANEL));
            if k >= len {
                break;
            }
        }
        for (r, sum) in sums.iter_mut().enumerate() {
            let dst = dst.add(r * dst_stride);
            if add {
                *sum = [S::add(S::load(dst), sum[0]), S::add(S::load(dst.add(LANES)), sum[1])];
            }
            S::store(dst, sum[0]);
            S::store(dst.add(LANES), sum[1]);
        }
    }
}

simd_fn! {
    /// `dst[i, j] (+)= sum over m of a[m, i] b[m, j]` for i, j < 16 and m < `len` (at least 1); rows of `a` and `b` are 16 values and follow each
    /// other, as do those of `dst`. With `add` the products are added to what is there.
    ///
    /// # Safety
    /// As [`multiply`].
    pub(super) unsafe fn outer<S>(len: usize, a: *const f32, b: *const f32, add: bool, dst: *mut f32) {
        outer_rows::<S, 6>(len, a, b, add, dst);
        outer_rows::<S, 6>(len, a.add(6), b, add, dst.add(6 * PANEL));
        outer_rows::<S, 4>(len, a.add(12), b, add, dst.add(12 * PANEL));
    }
}

/// R rows of [`outer`].
///
/// # Safety
/// As [`outer`].
#[inline(always)]
unsafe fn outer_rows<S: Simd, const R: usize>(
    len: usize,
    mut a: *const f32,
    mut b: *const f32,
    add: bool,
    dst: *mut f32,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; R];
        let mut left = len;
        loop {
            sums = step::<S, R, 2>(sums, std::array::from_fn(|r| a.wrapping_add(r)), b);
            (a, b) = (a.wrapping_add(PANEL), b.wrapping_add(PANEL));
            left -= 1;
            if left == 0 {
                break;
            }
        }
        for (r, sum) in sums.iter_mut().enumerate() {
            let dst = dst.add(r * PANEL);
            if add {
                *sum = [S::add(S::load(dst), sum[0]), S::add(S::load(dst.add(LANES)), sum[1])];
            }
            S::store(dst, sum[0]);
            S::store(dst.add(LANES), sum[1]);
        }
    }
}
