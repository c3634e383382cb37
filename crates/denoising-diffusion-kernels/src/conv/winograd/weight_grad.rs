//! Weight gradient in the transformed domain: dw = G' [sum over tiles of (B' x B) . (A dy A')] G, which is the transpose of the
//! forward pass with respect to w.

use super::gather::Tiles;
use super::transform::{FREQUENCIES, filter_grad_panel, input_tile, output_grad_tile};
use super::{TILES_PER_TASK, tiles_at_once};
use crate::conv::Conv2dShape;
use crate::gemm::{PANEL, outer_sum, spaced, tile_heights};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

/// Tiles whose outer products are summed at a time, so that a panel of them stays in the first-level cache.
const TILES_PER_CHUNK: usize = 128;

/// As [`crate::conv::weight_grad::weight_grad`], for shapes to which [`super::applies`].
pub(crate) fn weight_grad(isa: Isa, shape: &Conv2dShape, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let (inputs, outputs) = (shape.in_channels, shape.out_channels);
    let size = [shape.out_height(), shape.out_width()];
    let patches = Tiles::new(shape.batch, size, ([shape.height, shape.width], inputs), shape.padding);
    let results = Tiles::new(shape.batch, size, (size, outputs), 0);
    let zeros = Scratch::zeroed(inputs.max(outputs));
    let (x_stride, dy_stride) = (inputs.next_multiple_of(PANEL), outputs.next_multiple_of(PANEL));
    let at_once = tiles_at_once(x_stride + dy_stride).min(patches.count());
    // x as [36, channels / 16, tiles, 16], dy as [36, tiles, channels], the sums as [36, out channels, in channels].
    let mut x_tiles = Scratch::new(FREQUENCIES * spaced(at_once * x_stride));
    let mut dy_tiles = Scratch::new(FREQUENCIES * spaced(at_once * dy_stride));
    let sums_len = spaced(dy_stride * x_stride);
    let mut sums = Scratch::zeroed(FREQUENCIES * sums_len);
    let heights = tile_heights(outputs);
    for part in 0..patches.count().div_ceil(at_once) {
        let tiles = task_range(part, at_once, patches.count());
        let count = tiles.len();
        let (x_len, dy_len) = (spaced(count * x_stride), spaced(count * dy_stride));
        let (a, b) = (Shared::new(&mut dy_tiles), Shared::new(&mut x_tiles));
        for_each_task(count.div_ceil(TILES_PER_TASK), |task| {
            for tile in task_range(task, TILES_PER_TASK, count) {
                let pixels = patches.pointers::<6, 36>(tiles.start + tile, x, &zeros);
                let gradients = results.pointers::<4, 16>(tiles.start + tile, dy, &zeros);
                // SAFETY: every task has its own tiles.
                unsafe {
                    input_tile(isa, &pixels, inputs, b.at(tile * PANEL), x_len, count * PANEL);
                    let dst = a.at(tile * dy_stride);
                    output_grad_tile(isa, &gradients, outputs, dst, dy_len, PANEL);
                }
            }
        });
        let out = Shared::new(&mut sums);
        for_each_task(FREQUENCIES, |f| {
            // SAFETY: every task has its own frequency.
            let sums = unsafe { out.part(f * sums_len..(f + 1) * sums_len) };
            let a = &dy_tiles[f * dy_len..][..count * dy_stride];
            let b = &x_tiles[f * x_len..][..count * x_stride];
            frequency(isa, &heights, a, dy_stride, b, x_stride, sums);
        });
    }
    inverse(isa, shape, &sums, dweight);
}

/// sums[o, c] += sum over tiles of a[tile, o] b[c / 16, tile, c % 16]
fn frequency(isa: Isa, heights: &[usize], a: &[f32], a_stride: usize, b: &[f32], b_stride: usize, sums: &mut [f32]) {
    let count = a.len() / a_stride;
    let offsets: Vec<usize> = (0..TILES_PER_CHUNK).map(|tile| tile * PANEL).collect();
    for chunk in (0..count).step_by(TILES_PER_CHUNK) {
        let offsets = &offsets[..TILES_PER_CHUNK.min(count - chunk)];
        for panel in 0..b_stride / PANEL {
            let b = b[(panel * count + chunk) * PANEL..].as_ptr();
            let mut start = 0;
            for &height in heights {
                let a = &a[chunk * a_stride + start..];
                let dst = sums[start * b_stride + panel * PANEL..].as_mut_ptr();
                // SAFETY: rows of `a` and `sums` go up to whole panels, which the heights do not exceed.
                unsafe { outer_sum(isa, height, a, a_stride, b, offsets, dst, b_stride) };
                start += height;
            }
        }
    }
}

/// dweight[o, c] = G' sums[.., o, c] G
fn inverse(isa: Isa, shape: &Conv2dShape, sums: &[f32], dweight: &mut [f32]) {
    let inputs = shape.in_channels;
    let stride = inputs.next_multiple_of(PANEL);
    let frequency_len = sums.len() / FREQUENCIES;
    let out = Shared::new(dweight);
    for_each_task(shape.out_channels, |o| {
        // SAFETY: every task has its own output channel.
        let row = unsafe { out.part(o * inputs * 9..(o + 1) * inputs * 9) };
        for (panel, kernels) in row.chunks_mut(PANEL * 9).enumerate() {
            let mut taps = [[0.0f32; PANEL]; 9];
            // SAFETY: rows of `sums` are whole panels.
            unsafe { filter_grad_panel(isa, sums[o * stride + panel * PANEL..].as_ptr(), frequency_len, &mut taps) };
            for (lane, kernel) in kernels.chunks_exact_mut(9).enumerate() {
                for (value, taps) in kernel.iter_mut().zip(&taps) {
                    *value = taps[lane];
                }
            }
        }
    });
}
