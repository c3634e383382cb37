//! Softmax attention whose products have factors rounded to bf16 and sums in f32, on a matrix unit, and its gradient. As [`super::full`] and
//! [`super::full_grad`] otherwise: scores, softmax and what is carried from block to block are in f32.

use std::ops::Range;

use super::full::{self, softmax_step_roughly};
use super::full_grad::{self, softmax_grad_roughly};
use super::pack::{MemoryLayout, carve, output_rows};
use super::rows::row_dots;
use super::{AttentionShape, KEY, QUERY, VALUE, sum_batch};
use crate::matrix_unit::{LONGEST_LINE, ROWS, Rows, SIDE, Session, TERMS, Terms, Tiles, Unit};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

/// Number of queries in a block of scores, a multiple of [`TERMS`] and [`ROWS`].
const QUERIES: usize = 128;
/// Number of keys in a block of scores, a multiple of [`TERMS`].
const KEYS: usize = 128;
/// With fewer positions, little or nothing is saved.
const LEAST_POSITIONS: usize = 128;
/// The smallest desired number of tasks of the forward pass; if there are few heads, tasks share their queries.
const MIN_TASKS: usize = 16;

/// The unit for a layer, if there is one and it pays.
pub(super) fn unit_for(shape: &AttentionShape) -> Option<Unit> {
    (shape.positions >= LEAST_POSITIONS && (SIDE..=LONGEST_LINE).contains(&shape.head_dim)).then(Unit::detect).flatten()
}

/// Addresses of a head's rows.
struct Head<'a> {
    shape: &'a AttentionShape,
    qkv: &'a [f32],
    memory: &'a [f32],
    image: usize,
    head: usize,
}

impl<'a> Head<'a> {
    fn new(shape: &'a AttentionShape, qkv: &'a [f32], memory: &'a [f32], pair: usize) -> Self {
        Self { shape, qkv, memory, image: pair / shape.heads, head: pair % shape.heads }
    }

    fn queries(&self, positions: Range<usize>) -> Vec<*const f32> {
        self.part(QUERY, positions).collect()
    }

    /// Keys or values, those of the memory first.
    fn keys(&self, part: usize) -> Vec<*const f32> {
        let layout = MemoryLayout::RowsOfChannels;
        let row = |i| self.memory[layout.at(self.shape, part - KEY, self.head, i, 0)..].as_ptr();
        (0..self.shape.memory).map(row).chain(self.part(part, 0..self.shape.positions)).collect()
    }

    fn part(&self, part: usize, positions: Range<usize>) -> impl Iterator<Item = *const f32> {
        positions.map(move |position| self.qkv[self.shape.qkv_at(self.image, position, part, self.head)..].as_ptr())
    }
}

/// Keys of a block, whole panels, and its terms in sums over keys.
fn key_block(block: usize, keys: usize) -> (Range<usize>, Range<usize>, Terms) {
    let range = task_range(block, KEYS, keys);
    let steps = range.len().div_ceil(TERMS);
    let first = range.start / TERMS;
    let panels = range.start / SIDE..(first + steps) * TERMS / SIDE;
    (range, panels, Terms { left: 0, right: first, steps })
}

fn all_terms(len: usize) -> Terms {
    Terms { left: 0, right: 0, steps: len.div_ceil(TERMS) }
}

/// As [`super::attention_forward`].
pub(super) fn forward(
    (isa, unit): (Isa, Unit),
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (dim, keys) = (shape.head_dim, shape.keys());
    let (width, scale) = (shape.padded_dim(), 1.0 / (dim as f32).sqrt());
    let pairs = shape.batch * shape.heads;
    let blocks = shape.positions.div_ceil(QUERIES);
    let blocks_per_task = blocks.div_ceil(blocks.min(MIN_TASKS.div_ceil(pairs)));
    let groups = blocks.div_ceil(blocks_per_task);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    for_each_task(pairs * groups, |task| {
        let (pair, blocks) = (task / groups, task_range(task % groups, blocks_per_task, blocks));
        let head = Head::new(shape, qkv, memory, pair);
        let padded = keys.next_multiple_of(ROWS);
        let lens = [
            Rows::room(keys, dim),
            Tiles::room(dim, padded),
            Tiles::room(keys, dim),
            QUERIES * KEYS,
            QUERIES * width,
            Rows::room(QUERIES, KEYS),
        ];
        let mut room = Scratch::new(lens.iter().sum());
        let [key_rows, key_tiles, value_tiles, scores, totals, weights] = carve(&mut room, lens);
        let mut query_room = Scratch::new(Rows::room(QUERIES, dim));
        // SAFETY: the rows have `dim` values.
        let (key_tiles, value_tiles) = unsafe {
            let rows = Rows::of(key_rows, unit, &head.keys(KEY), dim);
            (Tiles::of_rows(key_tiles, unit, &rows, dim), Tiles::of_lines(value_tiles, unit, &head.keys(VALUE), dim))
        };
        let mut weights = Rows::new(weights, QUERIES, KEYS);
        let session = Session::new(unit);
        for queries in blocks.map(|block| task_range(block, QUERIES, shape.positions)) {
            let count = queries.len();
            let rows = 0..count.next_multiple_of(ROWS);
            // SAFETY: as above.
            let query_rows = unsafe {
                let room = &mut query_room[..Rows::room(count, dim)];
                Rows::of(room, unit, &head.queries(queries.clone()), dim)
            };
            let (mut maxima, mut sums) = ([f32::NEG_INFINITY; QUERIES], [0.0; QUERIES]);
            totals.fill(0.0);
            for (keys, panels, terms) in (0..keys.div_ceil(KEYS)).map(|block| key_block(block, keys)) {
                let all = all_terms(dim);
                session.product((&query_rows, rows.clone()), (&key_tiles, panels), all, false, scores, KEYS);
                for i in 0..count {
                    let (row, rest) = scores[i * KEYS..(i + 1) * KEYS].split_at_mut(keys.len());
                    let total = &mut totals[i * width..(i + 1) * width];
                    // SAFETY: `isa` is one that this machine has.
                    unsafe { softmax_step_roughly(isa, row, scale, &mut maxima[i], &mut sums[i], total) };
                    rest.fill(0.0);
                }
                scores[count * KEYS..rows.end * KEYS].fill(0.0);
                weights.set(unit, &scores[..rows.end * KEYS], KEYS, terms.steps * TERMS);
                let values = (&value_tiles, 0..width / SIDE);
                session.product((&weights, rows.clone()), values, terms, true, totals, width);
            }
            full::put(shape, pair, queries, [&maxima, &sums], (totals, width), out, lse);
        }
    });
}

/// As [`super::attention_backward`].
#[allow(clippy::too_many_arguments, reason = "inputs, results and gradients of one layer")]
pub(super) fn backward(
    (isa, unit): (Isa, Unit),
    shape: &AttentionShape,
    qkv: &[f32],
    memory: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    dmemory: &mut [f32],
) {
    let (width, positions) = (shape.padded_dim(), shape.positions);
    let mut memory_parts = Scratch::zeroed(shape.batch * shape.memory_len());
    let (dqkv, parts) = (Shared::new(dqkv), Shared::new(&mut memory_parts));
    for_each_task(shape.batch * shape.heads, |pair| {
        let head = Head::new(shape, qkv, memory, pair);
        let (mut out_rows, mut dout_rows) = (Scratch::new(positions * width), Scratch::new(positions * width));
        let mut dots = Scratch::new(positions);
        output_rows(isa, shape, out, head.image, head.head, &mut out_rows);
        output_rows(isa, shape, dout, head.image, head.head, &mut dout_rows);
        // SAFETY: `isa` is one that this machine has.
        unsafe { row_dots(isa, &out_rows, &dout_rows, width, &mut dots) };
        let lse = &lse[pair * positions..(pair + 1) * positions];
        let [queries, keys, values] = grads_of((isa, unit), &head, &dout_rows, lse, &dots);
        full_grad::put(isa, shape, pair, [&queries, &keys, &values], dqkv, parts);
    });
    sum_batch(&memory_parts, dmemory);
}

/// Gradients of a head's queries, keys and values, `[rows, padded_dim]`, with spare rows.
fn grads_of((isa, unit): (Isa, Unit), head: &Head<'_>, dout: &[f32], lse: &[f32], dots: &[f32]) -> [Scratch; 3] {
    let (dim, width) = (head.shape.head_dim, head.shape.padded_dim());
    let (positions, keys) = (head.shape.positions, head.shape.keys());
    let scale = 1.0 / (dim as f32).sqrt();
    let [mut dqueries, mut dkeys, mut dvalues] =
        [positions, keys, keys].map(|count| Scratch::zeroed(count.next_multiple_of(ROWS) * width));

    let dout_lines: Vec<_> = dout.chunks_exact(width).map(<[f32]>::as_ptr).collect();
    let (query_lines, key_lines) = (head.queries(0..positions), head.keys(KEY));
    let most = QUERIES.max(KEYS);
    let [for_positions, for_keys] = [positions, keys].map(|count| [Rows::room(count, dim), Tiles::room(count, dim)]);
    let for_columns = Tiles::room(dim, keys.next_multiple_of(ROWS));
    let lens = [
        for_positions[0],
        for_positions[0],
        for_keys[0],
        for_keys[0],
        for_positions[1],
        for_positions[1],
        for_keys[1],
        for_columns,
        for_columns,
        QUERIES * KEYS,
        QUERIES * KEYS,
        Rows::room(most, most),
    ];
    let mut room = Scratch::new(lens.iter().sum());
    let [q_rows, do_rows, k_rows, v_rows, q_tiles, do_tiles, k_tiles, k_columns, v_columns, p, ds, factor] =
        carve(&mut room, lens);
    // SAFETY: all lines have `dim` values.
    let (query_rows, dout_rows, key_rows, value_rows, query_tiles, dout_tiles, key_tiles) = unsafe {
        (
            Rows::of(q_rows, unit, &query_lines, dim),
            Rows::of(do_rows, unit, &dout_lines, dim),
            Rows::of(k_rows, unit, &key_lines, dim),
            Rows::of(v_rows, unit, &head.keys(VALUE), dim),
            Tiles::of_lines(q_tiles, unit, &query_lines, dim),
            Tiles::of_lines(do_tiles, unit, &dout_lines, dim),
            Tiles::of_lines(k_tiles, unit, &key_lines, dim),
        )
    };
    let key_columns = Tiles::of_rows(k_columns, unit, &key_rows, dim);
    let value_columns = Tiles::of_rows(v_columns, unit, &value_rows, dim);
    let mut factor = Rows::new(factor, most, most);
    let (all, columns) = (all_terms(dim), 0..width / SIDE);
    let session = Session::new(unit);
    for (keys, panels, over_keys) in (0..keys.div_ceil(KEYS)).map(|block| key_block(block, keys)) {
        let key_count = over_keys.steps * TERMS;
        for queries in (0..positions.div_ceil(QUERIES)).map(|block| task_range(block, QUERIES, positions)) {
            let count = queries.len().next_multiple_of(ROWS);
            let rows = queries.start..queries.start + count;
            let (of_keys, of_values) = ((&key_columns, panels.clone()), (&value_columns, panels.clone()));
            session.product((&query_rows, rows.clone()), of_keys, all, false, p, KEYS);
            session.product((&dout_rows, rows), of_values, all, false, ds, KEYS);
            for i in 0..queries.len() {
                let (p, ds) = (&mut p[i * KEYS..][..key_count], &mut ds[i * KEYS..][..key_count]);
                let query = queries.start + i;
                // SAFETY: `isa` is one that this machine has.
                unsafe { softmax_grad_roughly(isa, p, ds, scale, lse[query], dots[query]) };
                p[keys.len()..].fill(0.0);
                ds[keys.len()..].fill(0.0);
            }
            let (p, ds) = (&mut p[..count * KEYS], &mut ds[..count * KEYS]);
            p[queries.len() * KEYS..].fill(0.0);
            ds[queries.len() * KEYS..].fill(0.0);

            factor.set(unit, ds, KEYS, key_count);
            let to = &mut dqueries[queries.start * width..];
            session.product((&factor, 0..count), (&key_tiles, columns.clone()), over_keys, true, to, width);
            let over_queries = Terms { left: 0, right: queries.start / TERMS, steps: count / TERMS };
            for (matrix, tiles, sums) in [(&*p, &dout_tiles, &mut dvalues), (&*ds, &query_tiles, &mut dkeys)] {
                factor.set_transposed(unit, matrix, KEYS, key_count);
                let to = &mut sums[keys.start * width..];
                session.product((&factor, 0..key_count), (tiles, columns.clone()), over_queries, true, to, width);
            }
        }
    }
    [dqueries, dkeys, dvalues]
}
