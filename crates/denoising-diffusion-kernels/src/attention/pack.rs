//! Copies of one head's rows in the layouts that the register tiles read.

use super::{AttentionShape, KEY, VALUE};
use crate::gemm::PANEL;
use crate::par::Scratch;

/// Copies `count` rows of `width` values, `stride` apart, to rows of `padded` values, filled up with zeros.
pub(super) fn copy_rows(source: &[f32], stride: usize, width: usize, count: usize, padded: usize, target: &mut [f32]) {
    for (row, target) in target.chunks_exact_mut(padded).take(count).enumerate() {
        target[..width].copy_from_slice(&source[row * stride..][..width]);
        target[width..].fill(0.0);
    }
}

/// One of queries, keys or values of a head, `[positions, padded_dim]`.
pub(super) fn head_rows(shape: &AttentionShape, qkv: &[f32], image: usize, part: usize, head: usize) -> Scratch {
    let padded = shape.padded_dim();
    let mut rows = Scratch::new(shape.positions * padded);
    let stride = 3 * shape.heads * shape.head_dim;
    copy_rows(&qkv[shape.qkv_at(image, 0, part, head)..], stride, shape.head_dim, shape.positions, padded, &mut rows);
    rows
}

/// The output's rows of a head, `[positions, padded_dim]`.
pub(super) fn output_rows(shape: &AttentionShape, output: &[f32], image: usize, head: usize) -> Scratch {
    let padded = shape.padded_dim();
    let mut rows = Scratch::new(shape.positions * padded);
    let stride = shape.heads * shape.head_dim;
    copy_rows(&output[shape.output_at(image, 0, head)..], stride, shape.head_dim, shape.positions, padded, &mut rows);
    rows
}

/// Order of a memory of keys and values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLayout {
    /// `[2, heads, memory, head_dim]`
    RowsOfChannels,
    /// `[2, heads, head_dim, memory]`
    ChannelsOfRows,
}

impl MemoryLayout {
    /// Index of a value in the memory; `part` is 0 for keys and 1 for values.
    pub(super) fn at(self, shape: &AttentionShape, part: usize, head: usize, row: usize, channel: usize) -> usize {
        let head = part * shape.heads + head;
        match self {
            MemoryLayout::RowsOfChannels => (head * shape.memory + row) * shape.head_dim + channel,
            MemoryLayout::ChannelsOfRows => (head * shape.head_dim + channel) * shape.memory + row,
        }
    }
}

/// The memory's rows of keys or values of a head, `[memory, padded_dim]`.
pub(super) fn memory_rows(
    shape: &AttentionShape,
    memory: &[f32],
    layout: MemoryLayout,
    part: usize,
    head: usize,
) -> Scratch {
    let mut rows = Scratch::new(shape.memory * shape.padded_dim());
    fill_memory_rows(shape, memory, layout, part, head, &mut rows);
    rows
}

fn fill_memory_rows(
    shape: &AttentionShape,
    memory: &[f32],
    layout: MemoryLayout,
    part: usize,
    head: usize,
    rows: &mut [f32],
) {
    debug_assert!(part == KEY || part == VALUE);
    for (row, target) in rows.chunks_exact_mut(shape.padded_dim()).enumerate() {
        for (channel, value) in target[..shape.head_dim].iter_mut().enumerate() {
            *value = memory[layout.at(shape, part - KEY, head, row, channel)];
        }
        target[shape.head_dim..].fill(0.0);
    }
}

/// Keys or values of a head with the memory first, `[keys, padded_dim]`.
pub(super) fn key_rows(
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    layout: MemoryLayout,
    image: usize,
    part: usize,
    head: usize,
) -> Scratch {
    let padded = shape.padded_dim();
    let mut rows = Scratch::new(shape.keys() * padded);
    let (first, rest) = rows.split_at_mut(shape.memory * padded);
    fill_memory_rows(shape, memory, layout, part, head, first);
    let stride = 3 * shape.heads * shape.head_dim;
    copy_rows(&qkv[shape.qkv_at(image, 0, part, head)..], stride, shape.head_dim, shape.positions, padded, rest);
    rows
}

/// The transpose of `count` rows as panels: `[count / 16, depth, 16]`, filled up with zeros.
pub(super) fn panels_of_transpose(rows: &[f32], stride: usize, depth: usize, count: usize, panels: &mut [f32]) {
    for (panel, target) in panels.chunks_exact_mut(depth * PANEL).take(count.div_ceil(PANEL)).enumerate() {
        for lane in 0..PANEL {
            let row = panel * PANEL + lane;
            for k in 0..depth {
                target[k * PANEL + lane] = if row < count { rows[row * stride + k] } else { 0.0 };
            }
        }
    }
}

/// `count` rows of `padded` (a multiple of 16) values as panels: `[padded / 16, count, 16]`.
pub(super) fn panels_of_rows(rows: &[f32], padded: usize, count: usize, panels: &mut [f32]) {
    for (panel, target) in panels.chunks_exact_mut(count * PANEL).take(padded / PANEL).enumerate() {
        for (row, target) in target.chunks_exact_mut(PANEL).enumerate() {
            target.copy_from_slice(&rows[row * padded + panel * PANEL..][..PANEL]);
        }
    }
}
