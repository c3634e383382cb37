//! Factors that are made in memory given for that, and their products.

use std::ops::Range;

use super::{Left, Right, SIDE, Session, TERMS, TILE, Target, Unit};
use super::{narrow_rows, pair_lines, transpose_lines, transpose_rows};

/// Rows of two tiles.
pub(crate) const ROWS: usize = 2 * SIDE;
/// The longest line that can be filled up with lines of zeros.
pub(crate) const LONGEST_LINE: usize = 256;
static ZEROS: [f32; LONGEST_LINE] = [0.0; LONGEST_LINE];

/// A left factor, `[rows, terms]`, both rounded up to whole tiles with zeros.
pub(crate) struct Rows<'a> {
    values: &'a mut [f32],
    stride: usize,
    count: usize,
}

impl<'a> Rows<'a> {
    /// Rows an odd number of cache lines apart, which do not collide in the cache, and their number.
    fn sizes(rows: usize, terms: usize) -> [usize; 2] {
        [(terms.div_ceil(TERMS) | 1) * TERMS, rows.next_multiple_of(ROWS)]
    }

    /// Room that it needs, in f32 values.
    pub(crate) fn room(rows: usize, terms: usize) -> usize {
        Self::sizes(rows, terms).iter().product::<usize>() / 2
    }

    /// Its contents are whatever was there before.
    pub(crate) fn new(room: &'a mut [f32], rows: usize, terms: usize) -> Self {
        assert_eq!(room.len(), Self::room(rows, terms));
        let [stride, count] = Self::sizes(rows, terms);
        Self { values: room, stride, count }
    }

    /// These lines of `len` values.
    ///
    /// # Safety
    /// The lines must be valid.
    pub(crate) unsafe fn of(room: &'a mut [f32], unit: Unit, lines: &[*const f32], len: usize) -> Self {
        let mut rows = Self::new(room, lines.len(), len);
        for (i, line) in lines.iter().enumerate() {
            let to = rows.row_mut(i);
            // SAFETY: the row holds as many terms, and zeros after them.
            unsafe {
                narrow_rows(unit, *line, len, 1, to, rows.stride);
                to.add(len).write_bytes(0, rows.stride - len);
            }
        }
        for i in lines.len()..rows.count {
            // SAFETY: the row is within the room.
            unsafe { rows.row_mut(i).write_bytes(0, rows.stride) };
        }
        rows
    }

    fn row(&self, row: usize) -> *const u16 {
        self.values.as_ptr().cast::<u16>().wrapping_add(row * self.stride)
    }

    fn row_mut(&mut self, row: usize) -> *mut u16 {
        self.values.as_mut_ptr().cast::<u16>().wrapping_add(row * self.stride)
    }

    /// Overwrites the first rows by those of a matrix, `len` values each, a multiple of [`TERMS`].
    pub(crate) fn set(&mut self, unit: Unit, matrix: &[f32], stride: usize, len: usize) {
        assert!(matrix.len().is_multiple_of(stride) && len <= stride && matrix.len() / stride <= self.count);
        if len == stride {
            // SAFETY: as below.
            return unsafe {
                narrow_rows(unit, matrix.as_ptr(), len, matrix.len() / len, self.row_mut(0), self.stride)
            };
        }
        for (i, line) in matrix.chunks_exact(stride).enumerate() {
            // SAFETY: the slices hold as many values.
            unsafe { narrow_rows(unit, line[..len].as_ptr(), len, 1, self.row_mut(i), self.stride) };
        }
    }

    /// Overwrites the first rows by the columns of a matrix of `len` columns, a multiple of [`SIDE`]; its rows, a multiple of [`TERMS`], become terms.
    pub(crate) fn set_transposed(&mut self, unit: Unit, matrix: &[f32], stride: usize, len: usize) {
        let terms = matrix.len() / stride;
        assert!(len <= stride && len <= self.count && terms <= self.stride);
        for (term, column) in (0..terms).step_by(TERMS).flat_map(|t| (0..len).step_by(SIDE).map(move |c| (t, c))) {
            let lines = std::array::from_fn(|i| matrix[(term + i) * stride + column..].as_ptr());
            // SAFETY: lines of `len` values, rows of `terms`.
            unsafe { transpose_lines(unit, &lines, SIDE, self.row_mut(column).add(term), self.stride) };
        }
    }
}

/// A right factor, `[terms, columns]`, both rounded up to whole tiles with zeros.
pub(crate) struct Tiles<'a> {
    values: &'a mut [f32],
    panels: usize,
    /// Number of [`TERMS`].
    steps: usize,
}

impl<'a> Tiles<'a> {
    /// Room that it needs, in f32 values.
    pub(crate) fn room(terms: usize, columns: usize) -> usize {
        columns.div_ceil(SIDE) * terms.div_ceil(TERMS) * TILE / 2
    }

    fn new(room: &'a mut [f32], terms: usize, columns: usize) -> Self {
        assert_eq!(room.len(), Self::room(terms, columns));
        Self { values: room, panels: columns.div_ceil(SIDE), steps: terms.div_ceil(TERMS) }
    }

    fn tile(&self, panel: usize, step: usize) -> *const u16 {
        self.values.as_ptr().cast::<u16>().wrapping_add((panel * self.steps + step) * TILE)
    }

    /// Calls `fill(panel, step, tile)` for each tile.
    fn each_tile(&mut self, mut fill: impl FnMut(usize, usize, &mut [f32])) {
        for (i, tile) in self.values.chunks_exact_mut(TILE / 2).enumerate() {
            fill(i / self.steps, i % self.steps, tile);
        }
    }

    /// These lines, at most [`LONGEST_LINE`] values long; they are the terms.
    ///
    /// # Safety
    /// The lines must be valid.
    pub(crate) unsafe fn of_lines(room: &'a mut [f32], unit: Unit, lines: &[*const f32], len: usize) -> Self {
        assert!(len <= LONGEST_LINE);
        let mut tiles = Self::new(room, lines.len(), len);
        tiles.each_tile(|panel, step, tile| {
            let first = panel * SIDE;
            let of_tile: [*const f32; TERMS] = std::array::from_fn(|i| {
                lines.get(step * TERMS + i).map_or(ZEROS.as_ptr(), |line| *line).wrapping_add(first)
            });
            // SAFETY: the lines have the remaining values, the tile 16 pairs for each two lines.
            unsafe { pair_lines(unit, &of_tile, SIDE.min(len - first), tile.as_mut_ptr()) };
        });
        tiles
    }

    /// The transpose of rows of `terms` terms.
    pub(crate) fn of_rows(room: &'a mut [f32], unit: Unit, rows: &Rows<'_>, terms: usize) -> Self {
        let mut tiles = Self::new(room, terms, rows.count);
        tiles.each_tile(|panel, step, tile| {
            let from = rows.row(panel * SIDE).wrapping_add(step * TERMS);
            // Pairs of terms stay together, as if each were one value.
            // SAFETY: sixteen rows of 16 pairs become a tile of 16 lines of 16 pairs.
            unsafe { transpose_rows(unit, from.cast(), rows.stride / 2, SIDE, SIDE, tile.as_mut_ptr()) };
        });
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
        (left, rows): (&Rows<'_>, Range<usize>),
        (right, panels): (&Tiles<'_>, Range<usize>),
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
            let first = left.row(rows.start + row).wrapping_add(terms.left * TERMS);
            let next = (row + SIDE < height).then_some(SIDE * left.stride);
            let left = Left { first, stride: left.stride, second: next, runs: &[0], steps: terms.steps };
            let second = (panel + 1 < panels.len()).then_some(right.steps * TILE);
            let right = Right { first: right.tile(panels.start + panel, terms.right), second };
            // SAFETY: as just asserted.
            unsafe {
                let to = to.as_mut_ptr().add(row * stride + panel * SIDE);
                self.multiply(left, right, add, Target::within(to, stride));
            }
        }
    }
}
