//! The backward pass: [`flash_queries_kernel`], then [`flash_keys_kernel`], and the sum over images of their contributions to the gradient of the
//! memory.

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
    PAIR, ROWS, Task, Tile, UNITS, WIDTH, add_rows, cubes, inner, load_keys, load_rows, memory_like, row_in_cube,
    rows_of_plane, share, store_sums, task,
};

/// Keys, or queries, in shared memory at a time.
const KEYS: usize = 64;
const QUERIES: usize = 32;

/// Distances, in vectors: of `dqkv`, in pairs.
#[derive(CubeLaunch, CubeType)]
struct Pitches {
    y: u32,
    dy: u32,
    dqkv: u32,
}

/// The deltas of a cube's queries, by two units each, to shared and to the device's memory. The gradient of the result is in shared memory.
#[cube]
fn find_deltas<F: Float, A: Size>(
    y: &[Vector<F, A>],
    y_pitch: u32,
    shared: &[Vector<F, A>],
    start: usize,
    shared_deltas: &mut [f32],
    deltas: &mut [f32],
    task: &Task,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let (inside, half) = (UNIT_POS as usize / 2, UNIT_POS as usize % 2);
    let row = task.first + inside;
    let is_query = task.is_head && row < sizes.positions as usize;
    let mut sum = Vector::<f32, A>::new(0.0f32);
    if is_query {
        #[unroll]
        for i in 0..comptime!(tile.vectors() / 2) {
            let vector = 2 * i + half;
            let result = y[(task.image + row) * y_pitch as usize + task.column + vector];
            let d_result = shared[start + inside * comptime!(tile.pitch()) + vector];
            sum += Vector::<f32, A>::cast_from(result) * Vector::<f32, A>::cast_from(d_result);
        }
    }
    let of_half = sum.vector_sum();
    let delta = of_half + plane_shuffle_xor(of_half, 1u32);
    if half == 0 {
        shared_deltas[inside] = delta;
        if is_query {
            deltas[task.head * sizes.positions as usize + row] = delta;
        }
    }
}

/// 64 queries per cube: their gradients, and their `deltas [all heads, positions]`.
#[cube(launch)]
fn flash_queries_kernel<F: Float, A: Size, R: Size>(
    qkv: &[Vector<F, A>],
    memory: &[Vector<F, A>],
    y: &[Vector<F, A>],
    dy: &[Vector<F, A>],
    state: &[f32],
    dqkv: &mut [Vector<F, R>],
    deltas: &mut [f32],
    sizes: &Sizes,
    pitches: &Pitches,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[0]);
    let size!(P) = product.vector_size(MatrixIdent::A);
    let size!(S) = product.vector_size(MatrixIdent::Accumulator);
    let task = task(sizes, tile);
    let positions = sizes.positions as usize;
    let all = sizes.memory as usize + positions;
    let second = comptime!(ROWS * tile.pitch());
    let mut shared = Shared::<[Vector<F, A>]>::new_aligned_slice(2 * second, ALIGNMENT);
    let mut shared_deltas = Shared::<[f32]>::new_slice(ROWS);

    let mut rows = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(ROWS)));
    let mut d_rows = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(ROWS)));
    load_rows::<F, A>(qkv, sizes.qkv, task.first, &mut rows, &task, sizes, ROWS, tile);
    load_rows::<F, A>(dy, pitches.dy, task.first, &mut d_rows, &task, sizes, ROWS, tile);
    share::<F, A>(&rows, &mut shared, 0usize, ROWS, tile);
    share::<F, A>(&d_rows, &mut shared, second, ROWS, tile);
    let mut keys = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(tile.rows)));
    let mut values = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(tile.rows)));
    load_keys::<F, A>(qkv, memory, 0usize, 0usize, &mut keys, &task, sizes, tile.rows, tile);
    load_keys::<F, A>(qkv, memory, 1usize, 0usize, &mut values, &task, sizes, tile.rows, tile);
    sync_cube();
    let q = rows_of_plane::<F, A, P>(&shared, 0usize, tile);
    let d_result = rows_of_plane::<F, A, P>(&shared, second, tile);
    find_deltas::<F, A>(y, pitches.y, &shared, second, &mut shared_deltas, deltas, &task, sizes, tile);
    sync_cube();

    // Of a unit's two rows.
    let mut most = Array::<f32>::new(2usize);
    let mut inverse = Array::<f32>::new(2usize);
    let mut delta = Array::<f32>::new(2usize);
    #[unroll]
    for below in 0..2usize {
        let row = task.first + row_in_cube(below);
        let mut of_most = 0.0f32;
        let mut of_inverse = 0.0f32;
        if task.is_head && row < positions {
            let at = 2 * task.head * positions + row;
            of_most = state[at];
            of_inverse = state[at + positions];
        }
        most[below] = of_most;
        inverse[below] = of_inverse;
        delta[below] = shared_deltas[row_in_cube(below)];
    }
    let mut dq = zeros::<S>(comptime!(tile.columns()));
    let mut first = 0usize;
    while first < all {
        // All units are done with the rows before these.
        sync_cube();
        share::<F, A>(&keys, &mut shared, 0usize, tile.rows, tile);
        share::<F, A>(&values, &mut shared, second, tile.rows, tile);
        sync_cube();
        let next = first + tile.rows;
        load_keys::<F, A>(qkv, memory, 0usize, next, &mut keys, &task, sizes, tile.rows, tile);
        load_keys::<F, A>(qkv, memory, 1usize, next, &mut values, &task, sizes, tile.rows, tile);
        let mut scores = inner::<F, A, P, S>(&q, &shared, 0usize, tile);
        let d_weights = inner::<F, A, P, S>(&d_result, &shared, second, tile);
        #[unroll]
        for j in 0..comptime!(tile.rows / MATRIX[1]) {
            let key = first + comptime!(j * MATRIX[1]) + column_in_matrix();
            let scores = scores.index_mut(j);
            #[unroll]
            for below in 0..2usize {
                let score = scores[below] * Vector::new(sizes.factor) - Vector::new(most[below]);
                let mut weight = score.exp() * Vector::new(inverse[below]);
                // Without a key, the score is 0, and the weight may be infinite.
                if key >= all {
                    weight.insert(0usize, 0.0f32);
                }
                if key + 1 >= all {
                    weight.insert(1usize, 0.0f32);
                }
                scores[below] = weight * (d_weights[j][below] - Vector::new(delta[below]));
            }
        }
        add_rows::<F, A, P, S>(&mut dq, &scores, &shared, 0usize, tile);
        first = next;
    }
    #[unroll]
    for below in 0..2usize {
        let row = task.first + row_in_cube(below);
        if task.is_head && row < positions {
            let at = (task.image + row) * pitches.dqkv as usize + task.column * comptime!(WIDTH / PAIR);
            store_sums::<F, R, S>(&dq, below, sizes.factor, dqkv, at, tile);
        }
    }
}

/// Stores the gradients of a unit's keys (`which` 0) or values (1): in `dqkv`, or in its image's contribution to the gradient of the memory,
/// `parts [b, 2 heads m d]`.
#[cube]
fn store_gradients<F: Float, R: Size, S: Size>(
    sums: &Sequence<Array<Vector<f32, S>>>,
    which: usize,
    factor: f32,
    dqkv: &mut [Vector<F, R>],
    parts: &mut [Vector<f32, R>],
    task: &Task,
    sizes: &Sizes,
    dqkv_pitch: u32,
    #[comptime] tile: Tile,
) {
    let heads = sizes.heads as usize;
    let of_memory = sizes.memory as usize;
    #[unroll]
    for below in 0..2usize {
        let row = task.first + row_in_cube(below);
        if task.is_head && row < of_memory {
            let image = task.head / heads;
            let row = ((image * 2 + which) * heads + task.head % heads) * of_memory + row;
            store_sums::<f32, R, S>(sums, below, factor, parts, row * comptime!(tile.dim / PAIR), tile);
        } else if task.is_head && row < of_memory + sizes.positions as usize {
            let at = (task.image + row - of_memory) * dqkv_pitch as usize;
            let column = (task.column + (1 + which) * task.parts) * comptime!(WIDTH / PAIR);
            store_sums::<F, R, S>(sums, below, factor, dqkv, at + column, tile);
        }
    }
}

/// What is known of a unit's query, from `first` on: the largest score, 1 / the sum and delta. Without a query, its weights are zero.
#[cube]
fn load_scalars(
    state: &[f32],
    deltas: &[f32],
    first: usize,
    scalars: &mut Array<f32>,
    task: &Task,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let positions = sizes.positions as usize;
    let row = first + UNIT_POS as usize;
    #[unroll]
    for i in 0..3usize {
        scalars[i] = 0.0f32;
    }
    if task.is_head && (UNIT_POS as usize) < tile.rows && row < positions {
        let at = 2 * task.head * positions + row;
        scalars[0] = state[at];
        scalars[1] = state[at + positions];
        scalars[2] = deltas[task.head * positions + row];
    }
}

/// Two adjacent values in shared memory.
#[cube]
fn pair<S: Size>(shared: &[f32], at: usize) -> Vector<f32, S> {
    let mut pair = Vector::<f32, S>::new(shared[at]);
    pair.insert(1usize, shared[at + 1]);
    pair
}

/// 64 keys and their values per cube: their gradients.
#[cube(launch)]
fn flash_keys_kernel<F: Float, A: Size, R: Size>(
    qkv: &[Vector<F, A>],
    memory: &[Vector<F, A>],
    dy: &[Vector<F, A>],
    state: &[f32],
    deltas: &[f32],
    dqkv: &mut [Vector<F, R>],
    parts: &mut [Vector<f32, R>],
    sizes: &Sizes,
    pitches: &Pitches,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[0]);
    let size!(P) = product.vector_size(MatrixIdent::A);
    let size!(S) = product.vector_size(MatrixIdent::Accumulator);
    let task = task(sizes, tile);
    let second = comptime!(ROWS * tile.pitch());
    let mut shared = Shared::<[Vector<F, A>]>::new_aligned_slice(2 * second, ALIGNMENT);
    let mut shared_scalars = Shared::<[f32]>::new_slice(comptime!(3 * tile.rows));

    let mut keys = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(ROWS)));
    let mut values = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(ROWS)));
    load_keys::<F, A>(qkv, memory, 0usize, task.first, &mut keys, &task, sizes, ROWS, tile);
    load_keys::<F, A>(qkv, memory, 1usize, task.first, &mut values, &task, sizes, ROWS, tile);
    share::<F, A>(&keys, &mut shared, 0usize, ROWS, tile);
    share::<F, A>(&values, &mut shared, second, ROWS, tile);
    let mut queries = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(tile.rows)));
    let mut d_results = Array::<Vector<F, A>>::new(comptime!(tile.per_unit(tile.rows)));
    let mut scalars = Array::<f32>::new(3usize);
    load_rows::<F, A>(qkv, sizes.qkv, 0usize, &mut queries, &task, sizes, tile.rows, tile);
    load_rows::<F, A>(dy, pitches.dy, 0usize, &mut d_results, &task, sizes, tile.rows, tile);
    load_scalars(state, deltas, 0usize, &mut scalars, &task, sizes, tile);
    sync_cube();
    let key = rows_of_plane::<F, A, P>(&shared, 0usize, tile);
    let value = rows_of_plane::<F, A, P>(&shared, second, tile);
    let mut d_key = zeros::<S>(comptime!(tile.columns()));
    let mut d_value = zeros::<S>(comptime!(tile.columns()));
    let mut first = 0usize;
    while first < sizes.positions as usize {
        // All units are done with the rows before these.
        sync_cube();
        share::<F, A>(&queries, &mut shared, 0usize, tile.rows, tile);
        share::<F, A>(&d_results, &mut shared, second, tile.rows, tile);
        if (UNIT_POS as usize) < tile.rows {
            #[unroll]
            for i in 0..3usize {
                shared_scalars[comptime!(i * tile.rows) + UNIT_POS as usize] = scalars[i];
            }
        }
        sync_cube();
        let next = first + tile.rows;
        load_rows::<F, A>(qkv, sizes.qkv, next, &mut queries, &task, sizes, tile.rows, tile);
        load_rows::<F, A>(dy, pitches.dy, next, &mut d_results, &task, sizes, tile.rows, tile);
        load_scalars(state, deltas, next, &mut scalars, &task, sizes, tile);
        let mut weights = inner::<F, A, P, S>(&key, &shared, 0usize, tile);
        let mut d_scores = inner::<F, A, P, S>(&value, &shared, second, tile);
        #[unroll]
        for j in 0..comptime!(tile.rows / MATRIX[1]) {
            let query = comptime!(j * MATRIX[1]) + column_in_matrix();
            let most = pair::<S>(&shared_scalars, query);
            let inverse = pair::<S>(&shared_scalars, comptime!(tile.rows) + query);
            let delta = pair::<S>(&shared_scalars, comptime!(2 * tile.rows) + query);
            let weights = weights.index_mut(j);
            let d_scores = d_scores.index_mut(j);
            #[unroll]
            for below in 0..2usize {
                let weight = (weights[below] * Vector::new(sizes.factor) - most).exp() * inverse;
                weights[below] = weight;
                d_scores[below] = weight * (d_scores[below] - delta);
            }
        }
        add_rows::<F, A, P, S>(&mut d_value, &weights, &shared, second, tile);
        add_rows::<F, A, P, S>(&mut d_key, &d_scores, &shared, 0usize, tile);
        first = next;
    }
    store_gradients::<F, R, S>(&d_key, 0usize, sizes.factor, dqkv, parts, &task, sizes, pitches.dqkv, tile);
    store_gradients::<F, R, S>(&d_value, 1usize, 1.0f32, dqkv, parts, &task, sizes, pitches.dqkv, tile);
}

/// See [`backward`](super::super::backward).
pub(in super::super) fn backward(
    values: Values,
    shape: Shape,
    qkv: CubeTensor,
    mem_kv: CubeTensor,
    y: CubeTensor,
    state: CubeTensor,
    dy: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let client = qkv.client.clone();
    let [qkv, y, dy] = [qkv, y, dy].map(|tensor| Rows::of_vectors(tensor, WIDTH));
    let (memory, state) = (memory_like(&qkv, shape, mem_kv.clone()), Rows::of(state));
    let dqkv = Rows::empty(&qkv, qkv.shape(), qkv.dtype());
    let deltas = Rows::dense(&qkv, [shape.all_heads(), shape.positions]);
    let pitches = || PitchesLaunch::new(y.pitch(WIDTH), dy.pitch(WIDTH), dqkv.pitch(PAIR));
    flash_queries_kernel::launch(
        &client,
        cube_count(&client, cubes(shape, shape.positions)),
        CubeDim::new_1d(UNITS as u32),
        WIDTH,
        PAIR,
        qkv.arg(),
        memory.arg(),
        y.arg(),
        dy.arg(),
        state.arg(),
        dqkv.arg(),
        deltas.arg(),
        shape.sizes(shape.positions, ROWS, &qkv, &memory, WIDTH),
        pitches(),
        Tile { dim: shape.dim, rows: KEYS },
        values.elem,
    );
    let parts = shape.empty_parts(&qkv, PAIR);
    let rows = shape.memory + shape.positions;
    flash_keys_kernel::launch(
        &client,
        cube_count(&client, cubes(shape, rows)),
        CubeDim::new_1d(UNITS as u32),
        WIDTH,
        PAIR,
        qkv.arg(),
        memory.arg(),
        dy.arg(),
        state.arg(),
        deltas.arg(),
        dqkv.arg(),
        parts.arg(),
        shape.sizes(rows, ROWS, &qkv, &memory, WIDTH),
        pitches(),
        Tile { dim: shape.dim, rows: QUERIES },
        values.elem,
    );
    (dqkv.tensor(), shape.summed(&parts, mem_kv))
}
