//! Gradient of linear attention, from its inputs and the state of its keys; the weights of both softmaxes are recomputed.
//!
//! With C the context: dq' = dO C^T, dC = q'^T dO, dk' = v dC^T, dv = k' dC, and dq and dk through their softmaxes. The softmax of keys needs the sum
//! over keys of k' dk'. This equals the sum of C dC over the channels of the values, which takes no pass over the keys.

use super::linear::{BLOCK, Plan, State, blocks};
use super::pack::{MemoryLayout, carve};
use super::rows::{key_grads, key_softmax, query_grads, query_weights};
use super::{AttentionShape, KEY, QUERY, VALUE, sum_batch};
use crate::gemm::{AddTo, PANEL, RowPointers, dense_pointers, rows_times_panels};
use crate::par::{Scratch, Shared, for_each_task};
use crate::simd::Isa;
use std::ops::Range;

/// `dqkv` and `dmemory` from `dout`, the gradient of the output of [`super::linear_attention_forward`], and from the inputs and `state` of that call.
///
/// Lengths as in the forward pass; `dout` like `out`, `dqkv` like `qkv`, `dmemory` like `memory`.
pub fn linear_attention_backward(
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    state: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    dmemory: &mut [f32],
) {
    backward_with(Isa::detect(), shape, qkv, memory, state, dout, dqkv, dmemory);
}

#[allow(clippy::too_many_arguments, reason = "inputs and gradients of a layer")]
pub(super) fn backward_with(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    states: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    dmemory: &mut [f32],
) {
    shape.check(qkv.len(), memory.len(), dout.len());
    shape.check(dqkv.len(), dmemory.len(), dout.len());
    assert_eq!(states.len(), shape.linear_state_len(), "length of the state of {shape:?}");
    let plan = Plan::new(shape);
    let matrix = plan.matrix();
    let mut dcontexts = Scratch::zeroed(plan.tasks() * matrix);
    let (target, partial) = (Shared::new(dqkv), Shared::new(&mut dcontexts));
    for_each_task(plan.tasks(), |task| {
        let (pair, positions) = plan.task(task);
        // SAFETY: every task has its own matrix.
        let dcontext = unsafe { partial.part(task * matrix..(task + 1) * matrix) };
        queries(isa, &plan, qkv, dout, plan.state(states, pair).context, pair, positions, target, dcontext);
    });
    let mut memory_parts = Scratch::zeroed(shape.batch * shape.memory_len());
    let parts = Shared::new(&mut memory_parts);
    for_each_task(plan.tasks(), |task| {
        let (pair, positions) = plan.task(task);
        let dcontexts = &dcontexts[pair * plan.chunks * matrix..(pair + 1) * plan.chunks * matrix];
        let (mut matrices, mut rows) = (Scratch::new(3 * matrix + plan.padded), plan.blocks(3));
        let mut keys = Keys::new(isa, &plan, plan.state(states, pair), dcontexts, &mut matrices, &mut rows);
        if positions.start == 0 {
            keys.memory(memory, pair, parts);
        }
        keys.positions(qkv, pair, positions, target);
    });
    sum_batch(&memory_parts, dmemory);
}

/// dq of a task's positions, and their part of dC (rows are the keys' channels).
#[allow(clippy::too_many_arguments, reason = "a task, its inputs and its results")]
fn queries(
    isa: Isa,
    plan: &Plan<'_>,
    qkv: &[f32],
    dout: &[f32],
    context: &[f32],
    pair: usize,
    positions: Range<usize>,
    dqkv: Shared<'_>,
    dcontext: &mut [f32],
) {
    let (s, dim, padded) = (plan.shape, plan.dim, plan.padded);
    let (image, head, stride) = (pair / s.heads, pair % s.heads, s.heads * dim);
    let mut transposed = Scratch::new(plan.matrix());
    transpose(context, padded, &mut transposed);
    let mut room = plan.blocks(3);
    let [weights, dweights, rows] = carve(&mut room, [BLOCK * padded; 3]);
    let pointers = dense_pointers(rows, padded, BLOCK);
    for block in blocks(positions) {
        let count = block.len();
        let [weights, dweights, rows] = [&mut *weights, &mut *dweights, &mut *rows].map(|r| &mut r[..count * padded]);
        plan.copy(isa, qkv, pair, QUERY, block.clone(), weights);
        plan.copy_rows(isa, &dout[s.output_at(image, block.start, head)..], stride, count, rows);
        let dq = dqkv.at(s.qkv_at(image, block.start, QUERY, head));
        // SAFETY: every task has its own positions of its own head; the pointers point to `rows`.
        unsafe {
            query_weights(isa, weights, dim, padded, plan.query_factor());
            plan.add_product(isa, weights, rows, dcontext);
            let dst = dweights.as_mut_ptr();
            rows_times_panels(isa, &pointers, 1, padded, count, &transposed, padded, AddTo::Nothing, dst, padded);
            query_grads(isa, weights, dweights, dim, padded, 1.0 / plan.query_factor(), dq, 3 * stride);
        }
    }
}

/// The transpose of a square matrix, both as panels.
fn transpose(panels: &[f32], padded: usize, target: &mut [f32]) {
    for (panel, columns) in panels.chunks_exact(padded * PANEL).enumerate() {
        for (row, values) in columns.chunks_exact(PANEL).enumerate() {
            let target = &mut target[(row / PANEL * padded + panel * PANEL) * PANEL + row % PANEL..];
            for (lane, &value) in values.iter().enumerate() {
                target[lane * PANEL] = value;
            }
        }
    }
}

/// What is needed to compute the gradients of a pair's keys and values.
struct Keys<'a> {
    isa: Isa,
    plan: &'a Plan<'a>,
    state: State<'a>,
    /// dC; its rows are the keys' channels.
    dcontext: &'a [f32],
    /// dC; its rows are the values' channels.
    transposed: &'a [f32],
    /// The sum over keys of k' dk', `[padded]`.
    dots: &'a [f32],
    /// A block of keys, later of k', and pointers to its rows.
    keys: &'a mut [f32],
    key_rows: Vec<RowPointers>,
    values: &'a mut [f32],
    value_rows: Vec<RowPointers>,
    /// dk' of a block.
    dweights: &'a mut [f32],
}

impl<'a> Keys<'a> {
    /// `dcontexts` holds the parts of dC from the pair's chunks; there must be room for three matrices and a row, and three blocks.
    fn new(
        isa: Isa,
        plan: &'a Plan<'a>,
        state: State<'a>,
        dcontexts: &[f32],
        matrices: &'a mut [f32],
        rows: &'a mut [f32],
    ) -> Self {
        let padded = plan.padded;
        let [dots, dcontext, transposed, context] =
            carve(matrices, [padded, plan.matrix(), plan.matrix(), plan.matrix()]);
        sum_batch(dcontexts, dcontext);
        transpose(dcontext, padded, transposed);
        transpose(state.context, padded, context);
        dots.fill(0.0);
        let panels = context.chunks_exact(padded * PANEL).zip(transposed.chunks_exact(padded * PANEL));
        for ((a, b), dots) in panels.zip(dots.chunks_exact_mut(PANEL)) {
            for (a, b) in a.chunks_exact(PANEL).zip(b.chunks_exact(PANEL)) {
                for (dot, (a, b)) in dots.iter_mut().zip(a.iter().zip(b)) {
                    *dot += a * b;
                }
            }
        }
        let [keys, values, dweights] = carve(rows, [BLOCK * padded; 3]);
        let [key_rows, value_rows] = [&*keys, &*values].map(|rows| dense_pointers(rows, padded, BLOCK));
        Self { isa, plan, state, dcontext, transposed, dots, keys, key_rows, values, value_rows, dweights }
    }

    /// dk and dv of the block of `count` keys and values in scratch memory.
    ///
    /// # Safety
    /// `dk` and `dv` must have rows of `dim` values, `stride` apart, that nobody else accesses.
    unsafe fn block(&mut self, count: usize, dk: *mut f32, dv: *mut f32, stride: usize) {
        let (isa, dim, padded) = (self.isa, self.plan.dim, self.plan.padded);
        let (keys, dweights) = (&mut self.keys[..count * padded], &mut self.dweights[..count * padded]);
        let dst = dweights.as_mut_ptr();
        // SAFETY: the pointers point to blocks of rows; the rest is the caller's contract.
        unsafe {
            key_softmax(isa, keys, dim, padded, self.state.maxima, self.state.factors);
            let (rows, panels) = (&self.value_rows, self.transposed);
            rows_times_panels(isa, rows, 1, padded, count, panels, padded, AddTo::Nothing, dst, padded);
            key_grads(isa, keys, dweights, dim, padded, self.dots, dk, stride);
            let (rows, panels) = (&self.key_rows, self.dcontext);
            rows_times_panels(isa, rows, 1, padded, count, panels, dim, AddTo::Nothing, dv, stride);
        }
    }

    fn positions(&mut self, qkv: &[f32], pair: usize, positions: Range<usize>, dqkv: Shared<'_>) {
        let (plan, s) = (self.plan, self.plan.shape);
        for block in blocks(positions) {
            plan.copy(self.isa, qkv, pair, KEY, block.clone(), self.keys);
            plan.copy(self.isa, qkv, pair, VALUE, block.clone(), self.values);
            let target = |part| dqkv.at(s.qkv_at(pair / s.heads, block.start, part, pair % s.heads));
            // SAFETY: every task has its own positions of its own head.
            unsafe { self.block(block.len(), target(KEY), target(VALUE), 3 * s.heads * s.head_dim) };
        }
    }

    /// Gradients of the memory; `parts` is one `dmemory` for every image.
    fn memory(&mut self, memory: &[f32], pair: usize, parts: Shared<'_>) {
        let (plan, s, padded) = (self.plan, self.plan.shape, self.plan.padded);
        let rows = plan.memory(memory, pair);
        let (keys, values) = rows.split_at(s.memory * padded);
        let mut grads = plan.blocks(2);
        let (dk, dv) = grads.split_at_mut(BLOCK * padded);
        for block in blocks(0..s.memory) {
            let range = block.start * padded..block.end * padded;
            self.keys[..range.len()].copy_from_slice(&keys[range.clone()]);
            self.values[..range.len()].copy_from_slice(&values[range]);
            // SAFETY: the targets are this call's.
            unsafe { self.block(block.len(), dk.as_mut_ptr(), dv.as_mut_ptr(), padded) };
            for (part, rows) in [(0, &*dk), (1, &*dv)] {
                for (row, values) in block.clone().zip(rows.chunks_exact(padded)) {
                    for (channel, &value) in values[..plan.dim].iter().enumerate() {
                        let at = MemoryLayout::ChannelsOfRows.at(s, part, pair % s.heads, row, channel);
                        // SAFETY: every pair has its own head of its own image.
                        unsafe { *parts.at(pair / s.heads * s.memory_len() + at) = value };
                    }
                }
            }
        }
    }
}
