//! Sums of outer products, for weight gradients.

use super::{Finish, PANEL, ROWS, ZEROS, even_share, step, store_tile};
use crate::simd::{Simd, prefetch_far, simd_fn};

simd_fn! {
    /// `dst[r, j] += sum over m of a[m, r] * b[offsets[m] + j]`, for r < `height` and j < 16.
    ///
    /// `height` is 1 to 6; row m of `a` begins at `m a_stride`; row r of `dst` begins at `dst + r stride`.
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
        let finish = Finish { row: ZEROS.as_ptr(), matrix: dst, dst, stride, width: PANEL };
        let lines = offsets.iter().map(|&offset| b.add(offset));
        outer_tile_of::<S>(height, a.as_ptr(), a_stride, lines, finish);
    }
}

simd_fn! {
    /// `dst[r, j] (+)= sum over m of a[m, r] * b[m, j]`, for m < `count`, r < `height` (any number) and j < `width` (1 to 16).
    ///
    /// Rows of `a`, `b` and `dst` are `a_stride`, `b_stride` and `stride` values apart; those of `b` have 16 values. With `accumulate`, the sum is
    /// added to the contents of `dst`. Meanwhile `ahead` is prefetched into the second-level cache.
    ///
    /// # Safety
    /// All addresses must be valid as described, and nobody else may access the destination.
    pub(crate) unsafe fn outer_products<S>(
        height: usize,
        width: usize,
        count: usize,
        a: *const f32,
        a_stride: usize,
        b: *const f32,
        b_stride: usize,
        accumulate: bool,
        dst: *mut f32,
        stride: usize,
        ahead: &[f32],
    ) {
        let per_tile = ahead.len().div_ceil(height.div_ceil(max_height::<S>()));
        for (i, tile) in outer_tiles::<S>(height).enumerate() {
            for line in (i * per_tile..ahead.len().min((i + 1) * per_tile)).step_by(PANEL) {
                prefetch_far(ahead.as_ptr().wrapping_add(line));
            }
            let dst = dst.add(tile.start * stride);
            let matrix = if accumulate { dst.cast_const() } else { std::ptr::null() };
            let finish = Finish { row: ZEROS.as_ptr(), matrix, dst, stride, width };
            let lines = (0..count).map(|m| b.add(m * b_stride));
            outer_tile_of::<S>(tile.len(), a.add(tile.start), a_stride, lines, finish);
        }
    }
}

simd_fn! {
    /// `dst[r, t, j] (+)= sum over m of a[m, r] * b[shifts[t] + offsets[m] + j]`, for r < `height` (any number) and j < 16.
    ///
    /// Rows of `a` are `a_stride` values apart. With `accumulate`, the sum is added to the contents of `dst`.
    ///
    /// # Safety
    /// All addresses must be valid as described, and nobody else may access the destination.
    pub(crate) unsafe fn outer_products_at<S>(
        height: usize,
        a: &[f32],
        a_stride: usize,
        b: *const f32,
        shifts: &[usize],
        offsets: &[usize],
        accumulate: bool,
        dst: *mut f32,
    ) {
        debug_assert!(offsets.is_empty() || a.len() >= (offsets.len() - 1) * a_stride + height);
        let stride = shifts.len() * PANEL;
        // The columns of `a` for one tile stay in the cache for all shifts.
        for tile in outer_tiles::<S>(height) {
            for (t, &shift) in shifts.iter().enumerate() {
                let dst = dst.add(tile.start * stride + t * PANEL);
                let matrix = if accumulate { dst.cast_const() } else { std::ptr::null() };
                let finish = Finish { row: ZEROS.as_ptr(), matrix, dst, stride, width: PANEL };
                let b = b.add(shift);
                let lines = offsets.iter().map(|&offset| b.add(offset));
                outer_tile_of::<S>(tile.len(), a.as_ptr().add(tile.start), a_stride, lines, finish);
            }
        }
    }
}

/// Rows of the largest register tile: tiles with fewer than eight sums keep the processor waiting, and a panel may be one vector.
const fn max_height<S: Simd>() -> usize {
    if S::LANES < PANEL { ROWS } else { 2 * ROWS }
}

/// Tiles that cover `height` rows.
#[inline(always)]
fn outer_tiles<S: Simd>(height: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let tiles = height.div_ceil(max_height::<S>());
    (0..tiles).map(move |tile| even_share(height, tiles, tile))
}

/// [`outer_tile`] for the given height and the width in `finish`.
///
/// # Safety
/// As [`outer_tile`].
#[inline(always)]
unsafe fn outer_tile_of<S: Simd>(
    height: usize,
    a: *const f32,
    a_stride: usize,
    lines: impl Iterator<Item = *const f32>,
    finish: Finish,
) {
    macro_rules! of_height {
        ($width:literal; $($height:literal)*) => {
            match height {
                $($height => unsafe { outer_tile::<S, $height, $width>(a, a_stride, lines, finish) },)*
                other => unreachable!("tile of {other} rows"),
            }
        };
    }
    if S::LANES == PANEL {
        of_height!(1; 1 2 3 4 5 6 7 8 9 10 11 12);
    } else if finish.width > S::LANES {
        of_height!(2; 1 2 3 4 5 6);
    } else {
        of_height!(1; 1 2 3 4 5 6);
    }
}

/// One tile of a sum of outer products; `lines` are the addresses of the rows of b.
///
/// # Safety
/// As [`outer_products`].
#[inline(always)]
unsafe fn outer_tile<S: Simd, const R: usize, const W: usize>(
    mut a: *const f32,
    a_stride: usize,
    lines: impl Iterator<Item = *const f32>,
    finish: Finish,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); W]; R];
        for line in lines {
            sums = step::<S, R, W>(sums, std::array::from_fn(|r| a.wrapping_add(r)), line, 0);
            a = a.wrapping_add(a_stride);
        }
        store_tile::<S, R, W>(sums, finish);
    }
}
