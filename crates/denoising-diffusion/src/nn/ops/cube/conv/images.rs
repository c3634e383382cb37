//! Convolutions with stride 1 and "same" padding as products on tensor cores: of images and weights, or, for the gradient of `x`, of the result's
//! gradient and weights:
//!
//! ```text
//! y[p, o]  = sum over (ky, kx), i of x[p + (ky, kx) - center, i] weight[o, i, ky, kx]
//! dx[p, i] = sum over (ky, kx), o of dy[p - (ky, kx) + center, o] weight[o, i, ky, kx]
//! ```
//!
//! A cube computes a [`Block`] of positions and channels. It goes through the kernel's taps, and for each through the channels that are summed, in
//! steps of [`depth`]: what the next step multiplies is on its way from the device's memory to registers while the tensor cores multiply what is in
//! one half of shared memory; then it goes into the other half. No copy of the images for each tap is made, and weights are read as they lie. The
//! order of additions is that of taps and channels for blocks of any size.
//!
//! This is for CUDA alone ([`tensor_cores`](super::super::tensor_cores)). Burn's kernels for convolutions load and multiply in turns, because CubeCL
//! 0.11's compiler for CUDA has no asynchronous copies.

mod load;
mod results;
#[cfg(all(test, not(feature = "fusion")))]
mod tests;

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::std::FastDivmod;
use burn_cubecl::tensor::CubeTensor;

use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;

use super::super::lanes::cube_count;
use super::super::rows::Rows;
use super::super::tensor_cores::{ALIGNMENT, MATRIX, Values, zeros};
use super::block::Block;
use super::dims;
use super::factors::{Along, VECTORS, add_products, depth, pitch};
use load::{MOST_TAPS, load_images, load_weights, seen_by_taps, share};
use results::{share_sums, store_shared, store_sums};

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
    summed: FastDivmod<u32>,
    channels: u32,
    images: u32,
    weights: u32,
    results: u32,
    /// Number of blocks of the result's channels.
    column_blocks: u32,
    /// Number of steps of [`depth`] terms each.
    steps: u32,
}

/// Where a cube's results begin.
#[derive(CubeType)]
struct Corner {
    position: usize,
    channel: usize,
}

#[cube]
fn corner(sizes: &Sizes, #[comptime] plan: Plan) -> Corner {
    let blocks = sizes.column_blocks as usize;
    Corner { position: CUBE_POS / blocks * plan.block.rows, channel: CUBE_POS % blocks * plan.block.columns }
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
    let product = MmaDefinition::<G, G, f32>::new(MATRIX[0], MATRIX[1], comptime!(plan.values.depth_of_product()));
    let size!(P) = product.vector_size(MatrixIdent::A);
    let size!(S) = product.vector_size(MatrixIdent::Accumulator);
    let corner = corner(sizes, plan);
    let seen = seen_by_taps(&corner, sizes, plan);
    let half = comptime!(plan.half());
    let mut shared = Shared::<[Vector<G, A>]>::new_aligned_slice(2 * half, ALIGNMENT);
    let mut sums = zeros::<S>(comptime!(plan.block.matrix_rows() * plan.block.matrix_columns()));

    let mut of_images = Array::<Vector<F, A>>::new(comptime!(plan.images_per_unit()));
    let mut of_weights = Array::<Vector<F, A>>::new(comptime!(plan.weights_per_unit()));
    load_images::<F, A>(images, &mut of_images, &seen, &corner, 0usize, sizes, plan);
    load_weights::<F, A>(weights, &mut of_weights, &corner, 0usize, sizes, plan);
    share::<F, G, A>(&of_images, &of_weights, &mut shared, 0usize, plan);
    sync_cube();
    for i in 0..sizes.steps as usize {
        let next = (i + 1) * comptime!(depth(plan.values));
        load_images::<F, A>(images, &mut of_images, &seen, &corner, next, sizes, plan);
        load_weights::<F, A>(weights, &mut of_weights, &corner, next, sizes, plan);
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

/// What a device multiplies of this type with a kernel `[kh, kw]`, if it can.
pub(super) fn values(client: &Client, dtype: DType, [kh, kw]: [usize; 2]) -> Option<Values> {
    let fits = kh % 2 == 1 && kw % 2 == 1 && kh * kw <= MOST_TAPS;
    Values::of(client, dtype).filter(|_| fits)
}

/// Multiplies images `[b, h, w, c_in]` ([`Of::X`]) or `[b, h, w, c_out]` with `weight [c_out, c_in, kh, kw]` of the same type, whose
/// channels fill vectors; `values` are what the device multiplies of [these](values).
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
            (plan.taps() * summed).div_ceil(depth(values)) as u32,
        ),
        plan,
        [results.elem(), values.elem],
    );
    results.tensor()
}
