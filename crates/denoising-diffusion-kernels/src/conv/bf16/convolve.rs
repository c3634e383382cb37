//! Forward pass and input gradient.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::matrix_unit::{Left, NarrowScratch, ROWS, Right, SIDE, Session, Sums, TERMS, Target, Unit, narrow_rows};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, simd_fn};

use super::super::parts::{Part, Parts, PartsMut};
use super::super::{Conv2dShape, ConvActivation, Epilogue};
use super::flat::Flat;
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
    let bias = epilogue.bias.map(|bias| {
        let mut padded = Scratch::zeroed(outputs.next_multiple_of(PANEL));
        padded[..outputs].copy_from_slice(bias);
        padded
    });
    let finish = Finish { bias: bias.as_deref(), residual: epilogue.residual, activation: epilogue.activation };
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    let target = &mut [y];
    let target = PartsMut::new(pixels, target);
    let convolution = Convolution::new((isa, unit), shape, x, finish, &target);
    convolution.run(outputs, |panels| by_outputs(unit, weight, outputs, taps, panels));
}

/// dx from dy; parts of dx begin at panels of channels. The image must not be enlarged.
pub(in super::super) fn input_grad(
    (isa, unit): (Isa, Unit),
    shape: &Conv2dShape,
    dy: &[f32],
    weight: &[f32],
    dx: &PartsMut<'_>,
) {
    let dy = Parts::new(shape.batch * shape.out_height() * shape.out_width(), &[dy]);
    let finish = Finish { bias: None, residual: None, activation: ConvActivation::Identity };
    let convolution = Convolution::new((isa, unit), shape, &dy, finish, dx);
    // With step 1, the input gradient is a convolution with the reversed kernel.
    convolution.run(shape.in_channels, |panels| by_inputs(unit, weight, shape.out_channels, shape.taps(), panels));
}

/// What is done with sums before they are stored.
#[derive(Clone, Copy)]
struct Finish<'a> {
    /// Filled up to whole panels.
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    activation: ConvActivation,
}

/// target = finish of source * weight; parts of the target begin at panels of channels.
struct Convolution<'a> {
    isa: Isa,
    unit: Unit,
    flat: Flat,
    source: &'a Parts<'a>,
    channels: usize,
    /// bf16 values from one position of the rounded source to the next.
    stride: usize,
    /// Where the terms of each kernel position begin, in such values.
    runs: Vec<usize>,
    /// bf16 values of a panel of weights.
    panel_len: usize,
    finish: Finish<'a>,
    target: &'a PartsMut<'a>,
}

/// Both factors of a task, from its first place and panel on.
#[derive(Clone, Copy)]
struct Prepared {
    source: *const u16,
    weights: *const u16,
}

impl<'a> Convolution<'a> {
    fn new(
        (isa, unit): (Isa, Unit),
        shape: &Conv2dShape,
        source: &'a Parts<'a>,
        finish: Finish<'a>,
        target: &'a PartsMut<'a>,
    ) -> Self {
        let (flat, channels) = (Flat::new(shape), source.channels());
        // Rows an odd number of cache lines apart do not collide in the cache.
        let stride = (channels.div_ceil(TERMS) | 1) * TERMS;
        let runs = flat.taps().iter().map(|tap| tap * stride).collect();
        let panel_len = panel_len(shape.taps(), channels);
        Self { isa, unit, flat, source, channels, stride, runs, panel_len, finish, target }
    }

    /// Computes `columns` columns of the target, for a weight that `pack` packs by panels.
    fn run(&self, columns: usize, pack: impl Fn(Range<usize>) -> NarrowScratch + Sync + Send) {
        let (places, reach) = (self.flat.places(), self.flat.reach());
        let far = PLACES_PER_TASK.max(4 * reach).next_multiple_of(ROWS);
        let (places_per_task, whole) = if places.div_ceil(far) >= MIN_TASKS {
            (far, None)
        } else {
            (PLACES_PER_TASK, Some(self.rounded(0..places.next_multiple_of(ROWS) + reach, true)))
        };
        let blocks = places.div_ceil(places_per_task);
        let all_panels = columns.div_ceil(PANEL);
        // Pairs of panels, as they are multiplied together.
        let pairs = all_panels.div_ceil(2);
        let panels_per_task = 2 * pairs.div_ceil(pairs.min(MIN_TASKS.div_ceil(blocks)));
        let groups = all_panels.div_ceil(panels_per_task);
        // Otherwise each task has panels of its own.
        let packed = (blocks > 1).then(|| pack(0..all_panels));
        for_each_task(blocks * groups, |task| {
            let block = task_range(task / groups, places_per_task, places);
            let panels = task_range(task % groups, panels_per_task, all_panels);
            let (mut own_weights, mut own_source) = (None, None);
            let weights = match &packed {
                Some(packed) => packed.as_ptr().wrapping_add(panels.start * self.panel_len),
                None => own_weights.insert(pack(panels.clone())).as_ptr(),
            };
            let source = match &whole {
                Some(whole) => whole.as_ptr().wrapping_add(block.start * self.stride),
                None => {
                    let end = block.start + block.len().next_multiple_of(SIDE) + reach;
                    own_source.insert(self.rounded(block.start..end, false)).as_ptr()
                }
            };
            self.block(Prepared { source, weights }, block, panels);
        });
    }

    /// Computes some panels of a block of places.
    fn block(&self, prepared: Prepared, places: Range<usize>, panels: Range<usize>) {
        let (session, mut sums) = (Session::new(self.unit), [0.0; 4 * SIDE * SIDE]);
        let rows = (0..places.len()).step_by(ROWS);
        let pairs = panels.clone().step_by(2);
        let mut pair = |panel: usize, row: usize| {
            self.pair(&session, prepared, (&places, row), (&panels, panel), &mut sums);
        };
        if panels.len() * self.panel_len <= CACHED_WEIGHTS {
            rows.for_each(|row| pairs.clone().for_each(|panel| pair(panel, row)));
        } else {
            pairs.for_each(|panel| rows.clone().for_each(|row| pair(panel, row)));
        }
    }

    /// Computes a pair of panels, from `panel` on, at the places of a pair of tiles, from the `row`-th of these on.
    fn pair(
        &self,
        session: &Session,
        prepared: Prepared,
        (places, row): (&Range<usize>, usize),
        (panels, panel): (&Range<usize>, usize),
        sums: &mut Sums,
    ) {
        let of_tiles = places.start + row..places.end.min(places.start + row + ROWS);
        if !self.flat.has_pixels(of_tiles.clone()) {
            return;
        }
        let left = Left {
            first: prepared.source.wrapping_add(row * self.stride),
            stride: self.stride,
            second: (of_tiles.len() > SIDE).then_some(SIDE * self.stride),
            runs: &self.runs,
            steps: self.channels.div_ceil(TERMS),
        };
        let right = Right {
            first: prepared.weights.wrapping_add((panel - panels.start) * self.panel_len),
            second: (panel + 1 < panels.end).then_some(self.panel_len),
        };
        // SAFETY: the source holds all positions within reach, whole tiles of them; the panels are the task's.
        unsafe { session.multiply(left, right, false, Target::of(sums)) };
        self.flat.each_run(of_tiles, |row, pixels| {
            for (i, panel) in (panel..panels.end.min(panel + 2)).enumerate() {
                self.store(sums, row, i, pixels.clone(), panel);
            }
        });
    }

    /// The source at the positions of `range`, in bf16, `[positions, stride]`, by several tasks or on this thread; zeros fill up the channels.
    fn rounded(&self, range: Range<usize>, in_tasks: bool) -> NarrowScratch {
        let stride = self.stride;
        let mut rounded = NarrowScratch::new(range.len() * stride);
        let size = if in_tasks { POSITIONS_PER_TASK } else { range.len() };
        let out = Shared::new(rounded.pairs());
        for_each_task(range.len().div_ceil(size), |task| {
            let part = task_range(task, size, range.len());
            // `stride` is even.
            let to: *mut u16 = out.at(part.start * stride / 2).cast();
            let mut done = 0;
            // SAFETY: positions and channels are within the scratch memory, and these are the task's.
            let zeros =
                |from: usize, until: usize| unsafe { to.add(from * stride).write_bytes(0, (until - from) * stride) };
            self.flat.each_source(range.start + part.start..range.start + part.end, |at, pixel, count| {
                zeros(done, at);
                done = at + count;
                for &Part { values, first, channels } in self.source.iter() {
                    let values = &values[pixel * channels..(pixel + count) * channels];
                    let to = to.wrapping_add(at * stride + first);
                    // SAFETY: as above.
                    unsafe { narrow_rows(self.unit, values.as_ptr(), channels, count, to, stride) };
                }
                if self.channels < stride {
                    for i in at..at + count {
                        // SAFETY: as above.
                        unsafe { to.add(i * stride + self.channels).write_bytes(0, stride - self.channels) };
                    }
                }
            });
            zeros(done, part.len());
        });
        rounded
    }

    /// Stores the sums of one panel for neighbouring pixels, which begin in row `row` of the tiles.
    fn store(&self, sums: &Sums, row: usize, column_tile: usize, pixels: Range<usize>, panel: usize) {
        let column = panel * PANEL;
        let mut parts = self.target.iter();
        let Some(part) = parts.find(|part| (part.first..part.first + part.channels).contains(&column)) else {
            return;
        };
        let Finish { bias, residual, activation } = self.finish;
        let at = pixels.start * part.channels + column - part.first;
        let width = PANEL.min(part.channels - (column - part.first));
        let residual = residual.map_or(std::ptr::null(), |residual| residual[at..].as_ptr());
        let bias = bias.map_or(std::ptr::null(), |bias| bias[column..].as_ptr());
        let relu = activation == ConvActivation::Relu;
        let rows = row..row + pixels.len();
        // SAFETY: the pixels are some of the target's, and no other task has this panel of them.
        unsafe {
            let to = part.values.at(at);
            store_rows(self.isa, sums, column_tile, rows, bias, residual, to, part.channels, width, relu);
        }
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
