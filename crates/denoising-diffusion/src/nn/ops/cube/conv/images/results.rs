//! From a plane's sums to the device's memory: the results of a cube.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::super::super::tensor_cores::{MATRIX, column_in_matrix, row_in_matrix};
use super::super::factors::{in_long_rows, plane_corner};
use super::{Corner, Plan, Sizes};

/// What is added to a unit's sums of two adjacent channels.
#[cube]
fn shift<F: Float, S: Size>(bias: &[F], channel: usize, sizes: &Sizes, #[comptime] plan: Plan) -> Vector<f32, S> {
    let mut shift = Vector::<f32, S>::cast_from(0.0f32);
    if comptime!(plan.biased) && channel < sizes.channels as usize {
        shift.insert(0usize, f32::cast_from(bias[channel]));
        shift.insert(1usize, f32::cast_from(bias[channel + 1]));
    }
    shift
}

/// Writes a plane's sums, with the bias and in the type of the results, to shared memory.
#[cube]
pub(super) fn share_sums<F: Float, G: Float, A: Size, P: Size, S: Size>(
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
pub(super) fn store_shared<F: Float, G: Float, A: Size, R: Size>(
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
pub(super) fn store_sums<F: Float, R: Size, S: Size>(
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
