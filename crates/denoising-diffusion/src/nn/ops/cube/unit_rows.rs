//! `unit_rows`: `y = x factor / n` with `n = max(|x|_2, floor)` over the last dimension, and the gradient: with `unit = x / n`, it is
//! `(dy - unit sum(dy unit)) factor / n`, or `dy factor / n` where the norm is below the floor.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::lanes::{Lanes, cube_count, sum_over_group};
use super::rows::{Rows, vector_width};

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    rows: u32,
    /// Vectors per row.
    vectors: u32,
    x: u32,
    /// Pitch of the result's gradient.
    dy: u32,
    /// Pitch of the result, or of the gradient of `x`.
    out: u32,
    factor: f32,
    floor: f32,
}

/// One group of units per row.
#[cube(launch)]
fn forward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    norms: &mut [f32],
    sizes: &Sizes,
    #[comptime] lanes: Lanes,
    #[define(F)] _dtype: ElemType,
) {
    let lane = UNIT_POS as usize % lanes.units;
    let row = CUBE_POS * lanes.groups + UNIT_POS as usize / lanes.units;
    let is_row = row < sizes.rows as usize;
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));

    let mut values = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut sum = 0.0f32;
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < sizes.vectors as usize {
            let value = Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]);
            values[k] = value;
            sum += (value * value).vector_sum();
        }
    }
    let norm = sum_over_group(sum, &mut scratch, lanes).sqrt();
    // Not `max`, which would turn NaN into the floor.
    let norm = select(norm < sizes.floor, sizes.floor, norm);
    if is_row && lane == 0 {
        norms[row] = norm;
    }
    let factor = Vector::<f32, N>::new(sizes.factor / norm);
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < sizes.vectors as usize {
            y[row * sizes.out as usize + i] = Vector::cast_from(values[k] * factor);
        }
    }
}

/// One group of units per row.
#[cube(launch)]
fn backward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    norms: &[f32],
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] lanes: Lanes,
    #[define(F)] _dtype: ElemType,
) {
    let lane = UNIT_POS as usize % lanes.units;
    let row = CUBE_POS * lanes.groups + UNIT_POS as usize / lanes.units;
    let is_row = row < sizes.rows as usize;
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));

    let mut norm = 1.0f32;
    if is_row {
        norm = norms[row];
    }
    let inverse = Vector::<f32, N>::new(1.0f32 / norm);
    let mut units = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut slopes = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut sum = 0.0f32;
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < sizes.vectors as usize {
            let unit = Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]) * inverse;
            let slope = Vector::<f32, N>::cast_from(dy[row * sizes.dy as usize + i]);
            units[k] = unit;
            slopes[k] = slope;
            sum += (slope * unit).vector_sum();
        }
    }
    // A norm at its lower bound does not depend on x. All units must take part in the sum.
    let along = sum_over_group(sum, &mut scratch, lanes);
    let along = Vector::<f32, N>::new(select(norm == sizes.floor, 0.0f32, along));
    let factor = Vector::<f32, N>::new(sizes.factor / norm);
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < sizes.vectors as usize {
            dx[row * sizes.out as usize + i] = Vector::cast_from((slopes[k] - units[k] * along) * factor);
        }
    }
}

/// `factor` and `floor` of [`forward`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Length {
    pub(super) factor: f32,
    pub(super) floor: f32,
}

impl Length {
    fn sizes(self, x: &Rows, dy: Option<&Rows>, out: &Rows, width: usize) -> SizesLaunch {
        SizesLaunch::new(
            x.count() as u32,
            (x.len / width) as u32,
            x.pitch(width),
            dy.map_or(0, |dy| dy.pitch(width)),
            out.pitch(width),
            self.factor,
            self.floor,
        )
    }
}

/// `x` of any rank to the result, like `x`, and the norm of each row.
pub(super) fn forward(x: CubeTensor, length: Length) -> (CubeTensor, CubeTensor) {
    let x = Rows::of(x);
    let (client, y) = (x.client(), Rows::empty(&x, x.shape(), x.dtype()));
    let norms = Rows::empty(&x, [x.count()].into(), DType::F32);
    let width = vector_width(&[x.len], &[&x, &y]);
    let lanes = Lanes::new(&client, x.len / width);
    forward_kernel::launch(
        &client,
        cube_count(&client, x.count().div_ceil(lanes.groups)),
        lanes.cube_dim(),
        width,
        x.arg(),
        y.arg(),
        norms.arg(),
        length.sizes(&x, None, &y, width),
        lanes,
        x.elem(),
    );
    (y.tensor(), norms.tensor())
}

/// The gradient of `x` for a [`forward`] pass that gave `norms`.
pub(super) fn backward(x: CubeTensor, norms: CubeTensor, dy: CubeTensor, length: Length) -> CubeTensor {
    let (x, norms, dy) = (Rows::of(x), Rows::of(norms), Rows::of(dy));
    let (client, dx) = (x.client(), Rows::empty(&x, x.shape(), x.dtype()));
    let width = vector_width(&[x.len], &[&x, &dy, &dx]);
    let lanes = Lanes::new(&client, x.len / width);
    backward_kernel::launch(
        &client,
        cube_count(&client, x.count().div_ceil(lanes.groups)),
        lanes.cube_dim(),
        width,
        x.arg(),
        norms.arg(),
        dy.arg(),
        dx.arg(),
        length.sizes(&x, Some(&dy), &dx, width),
        lanes,
        x.elem(),
    );
    dx.tensor()
}
