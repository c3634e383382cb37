//! The forward pass: [`keys_kernel`] leaves a context per cube, [`merge_kernel`] makes one per head of them, and [`queries_kernel`] multiplies it by
//! queries.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::lanes::{Lanes, cube_count, max_over_group, sum_over_group};
use super::super::rows::Rows;
use super::tile::{
    ROWS, Tile, UNITS, add_products, has_column, load_rows, rows_times, share_rows, softmax_rows, write_products,
    write_rows,
};
use super::{Plan, Sizes, state_rows, task};

/// Some of a head's keys and values per cube: `parts [cubes, d + 2, d]` are its context before the division by its sums, its maxima and its sums.
#[cube(launch)]
fn keys_kernel<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    parts: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let task = task(sizes, tile);
    let pitch = sizes.qkv as usize;
    let blocks = sizes.blocks as usize;
    let lane = UNIT_POS as usize % tile.lanes.units;
    let group = UNIT_POS as usize / tile.lanes.units;
    let mut rows = Array::<Vector<f32, N>>::new(ROWS);
    let mut scratch = Shared::new_slice(UNITS);

    let mut most = Vector::<f32, N>::new(f32::min_value());
    for block in 0..blocks {
        let first = task.first + block * comptime!(tile.rows());
        load_rows(qkv, task.qkv + task.parts, pitch, first, task.end, &mut rows, tile);
        #[unroll]
        for k in 0..ROWS {
            if first + group + k * tile.lanes.groups < task.end {
                most = max(most, rows[k]);
            }
        }
    }
    scratch[UNIT_POS as usize] = most;
    sync_cube();
    for other in 0..tile.lanes.groups {
        most = max(most, scratch[other * tile.lanes.units + lane]);
    }

    let mut keys = Shared::new_slice(comptime!(tile.block()));
    let mut values = Shared::new_slice(comptime!(tile.block()));
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(tile.sums()));
    for block in 0..blocks {
        let first = task.first + block * comptime!(tile.rows());
        load_rows(qkv, task.qkv + task.parts, pitch, first, task.end, &mut rows, tile);
        #[unroll]
        for k in 0..ROWS {
            if first + group + k * tile.lanes.groups < task.end {
                rows[k] = (rows[k] - most).exp();
                sum += rows[k];
            }
        }
        // All units are done with the block before this one.
        sync_cube();
        share_rows(&rows, &mut keys, tile);
        load_rows(qkv, task.qkv + 2 * task.parts, pitch, first, task.end, &mut rows, tile);
        share_rows(&rows, &mut values, tile);
        sync_cube();
        add_products(&keys, &values, &mut sums, tile);
    }

    let at = CUBE_POS * comptime!((tile.dim() + 2) * tile.vectors);
    let is_cube = CUBE_POS < sizes.cubes as usize;
    write_products(&sums, parts, at, is_cube, &mut scratch, tile);
    sync_cube();
    scratch[UNIT_POS as usize] = sum;
    sync_cube();
    if is_cube && group == 0 && has_column(tile) {
        for other in 1..tile.lanes.groups {
            sum += scratch[other * tile.lanes.units + lane];
        }
        let at = at + comptime!(tile.matrix()) + lane;
        parts[at] = most;
        parts[at + tile.vectors] = sum;
    }
}

/// Counts of [`merge_kernel`].
#[derive(CubeLaunch, CubeType)]
struct MergeSizes {
    /// Over all images.
    all_heads: u32,
    /// Per image.
    heads: u32,
    parts: u32,
    dim: u32,
    /// Rows of the memory, and the distance between its channels.
    memory: u32,
    pitch: u32,
}

/// One group per row of a head's context: its row of the head's `state` (see [`state_rows`]), made from the parts that the head's keys left and from
/// its memory `[2, heads, d, m]`. With one image there are few heads and up to a thousand parts.
#[cube(launch)]
fn merge_kernel<M: Float>(
    parts: &[f32],
    memory: &[M],
    state: &mut [f32],
    sizes: &MergeSizes,
    #[comptime] lanes: Lanes,
    #[define(M)] _dtype: ElemType,
) {
    let dim = sizes.dim as usize;
    let cubes_per_head = dim.div_ceil(lanes.groups);
    let head = CUBE_POS / cubes_per_head;
    let column = UNIT_POS as usize % lanes.units;
    let row = CUBE_POS % cubes_per_head * lanes.groups + UNIT_POS as usize / lanes.units;
    let is_row = head < sizes.all_heads as usize && row < dim;
    let matrix = dim * dim;
    let part = matrix + 2 * dim;
    let first = head * sizes.parts as usize * part;
    let pitch = sizes.pitch as usize;
    let keys = head % sizes.heads as usize * dim * pitch;
    let values = keys + sizes.heads as usize * dim * pitch;
    let state_at = head * (2 * matrix + 2 * dim);
    let mut scratch = Shared::new_slice(UNITS);

    // Parts and memory are distributed to the row's units.
    let mut most = f32::min_value();
    if is_row {
        let mut i = column;
        while i < sizes.parts as usize {
            most = max(most, parts[first + i * part + matrix + row]);
            i += lanes.units;
        }
        let mut j = column;
        while j < sizes.memory as usize {
            most = max(most, f32::cast_from(memory[keys + row * pitch + j]));
            j += lanes.units;
        }
    }
    let most = max_over_group(most, &mut scratch, lanes);
    let mut sum = 0.0f32;
    if is_row {
        let mut i = column;
        while i < sizes.parts as usize {
            let at = first + i * part + matrix + row;
            sum += parts[at + dim] * (parts[at] - most).exp();
            i += lanes.units;
        }
        let mut j = column;
        while j < sizes.memory as usize {
            sum += (f32::cast_from(memory[keys + row * pitch + j]) - most).exp();
            j += lanes.units;
        }
    }
    let factor = 1.0f32 / sum_over_group(sum, &mut scratch, lanes);
    if is_row && column == 0 {
        state[state_at + 2 * matrix + row] = most;
        state[state_at + 2 * matrix + dim + row] = factor;
    }
    if is_row && column < dim {
        let mut sum = 0.0f32;
        for i in 0..sizes.parts as usize {
            let at = first + i * part;
            sum += parts[at + row * dim + column] * (parts[at + matrix + row] - most).exp();
        }
        for j in 0..sizes.memory as usize {
            let weight = (f32::cast_from(memory[keys + row * pitch + j]) - most).exp();
            sum += weight * f32::cast_from(memory[values + column * pitch + j]);
        }
        let value = sum * factor;
        state[state_at + row * dim + column] = value;
        state[state_at + matrix + column * dim + row] = value;
    }
}

/// Some of a head's queries per cube.
#[cube(launch)]
fn queries_kernel<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    state: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let task = task(sizes, tile);
    let context = task.head * comptime!(state_rows(tile.dim()) * tile.vectors);
    let mut rows = Array::<Vector<f32, N>>::new(ROWS);
    let mut scratch = Shared::new_slice(UNITS);
    let mut queries = Shared::new_slice(comptime!(tile.block()));
    for block in 0..sizes.blocks as usize {
        let first = task.first + block * comptime!(tile.rows());
        load_rows(qkv, task.qkv, sizes.qkv as usize, first, task.end, &mut rows, tile);
        softmax_rows(&mut rows, sizes.factor, &mut scratch, tile);
        // All units are done with the block before this one.
        sync_cube();
        share_rows(&rows, &mut queries, tile);
        sync_cube();
        if first < task.end {
            rows_times(&queries, state, context, &mut rows, tile);
            write_rows(&rows, y, task.y, sizes.y as usize, first, task.end, tile);
        }
    }
}

/// `qkv [b, h, w, 3 heads d]` and `mem_kv [2, heads, d, m]` to `[b, h, w, heads d]`, and to the state for the backward pass,
/// `[b heads, (2 d + 2) d]`.
pub(in super::super) fn forward(qkv: CubeTensor, mem_kv: CubeTensor) -> (CubeTensor, CubeTensor) {
    let plan = Plan::new(&qkv, &mem_kv);
    let Plan { ref client, tile, .. } = plan;
    let mut shape = qkv.meta.shape().clone();
    shape[3] = plan.heads * plan.dim;
    let qkv = Rows::of_vectors(qkv, tile.width);
    let y = Rows::empty(&qkv, shape, qkv.dtype());
    let parts = plan.chunks.empty(&qkv, (plan.dim + 2) * plan.dim);
    keys_kernel::launch(
        client,
        cube_count(client, plan.chunks.cubes()),
        tile.lanes.cube_dim(),
        tile.width,
        qkv.arg(),
        parts.arg(),
        plan.sizes(&qkv, &y),
        tile,
        qkv.elem(),
    );
    let memory = plan.memory_rows(mem_kv, &qkv);
    let state = plan.per_head(&qkv, state_rows(plan.dim) * plan.dim);
    let lanes = Lanes::one_each(client, plan.dim, UNITS);
    merge_kernel::launch(
        client,
        cube_count(client, plan.all_heads() * plan.dim.div_ceil(lanes.groups)),
        lanes.cube_dim(),
        parts.arg(),
        memory.arg(),
        state.arg(),
        MergeSizesLaunch::new(
            plan.all_heads() as u32,
            plan.heads as u32,
            plan.chunks.per_image as u32,
            plan.dim as u32,
            plan.memory as u32,
            memory.pitch(1),
        ),
        lanes,
        memory.elem(),
    );
    queries_kernel::launch(
        client,
        cube_count(client, plan.chunks.cubes()),
        tile.lanes.cube_dim(),
        tile.width,
        qkv.arg(),
        state.arg(),
        y.arg(),
        plan.sizes(&qkv, &y),
        tile,
        qkv.elem(),
    );
    (y.tensor(), state.tensor())
}
