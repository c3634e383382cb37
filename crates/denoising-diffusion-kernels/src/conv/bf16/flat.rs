//! Images as one row of positions, with zeros between their lines and between images, which serve both neighbours.

use std::ops::Range;

use super::super::Conv2dShape;
use crate::matrix_unit::{ROWS, SIDE};

/// Positions of interleaved images in a pair of tiles.
const POSITIONS_PER_PAIR: usize = ROWS / SIDE;

/// Positions of the pixels of all images, and of the zeros around them.
///
/// With padding `[ph, pw]`, a line of `w` pixels takes `w + pw` positions, an image of `h` lines `h + ph` lines. A target pixel at row i and column j
/// of an image is at `place = (image (h + ph) + i) (w + pw) + j`; the source that kernel position (u, v) brings to it is at `place + u (w + pw) + v`,
/// when the source begins with `ph` lines and `pw` positions of zeros. So the places of a block of targets follow each other, as do their sources.
///
/// Small images have many zeros. Groups of sixteen of those are interleaved instead: position after position, each with all images of the group. Then
/// places that are no pixels come in whole tiles, which are skipped. (Lines have more zeros if need be, so that each begins a pair of tiles.)
#[derive(Clone, Copy, Debug)]
pub(super) struct Flat {
    batch: usize,
    /// Rows and columns of the enlarged image.
    size: [usize; 2],
    padding: [usize; 2],
    upsample: usize,
    /// Positions of a line.
    line: usize,
    /// Images in each position of a line: 1 or [`SIDE`].
    interleaved: usize,
}

impl Flat {
    /// For sums over channels: interleaved where that has fewer places by a sixth, as neighbouring pixels are read and stored faster.
    pub(super) fn new(shape: &Conv2dShape) -> Self {
        Self::chosen(shape, 6, 7)
    }

    /// For sums over places: interleaved if that has no more places, because kernel positions are then shifts by parts of a cache line.
    pub(super) fn of_sums_over_places(shape: &Conv2dShape) -> Self {
        Self::chosen(shape, 1, 1)
    }

    /// Interleaved if `a` times the places is more than `b` times those of interleaved images.
    fn chosen(shape: &Conv2dShape, a: usize, b: usize) -> Self {
        let Conv2dShape { batch, padding, upsample, .. } = *shape;
        let size = shape.enlarged();
        let following = Self { batch, size, padding, upsample, line: size[1] + padding[1], interleaved: 1 };
        let line = following.line.next_multiple_of(POSITIONS_PER_PAIR);
        let interleaved = Self { line, interleaved: SIDE, ..following };
        let multiplied = batch.next_multiple_of(SIDE) * size[0] * size[1].next_multiple_of(POSITIONS_PER_PAIR);
        if a * following.places() > b * multiplied { interleaved } else { following }
    }

    /// Lines of an image.
    fn lines(&self) -> usize {
        self.size[0] + self.padding[0]
    }

    /// Number of groups of interleaved images, or of images.
    fn groups(&self) -> usize {
        self.batch.div_ceil(self.interleaved)
    }

    /// Number of places of targets, those that are no pixels included.
    pub(super) fn places(&self) -> usize {
        self.groups() * self.lines() * self.line * self.interleaved
    }

    /// Distance of each kernel position's source from the place.
    pub(super) fn taps(&self) -> Vec<usize> {
        let [rows, columns] = self.padding.map(|padding| 2 * padding + 1);
        (0..rows).flat_map(|u| (0..columns).map(move |v| (u * self.line + v) * self.interleaved)).collect()
    }

    /// The largest of [`taps`](Self::taps).
    pub(super) fn reach(&self) -> usize {
        2 * (self.padding[0] * self.line + self.padding[1]) * self.interleaved
    }

    /// Runs of places of one length, a multiple of [`TERMS`](crate::matrix_unit::TERMS), which together hold all pixels: where each begins, and the
    /// length. The last may end after the last place.
    pub(super) fn runs(&self, usual: usize) -> (Vec<usize>, usize) {
        if self.interleaved == 1 {
            let len = usual.min(self.places().next_multiple_of(ROWS));
            return ((0..self.places()).step_by(len).collect(), len);
        }
        let line = |group: usize, i: usize| (group * self.lines() + i) * self.line * self.interleaved;
        let len = (self.size[1] * self.interleaved).next_multiple_of(ROWS);
        ((0..self.groups()).flat_map(|group| (0..self.size[0]).map(move |i| line(group, i))).collect(), len)
    }

    /// Whether any of these places is a pixel.
    pub(super) fn has_pixels(&self, range: Range<usize>) -> bool {
        let mut any = self.interleaved == 1;
        if !any {
            self.each_run(range, |_, _| any = true);
        }
        any
    }

    /// Calls `f(index in the range, pixels)` for each run of targets at the places of `range` that are neighbours in the target, given as a range of
    /// pixels of all images.
    pub(super) fn each_run(&self, range: Range<usize>, mut f: impl FnMut(usize, Range<usize>)) {
        let [rows, columns] = self.size;
        let mut place = range.start;
        while place < range.end {
            let (position, inner) = (place / self.interleaved, place % self.interleaved);
            let (at, column) = (position / self.line, position % self.line);
            let (group, row) = (at / self.lines(), at % self.lines());
            let is_pixel = group < self.groups() && row < rows && column < columns;
            let until;
            if self.interleaved == 1 {
                until = range.end.min((at + 1) * self.line);
                if is_pixel {
                    let first = (group * rows + row) * columns + column;
                    f(place - range.start, first..first + (columns - column).min(until - place));
                }
            } else {
                until = range.end.min(place + self.interleaved - inner);
                if is_pixel {
                    let first = group * self.interleaved + inner;
                    for (i, image) in (first..self.batch.min(first + until - place)).enumerate() {
                        let pixel = (image * rows + row) * columns + column;
                        f(place - range.start + i, pixel..pixel + 1);
                    }
                }
            }
            place = until;
        }
    }

    /// Calls `f(index in the range, first pixel of the source as it is stored, number)` for each run of source pixels in `range` of the positions of
    /// the source; the others are zeros. Enlarged images have runs of one pixel.
    pub(super) fn each_source(&self, range: Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let [rows, columns] = self.size;
        // Source pixels are where their targets are, after the first zeros.
        let shift = self.reach() / 2;
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
