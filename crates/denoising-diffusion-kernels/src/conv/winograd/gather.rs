//! Where the pixels of a tile are.

/// Outputs per side of a tile.
const SIDE: usize = 4;

/// The 4 x 4 output tiles of a batch, laid over an image tensor `[batch, height, width, channels]`.
pub(super) struct Tiles {
    batch: usize,
    /// Tiles per image, down and across.
    grid: [usize; 2],
    /// Height and width of the images.
    size: [usize; 2],
    channels: usize,
    /// How far a tile begins before its outputs.
    margin: usize,
}

impl Tiles {
    /// Tiles that cover `outputs` (height, width), each beginning `margin` before its outputs in images of `size` and `channels`.
    pub(super) fn new(batch: usize, outputs: [usize; 2], image: ([usize; 2], usize), margin: usize) -> Self {
        let (size, channels) = image;
        Self { batch, grid: outputs.map(|n| n.div_ceil(SIDE)), size, channels, margin }
    }

    pub(super) fn count(&self) -> usize {
        self.batch * self.grid[0] * self.grid[1]
    }

    /// Indices of the first channels of the N x N (= M) pixels of a tile; `None` outside the image.
    pub(super) fn positions<const N: usize, const M: usize>(&self, tile: usize) -> [Option<usize>; M] {
        let [down, across] = self.grid;
        let (image, i, j) = (tile / (down * across), tile / across % down, tile % across);
        let row = |r: usize| (i * SIDE + r).checked_sub(self.margin).filter(|&row| row < self.size[0]);
        let column = |c: usize| (j * SIDE + c).checked_sub(self.margin).filter(|&column| column < self.size[1]);
        std::array::from_fn(|at| {
            let (row, column) = (row(at / N)?, column(at % N)?);
            Some(((image * self.size[0] + row) * self.size[1] + column) * self.channels)
        })
    }

    /// Addresses of the pixels of a tile; `zeros` stands in outside the image.
    pub(super) fn pointers<const N: usize, const M: usize>(
        &self,
        tile: usize,
        source: &[f32],
        zeros: &[f32],
    ) -> [*const f32; M] {
        debug_assert!(zeros.len() >= self.channels);
        self.positions::<N, M>(tile).map(|at| match at {
            Some(at) => source[at..at + self.channels].as_ptr(),
            None => zeros.as_ptr(),
        })
    }
}
