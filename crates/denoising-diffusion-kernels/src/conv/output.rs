//! What a convolution writes: the target, divided into blocks of pixels and panels of channels, and what is added to each block.

use std::ops::Range;

use crate::gemm::{AddTo, PANEL};
use crate::par::{Scratch, Shared, for_each_task, task_range};

use super::{ConvActivation, Epilogue};

/// Number of target pixels per task; their sources fit into the second-level cache.
const PIXELS_PER_TASK: usize = 192;
/// The smallest desired number of tasks; if there are few pixels, channels are divided as well.
const MIN_TASKS: usize = 16;

/// target = activation(product + bias + residual), `[pixels, channels]`.
pub(super) struct Output<'a> {
    target: Shared<'a>,
    pixels: usize,
    channels: usize,
    /// Padded to whole panels.
    bias: Option<Scratch>,
    residual: Option<&'a [f32]>,
    activation: ConvActivation,
}

/// A part of the target, which one task writes.
pub(super) struct Block<'a> {
    pub(super) pixels: Range<usize>,
    /// Number of channels.
    pub(super) cols: usize,
    pub(super) add_to: AddTo<'a>,
    /// Address of the first channel of the first pixel.
    pub(super) dst: *mut f32,
    /// Number of channels per pixel of the target.
    pub(super) stride: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(target: &'a mut [f32], channels: usize, epilogue: Epilogue<'a>) -> Self {
        let Epilogue { bias, residual, activation } = epilogue;
        epilogue.check(channels, target.len());
        let bias = bias.map(|bias| {
            let mut padded = Scratch::zeroed(channels.next_multiple_of(PANEL));
            padded[..channels].copy_from_slice(bias);
            padded
        });
        Self { pixels: target.len() / channels, target: Shared::new(target), channels, bias, residual, activation }
    }

    /// Calls `f(block, packed weights of its panels)` for blocks that cover the target, in parallel. `pack` packs a range of panels: all of them at
    /// first, or, if no other task needs a task's panels, those of the task, which then stay in its cache.
    pub(super) fn for_each_block(
        &self,
        pack: impl Fn(Range<usize>) -> Scratch + Sync + Send,
        f: impl Fn(Block<'_>, &[f32]) + Sync + Send,
    ) {
        let all_panels = self.channels.div_ceil(PANEL);
        let pixels_per_task = if self.pixels <= 2 * PIXELS_PER_TASK { self.pixels } else { PIXELS_PER_TASK };
        let blocks = self.pixels.div_ceil(pixels_per_task);
        let packed = (blocks > 1).then(|| pack(0..all_panels));
        let packed = packed.as_deref();
        let panels_per_task = all_panels.div_ceil(all_panels.min(MIN_TASKS.div_ceil(blocks)));
        let groups = all_panels.div_ceil(panels_per_task);
        let bias = self.bias.as_deref();
        for_each_task(blocks * groups, |task| {
            let pixels = task_range(task / groups, pixels_per_task, self.pixels);
            let panels = task_range(task % groups, panels_per_task, all_panels);
            let at = pixels.start * self.channels + panels.start * PANEL;
            let row = bias.map(|bias| &bias[panels.start * PANEL..panels.end * PANEL]);
            let add_to = match (row, self.residual) {
                (None, None) => AddTo::Nothing,
                (Some(row), None) => AddTo::Row(row),
                (row, Some(residual)) => AddTo::RowAndMatrix(row, residual[at..].as_ptr()),
            };
            let cols = self.channels.min(panels.end * PANEL) - panels.start * PANEL;
            let rows = pixels.len();
            let block = Block { pixels, cols, add_to, dst: self.target.at(at), stride: self.channels };
            match packed {
                Some(packed) => f(block, &packed[packed.len() / all_panels * panels.start..]),
                None => f(block, &pack(panels)),
            }
            if self.activation == ConvActivation::Relu {
                for row in 0..rows {
                    let start = at + row * self.channels;
                    // SAFETY: the block is this task's, and `f` is done with it.
                    relu(unsafe { self.target.part(start..start + cols) });
                }
            }
        });
    }
}

/// max(x, 0), and NaN where x is.
fn relu(values: &mut [f32]) {
    for value in values {
        *value = if *value < 0.0 { 0.0 } else { *value };
    }
}
