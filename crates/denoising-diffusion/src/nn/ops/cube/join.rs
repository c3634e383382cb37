//! `join`: concatenates two images along the channels, each multiplied by a number if there are any; and its gradient, the two parts. One launch
//! each; Burn's `cat` takes one per part, and another for each part of the gradient.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::lanes::one_unit_each;
use super::rows::{Rows, moved_width, vector_width};

/// Counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    all: u32,
    /// Vectors per row of the first part, and of the second.
    first_vectors: u32,
    second_vectors: u32,
    first: u32,
    second: u32,
    whole: u32,
    first_factor: f32,
    second_factor: f32,
}

/// The position of a unit's vector in the whole and in its part, and whether that is the first.
#[derive(CubeType)]
struct Place {
    whole: usize,
    part: usize,
    in_first: bool,
}

#[cube]
fn place(sizes: &Sizes) -> Place {
    let first_vectors = sizes.first_vectors as usize;
    let vectors = first_vectors + sizes.second_vectors as usize;
    let row = ABSOLUTE_POS / vectors;
    let i = ABSOLUTE_POS % vectors;
    let in_first = i < first_vectors;
    let of_first = row * sizes.first as usize + i;
    let of_second = row * sizes.second as usize + i - first_vectors;
    Place { whole: row * sizes.whole as usize + i, part: select(in_first, of_first, of_second), in_first }
}

/// `value factor` in f32; without factors, `value` unchanged.
#[cube]
fn scaled<F: Float, N: Size>(value: Vector<F, N>, factor: f32, #[comptime] with_factors: bool) -> Vector<F, N> {
    if comptime!(with_factors) {
        Vector::cast_from(Vector::<f32, N>::cast_from(value) * Vector::new(factor))
    } else {
        value
    }
}

/// One unit per vector.
#[cube(launch)]
fn join_kernel<F: Float, N: Size>(
    first: &[Vector<F, N>],
    second: &[Vector<F, N>],
    whole: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] with_factors: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sizes.all as usize {
        let place = place(sizes);
        if place.in_first {
            whole[place.whole] = scaled::<F, N>(first[place.part], sizes.first_factor, with_factors);
        } else {
            whole[place.whole] = scaled::<F, N>(second[place.part], sizes.second_factor, with_factors);
        }
    }
}

/// One unit per vector.
#[cube(launch)]
fn split_kernel<F: Float, N: Size>(
    whole: &[Vector<F, N>],
    first: &mut [Vector<F, N>],
    second: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] with_factors: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sizes.all as usize {
        let place = place(sizes);
        if place.in_first {
            first[place.part] = scaled::<F, N>(whole[place.whole], sizes.first_factor, with_factors);
        } else {
            second[place.part] = scaled::<F, N>(whole[place.whole], sizes.second_factor, with_factors);
        }
    }
}

/// The parameters of a launch.
struct Plan {
    cubes: CubeCount,
    cube_dim: CubeDim,
    width: usize,
    sizes: SizesLaunch,
}

impl Plan {
    fn new(first: &Rows, second: &Rows, whole: &Rows, factors: Option<[f32; 2]>) -> Self {
        let client = whole.client();
        let width = if factors.is_some() { vector_width } else { moved_width };
        let width = width(&[first.len, second.len], &[first, second, whole]);
        let [first_factor, second_factor] = factors.unwrap_or_default();
        let units = whole.count() * whole.len / width;
        let (cubes, cube_dim) = one_unit_each(&client, units);
        let sizes = SizesLaunch::new(
            units as u32,
            (first.len / width) as u32,
            (second.len / width) as u32,
            first.pitch(width),
            second.pitch(width),
            whole.pitch(width),
            first_factor,
            second_factor,
        );
        Self { cubes, cube_dim, width, sizes }
    }
}

/// `[b, h, w, c]` and `[b, h, w, d]`, of one type, to `[b, h, w, c + d]`.
pub(super) fn join(first: CubeTensor, second: CubeTensor, factors: Option<[f32; 2]>) -> CubeTensor {
    let (first, second) = (Rows::of(first), Rows::of(second));
    let mut shape = first.shape();
    shape[3] = first.len + second.len;
    let whole = Rows::empty(&first, shape, first.dtype());
    let Plan { cubes, cube_dim, width, sizes } = Plan::new(&first, &second, &whole, factors);
    join_kernel::launch(
        &whole.client(),
        cubes,
        cube_dim,
        width,
        first.arg(),
        second.arg(),
        whole.arg(),
        sizes,
        factors.is_some(),
        whole.elem(),
    );
    whole.tensor()
}

/// The first `c` channels and the others, multiplied by the same numbers.
pub(super) fn split(whole: CubeTensor, c: usize, factors: Option<[f32; 2]>) -> (CubeTensor, CubeTensor) {
    let whole = Rows::of(whole);
    let part = |channels: usize| {
        let mut shape = whole.shape();
        shape[3] = channels;
        Rows::empty(&whole, shape, whole.dtype())
    };
    let (first, second) = (part(c), part(whole.len - c));
    let Plan { cubes, cube_dim, width, sizes } = Plan::new(&first, &second, &whole, factors);
    split_kernel::launch(
        &whole.client(),
        cubes,
        cube_dim,
        width,
        whole.arg(),
        first.arg(),
        second.arg(),
        sizes,
        factors.is_some(),
        whole.elem(),
    );
    (first.tensor(), second.tensor())
}
