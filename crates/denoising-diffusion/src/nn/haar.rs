//! One level of the two-dimensional Haar transform: half the sides, four times the channels, invertible and orthonormal.

use burn::tensor::{Tensor, TensorData};

use super::{ops, pixel_shuffle};

/// Half the signs of a block's pixels (row by row) in its four values: mean, difference of columns, of rows, and of diagonals.
const HAAR: [[f32; 4]; 4] =
    [[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5], [0.5, -0.5, -0.5, 0.5]];

/// `[b, h, w, c]` to `[b, h / 2, w / 2, 4 c]`. For each 2x2 block of channel c with pixels p q / r s, the channels `4 c + k` hold
/// `(p + q + r + s) / 2`, `(p - q + r - s) / 2`, `(p + q - r - s) / 2`, `(p - q - r + s) / 2`. Both sides must be even.
pub fn haar(x: Tensor<4>) -> Tensor<4> {
    let weight = weight(x.dims()[3], &x);
    ops::conv2d_resampled(x, ops::Resampling::Halve, weight, None)
}

/// The inverse: `[b, h, w, 4 c]` to `[b, 2 h, 2 w, c]`.
pub fn inverse_haar(x: Tensor<4>) -> Tensor<4> {
    // The matrix is orthonormal and equals its transpose.
    let weight = weight(x.dims()[3] / 4, &x);
    pixel_shuffle(ops::conv2d(x, weight, None), 2)
}

/// [`HAAR`] for each of `c` channels, `[4 c, 4 c, 1, 1]`, on the device of `like`.
fn weight(c: usize, like: &Tensor<4>) -> Tensor<4> {
    let at = |row: usize, column: usize| if row / 4 == column / 4 { HAAR[row % 4][column % 4] } else { 0.0 };
    let values: Vec<f32> = (0..16 * c * c).map(|i| at(i / (4 * c), i % (4 * c))).collect();
    Tensor::from_data(TensorData::new(values, [4 * c, 4 * c, 1, 1]), &like.device())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::params::host_values;

    #[test]
    fn there_and_back_and_a_block_by_hand() {
        let device = Device::flex();
        let block = Tensor::from_data(TensorData::new(vec![1.0f32, 2.0, 4.0, 9.0], [1, 2, 2, 1]), &device);
        assert_eq!(host_values(haar(block)), [8.0, -3.0, -5.0, 2.0]);
        let values: Vec<f32> = (0..2 * 4 * 6 * 3).map(|i| ((i * i) % 17) as f32).collect();
        let x = Tensor::<4>::from_data(TensorData::new(values.clone(), [2, 4, 6, 3]), &device);
        let bands = haar(x);
        assert_eq!(bands.dims(), [2, 2, 3, 12]);
        let back = host_values(inverse_haar(bands));
        assert!(back.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
