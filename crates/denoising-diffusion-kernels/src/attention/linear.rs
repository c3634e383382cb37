//! Linear attention (Shen et al. 2018, "Efficient Attention"): cost grows with the number of positions, not its square.

use super::pack::{MemoryLayout, head_rows, key_rows, panels_of_rows};
use super::{AttentionShape, KEY, QUERY, VALUE};
use crate::gemm::{AddTo, PANEL, dense_pointers, outer_sum, rows_times_panels, tile_heights};
use crate::par::{Scratch, Shared, for_each_task};
use crate::simd::{Isa, LANES, exp, simd_fn};

/// Rows whose outer products are summed at a time, so that they stay in the first-level cache.
const ROWS_PER_CHUNK: usize = 128;

/// out[b, i, h, e] = sum over channels d of context[d, e] q'[i, d], with context[d, e] = sum over keys j of k'[j, d] v[j, e],
/// q' = softmax of q over the head's channels times head_dim^-1/2, k' = softmax of k over all keys.
///
/// `qkv` is `[batch, positions, 3, heads, head_dim]`, `memory` is `[2, heads, head_dim, memory]` (keys, values), `out` is
/// `[batch, positions, heads, head_dim]`.
pub fn linear_attention_forward(shape: &AttentionShape, qkv: &[f32], memory: &[f32], out: &mut [f32]) {
    forward_with(Isa::detect(), shape, qkv, memory, out);
}

pub(super) fn forward_with(isa: Isa, shape: &AttentionShape, qkv: &[f32], memory: &[f32], out: &mut [f32]) {
    shape.check(qkv.len(), memory.len(), out.len());
    let (dim, padded) = (shape.head_dim, shape.padded_dim());
    let out = Shared::new(out);
    for_each_task(shape.batch * shape.heads, |pair| {
        let (image, head) = (pair / shape.heads, pair % shape.heads);
        let state = LinearHead::new(isa, shape, qkv, memory, image, head);
        let mut panels = Scratch::new(padded * dim);
        panels_of_rows(&state.context, padded, dim, &mut panels);
        let rows = dense_pointers(&state.queries, padded, shape.positions);
        let dst = out.at(shape.output_at(image, 0, head));
        let stride = shape.heads * dim;
        // SAFETY: every task has its own head of its own image.
        unsafe { rows_times_panels(isa, &rows, 1, dim, shape.positions, &panels, dim, AddTo::Nothing, dst, stride) };
    });
}

/// One head: rows are `padded_dim` long, zeros behind `head_dim` (except in `keys`, where nobody reads them).
pub(super) struct LinearHead {
    /// q', `[positions, padded_dim]`
    pub(super) queries: Scratch,
    /// k', `[keys, padded_dim]`
    pub(super) keys: Scratch,
    /// `[keys, padded_dim]`
    pub(super) values: Scratch,
    /// `[padded_dim, padded_dim]`
    pub(super) context: Scratch,
}

impl LinearHead {
    pub(super) fn new(
        isa: Isa,
        shape: &AttentionShape,
        qkv: &[f32],
        memory: &[f32],
        image: usize,
        head: usize,
    ) -> Self {
        let (dim, padded) = (shape.head_dim, shape.padded_dim());
        let layout = MemoryLayout::ChannelsOfRows;
        let mut queries = head_rows(shape, qkv, image, QUERY, head);
        let mut keys = key_rows(shape, qkv, memory, layout, image, KEY, head);
        let values = key_rows(shape, qkv, memory, layout, image, VALUE, head);
        // SAFETY: rows of `padded` values, as both functions want.
        unsafe {
            softmax_rows(isa, &mut queries, dim, padded, 1.0 / (dim as f32).sqrt());
            softmax_columns(isa, &mut keys, padded);
        }
        let context = transposed_product(isa, &keys, &values, dim, padded);
        Self { queries, keys, values, context }
    }
}

/// The sum over rows i of a[i, d] b[i, e] as `[padded, padded]`, for d < `dim`; both have rows of `padded` values.
pub(super) fn transposed_product(isa: Isa, a: &[f32], b: &[f32], dim: usize, padded: usize) -> Scratch {
    let mut product = Scratch::zeroed(padded * padded);
    let offsets: Vec<usize> = (0..ROWS_PER_CHUNK).map(|row| row * padded).collect();
    for (a, b) in a.chunks(ROWS_PER_CHUNK * padded).zip(b.chunks(ROWS_PER_CHUNK * padded)) {
        let offsets = &offsets[..a.len() / padded];
        let mut start = 0;
        for height in tile_heights(dim) {
            for panel in (0..padded).step_by(PANEL) {
                let dst = product[start * padded + panel..].as_mut_ptr();
                // SAFETY: the tiles cover at most `padded` rows, as `padded` is a multiple of 16.
                unsafe { outer_sum(isa, height, &a[start..], padded, b[panel..].as_ptr(), offsets, dst, padded) };
            }
            start += height;
        }
    }
    product
}

simd_fn! {
    /// Every row's first `dim` values become `factor` times their softmax.
    ///
    /// # Safety
    /// `rows` holds whole rows of `padded` >= `dim` values.
    unsafe fn softmax_rows<S>(rows: &mut [f32], dim: usize, padded: usize, factor: f32) {
        for row in rows.chunks_exact_mut(padded) {
            let p = row.as_mut_ptr();
            let mut lanes = S::splat(f32::NEG_INFINITY);
            let mut k = 0;
            while k + LANES <= dim {
                lanes = S::max(S::load(p.add(k)), lanes);
                k += LANES;
            }
            let largest = row[k..dim].iter().copied().fold(S::max_lane(lanes), f32::max);
            let mut sum = S::splat(0.0);
            let mut k = 0;
            while k < dim {
                let n = (dim - k).min(LANES);
                let e = exp::<S>(S::sub(S::load_n(p.add(k), n), S::splat(largest)));
                S::store_n(p.add(k), e, n);
                sum = S::add(sum, S::load_n(p.add(k), n));
                k += LANES;
            }
            let factor = S::splat(factor / S::sum(sum));
            let mut k = 0;
            while k < dim {
                let n = (dim - k).min(LANES);
                S::store_n(p.add(k), S::mul(S::load_n(p.add(k), n), factor), n);
                k += LANES;
            }
        }
    }
}

simd_fn! {
    /// Every column becomes its softmax.
    ///
    /// # Safety
    /// `rows` holds whole rows of `padded` values, a multiple of eight.
    unsafe fn softmax_columns<S>(rows: &mut [f32], padded: usize) {
        let count = rows.len() / padded;
        for column in (0..padded).step_by(LANES) {
            let first = rows.as_mut_ptr().add(column);
            let mut largest = S::splat(f32::NEG_INFINITY);
            for row in 0..count {
                largest = S::max(S::load(first.add(row * padded)), largest);
            }
            let mut sum = S::splat(0.0);
            for row in 0..count {
                let at = first.add(row * padded);
                let e = exp::<S>(S::sub(S::load(at), largest));
                S::store(at, e);
                sum = S::add(sum, e);
            }
            let factor = S::div(S::splat(1.0), sum);
            for row in 0..count {
                let at = first.add(row * padded);
                S::store(at, S::mul(S::load(at), factor));
            }
        }
    }
}
