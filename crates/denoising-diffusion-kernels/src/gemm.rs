//! The two register-tile loops that convolution and attention are made of.
//!
//! [`rows_times_panels`] multiplies rows, found through pointers, by a matrix packed in panels of sixteen columns.
//! [`outer_sum`] sums outer products, for weight gradients. Neither blocks for caches nor starts threads: callers do.

use crate::simd::{LANES, Simd, simd_fn};

/// Rows of a register tile.
pub(crate) const ROWS: usize = 6;
/// Columns of a register tile and of a packed panel.
pub(crate) const PANEL: usize = 16;

/// Products after which [`rows_times_panels`] begins a new sum.
const TERMS_PER_SUM: usize = 128;

/// Addresses of the rows of one tile.
pub(crate) type RowPointers = [*const f32; ROWS];

/// What the product is added to.
#[derive(Clone, Copy)]
pub(crate) enum AddTo<'a> {
    /// Nothing: the destination is overwritten.
    Nothing,
    /// A row vector of as many values as there are columns, up to the next multiple of [`PANEL`].
    Row(&'a [f32]),
    /// What the destination holds.
    Destination,
}

simd_fn! {
    /// `dst[i, j] = (AddTo) + sum over t, k of rows[i / 6, t][i % 6][k] * b[j / 16, t len + k, j % 16]`
    ///
    /// `rows` holds, for every tile of six rows, `taps` sets of pointers to `len` values; pointers of rows beyond `row_count`
    /// must be readable too. `b` is `[cols / 16, taps len, 16]`, rounded up. Row i of `dst` begins at `dst + i stride`.
    ///
    /// # Safety
    /// All pointers must be valid as described, and nobody else may access the destination.
    pub(crate) unsafe fn rows_times_panels<S>(
        rows: &[RowPointers],
        taps: usize,
        len: usize,
        row_count: usize,
        b: &[f32],
        cols: usize,
        add_to: AddTo<'_>,
        dst: *mut f32,
        stride: usize,
    ) {
        let depth = taps * len;
        debug_assert!(rows.len() >= row_count.div_ceil(ROWS) * taps);
        debug_assert!(b.len() >= cols.div_ceil(PANEL) * depth * PANEL);
        // A panel of `b` stays in the cache while all rows pass by.
        for panel in 0..cols.div_ceil(PANEL) {
            let b = b.as_ptr().add(panel * depth * PANEL);
            let width = (cols - panel * PANEL).min(PANEL);
            for tile in 0..row_count.div_ceil(ROWS) {
                let a = rows.as_ptr().add(tile * taps);
                let height = (row_count - tile * ROWS).min(ROWS);
                let dst = dst.add(tile * ROWS * stride + panel * PANEL);
                if height == ROWS && width == PANEL {
                    let zeros = [0.0f32; PANEL];
                    let (add, add_stride) = match add_to {
                        AddTo::Nothing => (zeros.as_ptr(), 0),
                        AddTo::Row(row) => (row.as_ptr().add(panel * PANEL), 0),
                        AddTo::Destination => (dst.cast_const(), stride),
                    };
                    row_tile::<S>(a, taps, len, b, add, add_stride, dst, stride);
                    continue;
                }
                let mut edge = [0.0f32; ROWS * PANEL];
                for i in 0..height {
                    match add_to {
                        AddTo::Nothing => {}
                        AddTo::Row(row) => edge[i * PANEL..][..width].copy_from_slice(&row[panel * PANEL..][..width]),
                        AddTo::Destination => {
                            std::ptr::copy_nonoverlapping(dst.add(i * stride), edge.as_mut_ptr().add(i * PANEL), width);
                        }
                    }
                }
                let p = edge.as_mut_ptr();
                row_tile::<S>(a, taps, len, b, p, PANEL, p, PANEL);
                for i in 0..height {
                    std::ptr::copy_nonoverlapping(edge.as_ptr().add(i * PANEL), dst.add(i * stride), width);
                }
            }
        }
    }
}

/// One full tile of [`rows_times_panels`].
///
/// # Safety
/// As [`rows_times_panels`]; `add` may be `dst`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
unsafe fn row_tile<S: Simd>(
    rows: *const RowPointers,
    taps: usize,
    len: usize,
    mut b: *const f32,
    add: *const f32,
    add_stride: usize,
    dst: *mut f32,
    stride: usize,
) {
    unsafe {
        let zeros = [[S::splat(0.0); 2]; ROWS];
        // Sums in registers, carried over to totals now and then: rounding grows with the terms of one sum.
        let (mut sums, mut totals, mut terms) = (zeros, zeros, 0);
        for tap in 0..taps {
            let a = *rows.add(tap);
            let mut k = 0;
            while k < len {
                if terms >= TERMS_PER_SUM {
                    for (total, sum) in totals.iter_mut().zip(sums) {
                        *total = [S::add(total[0], sum[0]), S::add(total[1], sum[1])];
                    }
                    (sums, terms) = (zeros, 0);
                }
                let end = len.min(k + TERMS_PER_SUM);
                terms += end - k;
                while k < end {
                    let b0 = S::load(b);
                    let b1 = S::load(b.add(LANES));
                    b = b.add(PANEL);
                    for r in 0..ROWS {
                        let x = S::splat(*a[r].add(k));
                        sums[r][0] = S::fma(x, b0, sums[r][0]);
                        sums[r][1] = S::fma(x, b1, sums[r][1]);
                    }
                    k += 1;
                }
            }
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = [S::add(total[0], sum[0]), S::add(total[1], sum[1])];
        }
        for (r, sum) in totals.iter().enumerate() {
            let (add, dst) = (add.add(r * add_stride), dst.add(r * stride));
            S::store(dst, S::add(S::load(add), sum[0]));
            S::store(dst.add(LANES), S::add(S::load(add.add(LANES)), sum[1]));
        }
    }
}

simd_fn! {
    /// `dst[r, j] += sum over m of a[m, r] * b[offsets[m] + j]`, for r < `height` and j < 16.
    ///
    /// `height` is 4 or 6; row m of `a` begins at `m a_stride`; row r of `dst` begins at `dst + r stride`.
    ///
    /// # Safety
    /// All addresses must be valid as described, and nobody else may access the destination.
    pub(crate) unsafe fn outer_sum<S>(
        height: usize,
        a: &[f32],
        a_stride: usize,
        b: *const f32,
        offsets: &[usize],
        dst: *mut f32,
        stride: usize,
    ) {
        debug_assert!(offsets.is_empty() || a.len() >= (offsets.len() - 1) * a_stride + height);
        match height {
            4 => outer_tile::<S, 4>(a.as_ptr(), a_stride, b, offsets, dst, stride),
            6 => outer_tile::<S, 6>(a.as_ptr(), a_stride, b, offsets, dst, stride),
            other => unreachable!("tile of {other} rows"),
        }
    }
}

/// One tile of [`outer_sum`].
///
/// # Safety
/// As [`outer_sum`].
#[inline(always)]
unsafe fn outer_tile<S: Simd, const R: usize>(
    mut a: *const f32,
    a_stride: usize,
    b: *const f32,
    offsets: &[usize],
    dst: *mut f32,
    stride: usize,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; R];
        for &offset in offsets {
            let b0 = S::load(b.add(offset));
            let b1 = S::load(b.add(offset + LANES));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(r));
                sum[0] = S::fma(x, b0, sum[0]);
                sum[1] = S::fma(x, b1, sum[1]);
            }
            a = a.wrapping_add(a_stride);
        }
        for (r, sum) in sums.iter().enumerate() {
            let dst = dst.add(r * stride);
            S::store(dst, S::add(S::load(dst), sum[0]));
            S::store(dst.add(LANES), S::add(S::load(dst.add(LANES)), sum[1]));
        }
    }
}

/// Pointers to the first `count` rows of `matrix`, which begin `stride` values apart; the last row fills up the last tile.
pub(crate) fn dense_pointers(matrix: &[f32], stride: usize, count: usize) -> Vec<RowPointers> {
    let row = |i: usize| matrix[i.min(count - 1) * stride..].as_ptr();
    (0..count.div_ceil(ROWS)).map(|tile| std::array::from_fn(|r| row(tile * ROWS + r))).collect()
}

/// `len` rounded up to an odd number of cache lines: rows this far apart lie in different sets of the cache, where powers of two
/// would collide.
pub(crate) fn spaced(len: usize) -> usize {
    (len.div_ceil(PANEL) | 1) * PANEL
}

/// Heights, 6 or 4, of the tiles of [`outer_sum`] that cover `rows` rows with at most three rows to spare.
pub(crate) fn tile_heights(rows: usize) -> Vec<usize> {
    let even = rows.max(4).next_multiple_of(2);
    let fours = match even % 6 {
        0 => 0,
        4 => 1,
        _ => 2,
    };
    let mut heights = vec![6; (even - 4 * fours) / 6];
    heights.resize(heights.len() + fours, 4);
    heights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;
    use crate::testing::{assert_close, random};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_times_panels_agrees_with_f64(
            rows in 1usize..20, taps in 1usize..4, len in 1usize..20, cols in 1usize..40, seed: u64, add in 0usize..3,
        ) {
            let depth = taps * len;
            let padded = cols.next_multiple_of(PANEL);
            let a = random(rows * depth, seed);
            let b = random(padded * depth, seed ^ 1);
            let start = random(rows * cols, seed ^ 2);
            let bias = random(padded, seed ^ 3);
            let pointers: Vec<RowPointers> = (0..rows.div_ceil(ROWS))
                .flat_map(|tile| (0..taps).map(move |tap| (tile, tap)))
                .map(|(tile, tap)| std::array::from_fn(|r| {
                    a[(tile * ROWS + r).min(rows - 1) * depth + tap * len..].as_ptr()
                }))
                .collect();
            let exact: Vec<f64> = (0..rows * cols).map(|at| {
                let (i, j) = (at / cols, at % cols);
                let added = [0.0, bias[j], start[at]][add];
                (0..depth).fold(f64::from(added), |sum, k| {
                    let b = b[(j / PANEL * depth + k) * PANEL + j % PANEL];
                    sum + f64::from(a[i * depth + k]) * f64::from(b)
                })
            }).collect();
            for isa in Isa::all() {
                let mut dst = start.clone();
                let add_to = [AddTo::Nothing, AddTo::Row(&bias), AddTo::Destination][add];
                // SAFETY: built above as described.
                unsafe {
                    rows_times_panels(isa, &pointers, taps, len, rows, &b, cols, add_to, dst.as_mut_ptr(), cols);
                }
                assert_close(&dst, &exact, 2e-6);
            }
        }

        #[test]
        fn tile_heights_cover_without_waste(rows in 1usize..200) {
            let sum: usize = tile_heights(rows).iter().sum();
            prop_assert!(sum >= rows && sum <= rows.max(4) + 1);
        }
    }
}
