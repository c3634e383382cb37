//! How the factors of products on tensor cores lie in shared memory, and what each of a cube's planes multiplies.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::prelude::*;

use super::super::tensor_cores::{MATRIX, PLANE, VECTORS_OF_PRODUCT, Values};
use super::block::Block;

/// Vectors of the terms that a step adds to a sum.
pub(super) const VECTORS: usize = 4;

/// Terms that a step adds to a sum.
pub(super) fn depth(values: Values) -> usize {
    VECTORS * values.width
}

/// The distance between long rows of this many values in shared memory, in vectors.
pub(super) fn pitch(values: Values, length: usize) -> usize {
    if values.width == 8 { length / values.width } else { length / values.width + 2 }
}

/// What the rows of a factor in shared memory consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Along {
    /// A step's terms of one result's sum: [`in_short_rows`].
    Sum,
    /// A term each of all sums: [`in_long_rows`].
    Results,
}

/// A factor, and the distance between its rows if these are long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Factor {
    along: Along,
    pitch: usize,
}

/// Where a row's vector is in shared memory, so that the vectors of eight rows are in different banks, and so are those that eight units write: for
/// rows of [`VECTORS`], of which two fill all banks.
#[cube]
pub(super) fn in_short_rows(row: usize, vector: usize) -> usize {
    row * VECTORS + (vector ^ (row / 2 % VECTORS))
}

/// The same for long rows, which begin a [`pitch`] apart. `ldmatrix` reads a vector of each of eight rows; of TF32, units read single
/// values of four rows, next to each other in two vectors.
#[cube]
pub(super) fn in_long_rows(row: usize, vector: usize, #[comptime] pitch: usize, #[comptime] values: Values) -> usize {
    let swizzled = if comptime!(values.width == 8) { vector ^ (row % 8) } else { vector };
    row * pitch + swizzled
}

/// The first row and column of a plane's results in its cube's.
#[cube]
pub(super) fn plane_corner(#[comptime] block: Block) -> (usize, usize) {
    let plane = UNIT_POS as usize / PLANE;
    let along_rows = comptime!(block.rows / block.plane_rows);
    (plane % along_rows * block.plane_rows, plane / along_rows * block.plane_columns)
}

/// The registers of the factors of a unit for the products of 16 rows, or 16 columns, with the terms of a sum from `term` on: four, of which the first
/// two are those of the first eight columns. `first` is the first row or column.
#[cube]
fn load_factor<G: Float, A: Size, P: Size>(
    shared: &[Vector<G, A>],
    start: usize,
    first: usize,
    #[comptime] k: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] factor: Factor,
    #[comptime] values: Values,
) -> Array<Vector<G, P>> {
    let product = MmaDefinition::<G, G, f32>::new(MATRIX[0], MATRIX[1], comptime!(values.depth_of_product()));
    let width = comptime!(values.width);
    let term = comptime!(k * values.depth_of_product());
    // Which of four matrices of eight rows by a vector's values a lane loads a row of, or which register it fills: those of a unit are, for rows, the
    // next eight rows, the next vector, and both; for columns, the next vector, the next eight columns, and both.
    let lane = UNIT_POS as usize % PLANE;
    let (second, third) = (lane / 8 % 2, lane / 16);
    let (along_results, along_sum) = match ident {
        MatrixIdent::A => (second, third),
        _ => (third, second),
    };
    match comptime!((factor.along, width)) {
        (Along::Sum, _) => {
            let at = start + in_short_rows(first + along_results * 8 + lane % 8, term / width + along_sum);
            product.load_matrix::<Vector<G, A>, P>(&shared[at..at + 1], ident, 4usize, false)
        }
        (Along::Results, 8) => {
            let row = term + along_sum * 8 + lane % 8;
            let at = start + in_long_rows(row, first / width + along_results, factor.pitch, values);
            product.load_matrix::<Vector<G, A>, P>(&shared[at..at + 1], ident, 4usize, true)
        }
        // `ldmatrix` transposes values of 16 bits only.
        (Along::Results, _) => {
            let mut registers = Array::<Vector<G, P>>::new(4usize);
            let scalars = shared.with_vector_size::<P>();
            #[unroll]
            for i in 0..4usize {
                let (along_results, along_sum) = comptime!(match ident {
                    MatrixIdent::A => (i % 2, i / 2),
                    _ => (i / 2, i % 2),
                });
                // Without a swizzle, a row's values are in order: all addresses are the first plus a constant.
                let place = (start + lane % 4 * factor.pitch) * width + first + lane / 4;
                registers[i] =
                    scalars[place + comptime!((term + along_sum * 4) * factor.pitch * width + along_results * 8)];
            }
            registers
        }
    }
}

/// Adds a step's products of two factors in shared memory, which begin at `first_row` and `first_column`, to a plane's sums, matrix by matrix in rows.
#[cube]
pub(super) fn add_products<G: Float, A: Size, P: Size, S: Size>(
    shared: &[Vector<G, A>],
    first_row: usize,
    first_column: usize,
    sums: &mut Sequence<Array<Vector<f32, S>>>,
    #[comptime] block: Block,
    #[comptime] rows: Along,
    #[comptime] columns: Along,
    #[comptime] values: Values,
) {
    let product = MmaDefinition::<G, G, f32>::new(MATRIX[0], MATRIX[1], comptime!(values.depth_of_product()));
    let (row, column) = plane_corner(block);
    let of_rows = comptime!(Factor { along: rows, pitch: pitch(values, block.rows) });
    let of_columns = comptime!(Factor { along: columns, pitch: pitch(values, block.columns) });
    #[unroll]
    for k in 0..comptime!(VECTORS / VECTORS_OF_PRODUCT) {
        let mut right = Sequence::<Array<Vector<G, P>>>::new();
        #[unroll]
        for pair in 0..comptime!(block.matrix_columns() / 2) {
            let first = column + comptime!(2 * pair * MATRIX[1]);
            let four = load_factor::<G, A, P>(shared, first_column, first, k, MatrixIdent::B, of_columns, values);
            #[unroll]
            for i in 0..2usize {
                let mut two = Array::<Vector<G, P>>::new(2usize);
                two[0] = four[comptime!(2 * i)];
                two[1] = four[comptime!(2 * i + 1)];
                right.push(two);
            }
        }
        #[unroll]
        for i in 0..comptime!(block.matrix_rows()) {
            let first = row + comptime!(i * MATRIX[0]);
            let left = load_factor::<G, A, P>(shared, first_row, first, k, MatrixIdent::A, of_rows, values);
            #[unroll]
            for j in 0..comptime!(block.matrix_columns()) {
                let sum = sums.index_mut(comptime!(i * block.matrix_columns() + j));
                product.execute_inplace(&left, &right[j], sum);
            }
        }
    }
}
