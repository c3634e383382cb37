//! `add_scaled`: `a + factor b` for f32 or narrower values, computed in f32. (The gradient of `a` is that of the result; Burn multiplies it for `b`.)

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::lanes::one_unit_each;
use super::rows::{Rows, vector_width};

/// Counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    all: u32,
    /// Vectors per row.
    vectors: u32,
    a: u32,
    b: u32,
    out: u32,
}

/// One unit per vector.
#[cube(launch)]
fn kernel<F: Float, N: Size>(
    a: &[Vector<F, N>],
    b: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    factor: f32,
    sizes: &Sizes,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sizes.all as usize {
        let row = ABSOLUTE_POS / sizes.vectors as usize;
        let i = ABSOLUTE_POS % sizes.vectors as usize;
        let base = Vector::<f32, N>::cast_from(a[row * sizes.a as usize + i]);
        let other = Vector::<f32, N>::cast_from(b[row * sizes.b as usize + i]);
        out[row * sizes.out as usize + i] = Vector::cast_from(base + other * Vector::new(factor));
    }
}

/// For tensors of the same shape and type.
pub(super) fn forward(a: CubeTensor, b: CubeTensor, factor: f32) -> CubeTensor {
    let (a, b) = (Rows::of(a), Rows::of(b));
    let (client, out) = (a.client(), Rows::empty(&a, a.shape(), a.dtype()));
    let width = vector_width(&[a.len], &[&a, &b, &out]);
    let vectors = a.len / width;
    let units = a.count() * vectors;
    let (count, dim) = one_unit_each(&client, units);
    kernel::launch(
        &client,
        count,
        dim,
        width,
        a.arg(),
        b.arg(),
        out.arg(),
        factor,
        SizesLaunch::new(units as u32, vectors as u32, a.pitch(width), b.pitch(width), out.pitch(width)),
        a.elem(),
    );
    out.tensor()
}
