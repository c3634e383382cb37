//! The positions of a tile's pixels in memory.

use super::super::parts::{Parts, PartsMut};
use super::transform::Place;
use crate::simd::prefetch;

/// Outputs per side of a tile.
const SIDE: usize = 4;

/// The 4 x 4 output tiles that cover a batch of images `[batch, height, width]`.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    batch: usize,
    /// Number of tiles per image, vertically and horizontally.
    grid: [usize; 2],
    /// Height and width of the images, as stored.
    size: [usize; 2],
    /// How often each stored pixel is repeated, vertically and horizontally, in the images that the tiles cover.
    upsample: usize,
    /// How far before its outputs a tile begins.
    margin: usize,
}

/// Number of values per cache line.
const LINE: usize = 16;

/// Marks a pixel outside the image.
pub(super) const OUTSIDE: usize = usize::MAX;

impl Tiles {
    /// Tiles that cover `outputs` (height, width). Each begins `margin` before its outputs, in images of `size` that are enlarged `upsample` times.
    pub(super) fn new(batch: usize, outputs: [usize; 2], size: [usize; 2], upsample: usize, margin: usize) -> Self {
        Self { batch, grid: outputs.map(|n| n.div_ceil(SIDE)), size, upsample, margin }
    }

    pub(super) fn count(&self) -> usize {
        self.batch * self.grid[0] * self.grid[1]
    }

    /// Image, row and column of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let [down, across] = self.grid;
        (tile / (down * across), tile / across % down, tile % across)
    }

    /// Indices of the N x N (= M) pixels of a tile.
    pub(super) fn pixels<const N: usize, const M: usize>(&self, tile: usize) -> [usize; M] {
        let (image, i, j) = self.place(tile);
        let [height, width] = self.size;
        let along = |first: usize, size: usize| {
            std::array::from_fn::<_, N, _>(|at| match (first + at).checked_sub(self.margin) {
                Some(at) if at < size * self.upsample => at / self.upsample,
                _ => OUTSIDE,
            })
        };
        let (rows, columns) = (along(i * SIDE, height), along(j * SIDE, width));
        let mut pixels = [OUTSIDE; M];
        for (pixels, row) in pixels.chunks_exact_mut(N).zip(rows) {
            for (pixel, column) in pixels.iter_mut().zip(columns) {
                if row != OUTSIDE && column != OUTSIDE {
                    *pixel = (image * height + row) * width + column;
                }
            }
        }
        pixels
    }

    /// Indices of the 2 x 2 stored pixels under a tile over images of twice their size.
    pub(super) fn halved(&self, tile: usize) -> [usize; 4] {
        let (image, i, j) = self.place(tile);
        let [height, width] = self.size;
        std::array::from_fn(|at| {
            let (row, column) = (2 * i + at / 2, 2 * j + at % 2);
            if row < height && column < width { (image * height + row) * width + column } else { OUTSIDE }
        })
    }

    /// Calls `f(tile, first channel, channels, addresses of the tile's pixels)` for each part of each tile; `zeros` is used outside the image. The
    /// next tile's pixels are prefetched: they are short pieces in many rows, which the processor does not predict.
    pub(super) fn each_source<const N: usize, const M: usize>(
        &self,
        tiles: std::ops::Range<usize>,
        parts: &Parts<'_>,
        zeros: &[f32],
        mut f: impl FnMut(usize, usize, usize, &[*const f32; M]),
    ) {
        let mut next = self.pixels::<N, M>(tiles.start);
        for tile in tiles.clone() {
            let pixels = next;
            if tile + 1 < tiles.end {
                next = self.pixels::<N, M>(tile + 1);
                fetch(&next, parts);
            }
            for part in parts.iter() {
                debug_assert!(zeros.len() >= part.channels);
                let pointers = pixels.map(|pixel| match pixel {
                    OUTSIDE => zeros.as_ptr(),
                    pixel => part.values[pixel * part.channels..].as_ptr(),
                });
                f(tile, part.first, part.channels, &pointers);
            }
        }
    }

    /// The targets of the channels `from..to` of all parts, part by part.
    pub(super) fn targets<'a>(
        targets: &'a PartsMut<'_>,
        from: usize,
        to: usize,
    ) -> impl Iterator<Item = (usize, usize, Place)> + 'a {
        targets.iter().filter_map(move |part| {
            let (first, end) = (from.max(part.first), to.min(part.first + part.channels));
            let place = || Place { channels: part.channels, target: part.values.at(first - part.first) };
            (first < end).then(|| (first, end, place()))
        })
    }
}

fn fetch(pixels: &[usize], parts: &Parts<'_>) {
    for part in parts.iter() {
        for &pixel in pixels.iter().filter(|&&pixel| pixel != OUTSIDE) {
            for line in part.values[pixel * part.channels..][..part.channels].chunks(LINE) {
                prefetch(line.as_ptr());
            }
        }
    }
}
