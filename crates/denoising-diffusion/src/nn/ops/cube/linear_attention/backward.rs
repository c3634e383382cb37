//! The backward pass: [`contexts_kernel`] leaves a gradient of the context per cube, from which [`merge_kernel`] makes one per head; from these,
//! [`queries_kernel`], [`keys_kernel`] and [`memory_kernel`] make the gradients of the inputs.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

use super::super::columns::sum_columns;
use super::super::lanes::{Lanes, cube_count, sum_over_group};
use super::super::rows::Rows;
use super::tile::{
    ROWS, Tile, UNITS, add_products, has_column, load_rows, rows_times, share_rows, softmax_rows, write_products,
    write_rows,
};
use super::{Plan, Sizes, Task, state_rows, task};

/// Number of rows in which the gradient of a head's context is kept: the gradient, its transpose, the sums of context times gradient.
fn gradient_rows(dim: usize) -> usize {
    2 * dim + 1
}

/// Some of a head's queries per cube: `parts [cubes, d, d]` are their contributions to the gradient of its context.
#[cube(launch)]
fn contexts_kernel<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    dy: &[Vector<F, N>],
    parts: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let task = task(sizes, tile);
    let mut rows = Array::<Vector<f32, N>>::new(ROWS);
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(tile.sums()));
    let mut scratch = Shared::new_slice(UNITS);
    let mut queries = Shared::new_slice(comptime!(tile.block()));
    let mut gradients = Shared::new_slice(comptime!(tile.block()));
    for block in 0..sizes.blocks as usize {
        let first = task.first + block * comptime!(tile.rows());
        load_rows(qkv, task.qkv, sizes.qkv as usize, first, task.end, &mut rows, tile);
        softmax_rows(&mut rows, sizes.factor, &mut scratch, tile);
        // All units are done with the block before this one.
        sync_cube();
        share_rows(&rows, &mut queries, tile);
        load_rows(dy, task.y, sizes.y as usize, first, task.end, &mut rows, tile);
        share_rows(&rows, &mut gradients, tile);
        sync_cube();
        add_products(&queries, &gradients, &mut sums, tile);
    }
    let mut scratch = Shared::new_slice(UNITS);
    let at = CUBE_POS * comptime!(tile.matrix());
    write_products(&sums, parts, at, CUBE_POS < sizes.cubes as usize, &mut scratch, tile);
}

/// One group per row of `gradient` (see [`gradient_rows`]), made from the parts that a head's queries left.
#[cube(launch)]
fn merge_kernel(
    parts: &[f32],
    state: &[f32],
    gradient: &mut [f32],
    all_heads: u32,
    parts_per_head: u32,
    dim: u32,
    #[comptime] lanes: Lanes,
) {
    let dim = dim as usize;
    let cubes_per_head = dim.div_ceil(lanes.groups);
    let head = CUBE_POS / cubes_per_head;
    let column = UNIT_POS as usize % lanes.units;
    let row = CUBE_POS % cubes_per_head * lanes.groups + UNIT_POS as usize / lanes.units;
    let is_row = head < all_heads as usize && row < dim;
    let matrix = dim * dim;
    let first = head * parts_per_head as usize * matrix;
    let at = head * (2 * matrix + dim);
    let mut scratch = Shared::new_slice(UNITS);
    let mut product = 0.0f32;
    if is_row && column < dim {
        let mut sum = 0.0f32;
        for i in 0..parts_per_head as usize {
            sum += parts[first + i * matrix + row * dim + column];
        }
        gradient[at + row * dim + column] = sum;
        gradient[at + matrix + column * dim + row] = sum;
        product = sum * state[head * (2 * matrix + 2 * dim) + row * dim + column];
    }
    let product = sum_over_group(product, &mut scratch, lanes);
    if is_row && column == 0 {
        gradient[at + 2 * matrix + row] = product;
    }
}

/// Some of a head's queries per cube: their gradient.
#[cube(launch)]
fn queries_kernel<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    state: &[Vector<f32, N>],
    dy: &[Vector<F, N>],
    dqkv: &mut [Vector<F, N>],
    sizes: &Sizes,
    dqkv_pitch: u32,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let task = task(sizes, tile);
    let transposed = task.head * comptime!(state_rows(tile.dim()) * tile.vectors) + comptime!(tile.matrix());
    let dq = dq_at(&task, sizes, dqkv_pitch as usize);
    let mut rows = Array::<Vector<f32, N>>::new(ROWS);
    let mut weights = Array::<Vector<f32, N>>::new(ROWS);
    let mut scratch = Shared::new_slice(UNITS);
    let mut gradients = Shared::new_slice(comptime!(tile.block()));
    for block in 0..sizes.blocks as usize {
        let first = task.first + block * comptime!(tile.rows());
        load_rows(dy, task.y, sizes.y as usize, first, task.end, &mut rows, tile);
        // All units are done with the block before this one.
        sync_cube();
        share_rows(&rows, &mut gradients, tile);
        sync_cube();
        if first < task.end {
            rows_times(&gradients, state, transposed, &mut rows, tile);
        }
        load_rows(qkv, task.qkv, sizes.qkv as usize, first, task.end, &mut weights, tile);
        softmax_rows(&mut weights, sizes.factor, &mut scratch, tile);
        #[unroll]
        for k in 0..ROWS {
            let along = sum_over_group((weights[k] * rows[k]).vector_sum(), &mut scratch, tile.lanes);
            rows[k] = weights[k] * (rows[k] - Vector::new(along / sizes.factor));
        }
        write_rows(&rows, dqkv, dq, dqkv_pitch as usize, first, task.end, tile);
    }
}

/// Where the gradients of a head's queries begin.
#[cube]
fn dq_at(task: &Task, sizes: &Sizes, pitch: usize) -> usize {
    let positions = sizes.positions as usize;
    let image = task.head / sizes.heads as usize * positions;
    task.qkv - image * sizes.qkv as usize + image * pitch
}

/// Some of a head's keys and values per cube: their gradients.
#[cube(launch)]
fn keys_kernel<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    state: &[Vector<f32, N>],
    gradient: &[Vector<f32, N>],
    dqkv: &mut [Vector<F, N>],
    sizes: &Sizes,
    dqkv_pitch: u32,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let task = task(sizes, tile);
    let (pitch, dqkv_pitch) = (sizes.qkv as usize, dqkv_pitch as usize);
    let matrix = comptime!(tile.matrix());
    let lane = UNIT_POS as usize % tile.lanes.units;
    let group = UNIT_POS as usize / tile.lanes.units;
    let of_keys = task.head * comptime!(state_rows(tile.dim()) * tile.vectors) + 2 * matrix + lane;
    let context = task.head * comptime!(gradient_rows(tile.dim()) * tile.vectors);
    let dk = dq_at(&task, sizes, dqkv_pitch) + task.parts;
    let mut most = Vector::<f32, N>::new(0.0f32);
    let mut factor = Vector::<f32, N>::new(0.0f32);
    let mut along = Vector::<f32, N>::new(0.0f32);
    if task.end > 0 && has_column(tile) {
        most = state[of_keys];
        factor = state[of_keys + tile.vectors];
        along = gradient[context + 2 * matrix + lane];
    }
    let mut rows = Array::<Vector<f32, N>>::new(ROWS);
    let mut weights = Array::<Vector<f32, N>>::new(ROWS);
    let mut keys = Shared::new_slice(comptime!(tile.block()));
    let mut values = Shared::new_slice(comptime!(tile.block()));
    for block in 0..sizes.blocks as usize {
        let first = task.first + block * comptime!(tile.rows());
        load_rows(qkv, task.qkv + 2 * task.parts, pitch, first, task.end, &mut rows, tile);
        // All units are done with the block before this one.
        sync_cube();
        share_rows(&rows, &mut values, tile);
        load_rows(qkv, task.qkv + task.parts, pitch, first, task.end, &mut weights, tile);
        #[unroll]
        for k in 0..ROWS {
            if first + group + k * tile.lanes.groups < task.end {
                weights[k] = (weights[k] - most).exp() * factor;
            }
        }
        share_rows(&weights, &mut keys, tile);
        sync_cube();
        if first < task.end {
            rows_times(&values, gradient, context + matrix, &mut rows, tile);
            #[unroll]
            for k in 0..ROWS {
                rows[k] = weights[k] * (rows[k] - along);
            }
            write_rows(&rows, dqkv, dk, dqkv_pitch, first, task.end, tile);
            rows_times(&keys, gradient, context, &mut rows, tile);
            write_rows(&rows, dqkv, dk + task.parts, dqkv_pitch, first, task.end, tile);
        }
    }
}

/// Counts of [`memory_kernel`].
#[derive(CubeLaunch, CubeType)]
struct MemorySizes {
    /// Over all images.
    all_heads: u32,
    /// Per image.
    heads: u32,
    dim: u32,
    /// Rows of the memory, and the distance between its channels.
    rows: u32,
    pitch: u32,
}

/// One cube per head: `parts [b, 2 heads d m]` are the images' contributions to the gradient of the memory.
#[cube(launch)]
fn memory_kernel<M: Float>(
    memory: &[M],
    state: &[f32],
    gradient: &[f32],
    parts: &mut [f32],
    sizes: &MemorySizes,
    #[define(M)] _dtype: ElemType,
) {
    let (heads, dim, rows) = (sizes.heads as usize, sizes.dim as usize, sizes.rows as usize);
    let pitch = sizes.pitch as usize;
    let matrix = dim * dim;
    let head = CUBE_POS % heads;
    let image = CUBE_POS / heads;
    let of_keys = CUBE_POS * (2 * matrix + 2 * dim) + 2 * matrix;
    let context = CUBE_POS * (2 * matrix + dim);
    let keys = head * dim * pitch;
    let values = (heads + head) * dim * pitch;
    if CUBE_POS < sizes.all_heads as usize {
        let mut i = UNIT_POS as usize;
        while i < dim * rows {
            let (channel, row) = (i / rows, i % rows);
            let most = state[of_keys + channel];
            let factor = state[of_keys + dim + channel];
            let mut dk = 0.0f32;
            let mut dv = 0.0f32;
            for other in 0..dim {
                let value = f32::cast_from(memory[values + other * pitch + row]);
                dk += value * gradient[context + channel * dim + other];
                let key = f32::cast_from(memory[keys + other * pitch + row]);
                let weight = (key - state[of_keys + other]).exp() * state[of_keys + dim + other];
                dv += weight * gradient[context + other * dim + channel];
            }
            let key = f32::cast_from(memory[keys + channel * pitch + row]);
            let weight = (key - most).exp() * factor;
            let at = (image * 2 * heads + head) * dim * rows + i;
            parts[at] = weight * (dk - gradient[context + 2 * matrix + channel]);
            parts[at + heads * dim * rows] = dv;
            i += UNITS;
        }
    }
}

/// The gradients of `qkv` and `mem_kv` for a [`forward`](super::forward) pass that kept `state`.
pub(in super::super) fn backward(
    qkv: CubeTensor,
    mem_kv: CubeTensor,
    state: CubeTensor,
    dy: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let plan = Plan::new(&qkv, &mem_kv);
    let (qkv, dy) = (Rows::of_vectors(qkv, plan.tile.width), Rows::of_vectors(dy, plan.tile.width));
    let state = Rows::of(state);
    let gradient = context_gradient(&plan, &qkv, &state, &dy);
    let dqkv = Rows::empty(&qkv, qkv.shape(), qkv.dtype());
    let Plan { ref client, tile, .. } = plan;
    let count = || cube_count(client, plan.chunks.cubes());
    queries_kernel::launch(
        client,
        count(),
        tile.lanes.cube_dim(),
        tile.width,
        qkv.arg(),
        state.arg(),
        dy.arg(),
        dqkv.arg(),
        plan.sizes(&qkv, &dy),
        dqkv.pitch(tile.width),
        tile,
        qkv.elem(),
    );
    keys_kernel::launch(
        client,
        count(),
        tile.lanes.cube_dim(),
        tile.width,
        qkv.arg(),
        state.arg(),
        gradient.arg(),
        dqkv.arg(),
        plan.sizes(&qkv, &dy),
        dqkv.pitch(tile.width),
        tile,
        qkv.elem(),
    );
    let d_memory = if plan.memory == 0 { mem_kv } else { memory_gradient(&plan, mem_kv, &state, &gradient) };
    (dqkv.tensor(), d_memory)
}

/// The gradient of each head's context; see [`gradient_rows`].
fn context_gradient(plan: &Plan, qkv: &Rows, state: &Rows, dy: &Rows) -> Rows {
    let Plan { client, tile, dim, .. } = plan;
    let parts = plan.chunks.empty(qkv, dim * dim);
    contexts_kernel::launch(
        client,
        cube_count(client, plan.chunks.cubes()),
        tile.lanes.cube_dim(),
        tile.width,
        qkv.arg(),
        dy.arg(),
        parts.arg(),
        plan.sizes(qkv, dy),
        *tile,
        qkv.elem(),
    );
    let gradient = plan.per_head(qkv, gradient_rows(*dim) * dim);
    let lanes = Lanes::one_each(client, *dim, UNITS);
    merge_kernel::launch(
        client,
        cube_count(client, plan.all_heads() * dim.div_ceil(lanes.groups)),
        lanes.cube_dim(),
        parts.arg(),
        state.arg(),
        gradient.arg(),
        plan.all_heads() as u32,
        plan.chunks.per_image as u32,
        *dim as u32,
        lanes,
    );
    gradient
}

/// The gradient of the memory, in its form.
fn memory_gradient(plan: &Plan, mem_kv: CubeTensor, state: &Rows, gradient: &Rows) -> CubeTensor {
    let client = &plan.client;
    let shape = mem_kv.meta.shape().clone();
    let values = shape.num_elements();
    let flat = Rows::of(reshape(mem_kv.clone(), [values].into()));
    let memory = Rows::of(mem_kv);
    let parts = Rows::dense(state, [plan.images, values]);
    memory_kernel::launch(
        client,
        cube_count(client, plan.all_heads()),
        plan.tile.lanes.cube_dim(),
        memory.arg(),
        state.arg(),
        gradient.arg(),
        parts.arg(),
        MemorySizesLaunch::new(
            plan.all_heads() as u32,
            plan.heads as u32,
            plan.dim as u32,
            plan.memory as u32,
            memory.pitch(1),
        ),
        memory.elem(),
    );
    reshape(sum_columns(&parts, 0, 1, &flat), shape)
}
