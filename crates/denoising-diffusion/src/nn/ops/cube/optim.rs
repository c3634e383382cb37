//! Passes over parameters that live for the whole run: Adam, the moving average, the sum of a gradient's squares. What is written is written in
//! place wherever nobody else holds the tensor. All tensors are flat.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use denoising_diffusion_kernels::optim::AdamStep;

use super::lanes::{Lanes, cube_count, sum_over_group};
use super::rows::{Rows, vector_width};

/// [`AdamStep`] as the constants of the sweep, computed in f64 and rounded once.
#[derive(CubeLaunch, CubeType)]
struct Adam {
    grad_scale: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    rate: f32,
    inverse_root: f32,
    eps: f32,
}

fn constants(step: &AdamStep) -> AdamLaunch {
    let power = step.step as f64;
    let (c1, c2) = (1.0 - step.beta1.powf(power), 1.0 - step.beta2.powf(power));
    AdamLaunch::new(
        step.grad_scale as f32,
        step.beta1 as f32,
        (1.0 - step.beta1) as f32,
        step.beta2 as f32,
        (1.0 - step.beta2) as f32,
        (step.lr / c1) as f32,
        (1.0 / c2.sqrt()) as f32,
        step.eps as f32,
    )
}

#[cube(launch)]
fn adam_kernel<W: Float, G: Float, N: Size>(
    w: &mut [Vector<W, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    g: &[Vector<G, N>],
    step: &Adam,
    vectors: u32,
    #[define(W, G)] _dtypes: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < vectors as usize {
        let gradient = Vector::<f32, N>::cast_from(g[i]) * Vector::new(step.grad_scale);
        let first = m[i] * Vector::new(step.beta1) + gradient * Vector::new(step.rest1);
        let second = v[i] * Vector::new(step.beta2) + gradient * gradient * Vector::new(step.rest2);
        let root = second.sqrt() * Vector::new(step.inverse_root) + Vector::new(step.eps);
        m[i] = first;
        v[i] = second;
        w[i] = Vector::cast_from(Vector::<f32, N>::cast_from(w[i]) - first * Vector::new(step.rate) / root);
    }
}

/// See [`AdamStep`]: weights, first and second moments, gradient to the first three as they are after the step.
pub(super) fn adam(
    w: CubeTensor,
    m: CubeTensor,
    v: CubeTensor,
    g: CubeTensor,
    step: AdamStep,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let ([w, m, v], g) = ([w, m, v].map(owned), Rows::of(g));
    let client = w.client();
    let width = vector_width(&[w.len], &[&w, &m, &v, &g]);
    let (count, dim) = one_unit_each(&client, w.len / width);
    adam_kernel::launch(
        &client,
        count,
        dim,
        width,
        w.arg(),
        m.arg(),
        v.arg(),
        g.arg(),
        constants(&step),
        (w.len / width) as u32,
        [w.elem(), g.elem()],
    );
    (w.tensor(), m.tensor(), v.tensor())
}

#[cube(launch)]
fn lerp_kernel<A: Float, W: Float, N: Size>(
    average: &mut [Vector<A, N>],
    w: &[Vector<W, N>],
    weight: f32,
    vectors: u32,
    #[define(A, W)] _dtypes: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < vectors as usize {
        let old = Vector::<f32, N>::cast_from(average[i]);
        average[i] = Vector::cast_from(old + (Vector::<f32, N>::cast_from(w[i]) - old) * Vector::new(weight));
    }
}

/// `average + weight (w - average)`.
pub(super) fn lerp(average: CubeTensor, w: CubeTensor, weight: f64) -> CubeTensor {
    let (average, w) = (owned(average), Rows::of(w));
    let client = average.client();
    let width = vector_width(&[w.len], &[&average, &w]);
    let (count, dim) = one_unit_each(&client, w.len / width);
    lerp_kernel::launch(
        &client,
        count,
        dim,
        width,
        average.arg(),
        w.arg(),
        weight as f32,
        (w.len / width) as u32,
        [average.elem(), w.elem()],
    );
    average.tensor()
}

/// Values per unit of [`squares_kernel`], and the most cubes that it runs as.
const VALUES: usize = 32;
const CUBES: usize = 256;

/// How many sums [`squares`] leaves of so many values.
pub(super) fn parts(values: usize) -> usize {
    values.div_ceil(256 * VALUES).clamp(1, CUBES)
}

#[cube(launch)]
fn squares_kernel<G: Float, N: Size>(
    g: &[Vector<G, N>],
    sums: &mut [f32],
    from: u32,
    cubes: u32,
    vectors: u32,
    #[comptime] lanes: Lanes,
    #[define(G)] _dtype: ElemType,
) {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if CUBE_POS < cubes as usize {
        let mut i = CUBE_POS * lanes.units + UNIT_POS as usize;
        while i < vectors as usize {
            let value = Vector::<f32, N>::cast_from(g[i]);
            sum += value * value;
            i += cubes as usize * lanes.units;
        }
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    let total = sum_over_group(sum.vector_sum(), &mut scratch, lanes);
    if UNIT_POS == 0 && CUBE_POS < cubes as usize {
        sums[from as usize + CUBE_POS] = total;
    }
}

/// Writes [`parts`] sums of the gradient's squares into `sums`, from place `from` on.
pub(super) fn squares(sums: CubeTensor, g: CubeTensor, from: usize) -> CubeTensor {
    let (sums, g) = (owned(sums), Rows::of(g));
    let client = g.client();
    let width = vector_width(&[g.len], &[&g]);
    let lanes = Lanes::whole_cube(&client);
    let cubes = parts(g.len);
    squares_kernel::launch(
        &client,
        cube_count(&client, cubes),
        lanes.cube_dim(),
        width,
        g.arg(),
        sums.arg(),
        from as u32,
        cubes as u32,
        (g.len / width) as u32,
        lanes,
        g.elem(),
    );
    sums.tensor()
}

/// A tensor that may be written to: this one, if nobody else holds it.
fn owned(tensor: CubeTensor) -> Rows {
    let rows = Rows::of(tensor);
    if rows.can_mut() { rows } else { Rows::of(rows.tensor().copy()) }
}

/// A unit for each of `units` pieces of work.
fn one_unit_each(client: &Client, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, units);
    (cubecl::calculate_cube_count_elemwise(client, units, dim), dim)
}
