//! Gradient of softmax attention, block by block from the saved log-sum-exp (Dao et al. 2022, algorithm 4).
//!
//! With P = exp(S / sqrt(d) - lse), S = Q K^T and D_i = dO_i . O_i:
//! dV = P^T dO, dP = dO V^T, dS = P (dP - D) / sqrt(d), dQ = dS K, dK = dS^T Q.

use super::full::{KEYS, QUERIES, exp_of};
use super::pack::{MemoryLayout, carve, head_rows, key_rows, output_rows, panels_of_rows, panels_of_transpose};
use super::rows::{copy, row_dots};
use super::{AttentionShape, Factors, KEY, QUERY, VALUE, bf16, sum_batch};
use crate::gemm::{AddTo, PANEL, dense_pointers, outer_sum, rows_times_panels, tile_heights};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, Simd, simd_fn};

/// `dqkv` and `dmemory` from `dout`, the gradient of the output of [`super::attention_forward`], and from the inputs and results of that call.
///
/// Lengths as in the forward pass; `dout` like `out`, `dqkv` like `qkv`, `dmemory` like `memory`.
#[allow(clippy::too_many_arguments, reason = "inputs, results and gradients of one layer")]
pub fn attention_backward(
    shape: &AttentionShape,
    factors: Factors,
    qkv: &[f32],
    memory: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    dmemory: &mut [f32],
) {
    match factors.unit(shape) {
        Some(unit) => bf16::backward((Isa::detect(), unit), shape, qkv, memory, out, lse, dout, dqkv, dmemory),
        None => backward_with(Isa::detect(), shape, qkv, memory, out, lse, dout, dqkv, dmemory),
    }
}

#[allow(clippy::too_many_arguments, reason = "the public function's, and the instruction set")]
pub(super) fn backward_with(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    dmemory: &mut [f32],
) {
    shape.check(qkv.len(), memory.len(), out.len());
    shape.check(dqkv.len(), dmemory.len(), dout.len());
    assert_eq!(lse.len(), shape.lse_len(), "length of lse of {shape:?}");
    let positions = shape.positions;
    let mut memory_parts = Scratch::zeroed(shape.batch * shape.memory_len());
    let (dqkv, parts) = (Shared::new(dqkv), Shared::new(&mut memory_parts));
    for_each_task(shape.batch * shape.heads, |pair| {
        let (image, head) = (pair / shape.heads, pair % shape.heads);
        let mut room = Scratch::new(Head::room(shape));
        let inputs = Head::new(isa, shape, qkv, memory, out, dout, image, head, &mut room);
        let mut room = Scratch::zeroed(HeadGrads::room(shape));
        let mut grads = HeadGrads::new(shape, &mut room);
        inputs.grads(isa, shape, &lse[pair * positions..(pair + 1) * positions], &mut grads);
        put(isa, shape, pair, [grads.queries, grads.keys, grads.values], dqkv, parts);
    });
    sum_batch(&memory_parts, dmemory);
}

/// Writes the gradients of a pair's queries, keys and values, rows of `padded_dim`, and its part of the memory's. Only one task may have the pair.
pub(super) fn put(
    isa: Isa,
    shape: &AttentionShape,
    pair: usize,
    [queries, keys, values]: [&[f32]; 3],
    dqkv: Shared<'_>,
    memory_parts: Shared<'_>,
) {
    let (image, head) = (pair / shape.heads, pair % shape.heads);
    let (dim, padded) = (shape.head_dim, shape.padded_dim());
    let of_memory = shape.memory * padded;
    for (part, rows) in [(QUERY, queries), (KEY, &keys[of_memory..]), (VALUE, &values[of_memory..])] {
        let (to, stride) = (dqkv.at(shape.qkv_at(image, 0, part, head)), 3 * shape.heads * dim);
        // SAFETY: every task has its own head of its own image.
        unsafe { copy(isa, rows.as_ptr(), padded, dim, shape.positions, to, stride) };
    }
    for (part, rows) in [(0, keys), (1, values)] {
        for row in 0..shape.memory {
            let layout = MemoryLayout::RowsOfChannels;
            let at = image * shape.memory_len() + layout.at(shape, part, head, row, 0);
            // SAFETY: as above.
            unsafe { memory_parts.part(at..at + dim) }.copy_from_slice(&rows[row * padded..][..dim]);
        }
    }
}

/// One head's inputs in scratch memory, rows of `padded_dim`.
struct Head<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    dout: &'a [f32],
    /// D, the dot product of each row of dout and out.
    dots: &'a [f32],
}

/// One head's gradients, rows of `padded_dim`; keys and values with at most three spare rows per block.
struct HeadGrads<'a> {
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl<'a> HeadGrads<'a> {
    fn lens(shape: &AttentionShape) -> [usize; 3] {
        let keys = (shape.keys() + 3) * shape.padded_dim();
        [shape.positions * shape.padded_dim(), keys, keys]
    }

    fn room(shape: &AttentionShape) -> usize {
        Self::lens(shape).iter().sum()
    }

    fn new(shape: &AttentionShape, room: &'a mut [f32]) -> Self {
        let [queries, keys, values] = carve(room, Self::lens(shape));
        Self { queries, keys, values }
    }
}

impl<'a> Head<'a> {
    fn lens(shape: &AttentionShape) -> [usize; 6] {
        let [rows, keys] = [shape.positions, shape.keys()].map(|count| count * shape.padded_dim());
        [rows, keys, keys, rows, rows, shape.positions]
    }

    fn room(shape: &AttentionShape) -> usize {
        Self::lens(shape).iter().sum()
    }

    #[allow(clippy::too_many_arguments, reason = "inputs of a layer, which head, and where to")]
    fn new(
        isa: Isa,
        shape: &AttentionShape,
        qkv: &[f32],
        memory: &[f32],
        out: &[f32],
        dout: &[f32],
        image: usize,
        head: usize,
        room: &'a mut [f32],
    ) -> Self {
        let [queries, keys, values, out_rows, dout_rows, dots] = carve(room, Self::lens(shape));
        head_rows(isa, shape, qkv, image, QUERY, head, queries);
        key_rows(isa, shape, qkv, memory, image, KEY, head, keys);
        key_rows(isa, shape, qkv, memory, image, VALUE, head, values);
        output_rows(isa, shape, out, image, head, out_rows);
        output_rows(isa, shape, dout, image, head, dout_rows);
        // SAFETY: `isa` is one that this machine has.
        unsafe { row_dots(isa, out_rows, dout_rows, shape.padded_dim(), dots) };
        Self { queries, keys, values, dout: dout_rows, dots }
    }

    /// Adds to `grads`, which must be zeros at first.
    fn grads(&self, isa: Isa, shape: &AttentionShape, lse: &[f32], grads: &mut HeadGrads<'_>) {
        let (dim, padded, keys) = (shape.head_dim, shape.padded_dim(), shape.keys());
        let scale = 1.0 / (dim as f32).sqrt();
        // Rows of p and ds hold P and dS of a block, zeros up to a full panel.
        let lens = [KEYS * dim, KEYS * dim, KEYS * padded, QUERIES * KEYS, QUERIES * KEYS];
        let mut room = Scratch::new(lens.iter().sum());
        let [key_columns, value_columns, key_panels, p, ds] = carve(&mut room, lens);
        for block in 0..keys.div_ceil(KEYS) {
            let range = task_range(block, KEYS, keys);
            let len = range.len();
            let rows = range.start * padded..range.end * padded;
            panels_of_transpose(&self.keys[rows.clone()], padded, dim, len, key_columns);
            panels_of_transpose(&self.values[rows.clone()], padded, dim, len, value_columns);
            panels_of_rows(&self.keys[rows.clone()], padded, len, key_panels);
            for queries in (0..shape.positions.div_ceil(QUERIES)).map(|b| task_range(b, QUERIES, shape.positions)) {
                let count = queries.len();
                let q = &self.queries[queries.start * padded..queries.end * padded];
                let dout = &self.dout[queries.start * padded..queries.end * padded];
                let width = len.next_multiple_of(PANEL);
                let offsets: Vec<usize> = (0..count).map(|i| i * padded).collect();
                // SAFETY: all matrices are scratch memory of the given sizes, owned by this call.
                unsafe {
                    let (q_rows, dout_rows) = (dense_pointers(q, padded, count), dense_pointers(dout, padded, count));
                    let (p_at, ds_at) = (p.as_mut_ptr(), ds.as_mut_ptr());
                    rows_times_panels(isa, &q_rows, 1, dim, count, key_columns, width, AddTo::Nothing, p_at, KEYS);
                    rows_times_panels(
                        isa,
                        &dout_rows,
                        1,
                        dim,
                        count,
                        value_columns,
                        width,
                        AddTo::Nothing,
                        ds_at,
                        KEYS,
                    );
                    for i in 0..count {
                        let (p, ds) = (&mut p[i * KEYS..][..width], &mut ds[i * KEYS..][..width]);
                        let query = queries.start + i;
                        softmax_grad(isa, p, ds, scale, lse[query], self.dots[query]);
                        p[len..].fill(0.0);
                        ds[len..].fill(0.0);
                    }
                    let ds_rows = dense_pointers(ds, KEYS, count);
                    let dq = grads.queries[queries.start * padded..].as_mut_ptr();
                    rows_times_panels(isa, &ds_rows, 1, len, count, key_panels, padded, AddTo::Destination, dq, padded);
                    let dv = &mut grads.values[rows.start..];
                    sum_transposed(isa, p, dout, &offsets, len, padded, dv);
                    sum_transposed(isa, ds, q, &offsets, len, padded, &mut grads.keys[rows.start..]);
                }
            }
        }
    }
}

/// target[k, :] += sum over rows i of weights[i, k] rows[i, :], for k < `len`.
///
/// # Safety
/// `weights` is `[rows, KEYS]` with zeros from `len` up to a full panel; `rows` is `[rows, padded]`; `target` has room for three rows
/// more than `len`.
unsafe fn sum_transposed(
    isa: Isa,
    weights: &[f32],
    rows: &[f32],
    offsets: &[usize],
    len: usize,
    padded: usize,
    target: &mut [f32],
) {
    let mut start = 0;
    for height in tile_heights(len) {
        assert!((start + height) * padded <= target.len());
        for panel in (0..padded).step_by(PANEL) {
            let dst = target[start * padded + panel..].as_mut_ptr();
            // SAFETY: the caller's contract.
            unsafe {
                outer_sum(isa, height, &weights[start..], KEYS, rows[panel..].as_ptr(), offsets, dst, padded);
            }
        }
        start += height;
    }
}

simd_fn! {
    /// scores becomes p = e^(scale scores - lse), dp becomes p (dp - dot) scale.
    ///
    /// # Safety
    /// As [`crate::simd::Simd`]; both have the same length, a multiple of the lanes.
    unsafe fn softmax_grad<S>(scores: &mut [f32], dp: &mut [f32], scale: f32, lse: f32, dot: f32) {
        softmax_grad_by::<S, false>(scores, dp, scale, lse, dot);
    }
}

simd_fn! {
    /// [`softmax_grad`] with exponentials that are good enough for results which are rounded to bf16.
    ///
    /// # Safety
    /// As [`softmax_grad`].
    pub(super) unsafe fn softmax_grad_roughly<S>(scores: &mut [f32], dp: &mut [f32], scale: f32, lse: f32, dot: f32) {
        softmax_grad_by::<S, true>(scores, dp, scale, lse, dot);
    }
}

#[inline(always)]
unsafe fn softmax_grad_by<S: Simd, const ROUGHLY: bool>(
    scores: &mut [f32],
    dp: &mut [f32],
    scale: f32,
    lse: f32,
    dot: f32,
) {
    unsafe {
        let mut k = 0;
        while k < scores.len() {
            let (s, d) = (scores.as_mut_ptr().add(k), dp.as_mut_ptr().add(k));
            let p = exp_of::<S, ROUGHLY>(S::fma(S::load(s), S::splat(scale), S::splat(-lse)));
            S::store(s, p);
            S::store(d, S::mul(S::mul(p, S::splat(scale)), S::sub(S::load(d), S::splat(dot))));
            k += S::LANES;
        }
    }
}
