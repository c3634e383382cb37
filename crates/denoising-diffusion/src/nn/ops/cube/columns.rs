//! Sums over rows, column by column, in two steps: a kernel leaves one row of sums per cube (the shape determines the number of cubes: see
//! [`Chunks`]), and [`sum_columns`] adds those. No atomics, so the order of additions is the same in every run.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::lanes::{Lanes, cube_count, sum_over_groups};
use super::rows::{Rows, vector_width};

/// Enough cubes for any GPU; each leaves a row of sums.
const CUBES: usize = 1024;

/// How the rows of images are distributed to cubes. No cube has rows of two images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    images: usize,
    /// Rows per image.
    pub(super) rows: usize,
    /// Cubes per image.
    pub(super) per_image: usize,
    /// Rows per group of a cube.
    pub(super) rows_per_group: usize,
}

impl Chunks {
    /// For cubes with this number of groups.
    pub(super) fn new(images: usize, rows: usize, groups: usize) -> Self {
        let rows_per_group = (images * rows).div_ceil(CUBES).div_ceil(groups).min(rows.div_ceil(groups));
        Self { images, rows, per_image: rows.div_ceil(rows_per_group * groups), rows_per_group }
    }

    pub(super) fn cubes(&self) -> usize {
        self.images * self.per_image
    }

    /// A row of sums per cube, not yet filled.
    pub(super) fn empty(&self, like: &Rows, columns: usize) -> Rows {
        Rows::dense(like, [self.cubes(), columns])
    }
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    images: u32,
    rows_per_image: u32,
    /// Number of columns that are summed, and of blocks of them.
    vectors: u32,
    blocks: u32,
    /// The first of these columns.
    from: u32,
    parts: u32,
    sums: u32,
}

/// One cube per image and block of columns; a block has as many vectors as a group has units.
#[cube(launch)]
fn sum_kernel<T: Float, N: Size>(
    parts: &[Vector<f32, N>],
    sums: &mut [Vector<T, N>],
    sizes: &Sizes,
    #[comptime] lanes: Lanes,
    #[define(T)] _dtype: ElemType,
) {
    let image = CUBE_POS / sizes.blocks as usize;
    let group = UNIT_POS as usize / lanes.units;
    let column = CUBE_POS % sizes.blocks as usize * lanes.units + UNIT_POS as usize % lanes.units;
    let is_column = image < sizes.images as usize && column < sizes.vectors as usize;
    let rows = sizes.rows_per_image as usize;
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if is_column {
        let mut row = group;
        while row < rows {
            sum += parts[(image * rows + row) * sizes.parts as usize + sizes.from as usize + column];
            row += lanes.groups;
        }
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    let sum = sum_over_groups::<N>(sum, &mut scratch, lanes);
    if is_column && group == 0 {
        sums[image * sizes.sums as usize + column] = Vector::cast_from(sum);
    }
}

/// A tensor like `like [images, n]` or, for one image, `[n]`: the sums over each image's rows of `parts [images * rows, columns]`, for the `n`
/// columns starting at `from`.
pub(super) fn sum_columns(parts: &Rows, from: usize, images: usize, like: &Rows) -> CubeTensor {
    sum_columns_into(parts, from, images, Rows::empty(like, like.shape(), like.dtype()))
}

/// The same, written to `sums`.
pub(super) fn sum_columns_into(parts: &Rows, from: usize, images: usize, sums: Rows) -> CubeTensor {
    let client = parts.client();
    let width = vector_width(&[from, sums.len], &[parts, &sums]);
    let vectors = sums.len / width;
    let rows = parts.count() / images;
    let lanes = Lanes::columns(&client, vectors, rows);
    let blocks = vectors.div_ceil(lanes.units);
    sum_kernel::launch(
        &client,
        cube_count(&client, images * blocks),
        lanes.cube_dim(),
        width,
        parts.arg(),
        sums.arg(),
        SizesLaunch::new(
            images as u32,
            rows as u32,
            vectors as u32,
            blocks as u32,
            (from / width) as u32,
            parts.pitch(width),
            sums.pitch(width),
        ),
        lanes,
        sums.elem(),
    );
    sums.tensor()
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct KindSizes {
    rows: u32,
    /// Number of images for which sums are needed.
    images: u32,
    rows_per_image: u32,
    /// Vectors of one kind of columns.
    vectors: u32,
    /// Number of blocks of the columns of two kinds.
    blocks: u32,
    parts: u32,
    per_image: u32,
}

/// Two kinds of columns are summed over all rows, with a cube per block of them; then two more over the rows of each image, with a cube per image and
/// block.
#[cube(launch)]
fn kinds_kernel<T: Float, U: Float, V: Float, N: Size>(
    parts: &[Vector<f32, N>],
    first: &mut [Vector<T, N>],
    second: &mut [Vector<U, N>],
    per_image: &mut [Vector<V, N>],
    sizes: &KindSizes,
    #[comptime] lanes: Lanes,
    #[define(T, U, V)] _dtypes: [ElemType; 3],
) {
    let blocks = sizes.blocks as usize;
    let vectors = sizes.vectors as usize;
    let of_all = CUBE_POS < blocks;
    let image = CUBE_POS / blocks - select(of_all, 0, 1);
    let column = CUBE_POS % blocks * lanes.units + UNIT_POS as usize % lanes.units;
    let group = UNIT_POS as usize / lanes.units;
    let is_column = (of_all || image < sizes.images as usize) && column < 2 * vectors;
    let rows = select(of_all, sizes.rows as usize, sizes.rows_per_image as usize);
    let at = image * rows * sizes.parts as usize + column + select(of_all, 0, 2 * vectors);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if is_column {
        let mut row = group;
        while row < rows {
            sum += parts[at + row * sizes.parts as usize];
            row += lanes.groups;
        }
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    let sum = sum_over_groups::<N>(sum, &mut scratch, lanes);
    if is_column && group == 0 {
        if !of_all {
            per_image[image * sizes.per_image as usize + column] = Vector::cast_from(sum);
        } else if column < vectors {
            first[column] = Vector::cast_from(sum);
        } else {
            second[column - vectors] = Vector::cast_from(sum);
        }
    }
}

/// From `parts [images * rows, kinds * c]`: the sums over all rows of the first and of the second `c` columns, like `first` and `second` `[c]`; and,
/// if `per_image` is given, the sums over each image's rows of the next two, like `per_image [images, 2 c]`. Without it, the last result is
/// meaningless.
pub(super) fn sum_columns_of_kinds(
    parts: &Rows,
    first: &Rows,
    second: &Rows,
    per_image: Option<&Rows>,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let client = parts.client();
    let [sums_of_first, sums_of_second] = [first, second].map(|like| Rows::empty(like, like.shape(), like.dtype()));
    let sums_per_image = match per_image {
        Some(like) => Rows::empty(like, like.shape(), like.dtype()),
        // Something must be passed; nothing is written to it.
        None => Rows::empty(second, second.shape(), second.dtype()),
    };
    let width = vector_width(&[first.len], &[parts, &sums_of_first, &sums_of_second, &sums_per_image]);
    let vectors = first.len / width;
    let (rows, images) = (parts.count(), per_image.map_or(0, Rows::count));
    let lanes = Lanes::columns(&client, 2 * vectors, rows);
    let blocks = (2 * vectors).div_ceil(lanes.units);
    kinds_kernel::launch(
        &client,
        cube_count(&client, blocks * (1 + images)),
        lanes.cube_dim(),
        width,
        parts.arg(),
        sums_of_first.arg(),
        sums_of_second.arg(),
        sums_per_image.arg(),
        KindSizesLaunch::new(
            rows as u32,
            images as u32,
            rows.checked_div(images).unwrap_or(0) as u32,
            vectors as u32,
            blocks as u32,
            parts.pitch(width),
            sums_per_image.pitch(width),
        ),
        lanes,
        [sums_of_first.elem(), sums_of_second.elem(), sums_per_image.elem()],
    );
    (sums_of_first.tensor(), sums_of_second.tensor(), sums_per_image.tensor())
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct PartSizes {
    rows: u32,
    /// Vectors per row.
    vectors: u32,
    rows_per_group: u32,
    x: u32,
    cubes: u32,
}

/// One cube per chunk of rows, whose sums it leaves in a row of `parts`.
#[cube(launch)]
fn parts_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    parts: &mut [Vector<f32, N>],
    sizes: &PartSizes,
    #[comptime] lanes: Lanes,
    #[define(F)] _dtype: ElemType,
) {
    let is_cube = CUBE_POS < sizes.cubes as usize;
    let lane = UNIT_POS as usize % lanes.units;
    let group = UNIT_POS as usize / lanes.units;
    let vectors = sizes.vectors as usize;
    let first = CUBE_POS * sizes.rows_per_group as usize * lanes.groups + group;
    let mut sums = Array::<Vector<f32, N>>::new(lanes.vectors);
    for step in 0..sizes.rows_per_group as usize {
        let row = first + step * lanes.groups;
        let is_row = is_cube && row < sizes.rows as usize;
        #[unroll(lanes.unrolled())]
        for k in 0..lanes.vectors {
            let i = lane + k * lanes.units;
            if is_row && i < vectors {
                sums[k] += Vector::cast_from(x[row * sizes.x as usize + i]);
            }
        }
    }
    let mut scratch = Shared::new_slice(comptime!(lanes.units * lanes.groups));
    #[unroll(lanes.unrolled())]
    for k in 0..lanes.vectors {
        let i = lane + k * lanes.units;
        let sum = sum_over_groups::<N>(sums[k], &mut scratch, lanes);
        if is_cube && group == 0 && i < vectors {
            parts[CUBE_POS * vectors + i] = sum;
        }
    }
}

/// A tensor like `like [n]`: the sums over all rows of `x [.., n]`, column by column.
pub(super) fn sum_rows(x: CubeTensor, like: CubeTensor) -> CubeTensor {
    let x = Rows::of(x);
    let (client, rows) = (x.client(), x.count());
    let width = vector_width(&[x.len], &[&x]);
    let vectors = x.len / width;
    let lanes = Lanes::new(&client, vectors);
    let chunks = Chunks::new(1, rows, lanes.groups);
    let parts = chunks.empty(&x, x.len);
    parts_kernel::launch(
        &client,
        cube_count(&client, chunks.cubes()),
        lanes.cube_dim(),
        width,
        x.arg(),
        parts.arg(),
        PartSizesLaunch::new(
            rows as u32,
            vectors as u32,
            chunks.rows_per_group as u32,
            x.pitch(width),
            chunks.cubes() as u32,
        ),
        lanes,
        x.elem(),
    );
    sum_columns(&parts, 0, 1, &Rows::of(like))
}

#[cfg(test)]
mod tests {
    use super::Chunks;

    #[test]
    fn every_row_has_a_cube() {
        for (images, rows, groups) in [(1, 1, 8), (1, 131_072, 8), (128, 16, 8), (5, 3, 1), (32, 16_384, 4), (2, 7, 2)]
        {
            let chunks = Chunks::new(images, rows, groups);
            let rows_per_cube = chunks.rows_per_group * groups;
            assert!(chunks.per_image * rows_per_cube >= rows && (chunks.per_image - 1) * rows_per_cube < rows);
            assert!(chunks.cubes() <= 1024 + images, "{}", chunks.cubes());
        }
    }
}
