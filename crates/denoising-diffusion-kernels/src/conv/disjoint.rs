//! Input gradient of kernels whose windows do not overlap: step = kernel, no padding (a pixel unshuffle and a linear layer).
//!
//! Every pixel of dx belongs to one kernel position, so each position is one product dy * weight, which is written directly to the position's
//! pixels, and no zeros are multiplied.

use crate::gemm::{AddTo, PANEL, ROWS, RowPointers, Tile, tile_rows, tiles_times_panels};
use crate::par::{Shared, for_each_task, task_range};
use crate::simd::Isa;

use super::Conv2dShape;
use super::pack::input_panels;

/// Number of pixels of dy per task.
const PIXELS_PER_TASK: usize = 192;
/// The smallest desired number of tasks.
const MIN_TASKS: usize = 16;

/// Whether the windows of `shape` are side by side without overlap.
pub(super) fn applies(shape: &Conv2dShape) -> bool {
    shape.kernel == [shape.stride; 2] && shape.padding == [0; 2]
}

pub(super) fn input_grad(isa: Isa, shape: &Conv2dShape, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
    let Conv2dShape { height, width, in_channels: inputs, out_channels: outputs, kernel, .. } = *shape;
    let (rows, columns, taps) = (shape.out_height(), shape.out_width(), shape.taps());
    if [rows * kernel[0], columns * kernel[1]] != [height, width] {
        // For pixels beyond the last window.
        dx.fill(0.0);
    }
    let packed = input_panels(isa, weight, outputs, taps, 0..inputs, 0..inputs.div_ceil(PANEL), |t| t);
    // [inputs / 16, taps, outputs, 16]
    let (tap_len, panel_len) = (outputs * PANEL, taps * outputs * PANEL);

    let lines = shape.batch * rows;
    let lines_per_task = (PIXELS_PER_TASK / columns).max(1);
    let blocks = lines.div_ceil(lines_per_task);
    let panels = inputs.div_ceil(PANEL);
    let panels_per_task = panels.div_ceil(panels.min(MIN_TASKS.div_ceil(blocks)));
    let groups = panels.div_ceil(panels_per_task);
    let out = Shared::new(dx);
    let packed = &packed[..];
    for_each_task(blocks * groups, |task| {
        let block = task_range(task / groups, lines_per_task, lines);
        let group = task_range(task % groups, panels_per_task, panels);
        let cols = inputs.min(group.end * PANEL) - group.start * PANEL;
        let (tiles, pointers) = tiles(shape, dy, block);
        for tap in 0..taps {
            let b = &packed[group.start * panel_len + tap * tap_len..];
            let at = (tap / kernel[1] * width + tap % kernel[1]) * inputs + group.start * PANEL;
            // SAFETY: the tiles lie inside dx, even when shifted by a kernel position, and tasks write disjoint lines or panels.
            unsafe {
                let (dst, stride) = (out.at(at), kernel[1] * inputs);
                tiles_times_panels(isa, &tiles, &pointers, 1, outputs, b, panel_len, cols, AddTo::Nothing, dst, stride);
            }
        }
    });
}

/// Tiles over the lines of dy in `lines`, their places in dx, and their rows. No tile extends beyond its line, because the lines of dx for one line
/// of dy are not adjacent to those for the next.
fn tiles(shape: &Conv2dShape, dy: &[f32], lines: std::ops::Range<usize>) -> (Vec<Tile>, Vec<RowPointers>) {
    let Conv2dShape { height, width, in_channels: inputs, out_channels: outputs, kernel, .. } = *shape;
    let (rows, columns) = (shape.out_height(), shape.out_width());
    let per_line = columns.div_ceil(ROWS);
    let (mut tiles, mut pointers) = (Vec::new(), Vec::new());
    for line in lines {
        let target = (line / rows * height + line % rows * kernel[0]) * width * inputs;
        let source = &dy[line * columns * outputs..][..columns * outputs];
        for tile in (0..per_line).map(|tile| tile_rows(columns, tile)) {
            tiles.push(Tile { height: tile.len(), at: target + tile.start * kernel[1] * inputs });
            let row = |r: usize| source[(tile.start + r).min(tile.end - 1) * outputs..].as_ptr();
            pointers.push(std::array::from_fn(row));
        }
    }
    (tiles, pointers)
}
