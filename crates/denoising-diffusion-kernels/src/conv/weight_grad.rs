//! Weight gradient: dweight[o, c, u, v] = sum over pixels p of dy[p, o] x[p shifted by (u, v), c].
//!
//! x is packed once into padded panels of sixteen channels, `[panels, batch, rows, columns, 16]`, where every kernel position is a
//! constant shift; then [`outer_sum`] streams through it and dy. Kernels of one position and inputs of few channels take the
//! path in [`super::patch_grad`].

use crate::gemm::{PANEL, ROWS, outer_sum, tile_rows};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

use super::{Conv2dShape, disjoint, patch_grad};

/// Pixels whose panel of x (8 KiB) stays in the first-level cache.
const PIXELS_PER_CHUNK: usize = 128;
/// Output channels that a task covers.
const CHANNELS_PER_TASK: usize = 64;
/// Tasks wanted at least, by splitting the sum over pixels where the weight is small.
const MIN_TASKS: usize = 16;

/// x in panels, and where to find each output pixel in a panel.
struct Panels {
    values: Scratch,
    /// Values of one panel.
    panel_len: usize,
    /// Shift of each kernel position, in values.
    shifts: Vec<usize>,
    /// Where each output pixel begins, in values.
    offsets: Vec<usize>,
}

pub(super) fn weight_grad(isa: Isa, shape: &Conv2dShape, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    if shape.taps() == 1 || shape.in_channels < PANEL || disjoint::applies(shape) {
        return patch_grad::weight_grad(isa, shape, x, dy, dweight);
    }
    let (inputs, outputs) = (shape.in_channels, shape.out_channels);
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    let panels = padded(shape, x);
    let groups = outputs.div_ceil(CHANNELS_PER_TASK);
    let rows = outputs;

    let taps = shape.taps();
    let row_len = taps * PANEL;
    let panel_count = inputs.div_ceil(PANEL);
    let chunks = pixels.div_ceil(PIXELS_PER_CHUNK);
    let chunks_per_task = chunks.div_ceil(chunks.min(MIN_TASKS.div_ceil(panel_count * groups)));
    let splits = chunks.div_ceil(chunks_per_task);

    // [splits, panels, rows, taps, 16]
    let mut sums = Scratch::zeroed(splits * panel_count * rows * row_len);
    let out = Shared::new(&mut sums);
    for_each_task(splits * panel_count * groups, |task| {
        let (split, panel, group) = (task / (panel_count * groups), task / groups % panel_count, task % groups);
        let group = task_range(group, CHANNELS_PER_TASK, outputs);
        let dst = (split * panel_count + panel) * rows;
        for chunk in task_range(split, chunks_per_task, chunks) {
            let chunk = task_range(chunk, PIXELS_PER_CHUNK, pixels);
            let offsets = &panels.offsets[chunk.clone()];
            for (tap, shift) in panels.shifts.iter().enumerate() {
                let x = panels.values[panel * panels.panel_len + shift..].as_ptr();
                for tile in (0..group.len().div_ceil(ROWS)).map(|tile| tile_rows(group.len(), tile)) {
                    let start = group.start + tile.start;
                    let a = &dy[chunk.start * outputs + start..];
                    let dst = out.at((dst + start) * row_len + tap * PANEL);
                    // SAFETY: `padded` makes room for all offsets plus shifts; a task alone writes its split, panel and group.
                    unsafe { outer_sum(isa, tile.len(), a, outputs, x, offsets, dst, row_len) };
                }
            }
        }
    });
    reduce(&sums, splits, panel_count, rows, taps, inputs, dweight);
}

/// dweight[o, c, tap] = sum over splits of sums[split, c / 16, o, tap, c % 16]
fn reduce(sums: &[f32], splits: usize, panels: usize, rows: usize, taps: usize, channels: usize, dweight: &mut [f32]) {
    let row_len = channels * taps;
    let outputs = dweight.len() / row_len;
    let out = Shared::new(dweight);
    for_each_task(outputs, |o| {
        // SAFETY: every task has its own row.
        let row = unsafe { out.part(o * row_len..(o + 1) * row_len) };
        for panel in 0..panels {
            let lanes = (channels - panel * PANEL).min(PANEL);
            let row = &mut row[panel * PANEL * taps..][..lanes * taps];
            for split in 0..splits {
                let sums = &sums[((split * panels + panel) * rows + o) * taps * PANEL..][..taps * PANEL];
                for (tap, sums) in sums.chunks_exact(PANEL).enumerate() {
                    for (lane, &sum) in sums[..lanes].iter().enumerate() {
                        let value = &mut row[lane * taps + tap];
                        *value = if split == 0 { sum } else { *value + sum };
                    }
                }
            }
        }
    });
}

/// The padded input, `[panels, batch, rows, columns, 16]`.
fn padded(shape: &Conv2dShape, x: &[f32]) -> Panels {
    let Conv2dShape { batch, height, width, in_channels, kernel, stride, padding, .. } = *shape;
    let (rows, columns) = (height + 2 * padding, width + 2 * padding);
    let image_len = rows * columns * PANEL;
    let panel_len = batch * image_len;
    let panels = in_channels.div_ceil(PANEL);
    let mut values = Scratch::new(panels * panel_len);
    let out = Shared::new(&mut values);
    for_each_task(panels * batch, |task| {
        let (panel, image) = (task / batch, task % batch);
        // SAFETY: every task has its own image of its own panel.
        let target = unsafe { out.part(task * image_len..(task + 1) * image_len) };
        let lanes = (in_channels - panel * PANEL).min(PANEL);
        if padding > 0 || lanes < PANEL {
            target.fill(0.0);
        }
        for i in 0..height {
            let source = &x[(image * height + i) * width * in_channels..][..width * in_channels];
            let target = &mut target[((i + padding) * columns + padding) * PANEL..][..width * PANEL];
            for (target, source) in target.chunks_exact_mut(PANEL).zip(source.chunks_exact(in_channels)) {
                target[..lanes].copy_from_slice(&source[panel * PANEL..][..lanes]);
            }
        }
    });
    let mut offsets = Vec::with_capacity(batch * shape.out_height() * shape.out_width());
    for image in 0..batch {
        for i in 0..shape.out_height() {
            let row = (image * rows + i * stride) * columns;
            offsets.extend((0..shape.out_width()).map(|j| (row + j * stride) * PANEL));
        }
    }
    let shifts = (0..kernel[0]).flat_map(|u| (0..kernel[1]).map(move |v| (u * columns + v) * PANEL)).collect();
    Panels { values, panel_len, shifts, offsets }
}
