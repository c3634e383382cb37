//! The backward pass: [`queries_kernel`], then [`keys_kernel`], and the sum over images of their contributions to the gradient of the memory.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::super::lanes::cube_count;
use super::super::super::rows::Rows;
use super::super::{Shape, Sizes};
use super::{Plan, Task, Tile, add_row, inner, load_row, share_keys, store_row, task};

/// The largest number of channels per head for which a unit sums the gradients of keys and values at once, with four rows in registers.
const CHANNELS_OF_BOTH: usize = 32;

/// Distances, in vectors.
#[derive(CubeLaunch, CubeType)]
struct Pitches {
    y: u32,
    dy: u32,
    dqkv: u32,
}

/// One query per unit: its gradient, and its `deltas [all heads, positions]`.
#[cube(launch)]
fn queries_kernel<F: Float, M: Float, N: Size>(
    qkv: &[Vector<F, N>],
    memory: &[Vector<M, N>],
    y: &[Vector<F, N>],
    dy: &[Vector<F, N>],
    state: &[f32],
    dqkv: &mut [Vector<F, N>],
    deltas: &mut [f32],
    sizes: &Sizes,
    pitches: &Pitches,
    #[comptime] tile: Tile,
    #[define(F, M)] _dtypes: [ElemType; 2],
) {
    let task = task(sizes, tile);
    let positions = sizes.positions as usize;
    let is_query = task.is_head && task.row < positions;
    let mut q = Array::<Vector<f32, N>>::new(tile.vectors);
    let mut d_result = Array::<Vector<f32, N>>::new(tile.vectors);
    let mut dq = Array::<Vector<f32, N>>::new(tile.vectors);
    let mut most = 0.0f32;
    let mut inverse = 0.0f32;
    let mut delta = 0.0f32;
    if is_query {
        let row = task.image + task.row;
        load_row::<F, N>(qkv, row * sizes.qkv as usize + task.column, sizes.factor, &mut q, tile);
        load_row::<F, N>(dy, row * pitches.dy as usize + task.column, 1.0f32, &mut d_result, tile);
        let at = 2 * task.head * positions + task.row;
        most = state[at];
        inverse = state[at + positions];
        let mut sum = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for v in 0..tile.vectors {
            let result = y[row * pitches.y as usize + task.column + v];
            sum += d_result[v] * Vector::cast_from(result);
        }
        delta = sum.vector_sum();
        deltas[task.head * positions + task.row] = delta;
    }
    let mut keys = Shared::new_slice(comptime!(tile.block()));
    let mut values = Shared::new_slice(comptime!(tile.block()));
    let all = sizes.memory as usize + positions;
    let mut first = 0usize;
    while first < all {
        // All units are done with the block before this one.
        sync_cube();
        share_keys::<F, M, N>(qkv, memory, 0usize, first, &task, sizes, &mut keys, tile);
        share_keys::<F, M, N>(qkv, memory, 1usize, first, &task, sizes, &mut values, tile);
        sync_cube();
        for j in 0..min(all - first, tile.rows) {
            let at = j * tile.vectors;
            let weight = (inner::<N>(&q, &keys, at, tile) - most).exp() * inverse;
            let d_score = weight * (inner::<N>(&d_result, &values, at, tile) - delta);
            add_row::<N>(&mut dq, d_score, &keys, at, tile);
        }
        first += tile.rows;
    }
    if is_query {
        let at = (task.image + task.row) * pitches.dqkv as usize + task.column;
        store_row::<F, N>(&dq, sizes.factor, dqkv, at, tile);
    }
}

/// Loads the head's queries (times `factor`), or its rows of another tensor, from `first` on into shared memory, with all units.
#[cube]
fn share_queries<F: Float, N: Size>(
    from: &[Vector<F, N>],
    pitch: u32,
    factor: f32,
    first: usize,
    task: &Task,
    sizes: &Sizes,
    shared: &mut [Vector<f32, N>],
    #[comptime] tile: Tile,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(tile.block()) {
        let (row, v) = (first + i / tile.vectors, i % tile.vectors);
        if task.is_head && row < sizes.positions as usize {
            let at = (task.image + row) * pitch as usize + task.column;
            shared[i] = Vector::cast_from(from[at + v]) * Vector::new(factor);
        }
        i += tile.units;
    }
}

/// Stores the gradient of a unit's key (`which` 0) or value (1): in `dqkv`, or in its image's contribution to the gradient of the memory,
/// `parts [b, 2 heads m d]`.
#[cube]
fn store_gradient<F: Float, N: Size>(
    sums: &Array<Vector<f32, N>>,
    which: usize,
    dqkv: &mut [Vector<F, N>],
    parts: &mut [Vector<f32, N>],
    task: &Task,
    sizes: &Sizes,
    dqkv_pitch: u32,
    #[comptime] tile: Tile,
) {
    let heads = sizes.heads as usize;
    let of_memory = sizes.memory as usize;
    if task.is_head && task.row < of_memory {
        let image = task.head / heads;
        let at = (((image * 2 + which) * heads + task.head % heads) * of_memory + task.row) * tile.vectors;
        store_row::<f32, N>(sums, 1.0f32, parts, at, tile);
    } else if task.is_head && task.row < of_memory + sizes.positions as usize {
        let row = task.image + task.row - of_memory;
        let at = row * dqkv_pitch as usize + task.column + (1 + which) * task.parts;
        store_row::<F, N>(sums, 1.0f32, dqkv, at, tile);
    }
}

/// One key and its value per unit: the gradient of one of them or of both.
#[cube(launch)]
fn keys_kernel<F: Float, M: Float, N: Size>(
    qkv: &[Vector<F, N>],
    memory: &[Vector<M, N>],
    dy: &[Vector<F, N>],
    state: &[f32],
    deltas: &[f32],
    dqkv: &mut [Vector<F, N>],
    parts: &mut [Vector<f32, N>],
    sizes: &Sizes,
    pitches: &Pitches,
    #[comptime] of_keys: bool,
    #[comptime] of_values: bool,
    #[comptime] tile: Tile,
    #[define(F, M)] _dtypes: [ElemType; 2],
) {
    let task = task(sizes, tile);
    let heads = sizes.heads as usize;
    let positions = sizes.positions as usize;
    let of_memory = sizes.memory as usize;
    let mut key = Array::<Vector<f32, N>>::new(tile.vectors);
    let mut value = Array::<Vector<f32, N>>::new(tile.vectors);
    let mut d_key = Array::<Vector<f32, N>>::new(tile.vectors);
    let mut d_value = Array::<Vector<f32, N>>::new(tile.vectors);
    if task.is_head && task.row < of_memory {
        let row = task.head % heads * of_memory + task.row;
        load_row::<M, N>(memory, row * sizes.memory_pitch as usize, 1.0f32, &mut key, tile);
        let row = row + heads * of_memory;
        load_row::<M, N>(memory, row * sizes.memory_pitch as usize, 1.0f32, &mut value, tile);
    } else if task.is_head && task.row < of_memory + positions {
        let at = (task.image + task.row - of_memory) * sizes.qkv as usize + task.column + task.parts;
        load_row::<F, N>(qkv, at, 1.0f32, &mut key, tile);
        load_row::<F, N>(qkv, at + task.parts, 1.0f32, &mut value, tile);
    }
    let mut queries = Shared::new_slice(comptime!(tile.block()));
    let mut d_results = Shared::new_slice(comptime!(tile.block()));
    // The largest score, 1 / the sum, and delta of each query.
    let mut scalars = Shared::<[f32]>::new_slice(comptime!(3 * tile.rows));
    let mut first = 0usize;
    while first < positions {
        // All units are done with the block before this one.
        sync_cube();
        share_queries::<F, N>(qkv, sizes.qkv, sizes.factor, first, &task, sizes, &mut queries, tile);
        share_queries::<F, N>(dy, pitches.dy, 1.0f32, first, &task, sizes, &mut d_results, tile);
        let unit = UNIT_POS as usize;
        if task.is_head && unit < tile.rows && first + unit < positions {
            let at = 2 * task.head * positions + first + unit;
            scalars[unit] = state[at];
            scalars[tile.rows + unit] = state[at + positions];
            scalars[2 * tile.rows + unit] = deltas[task.head * positions + first + unit];
        }
        sync_cube();
        for i in 0..min(positions - first, tile.rows) {
            let at = i * tile.vectors;
            let score = inner::<N>(&key, &queries, at, tile);
            let weight = (score - scalars[i]).exp() * scalars[tile.rows + i];
            if comptime!(of_values) {
                add_row::<N>(&mut d_value, weight, &d_results, at, tile);
            }
            if comptime!(of_keys) {
                let d_weight = inner::<N>(&value, &d_results, at, tile);
                let d_score = weight * (d_weight - scalars[2 * tile.rows + i]);
                add_row::<N>(&mut d_key, d_score, &queries, at, tile);
            }
        }
        first += tile.rows;
    }
    if comptime!(of_keys) {
        store_gradient::<F, N>(&d_key, 0usize, dqkv, parts, &task, sizes, pitches.dqkv, tile);
    }
    if comptime!(of_values) {
        store_gradient::<F, N>(&d_value, 1usize, dqkv, parts, &task, sizes, pitches.dqkv, tile);
    }
}

/// See [`backward`](super::super::backward).
pub(in super::super) fn backward(
    shape: Shape,
    qkv: CubeTensor,
    mem_kv: CubeTensor,
    y: CubeTensor,
    state: CubeTensor,
    dy: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let plan = Plan::new(qkv.client.clone(), shape);
    let (client, tile, positions) = (&plan.client, plan.tile, shape.positions);
    let [qkv, y, dy] = [qkv, y, dy].map(|tensor| Rows::of_vectors(tensor, tile.width));
    let (memory, state) = (shape.memory_rows(mem_kv.clone(), tile.width, &qkv), Rows::of(state));
    let dqkv = Rows::empty(&qkv, qkv.shape(), qkv.dtype());
    let deltas = Rows::dense(&qkv, [shape.all_heads(), positions]);
    let pitches = || PitchesLaunch::new(y.pitch(tile.width), dy.pitch(tile.width), dqkv.pitch(tile.width));
    let elems = [qkv.elem(), memory.elem()];
    queries_kernel::launch(
        client,
        cube_count(client, plan.cubes(positions)),
        plan.cube_dim(),
        tile.width,
        qkv.arg(),
        memory.arg(),
        y.arg(),
        dy.arg(),
        state.arg(),
        dqkv.arg(),
        deltas.arg(),
        plan.sizes(positions, &qkv, &memory),
        pitches(),
        tile,
        elems,
    );
    let parts = shape.empty_parts(&qkv, tile.width);
    let rows = shape.memory + positions;
    let both = shape.dim <= CHANNELS_OF_BOTH;
    for (of_keys, of_values) in if both { &[(true, true)][..] } else { &[(true, false), (false, true)] } {
        keys_kernel::launch(
            client,
            cube_count(client, plan.cubes(rows)),
            plan.cube_dim(),
            tile.width,
            qkv.arg(),
            memory.arg(),
            dy.arg(),
            state.arg(),
            deltas.arg(),
            dqkv.arg(),
            parts.arg(),
            plan.sizes(rows, &qkv, &memory),
            pitches(),
            *of_keys,
            *of_values,
            tile,
            elems,
        );
    }
    (dqkv.tensor(), shape.summed(&parts, mem_kv))
}
