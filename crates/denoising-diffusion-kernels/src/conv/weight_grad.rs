//! Weight gradient: dweight[o, c, u, v] = sum over pixels p of dy[p, o] x[p shifted by (u, v), c].
//!
//! x is packed once into padded panels of sixteen channels, `[panels, batch, rows, columns, 16]`, where every kernel position is a
//! constant shift; dy into tiles of six or four channels, `[tiles, pixels, height]`. Both then stream through
//! [`outer_sum`]. Inputs of fewer than sixteen channels become patches first, and the kernel 1 x 1.

use crate::gemm::{PANEL, outer_sum, tile_heights};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

use super::Conv2dShape;

/// Pixels whose panel of x (16 KiB) stays in the first-level cache.
const PIXELS_PER_CHUNK: usize = 256;
/// Output channels that a task covers.
const CHANNELS_PER_TASK: usize = 64;
/// Tasks wanted at least, by splitting the sum over pixels where the weight is small.
const MIN_TASKS: usize = 16;

/// x in panels, and where to find each output pixel in a panel.
struct Panels {
    values: Scratch,
    /// Values of one panel.
    panel_len: usize,
    /// Input channels, or rows of a patch.
    channels: usize,
    /// Shift of each kernel position, in values.
    shifts: Vec<usize>,
    /// Where each output pixel begins, in values.
    offsets: Vec<usize>,
}

/// One tile of output channels of the packed dy.
#[derive(Clone, Copy)]
struct Tile {
    /// First channel, counting the spare rows of earlier tiles.
    start: usize,
    height: usize,
}

pub(super) fn weight_grad(
    isa: Isa,
    shape: &Conv2dShape,
    x: &[f32],
    dy: &[f32],
    dweight: &mut [f32],
) {
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    let panels = if shape.in_channels < PANEL && shape.taps() > 1 {
        patches(shape, x)
    } else {
        padded(shape, x)
    };
    let mut start = 0;
    let tiles: Vec<Tile> = (0..shape.out_channels.div_ceil(CHANNELS_PER_TASK))
        .flat_map(|group| {
            tile_heights(task_range(group, CHANNELS_PER_TASK, shape.out_channels).len())
        })
        .map(|height| {
            start += height;
            Tile {
                start: start - height,
                height,
            }
        })
        .collect();
    let packed_dy = pack_tiles(shape, dy, &tiles);

    let taps = panels.shifts.len();
    let row_len = taps * PANEL;
    let rows = start;
    let panel_count = panels.channels.div_ceil(PANEL);
    let groups = shape.out_channels.div_ceil(CHANNELS_PER_TASK);
    let chunks = pixels.div_ceil(PIXELS_PER_CHUNK);
    let chunks_per_task = chunks.div_ceil(chunks.min(MIN_TASKS.div_ceil(panel_count * groups)));
    let splits = chunks.div_ceil(chunks_per_task);

    // [splits, panels, rows, taps, 16]
    let mut sums = Scratch::zeroed(splits * panel_count * rows * row_len);
    let out = Shared::new(&mut sums);
    for_each_task(splits * panel_count * groups, |task| {
        let (split, panel, group) = (
            task / (panel_count * groups),
            task / groups % panel_count,
            task % groups,
        );
        let first = group * CHANNELS_PER_TASK;
        let tiles = tiles
            .iter()
            .filter(|tile| tile.start / CHANNELS_PER_TASK == group);
        let dst = (split * panel_count + panel) * rows;
        for chunk in task_range(split, chunks_per_task, chunks) {
            let chunk = task_range(chunk, PIXELS_PER_CHUNK, pixels);
            let offsets = &panels.offsets[chunk.clone()];
            for (tap, shift) in panels.shifts.iter().enumerate() {
                let x = panels.values[panel * panels.panel_len + shift..].as_ptr();
                for tile in tiles.clone() {
                    debug_assert!(tile.start >= first);
                    let a = &packed_dy[tile.start * pixels + chunk.start * tile.height..];
                    let dst = out.at((dst + tile.start) * row_len + tap * PANEL);
                    // SAFETY: `padded` and `patches` make room for all offsets plus shifts; a task alone writes its split,
                    // panel and group.
                    unsafe {
                        outer_sum(
                            isa,
                            tile.height,
                            &a[..offsets.len() * tile.height],
                            tile.height,
                            x,
                            offsets,
                            dst,
                            row_len,
                        )
                    };
                }
            }
        }
    });
    reduce(
        &sums,
        splits,
        panel_count,
        rows,
        taps,
        panels.channels,
        dweight,
    );
}

/// dweight[o, c, tap] = sum over splits of sums[split, c / 16, o, tap, c % 16]
fn reduce(
    sums: &[f32],
    splits: usize,
    panels: usize,
    rows: usize,
    taps: usize,
    channels: usize,
    dweight: &mut [f32],
) {
    let row_len = channels * taps;
    let outputs = dweight.len() / row_len;
    let out = Shared::new(dweight);
    for_each_task(outputs, |o| {
        // SAFETY: every task has its own row.
        let row = unsafe { out.part(o * row_len..(o + 1) * row_len) };
        for panel in 0..panels {
            let lanes = (channels - panel * PANEL).min(PANEL);
            let row = &mut row[panel * PANEL * taps..][..lanes * taps];
            for split in 0..splits {
                let sums =
                    &sums[((split * panels + panel) * rows + o) * taps * PANEL..][..taps * PANEL];
                for (tap, sums) in sums.chunks_exact(PANEL).enumerate() {
                    for (lane, &sum) in sums[..lanes].iter().enumerate() {
                        let value = &mut row[lane * taps + tap];
                        *value = if split == 0 { sum } else { *value + sum };
                    }
                }
            }
        }
    });
}

/// The padded input, `[panels, batch, rows, columns, 16]`.
fn padded(shape: &Conv2dShape, x: &[f32]) -> Panels {
    let Conv2dShape {
        batch,
        height,
        width,
        in_channels,
        kernel,
        stride,
        padding,
        ..
    } = *shape;
    let (rows, columns) = (height + 2 * padding, width + 2 * padding);
    let image_len = rows * columns * PANEL;
    let panel_len = batch * image_len;
    let panels = in_channels.div_ceil(PANEL);
    let mut values = Scratch::new(panels * panel_len);
    let out = Shared::new(&mut values);
    for_each_task(panels * batch, |task| {
        let (panel, image) = (task / batch, task % batch);
        // SAFETY: every task has its own image of its own panel.
        let target = unsafe { out.part(task * image_len..(task + 1) * image_len) };
        let lanes = (in_channels - panel * PANEL).min(PANEL);
        if padding > 0 || lanes < PANEL {
            target.fill(0.0);
        }
        for i in 0..height {
            let source = &x[(image * height + i) * width * in_channels..][..width * in_channels];
            let target =
                &mut target[((i + padding) * columns + padding) * PANEL..][..width * PANEL];
            for (target, source) in target
                .chunks_exact_mut(PANEL)
                .zip(source.chunks_exact(in_channels))
            {
                target[..lanes].copy_from_slice(&source[panel * PANEL..][..lanes]);
            }
        }
    });
    let mut offsets = Vec::with_capacity(batch * shape.out_height() * shape.out_width());
    for image in 0..batch {
        for i in 0..shape.out_height() {
            let row = (image * rows + i * stride) * columns;
            offsets.extend((0..shape.out_width()).map(|j| (row + j * stride) * PANEL));
        }
    }
    let shifts = (0..kernel[0])
        .flat_map(|u| (0..kernel[1]).map(move |v| (u * columns + v) * PANEL))
        .collect();
    Panels {
        values,
        panel_len,
        channels: in_channels,
        shifts,
        offsets,
    }
}

/// Patches of all output pixels, each in the weight's order (channel, kernel row, kernel column), `[panels, pixels, 16]`.
fn patches(shape: &Conv2dShape, x: &[f32]) -> Panels {
    let Conv2dShape {
        batch,
        height,
        width,
        in_channels,
        kernel,
        stride,
        padding,
        ..
    } = *shape;
    let (out_height, out_width) = (shape.out_height(), shape.out_width());
    let pixels = batch * out_height * out_width;
    let channels = in_channels * shape.taps();
    let panels = channels.div_ceil(PANEL);
    let panel_len = pixels * PANEL;
    let mut values = Scratch::new(panels * panel_len);
    let out = Shared::new(&mut values);
    let rows = batch * out_height;
    for_each_task(panels * rows, |task| {
        let (panel, image, i) = (task / rows, task % rows / out_height, task % out_height);
        // SAFETY: every task has its own row of pixels of its own panel.
        let target = unsafe { out.part(task * out_width * PANEL..(task + 1) * out_width * PANEL) };
        for lane in 0..PANEL {
            let k = panel * PANEL + lane;
            let (c, u, v) = (k / shape.taps(), k / kernel[1] % kernel[0], k % kernel[1]);
            let row = (i * stride + u)
                .checked_sub(padding)
                .filter(|&row| row < height && k < channels);
            for (j, target) in target.chunks_exact_mut(PANEL).enumerate() {
                let column = (j * stride + v)
                    .checked_sub(padding)
                    .filter(|&column| column < width);
                target[lane] = match row.zip(column) {
                    Some((row, column)) => {
                        x[((image * height + row) * width + column) * in_channels + c]
                    }
                    None => 0.0,
                };
            }
        }
    });
    Panels {
        values,
        panel_len,
        channels,
        shifts: vec![0],
        offsets: (0..pixels).map(|p| p * PANEL).collect(),
    }
}

/// dy as `[tiles, pixels, height]`, filled up with zeros.
fn pack_tiles(shape: &Conv2dShape, dy: &[f32], tiles: &[Tile]) -> Scratch {
    let channels = shape.out_channels;
    let pixels = dy.len() / channels;
    let rows = tiles.iter().map(|tile| tile.height).sum::<usize>();
    let mut packed = Scratch::new(rows * pixels);
    let out = Shared::new(&mut packed);
    for_each_task(pixels.div_ceil(PIXELS_PER_CHUNK), |task| {
        let chunk = task_range(task, PIXELS_PER_CHUNK, pixels);
        for tile in tiles {
            let Tile { start, height } = *tile;
            let inside = channels.saturating_sub(start).min(height);
            // SAFETY: every task has its own pixels.
            let target = unsafe {
                out.part(start * pixels + chunk.start * height..start * pixels + chunk.end * height)
            };
            let source = dy[chunk.start * channels..chunk.end * channels].chunks_exact(channels);
            for (target, source) in target.chunks_exact_mut(height).zip(source) {
                target[..inside].copy_from_slice(&source[start..start + inside]);
                target[inside..].fill(0.0);
            }
        }
    });
    packed
}
