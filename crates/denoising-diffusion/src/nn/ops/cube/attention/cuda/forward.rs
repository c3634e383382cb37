//! The forward pass: a kernel.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::super::lanes::cube_count;
use super::super::super::rows::Rows;
use super::super::super::tensor_cores::{ALIGNMENT, MATRIX, Values, column_in_matrix, zeros};
use super::super::{Shape, Sizes};
use super::{
    PAIR, ROWS, Tile, UNITS, WIDTH, add_rows, cubes, inner, load_keys, load_rows, memory_like, row_in_cube,
    rows_of_plane, share, store_sums, task,
};

/// Keys in shared memory at a time.
const KEYS: usize = 64;

/// Makes scores of inner products; those of keys from `all` on are so small that their weights are zero.
#[cube]
fn to_scores<S: Size>(
    products: &mut Sequence<Array<Vector<f32, S>>>,
    factor: f32,
    first: usize,
    all: usize,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for j in 0..comptime!(tile.rows / MATRIX[1]) {
        let key = first + comptime!(j * MATRIX[1]) + column_in_matrix();
        let products = products.index_mut(j);
        #[unroll]
        for below in 0..2usize {
            let mut score = products[below] * Vector::new(factor);
            if key >= all {
                score.insert(0usize, f32::min_value());
            }
            if key + 1 >= all {
                score.insert(1usize, f32::min_value());
            }
            products[below] = score;
        }
    }
}

/// Of a value per unit, the largest of the four units that share a row.
#[cube]
fn largest_of_row(value: f32) -> f32 {
    let value = max(value, plane_shuffle_xor(value, 1u32));
    max(value, plane_shuffle_xor(value, 2u32))
}

/// The sum of these.
#[cube]
fn sum_of_row(value: f32) -> f32 {
    let value = value + plane_shuffle_xor(value, 1u32);
    value + plane_shuffle_xor(value, 2u32)
}

/// 64 queries per cube. `state [all heads, 2, positions]`: the largest of each query's scores, and 1 / the sum of e^(score - largest).
#[cube(launch)]
fn flash_forward_kernel<F: Float, A: Size, R: Size>(
    qkv: &[Vector<F, A>],
    memory: &[Vector<F, A>],
    y: &mut [Vector<F, R>],
    state: &mut [f32],
    sizes: &Sizes,
    y_pitch: u32,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[0]);
    let size!(P) = product.vector_size(MatrixIdent::A);
    let size!(S) = product.vector_size(MatrixIdent::Accumulator);
    let task = task(sizes, tile);
    let positions = sizes.positions as usize;
    let all = sizes.memory as usize + positions;
    let of_values = comptime!(max(ROWS, tile.rows) * tile.pitch());
    let mut shared =
        Shared::<[Vector<F, A>]>::new_aligned_slice(of_values + comptime!(tile.rows * tile.pitch()), ALIGNMENT);

    let mut queries = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(ROWS)));
    load_rows::<F, A>(qkv, sizes.qkv, task.first, &mut queries, &task, sizes, ROWS, tile);
    let mut keys = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(tile.rows)));
    let mut values = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(tile.rows)));
    load_keys::<F, A>(qkv, memory, 0usize, 0usize, &mut keys, &task, sizes, tile.rows, tile);
    load_keys::<F, A>(qkv, memory, 1usize, 0usize, &mut values, &task, sizes, tile.rows, tile);
    share::<F, A>(&queries, &mut shared, 0usize, ROWS, tile);
    sync_cube();
    let q = rows_of_plane::<F, A, P>(&shared, 0usize, tile);

    let mut sums = zeros::<S>(comptime!(tile.columns()));
    // Of a unit's two rows; the sum is that of its own columns.
    let mut most = Array::<f32>::new(2usize);
    let mut sum = Array::<f32>::new(2usize);
    #[unroll]
    for below in 0..2usize {
        most[below] = f32::min_value();
        sum[below] = 0.0f32;
    }
    let mut first = 0usize;
    while first < all {
        // All units are done with the rows before these.
        sync_cube();
        share::<F, A>(&keys, &mut shared, 0usize, tile.rows, tile);
        share::<F, A>(&values, &mut shared, of_values, tile.rows, tile);
        sync_cube();
        let next = first + tile.rows;
        load_keys::<F, A>(qkv, memory, 0usize, next, &mut keys, &task, sizes, tile.rows, tile);
        load_keys::<F, A>(qkv, memory, 1usize, next, &mut values, &task, sizes, tile.rows, tile);
        let mut scores = inner::<F, A, P, S>(&q, &shared, 0usize, tile);
        to_scores::<S>(&mut scores, sizes.factor, first, all, tile);
        #[unroll]
        for below in 0..2usize {
            let mut largest = most[below];
            #[unroll]
            for j in 0..comptime!(tile.rows / MATRIX[1]) {
                let score = scores[j][below];
                largest = max(largest, max(score.extract(0usize), score.extract(1usize)));
            }
            let largest = largest_of_row(largest);
            let shrink = (most[below] - largest).exp();
            most[below] = largest;
            let mut added = 0.0f32;
            #[unroll]
            for j in 0..comptime!(tile.rows / MATRIX[1]) {
                let scores = scores.index_mut(j);
                let weight = (scores[below] - Vector::new(largest)).exp();
                scores[below] = weight;
                added += weight.extract(0usize) + weight.extract(1usize);
            }
            sum[below] = sum[below] * shrink + added;
            #[unroll]
            for n in 0..comptime!(tile.columns()) {
                let sums = sums.index_mut(n);
                sums[below] *= Vector::new(shrink);
            }
        }
        add_rows::<F, A, P, S>(&mut sums, &scores, &shared, of_values, tile);
        first = next;
    }

    #[unroll]
    for below in 0..2usize {
        let inverse = 1.0f32 / sum_of_row(sum[below]);
        let row = task.first + row_in_cube(below);
        if task.is_head && row < positions {
            let at = (task.image + row) * y_pitch as usize + task.column * comptime!(WIDTH / PAIR);
            store_sums::<F, R, S>(&sums, below, inverse, y, at, tile);
            if column_in_matrix() == 0 {
                let at = 2 * task.head * positions + row;
                state[at] = most[below];
                state[at + positions] = inverse;
            }
        }
    }
}

/// See [`forward`](super::super::forward).
pub(in super::super) fn forward(
    values: Values,
    shape: Shape,
    qkv: CubeTensor,
    mem_kv: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let client = qkv.client.clone();
    let mut dims = qkv.meta.shape().clone();
    dims[3] = shape.heads * shape.dim;
    let qkv = Rows::of_vectors(qkv, WIDTH);
    let memory = memory_like(&qkv, shape, mem_kv);
    let y = Rows::empty(&qkv, dims, qkv.dtype());
    let state = Rows::dense(&qkv, [shape.all_heads(), 2 * shape.positions]);
    flash_forward_kernel::launch(
        &client,
        cube_count(&client, cubes(shape, shape.positions)),
        CubeDim::new_1d(UNITS as u32),
        WIDTH,
        PAIR,
        qkv.arg(),
        memory.arg(),
        y.arg(),
        state.arg(),
        shape.sizes(shape.positions, ROWS, &qkv, &memory, WIDTH),
        y.pitch(PAIR),
        Tile { dim: shape.dim, rows: KEYS },
        values.elem,
    );
    (y.tensor(), state.tensor())
}
