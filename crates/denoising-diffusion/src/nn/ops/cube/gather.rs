//! `gather`: matrices side by side.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::lanes::one_unit_each;
use super::optim::most_together;
use super::rows::{Rows, moved_width};

/// Counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    all: u32,
    /// Vectors per row of the parts that are passed.
    vectors: u32,
    /// The position of the first of them in the whole, in vectors.
    from: u32,
    whole: u32,
}

/// One unit per vector of the parts' rows. `ends` are the columns at which parts end, in vectors.
#[cube(launch)]
fn gather_kernel<F: Float, N: Size>(
    parts: &Sequence<Box<[Vector<F, N>]>>,
    pitches: &Sequence<u32>,
    ends: &Sequence<u32>,
    whole: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sizes.all as usize {
        let row = ABSOLUTE_POS / sizes.vectors as usize;
        let column = ABSOLUTE_POS % sizes.vectors as usize;
        let at = row * sizes.whole as usize + sizes.from as usize + column;
        let mut first = 0usize;
        #[unroll]
        for part in 0..ends.len() {
            let end = ends[part] as usize;
            if column >= first && column < end {
                whole[at] = parts[part][row * pitches[part] as usize + column - first];
            }
            first = end;
        }
    }
}

/// Concatenates `[n, c]`, `[n, d]` and so on, of one type and at least one, to `[n, c + d + ..]`.
pub(super) fn gather(parts: Vec<CubeTensor>) -> CubeTensor {
    let parts: Vec<Rows> = parts.into_iter().map(Rows::of).collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len).collect();
    let shape = [parts[0].count(), lengths.iter().sum()];
    let whole = Rows::empty(&parts[0], shape.into(), parts[0].dtype());
    let width = moved_width(&lengths, &parts.iter().chain([&whole]).collect::<Vec<_>>());
    let client = whole.client();
    let mut from = 0;
    for parts in parts.chunks(most_together(&client, 1)) {
        let ends: Vec<u32> = parts
            .iter()
            .scan(0, |end, part| {
                *end += (part.len / width) as u32;
                Some(*end)
            })
            .collect();
        let vectors = ends[ends.len() - 1];
        let units = shape[0] * vectors as usize;
        let (count, dim) = one_unit_each(&client, units);
        gather_kernel::launch(
            &client,
            count,
            dim,
            width,
            parts.iter().map(Rows::arg).collect(),
            parts.iter().map(|part| part.pitch(width)).collect(),
            ends.into_iter().collect(),
            whole.arg(),
            SizesLaunch::new(units as u32, vectors, from, whole.pitch(width)),
            whole.elem(),
        );
        from += vectors;
    }
    whole.tensor()
}
