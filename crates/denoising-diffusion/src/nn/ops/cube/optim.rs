//! Passes over parameters that live for the whole run: Adam, forced norms and the moving average. Results are written in place unless somebody else
//! holds the tensor. All tensors are flat, except where rows matter. A launch takes many tensors, because networks have hundreds, most of them small.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use denoising_diffusion_kernels::optim::AdamStep;

use super::clip::{grad_scale, is_skipped};
use super::lanes::{Lanes, cube_count, one_unit_each, sum_over_group};
use super::rows::{Rows, vector_width};

/// The largest number of tensors of each kind per launch: a kernel's code is repeated for each of them.
const TOGETHER: usize = 16;
/// Buffers of a kernel besides its lists: up to four of CubeCL's, and the result of clipping.
const OTHER_BUFFERS: u32 = 5;

/// The largest number of lists of `kinds` tensors each per launch.
pub(super) fn most_together(client: &Client, kinds: usize) -> usize {
    let bindings = client.properties().hardware.max_bindings.saturating_sub(OTHER_BUFFERS) as usize;
    (bindings / kinds).clamp(1, TOGETHER)
}

/// Tensors that go through a kernel together.
pub(super) struct Launch {
    /// Values per vector.
    pub(super) width: usize,
    /// Their indices in the list of all.
    pub(super) places: Vec<usize>,
}

impl Launch {
    /// Divides a list, whose members are `K` tensors of one length each, by vector width and types, with as many at a time as the device can bind.
    pub(super) fn all_of<const K: usize>(client: &Client, list: &[[Rows; K]]) -> Vec<Self> {
        let mut alike = BTreeMap::<_, Vec<usize>>::new();
        for (place, tensors) in list.iter().enumerate().filter(|(_, tensors)| tensors[0].len > 0) {
            let width = vector_width(&[tensors[0].len], &tensors.each_ref());
            alike.entry((width, tensors.each_ref().map(|rows| rows.dtype().name()))).or_default().push(place);
        }
        let most = most_together(client, K);
        let parts = alike.iter().flat_map(|((width, _), places)| places.chunks(most).map(|places| (*width, places)));
        parts.map(|(width, places)| Self { width, places: places.to_vec() }).collect()
    }

    pub(super) fn args<T: CubePrimitive>(&self, of: impl Fn(usize) -> BufferArg) -> SequenceArg<Box<[T]>> {
        self.places.iter().map(|&place| of(place)).collect()
    }

    /// For each tensor, the end of its vectors among all vectors of the launch.
    fn ends(&self, len: impl Fn(usize) -> usize) -> Vec<u32> {
        let vectors = self.places.iter().map(|&place| (len(place) / self.width) as u32);
        vectors
            .scan(0, |end, vectors| {
                *end += vectors;
                Some(*end)
            })
            .collect()
    }
}

/// [`AdamStep`] as the constants of the sweep, computed in f64 and rounded once; the factor of gradients is passed separately.
#[derive(CubeLaunch, CubeType)]
struct Adam {
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    rate: f32,
    inverse_root: f32,
    eps: f32,
    kept: f32,
}

fn constants(step: &AdamStep) -> AdamLaunch {
    let power = step.step as f64;
    let (c1, c2) = (1.0 - step.beta1.powf(power), 1.0 - step.beta2.powf(power));
    AdamLaunch::new(
        step.beta1 as f32,
        (1.0 - step.beta1) as f32,
        step.beta2 as f32,
        (1.0 - step.beta2) as f32,
        (step.lr / c1) as f32,
        (1.0 / c2.sqrt()) as f32,
        step.eps as f32,
        step.kept() as f32,
    )
}

#[cube]
fn adam_vector<W: Float, G: Float, N: Size>(
    w: &mut [Vector<W, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    g: &[Vector<G, N>],
    i: usize,
    scale: f32,
    step: &Adam,
) {
    let gradient = Vector::<f32, N>::cast_from(g[i]) * Vector::new(scale);
    let first = m[i] * Vector::new(step.beta1) + gradient * Vector::new(step.rest1);
    let second = v[i] * Vector::new(step.beta2) + gradient * gradient * Vector::new(step.rest2);
    let root = second.sqrt() * Vector::new(step.inverse_root) + Vector::new(step.eps);
    m[i] = first;
    v[i] = second;
    let kept = Vector::<f32, N>::cast_from(w[i]) * Vector::new(step.kept);
    w[i] = Vector::cast_from(kept - first * Vector::new(step.rate) / root);
}

/// One unit per vector of all tensors, one tensor after the other.
#[cube(launch)]
fn adam_kernel<W: Float, G: Float, N: Size>(
    w: &mut Sequence<Box<[Vector<W, N>]>>,
    m: &mut Sequence<Box<[Vector<f32, N>]>>,
    v: &mut Sequence<Box<[Vector<f32, N>]>>,
    g: &Sequence<Box<[Vector<G, N>]>>,
    ends: &Sequence<u32>,
    clip: &[f32],
    step: &Adam,
    #[define(W, G)] _dtypes: [ElemType; 2],
) {
    if is_skipped(clip) {
        terminate!();
    }
    let scale = grad_scale(clip);
    let mut first = 0usize;
    #[unroll]
    for tensor in 0..ends.len() {
        let end = ends[tensor] as usize;
        if ABSOLUTE_POS >= first && ABSOLUTE_POS < end {
            let (w, m) = (w.index_mut(tensor), m.index_mut(tensor));
            adam_vector(w, m, v.index_mut(tensor), g.index(tensor), ABSOLUTE_POS - first, scale, step);
        }
        first = end;
    }
}

/// See [`AdamStep`]: from weights, first and second moments and gradient of each to the first three after the step, or to their old values if `clip`
/// (of [`super::clip`]) says so. `clip` also has the factor of the gradients, which replaces the step's.
pub(super) fn adam(step: &AdamStep, clip: CubeTensor, all: Vec<[CubeTensor; 4]>) -> Vec<[CubeTensor; 3]> {
    let clip = Rows::of(clip);
    let all: Vec<[Rows; 4]> = all.into_iter().map(|[w, m, v, g]| [owned(w), owned(m), owned(v), Rows::of(g)]).collect();
    let Some(client) = all.first().map(|[w, ..]| w.client()) else { return Vec::new() };
    for launch in Launch::all_of(&client, &all) {
        let ends = launch.ends(|place| all[place][0].len);
        let (count, dim) = one_unit_each(&client, *ends.last().unwrap_or(&0) as usize);
        let [w, _, _, g] = &all[launch.places[0]];
        adam_kernel::launch(
            &client,
            count,
            dim,
            launch.width,
            launch.args(|place| all[place][0].arg()),
            launch.args(|place| all[place][1].arg()),
            launch.args(|place| all[place][2].arg()),
            launch.args(|place| all[place][3].arg()),
            ends.into_iter().collect(),
            clip.arg(),
            constants(step),
            [w.elem(), g.elem()],
        );
    }
    all.into_iter().map(|[w, m, v, _]| [w, m, v].map(Rows::tensor)).collect()
}

#[cube]
fn lerp_vector<A: Float, W: Float, N: Size>(
    average: &mut [Vector<A, N>],
    w: &[Vector<W, N>],
    i: usize,
    weight: f32,
    #[comptime] copies: bool,
) {
    let mut new = Vector::<f32, N>::cast_from(w[i]);
    if comptime!(!copies) {
        let old = Vector::<f32, N>::cast_from(average[i]);
        new = old + (new - old) * Vector::new(weight);
    }
    average[i] = Vector::cast_from(new);
}

/// One unit per vector of all tensors, one tensor after the other.
#[allow(clippy::collapsible_if, reason = "CubeCL's macro takes no chains of conditions")]
#[cube(launch)]
fn lerp_kernel<A: Float, W: Float, N: Size>(
    average: &mut Sequence<Box<[Vector<A, N>]>>,
    w: &Sequence<Box<[Vector<W, N>]>>,
    ends: &Sequence<u32>,
    clip: ComptimeOption<&[f32]>,
    weight: f32,
    #[comptime] copies: bool,
    #[define(A, W)] _dtypes: [ElemType; 2],
) {
    #[comptime]
    if let ComptimeOption::Some(clip) = clip {
        if is_skipped(clip) {
            terminate!();
        }
    }
    let mut first = 0usize;
    #[unroll]
    for tensor in 0..ends.len() {
        let end = ends[tensor] as usize;
        if ABSOLUTE_POS >= first && ABSOLUTE_POS < end {
            lerp_vector(average.index_mut(tensor), w.index(tensor), ABSOLUTE_POS - first, weight, copies);
        }
        first = end;
    }
}

/// `average + weight (w - average)` for each `[average, w]`, and `w` itself with a weight of 1; `average` if there is a `clip` (of [`super::clip`])
/// that says so.
pub(super) fn lerp(all: Vec<[CubeTensor; 2]>, weight: f64, clip: Option<CubeTensor>) -> Vec<CubeTensor> {
    let clip = clip.map(Rows::of);
    let all: Vec<[Rows; 2]> = all.into_iter().map(|[average, w]| [owned(average), Rows::of(w)]).collect();
    let Some(client) = all.first().map(|[average, _]| average.client()) else { return Vec::new() };
    for launch in Launch::all_of(&client, &all) {
        let ends = launch.ends(|place| all[place][0].len);
        let (count, dim) = one_unit_each(&client, *ends.last().unwrap_or(&0) as usize);
        let [average, w] = &all[launch.places[0]];
        lerp_kernel::launch(
            &client,
            count,
            dim,
            launch.width,
            launch.args(|place| all[place][0].arg()),
            launch.args(|place| all[place][1].arg()),
            ends.into_iter().collect(),
            clip.as_ref().map(Rows::arg).into(),
            weight as f32,
            weight == 1.0,
            [average.elem(), w.elem()],
        );
    }
    all.into_iter().map(|[average, _]| average.tensor()).collect()
}

/// One cube per row of all tensors, one tensor after the other.
#[cube(launch)]
fn unit_rows_kernel<W: Float, N: Size>(
    w: &mut Sequence<Box<[Vector<W, N>]>>,
    vectors: &Sequence<u32>,
    pitches: &Sequence<u32>,
    ends: &Sequence<u32>,
    clip: &[f32],
    floor: f32,
    #[comptime] width: usize,
    #[comptime] lanes: Lanes,
    #[define(W)] _dtype: ElemType,
) {
    if is_skipped(clip) {
        terminate!();
    }
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut first = 0usize;
    #[unroll]
    for tensor in 0..ends.len() {
        let end = ends[tensor] as usize;
        if CUBE_POS >= first && CUBE_POS < end {
            let count = vectors[tensor] as usize;
            let start = (CUBE_POS - first) * pitches[tensor] as usize;
            let row = w.index_mut(tensor);
            let mut i = UNIT_POS as usize;
            while i < count {
                let value = Vector::<f32, N>::cast_from(row[start + i]);
                sum += value * value;
                i += lanes.units;
            }
        }
        first = end;
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    let norm = sum_over_group(sum.vector_sum(), &mut scratch, lanes).sqrt();
    // Not `max`, which would turn NaN into the floor.
    let norm = select(norm < floor, floor, norm);
    let mut first = 0usize;
    #[unroll]
    for tensor in 0..ends.len() {
        let end = ends[tensor] as usize;
        if CUBE_POS >= first && CUBE_POS < end {
            let count = vectors[tensor] as usize;
            let start = (CUBE_POS - first) * pitches[tensor] as usize;
            let factor = Vector::<f32, N>::new(f32::cast_from((count * width) as u32).sqrt() / norm);
            let row = w.index_mut(tensor);
            let mut i = UNIT_POS as usize;
            while i < count {
                let value = Vector::<f32, N>::cast_from(row[start + i]);
                row[start + i] = Vector::cast_from(value * factor);
                i += lanes.units;
            }
        }
        first = end;
    }
}

/// Each row of tensors `[rows, n]` times `sqrt(n) / max(norm, floor)`; unchanged if `clip` (of [`super::clip`]) says so.
pub(super) fn force_unit_rows(all: Vec<CubeTensor>, floor: f64, clip: CubeTensor) -> Vec<CubeTensor> {
    let clip = Rows::of(clip);
    let all: Vec<[Rows; 1]> = all.into_iter().map(|w| [owned(w)]).collect();
    let Some(client) = all.first().map(|[w]| w.client()) else { return Vec::new() };
    let lanes = Lanes::whole_cube(&client);
    for launch in Launch::all_of(&client, &all) {
        let mut end = 0;
        let mut ends = Vec::with_capacity(launch.places.len());
        for &place in &launch.places {
            end += all[place][0].count() as u32;
            ends.push(end);
        }
        unit_rows_kernel::launch(
            &client,
            cube_count(&client, end as usize),
            lanes.cube_dim(),
            launch.width,
            launch.args(|place| all[place][0].arg()),
            launch.places.iter().map(|&place| (all[place][0].len / launch.width) as u32).collect(),
            launch.places.iter().map(|&place| all[place][0].pitch(launch.width)).collect(),
            ends.into_iter().collect(),
            clip.arg(),
            floor as f32,
            launch.width,
            lanes,
            all[launch.places[0]][0].elem(),
        );
    }
    all.into_iter().map(|[w]| w.tensor()).collect()
}

/// The same values in memory of their own.
pub(super) fn copied(all: Vec<CubeTensor>) -> Vec<CubeTensor> {
    lerp(all.into_iter().map(Rows::of).map(|rows| [like(&rows, rows.dtype()), rows.tensor()]).collect(), 1.0, None)
}

/// A flat tensor that is not yet filled.
fn like(rows: &Rows, dtype: DType) -> CubeTensor {
    Rows::empty(rows, rows.shape(), dtype).tensor()
}

/// The same values in tensors of another type.
pub(super) fn cast(all: Vec<CubeTensor>, dtype: DType) -> Vec<CubeTensor> {
    let (mut done, mut pairs) = (Vec::with_capacity(all.len()), Vec::new());
    for rows in all.into_iter().map(Rows::of) {
        if rows.dtype() == dtype {
            done.push(Some(rows.tensor()));
        } else {
            pairs.push([like(&rows, dtype), rows.tensor()]);
            done.push(None);
        }
    }
    let mut changed = lerp(pairs, 1.0, None).into_iter();
    done.into_iter().filter_map(|tensor| tensor.or_else(|| changed.next())).collect()
}

static MOVES: AtomicU64 = AtomicU64::new(0);

/// The number of tensors that were not written in place, because somebody else held them.
pub(super) fn moves() -> u64 {
    MOVES.load(Ordering::Relaxed)
}

/// A tensor that may be written to: this one if nobody else holds it, otherwise a new one.
fn owned(tensor: CubeTensor) -> Rows {
    let rows = Rows::of(tensor);
    if rows.can_mut() {
        return rows;
    }
    MOVES.fetch_add(1, Ordering::Relaxed);
    Rows::of(rows.tensor().copy())
}
