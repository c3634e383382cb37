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
pub(super) struct Gather<'a> {
    direction: Direction,
    shape: &'a Conv2dShape,
    source: &'a [f32],
    source_size: [usize; 2],
    source_channels: usize,
    target_size: [usize; 2],
    target_channels: usize,
}

impl<'a> Gather<'a> {
    pub(super) fn new(direction: Direction, shape: &'a Conv2dShape, source: &'a [f32]) -> Self {
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

    pub(super) fn target_pixels(&self) -> usize {
        self.shape.batch * self.target_size[0] * self.target_size[1]
    }

    /// Source coordinate along `axis` that meets target coordinate `at` at kernel position `tap`.
    fn coordinate(&self, axis: usize, at: usize, tap: usize) -> Option<usize> {
        let Conv2dShape { stride, padding, .. } = *self.shape;
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
        let (image, i, j) = (pixel / (rows * columns), pixel / columns % rows, pixel % columns);
        let [kernel_rows, kernel_columns] = self.shape.kernel;
        for u in 0..kernel_rows {
            let row = self.coordinate(0, i, u).map(|row| image * self.source_size[0] + row);
            for v in 0..kernel_columns {
                let pixel = row.zip(self.coordinate(1, j, v)).map(|(row, column)| row * self.source_size[1] + column);
                f(
                    u * kernel_columns + v,
                    pixel.map(|p| &self.source[p * self.source_channels..][..self.source_channels]),
                );
            }
        }
    }

    /// Whether each target pixel is made of the source pixel at the same place alone.
    pub(super) fn is_pointwise(&self) -> bool {
        self.shape.taps() == 1 && self.shape.stride == 1 && self.shape.padding == 0
    }

    /// Pointers for `pixels`, `[tiles, taps]`; the last pixel fills up the last tile.
    fn pointers(&self, pixels: std::ops::Range<usize>, zeros: &[f32]) -> Vec<RowPointers> {
        if self.is_pointwise() {
            let channels = self.source_channels;
            return dense_pointers(&self.source[pixels.start * channels..], channels, pixels.len());
        }
        let taps = self.shape.taps();
        let mut pointers = vec![[zeros.as_ptr(); ROWS]; pixels.len().div_ceil(ROWS) * taps];
        for (tile, set) in pointers.chunks_exact_mut(taps).enumerate() {
            let first = pixels.start + tile * ROWS;
            for (lane, pixel) in (first..first + ROWS).enumerate() {
                self.visit(pixel.min(pixels.end - 1), |tap, channels| {
                    set[tap][lane] = channels.map_or(zeros.as_ptr(), <[f32]>::as_ptr);
                });
            }
        }
        pointers
    }

    /// Patches of `pixels`, in rows of `stride` values of which `taps * channels` are filled, `[pixels, taps, channels]`.
    pub(super) fn patches(&self, pixels: std::ops::Range<usize>, stride: usize) -> Scratch {
        let channels = self.source_channels;
        let mut patches = Scratch::zeroed(pixels.len() * stride);
        for (pixel, patch) in pixels.zip(patches.chunks_exact_mut(stride)) {
            match self.direction {
                Direction::Forward => self.copy_rows(pixel, patch),
                Direction::InputGrad => self.visit(pixel, |tap, values| {
                    if let Some(values) = values {
                        patch[tap * channels..][..channels].copy_from_slice(values);
                    }
                }),
            }
        }
        patches
    }

    /// The patch of a pixel of y, by rows of x, in which all columns of the kernel are neighbours; outside stays as it is.
    fn copy_rows(&self, pixel: usize, patch: &mut [f32]) {
        let Conv2dShape { height, width, in_channels, kernel, stride, padding, .. } = *self.shape;
        let [rows, columns] = self.target_size;
        let (image, i, j) = (pixel / (rows * columns), pixel / columns % rows, pixel % columns);
        let left = (padding).saturating_sub(j * stride);
        let right = kernel[1].min((width + padding).saturating_sub(j * stride));
        for (u, patch) in patch.chunks_exact_mut(kernel[1] * in_channels).take(kernel[0]).enumerate() {
            let row = (i * stride + u).checked_sub(padding).filter(|&row| row < height);
            if let Some(row) = row.filter(|_| left < right) {
                let at = ((image * height + row) * width + j * stride + left - padding) * in_channels;
                let len = (right - left) * in_channels;
                patch[left * in_channels..][..len].copy_from_slice(&self.source[at..at + len]);
            }
        }
    }

    /// The weight as panels `[target channels / 16, taps * source channels, 16]`, filled up with zeros.
    fn pack(&self, weight: &[f32]) -> Scratch {
        let (taps, inputs) = (self.shape.taps(), self.shape.in_channels);
        let (depth, panels) = (taps * self.source_channels, self.target_channels.div_ceil(PANEL));
        let mut packed = Scratch::new(panels * depth * PANEL);
        let out = Shared::new(&mut packed);
        for_each_task(panels, |panel| {
            // SAFETY: every task has its own panel.
            let packed = unsafe { out.part(panel * depth * PANEL..(panel + 1) * depth * PANEL) };
            // Whole lines are written at a time, as those of different kernel positions collide in the cache.
            let mut lines = vec![[0.0f32; PANEL]; taps];
            for from in 0..self.source_channels {
                for (lane, to) in (panel * PANEL..self.target_channels).take(PANEL).enumerate() {
                    let at = match self.direction {
                        Direction::Forward => (to * inputs + from) * taps,
                        Direction::InputGrad => (from * inputs + to) * taps,
                    };
                    for (line, &value) in lines.iter_mut().zip(&weight[at..at + taps]) {
                        line[lane] = value;
                    }
                }
                for (tap, line) in lines.iter().enumerate() {
                    packed[(tap * self.source_channels + from) * PANEL..][..PANEL].copy_from_slice(line);
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
    residual: Option<&[f32]>,
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
        let _ = residual;
        let add_to = bias.map_or(AddTo::Nothing, |bias| AddTo::Row(&bias[group.start * PANEL..group.end * PANEL]));
        let dst = out.at(rows.start * channels + group.start * PANEL);
        let count = rows.len();
        // SAFETY: the pointers lead into `source`, `zeros` or `patches`, which outlive the call; tasks write disjoint
        // blocks of pixels and channels.
        if gather.source_channels >= MIN_POINTER_CHANNELS || taps == 1 {
            let pointers = gather.pointers(rows, zeros);
            unsafe {
                rows_times_panels(isa, &pointers, taps, gather.source_channels, count, b, cols, add_to, dst, channels);
            }
        } else {
            let patches = gather.patches(rows, depth);
            let pointers = dense_pointers(&patches, depth, count);
            unsafe { rows_times_panels(isa, &pointers, 1, depth, count, b, cols, add_to, dst, channels) };
        }
    });
}
