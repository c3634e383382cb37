//! `rms_norm`, `rms_norm_silu` and `rms_norm_scaled_silu`, of a convolution's output without its bias: one pass forward, one pass backward, and the
//! sums over what its cubes leave; arithmetic is f32, whatever the tensors' type.
//!
//! With `a = x + bias`, `n = max(|a|_2, 1e-12)` over the channels, `v = a sqrt(c) / n` and `u = v g (scale + 1) + shift`, the result is `u` or
//! `silu(u)`, plus a residual. Backward, with `du = dy silu'(u)` and `dv = du g (scale + 1)`: `dx = (dv - v sum(dv v) / c) sqrt(c) / n` over the
//! channels, `dbias = sum(dx)` and `dg = sum(du v (scale + 1))` over all rows, `dscale = sum(du v g)` and `dshift = sum(du)` over an image's rows.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::columns::{Chunks, sum_columns, sum_columns_of_kinds};
use super::lanes::{Lanes, cube_count, sum_over_group, sum_over_groups};
use super::math::{silu, silu_slope, value_or_zero};
use super::rows::{Rows, vector_width};

/// Lower bound of the norm that is divided by.
const LEAST_NORM: f32 = 1e-12;

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    rows: u32,
    rows_per_image: u32,
    /// Vectors per row.
    vectors: u32,
    x: u32,
    y: u32,
    scale_shift: u32,
    residual: u32,
    root_c: f32,
}

/// One group of units per row.
#[cube(launch)]
fn forward_kernel<F: Float, G: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    bias: ComptimeOption<&[Vector<F, N>]>,
    g: &[Vector<G, N>],
    scale_shift: ComptimeOption<&[Vector<S, N>]>,
    residual: ComptimeOption<&[Vector<F, N>]>,
    y: &mut [Vector<F, N>],
    norms: &mut [f32],
    sizes: &Sizes,
    #[comptime] with_silu: bool,
    #[comptime] lanes: Lanes,
    #[define(F, G, S)] _dtypes: [ElemType; 3],
) {
    let lane = UNIT_POS as usize % lanes.units;
    let row = CUBE_POS * lanes.groups + UNIT_POS as usize / lanes.units;
    let is_row = row < sizes.rows as usize;
    let vectors = sizes.vectors as usize;
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));

    let mut values = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut sum = 0.0f32;
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < vectors {
            let value = Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]) + value_or_zero::<F, N>(&bias, i);
            values[k] = value;
            sum += (value * value).vector_sum();
        }
    }
    let norm = sum_over_group(sum, &mut scratch, lanes).sqrt();
    // Not `max`, which would turn NaN into LEAST_NORM.
    let norm = select(norm < LEAST_NORM, LEAST_NORM, norm);
    if is_row && lane == 0 {
        norms[row] = norm;
    }
    let factor = Vector::<f32, N>::new(sizes.root_c / norm);
    let image = row / sizes.rows_per_image as usize * sizes.scale_shift as usize;
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        if is_row && i < vectors {
            let gain = Vector::<f32, N>::cast_from(g[i]);
            let scale = value_or_zero::<S, N>(&scale_shift, image + i) + Vector::new(1.0f32);
            let shift = value_or_zero::<S, N>(&scale_shift, image + vectors + i);
            let mut u = values[k] * factor * gain * scale + shift;
            if with_silu {
                u = silu::<N>(u);
            }
            u += value_or_zero::<F, N>(&residual, row * sizes.residual as usize + i);
            y[row * sizes.y as usize + i] = Vector::cast_from(u);
        }
    }
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct GradientSizes {
    rows_per_image: u32,
    /// Vectors per row.
    vectors: u32,
    /// Number of cubes per image, and the largest number of rows per group.
    chunks: u32,
    rows_per_group: u32,
    x: u32,
    dy: u32,
    dx: u32,
    scale_shift: u32,
    root_c: f32,
}

/// The kinds of sums that a [`backward_kernel`] leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kinds {
    bias: bool,
    scale_shift: bool,
}

impl Kinds {
    fn count(self) -> usize {
        1 + usize::from(self.bias) + 2 * usize::from(self.scale_shift)
    }
}

/// One cube per chunk of an image's rows. `sums [cubes, kinds * c]` are the contributions of the cube's rows to the gradients of `g` and, if present,
/// of the bias, of scale and of shift.
#[cube(launch)]
fn backward_kernel<F: Float, G: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    bias: ComptimeOption<&[Vector<F, N>]>,
    g: &[Vector<G, N>],
    scale_shift: ComptimeOption<&[Vector<S, N>]>,
    norms: &[f32],
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    sizes: &GradientSizes,
    cubes: u32,
    #[comptime] kinds: Kinds,
    #[comptime] with_silu: bool,
    #[comptime] lanes: Lanes,
    #[define(F, G, S)] _dtypes: [ElemType; 3],
) {
    let cube = CUBE_POS;
    let is_cube = cube < cubes as usize;
    let lane = UNIT_POS as usize % lanes.units;
    let group = UNIT_POS as usize / lanes.units;
    let vectors = sizes.vectors as usize;
    let rows_per_image = sizes.rows_per_image as usize;
    let image = cube / sizes.chunks as usize;
    let first = cube % sizes.chunks as usize * sizes.rows_per_group as usize * lanes.groups + group;
    let scale_shift_row = image * sizes.scale_shift as usize;
    let root = Vector::<f32, N>::new(sizes.root_c);
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));

    let mut d_bias = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut d_gain = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut d_scale = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut d_shift = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut units = Array::<Vector<f32, N>>::new(lanes.vectors);
    let mut slopes = Array::<Vector<f32, N>>::new(lanes.vectors);
    for step in 0..sizes.rows_per_group as usize {
        let in_image = first + step * lanes.groups;
        let is_row = is_cube && in_image < rows_per_image;
        let row = image * rows_per_image + in_image;
        let mut norm = 1.0f32;
        if is_row {
            norm = norms[row];
        }
        let inverse = Vector::<f32, N>::new(1.0f32 / norm);
        let mut sum = 0.0f32;
        #[unroll(lanes.unrolled())]
        for k in 0..lanes.vectors {
            let i = lane + k * lanes.units;
            if is_row && i < vectors {
                let biased =
                    Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]) + value_or_zero::<F, N>(&bias, i);
                let unit = biased * inverse;
                let gain = Vector::<f32, N>::cast_from(g[i]) * root;
                let scale = value_or_zero::<S, N>(&scale_shift, scale_shift_row + i) + Vector::new(1.0f32);
                let mut du = Vector::<f32, N>::cast_from(dy[row * sizes.dy as usize + i]);
                if with_silu {
                    let shift = value_or_zero::<S, N>(&scale_shift, scale_shift_row + vectors + i);
                    du *= silu_slope::<N>(unit * gain * scale + shift);
                }
                let slope = du * gain * scale;
                d_gain[k] += du * unit * scale * root;
                d_scale[k] += du * unit * gain;
                d_shift[k] += du;
                units[k] = unit;
                slopes[k] = slope;
                sum += (slope * unit).vector_sum();
            }
        }
        // A norm at its lower bound does not depend on x.
        let along = select(norm > LEAST_NORM, sum_over_group(sum, &mut scratch, lanes), 0.0f32);
        let along = Vector::<f32, N>::new(along);
        #[unroll(lanes.unrolled())]
        for k in 0..lanes.vectors {
            let i = lane + k * lanes.units;
            if is_row && i < vectors {
                let gradient = (slopes[k] - units[k] * along) * inverse;
                d_bias[k] += gradient;
                dx[row * sizes.dx as usize + i] = Vector::cast_from(gradient);
            }
        }
    }

    let mut vector_scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        let writes = is_cube && group == 0 && i < vectors;
        let at = cube * comptime!(kinds.count()) * vectors + i;
        let gain = sum_over_groups::<N>(d_gain[k], &mut vector_scratch, lanes);
        if writes {
            sums[at] = gain;
        }
        if comptime!(kinds.bias) {
            let bias = sum_over_groups::<N>(d_bias[k], &mut vector_scratch, lanes);
            if writes {
                sums[at + vectors] = bias;
            }
        }
        if comptime!(kinds.scale_shift) {
            let scale = sum_over_groups::<N>(d_scale[k], &mut vector_scratch, lanes);
            let shift = sum_over_groups::<N>(d_shift[k], &mut vector_scratch, lanes);
            if writes {
                sums[at + comptime!(kinds.count() - 2) * vectors] = scale;
                sums[at + comptime!(kinds.count() - 1) * vectors] = shift;
            }
        }
    }
}

/// What follows the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Nothing,
    Silu,
}

/// `x [b, h, w, c]`, `bias [c]` of the type of `x`, `g [c]`, `scale_shift [b, 2 c]`, `residual` like `x` to the result, like `x`, and the norm of
/// each row.
pub(super) fn forward(
    x: CubeTensor,
    bias: Option<CubeTensor>,
    g: CubeTensor,
    scale_shift: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    then: Then,
) -> (CubeTensor, CubeTensor) {
    let (x, g) = (Rows::of(x), Rows::of(g));
    let [bias, scale_shift, residual] = [bias, scale_shift, residual].map(|tensor| tensor.map(Rows::of));
    let images = scale_shift.as_ref().map_or(1, Rows::count);
    let (client, rows) = (x.client(), x.count());
    let y = Rows::empty(&x, x.shape(), x.dtype());
    let norms = Rows::empty(&x, [rows].into(), DType::F32);
    let mut all = vec![&x, &g, &y];
    all.extend(bias.iter().chain(&scale_shift).chain(&residual));
    let width = vector_width(&[x.len], &all);
    let vectors = x.len / width;
    let lanes = Lanes::new(&client, vectors);
    let pitch = |rows: &Option<Rows>| rows.as_ref().map_or(0, |rows| rows.pitch(width));
    forward_kernel::launch(
        &client,
        cube_count(&client, rows.div_ceil(lanes.groups)),
        lanes.cube_dim(),
        width,
        x.arg(),
        bias.as_ref().map(Rows::arg).into(),
        g.arg(),
        scale_shift.as_ref().map(Rows::arg).into(),
        residual.as_ref().map(Rows::arg).into(),
        y.arg(),
        norms.arg(),
        SizesLaunch::new(
            rows as u32,
            (rows / images) as u32,
            vectors as u32,
            x.pitch(width),
            y.pitch(width),
            pitch(&scale_shift),
            pitch(&residual),
            (x.len as f32).sqrt(),
        ),
        then == Then::Silu,
        lanes,
        [x.elem(), g.elem(), scale_shift.as_ref().map_or(g.elem(), Rows::elem)],
    );
    (y.tensor(), norms.tensor())
}

/// The gradients of `x` and `g` for a [`forward`] pass that gave `norms`.
pub(super) fn backward(
    x: CubeTensor,
    g: CubeTensor,
    norms: CubeTensor,
    dy: CubeTensor,
    then: Then,
) -> (CubeTensor, CubeTensor) {
    let (x, g) = (Rows::of(x), Rows::of(g));
    let (dx, sums) = launch_backward(&x, None, &g, None, norms, dy, then);
    (dx, sum_columns(&sums, 0, 1, &g))
}

/// The gradients of `x`, `bias` and `g` for a [`forward`] pass that gave `norms`.
pub(super) fn biased_backward(
    x: CubeTensor,
    bias: CubeTensor,
    g: CubeTensor,
    norms: CubeTensor,
    dy: CubeTensor,
    then: Then,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (x, bias, g) = (Rows::of(x), Rows::of(bias), Rows::of(g));
    let (dx, sums) = launch_backward(&x, Some(&bias), &g, None, norms, dy, then);
    let (dg, d_bias, _) = sum_columns_of_kinds(&sums, &g, &bias, None);
    (dx, d_bias, dg)
}

/// The gradients of `x`, `bias`, `g` and `scale_shift` for a [`forward`] pass with SiLU that gave `norms`.
pub(super) fn scaled_backward(
    x: CubeTensor,
    bias: CubeTensor,
    g: CubeTensor,
    scale_shift: CubeTensor,
    norms: CubeTensor,
    dy: CubeTensor,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let (x, bias, g, scale_shift) = (Rows::of(x), Rows::of(bias), Rows::of(g), Rows::of(scale_shift));
    let (dx, sums) = launch_backward(&x, Some(&bias), &g, Some(&scale_shift), norms, dy, Then::Silu);
    let (dg, d_bias, d_scale_shift) = sum_columns_of_kinds(&sums, &g, &bias, Some(&scale_shift));
    (dx, d_bias, dg, d_scale_shift)
}

/// The gradient of `x`, and for each cube its contributions to the gradients of `g` and, after it, of `bias` and `scale_shift` if they are given:
/// `[cubes, c]` to `[cubes, 4 c]`.
fn launch_backward(
    x: &Rows,
    bias: Option<&Rows>,
    g: &Rows,
    scale_shift: Option<&Rows>,
    norms: CubeTensor,
    dy: CubeTensor,
    then: Then,
) -> (CubeTensor, Rows) {
    let (norms, dy) = (Rows::of(norms), Rows::of(dy));
    let images = scale_shift.map_or(1, Rows::count);
    let (client, channels) = (x.client(), x.len);
    let dx = Rows::empty(x, x.shape(), x.dtype());
    let mut all = vec![x, g, &dy, &dx];
    all.extend(bias.into_iter().chain(scale_shift));
    let width = vector_width(&[channels], &all);
    let vectors = channels / width;
    let lanes = Lanes::new(&client, vectors);
    let chunks = Chunks::new(images, x.count() / images, lanes.groups);
    let kinds = Kinds { bias: bias.is_some(), scale_shift: scale_shift.is_some() };
    let sums = chunks.empty(x, kinds.count() * channels);
    backward_kernel::launch(
        &client,
        cube_count(&client, chunks.cubes()),
        lanes.cube_dim(),
        width,
        x.arg(),
        bias.map(Rows::arg).into(),
        g.arg(),
        scale_shift.map(Rows::arg).into(),
        norms.arg(),
        dy.arg(),
        dx.arg(),
        sums.arg(),
        GradientSizesLaunch::new(
            chunks.rows as u32,
            vectors as u32,
            chunks.per_image as u32,
            chunks.rows_per_group as u32,
            x.pitch(width),
            dy.pitch(width),
            dx.pitch(width),
            scale_shift.map_or(0, |rows| rows.pitch(width)),
            (channels as f32).sqrt(),
        ),
        chunks.cubes() as u32,
        kinds,
        then == Then::Silu,
        lanes,
        [x.elem(), g.elem(), scale_shift.map_or(g.elem(), Rows::elem)],
    );
    (dx.tensor(), sums)
}
