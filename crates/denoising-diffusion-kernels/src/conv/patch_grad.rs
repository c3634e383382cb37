//! Weight gradients as one sum over all pixels of outer products of dy and patches of x. Patches only exist sixteen columns wide, for a chunk of
//! pixels at a time, in the cache.
//!
//! For kernels of one position, kernels whose windows do not overlap, and inputs of few channels. Not here: the others, for which one copy of x
//! serves all kernel positions ([`super::weight_grad`]).

use crate::gemm::{PANEL, outer_products};
use crate::par::{ELEMENTS_PER_TASK, Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, prefetch_far, simd_fn};

use super::Conv2dShape;
use super::windows::Windows;

/// Number of pixels per chunk; their sixteen columns (8 KiB) stay in the first-level cache.
const PIXELS_PER_CHUNK: usize = 128;
/// Number of chunks that justify a set of partial sums, which have to be added up.
const CHUNKS_PER_SPLIT: usize = 8;
/// The smallest desired number of tasks.
const MIN_TASKS: usize = 16;

/// Up to sixteen columns of the patches.
pub(super) struct Panel {
    /// Which of the sources they come from.
    source: usize,
    /// Where they begin in a row of the gradient.
    at: usize,
    /// Number of columns, 1 to 16.
    width: usize,
    /// Runs of columns that are neighbours in the source.
    runs: Vec<Run>,
}

#[derive(Clone, Copy)]
struct Run {
    /// Where the run begins, relative to the beginning of the window.
    shift: usize,
    /// Its first column.
    lane: usize,
    len: usize,
}

impl Panel {
    /// Panels over `len` neighbouring values that begin `shift` after the beginning of a window; columns are counted from `first`.
    pub(super) fn cover(source: usize, shift: usize, len: usize, first: usize) -> impl Iterator<Item = Panel> {
        (0..len).step_by(PANEL).map(move |at| {
            let width = PANEL.min(len - at);
            Panel { source, at: first + at, width, runs: vec![Run { shift: shift + at, lane: 0, len: width }] }
        })
    }

    /// Panels over windows of `rows` times `len` neighbouring values, whose rows are `row_step` apart; a panel may hold parts of several rows.
    fn cover_rows(rows: usize, len: usize, row_step: usize) -> Vec<Panel> {
        let depth = rows * len;
        let panel = |at: usize| {
            let end = depth.min(at + PANEL);
            let runs = (at / len..=(end - 1) / len).map(|row| {
                let (from, to) = (at.max(row * len), end.min((row + 1) * len));
                Run { shift: row * row_step + from - row * len, lane: from - at, len: to - from }
            });
            Panel { source: 0, at, width: end - at, runs: runs.collect() }
        };
        (0..depth).step_by(PANEL).map(panel).collect()
    }

    /// `lines[m, lane] = source[offsets[m] + shift of the lane]`, for increasing offsets; `lines` must have one spare line.
    fn copy(&self, isa: Isa, source: &[f32], offsets: &[usize], lines: &mut [f32]) {
        assert!((offsets.len() + 1) * PANEL <= lines.len() && self.runs.iter().all(|run| run.lane < PANEL));
        let last = self.runs.last().map_or(0, |run| run.shift + PANEL);
        let whole = offsets.partition_point(|offset| offset + last <= source.len());
        // SAFETY: shifts and offsets increase, so sixteen values from each lie inside the source.
        unsafe { copy_lines(isa, source.as_ptr(), &offsets[..whole], &self.runs, lines.as_mut_ptr()) };
        for (m, &offset) in offsets.iter().enumerate().skip(whole) {
            for run in &self.runs {
                lines[m * PANEL + run.lane..][..run.len].copy_from_slice(&source[offset + run.shift..][..run.len]);
            }
        }
    }
}

simd_fn! {
    /// Copies one or two vectors of each run for each line. Surplus values are overwritten by the next run or line, or not used.
    ///
    /// # Safety
    /// All addresses must be valid.
    unsafe fn copy_lines<S>(source: *const f32, offsets: &[usize], runs: &[Run], lines: *mut f32) {
        // Prefetches the same columns of the next chunk, if it follows in memory, while this one is used.
        let ahead = offsets.last().map_or(0, |last| last - offsets[0]);
        for (m, &offset) in offsets.iter().enumerate() {
            for run in runs {
                let (from, to) = (source.add(offset + run.shift), lines.add(m * PANEL + run.lane));
                prefetch_far(from.wrapping_add(ahead));
                S::store(to, S::load(from));
                if run.len > S::LANES {
                    S::store(to.add(S::LANES), S::load(from.add(S::LANES)));
                }
            }
        }
    }
}

/// `sums[o, panel columns] = sum over pixels p of dy[p, o] * sources[panel source][offset of p + shift of the column]`
///
/// `offsets(source, pixels, out)` says where the windows of `pixels` begin. `sums` is `[outputs, row_len]`; the panels cover its rows.
#[allow(clippy::too_many_arguments, reason = "what to add up, over what, and where to")]
pub(super) fn sum_over_pixels(
    isa: Isa,
    sources: &[&[f32]],
    panels: &[Panel],
    offsets: impl Fn(usize, std::ops::Range<usize>, &mut [usize]) + Sync + Send,
    dy: &[f32],
    outputs: usize,
    row_len: usize,
    sums: &mut [f32],
) {
    let pixels = dy.len() / outputs;
    let chunks = pixels.div_ceil(PIXELS_PER_CHUNK);
    let chunks_per_split = chunks.div_ceil((chunks / CHUNKS_PER_SPLIT).clamp(1, MIN_TASKS));
    let splits = chunks.div_ceil(chunks_per_split);
    let panels_per_task = panels.len().div_ceil(panels.len().min(MIN_TASKS.div_ceil(splits)));
    let groups = panels.len().div_ceil(panels_per_task);

    let split_len = outputs * row_len;
    let mut partial = Scratch::new(if splits > 1 { splits * split_len } else { 0 });
    let out = Shared::new(if splits > 1 { &mut partial } else { &mut *sums });
    for_each_task(splits * groups, |task| {
        let (split, group) = (task / groups, task % groups);
        // One more line for the surplus values that `copy` writes.
        let mut lines = Scratch::new((PIXELS_PER_CHUNK + 1) * PANEL);
        let mut starts = [0; PIXELS_PER_CHUNK];
        for (i, chunk) in task_range(split, chunks_per_split, chunks).enumerate() {
            let chunk = task_range(chunk, PIXELS_PER_CHUNK, pixels);
            let count = chunk.len();
            let mut source = usize::MAX;
            let next = dy.get(chunk.end * outputs..(chunk.end + count) * outputs).unwrap_or_default();
            let panels = &panels[task_range(group, panels_per_task, panels.len())];
            for (panel, ahead) in panels
                .iter()
                .zip(next.chunks(next.len().div_ceil(panels.len()).max(1)).chain(std::iter::repeat(&[][..])))
            {
                if source != panel.source {
                    source = panel.source;
                    offsets(source, chunk.clone(), &mut starts);
                }
                panel.copy(isa, sources[source], &starts[..count], &mut lines);
                let (a, b) = (dy[chunk.start * outputs..].as_ptr(), lines.as_ptr());
                let dst = out.at(split * split_len + panel.at);
                // SAFETY: the chunk has `count` rows in dy and in `lines`; only one task writes each split and group.
                unsafe {
                    outer_products(isa, outputs, panel.width, count, a, outputs, b, PANEL, i > 0, dst, row_len, ahead);
                }
            }
        }
    });
    if splits > 1 {
        add_up(&partial, sums);
    }
}

/// Adds up the sets of partial sums.
pub(super) fn add_up(partial: &[f32], sums: &mut [f32]) {
    let len = sums.len();
    let out = Shared::new(sums);
    for_each_task(len.div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, len);
        // SAFETY: every task has its own range.
        let sums = unsafe { out.part(range.clone()) };
        sums.copy_from_slice(&partial[range.clone()]);
        for partial in partial.chunks_exact(len).skip(1) {
            for (sum, value) in sums.iter_mut().zip(&partial[range.clone()]) {
                *sum += value;
            }
        }
    });
}

/// Weight gradient of any shape, best for kernels whose windows do not overlap and for inputs of few channels.
pub(super) fn weight_grad(isa: Isa, shape: &Conv2dShape, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let windows = Windows::of_input(shape, x);
    let [rows, columns] = shape.kernel;
    let panels = Panel::cover_rows(rows, columns * shape.in_channels, windows.row_step);
    let depth = shape.taps() * shape.in_channels;
    // [outputs, taps, inputs]
    let mut sums = Scratch::new(shape.out_channels * depth);
    let offsets = |_: usize, pixels: std::ops::Range<usize>, offsets: &mut [usize]| {
        for (to, offset) in offsets.iter_mut().zip(windows.offsets(pixels)) {
            *to = offset;
        }
    };
    sum_over_pixels(isa, &[windows.values()], &panels, offsets, dy, shape.out_channels, depth, &mut sums);
    let out = Shared::new(dweight);
    for_each_task(shape.out_channels, |o| {
        // SAFETY: every task has its own row.
        let row = unsafe { out.part(o * depth..(o + 1) * depth) };
        let sums = &sums[o * depth..(o + 1) * depth];
        for (c, row) in row.chunks_exact_mut(shape.taps()).enumerate() {
            for (value, sums) in row.iter_mut().zip(sums.chunks_exact(shape.in_channels)) {
                *value = sums[c];
            }
        }
    });
}
