//! Channels that fill vectors: rows are copied to longer ones, which end in zeros, and what is computed of those is cut off again. It concerns the first
//! and the last layer, with the channels of an image.

use burn::backend::ops::FloatTensorOps;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::lanes::one_unit_each;
use super::super::rows::Rows;
use super::dims;

/// Counts, and distances between rows.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    /// Values of the result.
    all: u32,
    rows: u32,
    columns: u32,
    x: u32,
    y_columns: u32,
    y: u32,
}

/// A unit per value of the result.
#[cube(launch)]
fn pad_kernel<F: Float>(x: &[F], y: &mut [F], sizes: &Sizes, #[define(F)] _dtype: ElemType) {
    if ABSOLUTE_POS < sizes.all as usize {
        let row = ABSOLUTE_POS / sizes.y_columns as usize;
        let column = ABSOLUTE_POS % sizes.y_columns as usize;
        let mut value = F::cast_from(0.0f32);
        if row < sizes.rows as usize && column < sizes.columns as usize {
            value = x[row * sizes.x as usize + column];
        }
        y[row * sizes.y as usize + column] = value;
    }
}

/// `[a, b, c, d]` in the beginning of a tensor of this shape, which is larger in `a` or `d`; the rest is zero.
fn padded(x: CubeTensor, shape: [usize; 4]) -> CubeTensor {
    let x = Rows::of(x);
    let y = Rows::empty(&x, Shape::new(shape), x.dtype());
    let client = x.client();
    let all = shape.iter().product();
    let (cubes, units) = one_unit_each(&client, all);
    pad_kernel::launch(
        &client,
        cubes,
        units,
        x.arg(),
        y.arg(),
        SizesLaunch::new(all as u32, x.count() as u32, x.len as u32, x.pitch(1), y.len as u32, y.pitch(1)),
        y.elem(),
    );
    y.tensor()
}

/// Images `[b, h, w, c]` whose channels fill vectors of this width.
pub(super) fn whole_images(x: CubeTensor, width: usize) -> CubeTensor {
    let [b, h, w, c] = dims(&x);
    if c.is_multiple_of(width) { x } else { padded(x, [b, h, w, c.next_multiple_of(width)]) }
}

/// A weight `[c_out, c_in, kh, kw]` of which this is also true, for inputs and outputs.
pub(super) fn whole_weight(weight: CubeTensor, width: usize) -> CubeTensor {
    let [c_out, c_in, kh, kw] = dims(&weight);
    if c_out.is_multiple_of(width) && c_in.is_multiple_of(width) {
        return weight;
    }
    let channels_last = CubeBackend::float_permute(weight, &[0, 2, 3, 1]);
    let shape = [c_out.next_multiple_of(width), kh, kw, c_in.next_multiple_of(width)];
    CubeBackend::float_permute(padded(channels_last, shape), &[0, 3, 1, 2])
}

/// A bias `[c_out]` for such a weight.
pub(super) fn whole_bias(bias: CubeTensor, width: usize) -> CubeTensor {
    let c = bias.meta.shape()[0];
    if c.is_multiple_of(width) {
        return bias;
    }
    let [row, whole] = [c, c.next_multiple_of(width)].map(|len| [1, 1, 1, len]);
    let whole_row = padded(CubeBackend::float_reshape(bias, Shape::new(row)), whole);
    CubeBackend::float_reshape(whole_row, Shape::new([whole[3]]))
}

/// The part of this shape that `x` begins with.
pub(super) fn beginning(x: CubeTensor, shape: [usize; 4]) -> CubeTensor {
    if dims(&x) == shape { x } else { CubeBackend::float_slice(x, &shape.map(|end| (0..end).into())) }
}
