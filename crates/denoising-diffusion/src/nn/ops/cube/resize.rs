//! `resize_axis`: the second of four axes halved, by the mean of each pair, or doubled, by linear interpolation; and the gradients, which are the
//! transposes. One launch each.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::AxisResize;
use super::lanes::one_unit_each;
use super::rows::{Rows, vector_width};

/// Counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    all: u32,
    /// Vectors per row.
    vectors: u32,
    /// Number of rows after the axis, and the axis's length in `from` and in `to`.
    middle: u32,
    from_n: u32,
    to_n: u32,
    from: u32,
    to: u32,
}

/// Which values a value is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Rule {
    Halve,
    HalveBackward,
    Double,
    DoubleBackward,
}

/// A vector of the row at index `i` along the axis.
#[cube]
fn at<F: Float, N: Size>(
    from: &[Vector<F, N>],
    i: usize,
    outer: usize,
    middle: usize,
    k: usize,
    sizes: &Sizes,
) -> Vector<f32, N> {
    let row = (outer * sizes.from_n as usize + i) * sizes.middle as usize + middle;
    Vector::cast_from(from[row * sizes.from as usize + k])
}

/// One unit per vector of `to`.
#[allow(clippy::manual_is_multiple_of, reason = "CubeCL knows no such function")]
#[cube(launch)]
fn kernel<F: Float, N: Size>(
    from: &[Vector<F, N>],
    to: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] rule: Rule,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sizes.all as usize {
        let k = ABSOLUTE_POS % sizes.vectors as usize;
        let row = ABSOLUTE_POS / sizes.vectors as usize;
        let middle = row % sizes.middle as usize;
        let i = row / sizes.middle as usize % sizes.to_n as usize;
        let outer = row / sizes.middle as usize / sizes.to_n as usize;
        let last = sizes.from_n as usize - 1;
        let half = Vector::<f32, N>::new(0.5f32);
        let near = Vector::<f32, N>::new(0.75f32);
        let far = Vector::<f32, N>::new(0.25f32);
        let value = if comptime!(rule == Rule::Halve) {
            (at::<F, N>(from, 2 * i, outer, middle, k, sizes) + at::<F, N>(from, 2 * i + 1, outer, middle, k, sizes))
                * half
        } else if comptime!(rule == Rule::HalveBackward) {
            at::<F, N>(from, i / 2, outer, middle, k, sizes) * half
        } else if comptime!(rule == Rule::Double) {
            let before = select(i < 2, 0, i / 2 - 1);
            let neighbour = select(i % 2 == 0, before, min(i / 2 + 1, last));
            at::<F, N>(from, i / 2, outer, middle, k, sizes) * near
                + at::<F, N>(from, neighbour, outer, middle, k, sizes) * far
        } else {
            let before = select(i == 0, 0, 2 * i - 1);
            let behind = min(2 * i + 2, last);
            (at::<F, N>(from, 2 * i, outer, middle, k, sizes) + at::<F, N>(from, 2 * i + 1, outer, middle, k, sizes))
                * near
                + (at::<F, N>(from, before, outer, middle, k, sizes)
                    + at::<F, N>(from, behind, outer, middle, k, sizes))
                    * far
        };
        to[row * sizes.to as usize + k] = Vector::cast_from(value);
    }
}

/// `from [outer, from_n, middle, c]` to `[outer, to_n, middle, c]`.
fn launch(from: CubeTensor, to_n: usize, rule: Rule) -> CubeTensor {
    let from = Rows::of(from);
    let mut shape = from.shape();
    let (from_n, middle) = (shape[1], shape[2]);
    shape[1] = to_n;
    let (client, to) = (from.client(), Rows::empty(&from, shape, from.dtype()));
    let width = vector_width(&[from.len], &[&from, &to]);
    let vectors = from.len / width;
    let units = to.count() * vectors;
    let (count, dim) = one_unit_each(&client, units);
    kernel::launch(
        &client,
        count,
        dim,
        width,
        from.arg(),
        to.arg(),
        SizesLaunch::new(
            units as u32,
            vectors as u32,
            middle as u32,
            from_n as u32,
            to_n as u32,
            from.pitch(width),
            to.pitch(width),
        ),
        rule,
        from.elem(),
    );
    to.tensor()
}

pub(super) fn forward(x: CubeTensor, resize: AxisResize) -> CubeTensor {
    let n = resize.length(x.meta.shape()[1]);
    match resize {
        AxisResize::HalveByMean => launch(x, n, Rule::Halve),
        AxisResize::DoubleLinearly => launch(x, n, Rule::Double),
    }
}

/// The gradient of `x [outer, n, middle, c]`.
pub(super) fn backward(dy: CubeTensor, n: usize, resize: AxisResize) -> CubeTensor {
    match resize {
        AxisResize::HalveByMean => launch(dy, n, Rule::HalveBackward),
        AxisResize::DoubleLinearly => launch(dy, n, Rule::DoubleBackward),
    }
}
