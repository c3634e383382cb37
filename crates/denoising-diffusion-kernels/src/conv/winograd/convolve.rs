//! The convolution, forward and as input gradient, in one of two orders:
//!
//! - [`by_tiles`], if tiles outnumber output channels: the kernels are transformed once; each task takes a block of tiles through all three steps, in
//!   the second-level cache.
//! - [`by_channels`], if they do not: the tiles are transformed once; each task takes a few output channels through all three steps and transforms
//!   their kernels as it needs them. A transformed weight is four times as large as the weight, and is never written to memory.

use super::gather::Tiles;
use super::product::{TERMS_PER_SUM, multiply};
use super::transform::{FREQUENCIES, Kernels, Spread, filter_rows, input_tile, output_tile, output_tile_halved};
use crate::conv::direct::Direction;
use crate::conv::parts::{Parts, PartsMut};
use crate::conv::{Conv2dShape, Epilogue};
use crate::gemm::{PANEL, spaced};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, MAX_LANES};

/// Number of values of transformed input and output per task of [`by_tiles`].
const VALUES_PER_TASK: usize = 100 << 10;
/// Number of output channels that a task of [`by_tiles`] computes at a time.
const GROUP: usize = 4 * PANEL;
/// Number of input channels that a task of [`by_channels`] takes at a time: their transformed kernels fit into the second-level cache.
const BLOCK: usize = 64;
/// Number of rows of sixteen kernels that one thread transforms before others would have woken up.
const FEW_ROWS: usize = 256;
/// Number of panels of output channels per task of [`by_channels`]: two vectors.
const fn panels_per_task(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 2,
        _ => 1,
    }
}
/// Number of tiles that are transformed at a time in [`by_channels`].
const TILES_PER_TASK: usize = 4;

/// A convolution as a Winograd product: `source` is transformed, `targets` are written.
struct Job<'a> {
    isa: Isa,
    direction: Direction,
    shape: &'a Conv2dShape,
    source: &'a Parts<'a>,
    weight: &'a [f32],
    targets: &'a PartsMut<'a>,
    epilogue: Epilogue<'a>,
    /// Input and output channels of the product.
    channels: [usize; 2],
    patches: Tiles,
    results: Tiles,
}

/// target = epilogue of source * weight, in the given direction, for shapes to which this [`super::applies`]. All parts of source and targets must
/// begin at multiples of sixteen channels; an epilogue needs the forward direction and a single target.
pub(crate) fn convolve(
    isa: Isa,
    direction: Direction,
    shape: &Conv2dShape,
    source: &Parts<'_>,
    weight: &[f32],
    epilogue: Epilogue<'_>,
    targets: &PartsMut<'_>,
) {
    let (input, output) = ([shape.height, shape.width], [shape.out_height(), shape.out_width()]);
    let (batch, padding, upsample) = (shape.batch, shape.padding[0], shape.upsample);
    // The input gradient is the convolution of dy, padded by the difference of the padding to 2, with the kernel turned by half a turn.
    let (patches, results, channels) = match direction {
        Direction::Forward => (
            Tiles::new(batch, output, input, upsample, padding),
            Tiles::new(batch, output, output, 1, 0),
            [shape.in_channels, shape.out_channels],
        ),
        Direction::InputGrad => {
            let enlarged = input.map(|n| n * upsample);
            (
                Tiles::new(batch, enlarged, output, 1, 2 - padding),
                Tiles::new(batch, enlarged, input, upsample, 0),
                [shape.out_channels, shape.in_channels],
            )
        }
    };
    let job = Job { isa, direction, shape, source, weight, targets, epilogue, channels, patches, results };
    if job.patches.count() > channels[1] { job.by_tiles() } else { job.by_channels() }
}

impl Job<'_> {
    fn by_tiles(&self) {
        let [from, to] = self.channels;
        let (tiles, panels) = (self.patches.count(), to.div_ceil(PANEL));
        // [36, panels, from, 16]
        let filter_len = spaced(panels * from * PANEL);
        let mut filters = Scratch::new(FREQUENCIES * filter_len);
        let out = Shared::new(&mut filters);
        let transform = |panel| {
            // SAFETY: every task has its own panel.
            unsafe { self.filters(panel, 0..from, out.at(panel * from * PANEL), filter_len) };
        };
        if panels * from <= FEW_ROWS {
            (0..panels).for_each(transform)
        } else {
            for_each_task(panels, transform)
        }

        let stride = from.next_multiple_of(PANEL);
        let group = GROUP.min(panels * PANEL);
        let block = (VALUES_PER_TASK / (FREQUENCIES * (stride + group)) / 6 * 6).clamp(12, 48);
        let zeros = Scratch::zeroed(from.max(to));
        for_each_task(tiles.div_ceil(block), |task| {
            let tiles = task_range(task, block, tiles);
            let (rows_len, sums_len) = (spaced(block * stride), spaced(block * group));
            let mut rows = Scratch::new(FREQUENCIES * rows_len);
            let mut sums = self.sums(sums_len);
            let start = rows.as_mut_ptr();
            self.transform(tiles.clone(), &zeros, |row| Spread {
                at: start.wrapping_add(row * stride),
                frequency_stride: rows_len,
                block_len: stride,
                block_stride: 0,
            });
            for first in (0..panels).step_by(GROUP / PANEL) {
                let panels = first..panels.min(first + GROUP / PANEL);
                for f in 0..FREQUENCIES {
                    for k in (0..from).step_by(TERMS_PER_SUM) {
                        let a = rows[f * rows_len + k..].as_ptr();
                        let b = filters[f * filter_len + (first * from + k) * PANEL..].as_ptr();
                        let dst = sums[f * sums_len..].as_mut_ptr();
                        let (count, len) = (tiles.len(), TERMS_PER_SUM.min(from - k));
                        // SAFETY: rows, panels and sums have the lengths that their strides say.
                        unsafe {
                            let b_stride = from * PANEL;
                            multiply(self.isa, count, len, panels.len(), a, stride, b, b_stride, k > 0, dst, group);
                        }
                    }
                }
                let channels = first * PANEL..to.min(panels.end * PANEL);
                for (row, tile) in tiles.clone().enumerate() {
                    self.output(tile, channels.clone(), &sums[row * group..], sums_len, &zeros);
                }
            }
        });
    }

    fn by_channels(&self) {
        let [from, to] = self.channels;
        let tiles = self.patches.count();
        let zeros = Scratch::zeroed(from.max(to));
        // [blocks of input channels, 36, tiles, BLOCK]
        let rows_len = spaced(tiles * BLOCK);
        let block_len = FREQUENCIES * rows_len;
        let mut rows = Scratch::new(from.div_ceil(BLOCK) * block_len);
        let out = Shared::new(&mut rows);
        for_each_task(tiles.div_ceil(TILES_PER_TASK), |task| {
            let tiles = task_range(task, TILES_PER_TASK, tiles);
            self.transform(tiles.clone(), &zeros, |row| Spread {
                at: out.at((tiles.start + row) * BLOCK),
                frequency_stride: rows_len,
                block_len: BLOCK,
                block_stride: block_len,
            });
        });
        let rows = &rows[..];
        let (all_panels, group) = (to.div_ceil(PANEL), panels_per_task(self.isa));
        for_each_task(all_panels.div_ceil(group), |task| {
            let panels = task_range(task, group, all_panels);
            let (filter_len, sums_len) = (spaced(group * BLOCK * PANEL), spaced(tiles * group * PANEL));
            let mut filters = Scratch::new(FREQUENCIES * filter_len);
            let mut sums = self.sums(sums_len);
            for (block, k) in (0..from).step_by(BLOCK).enumerate() {
                let k = k..from.min(k + BLOCK);
                let len = k.len();
                // SAFETY: the filters are this task's; rows, filters and sums have the lengths that their strides say.
                unsafe {
                    for (i, panel) in panels.clone().enumerate() {
                        self.filters(panel, k.clone(), filters[i * BLOCK * PANEL..].as_mut_ptr(), filter_len);
                    }
                    for f in 0..FREQUENCIES {
                        let a = rows[block * block_len + f * rows_len..].as_ptr();
                        let b = filters[f * filter_len..].as_ptr();
                        let dst = sums[f * sums_len..].as_mut_ptr();
                        let (b_stride, dst_stride) = (BLOCK * PANEL, group * PANEL);
                        multiply(self.isa, tiles, len, panels.len(), a, BLOCK, b, b_stride, block > 0, dst, dst_stride);
                    }
                }
            }
            let channels = panels.start * PANEL..to.min(panels.end * PANEL);
            for tile in 0..tiles {
                self.output(tile, channels.clone(), &sums[tile * group * PANEL..], sums_len, &zeros);
            }
        });
    }

    /// Memory for the sums of all frequencies, and one vector after the last: [`Job::output`] loads whole vectors, also from where a part of the
    /// target begins.
    fn sums(&self, len: usize) -> Scratch {
        Scratch::new(FREQUENCIES * len + MAX_LANES)
    }

    /// Transforms tiles of the source; `to(i)` is the destination of the i-th of them.
    fn transform(&self, tiles: std::ops::Range<usize>, zeros: &[f32], to: impl Fn(usize) -> Spread) {
        let start = tiles.start;
        self.patches.each_source::<6, FREQUENCIES>(tiles, self.source, zeros, |tile, first, channels, pixels| {
            // SAFETY: every pixel has the part's channels; callers give each tile its own destination.
            unsafe { input_tile(self.isa, pixels, first, channels, to(tile - start)) };
        });
    }

    /// Transforms the kernels from input channels `rows` to the sixteen output channels of `panel`.
    ///
    /// # Safety
    /// `dst` must have room for all 36 frequencies of whole rows, and nobody else may access it.
    unsafe fn filters(&self, panel: usize, rows: std::ops::Range<usize>, dst: *mut f32, stride: usize) {
        let first = panel * PANEL;
        let lanes = (self.channels[1] - first).min(PANEL);
        let turned = self.direction == Direction::InputGrad;
        // A copy, because the weight is read in pieces that are far apart and collide in the cache: each loop below reads whole pieces.
        let mut copy = Scratch::new(PANEL * (BLOCK + 1) * 9);
        for start in rows.clone().step_by(BLOCK) {
            let block = start..rows.end.min(start + BLOCK);
            let (lane_stride, row_stride) = if turned { (9, lanes * 9) } else { ((block.len() | 1) * 9, 9) };
            if turned {
                for (to, o) in copy.chunks_exact_mut(row_stride).zip(block.clone()) {
                    to.copy_from_slice(&self.weight[(o * self.shape.in_channels + first) * 9..][..row_stride]);
                }
            } else {
                for (to, o) in copy.chunks_exact_mut(lane_stride).zip(first..first + lanes) {
                    let from = &self.weight[(o * self.shape.in_channels + block.start) * 9..][..block.len() * 9];
                    to[..from.len()].copy_from_slice(from);
                }
            }
            let kernels = Kernels { at: copy.as_ptr(), lanes, lane_stride, row_stride };
            // SAFETY: the copy has all kernels; the destination is the caller's contract.
            unsafe {
                let dst = dst.add((start - rows.start) * PANEL);
                filter_rows(self.isa, kernels, block.len(), turned, dst, stride);
            }
        }
    }

    /// Transforms the sums of one tile back, for the output channels `channels`; `sums` begins with the first of them.
    fn output(&self, tile: usize, channels: std::ops::Range<usize>, sums: &[f32], stride: usize, zeros: &[f32]) {
        for (first, end, place) in Tiles::targets(self.targets, channels.start, channels.end) {
            let behind =
                first - channels.start + (FREQUENCIES - 1) * stride + (end - first).next_multiple_of(MAX_LANES);
            debug_assert!(behind <= sums.len(), "vectors would end {} values behind the sums", behind - sums.len());
            let m = sums[first - channels.start..].as_ptr();
            // SAFETY: every pixel of the target has these channels; callers give each tile and channel to one task.
            unsafe {
                if self.direction == Direction::InputGrad && self.shape.upsample == 2 {
                    let pixels = self.results.halved(tile);
                    output_tile_halved(self.isa, m, stride, end - first, &pixels, place);
                } else {
                    let pixels = self.results.pixels::<4, 16>(tile);
                    let bias = self.epilogue.bias.map_or(&zeros[..end - first], |bias| &bias[first..end]);
                    let add = self.epilogue.residual.map_or(std::ptr::null(), |residual| residual[first..].as_ptr());
                    let floor = self.epilogue.activation.floor();
                    output_tile(self.isa, m, stride, bias, &pixels, place, add, floor);
                }
            }
        }
    }
}
