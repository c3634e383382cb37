//! Forward convolution and input gradient as one matrix product per block of pixels, without an im2col copy: the register tile finds its rows through
//! pointers into the source, one set per kernel position, with a row of zeros for positions outside. (The indirect convolution of Dukhan 2019, "The
//! Indirect Convolution Algorithm", arXiv:1907.02129.)
//!
//! Without padding, or with a padded copy (used if there are few channels or many kernel positions), all columns of the kernel are neighbours in the
//! source, and one set of pointers serves a row of the kernel. Not here: kernels of one position ([`super::pointwise`]), and input gradients of
//! kernels whose windows do not overlap ([`super::disjoint`]).

use crate::gemm::{PANEL, ROWS, RowPointers, Tile, tile_rows, tiles_times_panels};
use crate::par::Scratch;
use crate::simd::Isa;

use super::output::{Block, Output};
use super::pack::{input_panels, output_panels};
use super::windows::Windows;
use super::{Conv2dShape, Epilogue, disjoint};

/// The direction of computation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From x to y.
    Forward,
    /// From dy to dx.
    InputGrad,
}

/// With fewer source channels, the source is copied with its padding.
const MIN_POINTER_CHANNELS: usize = 16;
/// With more kernel positions, it is copied, too.
const MAX_POINTER_TAPS: usize = 16;

/// A convolution seen from its destination pixels.
struct Gather<'a> {
    direction: Direction,
    shape: &'a Conv2dShape,
    source: &'a [f32],
    source_size: [usize; 2],
    source_channels: usize,
    target_size: [usize; 2],
}

impl<'a> Gather<'a> {
    fn new(direction: Direction, shape: &'a Conv2dShape, source: &'a [f32]) -> Self {
        let input = ([shape.height, shape.width], shape.in_channels);
        let output = ([shape.out_height(), shape.out_width()], shape.out_channels);
        let (from, to) = match direction {
            Direction::Forward => (input, output),
            Direction::InputGrad => (output, input),
        };
        Self { direction, shape, source, source_size: from.0, source_channels: from.1, target_size: to.0 }
    }

    /// Source coordinate along `axis` for target coordinate `at` and kernel position `tap`.
    fn coordinate(&self, axis: usize, at: usize, tap: usize) -> Option<usize> {
        let (stride, padding) = (self.shape.stride, self.shape.padding[axis]);
        let found = match self.direction {
            Direction::Forward => (at * stride + tap).checked_sub(padding)?,
            Direction::InputGrad => {
                let steps = (at + padding).checked_sub(tap)?;
                // Divisions are slow, and most steps are 1.
                if stride == 1 {
                    steps
                } else if steps.is_multiple_of(stride) {
                    steps / stride
                } else {
                    return None;
                }
            }
        };
        (found < self.source_size[axis]).then_some(found)
    }

    /// Pointers for a tile of `pixels`, `[taps]`; the tile is filled up with the last pixel.
    #[allow(clippy::needless_range_loop, reason = "lanes of every set")]
    fn pointers(&self, pixels: std::ops::Range<usize>, zeros: &[f32], pointers: &mut [RowPointers]) {
        let [rows, columns] = self.target_size;
        let kernel_columns = self.shape.kernel[1];
        let first = pixels.start;
        let (mut line, mut j) = (first / columns, first % columns);
        let (mut image, mut i) = (line / rows, line % rows);
        for lane in 0..ROWS {
            for (u, pointers) in pointers.chunks_exact_mut(kernel_columns).enumerate() {
                let row = self.coordinate(0, i, u).map(|row| (image * self.source_size[0] + row) * self.source_size[1]);
                for (v, pointers) in pointers.iter_mut().enumerate() {
                    let pixel = row.and_then(|row| Some(row + self.coordinate(1, j, v)?));
                    pointers[lane] = match pixel {
                        Some(pixel) => self.source[pixel * self.source_channels..].as_ptr(),
                        None => zeros.as_ptr(),
                    };
                }
            }
            if first + lane + 1 < pixels.end {
                j += 1;
                if j == columns {
                    (line, j) = (line + 1, 0);
                    (image, i) = (line / rows, line % rows);
                }
            }
        }
    }
}

/// target = epilogue of source * weight, in the given direction; the caller must have checked lengths. Input gradients have no epilogue.
pub(super) fn convolve(
    isa: Isa,
    direction: Direction,
    shape: &Conv2dShape,
    source: &[f32],
    weight: &[f32],
    epilogue: Epilogue<'_>,
    target: &mut [f32],
) {
    let Conv2dShape { in_channels: inputs, out_channels: outputs, .. } = *shape;
    let forward = direction == Direction::Forward;
    if !forward && disjoint::applies(shape) {
        return disjoint::input_grad(isa, shape, source, weight, target);
    }
    let output = Output::new(target, if forward { outputs } else { inputs }, epilogue);
    match windows(direction, shape, source) {
        Some(windows) => through_windows(isa, direction, shape, &windows, weight, &output),
        None => through_pointers(isa, direction, shape, source, weight, &output),
    }
}

/// The windows of the target pixels, if padding costs nothing or is cheaper than pointers.
fn windows<'a>(direction: Direction, shape: &Conv2dShape, source: &'a [f32]) -> Option<Windows<'a>> {
    let Conv2dShape { batch, height, width, kernel, stride, padding, .. } = *shape;
    let cheap = |channels| channels < MIN_POINTER_CHANNELS || shape.taps() > MAX_POINTER_TAPS;
    match direction {
        Direction::Forward => (padding == [0; 2] || cheap(shape.in_channels)).then(|| Windows::of_input(shape, source)),
        // With step 1, the input gradient is a forward convolution with the reversed kernel.
        Direction::InputGrad => {
            let padding = [kernel[0].checked_sub(padding[0] + 1)?, kernel[1].checked_sub(padding[1] + 1)?];
            let size = [shape.out_height(), shape.out_width(), shape.out_channels];
            (stride == 1 && (padding == [0; 2] || cheap(shape.out_channels)))
                .then(|| Windows::new(source, batch, size, padding, [height, width], 1))
        }
    }
}

fn through_windows(
    isa: Isa,
    direction: Direction,
    shape: &Conv2dShape,
    windows: &Windows<'_>,
    weight: &[f32],
    output: &Output<'_>,
) {
    let (channels, last) = match direction {
        Direction::Forward => (shape.in_channels, None),
        Direction::InputGrad => (shape.out_channels, Some(shape.taps() - 1)),
    };
    let pack = |panels| pack(isa, direction, shape, weight, panels, |t| last.map_or(t, |last| last - t));
    let [rows, columns] = shape.kernel;
    let values = windows.values();
    output.for_each_block(pack, |block, packed| {
        let offsets: Vec<usize> = windows.offsets(block.pixels.clone()).collect();
        multiply(isa, &block, packed, rows, columns * channels, |pixels, pointers| {
            let row = |r: usize| offsets[(pixels.start + r).min(pixels.end - 1) - block.pixels.start];
            let first: [usize; ROWS] = std::array::from_fn(row);
            for (u, pointers) in pointers.iter_mut().enumerate() {
                *pointers = first.map(|at| values[at + u * windows.row_step..].as_ptr());
            }
        });
    });
}

fn through_pointers(
    isa: Isa,
    direction: Direction,
    shape: &Conv2dShape,
    source: &[f32],
    weight: &[f32],
    output: &Output<'_>,
) {
    let gather = Gather::new(direction, shape, source);
    let pack = |panels| pack(isa, direction, shape, weight, panels, |t| t);
    let zeros = Scratch::zeroed(gather.source_channels);
    let zeros = &zeros[..];
    output.for_each_block(pack, |block, packed| {
        multiply(isa, &block, packed, shape.taps(), gather.source_channels, |pixels, pointers| {
            gather.pointers(pixels, zeros, pointers);
        });
    });
}

/// Panels of the weight, `[panels, taps * source channels, 16]`; kernel position t goes to `tap(t)`.
fn pack(
    isa: Isa,
    direction: Direction,
    shape: &Conv2dShape,
    weight: &[f32],
    panels: std::ops::Range<usize>,
    tap: impl Fn(usize) -> usize + Sync + Send,
) -> Scratch {
    match direction {
        Direction::Forward => output_panels(isa, weight, shape.out_channels, shape.taps(), panels, tap),
        Direction::InputGrad => {
            input_panels(isa, weight, shape.out_channels, shape.taps(), 0..shape.in_channels, panels, tap)
        }
    }
}

/// Computes one block of the target; `find` fills in the pointers for a tile of pixels, one set for each of `taps` runs of `len` values.
fn multiply(
    isa: Isa,
    block: &Block<'_>,
    packed: &[f32],
    taps: usize,
    len: usize,
    find: impl Fn(std::ops::Range<usize>, &mut [RowPointers]),
) {
    let count = block.pixels.len();
    let mut pointers = vec![[std::ptr::null(); ROWS]; count.div_ceil(ROWS) * taps];
    let mut tiles = Vec::with_capacity(count.div_ceil(ROWS));
    for (tile, pointers) in pointers.chunks_exact_mut(taps).enumerate() {
        let rows = tile_rows(count, tile);
        tiles.push(Tile { height: rows.len(), at: rows.start * block.stride });
        find(block.pixels.start + rows.start..block.pixels.start + rows.end, pointers);
    }
    let panel_len = taps * len * PANEL;
    // SAFETY: the pointers point into slices that outlive the call; blocks are disjoint.
    unsafe {
        tiles_times_panels(
            isa,
            &tiles,
            &pointers,
            taps,
            len,
            packed,
            panel_len,
            block.cols,
            block.add_to,
            block.dst,
            block.stride,
        );
    }
}
