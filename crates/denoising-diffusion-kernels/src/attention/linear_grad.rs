//! Gradient of linear attention; everything is recomputed from the inputs.
//!
//! With C the context: dq' = dO C^T, dC = q'^T dO, dk' = v dC^T, dv = k' dC, and dq and dk through their softmaxes.

use super::linear::{LinearHead, transposed_product};
use super::pack::{MemoryLayout, output_rows, panels_of_rows, panels_of_transpose};
use super::{AttentionShape, KEY, QUERY, VALUE, sum_batch};
use crate::gemm::{AddTo, dense_pointers, rows_times_panels};
use crate::par::{Scratch, Shared, for_each_task};
use crate::simd::{Isa, LANES, simd_fn};

/// `dqkv` and `dmemory` from `dout`, the gradient of [`super::linear_attention_forward`]'s output, and that call's inputs.
///
/// Lengths as in the forward pass; `dout` like `out`, `dqkv` like `qkv`, `dmemory` like `memory`.
pub fn linear_attention_backward(
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    dmemory: &mut [f32],
) {
    backward_with(Isa::detect(), shape, qkv, memory, dout, dqkv, dmemory);
}

pub(super) fn backward_with(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    dmemory: &mut [f32],
) {
    shape.check(qkv.len(), memory.len(), dout.len());
    shape.check(dqkv.len(), dmemory.len(), dout.len());
    let (dim, padded) = (shape.head_dim, shape.padded_dim());
    let layout = MemoryLayout::ChannelsOfRows;
    let mut memory_parts = Scratch::zeroed(shape.batch * shape.memory_len());
    let (dqkv, parts) = (Shared::new(dqkv), Shared::new(&mut memory_parts));
    for_each_task(shape.batch * shape.heads, |pair| {
        let (image, head) = (pair / shape.heads, pair % shape.heads);
        let state = LinearHead::new(isa, shape, qkv, memory, image, head);
        let dout = output_rows(shape, dout, image, head);
        let [dq, dk, dv] = head_grads(isa, shape, &state, &dout);
        let skip = shape.memory * padded;
        for (part, rows) in [(QUERY, &dq[..]), (KEY, &dk[skip..]), (VALUE, &dv[skip..])] {
            for (position, row) in rows.chunks_exact(padded).enumerate() {
                let at = shape.qkv_at(image, position, part, head);
                // SAFETY: every task has its own head of its own image.
                unsafe { dqkv.part(at..at + dim) }.copy_from_slice(&row[..dim]);
            }
        }
        for (part, rows) in [(0, &dk), (1, &dv)] {
            for (row, values) in rows.chunks_exact(padded).take(shape.memory).enumerate() {
                for (channel, &value) in values[..dim].iter().enumerate() {
                    let at = image * shape.memory_len() + layout.at(shape, part, head, row, channel);
                    // SAFETY: as above.
                    unsafe { *parts.at(at) = value };
                }
            }
        }
    });
    sum_batch(&memory_parts, dmemory);
}

/// dq, dk and dv of one head, rows of `padded_dim`; dk and dv with the memory first.
fn head_grads(isa: Isa, shape: &AttentionShape, state: &LinearHead, dout: &[f32]) -> [Scratch; 3] {
    let (dim, padded) = (shape.head_dim, shape.padded_dim());
    let dcontext = transposed_product(isa, &state.queries, dout, dim, padded);
    let mut panels = Scratch::new(padded * dim);

    panels_of_transpose(&state.context, padded, dim, dim, &mut panels);
    let mut dq = product(isa, dout, &panels, dim, padded);
    // SAFETY: rows of `padded` values throughout.
    unsafe { softmax_rows_grad(isa, &state.queries, &mut dq, padded, (dim as f32).sqrt()) };

    panels_of_transpose(&dcontext, padded, dim, dim, &mut panels);
    let mut dk = product(isa, &state.values, &panels, dim, padded);
    // SAFETY: as above.
    unsafe { softmax_columns_grad(isa, &state.keys, &mut dk, padded) };

    panels_of_rows(&dcontext, padded, dim, &mut panels);
    let dv = product(isa, &state.keys, &panels, dim, padded);
    [dq, dk, dv]
}

/// The first `dim` values of each row times `panels`, as rows of `padded` values.
fn product(isa: Isa, rows: &[f32], panels: &[f32], dim: usize, padded: usize) -> Scratch {
    let count = rows.len() / padded;
    let mut target = Scratch::new(rows.len());
    let dst = target.as_mut_ptr();
    let pointers = dense_pointers(rows, padded, count);
    // SAFETY: `target` has `count` rows of `padded` values.
    unsafe { rows_times_panels(isa, &pointers, 1, dim, count, panels, padded, AddTo::Nothing, dst, padded) };
    target
}

simd_fn! {
    /// For rows y = softmax / `inverse_factor`: dy becomes y (dy - inverse_factor sum(y dy)).
    ///
    /// # Safety
    /// Both hold the same whole number of rows of `padded` values, a multiple of eight, zeros behind the softmax.
    unsafe fn softmax_rows_grad<S>(y: &[f32], dy: &mut [f32], padded: usize, inverse_factor: f32) {
        for (y, dy) in y.chunks_exact(padded).zip(dy.chunks_exact_mut(padded)) {
            let (y, dy) = (y.as_ptr(), dy.as_mut_ptr());
            let mut dot = S::splat(0.0);
            for k in (0..padded).step_by(LANES) {
                dot = S::fma(S::load(y.add(k)), S::load(dy.add(k)), dot);
            }
            let dot = S::splat(S::sum(dot) * inverse_factor);
            for k in (0..padded).step_by(LANES) {
                let d = S::mul(S::load(y.add(k)), S::sub(S::load(dy.add(k)), dot));
                S::store(dy.add(k), d);
            }
        }
    }
}

simd_fn! {
    /// For columns y = softmax: dy becomes y (dy - sum(y dy)).
    ///
    /// # Safety
    /// Both hold the same whole number of rows of `padded` values, a multiple of eight.
    unsafe fn softmax_columns_grad<S>(y: &[f32], dy: &mut [f32], padded: usize) {
        let count = y.len() / padded;
        for column in (0..padded).step_by(LANES) {
            let (y, dy) = (y.as_ptr().add(column), dy.as_mut_ptr().add(column));
            let mut dot = S::splat(0.0);
            for row in 0..count {
                dot = S::fma(S::load(y.add(row * padded)), S::load(dy.add(row * padded)), dot);
            }
            for row in 0..count {
                let at = dy.add(row * padded);
                S::store(at, S::mul(S::load(y.add(row * padded)), S::sub(S::load(at), dot)));
            }
        }
    }
}
