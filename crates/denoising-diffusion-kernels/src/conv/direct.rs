//! Forward convolution and input gradient as one matrix product per block of pixels, without an im2col copy: the register
//! tile finds its rows through pointers into the source, one set per kernel position, and a row of zeros outside.
//! (The indirect convolution of Dukhan 2019, "The Indirect Convolution Algorithm", arXiv:1907.02129.)
//!
//! Sources of few channels are copied into patches after all, as pointers would outnumber products.

use crate::gemm::{AddTo, PANEL, ROWS, RowPointers, dense_pointers, rows_times_panels};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

use super::Conv2dShape;

/// Which way the values go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From x to y.
    Forward,
    /// From dy to dx.
    InputGrad,
}

/// Destination pixels that a task covers; their sources fit the second-level cache.
const PIXELS_PER_TASK: usize = 192;
/// Tasks wanted at least, by splitting output channels where there are few pixels.
const MIN_TASKS: usize = 16;
/// Below this many source channels, patches are copied.
const MIN_POINTER_CHANNELS: usize = 16;

/// A convolution seen from its destination pixels.
struct Gather<'a> {
    direction: Direction,
    shape: &'a Conv2dShape,
    source: &'a [f32],
    source_size: [usize; 2],
    source_channels: usize,
    target_size: [usize; 2],
    target_channels: usize,
}

impl<'a> Gather<'a> {
    fn new(direction: Direction, shape: &'a Conv2dShape, source: &'a [f32]) -> Self {
        let input = ([shape.height, shape.width], shape.in_channels);
        let output = ([shape.out_height(), shape.out_width()], shape.out_channels);
        let (from, to) = match direction {
            Direction::Forward => (input, output),
            Direction::InputGrad => (output, input),
        };
        Self {
            direction,
            shape,
            source,
            source_size: from.0,
            source_channels: from.1,
            target_size: to.0,
            target_channels: to.1,
        }
    }

    fn target_pixels(&self) -> usize {
        self.shape.batch * self.target_size[0] * self.target_size[1]
    }

    /// Source coordinate along `axis` that meets target coordinate `at` at kernel position `tap`.
    fn coordinate(&self, axis: usize, at: usize, tap: usize) -> Option<usize> {
        let Conv2dShape {
            stride, padding, ..
        } = *self.shape;
        let found = match self.direction {
            Direction::Forward => (at * stride + tap).checked_sub(padding)?,
            Direction::InputGrad => {
                let steps = (at + padding).checked_sub(tap)?;
                if !steps.is_multiple_of(stride) {
                    return None;
                }
                steps / stride
            }
        };
        (found < self.source_size[axis]).then_some(found)
    }

    /// Calls `f(tap, channels of the source pixel)` for every kernel position of target pixel `pixel`; `None` is padding.
    fn visit(&self, pixel: usize, mut f: impl FnMut(usize, Option<&'a [f32]>)) {
        let [rows, columns] = self.target_size;
        let (image, i, j) = (
            pixel / (rows * columns),
            pixel / columns % rows,
            pixel % columns,
        );
        let [kernel_rows, kernel_columns] = self.shape.kernel;
        for u in 0..kernel_rows {
            let row = self
                .coordinate(0, i, u)
                .map(|row| image * self.source_size[0] + row);
            for v in 0..kernel_columns {
                let pixel = row
                    .zip(self.coordinate(1, j, v))
                    .map(|(row, column)| row * self.source_size[1] + column);
                f(
                    u * kernel_columns + v,
                    pixel.map(|p| &self.source[p * self.source_channels..][..self.source_channels]),
                );
            }
        }
    }

    /// Pointers for `pixels`, `[tiles, taps]`; the last pixel fills up the last tile.
    fn pointers(&self, pixels: std::ops::Range<usize>, zeros: &[f32]) -> Vec<RowPointers> {
        let taps = self.shape.taps();
        let mut pointers = vec![[zeros.as_ptr(); ROWS]; pixels.len().div_ceil(ROWS) * taps];
        for (tile, set) in pointers.chunks_exact_mut(taps).enumerate() {
            for lane in 0..ROWS {
                let pixel = (pixels.start + tile * ROWS + lane).min(pixels.end - 1);
                self.visit(pixel, |tap, channels| {
                    if let Some(channels) = channels {
                        set[tap][lane] = channels.as_ptr();
                    }
                });
            }
        }
        pointers
    }

    /// Patches of `pixels`, `[pixels, taps * channels]`.
    fn patches(&self, pixels: std::ops::Range<usize>) -> Scratch {
        let channels = self.source_channels;
        let depth = self.shape.taps() * channels;
        let mut patches = Scratch::new(pixels.len() * depth);
        for (pixel, patch) in pixels.zip(patches.chunks_exact_mut(depth)) {
            self.visit(pixel, |tap, values| {
                let patch = &mut patch[tap * channels..][..channels];
                match values {
                    Some(values) => patch.copy_from_slice(values),
                    None => patch.fill(0.0),
                }
            });
        }
        patches
    }

    /// The weight as panels `[target channels / 16, taps * source channels, 16]`, filled up with zeros.
    fn pack(&self, weight: &[f32]) -> Scratch {
        let (taps, inputs) = (self.shape.taps(), self.shape.in_channels);
        let (depth, panels) = (
            taps * self.source_channels,
            self.target_channels.div_ceil(PANEL),
        );
        let mut packed = Scratch::new(panels * depth * PANEL);
        let out = Shared::new(&mut packed);
        for_each_task(panels, |panel| {
            // SAFETY: every task has its own panel.
            let packed = unsafe { out.part(panel * depth * PANEL..(panel + 1) * depth * PANEL) };
            for from in 0..self.source_channels {
                for lane in 0..PANEL {
                    let to = panel * PANEL + lane;
                    let at = match self.direction {
                        Direction::Forward => (to * inputs + from) * taps,
                        Direction::InputGrad => (from * inputs + to) * taps,
                    };
                    let inside = to < self.target_channels;
                    for tap in 0..taps {
                        packed[(tap * self.source_channels + from) * PANEL + lane] =
                            if inside { weight[at + tap] } else { 0.0 };
                    }
                }
            }
        });
        packed
    }
}

/// target = source * weight + bias, in the given direction; lengths are checked by the caller.
pub(super) fn convolve(
    isa: Isa,
    direction: Direction,
    shape: &Conv2dShape,
    source: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    target: &mut [f32],
) {
    let gather = Gather::new(direction, shape, source);
    let (pixels, channels) = (gather.target_pixels(), gather.target_channels);
    let taps = shape.taps();
    let depth = taps * gather.source_channels;
    let panels = channels.div_ceil(PANEL);
    let packed = gather.pack(weight);
    let bias = bias.map(|bias| {
        let mut padded = Scratch::zeroed(panels * PANEL);
        padded[..channels].copy_from_slice(bias);
        padded
    });
    let zeros = Scratch::zeroed(gather.source_channels);

    let blocks = pixels.div_ceil(PIXELS_PER_TASK);
    let panels_per_task = panels.div_ceil(panels.min(MIN_TASKS.div_ceil(blocks)));
    let groups = panels.div_ceil(panels_per_task);
    let out = Shared::new(target);
    let (zeros, packed, bias) = (&zeros[..], &packed[..], bias.as_deref());
    for_each_task(blocks * groups, |task| {
        let rows = task_range(task / groups, PIXELS_PER_TASK, pixels);
        let group = task_range(task % groups, panels_per_task, panels);
        let cols = channels.min(group.end * PANEL) - group.start * PANEL;
        let b = &packed[group.start * depth * PANEL..group.end * depth * PANEL];
        let add_to = bias.map_or(AddTo::Nothing, |bias| {
            AddTo::Row(&bias[group.start * PANEL..group.end * PANEL])
        });
        let dst = out.at(rows.start * channels + group.start * PANEL);
        let count = rows.len();
        // SAFETY: the pointers lead into `source`, `zeros` or `patches`, which outlive the call; tasks write disjoint
        // blocks of pixels and channels.
        if gather.source_channels >= MIN_POINTER_CHANNELS || taps == 1 {
            let pointers = gather.pointers(rows, zeros);
            unsafe {
                rows_times_panels(
                    isa,
                    &pointers,
                    taps,
                    gather.source_channels,
                    count,
                    b,
                    cols,
                    add_to,
                    dst,
                    channels,
                );
            }
        } else {
            let patches = gather.patches(rows);
            let pointers = dense_pointers(&patches, depth, count);
            unsafe {
                rows_times_panels(
                    isa, &pointers, 1, depth, count, b, cols, add_to, dst, channels,
                )
            };
        }
    });
}
