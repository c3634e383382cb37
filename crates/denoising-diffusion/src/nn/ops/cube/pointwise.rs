//! Functions of each value, and their gradients: `dy f'(x)`.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::Pointwise;
use super::lanes::one_unit_each;
use super::math::{gelu_tanh, gelu_tanh_slope, silu, silu_slope, value_or_zero};
use super::rows::{Rows, vector_width};

/// The function; a compile-time parameter of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Function {
    Silu,
    GeluTanh,
}

impl From<Pointwise> for Function {
    fn from(f: Pointwise) -> Self {
        match f {
            Pointwise::Silu => Self::Silu,
            Pointwise::GeluTanh => Self::GeluTanh,
        }
    }
}

/// Counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    all: u32,
    /// Vectors per row.
    vectors: u32,
    x: u32,
    dy: u32,
    out: u32,
}

/// One unit per vector: `f(x)`, or with `backward` `dy f'(x)`.
#[cube(launch)]
fn kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    dy: ComptimeOption<&[Vector<F, N>]>,
    out: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] f: Function,
    #[comptime] backward: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sizes.all as usize {
        let row = ABSOLUTE_POS / sizes.vectors as usize;
        let i = ABSOLUTE_POS % sizes.vectors as usize;
        let value = Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]);
        let result = if comptime!(backward) {
            let slope =
                if comptime!(f == Function::Silu) { silu_slope::<N>(value) } else { gelu_tanh_slope::<N>(value) };
            slope * value_or_zero::<F, N>(&dy, row * sizes.dy as usize + i)
        } else if comptime!(f == Function::Silu) {
            silu::<N>(value)
        } else {
            gelu_tanh::<N>(value)
        };
        out[row * sizes.out as usize + i] = Vector::cast_from(result);
    }
}

fn launch(x: Rows, dy: Option<Rows>, f: Pointwise) -> CubeTensor {
    let out = Rows::empty(&x, x.shape(), x.dtype());
    let client = x.client();
    let mut all = vec![&x, &out];
    all.extend(&dy);
    let width = vector_width(&[x.len], &all);
    let vectors = x.len / width;
    let units = x.count() * vectors;
    let (count, dim) = one_unit_each(&client, units);
    kernel::launch(
        &client,
        count,
        dim,
        width,
        x.arg(),
        dy.as_ref().map(Rows::arg).into(),
        out.arg(),
        SizesLaunch::new(
            units as u32,
            vectors as u32,
            x.pitch(width),
            dy.as_ref().map_or(0, |dy| dy.pitch(width)),
            out.pitch(width),
        ),
        f.into(),
        dy.is_some(),
        x.elem(),
    );
    out.tensor()
}

pub(super) fn forward(x: CubeTensor, f: Pointwise) -> CubeTensor {
    launch(Rows::of(x), None, f)
}

/// The gradient of `x`.
pub(super) fn backward(x: CubeTensor, dy: CubeTensor, f: Pointwise) -> CubeTensor {
    launch(Rows::of(x), Some(Rows::of(dy)), f)
}
