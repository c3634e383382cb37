//! What a convolution writes: its target cut into blocks of pixels and panels of channels, and what is added to each.

use crate::gemm::{AddTo, PANEL};
use crate::par::{Scratch, Shared, for_each_task, task_range};

/// Target pixels that a task covers; their sources fit the second-level cache.
const PIXELS_PER_TASK: usize = 192;
/// Tasks wanted at least, by splitting channels where there are few pixels.
const MIN_TASKS: usize = 16;

/// target = product + bias + residual, `[pixels, channels]`.
pub(super) struct Output<'a> {
    target: Shared<'a>,
    pixels: usize,
    channels: usize,
    /// Filled up to whole panels.
    bias: Option<Scratch>,
    residual: Option<&'a [f32]>,
}

/// A part of the target that one task writes.
pub(super) struct Block<'a> {
    pub(super) pixels: std::ops::Range<usize>,
    pub(super) panels: std::ops::Range<usize>,
    /// Channels in the panels.
    pub(super) cols: usize,
    pub(super) add_to: AddTo<'a>,
    /// Address of the first channel of the first pixel.
    pub(super) dst: *mut f32,
    /// Channels of a pixel of the target.
    pub(super) stride: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        target: &'a mut [f32],
        channels: usize,
        bias: Option<&[f32]>,
        residual: Option<&'a [f32]>,
    ) -> Self {
        if let Some(residual) = residual {
            assert_eq!(residual.len(), target.len(), "length of the residual");
        }
        let bias = bias.map(|bias| {
            let mut padded = Scratch::zeroed(channels.next_multiple_of(PANEL));
            padded[..channels].copy_from_slice(bias);
            padded
        });
        Self { pixels: target.len() / channels, target: Shared::new(target), channels, bias, residual }
    }

    /// Calls `f` for blocks that cover the target, in parallel.
    pub(super) fn for_each_block(&self, f: impl Fn(Block<'_>) + Sync + Send) {
        let panels = self.channels.div_ceil(PANEL);
        let blocks = self.pixels.div_ceil(PIXELS_PER_TASK);
        let panels_per_task = panels.div_ceil(panels.min(MIN_TASKS.div_ceil(blocks)));
        let groups = panels.div_ceil(panels_per_task);
        let bias = self.bias.as_deref();
        for_each_task(blocks * groups, |task| {
            let pixels = task_range(task / groups, PIXELS_PER_TASK, self.pixels);
            let panels = task_range(task % groups, panels_per_task, panels);
            let at = pixels.start * self.channels + panels.start * PANEL;
            let row = bias.map(|bias| &bias[panels.start * PANEL..panels.end * PANEL]);
            let add_to = match (row, self.residual) {
                (None, None) => AddTo::Nothing,
                (Some(row), None) => AddTo::Row(row),
                (row, Some(residual)) => AddTo::RowAndMatrix(row, residual[at..].as_ptr()),
            };
            let cols = self.channels.min(panels.end * PANEL) - panels.start * PANEL;
            f(Block { pixels, panels, cols, add_to, dst: self.target.at(at), stride: self.channels });
        });
    }
}
