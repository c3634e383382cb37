//! Weight gradient in the transformed domain: dw = G' [sum over tiles of (B' x B) . (A dy A')] G, which is the transpose of the forward pass with
//! respect to w. Tiles of x and dy are transformed to panels of sixteen channels, and products of two panels are summed for all frequencies, in one
//! of two orders:
//!
//! - [`Job::by_tiles`], if the transformed weight is small: each task takes its own tiles through all steps, in its cache.
//! - [`Job::by_panels`], if it is not: the tiles are transformed, a part of the batch at a time; each task then takes its own panels and transforms
//!   their sums back at once, so that no transformed weight is ever stored as a whole.

use super::gather::Tiles;
use super::product::outer;
use super::transform::{FREQUENCIES, Spread, filter_grad, input_tile, output_grad_tile};
use crate::conv::Conv2dShape;
use crate::conv::parts::Parts;
use crate::conv::patch_grad::add_up;
use crate::gemm::{PANEL, spaced};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;
use std::ops::Range;

/// Number of values of transformed x and dy that exist at a time: 1 MiB, so that they stay near the cores that made them.
const VALUES_AT_ONCE: usize = 1 << 18;
/// Number of weights, padded to whole panels, whose sums for all frequencies a task of [`Job::by_tiles`] can hold: 1.2 MiB.
const WEIGHTS_PER_TASK: usize = 1 << 13;
/// The smallest and the largest number of tiles that a task of [`Job::by_tiles`] transforms at a time.
const TILES_AT_ONCE: [usize; 2] = [32, 128];
/// Number of tasks of [`Job::by_tiles`], each with its own sums.
const TILE_TASKS: usize = 16;
/// Number of tiles that are transformed at a time in [`Job::by_panels`].
const TILES_PER_TASK: usize = 8;
/// Number of tiles whose products are summed at a time, so that a panel of them stays in the first-level cache.
const TILES_PER_CHUNK: usize = 128;
/// Number of panels of dy, and of x, that a task of [`Job::by_panels`] multiplies.
const TASK_PANELS: [usize; 2] = [2, 4];
/// The smallest desired number of tasks in [`Job::by_panels`], with fewer panels of x each.
const MIN_TASKS: usize = 16;
/// Number of values of the products of two panels at one frequency.
const BLOCK: usize = (PANEL + 1) * PANEL;

/// Like [`crate::conv::weight_grad::weight_grad`], for shapes to which [`super::applies`]; the parts of x must begin at multiples of sixteen
/// channels.
pub(crate) fn weight_grad(isa: Isa, shape: &Conv2dShape, x: &Parts<'_>, dy: &[f32], dweight: &mut [f32]) {
    let size = [shape.out_height(), shape.out_width()];
    let job = Job {
        isa,
        shape,
        x,
        dy: &Parts::new(shape.batch * size[0] * size[1], &[dy]),
        patches: Tiles::new(shape.batch, size, [shape.height, shape.width], shape.upsample, shape.padding[0]),
        results: Tiles::new(shape.batch, size, size, 1, 0),
        zeros: &Scratch::zeroed(shape.in_channels.max(shape.out_channels)),
        panels: [shape.out_channels.div_ceil(PANEL), shape.in_channels.div_ceil(PANEL)],
    };
    if job.panels[0] * job.panels[1] * PANEL * PANEL <= WEIGHTS_PER_TASK {
        job.by_tiles(dweight);
    } else {
        job.by_panels(dweight);
    }
}

/// A weight gradient as Winograd products.
struct Job<'a> {
    isa: Isa,
    shape: &'a Conv2dShape,
    x: &'a Parts<'a>,
    dy: &'a Parts<'a>,
    patches: Tiles,
    results: Tiles,
    zeros: &'a [f32],
    /// Number of panels of dy and of x.
    panels: [usize; 2],
}

/// Transformed tiles of x or dy, `[panels, 36, tiles, 16]`.
struct Transformed {
    values: Scratch,
    /// Number of values of one frequency of one panel.
    len: usize,
}

impl Transformed {
    fn new(panels: usize, tiles: usize) -> Self {
        let len = spaced(tiles * PANEL);
        Self { values: Scratch::new(panels * FREQUENCIES * len), len }
    }

    fn panel(&self, panel: usize, frequency: usize, tile: usize) -> *const f32 {
        self.values[(panel * FREQUENCIES + frequency) * self.len + tile * PANEL..].as_ptr()
    }

    /// The destination of tile `tile` in `out`, which holds all values.
    fn spread(len: usize, out: &Shared<'_>, tile: usize) -> Spread {
        Spread { at: out.at(tile * PANEL), frequency_stride: len, block_len: PANEL, block_stride: FREQUENCIES * len }
    }
}

impl Job<'_> {
    /// The number of tiles that may be transformed at a time.
    fn tiles_at_once(&self) -> usize {
        let per_tile = FREQUENCIES * (self.panels[0] + self.panels[1]) * PANEL;
        VALUES_AT_ONCE / per_tile
    }

    fn by_tiles(&self, dweight: &mut [f32]) {
        let tiles = self.patches.count();
        let [least, most] = TILES_AT_ONCE;
        let at_once = self.tiles_at_once().next_multiple_of(least).clamp(least, most);
        let per_task = tiles.div_ceil(TILE_TASKS).next_multiple_of(at_once);
        let tasks = tiles.div_ceil(per_task);
        let weights = dweight.len();
        let mut partial = Scratch::new(if tasks > 1 { tasks * weights } else { 0 });
        let out = Shared::new(if tasks > 1 { &mut partial } else { &mut *dweight });
        for_each_task(tasks, |task| {
            let [mut dy, mut x] = self.panels.map(|panels| Transformed::new(panels, at_once));
            let mut sums = Sums::new([0..self.panels[0], 0..self.panels[1]]);
            let range = task_range(task, per_task, tiles);
            for first in range.clone().step_by(at_once) {
                let block = first..range.end.min(first + at_once);
                let lens = [dy.len, x.len];
                let values = [Shared::new(&mut dy.values), Shared::new(&mut x.values)];
                self.transform(block.clone(), first, lens, &values);
                sums.add(self.isa, [&dy, &x], block.len(), first > range.start);
            }
            sums.transform_back(self, false, &out, task * weights);
        });
        if tasks > 1 {
            add_up(&partial, dweight);
        }
    }

    fn by_panels(&self, dweight: &mut [f32]) {
        let tiles = self.patches.count();
        let at_once = self.tiles_at_once().max(64).next_multiple_of(64).min(tiles);
        let [mut dy, mut x] = self.panels.map(|panels| Transformed::new(panels, at_once));
        let rows = self.panels[0].div_ceil(TASK_PANELS[0]);
        let width = self.panels[1].div_ceil(MIN_TASKS.div_ceil(rows)).clamp(1, TASK_PANELS[1]);
        let columns = self.panels[1].div_ceil(width);
        let out = Shared::new(dweight);
        for first in (0..tiles).step_by(at_once) {
            let count = at_once.min(tiles - first);
            let lens = [dy.len, x.len];
            let values = [Shared::new(&mut dy.values), Shared::new(&mut x.values)];
            for_each_task(count.div_ceil(TILES_PER_TASK), |task| {
                let range = task_range(task, TILES_PER_TASK, count);
                self.transform(first + range.start..first + range.end, first, lens, &values);
            });
            for_each_task(rows * columns, |task| {
                let mut sums = Sums::new([
                    task_range(task / columns, TASK_PANELS[0], self.panels[0]),
                    task_range(task % columns, width, self.panels[1]),
                ]);
                sums.add(self.isa, [&dy, &x], count, false);
                sums.transform_back(self, first > 0, &out, 0);
            });
        }
    }

    /// Transforms the tiles `range` of dy and x; tile `first` is the first of the destinations. Callers must give each tile to only one task.
    fn transform(&self, range: Range<usize>, first: usize, [dy_len, x_len]: [usize; 2], [dy, x]: &[Shared<'_>; 2]) {
        self.patches.each_source::<6, 36>(range.clone(), self.x, self.zeros, |tile, channel, channels, pixels| {
            // SAFETY: every pixel has the part's channels; the destination has room for every tile.
            unsafe { input_tile(self.isa, pixels, channel, channels, Transformed::spread(x_len, x, tile - first)) };
        });
        self.results.each_source::<4, 16>(range, self.dy, self.zeros, |tile, channel, channels, pixels| {
            // SAFETY: as above.
            unsafe {
                output_grad_tile(self.isa, pixels, channel, channels, Transformed::spread(dy_len, dy, tile - first))
            };
        });
    }
}

/// Sums of products of some panels of dy and x, `[panels of dy, panels of x, 36, 16, 16]`.
struct Sums {
    panels: [Range<usize>; 2],
    values: Scratch,
}

impl Sums {
    fn new(panels: [Range<usize>; 2]) -> Self {
        let values = Scratch::new(panels[0].len() * panels[1].len() * FREQUENCIES * BLOCK);
        Self { panels, values }
    }

    /// Index of the products of the i-th panel of dy and the j-th of x.
    fn at(&self, i: usize, j: usize, frequency: usize) -> usize {
        ((i * self.panels[1].len() + j) * FREQUENCIES + frequency) * BLOCK
    }

    /// Sums over the first `count` tiles; with `add`, they are added to the contents.
    fn add(&mut self, isa: Isa, [dy, x]: [&Transformed; 2], count: usize, add: bool) {
        let [dy_panels, x_panels] = self.panels.clone();
        for f in 0..FREQUENCIES {
            for chunk in (0..count).step_by(TILES_PER_CHUNK) {
                let tiles = TILES_PER_CHUNK.min(count - chunk);
                for (j, x_panel) in x_panels.clone().enumerate() {
                    let b = x.panel(x_panel, f, chunk);
                    for (i, dy_panel) in dy_panels.clone().enumerate() {
                        let a = dy.panel(dy_panel, f, chunk);
                        let at = self.at(i, j, f);
                        // SAFETY: panels have `count` rows of sixteen, blocks sixteen.
                        unsafe { outer(isa, tiles, a, b, add || chunk > 0, self.values[at..].as_mut_ptr()) };
                    }
                }
            }
        }
    }

    /// dweight (+)= G' sums G for the kernels of the panels, which nobody else may write; dweight begins at index `first` of `out`.
    fn transform_back(&self, job: &Job<'_>, add: bool, out: &Shared<'_>, first: usize) {
        let [dy_panels, x_panels] = &self.panels;
        let [outputs, inputs] = [job.shape.out_channels, job.shape.in_channels];
        for (i, dy_panel) in dy_panels.clone().enumerate() {
            for (row, o) in (dy_panel * PANEL..outputs).take(PANEL).enumerate() {
                for (j, x_panel) in x_panels.clone().enumerate() {
                    let lanes = (inputs - x_panel * PANEL).min(PANEL);
                    let u = self.values[self.at(i, j, 0) + row * PANEL..].as_ptr();
                    let dst = out.at(first + (o * inputs + x_panel * PANEL) * 9);
                    // SAFETY: the weight has `lanes` kernels from there on.
                    unsafe { filter_grad(job.isa, u, BLOCK, lanes, add, dst) };
                }
            }
        }
    }
}
