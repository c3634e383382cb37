//! Copies of one head's rows in the layouts that the register tiles read.

use super::rows::copy;
use super::{AttentionShape, KEY, VALUE};
use crate::gemm::PANEL;
use crate::simd::Isa;

/// Consecutive parts of `room`. One buffer is used for many parts because the pool of buffers is small.
pub(super) fn carve<const N: usize>(mut room: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    lens.map(|len| room.split_off_mut(..len).expect("room for all parts"))
}

/// Copies queries, keys or values of a head to `[positions, padded_dim]`.
pub(super) fn head_rows(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    image: usize,
    part: usize,
    head: usize,
    rows: &mut [f32],
) {
    let stride = 3 * shape.heads * shape.head_dim;
    widen(isa, shape, &qkv[shape.qkv_at(image, 0, part, head)..], stride, rows);
}

/// Copies the output's rows of a head to `[positions, padded_dim]`.
pub(super) fn output_rows(
    isa: Isa,
    shape: &AttentionShape,
    output: &[f32],
    image: usize,
    head: usize,
    rows: &mut [f32],
) {
    let stride = shape.heads * shape.head_dim;
    widen(isa, shape, &output[shape.output_at(image, 0, head)..], stride, rows);
}

/// Copies a head's rows for all positions, the first of which is at the beginning of `source`, to rows of `padded_dim` values.
fn widen(isa: Isa, shape: &AttentionShape, source: &[f32], stride: usize, target: &mut [f32]) {
    let (dim, padded, count) = (shape.head_dim, shape.padded_dim(), shape.positions);
    assert!((count - 1) * stride + dim <= source.len() && count * padded == target.len());
    if dim < padded {
        target.fill(0.0);
    }
    // SAFETY: the rows are there, as just asserted.
    unsafe { copy(isa, source.as_ptr(), stride, dim, count, target.as_mut_ptr(), padded) };
}

/// The layout of a memory of keys and values.
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

/// Copies the memory's rows of keys or values of a head to `[memory, padded_dim]`.
pub(super) fn memory_rows(
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

/// Copies keys or values of a head, preceded by the memory, to `[keys, padded_dim]`.
#[allow(clippy::too_many_arguments, reason = "inputs of a layer, and which part")]
pub(super) fn key_rows(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    image: usize,
    part: usize,
    head: usize,
    rows: &mut [f32],
) {
    let (first, rest) = rows.split_at_mut(shape.memory * shape.padded_dim());
    memory_rows(shape, memory, MemoryLayout::RowsOfChannels, part, head, first);
    head_rows(isa, shape, qkv, image, part, head, rest);
}

/// The transpose of `count` rows as panels: `[count / 16, depth, 16]`, filled up with zeros.
pub(super) fn panels_of_transpose(rows: &[f32], stride: usize, depth: usize, count: usize, panels: &mut [f32]) {
    for (panel, target) in panels.chunks_exact_mut(depth * PANEL).take(count.div_ceil(PANEL)).enumerate() {
        let lanes = (count - panel * PANEL).min(PANEL);
        if lanes < PANEL {
            target.fill(0.0);
        }
        let rows = rows[panel * PANEL * stride..].chunks(stride).take(lanes);
        for (lane, row) in rows.enumerate() {
            for (target, &value) in target[lane..].iter_mut().step_by(PANEL).zip(&row[..depth]) {
                *target = value;
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
