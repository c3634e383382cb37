//! Convolutions with stride 1 and "same" padding as products on tensor cores: of images and weights, or, for the gradient of `x`, of the result's
//! gradient and weights:
//!
//! ```text
//! y[p, o]  = sum over (ky, kx), i of x[p + (ky, kx) - center, i] weight[o, i, ky, kx]
//! dx[p, i] = sum over (ky, kx), o of dy[p - (ky, kx) + center, o] weight[o, i, ky, kx]
//! ```
//!
//! A cube computes a [`Block`] of positions and channels. It goes through the kernel's taps, and for each through the channels that are summed, in
//! steps of [`DEPTH`]: what the next step multiplies is on its way from the device's memory to registers while the tensor cores multiply what is in
//! one half of shared memory; then it goes into the other half. No copy of the images for each tap is made, and weights are read as they lie. The
//! order of additions is that of taps and channels for blocks of any size.
//!
//! Addresses follow the PTX ISA's "Matrix fragments for mma.m16n8k16" and `ldmatrix`, so this is for CUDA alone. Burn's kernels for convolutions
//! load and multiply in turns, because CubeCL 0.11's compiler for CUDA has no asynchronous copies.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::ir::features::MmaConfig;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;

use super::super::lanes::cube_count;
use super::super::rows::Rows;
use super::block::Block;
use super::dims;

#[cfg(all(test, not(feature = "fusion")))]
mod tests;

/// Channels that a step sums.
pub(super) const DEPTH: usize = 32;
/// Units of a plane.
pub(super) const PLANE: usize = 32;
/// Values of a vector, and of a row of the matrices that `ldmatrix` loads: 16 bytes.
const WIDTH: usize = 8;
/// Vectors of a step's channels.
const VECTORS: usize = DEPTH / WIDTH;
/// Rows, columns and depth of a product on tensor cores. Two columns of matrices are loaded at a time.
const MATRIX: [usize; 3] = [16, 8, 16];
/// Positions of a kernel's window that fit into a mask.
const MOST_TAPS: usize = 32;

/// Which of the two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Of {
    /// `y`: the channels that are summed are adjacent in the weight.
    X,
    /// `dx`: the channels that are not summed are adjacent, and taps come in reversed order.
    Dy,
}

impl Of {
    /// The number of channels of the result.
    fn channels(self, weight: &CubeTensor) -> usize {
        let [c_out, c_in, ..] = dims(weight);
        match self {
            Of::X => c_out,
            Of::Dy => c_in,
        }
    }
}

/// Compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    of: Of,
    block: Block,
    kernel_height: usize,
    kernel_width: usize,
    biased: bool,
}

impl Plan {
    fn taps(self) -> usize {
        self.kernel_height * self.kernel_width
    }

    /// Vectors of images per unit and step.
    fn images_per_unit(self) -> usize {
        self.block.rows * VECTORS / self.block.units()
    }

    /// Vectors of weights per unit and step.
    fn weights_per_unit(self) -> usize {
        self.block.columns * VECTORS / self.block.units()
    }

    /// Vectors of a step in shared memory.
    fn half(self) -> usize {
        (self.block.rows + self.block.columns) * VECTORS
    }

    /// Matrices of sums of a plane, along the rows and along the columns.
    fn sums(self) -> [usize; 2] {
        [self.block.plane_rows / MATRIX[0], self.block.plane_columns / MATRIX[1]]
    }
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    positions: u32,
    height: u32,
    width: u32,
    /// Channels that are summed, and those of the result.
    summed: u32,
    channels: u32,
    images: u32,
    weights: u32,
    results: u32,
    /// Number of blocks of the result's channels.
    column_blocks: u32,
}

/// Where a cube's results begin.
#[derive(CubeType)]
struct Corner {
    position: usize,
    channel: usize,
}

/// What a step sums: a tap, and the first channel.
#[derive(CubeType)]
struct Step {
    tap: usize,
    channel: usize,
}

#[cube]
fn corner(sizes: &Sizes, #[comptime] plan: Plan) -> Corner {
    let blocks = sizes.column_blocks as usize;
    Corner { position: CUBE_POS / blocks * plan.block.rows, channel: CUBE_POS % blocks * plan.block.columns }
}

/// For each of a unit's rows, which taps see a pixel: one bit each.
#[cube]
fn seen_by_taps(corner: &Corner, sizes: &Sizes, #[comptime] plan: Plan) -> Array<u32> {
    let count = comptime!(plan.images_per_unit());
    let mut masks = Array::<u32>::new(count);
    let height = sizes.height as usize;
    let width = sizes.width as usize;
    let top = comptime!(plan.kernel_height / 2);
    let left = comptime!(plan.kernel_width / 2);
    #[unroll]
    for i in 0..count {
        let position = corner.position + UNIT_POS as usize / VECTORS + comptime!(i * plan.block.units() / VECTORS);
        let y = position / width % height;
        let x = position % width;
        let mut mask = 0u32;
        #[unroll]
        for ky in 0..plan.kernel_height {
            #[unroll]
            for kx in 0..plan.kernel_width {
                // Counted from the first row and column of the padding.
                let is_row = y + ky >= top && y + ky < top + height;
                let is_pixel = is_row && x + kx >= left && x + kx < left + width;
                mask |= u32::cast_from(is_pixel) << comptime!((ky * plan.kernel_width + kx) as u32);
            }
        }
        masks[i] = select(position < sizes.positions as usize, mask, 0u32);
    }
    masks
}

/// Loads a step's pixels, some vectors per unit; zeros outside. (After the last step, no tap sees anything.)
#[cube]
fn load_images<F: Float, A: Size>(
    images: &[Vector<F, A>],
    block: &mut Array<Vector<F, A>>,
    masks: &Array<u32>,
    corner: &Corner,
    step: &Step,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let channel = step.channel + unit % VECTORS * WIDTH;
    let is_channel = channel < sizes.summed as usize;
    let shift = step.tap / plan.kernel_width * sizes.width as usize + step.tap % plan.kernel_width;
    let center = comptime!(plan.kernel_height / 2) * sizes.width as usize + comptime!(plan.kernel_width / 2);
    // For pixels before the first, that wraps around, and they are not seen.
    let first = corner.position + unit / VECTORS + shift - center;
    #[unroll]
    for i in 0..comptime!(plan.images_per_unit()) {
        let position = first + comptime!(i * plan.block.units() / VECTORS);
        let is_seen = is_channel && masks[i] >> (step.tap as u32) & 1 == 1;
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if is_seen {
            value = images[position * sizes.images as usize + channel / WIDTH];
        }
        block[i] = value;
    }
}

/// Loads a step's weights, in rows of summed channels for [`Of::X`], of the result's channels for [`Of::Dy`].
#[cube]
fn load_weights<F: Float, A: Size>(
    weights: &[Vector<F, A>],
    block: &mut Array<Vector<F, A>>,
    corner: &Corner,
    step: &Step,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let taps = comptime!(plan.taps());
    let units = comptime!(plan.block.units());
    let per_row = comptime!(match plan.of {
        Of::X => VECTORS,
        Of::Dy => plan.block.columns / WIDTH,
    });
    #[unroll]
    for i in 0..comptime!(plan.weights_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        let (row, vector) = (at / per_row, at % per_row * WIDTH);
        // The row's first index is that of an output of the convolution, the other is along the row.
        let (output, input, inside) = match comptime!(plan.of) {
            Of::X => {
                let (output, input) = (corner.channel + row, step.channel + vector);
                (output, input, output < sizes.channels as usize && input < sizes.summed as usize)
            }
            Of::Dy => {
                let (output, input) = (step.channel + row, corner.channel + vector);
                (output, input, output < sizes.summed as usize && input < sizes.channels as usize)
            }
        };
        let tap = match comptime!(plan.of) {
            Of::X => step.tap,
            Of::Dy => taps - 1 - step.tap,
        };
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if inside && step.tap < taps {
            value = weights[(output * taps + tap) * sizes.weights as usize + input / WIDTH];
        }
        block[i] = value;
    }
}

/// Where a row's vector is in shared memory, so that eight rows' vectors are in different banks, and those that eight units write as well: for rows of
/// [`VECTORS`], of which two fill all banks, and for longer ones.
#[cube]
fn in_short_rows(row: usize, vector: usize) -> usize {
    row * VECTORS + (vector ^ (row / 2 % VECTORS))
}

#[cube]
fn in_long_rows(row: usize, vector: usize, #[comptime] per_row: usize) -> usize {
    row * per_row + (vector ^ (row % 8))
}

/// Writes a step's vectors to the half of shared memory that begins at `half`.
#[cube]
fn share<F: Float, A: Size>(
    of_images: &Array<Vector<F, A>>,
    of_weights: &Array<Vector<F, A>>,
    shared: &mut [Vector<F, A>],
    half: usize,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.block.units());
    #[unroll]
    for i in 0..comptime!(plan.images_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        shared[half + in_short_rows(at / VECTORS, at % VECTORS)] = of_images[i];
    }
    let first = half + comptime!(plan.block.rows * VECTORS);
    #[unroll]
    for i in 0..comptime!(plan.weights_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        let place = match comptime!(plan.of) {
            Of::X => in_short_rows(at / VECTORS, at % VECTORS),
            Of::Dy => {
                let per_row = comptime!(plan.block.columns / WIDTH);
                in_long_rows(at / per_row, at % per_row, per_row)
            }
        };
        shared[first + place] = of_weights[i];
    }
}

/// The first row and column of a plane's results in its cube's.
#[cube]
fn plane_corner(#[comptime] plan: Plan) -> (usize, usize) {
    let plane = UNIT_POS as usize / PLANE;
    let along_rows = comptime!(plan.block.rows / plan.block.plane_rows);
    (plane % along_rows * plan.block.plane_rows, plane / along_rows * plan.block.plane_columns)
}

/// Adds the products of what is in one half of shared memory.
#[cube]
fn multiply<F: Float, A: Size, P: Size, S: Size>(
    shared: &[Vector<F, A>],
    sums: &mut Sequence<Array<Vector<f32, S>>>,
    half: usize,
    #[comptime] plan: Plan,
) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[2]);
    let (row, column) = plane_corner(plan);
    let lane = UNIT_POS as usize % PLANE;
    let first_weight = half + comptime!(plan.block.rows * VECTORS);
    let matrix_rows = comptime!(plan.sums()[0]);
    let matrix_columns = comptime!(plan.sums()[1]);
    #[unroll]
    for k in 0..comptime!(DEPTH / MATRIX[2]) {
        let vector = comptime!(k * MATRIX[2] / WIDTH);
        let mut of_weights = Sequence::<Array<Vector<F, P>>>::new();
        #[unroll]
        for pair in 0..comptime!(matrix_columns / 2) {
            // Lanes 0 to 7 say where the rows of the first matrix are, and so on: two matrices that follow each other along the sum for eight columns,
            // and the same for the next eight.
            let along_sum = lane / 8 % 2;
            let along_columns = lane / 16;
            let first_column = column + comptime!(2 * pair * MATRIX[1]);
            let place = match comptime!(plan.of) {
                Of::X => in_short_rows(first_column + along_columns * 8 + lane % 8, vector + along_sum),
                Of::Dy => in_long_rows(
                    comptime!(k * MATRIX[2]) + along_sum * 8 + lane % 8,
                    first_column / WIDTH + along_columns,
                    comptime!(plan.block.columns / WIDTH),
                ),
            };
            let at = first_weight + place;
            let four =
                product.load_matrix::<Vector<F, A>, P>(&shared[at..at + 1], MatrixIdent::B, 4usize, comptime!(plan.of == Of::Dy));
            #[unroll]
            for i in 0..2usize {
                let mut two = Array::<Vector<F, P>>::new(2usize);
                two[0] = four[comptime!(2 * i)];
                two[1] = four[comptime!(2 * i + 1)];
                of_weights.push(two);
            }
        }
        #[unroll]
        for i in 0..matrix_rows {
            // Two matrices that follow each other along the rows, and the next two along the sum.
            let at = half + in_short_rows(row + comptime!(i * MATRIX[0]) + lane % 16, vector + lane / 16);
            let of_images = product.load_matrix::<Vector<F, A>, P>(&shared[at..at + 1], MatrixIdent::A, 4usize, false);
            #[unroll]
            for j in 0..matrix_columns {
                let sum = sums.index_mut(comptime!(i * matrix_columns + j));
                product.execute_inplace(&of_images, &of_weights[j], sum);
            }
        }
    }
}

/// Writes a plane's sums, with the bias and in the type of the results, to shared memory.
#[cube]
fn share_sums<F: Float, A: Size, P: Size, S: Size>(
    sums: &Sequence<Array<Vector<f32, S>>>,
    bias: &[F],
    shared: &mut [Vector<F, A>],
    corner: &Corner,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let (first_row, first_column) = plane_corner(plan);
    let lane = UNIT_POS as usize % PLANE;
    let per_row = comptime!(plan.block.columns / WIDTH);
    let matrix_rows = comptime!(plan.sums()[0]);
    let matrix_columns = comptime!(plan.sums()[1]);
    let pairs = shared.with_vector_size_mut::<P>();
    #[unroll]
    for j in 0..matrix_columns {
        // A lane has two adjacent columns of a row and of the one eight rows below.
        let column = first_column + comptime!(j * MATRIX[1]) + lane % 4 * 2;
        let channel = corner.channel + column;
        let mut shift = Vector::<f32, S>::cast_from(0.0f32);
        if comptime!(plan.biased) {
            if channel < sizes.channels as usize {
                shift.insert(0usize, f32::cast_from(bias[channel]));
                shift.insert(1usize, f32::cast_from(bias[channel + 1]));
            }
        }
        #[unroll]
        for i in 0..matrix_rows {
            #[unroll]
            for below in 0..2usize {
                let row = first_row + comptime!(i * MATRIX[0] + 8 * below) + lane / 4;
                let sum = sums[comptime!(i * matrix_columns + j)][below] + shift;
                let at = in_long_rows(row, column / WIDTH, per_row) * comptime!(WIDTH / 2) + column % WIDTH / 2;
                pairs[at] = Vector::<F, P>::cast_from(sum);
            }
        }
    }
}

/// Writes a cube's results from shared memory to where they belong.
#[cube]
fn store<F: Float, A: Size>(
    shared: &[Vector<F, A>],
    results: &mut [Vector<F, A>],
    corner: &Corner,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.block.units());
    let per_row = comptime!(plan.block.columns / WIDTH);
    #[unroll]
    for i in 0..comptime!(plan.block.rows * per_row / units) {
        let at = i * units + UNIT_POS as usize;
        let (row, vector) = (at / per_row, at % per_row);
        let position = corner.position + row;
        let channel = corner.channel + vector * WIDTH;
        if position < sizes.positions as usize && channel < sizes.channels as usize {
            results[position * sizes.results as usize + channel / WIDTH] = shared[in_long_rows(row, vector, per_row)];
        }
    }
}

/// A cube per block of results.
#[cube(launch)]
fn product_kernel<F: Float, A: Size>(
    images: &[Vector<F, A>],
    weights: &[Vector<F, A>],
    bias: &[F],
    results: &mut [Vector<F, A>],
    sizes: &Sizes,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[2]);
    let size!(P) = product.vector_size(MatrixIdent::A);
    let size!(S) = product.vector_size(MatrixIdent::Accumulator);
    let corner = corner(sizes, plan);
    let masks = seen_by_taps(&corner, sizes, plan);
    let half = comptime!(plan.half());
    let mut shared = Shared::<[Vector<F, A>]>::new_aligned_slice(2 * half, comptime!(2 * WIDTH));
    let mut sums = Sequence::<Array<Vector<f32, S>>>::new();
    let matrix_rows = comptime!(plan.sums()[0]);
    let matrix_columns = comptime!(plan.sums()[1]);
    #[unroll]
    for _ in 0..comptime!(matrix_rows * matrix_columns) {
        let mut sum = Array::<Vector<f32, S>>::new(2usize);
        sum[0] = Vector::cast_from(0.0f32);
        sum[1] = Vector::cast_from(0.0f32);
        sums.push(sum);
    }

    let mut of_images = Array::<Vector<F, A>>::new(comptime!(plan.images_per_unit()));
    let mut of_weights = Array::<Vector<F, A>>::new(comptime!(plan.weights_per_unit()));
    let mut tap = 0usize;
    let mut channel = 0usize;
    let step = Step { tap, channel };
    load_images::<F, A>(images, &mut of_images, &masks, &corner, &step, sizes, plan);
    load_weights::<F, A>(weights, &mut of_weights, &corner, &step, sizes, plan);
    share::<F, A>(&of_images, &of_weights, &mut shared, 0usize, plan);
    sync_cube();
    let steps = comptime!(plan.taps()) * (sizes.summed as usize).div_ceil(DEPTH);
    for i in 0..steps {
        channel += DEPTH;
        if channel >= sizes.summed as usize {
            channel = 0usize;
            tap += 1;
        }
        let step = Step { tap, channel };
        load_images::<F, A>(images, &mut of_images, &masks, &corner, &step, sizes, plan);
        load_weights::<F, A>(weights, &mut of_weights, &corner, &step, sizes, plan);
        multiply::<F, A, P, S>(&shared, &mut sums, i % 2 * half, plan);
        share::<F, A>(&of_images, &of_weights, &mut shared, (i + 1) % 2 * half, plan);
        sync_cube();
    }
    share_sums::<F, A, P, S>(&sums, bias, &mut shared, &corner, sizes, plan);
    sync_cube();
    store::<F, A>(&shared, results, &corner, sizes, plan);
}

/// Whether a device can compute with these types and weights `[c_out, c_in, kh, kw]`.
pub(super) fn takes(client: &Client, dtype: DType, [c_out, c_in, kh, kw]: [usize; 4]) -> bool {
    let elem = match dtype {
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::F16 => ElemType::Float(FloatKind::F16),
        _ => return false,
    };
    let [m, n, k] = MATRIX.map(|side| side as u32);
    let config = MmaConfig { a_type: elem, b_type: elem, cd_type: ElemType::Float(FloatKind::F32), m, n, k };
    let (properties, plane) = (client.properties(), PLANE as u32);
    let hardware = &properties.hardware;
    let planes = (hardware.plane_size_min, hardware.plane_size_max) == (plane, plane);
    let matmul = &properties.features.matmul;
    let fits = c_out.is_multiple_of(WIDTH) && c_in.is_multiple_of(WIDTH) && kh % 2 == 1 && kw % 2 == 1;
    let vectors = client.io_optimized_vector_sizes(dtype.size()).max() >= Some(WIDTH);
    fits && kh * kw <= MOST_TAPS && planes && vectors && matmul.mma.contains(&config) && matmul.ldmatrix.contains(&elem)
}

/// Multiplies images `[b, h, w, c_in]` ([`Of::X`]) or `[b, h, w, c_out]` with `weight [c_out, c_in, kh, kw]` of the same type, which the device
/// [takes].
pub(super) fn product(of: Of, images: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let [b, height, width, _] = dims(&images);
    let block = Block::fastest(&images.client, b * height * width, of.channels(&weight));
    product_in(block, of, images, weight, bias)
}

/// The same in blocks of this size.
pub(super) fn product_in(
    block: Block,
    of: Of,
    images: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
) -> CubeTensor {
    let [b, height, width, summed] = dims(&images);
    let [_, _, kernel_height, kernel_width] = dims(&weight);
    let (client, channels) = (images.client.clone(), of.channels(&weight));
    let plan = Plan { of, block, kernel_height, kernel_width, biased: bias.is_some() };
    let images = Rows::of_vectors(images, WIDTH);
    let weights = Rows::of_vectors(CubeBackend::float_permute(weight, &[0, 2, 3, 1]), WIDTH);
    let results = Rows::empty(&images, [b, height, width, channels].into(), images.dtype());
    let positions = images.count();
    let column_blocks = channels.div_ceil(block.columns);
    // A buffer that is left out would leave no trace in the kernel's identity.
    let bias = bias.map_or_else(|| weights.arg(), |bias| Rows::of(bias).arg());
    product_kernel::launch(
        &client,
        cube_count(&client, positions.div_ceil(block.rows) * column_blocks),
        CubeDim::new_1d(block.units() as u32),
        WIDTH,
        images.arg(),
        weights.arg(),
        bias,
        results.arg(),
        SizesLaunch::new(
            positions as u32,
            height as u32,
            width as u32,
            summed as u32,
            channels as u32,
            images.pitch(WIDTH),
            weights.pitch(WIDTH),
            results.pitch(WIDTH),
            column_blocks as u32,
        ),
        plan,
        dtype_to_storage_type(results.dtype()),
    );
    results.tensor()
}
