//! The positions of target pixels' windows in a source. If the padding is copied in, or if there is none, every window begins at a fixed offset, and
//! each row of the kernel covers `kernel columns * channels` neighbouring values.

use crate::par::{Scratch, Shared, for_each_task};

use super::Conv2dShape;

/// A source that includes its padding.
pub(super) struct Windows<'a> {
    borrowed: &'a [f32],
    copied: Option<Scratch>,
    /// Rows and columns of target pixels per image.
    target_size: [usize; 2],
    /// Distance in values between the windows of neighbouring images, rows and columns.
    steps: [usize; 3],
    /// Distance in values between the rows of a window.
    pub(super) row_step: usize,
}

impl<'a> Windows<'a> {
    /// The windows of `shape` in x.
    pub(super) fn of_input(shape: &Conv2dShape, x: &'a [f32]) -> Self {
        let Conv2dShape { batch, height, width, in_channels, stride, padding, .. } = *shape;
        let target = [shape.out_height(), shape.out_width()];
        Self::new(x, batch, [height, width, in_channels], padding, target, stride)
    }

    /// The windows in `source`, which is `batch` images of `[rows, columns, channels]`, with `padding` rows above and below and columns left and
    /// right.
    pub(super) fn new(
        source: &'a [f32],
        batch: usize,
        [rows, columns, channels]: [usize; 3],
        padding: [usize; 2],
        target_size: [usize; 2],
        stride: usize,
    ) -> Self {
        let row_step = (columns + 2 * padding[1]) * channels;
        let image_step = (rows + 2 * padding[0]) * row_step;
        let copied = (padding != [0; 2]).then(|| {
            let mut padded = Scratch::new(batch * image_step);
            let out = Shared::new(&mut padded);
            for_each_task(batch, |image| {
                // SAFETY: every task has its own image.
                let target = unsafe { out.part(image * image_step..(image + 1) * image_step) };
                target.fill(0.0);
                let row_len = columns * channels;
                let source = source[image * rows * row_len..].chunks_exact(row_len).take(rows);
                for (target, source) in target.chunks_exact_mut(row_step).skip(padding[0]).zip(source) {
                    target[padding[1] * channels..][..row_len].copy_from_slice(source);
                }
            });
            padded
        });
        let steps = [image_step, stride * row_step, stride * channels];
        Self { borrowed: source, copied, target_size, steps, row_step }
    }

    pub(super) fn values(&self) -> &[f32] {
        self.copied.as_deref().unwrap_or(self.borrowed)
    }

    /// Where the windows of `pixels` begin.
    pub(super) fn offsets(&self, pixels: std::ops::Range<usize>) -> impl Iterator<Item = usize> {
        let [rows, columns] = self.target_size;
        let [image_step, row_step, column_step] = self.steps;
        let (line, mut column) = (pixels.start / columns, pixels.start % columns);
        let (mut image, mut row) = (line / rows, line % rows);
        pixels.map(move |_| {
            let offset = image * image_step + row * row_step + column * column_step;
            column += 1;
            if column == columns {
                (row, column) = (row + 1, 0);
                if row == rows {
                    (image, row) = (image + 1, 0);
                }
            }
            offset
        })
    }
}
