//! Winograd's minimal filtering F(4 x 4, 3 x 3) for 3 x 3 kernels at stride 1 (Lavin & Gray 2016, "Fast Algorithms for
//! Convolutional Neural Networks"): 36 products per 4 x 4 output tile and channel pair instead of 144.
//!
//! y = A' [(G w G') . (B' x B)] A per tile, summed over input channels: for each of the 36 positions in the transformed
//! tile ("frequencies"), one matrix product over channels. The transforms cost some five bits of accuracy.

mod gather;
mod transform;
mod weight_grad;

pub(super) use weight_grad::weight_grad;

use super::Conv2dShape;
use super::direct::Direction;
use crate::gemm::{AddTo, PANEL, dense_pointers, rows_times_panels, spaced};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;
use gather::Tiles;
use transform::{FREQUENCIES, filter_panel, input_tile, output_tile};

/// Tiles that a task transforms.
const TILES_PER_TASK: usize = 16;
/// Values of transformed input and output that are alive at a time; a larger batch is worked off in parts.
const VALUES_AT_ONCE: usize = 1 << 20;

/// Whether this file can compute the convolution and its gradients at all.
pub(super) fn applies(shape: &Conv2dShape) -> bool {
    shape.kernel == [3, 3] && shape.stride == 1 && shape.padding <= 2
}

/// Whether this file is faster than products and sums: measured, the transforms pay from eight channels and twelve tiles on,
/// unless most of each tile lies outside the image.
pub(super) fn pays(shape: &Conv2dShape) -> bool {
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    let tiles = shape.batch * shape.out_height().div_ceil(4) * shape.out_width().div_ceil(4);
    shape.in_channels >= 8 && shape.out_channels >= 8 && tiles >= 12 && pixels >= 10 * tiles
}

/// Tiles of one part, such that `values` values per tile fit [`VALUES_AT_ONCE`].
fn tiles_at_once(values: usize) -> usize {
    (VALUES_AT_ONCE / (FREQUENCIES * values)).max(48).next_multiple_of(48)
}

/// As [`super::direct::convolve`], for shapes to which this [`applies`].
pub(super) fn convolve(
    isa: Isa,
    direction: Direction,
    shape: &Conv2dShape,
    source: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    target: &mut [f32],
) {
    let input = ([shape.height, shape.width], shape.in_channels);
    let output = ([shape.out_height(), shape.out_width()], shape.out_channels);
    // The input gradient is the convolution of dy, padded by what is missing to 2, with the turned kernel.
    let (from, to, padding) = match direction {
        Direction::Forward => (input, output, shape.padding),
        Direction::InputGrad => (output, input, 2 - shape.padding),
    };
    let (from_channels, to_channels) = (from.1, to.1);
    let patches = Tiles::new(shape.batch, to.0, from, padding);
    let results = Tiles::new(shape.batch, to.0, to, 0);
    let filters = filters(isa, direction, shape, weight);
    let filter_len = filters.len() / FREQUENCIES;
    let zeros = Scratch::zeroed(from_channels.max(to_channels));
    let bias = bias.unwrap_or(&zeros[..to_channels]);

    let stride = from_channels.next_multiple_of(PANEL);
    let at_once = tiles_at_once(stride + to_channels).min(patches.count());
    let mut transformed = Scratch::new(FREQUENCIES * spaced(at_once * stride));
    let mut products = Scratch::new(FREQUENCIES * spaced(at_once * to_channels));
    let target = Shared::new(target);
    for part in 0..patches.count().div_ceil(at_once) {
        let tiles = task_range(part, at_once, patches.count());
        let count = tiles.len();
        let (rows_len, sums_len) = (spaced(count * stride), spaced(count * to_channels));
        let tasks = count.div_ceil(TILES_PER_TASK);
        let rows = Shared::new(&mut transformed);
        for_each_task(tasks, |task| {
            for tile in task_range(task, TILES_PER_TASK, count) {
                let pointers = patches.pointers::<6, FREQUENCIES>(tiles.start + tile, source, &zeros);
                // SAFETY: every task has its own tiles.
                unsafe {
                    input_tile(isa, &pointers, from_channels, rows.at(tile * stride), rows_len, PANEL);
                }
            }
        });
        let sums = Shared::new(&mut products);
        for_each_task(FREQUENCIES, |f| {
            let pointers = dense_pointers(&transformed[f * rows_len..], stride, count);
            let b = &filters[f * filter_len..(f + 1) * filter_len];
            let dst = sums.at(f * sums_len);
            // SAFETY: every task has its own frequency.
            unsafe {
                let add = AddTo::Nothing;
                rows_times_panels(isa, &pointers, 1, from_channels, count, b, to_channels, add, dst, to_channels);
            }
        });
        for_each_task(tasks, |task| {
            for tile in task_range(task, TILES_PER_TASK, count) {
                let at = results.positions::<4, 16>(tiles.start + tile);
                let pointers = at.map(|at| at.map_or(std::ptr::null_mut(), |at| target.at(at)));
                let m = products[tile * to_channels..].as_ptr();
                // SAFETY: every task has its own tiles.
                unsafe { output_tile(isa, m, sums_len, bias, &pointers) };
            }
        });
    }
}

/// The transformed kernels as panels, `[36, target channels / 16, source channels, 16]`, filled up with zeros.
fn filters(isa: Isa, direction: Direction, shape: &Conv2dShape, weight: &[f32]) -> Scratch {
    let (inputs, outputs) = (shape.in_channels, shape.out_channels);
    let (from, to) = match direction {
        Direction::Forward => (inputs, outputs),
        Direction::InputGrad => (outputs, inputs),
    };
    let panels = to.div_ceil(PANEL);
    let frequency_len = spaced(panels * from * PANEL);
    let mut filters = Scratch::new(FREQUENCIES * frequency_len);
    let out = Shared::new(&mut filters);
    for_each_task(panels, |panel| {
        let mut taps = [[0.0f32; PANEL]; 9];
        for k in 0..from {
            for (lane, t) in (panel * PANEL..to).take(PANEL).enumerate() {
                let (o, c) = match direction {
                    Direction::Forward => (t, k),
                    Direction::InputGrad => (k, t),
                };
                let kernel = &weight[(o * inputs + c) * 9..][..9];
                for (tap, taps) in taps.iter_mut().enumerate() {
                    taps[lane] = kernel[if direction == Direction::Forward { tap } else { 8 - tap }];
                }
            }
            // SAFETY: every task has its own panel.
            unsafe { filter_panel(isa, &taps, out.at((panel * from + k) * PANEL), frequency_len) };
        }
    });
    filters
}
