//! Attention with one row per unit, on every device. A unit has a query (or, for the gradients of keys and values, a key) in registers; everything else
//! passes through shared memory. Products are f32 and use no matrix units, so [`takes`] leaves long rows and wide heads to plain operations, whose
//! matrix products use them.

mod backward;
mod forward;

use super::super::rows::{Rows, widest_vector};
use super::{Shape, Sizes, SizesLaunch};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;

pub(super) use backward::backward;
pub(super) use forward::forward;

/// The largest number of positions: the cost per pair of positions is some hundred operations, and from about here on matrix units are faster.
const MOST_POSITIONS: usize = 512;
/// The largest number of channels per head: a unit keeps three rows of that length in registers.
const MOST_CHANNELS: usize = 64;
/// The largest number of units per cube.
const UNITS: usize = 64;

/// Whether a device can run the kernels for this number of positions and of channels per head, and is faster with them.
pub(super) fn takes(client: &Client, positions: usize, dim: usize) -> bool {
    if dim == 0 || dim > MOST_CHANNELS || positions == 0 || positions > MOST_POSITIONS {
        return false;
    }
    let hardware = &client.properties().hardware;
    let tile = Tile::new(client, positions, dim);
    tile.units <= hardware.max_units_per_cube as usize && tile.shared_memory() <= hardware.max_shared_memory_size
}

/// Compile-time parameters of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Values per vector.
    width: usize,
    /// Vectors per row of one head.
    vectors: usize,
    /// Units per cube, which is the number of rows in registers.
    units: usize,
    /// Number of rows in shared memory at a time.
    rows: usize,
}

impl Tile {
    fn new(client: &Client, positions: usize, dim: usize) -> Self {
        let width = widest_vector(client, dim);
        let units = positions.next_power_of_two().clamp(UNITS / 2, UNITS);
        Self { width, vectors: dim / width, units, rows: (MOST_CHANNELS * 16 / dim).clamp(8, 32) }
    }

    /// Vectors per block of rows in shared memory.
    fn block(self) -> usize {
        self.rows * self.vectors
    }

    /// The most shared memory, in bytes, that a kernel uses: two blocks of rows, and three values per row.
    fn shared_memory(self) -> usize {
        size_of::<f32>() * (2 * self.width * self.block() + 3 * self.rows)
    }
}

/// The work of a unit.
#[derive(CubeType)]
struct Task {
    is_head: bool,
    /// Index over the heads of all images.
    head: usize,
    /// Index over the rows that the head's cubes share.
    row: usize,
    /// The row of the first position, in tensors with a row per position.
    image: usize,
    /// The head's first vector in a row of its queries, and in a row of a result.
    column: usize,
    /// Distance from queries to keys and from keys to values, in vectors.
    parts: usize,
}

#[cube]
fn task(sizes: &Sizes, #[comptime] tile: Tile) -> Task {
    let heads = sizes.heads as usize;
    let head = CUBE_POS / sizes.cubes_per_head as usize;
    Task {
        is_head: head < sizes.all_heads as usize,
        head,
        row: CUBE_POS % sizes.cubes_per_head as usize * tile.units + UNIT_POS as usize,
        image: head / heads * sizes.positions as usize,
        column: head % heads * tile.vectors,
        parts: heads * tile.vectors,
    }
}

/// Loads a row's vectors from `at` on, times a factor.
#[cube]
fn load_row<F: Float, N: Size>(
    from: &[Vector<F, N>],
    at: usize,
    factor: f32,
    row: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for v in 0..tile.vectors {
        row[v] = Vector::cast_from(from[at + v]) * Vector::new(factor);
    }
}

/// Stores a row's vectors from `at` on, times a factor.
#[cube]
fn store_row<F: Float, N: Size>(
    row: &Array<Vector<f32, N>>,
    factor: f32,
    to: &mut [Vector<F, N>],
    at: usize,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for v in 0..tile.vectors {
        to[at + v] = Vector::cast_from(row[v] * Vector::new(factor));
    }
}

/// Loads keys (`which` 0) or values (1) of memory and positions from `first` on into shared memory, with all units.
#[cube]
fn share_keys<F: Float, M: Float, N: Size>(
    qkv: &[Vector<F, N>],
    memory: &[Vector<M, N>],
    which: usize,
    first: usize,
    task: &Task,
    sizes: &Sizes,
    shared: &mut [Vector<f32, N>],
    #[comptime] tile: Tile,
) {
    let of_memory = sizes.memory as usize;
    let heads = sizes.heads as usize;
    let mut i = UNIT_POS as usize;
    while i < comptime!(tile.block()) {
        let (row, v) = (first + i / tile.vectors, i % tile.vectors);
        if task.is_head && row < of_memory {
            let at = ((which * heads + task.head % heads) * of_memory + row) * sizes.memory_pitch as usize;
            shared[i] = Vector::cast_from(memory[at + v]);
        } else if task.is_head && row < of_memory + sizes.positions as usize {
            let at = (task.image + row - of_memory) * sizes.qkv as usize + task.column + (1 + which) * task.parts;
            shared[i] = Vector::cast_from(qkv[at + v]);
        }
        i += tile.units;
    }
}

/// The inner product of a row in registers and one in shared memory.
#[cube]
fn inner<N: Size>(row: &Array<Vector<f32, N>>, shared: &[Vector<f32, N>], at: usize, #[comptime] tile: Tile) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for v in 0..tile.vectors {
        sum += row[v] * shared[at + v];
    }
    sum.vector_sum()
}

/// `sums += factor row`, for a row in shared memory.
#[cube]
fn add_row<N: Size>(
    sums: &mut Array<Vector<f32, N>>,
    factor: f32,
    shared: &[Vector<f32, N>],
    at: usize,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for v in 0..tile.vectors {
        sums[v] += shared[at + v] * Vector::new(factor);
    }
}

/// The parameters of the launches.
struct Plan {
    client: Client,
    shape: Shape,
    tile: Tile,
}

impl Plan {
    fn new(client: Client, shape: Shape) -> Self {
        let tile = Tile::new(&client, shape.positions, shape.dim);
        Self { client, shape, tile }
    }

    /// For cubes that share `rows` rows of each head.
    fn sizes(&self, rows: usize, qkv: &Rows, memory: &Rows) -> SizesLaunch {
        self.shape.sizes(rows, self.tile.units, qkv, memory, self.tile.width)
    }

    /// How many cubes share `rows` rows of each head.
    fn cubes(&self, rows: usize) -> usize {
        self.shape.all_heads() * rows.div_ceil(self.tile.units)
    }

    fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.tile.units as u32)
    }
}
