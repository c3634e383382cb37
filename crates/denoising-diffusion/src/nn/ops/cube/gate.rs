//! `gated_add`: `residual + x gate`; and `gated_silu`: `silu(x gate)`. Gradients, with `du = dy` or `du = dy silu'(x gate)`: for `x` it is `du gate`,
//! for the gate the sum of `du x` over an image's rows. (For the residual it is `dy` itself.)

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::columns::{Chunks, sum_columns};
use super::lanes::{Lanes, cube_count, sum_over_groups};
use super::math::{silu, silu_slope, value_or_zero};
use super::rows::{Rows, vector_width};

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    rows_per_image: u32,
    /// Vectors per row.
    vectors: u32,
    /// Number of cubes per image, and the largest number of rows per group.
    chunks: u32,
    rows_per_group: u32,
    cubes: u32,
    x: u32,
    gate: u32,
    /// Pitch of the residual, or of the result's gradient.
    other: u32,
    /// Pitch of the result, or of the gradient of `x`.
    out: u32,
}

/// One cube per chunk of an image's rows.
#[cube(launch)]
fn forward_kernel<F: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    gate: &[Vector<S, N>],
    residual: ComptimeOption<&[Vector<F, N>]>,
    y: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] with_silu: bool,
    #[comptime] lanes: Lanes,
    #[define(F, S)] _dtypes: [ElemType; 2],
) {
    let lane = UNIT_POS as usize % lanes.units;
    let image = CUBE_POS / sizes.chunks as usize;
    let first = CUBE_POS % sizes.chunks as usize * sizes.rows_per_group as usize * lanes.groups;
    let rows_per_image = sizes.rows_per_image as usize;
    if CUBE_POS < sizes.cubes as usize {
        for step in 0..sizes.rows_per_group as usize {
            let in_image = first + step * lanes.groups + UNIT_POS as usize / lanes.units;
            let row = image * rows_per_image + in_image;
            #[unroll(lanes.unrolled())]
            for k in 0..lanes.vectors {
                let i = lane + k * lanes.units;
                if in_image < rows_per_image && i < sizes.vectors as usize {
                    let value = Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]);
                    let factor = Vector::<f32, N>::cast_from(gate[image * sizes.gate as usize + i]);
                    let mut u = value * factor;
                    if with_silu {
                        u = silu::<N>(u);
                    }
                    u += value_or_zero::<F, N>(&residual, row * sizes.other as usize + i);
                    y[row * sizes.out as usize + i] = Vector::cast_from(u);
                }
            }
        }
    }
}

/// One cube per chunk of an image's rows. `sums [cubes, c]` are the contributions of the cube's rows to the gate's gradient.
#[cube(launch)]
fn backward_kernel<F: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    gate: &[Vector<S, N>],
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] with_silu: bool,
    #[comptime] lanes: Lanes,
    #[define(F, S)] _dtypes: [ElemType; 2],
) {
    let is_cube = CUBE_POS < sizes.cubes as usize;
    let lane = UNIT_POS as usize % lanes.units;
    let group = UNIT_POS as usize / lanes.units;
    let image = CUBE_POS / sizes.chunks as usize;
    let first = CUBE_POS % sizes.chunks as usize * sizes.rows_per_group as usize * lanes.groups + group;
    let rows_per_image = sizes.rows_per_image as usize;
    let vectors = sizes.vectors as usize;
    let mut d_gate = Array::<Vector<f32, N>>::new(lanes.vectors);
    for step in 0..sizes.rows_per_group as usize {
        let in_image = first + step * lanes.groups;
        let row = image * rows_per_image + in_image;
        #[unroll(lanes.unrolled())]
        for k in 0..lanes.vectors {
            let i = lane + k * lanes.units;
            if is_cube && in_image < rows_per_image && i < vectors {
                let value = Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]);
                let factor = Vector::<f32, N>::cast_from(gate[image * sizes.gate as usize + i]);
                let mut du = Vector::<f32, N>::cast_from(dy[row * sizes.other as usize + i]);
                if with_silu {
                    du *= silu_slope::<N>(value * factor);
                }
                d_gate[k] += du * value;
                dx[row * sizes.out as usize + i] = Vector::cast_from(du * factor);
            }
        }
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        let sum = sum_over_groups::<N>(d_gate[k], &mut scratch, lanes);
        if is_cube && group == 0 && i < vectors {
            sums[CUBE_POS * vectors + i] = sum;
        }
    }
}

/// The parameters of a pass's launch.
struct Plan {
    width: usize,
    lanes: Lanes,
    chunks: Chunks,
}

impl Plan {
    fn new(x: &Rows, gate: &Rows, other: Option<&Rows>, out: &Rows) -> (Self, SizesLaunch) {
        let all: Vec<&Rows> = [x, gate, out].into_iter().chain(other).collect();
        let width = vector_width(&[x.len], &all);
        let lanes = Lanes::new(&x.client(), x.len / width);
        let chunks = Chunks::new(gate.count(), x.count() / gate.count(), lanes.groups);
        let sizes = SizesLaunch::new(
            chunks.rows as u32,
            (x.len / width) as u32,
            chunks.per_image as u32,
            chunks.rows_per_group as u32,
            chunks.cubes() as u32,
            x.pitch(width),
            gate.pitch(width),
            other.map_or(0, |other| other.pitch(width)),
            out.pitch(width),
        );
        (Self { width, lanes, chunks }, sizes)
    }
}

/// What follows the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gated {
    /// A residual is added, or nothing.
    Add,
    Silu,
}

/// `x` and `residual` `[b, h, w, c]`, `gate [b, c]`.
pub(super) fn forward(x: CubeTensor, gate: CubeTensor, residual: Option<CubeTensor>, gated: Gated) -> CubeTensor {
    let (x, gate, residual) = (Rows::of(x), Rows::of(gate), residual.map(Rows::of));
    let client = x.client();
    let y = Rows::empty(&x, x.shape(), x.dtype());
    let (plan, sizes) = Plan::new(&x, &gate, residual.as_ref(), &y);
    forward_kernel::launch(
        &client,
        cube_count(&client, plan.chunks.cubes()),
        plan.lanes.cube_dim(),
        plan.width,
        x.arg(),
        gate.arg(),
        residual.as_ref().map(Rows::arg).into(),
        y.arg(),
        sizes,
        gated == Gated::Silu,
        plan.lanes,
        [x.elem(), gate.elem()],
    );
    y.tensor()
}

/// The gradients of `x` and `gate`.
pub(super) fn backward(x: CubeTensor, gate: CubeTensor, dy: CubeTensor, gated: Gated) -> (CubeTensor, CubeTensor) {
    let (x, gate, dy) = (Rows::of(x), Rows::of(gate), Rows::of(dy));
    let client = x.client();
    let dx = Rows::empty(&x, x.shape(), x.dtype());
    let (plan, sizes) = Plan::new(&x, &gate, Some(&dy), &dx);
    let sums = plan.chunks.empty(&x, x.len);
    backward_kernel::launch(
        &client,
        cube_count(&client, plan.chunks.cubes()),
        plan.lanes.cube_dim(),
        plan.width,
        x.arg(),
        gate.arg(),
        dy.arg(),
        dx.arg(),
        sums.arg(),
        sizes,
        gated == Gated::Silu,
        plan.lanes,
        [x.elem(), gate.elem()],
    );
    (dx.tensor(), sum_columns(&sums, 0, gate.count(), &gate))
}
