//! Building blocks of the kernels for linear attention: a cube's units share a block of rows and multiply it. Rows pass through shared memory as f32.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;

use super::super::lanes::{Lanes, max_over_group, sum_over_group, sum_over_groups};
use super::super::rows::widest_vector;

/// Units per cube.
pub(super) const UNITS: usize = 128;
/// Number of rows of a block of which a unit has a vector.
pub(super) const ROWS: usize = 4;
/// The largest number of vectors per row.
pub(super) const MOST_VECTORS: usize = 32;

/// Compile-time parameters of a kernel: how units share a block of [`Tile::rows`] rows, and the sum of outer products of two blocks' rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Values per vector.
    pub(super) width: usize,
    /// Vectors per row, at most [`MOST_VECTORS`].
    pub(super) vectors: usize,
    /// One group per row with a vector per unit, [`ROWS`] times.
    pub(super) lanes: Lanes,
    /// In an outer product, a unit sums this many vectors for each value of one vector of the other factor.
    pub(super) across: usize,
}

impl Tile {
    /// For rows of `dim` values.
    pub(super) fn new(client: &Client, dim: usize) -> Self {
        let width = widest_vector(client, dim);
        let vectors = dim / width;
        // Two, if that divides a row, halves what is read; large products need more per unit.
        let fits = |across: &usize| vectors.is_multiple_of(*across) && vectors * vectors / across <= UNITS;
        let across = if vectors.is_multiple_of(2) { 2.. } else { 1.. }.find(fits).unwrap_or(vectors);
        Self { width, vectors, lanes: Lanes::one_each(client, vectors, UNITS), across }
    }

    /// Values per row.
    pub(super) fn dim(self) -> usize {
        self.width * self.vectors
    }

    /// Vectors per square matrix.
    pub(super) fn matrix(self) -> usize {
        self.dim() * self.vectors
    }

    /// Vectors of an outer product's sums per unit.
    pub(super) fn sums(self) -> usize {
        self.across * self.width
    }

    /// Rows per block.
    pub(super) fn rows(self) -> usize {
        self.lanes.groups * ROWS
    }

    /// Vectors per block.
    pub(super) fn block(self) -> usize {
        self.rows() * self.vectors
    }

    /// Groups of units that sum outer products of different rows.
    pub(super) fn products(self) -> Lanes {
        let units = self.vectors * self.vectors / self.across;
        Lanes { units, groups: UNITS / units, vectors: self.across, in_plane: false }
    }

    /// The most shared memory, in bytes, that a kernel uses: two blocks of rows, a vector and a value per unit.
    pub(super) fn shared_memory(self) -> usize {
        size_of::<f32>() * (self.width * (2 * self.block() + UNITS) + UNITS)
    }
}

/// Whether this unit has vectors of rows.
#[cube]
pub(super) fn has_column(#[comptime] tile: Tile) -> bool {
    UNIT_POS as usize % tile.lanes.units < tile.vectors
}

/// This unit's vectors of the rows from `first` on; rows are `pitch` vectors apart and row 0 is at `base`. Zeros from row `end` on.
#[cube]
pub(super) fn load_rows<F: Float, N: Size>(
    from: &[Vector<F, N>],
    base: usize,
    pitch: usize,
    first: usize,
    end: usize,
    rows: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
) {
    let lane = UNIT_POS as usize % tile.lanes.units;
    let group = UNIT_POS as usize / tile.lanes.units;
    #[unroll]
    for k in 0..ROWS {
        let row = first + group + k * tile.lanes.groups;
        rows[k] = Vector::new(0.0f32);
        if row < end && lane < tile.vectors {
            rows[k] = Vector::cast_from(from[base + row * pitch + lane]);
        }
    }
}

/// Writes rows to where [`load_rows`] reads them.
#[cube]
pub(super) fn write_rows<F: Float, N: Size>(
    rows: &Array<Vector<f32, N>>,
    to: &mut [Vector<F, N>],
    base: usize,
    pitch: usize,
    first: usize,
    end: usize,
    #[comptime] tile: Tile,
) {
    let lane = UNIT_POS as usize % tile.lanes.units;
    let group = UNIT_POS as usize / tile.lanes.units;
    #[unroll]
    for k in 0..ROWS {
        let row = first + group + k * tile.lanes.groups;
        if row < end && lane < tile.vectors {
            to[base + row * pitch + lane] = Vector::cast_from(rows[k]);
        }
    }
}

/// Puts this unit's vectors where all units can read them. A `sync_cube` must lie between this and reading them.
#[cube]
pub(super) fn share_rows<N: Size>(rows: &Array<Vector<f32, N>>, block: &mut [Vector<f32, N>], #[comptime] tile: Tile) {
    let lane = UNIT_POS as usize % tile.lanes.units;
    let group = UNIT_POS as usize / tile.lanes.units;
    if lane < tile.vectors {
        #[unroll]
        for k in 0..ROWS {
            block[(group + k * tile.lanes.groups) * tile.vectors + lane] = rows[k];
        }
    }
}

/// The softmax of each row, times `factor`.
#[cube]
pub(super) fn softmax_rows<N: Size>(
    rows: &mut Array<Vector<f32, N>>,
    factor: f32,
    scratch: &mut [f32],
    #[comptime] tile: Tile,
) {
    #[unroll]
    for k in 0..ROWS {
        let mut most = f32::min_value();
        if has_column(tile) {
            #[unroll]
            for i in 0..tile.width {
                most = max(most, rows[k].extract(i));
            }
        }
        let most = max_over_group(most, scratch, tile.lanes);
        let mut powers = Vector::<f32, N>::new(0.0f32);
        if has_column(tile) {
            powers = (rows[k] - Vector::new(most)).exp();
        }
        let sum = sum_over_group(powers.vector_sum(), scratch, tile.lanes);
        rows[k] = powers * Vector::new(factor / sum);
    }
}

/// `sums[a, b] += sum over rows of left[row, a] right[row, b]`, for this unit's `a` and `b` (see [`write_products`]) and its group's rows.
#[cube]
pub(super) fn add_products<N: Size>(
    left: &[Vector<f32, N>],
    right: &[Vector<f32, N>],
    sums: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
) {
    let products = comptime!(tile.products());
    let columns = comptime!(tile.vectors / tile.across);
    let unit = UNIT_POS as usize % products.units;
    let group = UNIT_POS as usize / products.units;
    if group < products.groups {
        let mut row = group;
        while row < comptime!(tile.rows()) {
            let a = left[row * tile.vectors + unit / columns];
            #[unroll]
            for t in 0..tile.across {
                let b = right[row * tile.vectors + unit % columns + t * columns];
                #[unroll]
                for i in 0..tile.width {
                    sums[t * tile.width + i] += b * Vector::new(a.extract(i));
                }
            }
            row += products.groups;
        }
    }
}

/// Adds the sums of all groups and, if `writes`, writes them as a matrix of `vectors` vectors per row, starting at `at`.
#[cube]
pub(super) fn write_products<N: Size>(
    sums: &Array<Vector<f32, N>>,
    to: &mut [Vector<f32, N>],
    at: usize,
    writes: bool,
    scratch: &mut [Vector<f32, N>],
    #[comptime] tile: Tile,
) {
    let products = comptime!(tile.products());
    let columns = comptime!(tile.vectors / tile.across);
    let unit = UNIT_POS as usize % products.units;
    #[unroll]
    for t in 0..tile.across {
        #[unroll]
        for i in 0..tile.width {
            let sum = sum_over_groups::<N>(sums[t * tile.width + i], scratch, products);
            if writes && (UNIT_POS as usize) < products.units {
                let a = unit / columns * tile.width + i;
                to[at + a * tile.vectors + unit % columns + t * columns] = sum;
            }
        }
    }
}

/// `results = rows matrix`: this unit's vectors of the products of the block's rows with the square matrix that starts at `at`.
#[cube]
pub(super) fn rows_times<N: Size>(
    block: &[Vector<f32, N>],
    matrix: &[Vector<f32, N>],
    at: usize,
    results: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
) {
    let lane = UNIT_POS as usize % tile.lanes.units;
    let group = UNIT_POS as usize / tile.lanes.units;
    #[unroll]
    for k in 0..ROWS {
        results[k] = Vector::new(0.0f32);
    }
    if lane < tile.vectors {
        let mut values = Array::<Vector<f32, N>>::new(ROWS);
        for v in 0..tile.vectors {
            #[unroll]
            for k in 0..ROWS {
                values[k] = block[(group + k * tile.lanes.groups) * tile.vectors + v];
            }
            #[unroll]
            for i in 0..tile.width {
                let of_matrix = matrix[at + (v * tile.width + i) * tile.vectors + lane];
                #[unroll]
                for k in 0..ROWS {
                    results[k] += of_matrix * Vector::new(values[k].extract(i));
                }
            }
        }
    }
}
