//! `layer_norm_scaled`: one pass forward, one pass backward, and the sums over what its cubes leave; arithmetic is f32, whatever the tensors' type.
//!
//! With `v = (x - mean) / sqrt(variance + 1e-6)` over the channels, the result is `v (scale + 1) + shift`. Backward, with `dv = dy (scale + 1)`:
//! `dx = (dv - mean(dv) - v mean(dv v)) / sqrt(variance + 1e-6)`, `dscale = sum(dy v)` and `dshift = sum(dy)` over an image's rows. Mean and variance
//! are computed again for that, because the row is read anyway.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::columns::{Chunks, sum_columns};
use super::lanes::{Lanes, cube_count, sum_over_group, sum_over_groups};
use super::rows::{Rows, vector_width};
use crate::nn::layer_norm;

const EPS: f32 = layer_norm::EPS as f32;

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
    /// Pitch of the forward pass's result, or of the gradient of `x`.
    out: u32,
    /// Pitch of the result's gradient.
    dy: u32,
    scale_shift: u32,
    inverse_c: f32,
}

/// Fills `values` with this unit's part of a row, minus the row's mean, and returns one over its standard deviation.
#[cube]
fn centre<F: Float, N: Size>(
    x: &[Vector<F, N>],
    start: usize,
    is_row: bool,
    sizes: &Sizes,
    values: &mut Array<Vector<f32, N>>,
    scratch: &mut [f32],
    #[comptime] lanes: Lanes,
) -> f32 {
    let lane = UNIT_POS as usize % lanes.units;
    let mut sum = 0.0f32;
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < sizes.vectors as usize {
            let value = Vector::<f32, N>::cast_from(x[start + i]);
            values[k] = value;
            sum += value.vector_sum();
        }
    }
    let mean = Vector::<f32, N>::new(sum_over_group(sum, scratch, lanes) * sizes.inverse_c);
    let mut squares = 0.0f32;
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < sizes.vectors as usize {
            let value = values[k] - mean;
            values[k] = value;
            squares += (value * value).vector_sum();
        }
    }
    1.0f32 / (sum_over_group(squares, scratch, lanes) * sizes.inverse_c + EPS).sqrt()
}

/// One group of units per row.
#[cube(launch)]
fn forward_kernel<F: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    scale_shift: &[Vector<S, N>],
    y: &mut [Vector<F, N>],
    rows: u32,
    sizes: &Sizes,
    #[comptime] lanes: Lanes,
    #[define(F, S)] _dtypes: [ElemType; 2],
) {
    let lane = UNIT_POS as usize % lanes.units;
    let row = CUBE_POS * lanes.groups + UNIT_POS as usize / lanes.units;
    let is_row = row < rows as usize;
    let vectors = sizes.vectors as usize;
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    let mut values = Array::<Vector<f32, N>>::new(lanes.vectors);
    let inverse = centre::<F, N>(x, row * sizes.x as usize, is_row, sizes, &mut values, &mut scratch, lanes);
    let image = row / sizes.rows_per_image as usize * sizes.scale_shift as usize;
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < vectors {
            let scale = Vector::<f32, N>::cast_from(scale_shift[image + i]) + Vector::new(1.0f32);
            let shift = Vector::<f32, N>::cast_from(scale_shift[image + vectors + i]);
            y[row * sizes.out as usize + i] = Vector::cast_from(values[k] * Vector::new(inverse) * scale + shift);
        }
    }
}

/// One cube per chunk of an image's rows. `sums [cubes, 2 c]` are the contributions of the cube's rows to the gradients of scale and shift.
#[cube(launch)]
fn backward_kernel<F: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    scale_shift: &[Vector<S, N>],
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] lanes: Lanes,
    #[define(F, S)] _dtypes: [ElemType; 2],
) {
    let cube = CUBE_POS;
    let is_cube = cube < sizes.cubes as usize;
    let lane = UNIT_POS as usize % lanes.units;
    let group = UNIT_POS as usize / lanes.units;
    let vectors = sizes.vectors as usize;
    let rows_per_image = sizes.rows_per_image as usize;
    let image = cube / sizes.chunks as usize;
    let first = cube % sizes.chunks as usize * sizes.rows_per_group as usize * lanes.groups + group;
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));

    let mut d_scale = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut d_shift = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut values = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut slopes = Array::<Vector<f32, N>>::new(lanes.vectors);
    for step in 0..sizes.rows_per_group as usize {
        let in_image = first + step * lanes.groups;
        let is_row = is_cube && in_image < rows_per_image;
        let row = image * rows_per_image + in_image;
        let inverse = centre::<F, N>(x, row * sizes.x as usize, is_row, sizes, &mut values, &mut scratch, lanes);
        let inverse = Vector::<f32, N>::new(inverse);
        let mut sum = 0.0f32;
        let mut sum_along = 0.0f32;
        #[unroll(lanes.unrolled())]
        for k in 0..lanes.vectors {
            let i = lane + k * lanes.units;
            if is_row && i < vectors {
                let value = values[k] * inverse;
                let du = Vector::<f32, N>::cast_from(dy[row * sizes.dy as usize + i]);
                let scale = Vector::<f32, N>::cast_from(scale_shift[image * sizes.scale_shift as usize + i]);
                let slope = du * (scale + Vector::new(1.0f32));
                d_scale[k] += du * value;
                d_shift[k] += du;
                values[k] = value;
                slopes[k] = slope;
                sum += slope.vector_sum();
                sum_along += (slope * value).vector_sum();
            }
        }
        let mean = Vector::<f32, N>::new(sum_over_group(sum, &mut scratch, lanes) * sizes.inverse_c);
        let along = Vector::<f32, N>::new(sum_over_group(sum_along, &mut scratch, lanes) * sizes.inverse_c);
        #[unroll(lanes.unrolled())]
        for k in 0..lanes.vectors {
            let i = lane + k * lanes.units;
            if is_row && i < vectors {
                let gradient = (slopes[k] - mean - values[k] * along) * inverse;
                dx[row * sizes.out as usize + i] = Vector::cast_from(gradient);
            }
        }
    }

    let mut vector_scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        let scale = sum_over_groups::<N>(d_scale[k], &mut vector_scratch, lanes);
        let shift = sum_over_groups::<N>(d_shift[k], &mut vector_scratch, lanes);
        if is_cube && group == 0 && i < vectors {
            sums[cube * 2 * vectors + i] = scale;
            sums[cube * 2 * vectors + vectors + i] = shift;
        }
    }
}

/// The parameters of both passes' launches.
struct Plan {
    width: usize,
    lanes: Lanes,
    chunks: Chunks,
}

impl Plan {
    fn new(x: &Rows, scale_shift: &Rows, others: &[&Rows]) -> Self {
        let images = scale_shift.count();
        let width = vector_width(&[x.len], &[&[x, scale_shift], others].concat());
        let lanes = Lanes::new(&x.client(), x.len / width);
        Self { width, lanes, chunks: Chunks::new(images, x.count() / images, lanes.groups) }
    }

    fn sizes(&self, x: &Rows, scale_shift: &Rows, out: &Rows, dy: Option<&Rows>) -> SizesLaunch {
        let pitch = |rows: &Rows| rows.pitch(self.width);
        SizesLaunch::new(
            self.chunks.rows as u32,
            (x.len / self.width) as u32,
            self.chunks.per_image as u32,
            self.chunks.rows_per_group as u32,
            self.chunks.cubes() as u32,
            pitch(x),
            pitch(out),
            dy.map_or(0, pitch),
            pitch(scale_shift),
            1.0 / x.len as f32,
        )
    }
}

/// `x [b, h, w, c]`, `scale_shift [b, 2 c]` to the result, like `x`.
pub(super) fn forward(x: CubeTensor, scale_shift: CubeTensor) -> CubeTensor {
    let (x, scale_shift) = (Rows::of(x), Rows::of(scale_shift));
    let (client, rows) = (x.client(), x.count());
    let y = Rows::empty(&x, x.shape(), x.dtype());
    let plan = Plan::new(&x, &scale_shift, &[&y]);
    forward_kernel::launch(
        &client,
        cube_count(&client, rows.div_ceil(plan.lanes.groups)),
        plan.lanes.cube_dim(),
        plan.width,
        x.arg(),
        scale_shift.arg(),
        y.arg(),
        rows as u32,
        plan.sizes(&x, &scale_shift, &y, None),
        plan.lanes,
        [x.elem(), scale_shift.elem()],
    );
    y.tensor()
}

/// The gradients of `x` and `scale_shift`.
pub(super) fn backward(x: CubeTensor, scale_shift: CubeTensor, dy: CubeTensor) -> (CubeTensor, CubeTensor) {
    let (x, scale_shift, dy) = (Rows::of(x), Rows::of(scale_shift), Rows::of(dy));
    let client = x.client();
    let dx = Rows::empty(&x, x.shape(), x.dtype());
    let plan = Plan::new(&x, &scale_shift, &[&dy, &dx]);
    let sums = plan.chunks.empty(&x, 2 * x.len);
    backward_kernel::launch(
        &client,
        cube_count(&client, plan.chunks.cubes()),
        plan.lanes.cube_dim(),
        plan.width,
        x.arg(),
        scale_shift.arg(),
        dy.arg(),
        dx.arg(),
        sums.arg(),
        plan.sizes(&x, &scale_shift, &dx, Some(&dy)),
        plan.lanes,
        [x.elem(), scale_shift.elem()],
    );
    (dx.tensor(), sum_columns(&sums, 0, scale_shift.count(), &scale_shift))
}
