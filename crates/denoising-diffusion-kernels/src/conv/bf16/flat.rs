//! Images as one row of pixels, with zeros between their lines and between images, which serve both neighbours.

use super::super::Conv2dShape;

/// Positions of the pixels of all images, and of the zeros around them.
///
/// With padding `[ph, pw]`, a line of `w` pixels takes `w + pw` positions, an image of `h` lines `h + ph` lines. A target pixel at row i and column j
/// of an image is at `place = (image (h + ph) + i) (w + pw) + j`; the source that kernel position (u, v) brings to it is at `place + u (w + pw) + v`,
/// when the source begins with `ph` lines and `pw` positions of zeros. So the places of a block of targets follow each other, as do their sources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flat {
    batch: usize,
    /// Rows and columns of the enlarged image.
    size: [usize; 2],
    padding: [usize; 2],
    upsample: usize,
}

impl Flat {
    pub(super) fn new(shape: &Conv2dShape) -> Self {
        Self { batch: shape.batch, size: shape.enlarged(), padding: shape.padding, upsample: shape.upsample }
    }

    /// Positions of a line.
    fn line(&self) -> usize {
        self.size[1] + self.padding[1]
    }

    /// Lines of an image.
    fn lines(&self) -> usize {
        self.size[0] + self.padding[0]
    }

    /// Number of places of targets, those that are no pixels included.
    pub(super) fn places(&self) -> usize {
        self.batch * self.lines() * self.line()
    }

    /// Distance of each kernel position's source from the place.
    pub(super) fn taps(&self) -> Vec<usize> {
        let [rows, columns] = self.padding.map(|padding| 2 * padding + 1);
        (0..rows).flat_map(|u| (0..columns).map(move |v| u * self.line() + v)).collect()
    }

    /// The largest of [`taps`](Self::taps).
    pub(super) fn reach(&self) -> usize {
        2 * (self.padding[0] * self.line() + self.padding[1])
    }

    /// Calls `f(index in the range, pixels)` for each run of targets at the places of `range` that are neighbours in the target, given as a range of
    /// pixels of all images.
    pub(super) fn each_run(&self, range: std::ops::Range<usize>, mut f: impl FnMut(usize, std::ops::Range<usize>)) {
        let (line, lines, [rows, columns]) = (self.line(), self.lines(), self.size);
        let mut place = range.start;
        while place < range.end {
            let (at, column) = (place / line, place % line);
            let (image, row) = (at / lines, at % lines);
            let end = range.end.min((at + 1) * line);
            let columns_here = columns.min(column + end - place).saturating_sub(column);
            if image < self.batch && row < rows && columns_here > 0 {
                let first = (image * rows + row) * columns + column;
                f(place - range.start, first..first + columns_here);
            }
            place = end;
        }
    }

    /// Calls `f(index in the range, first pixel of the source as it is stored, number)` for each run of source pixels in `range` of the positions of
    /// the source; the others are zeros. Enlarged images have runs of one pixel.
    pub(super) fn each_source(&self, range: std::ops::Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let [rows, columns] = self.size;
        // Source pixels are where their targets are, after the first zeros.
        let shift = self.padding[0] * self.line() + self.padding[1];
        let (from, to) = (range.start.max(shift), range.end.min(shift + self.places()));
        if from >= to {
            return;
        }
        let before = from - range.start;
        self.each_run(from - shift..to - shift, |at, pixels| {
            if self.upsample == 1 {
                return f(before + at, pixels.start, pixels.len());
            }
            for (i, pixel) in pixels.enumerate() {
                let (line, column) = (pixel / columns, pixel % columns);
                let (image, row) = (line / rows, line % rows);
                let stored = image * (rows / self.upsample) + row / self.upsample;
                f(before + at + i, stored * (columns / self.upsample) + column / self.upsample, 1);
            }
        });
    }
}
