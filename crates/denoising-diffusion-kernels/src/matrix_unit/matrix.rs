//! Factors in scratch memory, and their products.

use std::ops::Range;

use super::{Left, NarrowScratch, Right, SIDE, Session, TERMS, TILE, Target, Unit};
use super::{narrow_rows, pair_lines, transpose_lines, transpose_rows};

/// Rows of two tiles.
pub(crate) const ROWS: usize = 2 * SIDE;
/// The longest line that can be filled up with lines of zeros.
pub(crate) const LONGEST_LINE: usize = 256;
static ZEROS: [f32; LONGEST_LINE] = [0.0; LONGEST_LINE];

/// A left factor, `[rows, terms]`, both rounded up to whole tiles with zeros.
pub(crate) struct Rows {
    values: NarrowScratch,
    stride: usize,
    count: usize,
}

impl Rows {
    /// Its contents are whatever was there before.
    pub(crate) fn new(rows: usize, terms: usize) -> Self {
        // Rows an odd number of cache lines apart do not collide in the cache.
        let (stride, count) = ((terms.div_ceil(TERMS) | 1) * TERMS, rows.next_multiple_of(ROWS));
        Self { values: NarrowScratch::new(stride * count), stride, count }
    }

    /// These lines of `len` values.
    ///
    /// # Safety
    /// The lines must be valid.
    pub(crate) unsafe fn of(unit: Unit, lines: &[*const f32], len: usize) -> Self {
        let mut rows = Self::new(lines.len(), len);
        for (i, line) in lines.iter().enumerate() {
            let to = rows.row(i);
            // SAFETY: the row holds as many terms, and zeros after them.
            unsafe {
                narrow_rows(unit, *line, len, 1, to, rows.stride);
                to.add(len).write_bytes(0, rows.stride - len);
            }
        }
        for i in lines.len()..rows.count {
            // SAFETY: the row is within the scratch memory.
            unsafe { rows.row(i).write_bytes(0, rows.stride) };
        }
        rows
    }

    fn row(&mut self, row: usize) -> *mut u16 {
        self.values.as_mut_ptr().wrapping_add(row * self.stride)
    }

    /// Overwrites the first rows by those of a matrix, `len` values each, a multiple of [`TERMS`].
    pub(crate) fn set(&mut self, unit: Unit, matrix: &[f32], stride: usize, len: usize) {
        assert!(matrix.len().is_multiple_of(stride) && len <= stride && matrix.len() / stride <= self.count);
        for (i, line) in matrix.chunks_exact(stride).enumerate() {
            // SAFETY: the slices hold as many values.
            unsafe { narrow_rows(unit, line[..len].as_ptr(), len, 1, self.row(i), self.stride) };
        }
    }

    /// Overwrites the first rows by the columns of a matrix of `len` columns, a multiple of [`SIDE`]; its rows, a multiple of [`TERMS`], become terms.
    pub(crate) fn set_transposed(&mut self, unit: Unit, matrix: &[f32], stride: usize, len: usize) {
        let terms = matrix.len() / stride;
        assert!(len <= stride && len <= self.count && terms <= self.stride);
        for (term, column) in (0..terms).step_by(TERMS).flat_map(|t| (0..len).step_by(SIDE).map(move |c| (t, c))) {
            let lines = std::array::from_fn(|i| matrix[(term + i) * stride + column..].as_ptr());
            // SAFETY: lines of `len` values, rows of `terms`.
            unsafe { transpose_lines(unit, &lines, SIDE, self.row(column).add(term), self.stride) };
        }
    }
}

/// A right factor, `[terms, columns]`, both rounded up to whole tiles with zeros.
pub(crate) struct Tiles {
    values: NarrowScratch,
    panels: usize,
    /// Number of [`TERMS`].
    steps: usize,
}

impl Tiles {
    fn new(terms: usize, columns: usize) -> Self {
        let (panels, steps) = (columns.div_ceil(SIDE), terms.div_ceil(TERMS));
        Self { values: NarrowScratch::new(panels * steps * TILE), panels, steps }
    }

    fn tile(&mut self, panel: usize, step: usize) -> *mut u16 {
        self.values.as_mut_ptr().wrapping_add((panel * self.steps + step) * TILE)
    }

    /// These lines, at most [`LONGEST_LINE`] values long; they are the terms.
    ///
    /// # Safety
    /// The lines must be valid.
    pub(crate) unsafe fn of_lines(unit: Unit, lines: &[*const f32], len: usize) -> Self {
        assert!(len <= LONGEST_LINE);
        let mut tiles = Self::new(lines.len(), len);
        let (steps, panels) = (tiles.steps, tiles.panels);
        for (step, panel) in (0..steps).flat_map(|s| (0..panels).map(move |p| (s, p))) {
            let first = panel * SIDE;
            let of_tile: [*const f32; TERMS] = std::array::from_fn(|i| {
                lines.get(step * TERMS + i).map_or(ZEROS.as_ptr(), |line| *line).wrapping_add(first)
            });
            // SAFETY: the lines have the remaining values, the tile 16 pairs for each two lines.
            unsafe { pair_lines(unit, &of_tile, SIDE.min(len - first), tiles.tile(panel, step).cast()) };
        }
        tiles
    }

    /// The transpose of rows of `terms` terms.
    pub(crate) fn of_rows(unit: Unit, rows: &Rows, terms: usize) -> Self {
        let mut tiles = Self::new(terms, rows.count);
        let (steps, panels) = (tiles.steps, tiles.panels);
        for (panel, step) in (0..panels).flat_map(|p| (0..steps).map(move |s| (p, s))) {
            let from = rows.values.as_ptr().wrapping_add(panel * SIDE * rows.stride + step * TERMS);
            // Pairs of terms stay together, as if each were one value.
            // SAFETY: sixteen rows of 16 pairs become a tile of 16 lines of 16 pairs.
            unsafe { transpose_rows(unit, from.cast(), rows.stride / 2, SIDE, SIDE, tiles.tile(panel, step).cast()) };
        }
        tiles
    }
}

/// A part of a product's terms: `steps` times [`TERMS`] of them, from the given ones on.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// The first step in each row of the left factor.
    pub(crate) left: usize,
    /// The first step in the right factor.
    pub(crate) right: usize,
    pub(crate) steps: usize,
}

impl Session {
    /// `to[i, j]` = (or, with `add`, +=) the sum over `terms` of the products of `rows` of the left factor and `panels` of the right one, whole tiles.
    /// Rows of `to` are `stride` values apart.
    pub(crate) fn product(
        &self,
        (left, rows): (&Rows, Range<usize>),
        (right, panels): (&Tiles, Range<usize>),
        terms: Terms,
        add: bool,
        to: &mut [f32],
        stride: usize,
    ) {
        let (height, width) = (rows.len().next_multiple_of(SIDE), panels.len() * SIDE);
        assert!(rows.start + height <= left.count && panels.end <= right.panels && width <= stride);
        assert!((terms.left + terms.steps) * TERMS <= left.stride && terms.right + terms.steps <= right.steps);
        assert!(height == 0 || (height - 1) * stride + width <= to.len());
        for (panel, row) in (0..panels.len()).step_by(2).flat_map(|p| (0..height).step_by(ROWS).map(move |r| (p, r))) {
            let first = left.values.as_ptr().wrapping_add((rows.start + row) * left.stride + terms.left * TERMS);
            let next = (row + SIDE < height).then_some(SIDE * left.stride);
            let left = Left { first, stride: left.stride, second: next, runs: &[0], steps: terms.steps };
            let panel_len = right.steps * TILE;
            let first = right.values.as_ptr().wrapping_add((panels.start + panel) * panel_len + terms.right * TILE);
            let right = Right { first, second: (panel + 1 < panels.len()).then_some(panel_len) };
            // SAFETY: as just asserted.
            unsafe {
                let to = to.as_mut_ptr().add(row * stride + panel * SIDE);
                self.multiply(left, right, add, Target::within(to, stride));
            }
        }
    }
}
