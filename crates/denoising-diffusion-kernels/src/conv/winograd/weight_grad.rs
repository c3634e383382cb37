//! Weight gradient in the transformed domain: dw = G' [sum over tiles of (B' x B) . (A dy A')] G, which is the transpose of the
//! forward pass with respect to w.
//!
//! Tiles of x and dy are transformed to panels of sixteen channels, a part of the batch at a time; each task then sums products of two
//! panels at all frequencies and transforms them back at once, so that no transformed weight ever exists as a whole.

use super::gather::Tiles;
use super::product::outer;
use super::transform::{FREQUENCIES, Spread, filter_grad, input_tile, output_grad_tile};
use crate::conv::Conv2dShape;
use crate::conv::parts::Parts;
use crate::gemm::{PANEL, spaced};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

/// Values of transformed x and dy that are alive at a time: 1 MiB, so that they stay near the cores that made them.
const VALUES_AT_ONCE: usize = 1 << 18;
/// Tiles that are transformed at a time.
const TILES_PER_TASK: usize = 8;
/// Tiles whose products are summed at a time, so that a panel of them stays in the first-level cache.
const TILES_PER_CHUNK: usize = 128;
/// Panels of dy, and of x, that a task multiplies.
const TASK_PANELS: [usize; 2] = [2, 4];
/// Tasks wanted at least, with fewer panels of x each.
const MIN_TASKS: usize = 16;

/// As [`crate::conv::weight_grad::weight_grad`], for shapes to which [`super::applies`]; the parts of x begin at multiples of sixteen
/// channels.
pub(crate) fn weight_grad(isa: Isa, shape: &Conv2dShape, x: &Parts<'_>, dy: &[f32], dweight: &mut [f32]) {
    let size = [shape.out_height(), shape.out_width()];
    let patches = Tiles::new(shape.batch, size, [shape.height, shape.width], shape.upsample, shape.padding[0]);
    let results = Tiles::new(shape.batch, size, size, 1, 0);
    let dy = Parts::new(shape.batch * size[0] * size[1], &[dy]);
    let zeros = Scratch::zeroed(shape.in_channels.max(shape.out_channels));
    let panels = [shape.out_channels.div_ceil(PANEL), shape.in_channels.div_ceil(PANEL)];
    let tiles = patches.count();
    let per_tile = FREQUENCIES * (panels[0] + panels[1]) * PANEL;
    let at_once = (VALUES_AT_ONCE / per_tile).max(64).next_multiple_of(64).min(tiles);
    // [panels, 36, tiles, 16]
    let len = spaced(at_once * PANEL);
    let panel_len = FREQUENCIES * len;
    let mut dy_tiles = Scratch::new(panels[0] * panel_len);
    let mut x_tiles = Scratch::new(panels[1] * panel_len);
    let out = Shared::new(dweight);
    for part in 0..tiles.div_ceil(at_once) {
        let tiles = task_range(part, at_once, tiles);
        let count = tiles.len();
        let (a, b) = (Shared::new(&mut dy_tiles), Shared::new(&mut x_tiles));
        for_each_task(count.div_ceil(TILES_PER_TASK), |task| {
            let range = task_range(task, TILES_PER_TASK, count);
            let range = tiles.start + range.start..tiles.start + range.end;
            let to = |out: &Shared<'_>, tile: usize| Spread {
                at: out.at((tile - tiles.start) * PANEL),
                frequency_stride: len,
                block_len: PANEL,
                block_stride: panel_len,
            };
            // SAFETY: every task has its own tiles.
            patches.each_source::<6, 36>(range.clone(), x, &zeros, |tile, first, channels, pixels| unsafe {
                input_tile(isa, pixels, first, channels, to(&b, tile));
            });
            results.each_source::<4, 16>(range, &dy, &zeros, |tile, first, channels, pixels| unsafe {
                output_grad_tile(isa, pixels, first, channels, to(&a, tile));
            });
        });
        multiply_panels(isa, shape, [&dy_tiles, &x_tiles], len, count, part > 0, &out);
    }
}

/// dweight (+)= G' [products of panels of dy and x, summed over `count` tiles] G
fn multiply_panels(
    isa: Isa,
    shape: &Conv2dShape,
    [dy, x]: [&[f32]; 2],
    len: usize,
    count: usize,
    add: bool,
    dweight: &Shared<'_>,
) {
    let panel_len = FREQUENCIES * len;
    let panels = [dy.len() / panel_len, x.len() / panel_len];
    let rows = panels[0].div_ceil(TASK_PANELS[0]);
    let width = panels[1].div_ceil(MIN_TASKS.div_ceil(rows)).clamp(1, TASK_PANELS[1]);
    let columns = panels[1].div_ceil(width);
    for_each_task(rows * columns, |task| {
        let dy_panels = task_range(task / columns, TASK_PANELS[0], panels[0]);
        let x_panels = task_range(task % columns, width, panels[1]);
        // [panels of dy, panels of x, 36, 16, 16]
        let block = spaced(PANEL * PANEL);
        let mut sums = Scratch::new(TASK_PANELS[0] * width * FREQUENCIES * block);
        for f in 0..FREQUENCIES {
            for chunk in (0..count).step_by(TILES_PER_CHUNK) {
                let tiles = TILES_PER_CHUNK.min(count - chunk);
                for (j, x_panel) in x_panels.clone().enumerate() {
                    let b = x[x_panel * panel_len + f * len + chunk * PANEL..].as_ptr();
                    for (i, dy_panel) in dy_panels.clone().enumerate() {
                        let a = dy[dy_panel * panel_len + f * len + chunk * PANEL..].as_ptr();
                        let dst = sums[((i * width + j) * FREQUENCIES + f) * block..].as_mut_ptr();
                        // SAFETY: panels have `count` rows of sixteen, blocks sixteen.
                        unsafe { outer(isa, tiles, a, b, chunk > 0, dst) };
                    }
                }
            }
        }
        for (i, dy_panel) in dy_panels.enumerate() {
            for (row, o) in (dy_panel * PANEL..shape.out_channels).take(PANEL).enumerate() {
                for (j, x_panel) in x_panels.clone().enumerate() {
                    let lanes = (shape.in_channels - x_panel * PANEL).min(PANEL);
                    let u = sums[(i * width + j) * FREQUENCIES * block + row * PANEL..].as_ptr();
                    let dst = dweight.at((o * shape.in_channels + x_panel * PANEL) * 9);
                    // SAFETY: a task alone writes the kernels of its panels.
                    unsafe { filter_grad(isa, u, block, lanes, add, dst) };
                }
            }
        }
    });
}
