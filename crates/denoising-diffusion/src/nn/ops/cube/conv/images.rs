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
//! This is for CUDA alone ([`tensor_cores`]). Burn's kernels for convolutions load and multiply in turns, because CubeCL 0.11's compiler for CUDA has
//! no asynchronous copies.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;

use super::super::lanes::cube_count;
use super::super::rows::Rows;
use super::block::Block;
use super::tensor_cores::{
    ALIGNMENT, Along, DEPTH, MATRIX, VECTORS, WIDTH, add_products, column_in_matrix, in_long_rows, in_short_rows,
    plane_corner, row_in_matrix, zeros,
};
use super::{dims, tensor_cores};

#[cfg(all(test, not(feature = "fusion")))]
mod tests;

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

    fn weights(self) -> Along {
        match self.of {
            Of::X => Along::Sum,
            Of::Dy => Along::Results,
        }
    }

    /// Vectors of a step in shared memory.
    fn half(self) -> usize {
        (self.block.rows + self.block.columns) * VECTORS
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
        let place = match comptime!(plan.weights()) {
            Along::Sum => in_short_rows(at / VECTORS, at % VECTORS),
            Along::Results => {
                let per_row = comptime!(plan.block.columns / WIDTH);
                in_long_rows(at / per_row, at % per_row, per_row)
            }
        };
        shared[first + place] = of_weights[i];
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
    let (first_row, first_column) = plane_corner(plan.block);
    let per_row = comptime!(plan.block.columns / WIDTH);
    let matrix_columns = comptime!(plan.block.matrix_columns());
    let pairs = shared.with_vector_size_mut::<P>();
    #[unroll]
    for j in 0..matrix_columns {
        let column = first_column + comptime!(j * MATRIX[1]) + column_in_matrix();
        let channel = corner.channel + column;
        let mut shift = Vector::<f32, S>::cast_from(0.0f32);
        if comptime!(plan.biased) {
            if channel < sizes.channels as usize {
                shift.insert(0usize, f32::cast_from(bias[channel]));
                shift.insert(1usize, f32::cast_from(bias[channel + 1]));
            }
        }
        #[unroll]
        for i in 0..comptime!(plan.block.matrix_rows()) {
            #[unroll]
            for below in 0..2usize {
                let row = first_row + comptime!(i * MATRIX[0] + 8 * below) + row_in_matrix();
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
    let mut shared = Shared::<[Vector<F, A>]>::new_aligned_slice(2 * half, ALIGNMENT);
    let mut sums = zeros::<S>(plan.block);

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
        let first_row = i % 2 * half;
        let first_column = first_row + comptime!(plan.block.rows * VECTORS);
        add_products::<F, A, P, S>(
            &shared,
            first_row,
            first_column,
            &mut sums,
            plan.block,
            Along::Sum,
            comptime!(plan.weights()),
        );
        share::<F, A>(&of_images, &of_weights, &mut shared, (i + 1) % 2 * half, plan);
        sync_cube();
    }
    share_sums::<F, A, P, S>(&sums, bias, &mut shared, &corner, sizes, plan);
    sync_cube();
    store::<F, A>(&shared, results, &corner, sizes, plan);
}

/// Whether a device can compute with these types and weights `[c_out, c_in, kh, kw]`.
pub(super) fn takes(client: &Client, dtype: DType, [c_out, c_in, kh, kw]: [usize; 4]) -> bool {
    let whole_vectors = c_out.is_multiple_of(WIDTH) && c_in.is_multiple_of(WIDTH);
    whole_vectors && kh % 2 == 1 && kw % 2 == 1 && kh * kw <= MOST_TAPS && tensor_cores::multiply(client, dtype)
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
