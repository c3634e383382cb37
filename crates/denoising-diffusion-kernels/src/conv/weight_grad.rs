//! Weight gradient: dweight[o, c, u, v] = sum over pixels p of dy[p, o] x[p shifted by (u, v), c].
//!
//! x is packed once into padded panels of sixteen channels, `[panels, batch, rows, columns, 16]`, in which every kernel position is a constant shift;
//! then [`outer_products_at`] streams through it and dy. Not here: kernels of one position and inputs of few channels ([`super::patch_grad`]).

use crate::gemm::{PANEL, outer_products_at, spaced};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

use super::patch_grad::add_up;
use super::{Conv2dShape, disjoint, patch_grad};

/// Number of pixels whose panel of x (8 KiB) stays in the first-level cache.
const PIXELS_PER_CHUNK: usize = 128;
/// Number of output channels per task.
const CHANNELS_PER_TASK: usize = 64;
/// The smallest desired number of tasks; if the weight is small, the sum over pixels is divided.
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
    let panel_count = inputs.div_ceil(PANEL);
    let chunks = pixels.div_ceil(PIXELS_PER_CHUNK);
    let chunks_per_task = chunks.div_ceil(chunks.min(MIN_TASKS.div_ceil(panel_count * groups)));
    let splits = chunks.div_ceil(chunks_per_task);

    let (taps, row_len) = (shape.taps(), inputs * shape.taps());
    let mut partial = Scratch::new(if splits > 1 { splits * dweight.len() } else { 0 });
    let out = Shared::new(if splits > 1 { &mut partial } else { &mut *dweight });
    for_each_task(splits * panel_count * groups, |task| {
        let (split, panel, group) = (task / (panel_count * groups), task / groups % panel_count, task % groups);
        let group = task_range(group, CHANNELS_PER_TASK, outputs);
        // [channels of the group, taps, 16]
        let mut sums = Scratch::new(group.len() * taps * PANEL);
        // The chunk's part of dy, in rows that do not collide in the cache.
        let stride = spaced(group.len());
        let mut a = Scratch::new(PIXELS_PER_CHUNK * stride);
        for (i, chunk) in task_range(split, chunks_per_task, chunks).enumerate() {
            let chunk = task_range(chunk, PIXELS_PER_CHUNK, pixels);
            let rows = dy[chunk.start * outputs..chunk.end * outputs].chunks_exact(outputs);
            for (to, from) in a.chunks_exact_mut(stride).zip(rows) {
                to[..group.len()].copy_from_slice(&from[group.clone()]);
            }
            let offsets = &panels.offsets[chunk];
            let x = panels.values[panel * panels.panel_len..].as_ptr();
            // SAFETY: `padded` has room for all offsets plus shifts; `sums` has a row for every channel of the group.
            unsafe {
                let dst = sums.as_mut_ptr();
                outer_products_at(isa, group.len(), &a, stride, x, &panels.shifts, offsets, i > 0, dst);
            }
        }
        let lanes = (inputs - panel * PANEL).min(PANEL);
        for (o, sums) in group.zip(sums.chunks_exact(taps * PANEL)) {
            let at = (split * outputs + o) * row_len + panel * PANEL * taps;
            // SAFETY: only one task writes each split, panel and group.
            let row = unsafe { out.part(at..at + lanes * taps) };
            for (lane, row) in row.chunks_exact_mut(taps).enumerate() {
                for (value, sums) in row.iter_mut().zip(sums.chunks_exact(PANEL)) {
                    *value = sums[lane];
                }
            }
        }
    });
    if splits > 1 {
        add_up(&partial, dweight);
    }
}

/// The padded input, `[panels, batch, rows, columns, 16]`.
fn padded(shape: &Conv2dShape, x: &[f32]) -> Panels {
    let Conv2dShape { batch, height, width, in_channels, kernel, stride, padding, .. } = *shape;
    let (rows, columns) = (height + 2 * padding[0], width + 2 * padding[1]);
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
        if padding != [0; 2] || lanes < PANEL {
            target.fill(0.0);
        }
        for i in 0..height {
            let source = &x[(image * height + i) * width * in_channels..][..width * in_channels];
            let target = &mut target[((i + padding[0]) * columns + padding[1]) * PANEL..][..width * PANEL];
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
