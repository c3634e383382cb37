//! The forward pass: a kernel.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::super::lanes::cube_count;
use super::super::super::rows::Rows;
use super::super::{Shape, Sizes};
use super::{Plan, Tile, add_row, inner, load_row, share_keys, store_row, task};

/// One query per unit. `state [all heads, 2, positions]`: the largest of each query's scores, and 1 / the sum of e^(score - largest).
#[cube(launch)]
fn forward_kernel<F: Float, M: Float, N: Size>(
    qkv: &[Vector<F, N>],
    memory: &[Vector<M, N>],
    y: &mut [Vector<F, N>],
    state: &mut [f32],
    sizes: &Sizes,
    y_pitch: u32,
    #[comptime] tile: Tile,
    #[define(F, M)] _dtypes: [ElemType; 2],
) {
    let task = task(sizes, tile);
    let positions = sizes.positions as usize;
    let is_query = task.is_head && task.row < positions;
    let mut q = Array::<Vector<f32, N>>::new(tile.vectors);
    let mut sums = Array::<Vector<f32, N>>::new(tile.vectors);
    if is_query {
        let at = (task.image + task.row) * sizes.qkv as usize + task.column;
        load_row::<F, N>(qkv, at, sizes.factor, &mut q, tile);
    }
    let mut most = f32::min_value();
    let mut sum = 0.0f32;
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
            let score = inner::<N>(&q, &keys, at, tile);
            if score > most {
                let shrink = (most - score).exp();
                sum *= shrink;
                #[unroll]
                for v in 0..tile.vectors {
                    sums[v] *= Vector::new(shrink);
                }
                most = score;
            }
            let weight = (score - most).exp();
            sum += weight;
            add_row::<N>(&mut sums, weight, &values, at, tile);
        }
        first += tile.rows;
    }
    if is_query {
        let inverse = 1.0f32 / sum;
        let at = (task.image + task.row) * y_pitch as usize + task.column;
        store_row::<F, N>(&sums, inverse, y, at, tile);
        let at = 2 * task.head * positions + task.row;
        state[at] = most;
        state[at + positions] = inverse;
    }
}

/// See [`forward`](super::super::forward).
pub(in super::super) fn forward(shape: Shape, qkv: CubeTensor, mem_kv: CubeTensor) -> (CubeTensor, CubeTensor) {
    let plan = Plan::new(qkv.client.clone(), shape);
    let (client, tile, positions) = (&plan.client, plan.tile, shape.positions);
    let mut dims = qkv.meta.shape().clone();
    dims[3] = shape.heads * shape.dim;
    let qkv = Rows::of_vectors(qkv, tile.width);
    let memory = shape.memory_rows(mem_kv, tile.width, &qkv);
    let y = Rows::empty(&qkv, dims, qkv.dtype());
    let state = Rows::dense(&qkv, [shape.all_heads(), 2 * positions]);
    forward_kernel::launch(
        client,
        cube_count(client, plan.cubes(positions)),
        plan.cube_dim(),
        tile.width,
        qkv.arg(),
        memory.arg(),
        y.arg(),
        state.arg(),
        plan.sizes(positions, &qkv, &memory),
        y.pitch(tile.width),
        tile,
        [qkv.elem(), memory.elem()],
    );
    (y.tensor(), state.tensor())
}
