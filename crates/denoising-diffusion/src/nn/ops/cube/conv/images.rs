//! Convolutions with stride 1 and "same" padding as products on tensor cores: of images and weights, or, for the gradient of `x`, of the result's
//! gradient and weights:
//!
//! ```text
//! y[p, o]  = sum over (ky, kx), i of x[p + (ky, kx) - center, i] weight[o, i, ky, kx]
//! dx[p, i] = sum over (ky, kx), o of dy[p - (ky, kx) + center, o] weight[o, i, ky, kx]
//! ```
//!
//! A cube computes a [`Block`] of positions and channels. It goes through the kernel's taps, and for each through the channels that are summed, in
//! steps of 64 bytes: what the next step multiplies is on its way from the device's memory to registers while the tensor cores multiply what is in
//! one half of shared memory; then it goes into the other half. No copy of the images for each tap is made, and weights are read as they lie. The
//! order of additions is that of taps and channels for blocks of any size.
//!
//! This is for CUDA alone ([`tensor_cores`](super::super::tensor_cores)). Burn's kernels for convolutions load and multiply in turns, because CubeCL 0.11's compiler for CUDA has
//! no asynchronous copies.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;

use super::super::lanes::cube_count;
use super::super::rows::Rows;
use super::super::tensor_cores::{ALIGNMENT, MATRIX, Values, column_in_matrix, row_in_matrix};
use super::block::Block;
use super::dims;
use super::factors::{Along, VECTORS, add_products, depth, in_long_rows, in_short_rows, pitch, plane_corner, zeros};

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
    values: Values,
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

    /// Values per vector.
    fn width(self) -> usize {
        self.values.width
    }

    /// Whether results go through shared memory, so that units write whole vectors. Of f32, units write two values each, four of them a whole sector,
    /// and a block of results would not fit.
    fn gathers_results(self) -> bool {
        self.values.width == 8
    }

    /// Values of a vector of results.
    fn width_of_results(self) -> usize {
        if self.gathers_results() { self.values.width } else { 2 }
    }

    fn weights(self) -> Along {
        match self.of {
            Of::X => Along::Sum,
            Of::Dy => Along::Results,
        }
    }

    /// Vectors of a step in shared memory.
    fn half(self) -> usize {
        let of_weights = match self.weights() {
            Along::Sum => self.block.columns * VECTORS,
            Along::Results => depth(self.values) * pitch(self.values, self.block.columns),
        };
        self.block.rows * VECTORS + of_weights
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
    let channel = step.channel + unit % VECTORS * comptime!(plan.width());
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
            value = images[position * sizes.images as usize + channel / comptime!(plan.width())];
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
        Of::Dy => plan.block.columns / plan.width(),
    });
    #[unroll]
    for i in 0..comptime!(plan.weights_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        let (row, vector) = (at / per_row, at % per_row * comptime!(plan.width()));
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
            value = weights[(output * taps + tap) * sizes.weights as usize + input / comptime!(plan.width())];
        }
        block[i] = value;
    }
}

/// Writes a step's vectors to the half of shared memory that begins at `half`.
#[cube]
fn share<F: Float, G: Float, A: Size>(
    of_images: &Array<Vector<F, A>>,
    of_weights: &Array<Vector<F, A>>,
    shared: &mut [Vector<G, A>],
    half: usize,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.block.units());
    #[unroll]
    for i in 0..comptime!(plan.images_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        shared[half + in_short_rows(at / VECTORS, at % VECTORS)] = Vector::cast_from(of_images[i]);
    }
    let first = half + comptime!(plan.block.rows * VECTORS);
    #[unroll]
    for i in 0..comptime!(plan.weights_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        let place = match comptime!(plan.weights()) {
            Along::Sum => in_short_rows(at / VECTORS, at % VECTORS),
            Along::Results => {
                let per_row = comptime!(plan.block.columns / plan.width());
                let pitch = comptime!(pitch(plan.values, plan.block.columns));
                in_long_rows(at / per_row, at % per_row, pitch, plan.values)
            }
        };
        shared[first + place] = Vector::cast_from(of_weights[i]);
    }
}

/// What is added to a unit's sums of two adjacent channels.
#[cube]
fn shift<F: Float, S: Size>(bias: &[F], channel: usize, sizes: &Sizes, #[comptime] plan: Plan) -> Vector<f32, S> {
    let mut shift = Vector::<f32, S>::cast_from(0.0f32);
    if comptime!(plan.biased) {
        if channel < sizes.channels as usize {
            shift.insert(0usize, f32::cast_from(bias[channel]));
            shift.insert(1usize, f32::cast_from(bias[channel + 1]));
        }
    }
    shift
}

/// Writes a plane's sums, with the bias and in the type of the results, to shared memory.
#[cube]
fn share_sums<F: Float, G: Float, A: Size, P: Size, S: Size>(
    sums: &Sequence<Array<Vector<f32, S>>>,
    bias: &[F],
    shared: &mut [Vector<G, A>],
    corner: &Corner,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let (first_row, first_column) = plane_corner(plan.block);
    let width = comptime!(plan.width());
    let per_row = comptime!(plan.block.columns / width);
    let matrix_columns = comptime!(plan.block.matrix_columns());
    let pairs = shared.with_vector_size_mut::<P>();
    #[unroll]
    for j in 0..matrix_columns {
        let column = first_column + comptime!(j * MATRIX[1]) + column_in_matrix();
        let shift = shift::<F, S>(bias, corner.channel + column, sizes, plan);
        #[unroll]
        for i in 0..comptime!(plan.block.matrix_rows()) {
            #[unroll]
            for below in 0..2usize {
                let row = first_row + comptime!(i * MATRIX[0] + 8 * below) + row_in_matrix();
                let sum = sums[comptime!(i * matrix_columns + j)][below] + shift;
                let at =
                    in_long_rows(row, column / width, per_row, plan.values) * comptime!(width / 2) + column % width / 2;
                pairs[at] = Vector::<G, P>::cast_from(sum);
            }
        }
    }
}

/// Writes a cube's results from shared memory to where they belong.
#[cube]
fn store_shared<F: Float, G: Float, A: Size, R: Size>(
    shared: &[Vector<G, A>],
    results: &mut [Vector<F, R>],
    corner: &Corner,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.block.units());
    let width = comptime!(plan.width());
    let per_row = comptime!(plan.block.columns / width);
    #[unroll]
    for i in 0..comptime!(plan.block.rows * per_row / units) {
        let at = i * units + UNIT_POS as usize;
        let (row, vector) = (at / per_row, at % per_row);
        let position = corner.position + row;
        let channel = corner.channel + vector * width;
        if position < sizes.positions as usize && channel < sizes.channels as usize {
            let value = shared[in_long_rows(row, vector, per_row, plan.values)];
            results[position * sizes.results as usize + channel / width] = Vector::cast_from(value);
        }
    }
}

/// Writes a plane's sums, with the bias, to where they belong.
#[cube]
fn store_sums<F: Float, R: Size, S: Size>(
    sums: &Sequence<Array<Vector<f32, S>>>,
    bias: &[F],
    results: &mut [Vector<F, R>],
    corner: &Corner,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let (first_row, first_column) = plane_corner(plan.block);
    let matrix_columns = comptime!(plan.block.matrix_columns());
    #[unroll]
    for j in 0..matrix_columns {
        let channel = corner.channel + first_column + comptime!(j * MATRIX[1]) + column_in_matrix();
        let shift = shift::<F, S>(bias, channel, sizes, plan);
        #[unroll]
        for i in 0..comptime!(plan.block.matrix_rows()) {
            #[unroll]
            for below in 0..2usize {
                let position = corner.position + first_row + comptime!(i * MATRIX[0] + 8 * below) + row_in_matrix();
                if position < sizes.positions as usize && channel < sizes.channels as usize {
                    let sum = sums[comptime!(i * matrix_columns + j)][below] + shift;
                    results[position * sizes.results as usize + channel / 2] = Vector::cast_from(sum);
                }
            }
        }
    }
}

/// A cube per block of results.
#[cube(launch)]
fn image_product_kernel<F: Float, G: Float, A: Size, R: Size>(
    images: &[Vector<F, A>],
    weights: &[Vector<F, A>],
    bias: &[F],
    results: &mut [Vector<F, R>],
    sizes: &Sizes,
    #[comptime] plan: Plan,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let product = MmaDefinition::<G, G, f32>::new(MATRIX[0], MATRIX[1], comptime!(2 * plan.width()));
    let size!(P) = product.vector_size(MatrixIdent::A);
    let size!(S) = product.vector_size(MatrixIdent::Accumulator);
    let corner = corner(sizes, plan);
    let masks = seen_by_taps(&corner, sizes, plan);
    let half = comptime!(plan.half());
    let mut shared = Shared::<[Vector<G, A>]>::new_aligned_slice(2 * half, ALIGNMENT);
    let mut sums = zeros::<S>(plan.block);

    let mut of_images = Array::<Vector<F, A>>::new(comptime!(plan.images_per_unit()));
    let mut of_weights = Array::<Vector<F, A>>::new(comptime!(plan.weights_per_unit()));
    let mut tap = 0usize;
    let mut channel = 0usize;
    let step = Step { tap, channel };
    load_images::<F, A>(images, &mut of_images, &masks, &corner, &step, sizes, plan);
    load_weights::<F, A>(weights, &mut of_weights, &corner, &step, sizes, plan);
    share::<F, G, A>(&of_images, &of_weights, &mut shared, 0usize, plan);
    sync_cube();
    let depth = comptime!(depth(plan.values));
    let steps = comptime!(plan.taps()) * (sizes.summed as usize).div_ceil(depth);
    for i in 0..steps {
        channel += depth;
        if channel >= sizes.summed as usize {
            channel = 0usize;
            tap += 1;
        }
        let step = Step { tap, channel };
        load_images::<F, A>(images, &mut of_images, &masks, &corner, &step, sizes, plan);
        load_weights::<F, A>(weights, &mut of_weights, &corner, &step, sizes, plan);
        let first_row = i % 2 * half;
        let first_column = first_row + comptime!(plan.block.rows * VECTORS);
        let along = comptime!(plan.weights());
        add_products::<G, A, P, S>(
            &shared,
            first_row,
            first_column,
            &mut sums,
            plan.block,
            Along::Sum,
            along,
            plan.values,
        );
        share::<F, G, A>(&of_images, &of_weights, &mut shared, (i + 1) % 2 * half, plan);
        sync_cube();
    }
    if comptime!(plan.gathers_results()) {
        share_sums::<F, G, A, P, S>(&sums, bias, &mut shared, &corner, sizes, plan);
        sync_cube();
        store_shared::<F, G, A, R>(&shared, results, &corner, sizes, plan);
    } else {
        store_sums::<F, R, S>(&sums, bias, results, &corner, sizes, plan);
    }
}

/// What a device multiplies of these types and weights `[c_out, c_in, kh, kw]`, if it can.
pub(super) fn values(client: &Client, dtype: DType, [c_out, c_in, kh, kw]: [usize; 4]) -> Option<Values> {
    let values = Values::of(client, dtype)?;
    let whole_vectors = c_out.is_multiple_of(values.width) && c_in.is_multiple_of(values.width);
    (whole_vectors && kh % 2 == 1 && kw % 2 == 1 && kh * kw <= MOST_TAPS).then_some(values)
}

/// Multiplies images `[b, h, w, c_in]` ([`Of::X`]) or `[b, h, w, c_out]` with `weight [c_out, c_in, kh, kw]` of the same type; `values` are what the
/// device multiplies of [these](values).
pub(super) fn product(
    of: Of,
    values: Values,
    images: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
) -> CubeTensor {
    let [b, height, width, _] = dims(&images);
    let block = Block::fastest(&images.client, b * height * width, of.channels(&weight));
    product_in(block, of, values, images, weight, bias)
}

/// The same in blocks of this size.
fn product_in(
    block: Block,
    of: Of,
    values: Values,
    images: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
) -> CubeTensor {
    let [b, height, width, summed] = dims(&images);
    let [_, _, kernel_height, kernel_width] = dims(&weight);
    let (client, channels) = (images.client.clone(), of.channels(&weight));
    let plan = Plan { of, values, block, kernel_height, kernel_width, biased: bias.is_some() };
    let images = Rows::of_vectors(images, plan.width());
    let weights = Rows::of_vectors(CubeBackend::float_permute(weight, &[0, 2, 3, 1]), plan.width());
    let results = Rows::empty(&images, [b, height, width, channels].into(), images.dtype());
    let positions = images.count();
    let column_blocks = channels.div_ceil(block.columns);
    // A buffer that is left out would leave no trace in the kernel's identity.
    let bias = bias.map_or_else(|| weights.arg(), |bias| Rows::of(bias).arg());
    image_product_kernel::launch(
        &client,
        cube_count(&client, positions.div_ceil(block.rows) * column_blocks),
        CubeDim::new_1d(block.units() as u32),
        plan.width(),
        plan.width_of_results(),
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
            images.pitch(plan.width()),
            weights.pitch(plan.width()),
            results.pitch(plan.width_of_results()),
            column_blocks as u32,
        ),
        plan,
        [results.elem(), values.elem],
    );
    results.tensor()
}
