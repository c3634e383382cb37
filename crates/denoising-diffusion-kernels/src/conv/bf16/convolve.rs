//! Forward pass and input gradient.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::matrix_unit::{Left, NarrowScratch, Right, SIDE, Session, Sums, TERMS, Unit, narrow_rows};
use crate::par::{Scratch, for_each_task, task_range};
use crate::simd::{Isa, simd_fn};

use super::super::pack::{input_panels, output_panels};
use super::super::parts::{Part, Parts, PartsMut};
use super::super::{Conv2dShape, ConvActivation, Epilogue};
use super::flat::Flat;
use super::weights::{first_of, tiles, tiles_len};

/// Rows of two tiles.
const ROWS: usize = 2 * SIDE;
/// The least number of places of a task. A task also rounds the sources within reach of its last place, so there are more if that is far.
const PLACES_PER_TASK: usize = 512;
/// The smallest desired number of tasks; if there are few places, tasks share them and take some panels each.
const MIN_TASKS: usize = 16;

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
    let flat = Flat::new(shape);
    let pack =
        |panels| tiles(isa, &output_panels(isa, weight, outputs, taps, panels, |tap| tap), taps, shape.in_channels);
    let bias = epilogue.bias.map(|bias| {
        let mut padded = Scratch::zeroed(outputs.next_multiple_of(PANEL));
        padded[..outputs].copy_from_slice(bias);
        padded
    });
    let finish = Finish { bias: bias.as_deref(), residual: epilogue.residual, activation: epilogue.activation };
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    convolve((isa, unit), flat, x, outputs, pack, finish, &PartsMut::new(pixels, &mut [y]));
}

/// dx from dy; parts of dx begin at panels of channels. The image must not be enlarged.
pub(in super::super) fn input_grad(
    (isa, unit): (Isa, Unit),
    shape: &Conv2dShape,
    dy: &[f32],
    weight: &[f32],
    dx: &PartsMut<'_>,
) {
    let (taps, inputs, outputs) = (shape.taps(), shape.in_channels, shape.out_channels);
    // With step 1, the input gradient is a convolution with the reversed kernel.
    let pack = |panels| {
        tiles(isa, &input_panels(isa, weight, outputs, taps, 0..inputs, panels, |tap| taps - 1 - tap), taps, outputs)
    };
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    let finish = Finish { bias: None, residual: None, activation: ConvActivation::Identity };
    convolve((isa, unit), Flat::new(shape), &Parts::new(pixels, &[dy]), inputs, pack, finish, dx);
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
    let tiles_len = tiles_len(taps.len(), channels);
    let places_per_task = PLACES_PER_TASK.max(4 * reach).next_multiple_of(ROWS);
    let blocks = places.div_ceil(places_per_task);
    let all_panels = columns.div_ceil(PANEL);
    // Pairs of panels, as they are multiplied together.
    let pairs = all_panels.div_ceil(2);
    let panels_per_task = 2 * pairs.div_ceil(pairs.min(MIN_TASKS.div_ceil(blocks)));
    let groups = all_panels.div_ceil(panels_per_task);
    let packed = (blocks > 1).then(|| pack(0..all_panels));
    // Rows an odd number of cache lines apart do not collide in the cache.
    let stride = (channels.div_ceil(TERMS) | 1) * TERMS;
    let runs: Vec<usize> = taps.iter().map(|tap| tap * stride).collect();
    for_each_task(blocks * groups, |task| {
        let block = task_range(task / groups, places_per_task, places);
        let panels = task_range(task % groups, panels_per_task, all_panels);
        let own = packed.is_none().then(|| pack(panels.clone()));
        let first = match (&packed, &own) {
            (Some(packed), _) => first_of(packed, &panels, tiles_len),
            (None, own) => own.as_ref().map_or(std::ptr::null(), NarrowScratch::as_ptr),
        };
        let rows = block.len().next_multiple_of(SIDE);
        let rounded = rounded(isa, flat, source, block.start..block.start + rows + reach, stride);
        let session = Session::new(unit);
        let mut sums: Sums = [0.0; 4 * SIDE * SIDE];
        for panel in panels.clone().step_by(2) {
            let right = Right {
                first: first.wrapping_add((panel - panels.start) * tiles_len),
                second: (panel + 1 < panels.end).then_some(tiles_len),
            };
            for at in (0..rows).step_by(ROWS) {
                let left = Left {
                    first: rounded.as_ptr().wrapping_add(at * stride),
                    stride,
                    second: (at + SIDE < rows).then_some(SIDE * stride),
                    runs: &runs,
                    steps: channels.div_ceil(TERMS),
                };
                // SAFETY: `rounded` holds all rows within reach, the panels are those of this task.
                unsafe { session.multiply(left, right, false, &mut sums) };
                let places = block.start + at..block.end.min(block.start + at + ROWS);
                flat.each_run(places, |row, pixels| {
                    for (i, panel) in (panel..panels.end.min(panel + 2)).enumerate() {
                        store(isa, &sums, row, i, pixels.clone(), panel, finish, target);
                    }
                });
            }
        }
    });
}

/// The source at the positions of `range`, in bf16, `[positions, stride]`; zeros fill up the channels.
fn rounded(isa: Isa, flat: Flat, source: &Parts<'_>, range: Range<usize>, stride: usize) -> NarrowScratch {
    let mut rounded = NarrowScratch::new(range.len() * stride);
    let channels = source.channels();
    let to = rounded.as_mut_ptr();
    let mut done = 0;
    // SAFETY: positions and channels are within the scratch memory.
    let zeros = |from: usize, until: usize| unsafe { to.add(from * stride).write_bytes(0, (until - from) * stride) };
    flat.each_source(range.clone(), |at, pixel, count| {
        zeros(done, at);
        done = at + count;
        for &Part { values, first, channels } in source.iter() {
            let values = &values[pixel * channels..(pixel + count) * channels];
            // SAFETY: as above.
            unsafe { narrow_rows(isa, values.as_ptr(), channels, count, to.add(at * stride + first), stride) };
        }
        if channels < stride {
            for i in at..at + count {
                // SAFETY: as above.
                unsafe { to.add(i * stride + channels).write_bytes(0, stride - channels) };
            }
        }
    });
    zeros(done, range.len());
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
