//! Linear attention (Shen et al. 2018, "Efficient Attention"): the cost is proportional to the number of positions, not its square.
//!
//! Rows are processed in blocks that stay in the first-level cache: they are copied there, go through their softmax in place, and then into the
//! products. The softmax over keys has a running maximum and sum.

use super::pack::{MemoryLayout, memory_rows};
use super::rows::{copy, key_weights, query_weights};
use super::{AttentionShape, KEY, QUERY, VALUE};
use crate::gemm::{AddTo, PANEL, ROWS, dense_pointers, outer_sum, rows_times_panels, tile_heights};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;
use std::ops::Range;

/// The largest number of rows per block, a multiple of [`ROWS`].
pub(super) const BLOCK: usize = 48;
/// The smallest number of positions that justifies a task.
const CHUNK: usize = 5 * BLOCK;
/// Desired number of tasks, as far as [`CHUNK`] allows.
const TASKS: usize = 32;

/// out[b, i, h, e] = sum over channels d of context[d, e] q'[i, d], with context[d, e] = sum over keys j of k'[j, d] v[j, e],
/// q' = softmax of q over the head's channels times head_dim^-1/2, k' = softmax of k over all keys.
///
/// `qkv` is `[batch, positions, 3, heads, head_dim]`, `memory` is `[2, heads, head_dim, memory]` (keys, values), `out` is
/// `[batch, positions, heads, head_dim]`. `state`, of [`AttentionShape::linear_state_len`] values, is the result of [`linear_attention_state`], for
/// the backward pass.
pub fn linear_attention_forward(
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    out: &mut [f32],
    state: &mut [f32],
) {
    forward_with(Isa::detect(), shape, qkv, memory, out, state);
}

/// Computes the state of the keys and values of each head of each image, which the backward pass needs. This is the first half of
/// [`linear_attention_forward`].
pub fn linear_attention_state(shape: &AttentionShape, qkv: &[f32], memory: &[f32], state: &mut [f32]) {
    shape.check(qkv.len(), memory.len(), shape.output_len());
    Plan::new(shape).states(Isa::detect(), qkv, memory, state);
}

pub(super) fn forward_with(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    out: &mut [f32],
    state: &mut [f32],
) {
    shape.check(qkv.len(), memory.len(), out.len());
    let plan = Plan::new(shape);
    let (dim, padded, stride) = (plan.dim, plan.padded, shape.heads * plan.dim);
    plan.states(isa, qkv, memory, state);
    let out = Shared::new(out);
    for_each_task(plan.tasks(), |task| {
        let (pair, positions) = plan.task(task);
        let context = plan.state(state, pair).context;
        let mut weights = plan.blocks(1);
        let pointers = dense_pointers(&weights, padded, BLOCK);
        for block in blocks(positions) {
            let count = block.len();
            let weights = &mut weights[..count * padded];
            plan.copy(isa, qkv, pair, QUERY, block.clone(), weights);
            let dst = out.at(shape.output_at(pair / shape.heads, block.start, pair % shape.heads));
            // SAFETY: every task has its own positions of its own head; the pointers point to the rows of `weights`.
            unsafe {
                query_weights(isa, weights, dim, padded, plan.query_factor());
                rows_times_panels(isa, &pointers, 1, padded, count, context, dim, AddTo::Nothing, dst, stride);
            }
        }
    });
}

/// Blocks of nearly equal length that cover `positions`.
pub(super) fn blocks(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = positions.len().div_ceil(BLOCK).max(1);
    let size = positions.len().div_ceil(count).next_multiple_of(ROWS);
    positions.clone().step_by(size.max(1)).map(move |start| start..positions.end.min(start + size))
}

/// How the work for a shape is divided: into pairs of image and head, and these into chunks of positions if there are few pairs.
///
/// Everything in scratch memory is `padded` wide, with zeros after `dim`; matrices of `padded` rows and columns are stored as panels,
/// `[padded / 16, padded, 16]`.
pub(super) struct Plan<'a> {
    pub(super) shape: &'a AttentionShape,
    pub(super) dim: usize,
    pub(super) padded: usize,
    pub(super) chunks: usize,
    chunk: usize,
    heights: Vec<usize>,
    /// Where a block's rows begin in scratch memory.
    offsets: [usize; BLOCK],
}

/// The state of a head's keys and values, after [`Plan::states`].
pub(super) struct State<'a> {
    /// Maximum of every channel of the keys, `[padded]`.
    pub(super) maxima: &'a [f32],
    /// 1 / sum over keys of e^(key - maximum), `[padded]`.
    pub(super) factors: &'a [f32],
    /// The context as panels; its rows are the channels of the keys.
    pub(super) context: &'a [f32],
}

impl<'a> Plan<'a> {
    pub(super) fn new(shape: &'a AttentionShape) -> Self {
        let wanted = TASKS.div_ceil(shape.batch * shape.heads);
        let chunk = shape.positions.div_ceil(wanted).max(CHUNK).next_multiple_of(ROWS);
        let padded = shape.padded_dim();
        let (dim, chunks, heights) = (shape.head_dim, shape.positions.div_ceil(chunk), tile_heights(padded));
        let offsets = std::array::from_fn(|row| row * padded);
        Self { shape, dim, padded, chunks, chunk, heights, offsets }
    }

    pub(super) fn tasks(&self) -> usize {
        self.pairs() * self.chunks
    }

    pub(super) fn pairs(&self) -> usize {
        self.shape.batch * self.shape.heads
    }

    /// The pair and the positions of a task.
    pub(super) fn task(&self, task: usize) -> (usize, Range<usize>) {
        (task / self.chunks, task_range(task % self.chunks, self.chunk, self.shape.positions))
    }

    /// The sum of the weights of a query.
    pub(super) fn query_factor(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Memory for the rows of `count` blocks, with zeros where nothing will be written.
    pub(super) fn blocks(&self, count: usize) -> Scratch {
        let len = count * BLOCK * self.padded;
        if self.dim < self.padded { Scratch::zeroed(len) } else { Scratch::new(len) }
    }

    /// Number of values of a matrix of `padded` rows and columns.
    pub(super) fn matrix(&self) -> usize {
        self.padded * self.padded
    }

    /// Copies `positions` of queries, keys or values of a pair to rows of `padded` values.
    pub(super) fn copy(
        &self,
        isa: Isa,
        qkv: &[f32],
        pair: usize,
        part: usize,
        positions: Range<usize>,
        target: &mut [f32],
    ) {
        let (s, count) = (self.shape, positions.len());
        let stride = 3 * s.heads * s.head_dim;
        let source = &qkv[s.qkv_at(pair / s.heads, positions.start, part, pair % s.heads)..];
        self.copy_rows(isa, source, stride, count, target);
    }

    /// Copies `count` rows, the first of which is at the beginning of `source`, to rows of `padded` values.
    pub(super) fn copy_rows(&self, isa: Isa, source: &[f32], stride: usize, count: usize, target: &mut [f32]) {
        assert!(count > 0 && (count - 1) * stride + self.dim <= source.len() && count * self.padded <= target.len());
        // SAFETY: the rows are there, as just asserted.
        unsafe { copy(isa, source.as_ptr(), stride, self.dim, count, target.as_mut_ptr(), self.padded) };
    }

    /// The memory's rows of keys and of values of a pair, one after the other.
    pub(super) fn memory(&self, memory: &[f32], pair: usize) -> Scratch {
        let half = self.shape.memory * self.padded;
        let mut rows = Scratch::new(2 * half);
        let (keys, values) = rows.split_at_mut(half);
        for (part, rows) in [(KEY, keys), (VALUE, values)] {
            memory_rows(self.shape, memory, MemoryLayout::ChannelsOfRows, part, pair % self.shape.heads, rows);
        }
        rows
    }

    /// panels += the sum over rows i of a[i, :]^T b[i, :]; both have at most a block of rows of `padded` values.
    pub(super) fn add_product(&self, isa: Isa, a: &[f32], b: &[f32], panels: &mut [f32]) {
        let padded = self.padded;
        assert!(a.len() == b.len() && panels.len() == self.matrix());
        let offsets = &self.offsets[..a.len() / padded];
        for (panel, target) in panels.chunks_exact_mut(padded * PANEL).enumerate() {
            let mut row = 0;
            for &height in &self.heights {
                let dst = target[row * PANEL..].as_mut_ptr();
                // SAFETY: the heights add up to the panel's rows, which are the rows' width.
                unsafe { outer_sum(isa, height, &a[row..], padded, b[panel * PANEL..].as_ptr(), offsets, dst, PANEL) };
                row += height;
            }
        }
    }

    /// The state of every pair, one after the other.
    fn states(&self, isa: Isa, qkv: &[f32], memory: &[f32], states: &mut [f32]) {
        let len = self.shape.head_state_len();
        assert_eq!(states.len(), self.shape.linear_state_len(), "length of the state of {:?}", self.shape);
        let states = Shared::new(states);
        // SAFETY: every task has its own pair.
        let state = |pair| Partial::split(unsafe { states.part(pair * len..(pair + 1) * len) }, self.padded);
        if self.chunks == 1 {
            for_each_task(self.pairs(), |pair| {
                let mut state = state(pair);
                self.add_keys(isa, qkv, memory, pair, 0..self.shape.positions, &mut state);
                state.finish();
            });
            return;
        }
        let mut partial = Scratch::new(self.tasks() * len);
        let parts = Shared::new(&mut partial);
        for_each_task(self.tasks(), |task| {
            let (pair, positions) = self.task(task);
            // SAFETY: every task has its own part.
            let mut part = Partial::split(unsafe { parts.part(task * len..(task + 1) * len) }, self.padded);
            self.add_keys(isa, qkv, memory, pair, positions, &mut part);
        });
        for_each_task(self.pairs(), |pair| {
            // SAFETY: every task has its own pair.
            let parts = unsafe { parts.part(pair * self.chunks * len..(pair + 1) * self.chunks * len) };
            let mut state = state(pair);
            state.clear();
            parts.chunks_exact_mut(len).for_each(|part| state.merge(Partial::split(part, self.padded)));
            state.finish();
        });
    }

    /// A pair's state.
    pub(super) fn state<'b>(&self, states: &'b [f32], pair: usize) -> State<'b> {
        let len = self.shape.head_state_len();
        let state = &states[pair * len..(pair + 1) * len];
        let (maxima, rest) = state.split_at(self.padded);
        let (factors, context) = rest.split_at(self.padded);
        State { maxima, factors, context }
    }

    /// The partial state of a chunk; the first chunk includes the memory.
    fn add_keys(
        &self,
        isa: Isa,
        qkv: &[f32],
        memory: &[f32],
        pair: usize,
        positions: Range<usize>,
        partial: &mut Partial<'_>,
    ) {
        partial.clear();
        let mut room = self.blocks(2);
        let (keys, values) = room.split_at_mut(BLOCK * self.padded);
        let mut carry = Scratch::zeroed(self.padded);
        let mut add = |keys: &mut [f32], values: &[f32]| {
            let (maxima, sums) = (&mut *partial.maxima, &mut *partial.sums);
            // SAFETY: `isa` is one that this machine has.
            unsafe { key_weights(isa, keys, self.dim, self.padded, maxima, sums, &mut carry) };
            scale(partial.context, &carry);
            self.add_product(isa, keys, values, partial.context);
        };
        if positions.start == 0 {
            let mut rows = self.memory(memory, pair);
            let (keys, values) = rows.split_at_mut(self.shape.memory * self.padded);
            let len = BLOCK * self.padded;
            keys.chunks_mut(len).zip(values.chunks(len)).for_each(|(keys, values)| add(keys, values));
        }
        for block in blocks(positions) {
            let len = block.len() * self.padded;
            self.copy(isa, qkv, pair, KEY, block.clone(), keys);
            self.copy(isa, qkv, pair, VALUE, block, values);
            add(&mut keys[..len], &values[..len]);
        }
    }
}

/// The state of some of a head's keys: context and sums before the division by the sums.
struct Partial<'a> {
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
    context: &'a mut [f32],
}

impl<'a> Partial<'a> {
    fn split(state: &'a mut [f32], padded: usize) -> Self {
        let (maxima, rest) = state.split_at_mut(padded);
        let (sums, context) = rest.split_at_mut(padded);
        Self { maxima, sums, context }
    }

    /// Resets to the state of no keys.
    fn clear(&mut self) {
        self.maxima.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        self.context.fill(0.0);
    }

    /// Adds the state of other keys.
    fn merge(&mut self, other: Partial<'_>) {
        let padded = self.maxima.len();
        let (mut old, mut new) = (Scratch::zeroed(padded), Scratch::zeroed(padded));
        for k in 0..padded {
            let maximum = self.maxima[k].max(other.maxima[k]);
            // Columns of padding may have no maximum.
            if maximum > f32::NEG_INFINITY {
                (old[k], new[k]) = ((self.maxima[k] - maximum).exp(), (other.maxima[k] - maximum).exp());
            }
            self.maxima[k] = maximum;
            self.sums[k] = self.sums[k] * old[k] + other.sums[k] * new[k];
        }
        scale(self.context, &old);
        scale(other.context, &new);
        for (sum, part) in self.context.iter_mut().zip(other.context.iter()) {
            *sum += part;
        }
    }

    /// Divides the context by the sums and replaces these by their inverses.
    fn finish(&mut self) {
        // No sum over keys is below 1; that of a column of padding can be 0.
        self.sums.iter_mut().for_each(|sum| *sum = if *sum == 0.0 { 0.0 } else { 1.0 / *sum });
        scale(self.context, self.sums);
    }
}

/// Multiplies the context, as panels, by a factor per channel of the keys.
fn scale(panels: &mut [f32], factors: &[f32]) {
    if factors.iter().all(|&factor| factor == 1.0) {
        return;
    }
    for rows in panels.chunks_exact_mut(factors.len() * PANEL) {
        for (row, &factor) in rows.chunks_exact_mut(PANEL).zip(factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}
