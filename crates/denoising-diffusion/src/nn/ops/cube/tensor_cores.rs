//! Products on CUDA's tensor cores: what a device multiplies, and which unit of a plane has what of the sums. Registers follow the PTX ISA ("Matrix
//! fragments for mma.m16n8k16" and k8).

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::features::MmaConfig;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;

use burn::tensor::DType;

/// Units of a plane.
pub(super) const PLANE: usize = 32;
/// Bytes of a vector, and of a row of the matrices that `ldmatrix` loads.
const BYTES: usize = 16;
/// Vectors of a product's terms.
pub(super) const VECTORS_OF_PRODUCT: usize = 2;
/// Rows and columns of a product.
pub(super) const MATRIX: [usize; 2] = [16, 8];
/// Alignment in shared memory, in bytes.
pub(super) const ALIGNMENT: usize = BYTES;

/// What is multiplied. bf16 and f16 as they are; of f32, the first 11 bits (TF32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Values {
    pub(super) elem: ElemType,
    /// Values per vector.
    pub(super) width: usize,
}

impl Values {
    /// What a device multiplies of tensors of this type, with sums in f32; `None` if not this way.
    pub(super) fn of(client: &Client, dtype: DType) -> Option<Self> {
        let kind = match dtype {
            DType::BF16 => FloatKind::BF16,
            DType::F16 => FloatKind::F16,
            DType::F32 => FloatKind::TF32,
            _ => return None,
        };
        let values = Self { elem: ElemType::Float(kind), width: BYTES / dtype.size() };
        let config = MmaConfig {
            a_type: values.elem,
            b_type: values.elem,
            cd_type: ElemType::Float(FloatKind::F32),
            m: MATRIX[0] as u32,
            n: MATRIX[1] as u32,
            k: values.depth_of_product() as u32,
        };
        let (properties, plane) = (client.properties(), PLANE as u32);
        let hardware = &properties.hardware;
        let planes = (hardware.plane_size_min, hardware.plane_size_max) == (plane, plane);
        let matmul = &properties.features.matmul;
        let vectors = client.io_optimized_vector_sizes(dtype.size()).max() >= Some(values.width);
        // `ldmatrix` moves rows of 16 bytes, whatever they are; devices list it for the types that it was made for.
        let loads = matmul.ldmatrix.contains(&ElemType::Float(FloatKind::F16));
        (planes && vectors && loads && matmul.mma.contains(&config)).then_some(values)
    }

    /// Terms of a product's sums.
    pub(super) fn depth_of_product(self) -> usize {
        VECTORS_OF_PRODUCT * self.width
    }
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

/// The sums of so many products, of which a unit has two adjacent columns of a row ([`row_in_matrix`], [`column_in_matrix`]), and of the one eight rows
/// below.
#[cube]
pub(super) fn zeros<S: Size>(#[comptime] count: usize) -> Sequence<Array<Vector<f32, S>>> {
    let mut sums = Sequence::<Array<Vector<f32, S>>>::new();
    #[unroll]
    for _ in 0..count {
        let mut sum = Array::<Vector<f32, S>>::new(2usize);
        sum[0] = Vector::cast_from(0.0f32);
        sum[1] = Vector::cast_from(0.0f32);
        sums.push(sum);
    }
    sums
}
