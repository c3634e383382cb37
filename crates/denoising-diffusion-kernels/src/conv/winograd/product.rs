//! The matrix products between the transforms: rows of transformed tiles times panels of transformed kernels. Callers ensure that their operands fit
//! into the second-level cache.

use crate::gemm::{PANEL, panels_of_tile, step};
use crate::simd::{Simd, prefetch, simd_fn};

/// Number of terms after which a caller begins a new sum, because rounding grows with the number of terms.
pub(super) const TERMS_PER_SUM: usize = 128;

/// Rows of a register tile.
const ROWS: usize = 6;

simd_fn! {
    /// `dst[i, 16 p + j] (+)= sum over k of a[i, k] b[p, k, j]` for i < `rows`, k < `len` (at least 1), p < `panels`, j < 16.
    ///
    /// Rows of `a` and `dst` are `a_stride` and `dst_stride` apart, panels of `b` are `b_stride` apart. With `add`, the products are added to the
    /// contents of `dst`.
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
        let mut panel = 0;
        while panel < panels {
            let (b, dst) = (b.add(panel * b_stride), dst.add(panel * PANEL));
            if panels - panel >= panels_of_tile::<S>() {
                all_rows::<S, 2>(rows, len, a, a_stride, b, b_stride, add, dst, dst_stride);
                panel += panels_of_tile::<S>();
            } else {
                all_rows::<S, 1>(rows, len, a, a_stride, b, b_stride, add, dst, dst_stride);
                panel += 1;
            }
        }
    }
}

/// `W` vectors of columns of [`multiply`].
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
unsafe fn all_rows<S: Simd, const W: usize>(
    rows: usize,
    len: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    add: bool,
    dst: *mut f32,
    dst_stride: usize,
) {
    macro_rules! tile {
        ($rows:literal, $i:expr) => {{
            let (a, dst) = (a.add($i * a_stride), dst.add($i * dst_stride));
            tile::<S, $rows, W>(len, a, a_stride, b, b_stride, add, dst, dst_stride);
        }};
    }
    unsafe {
        let mut i = 0;
        // Single vectors need more rows to keep the processor busy.
        while W == 1 && i + 2 * ROWS <= rows {
            tile!(12, i);
            i += 2 * ROWS;
        }
        while i + ROWS <= rows {
            tile!(6, i);
            i += ROWS;
        }
        match rows - i {
            5 => tile!(5, i),
            4 => tile!(4, i),
            3 => tile!(3, i),
            2 => tile!(2, i),
            1 => tile!(1, i),
            _ => {}
        }
    }
}

/// R rows and W vectors of columns of [`multiply`].
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
unsafe fn tile<S: Simd, const R: usize, const W: usize>(
    len: usize,
    a: *const f32,
    a_stride: usize,
    mut b: *const f32,
    b_stride: usize,
    add: bool,
    dst: *mut f32,
    dst_stride: usize,
) {
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|r| a.add(r * a_stride));
        let mut sums = [[S::splat(0.0); W]; R];
        let mut k = 0;
        // Runs at least once and is written that way; otherwise the sums are moved between registers.
        loop {
            // Most likely the next panels: they are prefetched into the first-level cache while the rows pass by these.
            let next = b.wrapping_add(W * S::LANES / PANEL * b_stride);
            prefetch(next);
            if W * S::LANES > PANEL {
                prefetch(next.wrapping_add(b_stride));
            }
            sums = step::<S, R, W>(sums, rows.map(|row| row.wrapping_add(k)), b, b_stride);
            (k, b) = (k + 1, b.wrapping_add(PANEL));
            if k >= len {
                break;
            }
        }
        store::<S, R, W>(sums, add, dst, dst_stride);
    }
}

/// Stores or adds the sums of a tile.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn store<S: Simd, const R: usize, const W: usize>(
    mut sums: [[S::V; W]; R],
    add: bool,
    dst: *mut f32,
    dst_stride: usize,
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        for (w, sum) in sums.iter_mut().enumerate() {
            unsafe {
                let dst = dst.add(r * dst_stride + w * S::LANES);
                if add {
                    *sum = S::add(S::load(dst), *sum);
                }
                S::store(dst, *sum);
            }
        }
    }
}

simd_fn! {
    /// `dst[i, j] (+)= sum over m of a[m, i] b[m, j]` for i, j < 16 and m < `len` (at least 1); rows of `a`, `b` and `dst` are 16 values each and
    /// contiguous. With `add`, the products are added to the contents of `dst`.
    ///
    /// # Safety
    /// As [`multiply`].
    pub(super) unsafe fn outer<S>(len: usize, a: *const f32, b: *const f32, add: bool, dst: *mut f32) {
        if S::LANES == PANEL {
            outer_rows::<S, 16, 1>(len, a, b, add, dst);
        } else {
            outer_rows::<S, 6, 2>(len, a, b, add, dst);
            outer_rows::<S, 6, 2>(len, a.add(6), b, add, dst.add(6 * PANEL));
            outer_rows::<S, 4, 2>(len, a.add(12), b, add, dst.add(12 * PANEL));
        }
    }
}

/// R rows of [`outer`], which is W vectors wide.
///
/// # Safety
/// As [`outer`].
#[inline(always)]
unsafe fn outer_rows<S: Simd, const R: usize, const W: usize>(
    len: usize,
    mut a: *const f32,
    mut b: *const f32,
    add: bool,
    dst: *mut f32,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); W]; R];
        let mut left = len;
        loop {
            sums = step::<S, R, W>(sums, std::array::from_fn(|r| a.wrapping_add(r)), b, 0);
            (a, b) = (a.wrapping_add(PANEL), b.wrapping_add(PANEL));
            left -= 1;
            if left == 0 {
                break;
            }
        }
        store::<S, R, W>(sums, add, dst, PANEL);
    }
}
