//! Weight gradient of 1 x 1 kernels and of inputs of few channels, as a product over patches: each task takes a share of the pixels,
//! a chunk of them at a time, so that patches exist only in the cache.

use crate::gemm::{PANEL, outer_sum, tile_heights};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

use super::Conv2dShape;
use super::direct::{Direction, Gather};
use super::weight_grad::TiledRows;

/// Pixels of a chunk.
const PIXELS_PER_CHUNK: usize = 128;
/// Tasks wanted at least.
const MIN_TASKS: usize = 16;
/// Values of partial sums, all tasks together, that splitting the pixels may cost.
const MAX_PARTIAL_SUMS: usize = 1 << 20;

pub(super) fn weight_grad(isa: Isa, shape: &Conv2dShape, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let gather = Gather::new(Direction::Forward, shape, x);
    let pixels = gather.target_pixels();
    let depth = shape.taps() * shape.in_channels;
    let stride = depth.next_multiple_of(PANEL);
    let borrow = gather.is_pointwise() && stride == depth;
    let heights = tile_heights(shape.out_channels);
    let rows = heights.iter().sum::<usize>();

    let chunks = pixels.div_ceil(PIXELS_PER_CHUNK);
    let wanted = (MAX_PARTIAL_SUMS / (rows * stride)).clamp(1, MIN_TASKS);
    let chunks_per_task = chunks.div_ceil(wanted.min(chunks));
    let splits = chunks.div_ceil(chunks_per_task);
    let panels = stride / PANEL;
    let panels_per_task = panels.div_ceil(panels.min(MIN_TASKS.div_ceil(splits)));
    let groups = panels.div_ceil(panels_per_task);

    // [splits, rows, patch]
    let mut sums = Scratch::zeroed(splits * rows * stride);
    let out = Shared::new(&mut sums);
    for_each_task(splits * groups, |task| {
        let (split, group) = (task / groups, task % groups);
        let mut lines = Scratch::new(PIXELS_PER_CHUNK * PANEL);
        for chunk in task_range(split, chunks_per_task, chunks) {
            let chunk = task_range(chunk, PIXELS_PER_CHUNK, pixels);
            let copied = (!borrow).then(|| gather.patches(chunk.clone(), stride));
            let b = copied.as_deref().unwrap_or_else(|| &x[chunk.start * stride..chunk.end * stride]);
            let channels = shape.out_channels;
            let dy = TiledRows::new(&dy[chunk.start * channels..chunk.end * channels], channels, rows);
            let offsets: Vec<usize> = (0..chunk.len()).map(|pixel| pixel * PANEL).collect();
            for panel in task_range(group, panels_per_task, panels) {
                // Rows a power of two apart would collide in the cache.
                for (to, from) in lines.chunks_exact_mut(PANEL).zip(b.chunks_exact(stride)) {
                    to.copy_from_slice(&from[panel * PANEL..][..PANEL]);
                }
                let b = lines.as_ptr();
                let mut start = 0;
                for &height in &heights {
                    let dst = out.at((split * rows + start) * stride + panel * PANEL);
                    // SAFETY: rows of `b` are whole panels; a task alone writes its split and group.
                    unsafe { outer_sum(isa, height, &dy.values()[start..], dy.stride, b, &offsets, dst, stride) };
                    start += height;
                }
            }
        }
    });
    reduce(shape, &sums, splits, dweight);
}

/// dweight[o, c, tap] = sum over splits of sums[split, o, tap, c]
fn reduce(shape: &Conv2dShape, sums: &[f32], splits: usize, dweight: &mut [f32]) {
    let (taps, inputs) = (shape.taps(), shape.in_channels);
    let depth = taps * inputs;
    let stride = depth.next_multiple_of(PANEL);
    let split_len = sums.len() / splits;
    let out = Shared::new(dweight);
    for_each_task(shape.out_channels, |o| {
        // SAFETY: every task has its own row.
        let row = unsafe { out.part(o * depth..(o + 1) * depth) };
        for split in 0..splits {
            let sums = &sums[split * split_len + o * stride..][..depth];
            for (k, &sum) in sums.iter().enumerate() {
                let value = &mut row[k % inputs * taps + k / inputs];
                *value = if split == 0 { sum } else { *value + sum };
            }
        }
    });
}
