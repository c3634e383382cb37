//! The product on CUDA's tensor cores. A cube takes some of the positions, and a block of output channels and of columns `(ky, kx, i)`; it leaves its
//! sums in f32, which a second kernel adds. As in [`images`](super::super::images), the next step's positions are on their way to registers while
//! tensor cores multiply this one's.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::std::FastDivmod;
use burn_cubecl::tensor::CubeTensor;

use burn::tensor::DType;

use super::super::super::columns::sum_columns_into;
use super::super::super::lanes::cube_count;
use super::super::super::rows::Rows;
use super::super::super::tensor_cores::{ALIGNMENT, MATRIX, Values, column_in_matrix, row_in_matrix, zeros};
use super::super::block::Block;
use super::super::factors::{Along, add_products, depth, in_long_rows, pitch, plane_corner};
use super::dims;

#[cfg(all(test, not(feature = "fusion")))]
mod tests;

/// Values of a vector of sums: a unit's adjacent columns.
const SUMS: usize = 2;
/// Multiprocessors of an H100. The same for all devices: how the positions are divided decides how the sums round.
const MULTIPROCESSORS: usize = 132;
/// Cubes that one of them computes at a time: each of their 96 or 128 units takes up to 255 registers.
const AT_A_TIME: usize = 2;
/// For how many positions a product takes as long as it takes to write its sums and to read them.
const POSITIONS_PER_PART: f64 = 300.0;

/// The blocks of the kernel's versions.
const BLOCKS: [Block; 3] = [Block::new(128, 128, 64, 64), Block::new(64, 192, 64, 64), Block::new(64, 64, 32, 32)];

/// Compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    values: Values,
    block: Block,
    kernel_height: usize,
    kernel_width: usize,
}

impl Plan {
    fn taps(self) -> usize {
        self.kernel_height * self.kernel_width
    }

    /// Values per vector.
    fn width(self) -> usize {
        self.values.width
    }

    /// Positions of a step.
    fn depth(self) -> usize {
        depth(self.values)
    }

    /// Vectors per unit and step of rows of this length; some units have one less.
    fn per_unit(self, length: usize) -> usize {
        (self.depth() * length / self.width()).div_ceil(self.block.units())
    }

    /// Vectors of a step in shared memory.
    fn half(self) -> usize {
        self.depth() * (pitch(self.values, self.block.rows) + pitch(self.values, self.block.columns))
    }
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    positions: u32,
    height: FastDivmod<u32>,
    width: FastDivmod<u32>,
    rows: u32,
    columns: u32,
    c_out: u32,
    c_in: u32,
    dy: u32,
    x: u32,
    /// Number of blocks of output channels, and of columns.
    row_blocks: u32,
    column_blocks: u32,
    chunks: u32,
    /// Number of steps that a cube makes.
    steps: u32,
}

/// What a cube sums.
#[derive(CubeType)]
struct Task {
    chunk: usize,
    channel: usize,
    column: usize,
}

/// The columns whose vectors a unit loads, all of the same tap.
#[derive(CubeType)]
struct Columns {
    are_some: bool,
    ky: u32,
    kx: u32,
    channel: usize,
}

#[cube]
fn task(sizes: &Sizes, #[comptime] block: Block) -> Task {
    let (rows, columns) = (sizes.row_blocks as usize, sizes.column_blocks as usize);
    let rest = CUBE_POS / columns;
    Task { chunk: rest / rows, channel: rest % rows * block.rows, column: CUBE_POS % columns * block.columns }
}

/// A unit has the same vector of several rows.
#[cube]
fn columns_of_unit(task: &Task, sizes: &Sizes, #[comptime] plan: Plan) -> Columns {
    let per_row = comptime!(plan.block.columns / plan.width());
    let column = task.column + UNIT_POS as usize % per_row * comptime!(plan.width());
    let tap = (column / sizes.c_in as usize) as u32;
    Columns {
        are_some: column < sizes.c_in as usize * comptime!(plan.taps()),
        ky: tap / comptime!(plan.kernel_width as u32),
        kx: tap % comptime!(plan.kernel_width as u32),
        channel: column % sizes.c_in as usize,
    }
}

/// Loads a step's rows of `dy` from position `first` on; zeros outside.
#[cube]
fn load_dy<F: Float, A: Size>(
    dy: &[Vector<F, A>],
    block: &mut Array<Vector<F, A>>,
    first: u32,
    task: &Task,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.width());
    let per_row = comptime!(plan.block.rows / width);
    let channel = task.channel + UNIT_POS as usize % per_row * width;
    #[unroll]
    for i in 0..comptime!(plan.per_unit(plan.block.rows)) {
        let row = UNIT_POS / comptime!(per_row as u32) + comptime!((i * plan.block.units() / per_row) as u32);
        let position = first + row;
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if position < sizes.positions && channel < sizes.c_out as usize {
            value = dy[position as usize * sizes.dy as usize + channel / width];
        }
        block[i] = value;
    }
}

/// Loads what a unit's columns see from these positions.
#[cube]
fn load_x<F: Float, A: Size>(
    x: &[Vector<F, A>],
    block: &mut Array<Vector<F, A>>,
    first: u32,
    columns: &Columns,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.width());
    let per_row = comptime!(plan.block.columns / width);
    let top = comptime!(plan.kernel_height as u32 / 2);
    let left = comptime!(plan.kernel_width as u32 / 2);
    #[unroll]
    for i in 0..comptime!(plan.per_unit(plan.block.columns)) {
        let row = UNIT_POS / comptime!(per_row as u32) + comptime!((i * plan.block.units() / per_row) as u32);
        let position = first + row;
        let (line, x_at) = sizes.width.div_mod(position);
        // Both counted from the first row and column of the padding.
        let padded_y = sizes.height.modulo(line) + columns.ky;
        let padded_x = x_at + columns.kx;
        let is_row = padded_y >= top && padded_y < top + sizes.rows;
        let is_pixel = is_row && padded_x >= left && padded_x < left + sizes.columns;
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if columns.are_some && position < sizes.positions && is_pixel {
            let seen = position + columns.ky * sizes.columns + columns.kx - top * sizes.columns - left;
            value = x[seen as usize * sizes.x as usize + columns.channel / width];
        }
        block[i] = value;
    }
}

/// Writes a step's vectors, which are distributed over the units, to shared memory.
#[cube]
fn share<F: Float, G: Float, A: Size>(
    block: &Array<Vector<F, A>>,
    shared: &mut [Vector<G, A>],
    first: usize,
    #[comptime] length: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.width());
    let per_row = comptime!(length / width);
    let units = comptime!(plan.block.units());
    let all = comptime!(plan.depth() * per_row);
    #[unroll]
    for i in 0..comptime!(plan.per_unit(length)) {
        let at = i * units + UNIT_POS as usize;
        let is_whole = comptime!((i + 1) * units <= all);
        if is_whole || at < all {
            let pitch = comptime!(pitch(plan.values, length));
            let place = in_long_rows(at / per_row, at % per_row, pitch, plan.values);
            shared[first + place] = Vector::cast_from(block[i]);
        }
    }
}

/// Output channels by columns, summed over some of the positions: `parts [chunks, c_out, columns]`.
#[cube(launch)]
fn weight_product_kernel<F: Float, G: Float, A: Size, B: Size>(
    dy: &[Vector<F, A>],
    x: &[Vector<F, A>],
    parts: &mut [Vector<f32, B>],
    sizes: &Sizes,
    #[comptime] plan: Plan,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let product = MmaDefinition::<G, G, f32>::new(MATRIX[0], MATRIX[1], comptime!(plan.values.depth_of_product()));
    let size!(P) = product.vector_size(MatrixIdent::A);
    let block = comptime!(plan.block);
    let task = task(sizes, block);
    let columns = columns_of_unit(&task, sizes, plan);
    let half = comptime!(plan.half());
    let depth = comptime!(plan.depth() as u32);
    let of_dy = comptime!(plan.depth() * pitch(plan.values, block.rows));
    let mut shared = Shared::<[Vector<G, A>]>::new_aligned_slice(2 * half, ALIGNMENT);
    let mut sums = zeros::<B>(comptime!(block.matrix_rows() * block.matrix_columns()));

    let start = task.chunk as u32 * sizes.steps * depth;
    let mut block_of_dy = Array::<Vector<F, A>>::new(comptime!(plan.per_unit(block.rows)));
    let mut block_of_x = Array::<Vector<F, A>>::new(comptime!(plan.per_unit(block.columns)));
    load_dy::<F, A>(dy, &mut block_of_dy, start, &task, sizes, plan);
    load_x::<F, A>(x, &mut block_of_x, start, &columns, sizes, plan);
    share::<F, G, A>(&block_of_dy, &mut shared, 0usize, block.rows, plan);
    share::<F, G, A>(&block_of_x, &mut shared, of_dy, block.columns, plan);
    sync_cube();
    for step in 0..sizes.steps {
        // After the last step, that is another chunk's, or nothing.
        let next = start + (step + 1) * depth;
        load_dy::<F, A>(dy, &mut block_of_dy, next, &task, sizes, plan);
        load_x::<F, A>(x, &mut block_of_x, next, &columns, sizes, plan);
        let first = (step % 2) as usize * half;
        add_products::<G, A, P, B>(
            &shared,
            first,
            first + of_dy,
            &mut sums,
            block,
            Along::Results,
            Along::Results,
            plan.values,
        );
        let other = half - first;
        share::<F, G, A>(&block_of_dy, &mut shared, other, block.rows, plan);
        share::<F, G, A>(&block_of_x, &mut shared, other + of_dy, block.columns, plan);
        sync_cube();
    }

    let (first_row, first_column) = plane_corner(block);
    let all_columns = sizes.c_in as usize * comptime!(plan.taps());
    #[unroll]
    for i in 0..comptime!(block.matrix_rows()) {
        #[unroll]
        for below in 0..2usize {
            let o = task.channel + first_row + comptime!(i * MATRIX[0] + 8 * below) + row_in_matrix();
            #[unroll]
            for j in 0..comptime!(block.matrix_columns()) {
                let n = task.column + first_column + comptime!(j * MATRIX[1]) + column_in_matrix();
                if task.chunk < sizes.chunks as usize && o < sizes.c_out as usize && n < all_columns {
                    let row = task.chunk * sizes.c_out as usize + o;
                    parts[(row * all_columns + n) / SUMS] = sums[comptime!(i * block.matrix_columns() + j)][below];
                }
            }
        }
    }
}

/// What a device multiplies of this type with a kernel `[kh, kw]`, if it can.
pub(in super::super) fn values(client: &Client, dtype: DType, [kh, kw]: [usize; 2]) -> Option<Values> {
    Values::of(client, dtype).filter(|_| kh % 2 == 1 && kw % 2 == 1)
}

/// The blocks of a product of so many output channels and columns.
fn blocks(block: Block, c_out: usize, columns: usize) -> [usize; 2] {
    [c_out.div_ceil(block.rows), columns.div_ceil(block.columns)]
}

/// The block in which a product does the least, including that of parts of blocks outside of it.
fn fastest_block(c_out: usize, columns: usize) -> Block {
    let time = |block: &Block| {
        let count: usize = blocks(*block, c_out, columns).iter().product();
        (count * block.rows * block.columns) as f64 * block.cycles()
    };
    let faster = |a: Block, b: Block| if time(&b) < time(&a) { b } else { a };
    BLOCKS.into_iter().reduce(faster).expect("there are several")
}

/// How many parts the positions are cut into for so many `blocks` each: few, because sums take time as well, but so many that no multiprocessor waits
/// long for another, and that each has several cubes at a time, of which one loads while another multiplies.
fn parts(blocks: usize, positions: usize, values: Values) -> usize {
    // Products of TF32 take twice as long.
    let per_part = POSITIONS_PER_PART * values.width as f64 / 8.0;
    let time = |parts: usize| {
        let cubes = blocks * parts;
        let rounds = cubes.div_ceil(MULTIPROCESSORS);
        let waiting = if rounds < AT_A_TIME { 1.3 } else { 1.0 };
        waiting * (rounds * MULTIPROCESSORS) as f64 / cubes as f64 + parts as f64 * per_part / positions as f64
    };
    let most = positions.div_ceil(depth(values)).clamp(1, 4 * AT_A_TIME * MULTIPROCESSORS);
    let faster = |a: usize, b: usize| if time(b) < 0.95 * time(a) { b } else { a };
    (1..=most).reduce(faster).unwrap_or(1)
}

/// The gradient of a weight `[c_out, c_in, kh, kw]`, whose channels fill vectors, as `[c_out kh kw c_in]` of this type; `values` are what the device
/// multiplies of [these](values).
pub(super) fn product(values: Values, x: CubeTensor, weight: [usize; 4], dy: CubeTensor, dtype: DType) -> CubeTensor {
    let [c_out, c_in, kh, kw] = weight;
    product_in(fastest_block(c_out, kh * kw * c_in), values, x, weight, dy, dtype)
}

/// The same in blocks of this size.
fn product_in(
    block: Block,
    values: Values,
    x: CubeTensor,
    weight: [usize; 4],
    dy: CubeTensor,
    dtype: DType,
) -> CubeTensor {
    let [_, height, width, _] = dims(&x);
    let [c_out, c_in, kernel_height, kernel_width] = weight;
    let client = x.client.clone();
    let (x, dy) = (Rows::of_vectors(x, values.width), Rows::of_vectors(dy, values.width));
    let plan = Plan { values, block, kernel_height, kernel_width };
    let (positions, columns) = (x.count(), plan.taps() * c_in);
    let [row_blocks, column_blocks] = blocks(block, c_out, columns);
    let blocks = row_blocks * column_blocks;
    let steps = positions.div_ceil(plan.depth()).div_ceil(parts(blocks, positions, values));
    let chunks = positions.div_ceil(plan.depth() * steps);
    let parts = Rows::dense(&x, [chunks, c_out * columns]);
    weight_product_kernel::launch(
        &client,
        cube_count(&client, chunks * blocks),
        CubeDim::new_1d(block.units() as u32),
        plan.width(),
        SUMS,
        dy.arg(),
        x.arg(),
        parts.arg(),
        SizesLaunch::new(
            positions as u32,
            height as u32,
            width as u32,
            height as u32,
            width as u32,
            c_out as u32,
            c_in as u32,
            dy.pitch(plan.width()),
            x.pitch(plan.width()),
            row_blocks as u32,
            column_blocks as u32,
            chunks as u32,
            steps as u32,
        ),
        plan,
        [dy.elem(), values.elem],
    );
    sum_columns_into(&parts, 0, 1, Rows::empty(&x, [parts.len].into(), dtype))
}
