//! Products on CUDA's tensor cores, of what lies in shared memory: how a cube's factors lie there, and what each of its planes multiplies. Addresses and
//! registers follow the PTX ISA ("Matrix fragments for mma.m16n8k16", `ldmatrix`).

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn_cubecl::cubecl::ir::features::MmaConfig;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;

use burn::tensor::DType;

use super::block::Block;

/// Terms of the sums that a step adds.
pub(super) const DEPTH: usize = 32;
/// Units of a plane.
pub(super) const PLANE: usize = 32;
/// Values of a vector, and of a row of the matrices that `ldmatrix` loads: 16 bytes.
pub(super) const WIDTH: usize = 8;
/// Vectors of a step's terms.
pub(super) const VECTORS: usize = DEPTH / WIDTH;
/// Rows, columns and depth of a product on tensor cores.
pub(super) const MATRIX: [usize; 3] = [16, 8, 16];
/// Alignment in shared memory, in bytes.
pub(super) const ALIGNMENT: usize = 16;

/// Whether a device multiplies matrices of this type this way, with sums in f32.
pub(super) fn multiply(client: &Client, dtype: DType) -> bool {
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
    let vectors = client.io_optimized_vector_sizes(dtype.size()).max() >= Some(WIDTH);
    planes && vectors && matmul.mma.contains(&config) && matmul.ldmatrix.contains(&elem)
}

/// What the rows of a factor in shared memory consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Along {
    /// A step's terms of one result's sum: [`in_short_rows`].
    Sum,
    /// A term each of all sums: [`in_long_rows`].
    Results,
}

/// Where a row's vector is in shared memory, so that the vectors of eight rows are in different banks, and so are those that eight units write: for
/// rows of [`VECTORS`], of which two fill all banks.
#[cube]
pub(super) fn in_short_rows(row: usize, vector: usize) -> usize {
    row * VECTORS + (vector ^ (row / 2 % VECTORS))
}

/// The same for rows of a multiple of eight vectors.
#[cube]
pub(super) fn in_long_rows(row: usize, vector: usize, #[comptime] per_row: usize) -> usize {
    row * per_row + (vector ^ (row % 8))
}

/// The first row and column of a plane's results in its cube's.
#[cube]
pub(super) fn plane_corner(#[comptime] block: Block) -> (usize, usize) {
    let plane = UNIT_POS as usize / PLANE;
    let along_rows = comptime!(block.rows / block.plane_rows);
    (plane % along_rows * block.plane_rows, plane / along_rows * block.plane_columns)
}

/// The sums of a plane: for each matrix, row by row, a unit's two adjacent columns of a row and those eight rows below. See [`row_in_matrix`].
#[cube]
pub(super) fn zeros<S: Size>(#[comptime] block: Block) -> Sequence<Array<Vector<f32, S>>> {
    let mut sums = Sequence::<Array<Vector<f32, S>>>::new();
    #[unroll]
    for _ in 0..comptime!(block.matrix_rows() * block.matrix_columns()) {
        let mut sum = Array::<Vector<f32, S>>::new(2usize);
        sum[0] = Vector::cast_from(0.0f32);
        sum[1] = Vector::cast_from(0.0f32);
        sums.push(sum);
    }
    sums
}

/// The row of a unit's sums in each matrix; the others are eight rows below.
#[cube]
pub(super) fn row_in_matrix() -> usize {
    UNIT_POS as usize % PLANE / 4
}

/// The first column of a unit's sums in each matrix.
#[cube]
pub(super) fn column_in_matrix() -> usize {
    UNIT_POS as usize % 4 * 2
}

/// Adds a step's products of two factors in shared memory, which begin at `first_row` and `first_column`.
#[cube]
pub(super) fn add_products<F: Float, A: Size, P: Size, S: Size>(
    shared: &[Vector<F, A>],
    first_row: usize,
    first_column: usize,
    sums: &mut Sequence<Array<Vector<f32, S>>>,
    #[comptime] block: Block,
    #[comptime] rows: Along,
    #[comptime] columns: Along,
) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX[0], MATRIX[1], MATRIX[2]);
    let (row, column) = plane_corner(block);
    // Lanes 0 to 7 say where the rows of the first of four matrices are, and so on.
    let lane = UNIT_POS as usize % PLANE;
    let inner = lane % 8;
    let second = lane / 8 % 2;
    let fourth = lane / 16;
    #[unroll]
    for k in 0..comptime!(DEPTH / MATRIX[2]) {
        let term = comptime!(k * MATRIX[2]);
        let mut of_columns = Sequence::<Array<Vector<F, P>>>::new();
        #[unroll]
        for pair in 0..comptime!(block.matrix_columns() / 2) {
            // Two matrices that follow each other along the sum for eight columns, and two for the next eight.
            let first = column + comptime!(2 * pair * MATRIX[1]);
            let place = match comptime!(columns) {
                Along::Sum => in_short_rows(first + fourth * 8 + inner, term / WIDTH + second),
                Along::Results => {
                    in_long_rows(term + second * 8 + inner, first / WIDTH + fourth, comptime!(block.columns / WIDTH))
                }
            };
            let at = first_column + place;
            let is_transposed = comptime!(columns == Along::Results);
            let four =
                product.load_matrix::<Vector<F, A>, P>(&shared[at..at + 1], MatrixIdent::B, 4usize, is_transposed);
            #[unroll]
            for i in 0..2usize {
                let mut two = Array::<Vector<F, P>>::new(2usize);
                two[0] = four[comptime!(2 * i)];
                two[1] = four[comptime!(2 * i + 1)];
                of_columns.push(two);
            }
        }
        #[unroll]
        for i in 0..comptime!(block.matrix_rows()) {
            // Two matrices that follow each other along the rows, and the next two along the sum.
            let first = row + comptime!(i * MATRIX[0]);
            let place = match comptime!(rows) {
                Along::Sum => in_short_rows(first + second * 8 + inner, term / WIDTH + fourth),
                Along::Results => {
                    in_long_rows(term + fourth * 8 + inner, first / WIDTH + second, comptime!(block.rows / WIDTH))
                }
            };
            let at = first_row + place;
            let is_transposed = comptime!(rows == Along::Results);
            let of_rows =
                product.load_matrix::<Vector<F, A>, P>(&shared[at..at + 1], MatrixIdent::A, 4usize, is_transposed);
            #[unroll]
            for j in 0..comptime!(block.matrix_columns()) {
                let sum = sums.index_mut(comptime!(i * block.matrix_columns() + j));
                product.execute_inplace(&of_rows, &of_columns[j], sum);
            }
        }
    }
}
