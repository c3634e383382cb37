//! The product on matrix units (CUDA: tensor cores). A cube takes some of the positions and leaves its sums in f32, which a second kernel adds. For
//! each position, the values under one row of the kernel, `(kx, i)`, are adjacent in memory, so that rows of few channels fill matrices, too.

use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma;
use burn_cubecl::cubecl::ir::features::MmaConfig;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::super::super::columns::sum_columns_into;
use super::super::super::lanes::cube_count;
use super::super::super::rows::{Rows, moved_width};
use super::dims;

/// Number of output channels per cube, and of columns `(kx, i)`.
const SIDE: usize = 64;
/// Number of positions in shared memory at a time.
const ROWS: usize = 32;
/// Four planes, each with a quarter of the cube's sums.
const UNITS: usize = 128;
const PLANE: usize = 32;
/// Rows and columns of a matrix; two by two matrices are a plane's quarter.
const MATRIX: usize = 16;
/// Cubes that an H100 computes at a time: four on each of its 132 multiprocessors, as each unit takes up to 128 registers. The same for all devices,
/// so that those that run the same kernels add the same partial sums, and round alike.
const CUBES: usize = 4 * 132;
/// Alignment of the data that matrix units read, in bytes.
const ALIGNMENT: usize = 128;

/// Compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Number of positions in one matrix product.
    depth: usize,
    /// Distance between two positions in shared memory, in values: more than [`SIDE`], to avoid bank conflicts.
    pitch: usize,
    /// Values per vector of `dy`, and of `x`.
    dy_width: usize,
    x_width: usize,
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    positions: u32,
    height: u32,
    width: u32,
    c_out: u32,
    c_in: u32,
    kernel_height: u32,
    kernel_width: u32,
    dy: u32,
    x: u32,
    /// Number of blocks of output channels, and of columns.
    channel_blocks: u32,
    column_blocks: u32,
    chunks: u32,
    /// Number of steps of [`ROWS`] positions each that a cube makes.
    steps: u32,
    /// Rows and columns of a chunk's sums, padded to whole matrices.
    padded_c_out: u32,
    padded_columns: u32,
}

/// What a cube sums.
#[derive(CubeType)]
struct Task {
    chunk: usize,
    /// The first output channel, and the first column.
    channel: usize,
    column: usize,
    ky: usize,
}

#[cube]
fn task(sizes: &Sizes) -> Task {
    let columns = sizes.column_blocks as usize;
    let heights = sizes.kernel_height as usize;
    let channels = sizes.channel_blocks as usize;
    let rest = CUBE_POS / columns;
    Task {
        chunk: rest / heights / channels,
        channel: rest / heights % channels * SIDE,
        column: CUBE_POS % columns * SIDE,
        ky: rest % heights,
    }
}

/// Loads a block of `dy` from position `first` on, some vectors per unit; zeros outside.
#[cube]
fn load_dy<F: Float, G: Float, A: Size>(
    dy: &[Vector<F, A>],
    block: &mut Array<Vector<G, A>>,
    first: usize,
    task: &Task,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let per_row = comptime!(SIDE / tile.dy_width);
    #[unroll]
    for i in 0..comptime!(per_unit(tile.dy_width)) {
        let at = i * UNITS + UNIT_POS as usize;
        let position = first + at / per_row;
        let channel = task.channel + at % per_row * tile.dy_width;
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if position < sizes.positions as usize && channel < sizes.c_out as usize {
            value = dy[position * sizes.dy as usize + channel / tile.dy_width];
        }
        block[i] = Vector::cast_from(value);
    }
}

/// Loads the values of `x` under the kernel's row at these positions.
#[cube]
fn load_x<F: Float, G: Float, B: Size>(
    x: &[Vector<F, B>],
    block: &mut Array<Vector<G, B>>,
    first: usize,
    task: &Task,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let per_row = comptime!(SIDE / tile.x_width);
    let height = sizes.height as usize;
    let width = sizes.width as usize;
    let c_in = sizes.c_in as usize;
    let top = sizes.kernel_height as usize / 2;
    let left = sizes.kernel_width as usize / 2;
    #[unroll]
    for i in 0..comptime!(per_unit(tile.x_width)) {
        let at = i * UNITS + UNIT_POS as usize;
        let position = first + at / per_row;
        let column = task.column + at % per_row * tile.x_width;
        let kx = column / c_in;
        // Both counted from the first row and column of the padding.
        let padded_y = position / width % height + task.ky;
        let padded_x = position % width + kx;
        let is_column = position < sizes.positions as usize && kx < sizes.kernel_width as usize;
        let is_row = padded_y >= top && padded_y < top + height;
        let mut value = Vector::<F, B>::cast_from(0.0f32);
        if is_column && is_row && padded_x >= left && padded_x < left + width {
            let seen = position + task.ky * width + kx - top * width - left;
            value = x[seen * sizes.x as usize + column % c_in / tile.x_width];
        }
        block[i] = Vector::cast_from(value);
    }
}

/// Writes a block, whose vectors are distributed over the units, to shared memory.
#[cube]
fn share<G: Float, N: Size>(
    block: &Array<Vector<G, N>>,
    shared: &mut [Vector<G, N>],
    #[comptime] width: usize,
    #[comptime] tile: Tile,
) {
    let per_row = comptime!(SIDE / width);
    #[unroll]
    for i in 0..comptime!(per_unit(width)) {
        let at = i * UNITS + UNIT_POS as usize;
        shared[at / per_row * comptime!(tile.pitch / width) + at % per_row] = block[i];
    }
}

/// Number of a block's vectors per unit.
fn per_unit(width: usize) -> usize {
    ROWS * SIDE / width / UNITS
}

/// Output channels by columns of a kernel's row, summed over some of the positions: `parts [chunks, padded c_out, kernel height, padded columns]`.
#[cube(launch)]
fn products_kernel<F: Float, G: Float, A: Size, B: Size>(
    dy: &[Vector<F, A>],
    x: &[Vector<F, B>],
    parts: &mut [f32],
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let task = task(sizes);
    let mut shared_dy =
        Shared::<[Vector<G, A>]>::new_aligned_slice(comptime!(ROWS * tile.pitch / tile.dy_width), ALIGNMENT);
    let mut shared_x =
        Shared::<[Vector<G, B>]>::new_aligned_slice(comptime!(ROWS * tile.pitch / tile.x_width), ALIGNMENT);
    let plane = UNIT_POS as usize / PLANE;
    let channel = plane % 2 * comptime!(SIDE / 2);
    let column = plane / 2 * comptime!(SIDE / 2);
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..4 {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            MATRIX,
            MATRIX,
            tile.depth,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }

    let start = task.chunk * sizes.steps as usize * ROWS;
    let mut block_of_dy = Array::<Vector<G, A>>::new(comptime!(per_unit(tile.dy_width)));
    let mut block_of_x = Array::<Vector<G, B>>::new(comptime!(per_unit(tile.x_width)));
    load_dy::<F, G, A>(dy, &mut block_of_dy, start, &task, sizes, tile);
    load_x::<F, G, B>(x, &mut block_of_x, start, &task, sizes, tile);
    for step in 0..sizes.steps as usize {
        // All units are done with the block before this one.
        sync_cube();
        share::<G, A>(&block_of_dy, &mut shared_dy, tile.dy_width, tile);
        share::<G, B>(&block_of_x, &mut shared_x, tile.x_width, tile);
        sync_cube();
        // The next block is loaded meanwhile; after the last one, that is another chunk's, or nothing.
        let next = start + (step + 1) * ROWS;
        load_dy::<F, G, A>(dy, &mut block_of_dy, next, &task, sizes, tile);
        load_x::<F, G, B>(x, &mut block_of_x, next, &task, sizes, tile);
        #[unroll]
        for k in 0..comptime!(ROWS / tile.depth) {
            let row = comptime!(k * tile.depth * tile.pitch);
            let mut of_dy = Sequence::<cmma::Matrix<Vector<G, A>>>::new();
            let mut of_x = Sequence::<cmma::Matrix<Vector<G, B>>>::new();
            #[unroll]
            for i in 0..2 {
                let dy_at = (row + channel + i * MATRIX) / tile.dy_width;
                let x_at = (row + column + i * MATRIX) / tile.x_width;
                of_dy.push(cmma::Matrix::<Vector<G, A>>::from_slice(
                    cmma::MatrixIdent::A,
                    MATRIX,
                    MATRIX,
                    tile.depth,
                    cmma::MatrixLayout::ColMajor,
                    &shared_dy[dy_at..shared_dy.len()],
                    tile.pitch as u32,
                ));
                of_x.push(cmma::Matrix::<Vector<G, B>>::from_slice(
                    cmma::MatrixIdent::B,
                    MATRIX,
                    MATRIX,
                    tile.depth,
                    cmma::MatrixLayout::RowMajor,
                    &shared_x[x_at..shared_x.len()],
                    tile.pitch as u32,
                ));
            }
            #[unroll]
            for i in 0..2 {
                #[unroll]
                for j in 0..2 {
                    let sum = &sums[comptime!(2 * i + j)];
                    cmma::execute(&of_dy[i], &of_x[j], sum, sum);
                }
            }
        }
    }

    let pitch = sizes.kernel_height as usize * sizes.padded_columns as usize;
    #[unroll]
    for i in 0..2 {
        #[unroll]
        for j in 0..2 {
            let o = task.channel + channel + i * MATRIX;
            let n = task.column + column + j * MATRIX;
            let is_sum = task.chunk < sizes.chunks as usize;
            if is_sum && o < sizes.padded_c_out as usize && n < sizes.padded_columns as usize {
                let row = (task.chunk * sizes.padded_c_out as usize + o) * pitch;
                let at = row + task.ky * sizes.padded_columns as usize + n;
                let len = parts.len();
                cmma::store(
                    &mut parts[at..len],
                    &sums[comptime!(2 * i + j)],
                    pitch as u32,
                    cmma::MatrixLayout::RowMajor,
                );
            }
        }
    }
}

/// The type in which matrices of `dtype` are multiplied, and how many values deep, if the device can do it.
fn matrices(client: &Client, dtype: DType) -> Option<(ElemType, usize)> {
    let (kind, depth) = match dtype {
        DType::F32 => (FloatKind::TF32, 8),
        DType::BF16 => (FloatKind::BF16, 16),
        DType::F16 => (FloatKind::F16, 16),
        _ => return None,
    };
    let (elem, side) = (ElemType::Float(kind), MATRIX as u32);
    let config = MmaConfig {
        a_type: elem,
        b_type: elem,
        cd_type: ElemType::Float(FloatKind::F32),
        m: side,
        n: side,
        k: depth as u32,
    };
    let (properties, plane) = (client.properties(), PLANE as u32);
    let hardware = &properties.hardware;
    let planes = (hardware.plane_size_min, hardware.plane_size_max) == (plane, plane);
    let fits = hardware.max_units_per_cube as usize >= UNITS && hardware.max_shared_memory_size >= shared_bytes(depth);
    (planes && fits && properties.features.matmul.cmma.contains(&config)).then_some((elem, depth))
}

/// Distance between positions in shared memory, in values: each begins four banks of four bytes after the one before.
fn shared_pitch(depth: usize) -> usize {
    if depth == 16 { SIDE + 8 } else { SIDE + 4 }
}

/// Bytes of shared memory that the kernel uses.
fn shared_bytes(depth: usize) -> usize {
    let value = if depth == 16 { 2 } else { 4 };
    2 * (ROWS * shared_pitch(depth) * value + ALIGNMENT)
}

/// How many parts the positions are cut into for so many `tasks` each: so many that they fill a device of [`CUBES`] once or a few times over. A few
/// cubes more than that would take as long again; more parts than needed take memory for their sums.
fn parts_of_positions(tasks: usize) -> usize {
    let time = |parts: usize| (tasks * parts).div_ceil(CUBES) as f64 / parts as f64;
    let filling = (1..=4).map(|times| (times * CUBES / tasks).max(1));
    filling.reduce(|best, parts| if time(parts) < 0.95 * time(best) { parts } else { best }).unwrap_or(1)
}

/// Whether the device has matrix units for this type.
pub(super) fn takes(client: &Client, dtype: DType) -> bool {
    matrices(client, dtype).is_some()
}

/// The gradient of a weight `[c_out, c_in, kh, kw]` as `[c_out, kh, kw c_in]` of this type, if the device [can](takes) compute it.
pub(super) fn product(x: CubeTensor, weight: [usize; 4], dy: CubeTensor, dtype: DType) -> CubeTensor {
    let [_, height, width, c_in] = dims(&x);
    let [c_out, _, kh, kw] = weight;
    let client = x.client.clone();
    let (elem, depth) = matrices(&client, x.dtype).expect("asked before");
    let (x, dy) = (Rows::of(x), Rows::of(dy));
    let tile = Tile {
        depth,
        pitch: shared_pitch(depth),
        dy_width: moved_width(&[c_out, MATRIX], &[&dy]),
        x_width: moved_width(&[c_in, MATRIX], &[&x]),
    };
    let (positions, columns) = (x.count(), kw * c_in);
    let (channel_blocks, column_blocks) = (c_out.div_ceil(SIDE), columns.div_ceil(SIDE));
    let tasks = channel_blocks * column_blocks * kh;
    let steps = positions.div_ceil(ROWS).div_ceil(parts_of_positions(tasks));
    let chunks = positions.div_ceil(ROWS * steps);
    let [padded_c_out, padded_columns] = [c_out, columns].map(|side| side.next_multiple_of(MATRIX));
    let parts = Rows::dense(&x, [chunks, padded_c_out * kh * padded_columns]);
    products_kernel::launch(
        &client,
        cube_count(&client, chunks * tasks),
        CubeDim::new_1d(UNITS as u32),
        tile.dy_width,
        tile.x_width,
        dy.arg(),
        x.arg(),
        parts.arg(),
        SizesLaunch::new(
            positions as u32,
            height as u32,
            width as u32,
            c_out as u32,
            c_in as u32,
            kh as u32,
            kw as u32,
            dy.pitch(tile.dy_width),
            x.pitch(tile.x_width),
            channel_blocks as u32,
            column_blocks as u32,
            chunks as u32,
            steps as u32,
            padded_c_out as u32,
            padded_columns as u32,
        ),
        tile,
        [dy.elem(), elem],
    );
    let sums = sum_columns_into(&parts, 0, 1, Rows::empty(&x, [parts.len].into(), dtype));
    let sums = CubeBackend::float_reshape(sums, Shape::new([padded_c_out, kh, padded_columns]));
    let whole = [padded_c_out, padded_columns] == [c_out, columns];
    if whole { sums } else { CubeBackend::float_slice(sums, &[c_out, kh, columns].map(|end| (0..end).into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubes_fill_the_device_once_or_a_few_times() {
        // 64 to 64 channels, 3x3: 9 tasks; 512 to 512: 576; one more cube than at once.
        for (tasks, parts) in [(9, 58), (528, 1), (264, 2), (576, 3), (529, 3), (5000, 1)] {
            assert_eq!(parts_of_positions(tasks), parts, "{tasks}");
        }
    }
}
