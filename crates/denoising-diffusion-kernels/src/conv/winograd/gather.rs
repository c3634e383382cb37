//! Where the pixels of a tile are.

use super::super::parts::{Parts, PartsMut};
use super::transform::Place;
use crate::simd::prefetch;

/// Outputs per side of a tile.
const SIDE: usize = 4;

/// The 4 x 4 output tiles of a batch, laid over images `[batch, height, width]`.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    batch: usize,
    /// Tiles per image, down and across.
    grid: [usize; 2],
    /// Height and width of the images, as stored.
    size: [usize; 2],
    /// How often each stored pixel is repeated, down and across, in what the tiles lie over.
    upsample: usize,
    /// How far a tile begins before its outputs.
    margin: usize,
}

/// Values of a cache line.
const LINE: usize = 16;

/// Marks a pixel outside the image.
pub(super) const OUTSIDE: usize = usize::MAX;

impl Tiles {
    /// Tiles that cover `outputs` (height, width), each beginning `margin` before its outputs in images of `size`, `upsample` times
    /// enlarged.
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

    /// Numbers of the N x N (= M) pixels of a tile.
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

    /// Numbers of the 2 x 2 stored pixels that a tile over images of twice their size lies on.
    pub(super) fn halved(&self, tile: usize) -> [usize; 4] {
        let (image, i, j) = self.place(tile);
        let [height, width] = self.size;
        std::array::from_fn(|at| {
            let (row, column) = (2 * i + at / 2, 2 * j + at % 2);
            if row < height && column < width { (image * height + row) * width + column } else { OUTSIDE }
        })
    }

    /// Calls `f(first channel, channels, addresses of the tile's pixels)` for each part; `zeros` stands in outside the image.
    pub(super) fn sources<const N: usize, const M: usize>(
        &self,
        tile: usize,
        parts: &Parts<'_>,
        zeros: &[f32],
        mut f: impl FnMut(usize, usize, &[*const f32; M]),
    ) {
        let pixels = self.pixels::<N, M>(tile);
        for part in parts.iter() {
            debug_assert!(zeros.len() >= part.channels);
            let pointers = pixels.map(|pixel| match pixel {
                OUTSIDE => zeros.as_ptr(),
                pixel => part.values[pixel * part.channels..].as_ptr(),
            });
            f(part.first, part.channels, &pointers);
        }
    }

    /// Asks for the pixels of a tile that is to be transformed soon. The memory is read in short pieces from many rows, which the
    /// processor does not foresee.
    pub(super) fn prefetch<const N: usize, const M: usize>(&self, tile: usize, parts: &Parts<'_>) {
        if tile >= self.count() {
            return;
        }
        let pixels = self.pixels::<N, M>(tile);
        for part in parts.iter() {
            for pixel in pixels.into_iter().filter(|&pixel| pixel != OUTSIDE) {
                let pixel = &part.values[pixel * part.channels..][..part.channels];
                for line in pixel.chunks(LINE) {
                    prefetch(line.as_ptr());
                }
            }
        }
    }

    /// Where the channels `from..to` of all parts go, part by part.
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
