//! How the results of a convolution are divided among cubes.

use burn_cubecl::cubecl::client::Client;

use super::super::tensor_cores::{MATRIX, PLANE};

/// Multiprocessors of an H100, for a device that does not say how many it has.
const MULTIPROCESSORS: u32 = 132;

/// The results of a cube: `rows` positions by `columns` channels. Each of its planes has `plane_rows` by `plane_columns` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) plane_rows: usize,
    pub(super) plane_columns: usize,
}

impl Block {
    pub(super) const fn new(rows: usize, columns: usize, plane_rows: usize, plane_columns: usize) -> Self {
        Self { rows, columns, plane_rows, plane_columns }
    }

    /// Number of planes along the rows, and along the columns.
    const fn planes(self) -> [usize; 2] {
        [self.rows / self.plane_rows, self.columns / self.plane_columns]
    }

    pub(super) const fn units(self) -> usize {
        let [along_rows, along_columns] = self.planes();
        along_rows * along_columns * PLANE
    }

    /// Matrices of sums of a plane, along the rows and along the columns.
    pub(super) const fn matrix_rows(self) -> usize {
        self.plane_rows / MATRIX[0]
    }

    pub(super) const fn matrix_columns(self) -> usize {
        self.plane_columns / MATRIX[1]
    }

    /// For how many cycles per result and step a multiprocessor of an H100 is busy: with products (some 1270 of bf16 per cycle outside of warp groups,
    /// half as many of TF32), or with shared memory (128 bytes per cycle), into which a cube's factors go once, and from which each plane reads its
    /// own. A step has 64 bytes of each row and column.
    pub(super) fn cycles(self) -> f64 {
        let results = (self.rows * self.columns) as f64;
        let read = self.units() / PLANE * (self.plane_rows + self.plane_columns);
        let moved = 64 * (self.rows + self.columns + read);
        f64::max(32.0 / 1270.0, moved as f64 / 128.0 / results)
    }

    /// The blocks of the kernel's versions. All give the same bits.
    pub(super) const ALL: [Self; 4] = [
        Self::new(256, 64, 64, 64),
        Self::new(128, 128, 64, 64),
        Self::new(128, 64, 64, 32),
        Self::new(64, 64, 32, 32),
    ];

    /// The fastest for so many positions and channels, if every multiprocessor is busy for as long as the one with the most cubes.
    pub(super) fn fastest(client: &Client, positions: usize, channels: usize) -> Self {
        let multiprocessors = client.properties().hardware.num_streaming_multiprocessors.unwrap_or(MULTIPROCESSORS);
        Self::fastest_on(multiprocessors as usize, positions, channels)
    }

    fn fastest_on(multiprocessors: usize, positions: usize, channels: usize) -> Self {
        let time = |block: &Self| {
            let cubes = positions.div_ceil(block.rows) * channels.div_ceil(block.columns);
            (cubes.div_ceil(multiprocessors) * block.rows * block.columns) as f64 * block.cycles()
        };
        let faster = |a: Self, b: Self| if time(&b) < time(&a) { b } else { a };
        Self::ALL.into_iter().reduce(faster).expect("there are several")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_large_unless_multiprocessors_would_be_idle() {
        let cases = [
            // The levels of a U-Net with 128 images of 32x32.
            (128 * 32 * 32, 64, [256, 64]),
            (128 * 16 * 16, 128, [128, 128]),
            (128 * 8 * 8, 256, [128, 128]),
            (128 * 4 * 4, 512, [128, 64]),
            // One image.
            (8 * 8, 256, [64, 64]),
        ];
        for (positions, channels, expected) in cases {
            let block = Block::fastest_on(132, positions, channels);
            assert_eq!([block.rows, block.columns], expected, "{positions} positions, {channels} channels");
        }
    }

    #[test]
    fn narrow_results_of_a_block_fit_where_images_and_weights_were() {
        for block in Block::ALL {
            assert!(2 * block.rows * block.columns <= 2 * 64 * (block.rows + block.columns), "{block:?}");
        }
    }
}
