//! Forward pass and input gradient.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::matrix_unit::{Left, NarrowScratch, Right, SIDE, Session, Sums, TERMS, Target, Unit, narrow_rows};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, simd_fn};

use super::super::parts::{Part, Parts, PartsMut};
use super::super::{Conv2dShape, ConvActivation, Epilogue};
use super::flat::{Flat, ROWS};
use super::weights::{by_inputs, by_outputs, panel_len};

/// The least number of places of a task. If a task also rounds the sources within reach of its last place, there are more if that is far.
const PLACES_PER_TASK: usize = 512;
/// The smallest desired number of tasks; if there are few places, all sources are rounded first, and tasks take some panels each.
const MIN_TASKS: usize = 16;
/// Positions that a task rounds, if all sources are rounded first.
const POSITIONS_PER_TASK: usize = 128;
/// bf16 values of weights that stay in the cache while all rows of a task pass by.
const CACHED_WEIGHTS: usize = 1 << 17;

/// y = epilogue of x * weight, where x begins its parts at any channel.
pub(in super::super) fn forward(
    (isa, unit): (Isa, Unit),
    shape: &Conv2dShape,
    x: &Parts<'_>,
    weight: &[f32],
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let (taps, outputs) = (shape.taps(), shape.out_channels);
    let pack = |panels| by_outputs(unit, weight, outputs, taps, panels);
    let bias = epilogue.bias.map(|bias| {
        let mut padded = Scratch::zeroed(outputs.next_multiple_of(PANEL));
        padded[..outputs].copy_from_slice(bias);
        padded
    });
    let finish = Finish { bias: bias.as_deref(), residual: epilogue.residual, activation: epilogue.activation };
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    convolve((isa, unit), Flat::new(shape), x, outputs, pack, finish, &PartsMut::new(pixels, &mut [y]));
}

/// dx from dy; parts of dx begin at panels of channels. The image must not be enlarged.
pub(in super::super) fn input_grad(
    (isa, unit): (Isa, Unit),
    shape: &Conv2dShape,
    dy: &[f32],
    weight: &[f32],
    dx: &PartsMut<'_>,
) {
    // With step 1, the input gradient is a convolution with the reversed kernel.
    let pack = |panels| by_inputs(unit, weight, shape.out_channels, shape.taps(), panels);
    let dy = Parts::new(shape.batch * shape.out_height() * shape.out_width(), &[dy]);
    let finish = Finish { bias: None, residual: None, activation: ConvActivation::Identity };
    convolve((isa, unit), Flat::new(shape), &dy, shape.in_channels, pack, finish, dx);
}

/// What is done with sums before they are stored.
#[derive(Clone, Copy)]
struct Finish<'a> {
    /// Filled up to whole panels.
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    activation: ConvActivation,
}

/// target = finish of source * weight, for a weight packed by `pack`; parts of the target begin at panels of channels.
fn convolve(
    (isa, unit): (Isa, Unit),
    flat: Flat,
    source: &Parts<'_>,
    columns: usize,
    pack: impl Fn(Range<usize>) -> NarrowScratch + Sync + Send,
    finish: Finish<'_>,
    target: &PartsMut<'_>,
) {
    let (places, reach, taps) = (flat.places(), flat.reach(), flat.taps());
    let channels = source.channels();
    let panel_len = panel_len(taps.len(), channels);
    // Rows an odd number of cache lines apart do not collide in the cache.
    let stride = (channels.div_ceil(TERMS) | 1) * TERMS;
    let rounded = |range: Range<usize>, in_tasks: bool| rounded(unit, flat, source, range, stride, in_tasks);
    let far = PLACES_PER_TASK.max(4 * reach).next_multiple_of(ROWS);
    let (places_per_task, whole) = if places.div_ceil(far) >= MIN_TASKS {
        (far, None)
    } else {
        (PLACES_PER_TASK, Some(rounded(0..places.next_multiple_of(ROWS) + reach, true)))
    };
    let blocks = places.div_ceil(places_per_task);
    let all_panels = columns.div_ceil(PANEL);
    // Pairs of panels, as they are multiplied together.
    let pairs = all_panels.div_ceil(2);
    let panels_per_task = 2 * pairs.div_ceil(pairs.min(MIN_TASKS.div_ceil(blocks)));
    let groups = all_panels.div_ceil(panels_per_task);
    let packed = (blocks > 1).then(|| pack(0..all_panels));
    let runs: Vec<usize> = taps.iter().map(|tap| tap * stride).collect();
    for_each_task(blocks * groups, |task| {
        let block = task_range(task / groups, places_per_task, places);
        let panels = task_range(task % groups, panels_per_task, all_panels);
        let own = packed.is_none().then(|| pack(panels.clone()));
        let weights = match (&packed, &own) {
            (Some(packed), _) => packed.as_ptr().wrapping_add(panels.start * panel_len),
            (None, own) => own.as_ref().map_or(std::ptr::null(), NarrowScratch::as_ptr),
        };
        let rows = block.len().next_multiple_of(SIDE);
        let own = whole.is_none().then(|| rounded(block.start..block.start + rows + reach, false));
        let source = match (&whole, &own) {
            (Some(whole), _) => whole.as_ptr().wrapping_add(block.start * stride),
            (None, own) => own.as_ref().map_or(std::ptr::null(), NarrowScratch::as_ptr),
        };
        let session = Session::new(unit);
        let mut sums: Sums = [0.0; 4 * SIDE * SIDE];
        let mut pair = |panel: usize, at: usize| {
            let places = block.start + at..block.end.min(block.start + at + ROWS);
            if !flat.has_pixels(places.clone()) {
                return;
            }
            let left = Left {
                first: source.wrapping_add(at * stride),
                stride,
                second: (at + SIDE < rows).then_some(SIDE * stride),
                runs: &runs,
                steps: channels.div_ceil(TERMS),
            };
            let right = Right {
                first: weights.wrapping_add((panel - panels.start) * panel_len),
                second: (panel + 1 < panels.end).then_some(panel_len),
            };
            // SAFETY: the source holds all rows within reach, the panels are those of this task.
            unsafe { session.multiply(left, right, false, Target::of(&mut sums)) };
            flat.each_run(places, |row, pixels| {
                for (i, panel) in (panel..panels.end.min(panel + 2)).enumerate() {
                    store(isa, &sums, row, i, pixels.clone(), panel, finish, target);
                }
            });
        };
        let (rows, panels) = ((0..rows).step_by(ROWS), panels.clone().step_by(2));
        if panels.len() * 2 * panel_len <= CACHED_WEIGHTS {
            rows.for_each(|at| panels.clone().for_each(|panel| pair(panel, at)));
        } else {
            panels.for_each(|panel| rows.clone().for_each(|at| pair(panel, at)));
        }
    });
}

/// The source at the positions of `range`, in bf16, `[positions, stride]`, by several tasks or on this thread; zeros fill up the channels.
fn rounded(
    unit: Unit,
    flat: Flat,
    source: &Parts<'_>,
    range: Range<usize>,
    stride: usize,
    in_tasks: bool,
) -> NarrowScratch {
    let mut rounded = NarrowScratch::new(range.len() * stride);
    let size = if in_tasks { POSITIONS_PER_TASK } else { range.len() };
    let out = Shared::new(rounded.pairs());
    let channels = source.channels();
    for_each_task(range.len().div_ceil(size), |task| {
        let part = task_range(task, size, range.len());
        // `stride` is even.
        let to: *mut u16 = out.at(part.start * stride / 2).cast();
        let mut done = 0;
        // SAFETY: positions and channels are within the scratch memory, and these are the task's.
        let zeros =
            |from: usize, until: usize| unsafe { to.add(from * stride).write_bytes(0, (until - from) * stride) };
        flat.each_source(range.start + part.start..range.start + part.end, |at, pixel, count| {
            zeros(done, at);
            done = at + count;
            for &Part { values, first, channels } in source.iter() {
                let values = &values[pixel * channels..(pixel + count) * channels];
                // SAFETY: as above.
                unsafe { narrow_rows(unit, values.as_ptr(), channels, count, to.add(at * stride + first), stride) };
            }
            if channels < stride {
                for i in at..at + count {
                    // SAFETY: as above.
                    unsafe { to.add(i * stride + channels).write_bytes(0, stride - channels) };
                }
            }
        });
        zeros(done, part.len());
    });
    rounded
}

/// Stores the sums of one panel for neighbouring pixels, which begin in row `row` of the tiles.
#[allow(clippy::too_many_arguments, reason = "where from, where to, and how")]
fn store(
    isa: Isa,
    sums: &Sums,
    row: usize,
    column_tile: usize,
    pixels: Range<usize>,
    panel: usize,
    finish: Finish<'_>,
    target: &PartsMut<'_>,
) {
    let column = panel * PANEL;
    let Some(part) = target.iter().find(|part| (part.first..part.first + part.channels).contains(&column)) else {
        return;
    };
    let at = pixels.start * part.channels + column - part.first;
    let width = PANEL.min(part.channels - (column - part.first));
    let residual = finish.residual.map_or(std::ptr::null(), |residual| residual[at..].as_ptr());
    let bias = finish.bias.map_or(std::ptr::null(), |bias| bias[column..].as_ptr());
    let relu = finish.activation == ConvActivation::Relu;
    let rows = row..row + pixels.len();
    // SAFETY: the pixels are some of the target's, and no other task has this panel of them.
    unsafe {
        store_rows(isa, sums, column_tile, rows, bias, residual, part.values.at(at), part.channels, width, relu);
    }
}

simd_fn! {
    /// `to[i, j] = sums[row i, j] + bias[j] + residual[i, j]`, or the maximum of that and 0, for j < `width` <= 16; null for none. Rows of the target
    /// are `stride` values apart.
    ///
    /// # Safety
    /// All must be valid: the bias for 16 values, the others for `width` in each row.
    unsafe fn store_rows<S>(
        sums: &Sums,
        column_tile: usize,
        rows: Range<usize>,
        bias: *const f32,
        residual: *const f32,
        to: *mut f32,
        stride: usize,
        width: usize,
        relu: bool,
    ) {
        for (i, row) in rows.enumerate() {
            let sums = sums.as_ptr().add((row / SIDE * 2 + column_tile) * SIDE * SIDE + row % SIDE * SIDE);
            for at in (0..width).step_by(S::LANES) {
                let lanes = S::LANES.min(width - at);
                let mut sum = S::load(sums.add(at));
                if !bias.is_null() {
                    sum = S::add(sum, S::load(bias.add(at)));
                }
                if !residual.is_null() {
                    sum = S::add(sum, S::load_n(residual.add(i * stride + at), lanes));
                }
                if relu {
                    sum = S::max(S::splat(0.0), sum);
                }
                S::store_n(to.add(i * stride + at), sum, lanes);
            }
        }
    }
}
