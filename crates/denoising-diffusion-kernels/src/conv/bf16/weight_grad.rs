//! Weight gradient: `dweight[o, c, tap] = sum over places p of x[p + tap, c] dy[p, o]`.
//!
//! The left factor is x with positions along its rows, `[channels, positions]`, in which a kernel position is a shift; the right one is dy at the places
//! of its runs ([`Flat::runs`]), with zeros where they are no pixels. The sum over places is divided among tasks, which go through blocks of it
//! that stay in the cache. If there are many blocks, tasks take all channels and prepare both factors of each block themselves; otherwise the factors
//! are prepared first, and tasks share the channels, too.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::matrix_unit::{
    Left, NarrowScratch, ROWS, Right, SIDE, Session, Sums, TERMS, TILE, Target, Unit, pair_lines, transpose_lines,
    transpose_rows,
};
use crate::par::{Scratch, Shared, for_each_task, task_range};

use super::super::Conv2dShape;
use super::super::parts::Parts;
use super::flat::Flat;

/// Channels of two tiles.
const PAIR: usize = ROWS;
/// The least number of places that are summed before the next kernel position: 32 channels of both factors then take 64 KiB.
const PLACES_PER_BLOCK: usize = 512;
/// The smallest desired number of tasks.
const MIN_TASKS: usize = 16;
/// Pairs of tiles of output channels per task, if tasks share the channels.
const PAIRS_PER_TASK: usize = 4;
/// Positions that a task transposes, a multiple of [`TERMS`].
const POSITIONS_PER_TASK: usize = 256;
/// Values of four tiles of sums.
const TILES_LEN: usize = 4 * SIDE * SIDE;
/// The largest number of sums that are kept for all tasks together.
const MOST_SUMS: usize = 1 << 22;

pub(in super::super) fn weight_grad(unit: Unit, shape: &Conv2dShape, x: &Parts<'_>, dy: &[f32], dweight: &mut [f32]) {
    // A block of interleaved images reaches far, so it is better prepared with the others.
    let many = shape.batch * shape.out_height() * shape.out_width() >= MIN_TASKS * PLACES_PER_BLOCK;
    let flat = if many { Flat::new(shape) } else { Flat::of_sums_over_places(shape) };
    let channels = [shape.in_channels, shape.out_channels];
    // Where the kernel reaches far, blocks are larger: what is within reach of them is prepared twice.
    let places_per_block = PLACES_PER_BLOCK.max(2 * flat.reach()).next_multiple_of(TERMS);
    let (runs, run_len) = flat.runs(places_per_block);
    let sources = Sources { unit, flat, x, dy, outputs: shape.out_channels, runs, run_len, taps: flat.taps() };
    let runs_per_block = PLACES_PER_BLOCK.div_ceil(run_len);
    let blocks = sources.runs.len().div_ceil(runs_per_block);
    let target = Weights { unit, values: Shared::new(dweight), channels, taps: sources.taps.len() };
    let (pairs, len) = (target.pairs(), target.taps * TILES_LEN);

    let alone = blocks >= MIN_TASKS && MIN_TASKS * pairs.len() * len <= MOST_SUMS;
    let whole = (!alone).then(|| sources.of_runs(0..sources.runs.len(), true));
    let pairs_per_task = if alone { pairs.len() } else { PAIRS_PER_TASK };
    let groups = pairs.len().div_ceil(pairs_per_task);
    let blocks_per_task = blocks.div_ceil(blocks.min(MIN_TASKS.div_ceil(groups)));
    let splits = blocks.div_ceil(blocks_per_task);
    // [splits, pairs, taps, 4 tiles]
    let mut partial = Scratch::new(if splits > 1 { splits * pairs.len() * len } else { 0 });
    let partial = Shared::new(&mut partial);
    for_each_task(splits * groups, |task| {
        let (split, group) = (task / groups, task_range(task % groups, pairs_per_task, pairs.len()));
        let at = split * pairs.len();
        let mut own = Scratch::new(if splits > 1 { 0 } else { group.len() * len });
        // SAFETY: only one task has each split and pair.
        let parts = || unsafe { partial.part((at + group.start) * len..(at + group.end) * len) };
        let sums = if splits > 1 { parts() } else { &mut own };
        for (i, block) in task_range(split, blocks_per_task, blocks).enumerate() {
            let runs = task_range(block, runs_per_block, sources.runs.len());
            let own = whole.is_none().then(|| sources.of_runs(runs.clone(), false));
            let Some(prepared) = whole.as_ref().or(own.as_ref()) else { continue };
            let session = Session::new(unit);
            for (pair, sums) in pairs[group.clone()].iter().zip(sums.chunks_exact_mut(len)) {
                // SAFETY: the factors hold these runs.
                unsafe { sources.multiply(&session, prepared, runs.clone(), *pair, i > 0, sums) };
            }
        }
        if splits == 1 {
            pairs[group].iter().zip(sums.chunks_exact(len)).for_each(|(pair, sums)| target.put(*pair, sums));
        }
    });
    if splits > 1 {
        target.put_sums(&pairs, splits, partial);
    }
}

/// The gradient to be written, `[outputs, inputs, taps]`.
struct Weights<'a> {
    unit: Unit,
    values: Shared<'a>,
    /// Inputs and outputs.
    channels: [usize; 2],
    taps: usize,
}

impl Weights<'_> {
    /// All pairs of tiles of inputs with pairs of tiles of outputs.
    fn pairs(&self) -> Vec<[usize; 2]> {
        let [inputs, outputs] = self.channels.map(|channels| channels.div_ceil(PAIR));
        (0..inputs).flat_map(|i| (0..outputs).map(move |o| [i, o])).collect()
    }

    /// Writes all sums over `splits`, `[splits, pairs, taps, 4 tiles]`, of which no other part may be in use.
    fn put_sums(&self, pairs: &[[usize; 2]], splits: usize, partial: Shared<'_>) {
        let len = self.taps * TILES_LEN;
        for_each_task(pairs.len(), |i| {
            // SAFETY: only one task has each pair.
            let of_split = |split: usize| unsafe {
                let at = split * pairs.len() + i;
                partial.part(at * len..(at + 1) * len)
            };
            let sums = of_split(0);
            for split in 1..splits {
                for (sum, value) in sums.iter_mut().zip(of_split(split)) {
                    *sum += *value;
                }
            }
            self.put(pairs[i], sums);
        });
    }

    /// Writes the sums of a pair, `[taps, 4 tiles]`; only one task may have it.
    fn put(&self, pair: [usize; 2], sums: &[f32]) {
        let &Self { unit, taps, channels: [inputs, outputs], .. } = self;
        let [input, output] = pair.map(|tiles| tiles * PAIR);
        let columns = PAIR.min(inputs - input);
        // Rows of weights, [32, columns, taps]; what is written beyond an input's kernel positions is overwritten by the next input's.
        let row_len = columns.next_multiple_of(SIDE) * taps + SIDE;
        let mut rows = Scratch::new(PAIR * row_len);
        // Sixteen lines of sums, each of one output, from `at` on and `step` apart, go to each output's row from `to` on.
        let mut transpose = |at: usize, step: usize, count: usize, output: usize, to: usize| {
            let mut lines = [0.0f32; SIDE * SIDE];
            let from = sums[at..at + (count - 1) * step + SIDE].as_ptr();
            // SAFETY: the slice holds `count` lines.
            unsafe { transpose_rows(unit, from, step, count, SIDE, lines.as_mut_ptr()) };
            for (line, row) in lines.chunks_exact(SIDE).zip(rows[output * row_len..].chunks_exact_mut(row_len)) {
                row[to..to + SIDE].copy_from_slice(line);
            }
        };
        for o in (0..PAIR.min(outputs - output)).step_by(SIDE) {
            let tile = |c: usize| (c / SIDE * 2 + o / SIDE) * SIDE * SIDE;
            if taps == 1 {
                (0..columns).step_by(SIDE).for_each(|c| transpose(tile(c), SIDE, SIDE, o, c));
                continue;
            }
            for (c, t) in (0..columns).flat_map(|c| (0..taps).step_by(SIDE).map(move |t| (c, t))) {
                let at = t * TILES_LEN + tile(c) + c % SIDE * SIDE;
                transpose(at, TILES_LEN, SIDE.min(taps - t), o, c * taps + t);
            }
        }
        for (o, row) in rows.chunks_exact(row_len).take(outputs - output).enumerate() {
            let at = ((output + o) * inputs + input) * taps;
            // SAFETY: only this task has the pair.
            unsafe { self.values.part(at..at + columns * taps) }.copy_from_slice(&row[..columns * taps]);
        }
    }
}

/// What the factors are made from.
struct Sources<'a> {
    unit: Unit,
    flat: Flat,
    x: &'a Parts<'a>,
    dy: &'a [f32],
    outputs: usize,
    /// Where each run of places begins.
    runs: Vec<usize>,
    run_len: usize,
    taps: Vec<usize>,
}

/// Both factors for some runs of places.
struct Prepared {
    /// The first run.
    first: usize,
    /// x from that run's first position on, `[channels, stride]`.
    left: NarrowScratch,
    stride: usize,
    /// dy, `[outputs / 16, runs run_len / 2, 16, 2]`.
    right: NarrowScratch,
    panel_len: usize,
}

impl Sources<'_> {
    /// Both factors for these runs, prepared by several tasks or on this thread.
    fn of_runs(&self, runs: Range<usize>, in_tasks: bool) -> Prepared {
        let for_each = |tasks: usize, f: &(dyn Fn(usize) + Sync)| {
            if in_tasks { for_each_task(tasks, f) } else { (0..tasks).for_each(f) }
        };
        let start = self.runs[runs.start];
        let positions = self.runs[runs.end - 1] + self.run_len + self.flat.reach() - start;
        // Rows an odd number of cache lines apart do not collide in the cache.
        let stride = (positions.div_ceil(TERMS) | 1) * TERMS;
        // A part's last panel may be written beyond its channels.
        let rows = self.x.channels().next_multiple_of(SIDE) + SIDE;
        let mut left = NarrowScratch::new(rows * stride);
        let out = Shared::new(left.pairs());
        for_each(stride.div_ceil(POSITIONS_PER_TASK), &|task| {
            for at in task_range(task, POSITIONS_PER_TASK, stride).step_by(TERMS) {
                self.transpose(start + at, out.at(at / 2).cast(), stride);
            }
        });
        let panel_len = runs.len() * self.run_len * PANEL;
        let panels = self.outputs.div_ceil(PANEL);
        let mut right = NarrowScratch::new(panels * panel_len);
        let out = Shared::new(right.pairs());
        for_each(runs.len(), &|i| {
            for at in (0..self.run_len).step_by(TERMS) {
                let first = (i * self.run_len + at) / TERMS * TILE;
                self.pair(self.runs[runs.start + i] + at, out.at(first / 2), panel_len);
            }
        });
        Prepared { first: runs.start, left, stride, right, panel_len }
    }

    /// [`TERMS`] positions of x as columns of the left factor, whose first row is at `to`.
    fn transpose(&self, position: usize, to: *mut u16, stride: usize) {
        let mut pixels = [usize::MAX; TERMS];
        self.flat.each_source(position..position + TERMS, |at, pixel, count| {
            for (to, pixel) in pixels[at..at + count].iter_mut().zip(pixel..) {
                *to = pixel;
            }
        });
        for part in self.x.iter() {
            for first in (0..part.channels).step_by(SIDE) {
                let lines = pixels.map(|pixel| line(part.values, pixel, part.channels, first));
                // SAFETY: lines have the remaining channels, up to sixteen; the left factor has rows for them, and only this task has its columns.
                unsafe {
                    let to = to.add((part.first + first) * stride);
                    transpose_lines(self.unit, &lines, SIDE.min(part.channels - first), to, stride);
                }
            }
        }
    }

    /// [`TERMS`] places of dy as tiles of the right factor, of which that of the first panel is at `to`.
    fn pair(&self, place: usize, to: *mut f32, panel_len: usize) {
        let mut pixels = [usize::MAX; TERMS];
        self.flat.each_run(place..place + TERMS, |at, run| {
            for (to, pixel) in pixels[at..].iter_mut().zip(run) {
                *to = pixel;
            }
        });
        for (panel, first) in (0..self.outputs).step_by(PANEL).enumerate() {
            let lines = pixels.map(|pixel| line(self.dy, pixel, self.outputs, first));
            // SAFETY: as in `transpose`.
            unsafe {
                let to = to.add(panel * panel_len / 2);
                pair_lines(self.unit, &lines, PANEL.min(self.outputs - first), to);
            }
        }
    }

    /// Sums of the products of two pairs of tiles at each kernel position, over the places of `runs`.
    ///
    /// # Safety
    /// The factors must hold these runs.
    unsafe fn multiply(
        &self,
        session: &Session,
        prepared: &Prepared,
        runs: Range<usize>,
        [input, output]: [usize; 2],
        add: bool,
        sums: &mut [f32],
    ) {
        let &Prepared { first, ref left, stride, ref right, panel_len } = prepared;
        let right = Right {
            first: right.as_ptr().wrapping_add(2 * output * panel_len + (runs.start - first) * self.run_len * PANEL),
            second: ((2 * output + 1) * PANEL < self.outputs).then_some(panel_len),
        };
        let start = self.runs[runs.start];
        let distances: Vec<usize> = self.runs[runs].iter().map(|run| run - start).collect();
        let row = left.as_ptr().wrapping_add(input * PAIR * stride + start - self.runs[first]);
        for (tap, sums) in self.taps.iter().zip(sums.chunks_exact_mut(TILES_LEN)) {
            let left = Left {
                first: row.wrapping_add(*tap),
                stride,
                second: (input * PAIR + SIDE < self.x.channels()).then_some(SIDE * stride),
                runs: &distances,
                steps: self.run_len / TERMS,
            };
            // SAFETY: the caller's contract.
            unsafe { session.multiply(left, right, add, Target::of(&mut *sums.as_mut_ptr().cast::<Sums>())) };
        }
    }
}

/// Address of channel `first` of a pixel, or of zeros.
fn line(values: &[f32], pixel: usize, channels: usize, first: usize) -> *const f32 {
    static ZEROS: [f32; SIDE] = [0.0; SIDE];
    if pixel == usize::MAX { ZEROS.as_ptr() } else { values[pixel * channels + first..].as_ptr() }
}
