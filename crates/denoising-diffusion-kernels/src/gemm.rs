//! The register-tile loops that convolution and attention are built from.
//!
//! [`tiles_times_panels`] multiplies rows, found through pointers, by a matrix packed in panels of sixteen columns; [`matrix_times_panels`] and
//! [`rows_times_panels`] do the same for a plain matrix and for tiles of six rows. [`outer_sum`] and [`outer_products`] sum outer products, for
//! weight gradients. None of them starts threads; their callers do.
//!
//! Tiles have one to six rows and one or two vectors, so nothing is computed beyond the edges. Two vectors are one panel, or two panels if a vector
//! has sixteen lanes; sums of outer products, which have a single panel, then have up to twelve rows.

mod outer;
#[cfg(test)]
mod tests;

pub(crate) use outer::{outer_products, outer_products_at, outer_sum};

use crate::simd::{Isa, MAX_LANES, Simd, prefetch, prefetch_far, simd_fn};

/// Rows of the largest register tile.
pub(crate) const ROWS: usize = 6;
/// Columns of a packed panel.
pub(crate) const PANEL: usize = 16;

/// Number of products per sum. Longer sums are added up in parts, because rounding grows with the number of terms. This many rows of a panel (8 KiB)
/// also stay in the first-level cache while tiles pass by.
const TERMS_PER_SUM: usize = 128;
/// Number of tiles that pass by one part of a panel before the next part.
const TILES_PER_BLOCK: usize = 8;
/// Number of tiles that [`matrix_times_panels`] prepares at a time.
const TILES_AT_ONCE: usize = 32;

/// Addresses of the rows of one tile.
pub(crate) type RowPointers = [*const f32; ROWS];

/// A tile of the destination.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Number of rows, 1 to [`ROWS`].
    pub(crate) height: usize,
    /// Index of its first row's first value in the destination.
    pub(crate) at: usize,
}

/// What the product is added to.
#[derive(Clone, Copy)]
pub(crate) enum AddTo<'a> {
    /// Nothing: the destination is overwritten.
    Nothing,
    /// A row vector with as many values as there are columns, rounded up to a multiple of [`PANEL`].
    Row(&'a [f32]),
    /// The contents of the destination.
    Destination,
    /// A row vector, if any, and a matrix with the layout of the destination, given by the address of its first value.
    RowAndMatrix(Option<&'a [f32]>, *const f32),
}

/// How the sums of one register tile are stored: `dst[r, j] = row[j] + matrix[r, j] + sums[r, j]`.
#[derive(Clone, Copy)]
struct Finish {
    /// As many values as a row of the tile has, rounded up to whole vectors.
    row: *const f32,
    /// Null for none; its rows are as far apart as those of `dst`.
    matrix: *const f32,
    dst: *mut f32,
    stride: usize,
    /// Number of columns, from 1 to two vectors.
    width: usize,
}

static ZEROS: [f32; 2 * MAX_LANES] = [0.0; 2 * MAX_LANES];

/// Number of panels in two vectors.
pub(crate) const fn panels_of_tile<S: Simd>() -> usize {
    2 * S::LANES / PANEL
}

simd_fn! {
    /// `dst[i, j] = (AddTo) + sum over t, k of rows[tile of i, t][row in tile][k] * b[j / 16, t len + k, j % 16]`
    ///
    /// For every tile, `rows` holds `taps` sets of pointers to `len` values. Panels of `b` are `panel_len` values apart. Rows of a tile are `stride`
    /// values apart in `dst`.
    ///
    /// # Safety
    /// All pointers within the tiles' heights must be valid as described, and nobody else may access the destination.
    pub(crate) unsafe fn tiles_times_panels<S>(
        tiles: &[Tile],
        rows: &[RowPointers],
        taps: usize,
        len: usize,
        b: &[f32],
        panel_len: usize,
        cols: usize,
        add_to: AddTo<'_>,
        dst: *mut f32,
        stride: usize,
    ) {
        debug_assert!(rows.len() >= tiles.len() * taps);
        debug_assert!(b.len() >= (cols.div_ceil(PANEL) - 1) * panel_len + taps * len * PANEL);
        // Several whole taps if they are short, parts of a tap if it is long.
        let (panels, all_tiles) = (cols.div_ceil(PANEL), tiles.len());
        let (taps_per_sum, parts) = ((TERMS_PER_SUM / len).max(1), len.div_ceil(TERMS_PER_SUM));
        for (tap, part) in (0..taps).step_by(taps_per_sum).flat_map(|tap| (0..parts).map(move |part| (tap, part))) {
            let (from, to) = (part * len / parts, (part + 1) * len / parts);
            let part_taps = taps_per_sum.min(taps - tap);
            let b = b.as_ptr().add((tap * len + from) * PANEL);
            // The first sum is added to what the caller wants, the others to what the destination then holds.
            let add_to = if tap + part == 0 { add_to } else { AddTo::Destination };
            for (block, tiles) in tiles.chunks(TILES_PER_BLOCK).enumerate() {
                let rows = rows.as_ptr().add(block * TILES_PER_BLOCK * taps + tap);
                for panel in (0..panels).step_by(panels_of_tile::<S>()) {
                    let b = b.add(panel * panel_len);
                    let width = (cols - panel * PANEL).min(2 * S::LANES);
                    for (i, tile) in tiles.iter().enumerate() {
                        let at = tile.at + panel * PANEL;
                        let dst = dst.add(at);
                        let (row, matrix) = match add_to {
                            AddTo::Nothing => (None, std::ptr::null()),
                            AddTo::Row(row) => (Some(row), std::ptr::null()),
                            AddTo::Destination => (None, dst.cast_const()),
                            AddTo::RowAndMatrix(row, matrix) => (row, matrix.add(at)),
                        };
                        let row = row.map_or(ZEROS.as_ptr(), |row| row.as_ptr().add(panel * PANEL));
                        let finish = Finish { row, matrix, dst, stride, width };
                        // Prefetches some of the next block's rows while this one is used.
                        if part_taps == 1 && to - from >= 64 && (block + 1) * TILES_PER_BLOCK + i < all_tiles {
                            let passes = panels.div_ceil(panels_of_tile::<S>());
                            let share = (to - from).div_ceil(passes).next_multiple_of(PANEL);
                            let first = from + panel / panels_of_tile::<S>() * share;
                            let next = &*rows.add((TILES_PER_BLOCK + i) * taps);
                            for k in (first..to.min(first + share)).step_by(PANEL) {
                                for row in &next[..tile.height] {
                                    prefetch_far(row.wrapping_add(k));
                                }
                            }
                        }
                        let rows = rows.add(i * taps);
                        product_tile_of::<S>(tile.height, rows, part_taps, from, to - from, b, panel_len, finish);
                    }
                }
            }
        }
    }
}

/// [`product_tile`] for the given height and the width in `finish`.
///
/// # Safety
/// As [`product_tile`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
unsafe fn product_tile_of<S: Simd>(
    height: usize,
    rows: *const RowPointers,
    taps: usize,
    from: usize,
    len: usize,
    b: *const f32,
    panel_len: usize,
    finish: Finish,
) {
    unsafe {
        match (height, finish.width > S::LANES) {
            (6, true) => product_tile::<S, 6, 2>(rows, taps, from, len, b, panel_len, finish),
            (5, true) => product_tile::<S, 5, 2>(rows, taps, from, len, b, panel_len, finish),
            (4, true) => product_tile::<S, 4, 2>(rows, taps, from, len, b, panel_len, finish),
            (3, true) => product_tile::<S, 3, 2>(rows, taps, from, len, b, panel_len, finish),
            (2, true) => product_tile::<S, 2, 2>(rows, taps, from, len, b, panel_len, finish),
            (1, true) => product_tile::<S, 1, 2>(rows, taps, from, len, b, panel_len, finish),
            (6, false) => product_tile::<S, 6, 1>(rows, taps, from, len, b, panel_len, finish),
            (5, false) => product_tile::<S, 5, 1>(rows, taps, from, len, b, panel_len, finish),
            (4, false) => product_tile::<S, 4, 1>(rows, taps, from, len, b, panel_len, finish),
            (3, false) => product_tile::<S, 3, 1>(rows, taps, from, len, b, panel_len, finish),
            (2, false) => product_tile::<S, 2, 1>(rows, taps, from, len, b, panel_len, finish),
            (1, false) => product_tile::<S, 1, 1>(rows, taps, from, len, b, panel_len, finish),
            (other, _) => unreachable!("tile of {other} rows"),
        }
    }
}

/// One sum of one tile of [`tiles_times_panels`]: values `from..from + len` of `taps` sets of rows.
///
/// # Safety
/// As [`tiles_times_panels`].
#[inline(always)]
unsafe fn product_tile<S: Simd, const R: usize, const W: usize>(
    rows: *const RowPointers,
    taps: usize,
    from: usize,
    len: usize,
    mut b: *const f32,
    panel_len: usize,
    finish: Finish,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); W]; R];
        for r in 0..R {
            prefetch(finish.dst.wrapping_add(r * finish.stride));
        }
        let mut tap = 0;
        // Both loops run at least once and are written that way; otherwise the sums are moved between registers.
        loop {
            let rows = &*rows.add(tap);
            let a: [*const f32; R] = std::array::from_fn(|r| rows[r].wrapping_add(from));
            let mut k = 0;
            loop {
                sums = step::<S, R, W>(sums, a.map(|a| a.wrapping_add(k)), b, panel_len);
                (k, b) = (k + 1, b.wrapping_add(PANEL));
                if k == len {
                    break;
                }
            }
            tap += 1;
            if tap == taps {
                break;
            }
        }
        store_tile::<S, R, W>(sums, finish);
    }
}

/// `sums[r, j] + a[r] * b[j]`, by value, so that the sums stay in registers. The next panel of `b` begins `panel_len` values after the first.
///
/// # Safety
/// `a` must point to one value each, `b` to `W` vectors.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "iterators over the sums keep them in memory")]
pub(crate) unsafe fn step<S: Simd, const R: usize, const W: usize>(
    mut sums: [[S::V; W]; R],
    a: [*const f32; R],
    b: *const f32,
    panel_len: usize,
) -> [[S::V; W]; R] {
    unsafe {
        let at = |w: usize| w * S::LANES / PANEL * panel_len + w * S::LANES % PANEL;
        let b: [S::V; W] = std::array::from_fn(|w| S::load(b.wrapping_add(at(w))));
        for r in 0..R {
            let x = S::splat(*a[r]);
            for w in 0..W {
                sums[r][w] = S::fma(x, b[w], sums[r][w]);
            }
        }
        sums
    }
}

/// Completes the sums of a tile as [`Finish`] says, and stores them.
///
/// # Safety
/// Pointers must be valid as [`Finish`] says, for `R` rows.
#[inline(always)]
unsafe fn store_tile<S: Simd, const R: usize, const W: usize>(mut sums: [[S::V; W]; R], finish: Finish) {
    let Finish { row, matrix, dst, stride, width } = finish;
    unsafe {
        let row: [S::V; W] = std::array::from_fn(|w| S::load(row.add(w * S::LANES)));
        for sums in &mut sums {
            *sums = std::array::from_fn(|w| S::add(row[w], sums[w]));
        }
        if width == W * S::LANES {
            if !matrix.is_null() {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = std::array::from_fn(|w| S::add(S::load(matrix.add(r * stride + w * S::LANES)), sums[w]));
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (w, sum) in sums.iter().enumerate() {
                    S::store(dst.add(r * stride + w * S::LANES), *sum);
                }
            }
            return;
        }
        let mut lanes = [[0.0f32; 2 * MAX_LANES]; R];
        for (lanes, sums) in lanes.iter_mut().zip(&sums) {
            for (w, sum) in sums.iter().enumerate() {
                S::store(lanes.as_mut_ptr().add(w * S::LANES), *sum);
            }
        }
        for (r, lanes) in lanes.iter().enumerate() {
            for (j, lane) in lanes.iter().enumerate().take(width) {
                let at = r * stride + j;
                *dst.add(at) = if matrix.is_null() { *lane } else { *matrix.add(at) + *lane };
            }
        }
    }
}

/// `dst[i, j] = (AddTo) + sum over k of a[i, k] * b[j / 16, k, j % 16]`, where row i of `a` begins at `i a_stride`.
///
/// # Safety
/// As [`tiles_times_panels`].
#[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
pub(crate) unsafe fn matrix_times_panels(
    isa: Isa,
    a: *const f32,
    a_stride: usize,
    len: usize,
    row_count: usize,
    b: &[f32],
    panel_len: usize,
    cols: usize,
    add_to: AddTo<'_>,
    dst: *mut f32,
    stride: usize,
) {
    let mut tiles = [Tile { height: 0, at: 0 }; TILES_AT_ONCE];
    let mut rows = [[a; ROWS]; TILES_AT_ONCE];
    for start in (0..row_count).step_by(TILES_AT_ONCE * ROWS) {
        let count = (row_count - start).min(TILES_AT_ONCE * ROWS);
        let tile_count = count.div_ceil(ROWS);
        for (t, (tile, rows)) in tiles.iter_mut().zip(&mut rows).enumerate().take(tile_count) {
            let range = tile_rows(count, t);
            let first = start + range.start;
            *tile = Tile { height: range.len(), at: first * stride };
            for (pointer, row) in rows.iter_mut().zip(first..) {
                *pointer = a.wrapping_add(row * a_stride);
            }
        }
        // SAFETY: the caller's contract.
        unsafe {
            tiles_times_panels(isa, &tiles[..tile_count], &rows, 1, len, b, panel_len, cols, add_to, dst, stride);
        }
    }
}

/// [`tiles_times_panels`] for tiles of six rows, the last tile having the remaining ones, and panels without gaps: `b` is
/// `[cols / 16, taps len, 16]`, rounded up. Row i of `dst` begins at `dst + i stride`.
///
/// # Safety
/// As [`tiles_times_panels`].
#[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
pub(crate) unsafe fn rows_times_panels(
    isa: Isa,
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
    let mut tiles = [Tile { height: 0, at: 0 }; TILES_AT_ONCE];
    for start in (0..row_count.div_ceil(ROWS)).step_by(TILES_AT_ONCE) {
        let count = (row_count.div_ceil(ROWS) - start).min(TILES_AT_ONCE);
        for (t, tile) in tiles.iter_mut().enumerate().take(count) {
            let first = (start + t) * ROWS;
            *tile = Tile { height: ROWS.min(row_count - first), at: first * stride };
        }
        let panel_len = taps * len * PANEL;
        let rows = &rows[start * taps..];
        // SAFETY: the caller's contract.
        unsafe { tiles_times_panels(isa, &tiles[..count], rows, taps, len, b, panel_len, cols, add_to, dst, stride) };
    }
}

/// The rows of tile `tile` when as few tiles as possible cover `rows` rows. Tiles are as even as possible, because those with fewer than four rows
/// keep the processor waiting.
pub(crate) fn tile_rows(rows: usize, tile: usize) -> std::ops::Range<usize> {
    even_share(rows, rows.div_ceil(ROWS), tile)
}

/// Part `part` of `items`, divided into `parts` parts that are as even as possible.
fn even_share(items: usize, parts: usize, part: usize) -> std::ops::Range<usize> {
    part * items / parts..(part + 1) * items / parts
}

/// Pointers to the first `count` rows of `matrix`, which are `stride` values apart; the last tile is filled up with the last row.
pub(crate) fn dense_pointers(matrix: &[f32], stride: usize, count: usize) -> Vec<RowPointers> {
    let row = |i: usize| matrix[i.min(count - 1) * stride..].as_ptr();
    (0..count.div_ceil(ROWS)).map(|tile| std::array::from_fn(|r| row(tile * ROWS + r))).collect()
}

/// `len` rounded up to an odd number of cache lines: rows this far apart lie in different sets of the cache, whereas powers of two would collide.
pub(crate) fn spaced(len: usize) -> usize {
    (len.div_ceil(PANEL) | 1) * PANEL
}

/// The heights, 6 or 4, of the tiles of [`outer_sum`] that cover `rows` rows with at most three surplus rows.
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
