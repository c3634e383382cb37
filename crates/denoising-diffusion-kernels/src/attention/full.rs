//! Softmax attention in blocks of keys with a running maximum and sum (Milakov & Gimelshein 2018, Rabe & Staats 2021, Dao et al. 2022): the matrix of
//! scores is never stored as a whole.

use std::ops::Range;

use super::pack::{key_rows, panels_of_rows, panels_of_transpose};
use super::{AttentionShape, Factors, KEY, QUERY, VALUE, bf16};
use crate::gemm::{AddTo, PANEL, ROWS, RowPointers, dense_pointers, rows_times_panels};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, Simd, exp, exp_roughly, simd_fn};

/// Number of queries in a block of scores.
pub(super) const QUERIES: usize = 48;
/// Number of keys in a block of scores, a multiple of [`PANEL`].
pub(super) const KEYS: usize = 128;

/// out[b, i, h, :] = sum over keys j of softmax_j(q_i . k_j / sqrt(head_dim)) v_j
///
/// `qkv` is `[batch, positions, 3, heads, head_dim]`, `memory` is `[2, heads, memory, head_dim]` (keys, values), `out` is
/// `[batch, positions, heads, head_dim]`. `lse`, `[batch, heads, positions]`, receives the logarithm of each softmax's
/// denominator, which [`super::attention_backward`] needs.
pub fn attention_forward(
    shape: &AttentionShape,
    factors: Factors,
    qkv: &[f32],
    memory: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    match factors.unit(shape) {
        Some(unit) => bf16::forward((Isa::detect(), unit), shape, qkv, memory, out, lse),
        None => forward_with(Isa::detect(), shape, qkv, memory, out, lse),
    }
}

pub(super) fn forward_with(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    shape.check(qkv.len(), memory.len(), out.len());
    assert_eq!(lse.len(), shape.lse_len(), "length of lse of {shape:?}");
    let (keys, padded) = (shape.keys(), shape.padded_dim());
    let pairs = shape.batch * shape.heads;
    let key_len = keys.next_multiple_of(PANEL) * shape.head_dim;
    let value_len = keys * padded;

    // Keys as panels of their transpose; values as panels of rows, block by block.
    let (mut packed_keys, mut packed_values) = (Scratch::new(pairs * key_len), Scratch::new(pairs * value_len));
    let (all_keys, all_values) = (Shared::new(&mut packed_keys), Shared::new(&mut packed_values));
    for_each_task(pairs, |pair| {
        let (image, head) = (pair / shape.heads, pair % shape.heads);
        // SAFETY: every task has its own head of its own image.
        let (key_panels, value_panels) = unsafe {
            (
                all_keys.part(pair * key_len..(pair + 1) * key_len),
                all_values.part(pair * value_len..(pair + 1) * value_len),
            )
        };
        let mut rows = Scratch::new(value_len);
        key_rows(isa, shape, qkv, memory, image, KEY, head, &mut rows);
        panels_of_transpose(&rows, padded, shape.head_dim, keys, key_panels);
        key_rows(isa, shape, qkv, memory, image, VALUE, head, &mut rows);
        for (rows, panels) in rows.chunks(KEYS * padded).zip(value_panels.chunks_mut(KEYS * padded)) {
            panels_of_rows(rows, padded, rows.len() / padded, panels);
        }
    });

    let blocks = shape.positions.div_ceil(QUERIES);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    for_each_task(pairs * blocks, |task| {
        let (pair, queries) = (task / blocks, task_range(task % blocks, QUERIES, shape.positions));
        let (image, head) = (pair / shape.heads, pair % shape.heads);
        let key_panels = &packed_keys[pair * key_len..(pair + 1) * key_len];
        let value_panels = &packed_values[pair * value_len..(pair + 1) * value_len];
        let state = block(
            isa,
            shape,
            &query_pointers(shape, qkv, image, head, queries.clone()),
            queries.len(),
            key_panels,
            value_panels,
        );
        put(shape, pair, queries, [&state.maxima, &state.sums], (&state.out, padded), out, lse);
    });
}

/// Writes the results of some queries of a pair, from their maxima and sums, and their weighted sums of values, rows of `width`. Only one task may
/// have these queries.
pub(super) fn put(
    shape: &AttentionShape,
    pair: usize,
    queries: Range<usize>,
    [maxima, sums]: [&[f32]; 2],
    (totals, width): (&[f32], usize),
    out: Shared<'_>,
    lse: Shared<'_>,
) {
    for (i, query) in queries.enumerate() {
        // SAFETY: every task has its own queries.
        let (out, lse) = unsafe {
            let at = shape.output_at(pair / shape.heads, query, pair % shape.heads);
            let row = pair * shape.positions + query;
            (out.part(at..at + shape.head_dim), lse.part(row..row + 1))
        };
        let inverse = 1.0 / sums[i];
        for (out, sum) in out.iter_mut().zip(&totals[i * width..]) {
            *out = sum * inverse;
        }
        lse[0] = maxima[i] + sums[i].ln();
    }
}

/// Pointers to the rows of a block of queries.
fn query_pointers(
    shape: &AttentionShape,
    qkv: &[f32],
    image: usize,
    head: usize,
    queries: Range<usize>,
) -> Vec<RowPointers> {
    let stride = 3 * shape.heads * shape.head_dim;
    dense_pointers(&qkv[shape.qkv_at(image, queries.start, QUERY, head)..], stride, queries.len())
}

/// The state per query while streaming over the keys.
struct Running {
    maxima: [f32; QUERIES],
    sums: [f32; QUERIES],
    /// `[QUERIES, padded_dim]`: the weighted sum of values so far.
    out: Scratch,
}

/// Streams over all keys for one block of queries.
fn block(
    isa: Isa,
    shape: &AttentionShape,
    queries: &[RowPointers],
    count: usize,
    key_panels: &[f32],
    value_panels: &[f32],
) -> Running {
    let (dim, padded, keys) = (shape.head_dim, shape.padded_dim(), shape.keys());
    let scale = 1.0 / (dim as f32).sqrt();
    let mut state =
        Running { maxima: [f32::NEG_INFINITY; QUERIES], sums: [0.0; QUERIES], out: Scratch::zeroed(QUERIES * padded) };
    let mut scores = Scratch::new(QUERIES * KEYS);
    let score_rows = dense_pointers(&scores, KEYS, count);
    debug_assert_eq!(queries.len(), count.div_ceil(ROWS));
    for first in (0..keys).step_by(KEYS) {
        let len = KEYS.min(keys - first);
        let key_panels = &key_panels[first * dim..][..len.next_multiple_of(PANEL) * dim];
        let value_panels = &value_panels[first * padded..][..len * padded];
        // SAFETY: the pointers point to rows of `head_dim` queries and `KEYS` scores.
        unsafe {
            rows_times_panels(isa, queries, 1, dim, count, key_panels, len, AddTo::Nothing, scores.as_mut_ptr(), KEYS);
            for i in 0..count {
                let out = &mut state.out[i * padded..(i + 1) * padded];
                let row = &mut scores[i * KEYS..][..len];
                softmax_step(isa, row, scale, &mut state.maxima[i], &mut state.sums[i], out);
            }
            let out = state.out.as_mut_ptr();
            rows_times_panels(isa, &score_rows, 1, len, count, value_panels, padded, AddTo::Destination, out, padded);
        }
    }
    state
}

simd_fn! {
    /// Adds one more block of scores to a running softmax: with m the new maximum of `scale` times the scores, scores = e^(scale scores - m), and
    /// `sum` and `out` are rescaled from the old maximum to the new one.
    ///
    /// # Safety
    /// As [`crate::simd::Simd`].
    unsafe fn softmax_step<S>(scores: &mut [f32], scale: f32, maximum: &mut f32, sum: &mut f32, out: &mut [f32]) {
        softmax_step_by::<S, false>(scores, scale, maximum, sum, out);
    }
}

simd_fn! {
    /// [`softmax_step`] with exponentials that are good enough for weights which are rounded to bf16.
    ///
    /// # Safety
    /// As [`crate::simd::Simd`].
    pub(super) unsafe fn softmax_step_roughly<S>(
        scores: &mut [f32],
        scale: f32,
        maximum: &mut f32,
        sum: &mut f32,
        out: &mut [f32],
    ) {
        softmax_step_by::<S, true>(scores, scale, maximum, sum, out);
    }
}

/// # Safety
/// As [`crate::simd::Simd`].
#[inline(always)]
pub(super) unsafe fn exp_of<S: Simd, const ROUGHLY: bool>(x: S::V) -> S::V {
    unsafe { if ROUGHLY { exp_roughly::<S>(x) } else { exp::<S>(x) } }
}

#[inline(always)]
unsafe fn softmax_step_by<S: Simd, const ROUGHLY: bool>(
    scores: &mut [f32],
    scale: f32,
    maximum: &mut f32,
    sum: &mut f32,
    out: &mut [f32],
) {
    unsafe {
        let (len, p) = (scores.len(), scores.as_mut_ptr());
        let whole = len - len % S::LANES;
        let mut largest = S::splat(f32::NEG_INFINITY);
        for k in (0..whole).step_by(S::LANES) {
            largest = S::max(S::load(p.add(k)), largest);
        }
        // A NaN score may be skipped here; the exponential returns it in any case.
        let mut new = S::max_lane(largest);
        for &score in &scores[whole..] {
            new = new.max(score);
        }
        new = maximum.max(new * scale);
        let (scale, shift) = (S::splat(scale), S::splat(-new));
        let mut total = S::splat(0.0);
        for k in (0..whole).step_by(S::LANES) {
            let e = exp_of::<S, ROUGHLY>(S::fma(S::load(p.add(k)), scale, shift));
            S::store(p.add(k), e);
            total = S::add(total, e);
        }
        if whole < len {
            let (p, n) = (p.add(whole), len - whole);
            S::store_n(p, exp_of::<S, ROUGHLY>(S::fma(S::load_n(p, n), scale, shift)), n);
            // Lanes beyond the end are zero when read back.
            total = S::add(total, S::load_n(p, n));
        }
        let first = *maximum == f32::NEG_INFINITY;
        let carry = if first { 0.0 } else { (*maximum - new).exp() };
        *maximum = new;
        *sum = *sum * carry + S::sum(total);
        // At first there is nothing to rescale.
        for k in (0..if first { 0 } else { out.len() }).step_by(S::LANES) {
            let at = out.as_mut_ptr().add(k);
            S::store(at, S::mul(S::load(at), S::splat(carry)));
        }
    }
}
