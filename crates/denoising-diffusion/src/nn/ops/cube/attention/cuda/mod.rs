//! Attention on CUDA's tensor cores, for bf16 and f16 (Dao 2023, "FlashAttention-2"): scores and sums are f32, weights are rounded to the type of the
//! data before they are multiplied with it. A cube has 64 rows of a head, and each of its planes the registers of 16 of them: queries, or, for the
//! gradients of keys and values, keys. The other rows pass through shared memory, some at a time, and the next ones are on their way to registers
//! meanwhile.

mod backward;
mod forward;

use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::rows::Rows;
use super::super::tensor_cores::{MATRIX, PLANE, Values, column_in_matrix, row_in_matrix, zeros};
use super::{Shape, Sizes};

pub(super) use backward::backward;
pub(super) use forward::forward;

#[cfg(all(test, not(feature = "fusion")))]
mod tests;

/// Rows of a cube.
const ROWS: usize = 4 * MATRIX[0];
/// Units of a cube.
const UNITS: usize = 4 * PLANE;
/// Values per vector.
const WIDTH: usize = 8;
/// Values per vector of results: a unit's adjacent columns.
const PAIR: usize = 2;
/// The largest number of channels per head: their rows are in registers.
const MOST_CHANNELS: usize = 64;

/// What a device multiplies of this type, if it can with this number of channels per head.
pub(super) fn values(client: &Client, dtype: DType, dim: usize) -> Option<Values> {
    let fits = dim > 0 && dim <= MOST_CHANNELS && dim.is_multiple_of(MATRIX[0]);
    Values::of(client, dtype).filter(|values| fits && values.width == WIDTH)
}

/// Compile-time parameters of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Channels per head.
    dim: usize,
    /// Number of rows in shared memory at a time.
    rows: usize,
}

impl Tile {
    /// Vectors of a row.
    fn vectors(self) -> usize {
        self.dim / WIDTH
    }

    /// The distance between rows in shared memory, in vectors: odd, so that the vectors of eight rows are in different banks.
    fn pitch(self) -> usize {
        self.vectors() + 1
    }

    /// Vectors per unit of so many rows; some units may have one less.
    fn per_unit(self, rows: usize) -> usize {
        (rows * self.vectors()).div_ceil(UNITS)
    }

    /// Products whose sums are a row's channels.
    fn columns(self) -> usize {
        self.dim / MATRIX[1]
    }

    /// Products whose terms are a row's channels.
    fn depths(self) -> usize {
        self.dim / MATRIX[0]
    }
}

/// How many cubes share `rows` rows of each head.
fn cubes(shape: Shape, rows: usize) -> usize {
    shape.all_heads() * rows.div_ceil(ROWS)
}

/// The memory in the type of queries, keys and values.
fn memory_like(qkv: &Rows, shape: Shape, mem_kv: CubeTensor) -> Rows {
    let is_narrow = mem_kv.dtype == qkv.dtype() || shape.memory == 0;
    let narrow = if is_narrow { mem_kv } else { CubeBackend::float_cast(mem_kv, qkv.dtype().into()) };
    shape.memory_rows(narrow, WIDTH, qkv)
}

/// The work of a cube.
#[derive(CubeType)]
struct Task {
    is_head: bool,
    /// Index over the heads of all images.
    head: usize,
    /// The first of the rows that the head's cubes share.
    first: usize,
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
        first: CUBE_POS % sizes.cubes_per_head as usize * ROWS,
        image: head / heads * sizes.positions as usize,
        column: head % heads * comptime!(tile.vectors()),
        parts: heads * comptime!(tile.vectors()),
    }
}

/// Loads a head's rows of queries or of another tensor with a row per position, from `first` on, some vectors per unit; zeros outside.
#[cube]
fn load_rows<F: Float, A: Size>(
    from: &[Vector<F, A>],
    pitch: u32,
    first: usize,
    block: &mut Array<Vector<F, A>>,
    task: &Task,
    sizes: &Sizes,
    #[comptime] rows: usize,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.vectors());
    #[unroll]
    for i in 0..comptime!(tile.per_unit(rows)) {
        let at = i * UNITS + UNIT_POS as usize;
        let row = first + at / vectors;
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if task.is_head && row < sizes.positions as usize {
            value = from[(task.image + row) * pitch as usize + task.column + at % vectors];
        }
        block[i] = value;
    }
}

/// The same for keys (`which` 0) or values (1) of memory and positions.
#[cube]
fn load_keys<F: Float, A: Size>(
    qkv: &[Vector<F, A>],
    memory: &[Vector<F, A>],
    which: usize,
    first: usize,
    block: &mut Array<Vector<F, A>>,
    task: &Task,
    sizes: &Sizes,
    #[comptime] rows: usize,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.vectors());
    let of_memory = sizes.memory as usize;
    let heads = sizes.heads as usize;
    #[unroll]
    for i in 0..comptime!(tile.per_unit(rows)) {
        let at = i * UNITS + UNIT_POS as usize;
        let (row, vector) = (first + at / vectors, at % vectors);
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if task.is_head && row < of_memory {
            let row = (which * heads + task.head % heads) * of_memory + row;
            value = memory[row * sizes.memory_pitch as usize + vector];
        } else if task.is_head && row < of_memory + sizes.positions as usize {
            let row = task.image + row - of_memory;
            value = qkv[row * sizes.qkv as usize + task.column + (1 + which) * task.parts + vector];
        }
        block[i] = value;
    }
}

/// Writes rows, whose vectors are distributed over the units, to shared memory from `start` on.
#[cube]
fn share<F: Float, A: Size>(
    block: &Array<Vector<F, A>>,
    shared: &mut [Vector<F, A>],
    start: usize,
    #[comptime] rows: usize,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.vectors());
    #[unroll]
    for i in 0..comptime!(tile.per_unit(rows)) {
        let at = i * UNITS + UNIT_POS as usize;
        if comptime!((i + 1) * UNITS <= rows * vectors) || at < comptime!(rows * vectors) {
            shared[start + at / vectors * comptime!(tile.pitch()) + at % vectors] = block[i];
        }
    }
}

/// The registers of a factor for two products, from 16 rows and two vectors of each in shared memory. A lane says where a row of one of four matrices
/// begins; in which order those come depends on whether the rows are the factor's own (of `A`) or its columns (of `B`), or else its terms.
#[cube]
fn load_factor<F: Float, A: Size, P: Size>(
    shared: &[Vector<F, A>],
    start: usize,
    #[comptime] row: usize,
    #[comptime] vector: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] rows_are_terms: bool,
    #[comptime] tile: Tile,
) -> Array<Vector<F, P>> {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[0]);
    let lane = UNIT_POS as usize % PLANE;
    let (second, third) = (lane / 8 % 2, lane / 16);
    let next_rows_come_first = comptime!((ident == MatrixIdent::A) != rows_are_terms);
    let (next_rows, next_vector) = if next_rows_come_first { (second, third) } else { (third, second) };
    let at = start + (row + next_rows * 8 + lane % 8) * comptime!(tile.pitch()) + vector + next_vector;
    product.load_matrix::<Vector<F, A>, P>(&shared[at..at + 1], ident, 4usize, rows_are_terms)
}

/// The registers of a plane's 16 of the cube's rows in shared memory.
#[cube]
fn rows_of_plane<F: Float, A: Size, P: Size>(
    shared: &[Vector<F, A>],
    start: usize,
    #[comptime] tile: Tile,
) -> Sequence<Array<Vector<F, P>>> {
    let mut rows = Sequence::<Array<Vector<F, P>>>::new();
    let first = start + UNIT_POS as usize / PLANE * comptime!(MATRIX[0] * tile.pitch());
    #[unroll]
    for t in 0..comptime!(tile.depths()) {
        rows.push(load_factor::<F, A, P>(shared, first, 0usize, comptime!(2 * t), MatrixIdent::A, false, tile));
    }
    rows
}

/// Adds the products of a factor of 16 rows with two factors of 8 columns.
#[cube]
fn add_two<F: Float, P: Size, S: Size>(
    left: &Array<Vector<F, P>>,
    right: &Array<Vector<F, P>>,
    sums: &mut Sequence<Array<Vector<f32, S>>>,
    #[comptime] first: usize,
) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[0]);
    #[unroll]
    for i in 0..2usize {
        let mut one = Array::<Vector<F, P>>::new(2usize);
        one[0] = right[comptime!(2 * i)];
        one[1] = right[comptime!(2 * i + 1)];
        product.execute_inplace(left, &one, sums.index_mut(comptime!(first + i)));
    }
}

/// The inner products of a plane's rows with those in shared memory.
#[cube]
fn inner<F: Float, A: Size, P: Size, S: Size>(
    rows: &Sequence<Array<Vector<F, P>>>,
    shared: &[Vector<F, A>],
    start: usize,
    #[comptime] tile: Tile,
) -> Sequence<Array<Vector<f32, S>>> {
    let mut sums = zeros::<S>(comptime!(tile.rows / MATRIX[1]));
    #[unroll]
    for pair in 0..comptime!(tile.rows / MATRIX[0]) {
        #[unroll]
        for t in 0..comptime!(tile.depths()) {
            let (row, vector) = comptime!((pair * MATRIX[0], 2 * t));
            let right = load_factor::<F, A, P>(shared, start, row, vector, MatrixIdent::B, false, tile);
            add_two::<F, P, S>(&rows[t], &right, &mut sums, comptime!(2 * pair));
        }
    }
    sums
}

/// `sums += weights rows`, for rows in shared memory.
#[cube]
fn add_rows<F: Float, A: Size, P: Size, S: Size>(
    sums: &mut Sequence<Array<Vector<f32, S>>>,
    weights: &Sequence<Array<Vector<f32, S>>>,
    shared: &[Vector<F, A>],
    start: usize,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for t in 0..comptime!(tile.rows / MATRIX[0]) {
        // The sums of two products are, in the type of the data, a factor's registers.
        let mut left = Array::<Vector<F, P>>::new(4usize);
        #[unroll]
        for i in 0..2usize {
            let weight = &weights[comptime!(2 * t + i)];
            left[comptime!(2 * i)] = Vector::cast_from(weight[0]);
            left[comptime!(2 * i + 1)] = Vector::cast_from(weight[1]);
        }
        #[unroll]
        for pair in 0..comptime!(tile.columns() / 2) {
            let (row, vector) = comptime!((t * MATRIX[0], 2 * pair));
            let right = load_factor::<F, A, P>(shared, start, row, vector, MatrixIdent::B, true, tile);
            add_two::<F, P, S>(&left, &right, sums, comptime!(2 * pair));
        }
    }
}

/// The row of a unit's sums in its cube, or of the one eight rows below.
#[cube]
fn row_in_cube(#[comptime] below: usize) -> usize {
    UNIT_POS as usize / PLANE * comptime!(MATRIX[0]) + comptime!(8 * below) + row_in_matrix()
}

/// Stores one of a unit's rows of sums, times a factor; `at` is where the row begins, in pairs.
#[cube]
fn store_sums<F: Float, R: Size, S: Size>(
    sums: &Sequence<Array<Vector<f32, S>>>,
    #[comptime] below: usize,
    factor: f32,
    to: &mut [Vector<F, R>],
    at: usize,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for n in 0..comptime!(tile.columns()) {
        let value = sums[n][below] * Vector::new(factor);
        to[at + comptime!(n * MATRIX[1] / PAIR) + column_in_matrix() / PAIR] = Vector::cast_from(value);
    }
}
