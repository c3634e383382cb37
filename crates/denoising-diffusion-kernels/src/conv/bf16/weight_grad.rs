//! Weight gradient: `dweight[o, c, tap] = sum over places p of x[p + tap, c] dy[p, o]`.
//!
//! The left factor is x with positions along its rows, `[channels, positions]`, in which a kernel position is a shift; the right one is dy, with zeros
//! at places that are no pixels. The sum over places is divided among tasks, which go through blocks of it that stay in the cache.

use crate::gemm::PANEL;
use crate::matrix_unit::{Left, NarrowScratch, Right, SIDE, Session, Sums, TERMS, Unit, narrow, pair};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{EightLanes, Isa, SQUARE, Simd, simd_fn};

use super::super::Conv2dShape;
use super::super::parts::Parts;
use super::flat::Flat;

/// Channels of two tiles.
const PAIR: usize = 2 * SIDE;
/// Number of places that are summed before the next kernel position: 32 channels of both factors then take 64 KiB.
const PLACES_PER_BLOCK: usize = 512;
/// The smallest desired number of tasks; if the weight is small, the sum over places is divided.
const MIN_TASKS: usize = 16;
/// Pairs of tiles of output channels per task.
const PAIRS_PER_TASK: usize = 4;

pub(in super::super) fn weight_grad(
    (isa, unit): (Isa, Unit),
    shape: &Conv2dShape,
    x: &Parts<'_>,
    dy: &[f32],
    dweight: &mut [f32],
) {
    let (inputs, outputs) = (shape.in_channels, shape.out_channels);
    let flat = Flat::new(shape);
    let (places, taps) = (flat.places(), flat.taps());
    let blocks = places.div_ceil(PLACES_PER_BLOCK);
    // The last block's last tile may end after the last place.
    let padded = places.next_multiple_of(TERMS);
    let left = transposed(isa, flat, x, padded + flat.reach());
    let right = paired(isa, flat, dy, outputs, padded);

    let (input_pairs, output_pairs) = (inputs.div_ceil(PAIR), outputs.div_ceil(PAIR));
    let groups = output_pairs.div_ceil(PAIRS_PER_TASK);
    let blocks_per_task = blocks.div_ceil(blocks.min(MIN_TASKS.div_ceil(input_pairs * groups)));
    let splits = blocks.div_ceil(blocks_per_task);
    // [splits, input pairs, output pairs, taps, 4 tiles]
    let mut partial = Scratch::new(splits * input_pairs * output_pairs * taps.len() * TILES_LEN);
    let out = Shared::new(&mut partial);
    for_each_task(splits * input_pairs * groups, |task| {
        let (split, input_pair, group) = (task / (input_pairs * groups), task / groups % input_pairs, task % groups);
        let pairs = task_range(group, PAIRS_PER_TASK, output_pairs);
        let session = Session::new(unit);
        for (i, block) in task_range(split, blocks_per_task, blocks).enumerate() {
            let places = task_range(block, PLACES_PER_BLOCK, padded);
            for output_pair in pairs.clone() {
                let panel = right.panel(2 * output_pair).wrapping_add(places.start * PANEL);
                let right = Right {
                    first: panel,
                    second: ((2 * output_pair + 1) * PANEL < outputs).then_some(right.panel_len),
                };
                for (t, tap) in taps.iter().enumerate() {
                    let at = ((split * input_pairs + input_pair) * output_pairs + output_pair) * taps.len() + t;
                    // SAFETY: only one task has each split and pair of tiles.
                    let sums = unsafe { out.part(at * TILES_LEN..(at + 1) * TILES_LEN) };
                    let left = Left {
                        first: left.row(input_pair * PAIR).wrapping_add(places.start + tap),
                        stride: left.stride,
                        second: (input_pair * PAIR + SIDE < inputs).then_some(SIDE * left.stride),
                        runs: &[0],
                        steps: places.len() / TERMS,
                    };
                    // SAFETY: both factors hold whole tiles up to `padded`, the left one all positions within reach of them.
                    unsafe {
                        let sums = &mut *sums.as_mut_ptr().cast::<Sums>();
                        session.multiply(left, right, i > 0, sums);
                    }
                }
            }
        }
    });
    add_up(&partial, splits, taps.len(), [inputs, outputs], dweight);
}

/// Values of four tiles of sums.
const TILES_LEN: usize = 4 * SIDE * SIDE;

/// Adds up the sums of all splits, and puts them where the weights are.
fn add_up(partial: &[f32], splits: usize, taps: usize, [inputs, outputs]: [usize; 2], dweight: &mut [f32]) {
    let output_pairs = outputs.div_ceil(PAIR);
    let split_len = partial.len() / splits;
    let out = Shared::new(dweight);
    for_each_task(inputs.div_ceil(PAIR) * output_pairs, |task| {
        let (input, output) = (task / output_pairs * PAIR, task % output_pairs * PAIR);
        let len = taps * TILES_LEN;
        let mut sums = Scratch::new(len);
        sums.copy_from_slice(&partial[task * len..][..len]);
        for split in 1..splits {
            for (sum, value) in sums.iter_mut().zip(&partial[split * split_len + task * len..][..len]) {
                *sum += value;
            }
        }
        for o in 0..PAIR.min(outputs - output) {
            let columns = PAIR.min(inputs - input);
            let at = ((output + o) * inputs + input) * taps;
            // SAFETY: only one task has each pair of tiles.
            let row = unsafe { out.part(at..at + columns * taps) };
            for (c, weights) in row.chunks_exact_mut(taps).enumerate() {
                let cell = (c / SIDE * 2 + o / SIDE) * SIDE * SIDE + c % SIDE * SIDE + o % SIDE;
                for (weight, sums) in weights.iter_mut().zip(sums.chunks_exact(TILES_LEN)) {
                    *weight = sums[cell];
                }
            }
        }
    });
}

/// x in bf16 with positions along its rows.
struct Transposed {
    values: NarrowScratch,
    stride: usize,
}

impl Transposed {
    fn row(&self, channel: usize) -> *const u16 {
        self.values.as_ptr().wrapping_add(channel * self.stride)
    }
}

/// The first `positions` of x, `[channels, positions]`, with as many channels as whole tiles have.
fn transposed(isa: Isa, flat: Flat, x: &Parts<'_>, positions: usize) -> Transposed {
    // Rows an odd number of cache lines apart do not collide in the cache.
    let stride = (positions.div_ceil(TERMS) | 1) * TERMS;
    let channels = x.channels().next_multiple_of(SIDE);
    let mut values = NarrowScratch::new(channels * stride);
    let out = Shared::new(values.pairs());
    for_each_task(stride.div_ceil(POSITIONS_PER_TASK), |task| {
        let range = task_range(task, POSITIONS_PER_TASK, stride);
        for part in x.iter() {
            for first in (0..part.channels).step_by(SQUARE) {
                let width = SQUARE.min(part.channels - first);
                let mut rows = [[0.0f32; POSITIONS_PER_TASK]; SQUARE];
                flat.each_source(range.clone(), |at, pixel, count| {
                    let from = &part.values[pixel * part.channels + first..];
                    for i in (0..count).step_by(SQUARE) {
                        let count = SQUARE.min(count - i);
                        if width == SQUARE && count == SQUARE {
                            let from = &from[i * part.channels..][..(SQUARE - 1) * part.channels + SQUARE];
                            // SAFETY: the slice holds eight rows of eight values, `rows` eight columns from the position on.
                            unsafe { transpose(isa, from.as_ptr(), part.channels, &mut rows, at + i) };
                        } else {
                            for k in 0..count {
                                for (c, row) in rows.iter_mut().enumerate().take(width) {
                                    row[at + i + k] = from[(i + k) * part.channels + c];
                                }
                            }
                        }
                    }
                });
                for (c, row) in rows.iter().enumerate().take(width) {
                    let at = (part.first + first + c) * stride + range.start;
                    // SAFETY: every task has its own positions.
                    let to = unsafe { out.part(at / 2..(at + range.len()) / 2) };
                    // SAFETY: none but the instruction set.
                    unsafe { pair_up(isa, &row[..range.len()], to) };
                }
            }
        }
        for channel in x.channels()..channels {
            let at = channel * stride + range.start;
            // SAFETY: every task has its own positions.
            unsafe { out.part(at / 2..(at + range.len()) / 2) }.fill(0.0);
        }
    });
    Transposed { values, stride }
}

/// Positions that a task transposes, a multiple of [`TERMS`].
const POSITIONS_PER_TASK: usize = 256;

simd_fn! {
    /// `rows[c][at + i] = from[i stride + c]` for c and i below 8.
    ///
    /// # Safety
    /// All must be valid.
    unsafe fn transpose<S>(from: *const f32, stride: usize, rows: &mut [[f32; POSITIONS_PER_TASK]; SQUARE], at: usize) {
        let pixels = std::array::from_fn(|i| S::Eight::load(from.add(i * stride)));
        for (row, channel) in rows.iter_mut().zip(S::Eight::transpose(pixels)) {
            S::Eight::store(row[at..at + SQUARE].as_mut_ptr(), channel);
        }
    }
}

simd_fn! {
    /// Neighbours as pairs.
    ///
    /// # Safety
    /// None beyond the instruction set.
    unsafe fn pair_up<S>(values: &[f32], pairs: &mut [f32]) {
        let to = std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast::<u16>(), 2 * pairs.len());
        for (to, value) in to.iter_mut().zip(values) {
            *to = narrow(*value);
        }
    }
}

/// dy as tiles of a right factor, `[outputs / 16, places / 2, 16, 2]`.
struct Paired {
    values: NarrowScratch,
    /// Values of a panel.
    panel_len: usize,
}

impl Paired {
    fn panel(&self, panel: usize) -> *const u16 {
        self.values.as_ptr().wrapping_add(panel * self.panel_len)
    }
}

fn paired(isa: Isa, flat: Flat, dy: &[f32], outputs: usize, places: usize) -> Paired {
    let panel_len = places * PANEL;
    let panels = outputs.div_ceil(PANEL);
    let mut values = NarrowScratch::new(panels * panel_len);
    let out = Shared::new(values.pairs());
    for_each_task(places.div_ceil(POSITIONS_PER_TASK), |task| {
        let range = task_range(task, POSITIONS_PER_TASK, places);
        for panel in 0..panels {
            let lanes = PANEL.min(outputs - panel * PANEL);
            let mut lines = [[0.0f32; PANEL]; POSITIONS_PER_TASK];
            flat.each_run(range.clone(), |at, pixels| {
                for (line, pixel) in lines[at..].iter_mut().zip(pixels) {
                    line[..lanes].copy_from_slice(&dy[pixel * outputs + panel * PANEL..][..lanes]);
                }
            });
            let at = (panel * panel_len + range.start * PANEL) / 2;
            // SAFETY: every task has its own places.
            let to = unsafe { out.part(at..at + range.len() * PANEL / 2) };
            // SAFETY: none but the instruction set.
            unsafe { pair_lines(isa, &lines[..range.len()], to) };
        }
    });
    Paired { values, panel_len }
}

simd_fn! {
    /// Neighbouring lines as lines of pairs.
    ///
    /// # Safety
    /// None beyond the instruction set.
    unsafe fn pair_lines<S>(lines: &[[f32; PANEL]], pairs: &mut [f32]) {
        for (lines, pairs) in lines.chunks_exact(2).zip(pairs.chunks_exact_mut(PANEL)) {
            for (i, cell) in pairs.iter_mut().enumerate() {
                *cell = pair(lines[0][i], lines[1][i]);
            }
        }
    }
}
