//! Weights `[outputs, inputs, taps]` as panels of sixteen columns, `[columns / 16, terms of a sum, 16]`, for the products in
//! [`crate::gemm`]. Packing is a transposition; where a product has few rows, its time counts.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::par::{Scratch, Shared, for_each_task};
use crate::simd::{EightLanes, Isa, SQUARE, Simd, simd_fn};

/// Panels `range` of output channels: `[panels, taps * inputs, 16]`, for products with sources of `inputs` channels. `tap(t)` is the position of
/// kernel position t in the panel.
pub(super) fn output_panels(
    isa: Isa,
    weight: &[f32],
    outputs: usize,
    taps: usize,
    range: Range<usize>,
    tap: impl Fn(usize) -> usize + Sync + Send,
) -> Scratch {
    let depth = weight.len() / outputs;
    let inputs = depth / taps;
    let line = |k: usize| if taps == 1 { k } else { tap(k % taps) * inputs + k / taps };
    panels(outputs, depth, range, |first, lanes, packed| {
        transpose(isa, &weight[first * depth..], depth, lanes, depth, packed, line);
    })
}

/// Panels `range` of the input channels `columns`: `[panels, taps * outputs, 16]`, for products with gradients of the output. `tap(t)` is the
/// position of kernel position t in the panel.
pub(super) fn input_panels(
    isa: Isa,
    weight: &[f32],
    outputs: usize,
    taps: usize,
    columns: Range<usize>,
    range: Range<usize>,
    tap: impl Fn(usize) -> usize + Sync + Send,
) -> Scratch {
    let row_len = weight.len() / outputs;
    panels(columns.len(), taps * outputs, range, |first, lanes, packed| {
        for o in 0..outputs {
            let source = &weight[o * row_len + (columns.start + first) * taps..];
            if taps == 1 && lanes == PANEL {
                packed[o * PANEL..][..PANEL].copy_from_slice(&source[..PANEL]);
            } else {
                transpose(isa, source, taps, lanes, taps, packed, |t| tap(t) * outputs + o);
            }
        }
    })
}

/// The panels `range`, of `depth` lines, among those that cover `columns`, each filled by `fill(first column, columns, panel)`.
fn panels(
    columns: usize,
    depth: usize,
    range: Range<usize>,
    fill: impl Fn(usize, usize, &mut [f32]) + Sync + Send,
) -> Scratch {
    let mut packed = Scratch::new(range.len() * depth * PANEL);
    let out = Shared::new(&mut packed);
    for_each_task(range.len(), |i| {
        // SAFETY: every task has its own panel.
        let packed = unsafe { out.part(i * depth * PANEL..(i + 1) * depth * PANEL) };
        let first = (range.start + i) * PANEL;
        fill(first, PANEL.min(columns - first), packed);
    });
    packed
}

/// `packed[line(k), lane] = source[lane stride + k]` for k < `count` and lane < `lanes`, zero in the other lanes.
///
/// Whole lines are written at a time, because those of different kernel positions collide in the cache.
fn transpose(
    isa: Isa,
    source: &[f32],
    stride: usize,
    lanes: usize,
    count: usize,
    packed: &mut [f32],
    line: impl Fn(usize) -> usize,
) {
    let mut lines = [[0.0f32; PANEL]; SQUARE];
    for k in (0..count).step_by(SQUARE) {
        let lines = &mut lines[..SQUARE.min(count - k)];
        // Lanes whose eight values are read as vectors.
        let mut done = 0;
        while lines.len() == SQUARE && done + SQUARE <= lanes {
            let block = &source[done * stride + k..][..(SQUARE - 1) * stride + SQUARE];
            // SAFETY: the block holds eight rows of eight values, the lines have eight lanes from `done` on.
            unsafe { transpose_block(isa, block.as_ptr(), stride, lines.as_mut_ptr().cast::<f32>().add(done)) };
            done += SQUARE;
        }
        for lane in done..lanes {
            for (line, value) in lines.iter_mut().zip(&source[lane * stride + k..]) {
                line[lane] = *value;
            }
        }
        for (i, values) in lines.iter().enumerate() {
            packed[line(k + i) * PANEL..][..PANEL].copy_from_slice(values);
        }
    }
}

simd_fn! {
    /// `target[16 k + lane] = source[lane stride + k]` for lane and k below 8.
    ///
    /// # Safety
    /// All addresses must be valid.
    unsafe fn transpose_block<S>(source: *const f32, stride: usize, target: *mut f32) {
        let rows = std::array::from_fn(|i| S::Eight::load(source.add(i * stride)));
        for (k, column) in S::Eight::transpose(rows).into_iter().enumerate() {
            S::Eight::store(target.add(k * PANEL), column);
        }
    }
}
