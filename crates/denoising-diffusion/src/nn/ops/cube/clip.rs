//! The norm of gradients, and what clipping by it requires: a factor, and whether there is a step at all. Both stay on the device, where the sweeps
//! of [`optim`](super::optim) read them, so that nobody has to wait for them. All tensors are flat.

use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::tensor::CubeTensor;

use super::lanes::{Lanes, cube_count, sum_over_group};
use super::optim::Launch;
use super::rows::Rows;

/// Values per unit of [`squares_kernel`], and the largest number of cubes per tensor.
const VALUES: usize = 32;
const CUBES: usize = 256;

/// The number of sums that [`squares`] leaves for this number of values: none for none, which no cube would write.
fn parts(values: usize) -> usize {
    values.div_ceil(256 * VALUES).min(CUBES)
}

/// Several cubes per tensor, one tensor after the other. Each writes a sum into `sums`, from index `from` on.
#[cube(launch)]
fn squares_kernel<G: Float, N: Size>(
    g: &Sequence<Box<[Vector<G, N>]>>,
    vectors: &Sequence<u32>,
    ends: &Sequence<u32>,
    sums: &mut [f32],
    from: u32,
    #[comptime] lanes: Lanes,
    #[define(G)] _dtype: ElemType,
) {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut first = 0usize;
    #[unroll]
    for tensor in 0..ends.len() {
        let end = ends[tensor] as usize;
        if CUBE_POS >= first && CUBE_POS < end {
            let mut i = (CUBE_POS - first) * lanes.units + UNIT_POS as usize;
            while i < vectors[tensor] as usize {
                let value = Vector::<f32, N>::cast_from(g[tensor][i]);
                sum += value * value;
                i += (end - first) * lanes.units;
            }
        }
        first = end;
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    let total = sum_over_group(sum.vector_sum(), &mut scratch, lanes);
    if UNIT_POS == 0 && CUBE_POS < first {
        sums[from as usize + CUBE_POS] = total;
    }
}

/// Sums of squares, and which of them belong to which tensor.
pub(super) struct Squares {
    pub(super) sums: CubeTensor,
    pub(super) places: Vec<std::ops::Range<usize>>,
}

/// Sums of the squares of each tensor's values; `None` if there are no tensors.
pub(super) fn squares(all: Vec<CubeTensor>) -> Option<Squares> {
    let all: Vec<[Rows; 1]> = all.into_iter().map(|tensor| [Rows::of(tensor)]).collect();
    let client = all.first()?[0].client();
    let parts = |place: usize| parts(all[place][0].len);
    let sums = match (0..all.len()).map(parts).sum::<usize>() {
        0 => Rows::of(zeros(all[0][0].device(), Shape::new([1, 1]), DType::F32)),
        count => Rows::dense(&all[0][0], [1, count]),
    };
    let lanes = Lanes::whole_cube(&client);
    let (mut places, mut from) = (vec![0..0; all.len()], 0);
    for launch in Launch::all_of(&client, &all) {
        let start = from;
        let mut ends = Vec::new();
        for &place in &launch.places {
            places[place] = from..from + parts(place);
            from = places[place].end;
            ends.push((from - start) as u32);
        }
        squares_kernel::launch(
            &client,
            cube_count(&client, from - start),
            lanes.cube_dim(),
            launch.width,
            launch.args(|place| all[place][0].arg()),
            launch.places.iter().map(|&place| (all[place][0].len / launch.width) as u32).collect(),
            ends.into_iter().collect(),
            sums.arg(),
            start as u32,
            lanes,
            all[launch.places[0]][0].elem(),
        );
    }
    Some(Squares { sums: sums.tensor(), places })
}

/// The exponent bits of f32, all of which are set in infinities and NaN, and only in these.
const EXPONENT: u32 = 0x7f80_0000;

/// Tests the bits, because compilers for GPUs may assume that there are no such values and remove comparisons with them.
#[cube]
fn is_finite(value: f32) -> bool {
    u32::reinterpret(value) & EXPONENT != EXPONENT
}

/// The factor of gradients, from the result of [`of`].
#[cube]
pub(super) fn grad_scale(clip: &[f32]) -> f32 {
    clip[0]
}

/// Whether weights, moments and averages stay unchanged, from the result of [`of`].
#[cube]
pub(super) fn is_skipped(clip: &[f32]) -> bool {
    clip[1] != 0.0f32
}

/// Runs as one cube.
#[cube(launch)]
fn clip(
    sums: &[f32],
    losses: &[f32],
    clip: &mut [f32],
    sum_count: u32,
    loss_count: u32,
    max_norm: f32,
    eps: f32,
    #[comptime] lanes: Lanes,
) {
    let mut sum = 0.0f32;
    let mut i = UNIT_POS;
    while i < sum_count {
        sum += sums[i as usize];
        i += lanes.units as u32;
    }
    let mut spoiled = 0.0f32;
    let mut i = UNIT_POS;
    while i < loss_count {
        if !is_finite(losses[i as usize]) {
            spoiled += 1.0f32;
        }
        i += lanes.units as u32;
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    let sum = sum_over_group(sum, &mut scratch, lanes);
    let mut not_finite = sum_over_group(spoiled, &mut scratch, lanes);
    if !is_finite(sum) {
        not_finite += 1.0f32;
    }
    if UNIT_POS == 0 {
        clip[0] = min(max_norm / (sum.sqrt() + eps), 1.0f32);
        clip[1] = not_finite;
    }
}

/// `max_norm / (norm + eps)`, at most 1, where `sums` come from [`squares`] and the norm is that of all gradients; and a value that is nonzero if the
/// norm or a loss is not finite.
pub(super) fn of(sums: CubeTensor, losses: CubeTensor, max_norm: f64, eps: f64) -> CubeTensor {
    let (sums, losses) = (Rows::of(sums), Rows::of(losses));
    let (client, clip) = (sums.client(), Rows::dense(&sums, [1, 2]));
    let lanes = Lanes::whole_cube(&client);
    clip::launch(
        &client,
        cube_count(&client, 1),
        lanes.cube_dim(),
        sums.arg(),
        losses.arg(),
        clip.arg(),
        sums.len as u32,
        losses.len as u32,
        max_norm as f32,
        eps as f32,
        lanes,
    );
    clip.tensor()
}
