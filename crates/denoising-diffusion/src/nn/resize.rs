//! Halving and doubling of one axis of channels-last data, without weights of their own. Both commute between axes, so an image or a
//! volume is resized one axis after the other.

use burn::tensor::Tensor;

/// Each pair of neighbours becomes their mean; the axis is of even length. What linear interpolation to half the size amounts to.
pub fn halve_by_mean<const D: usize>(x: Tensor<D>, axis: usize) -> Tensor<D> {
    let (mut dims, [outer, n, inner]) = split(&x, axis);
    dims[axis] = n / 2;
    x.reshape([outer, n / 2, 2, inner]).mean_dim(2).reshape(dims)
}

/// Linear interpolation to twice the size, sampled at the centres (PyTorch's `align_corners = False`): between neighbours at a quarter and three
/// quarters, the ends repeated.
pub fn double_linearly<const D: usize>(x: Tensor<D>, axis: usize) -> Tensor<D> {
    let (mut dims, [outer, n, inner]) = split(&x, axis);
    dims[axis] = 2 * n;
    let x = x.reshape([outer, n, inner]);
    let [first, last] = [0, n - 1].map(|at| x.clone().narrow(1, at, 1));
    let (left, right) = match n {
        1 => (first, last),
        _ => (
            Tensor::cat(vec![first, x.clone().narrow(1, 0, n - 1)], 1),
            Tensor::cat(vec![x.clone().narrow(1, 1, n - 1), last], 1),
        ),
    };
    let near = x * 0.75;
    Tensor::stack::<4>(vec![left * 0.25 + near.clone(), near + right * 0.25], 2).reshape(dims)
}

/// The dimensions, and how many values lie before, along and behind an axis.
fn split<const D: usize>(x: &Tensor<D>, axis: usize) -> ([usize; D], [usize; 3]) {
    let dims = x.dims();
    let product = |dims: &[usize]| dims.iter().product();
    (dims, [product(&dims[..axis]), dims[axis], product(&dims[axis + 1..])])
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::params::host_values;

    fn sequence(values: &[f32]) -> Tensor<3> {
        Tensor::<1>::from_floats(values, &Device::flex()).reshape([1, values.len() as i32, 1])
    }

    #[test]
    fn of_a_sequence() {
        assert_eq!(host_values(halve_by_mean(sequence(&[1.0, 3.0, 4.0, 8.0]), 1)), [2.0, 6.0]);
        assert_eq!(host_values(double_linearly(sequence(&[4.0, 8.0]), 1)), [4.0, 5.0, 7.0, 8.0]);
        assert_eq!(host_values(double_linearly(sequence(&[4.0]), 1)), [4.0, 4.0]);
    }

    #[test]
    fn along_an_axis_in_the_middle() {
        let x = Tensor::<1>::from_floats([0.0, 1.0, 4.0, 5.0], &Device::flex()).reshape([1, 2, 2, 1]);
        assert_eq!(host_values(halve_by_mean(x.clone(), 1)), [2.0, 3.0]);
        assert_eq!(host_values(halve_by_mean(x.clone(), 2)), [0.5, 4.5]);
        assert_eq!(host_values(double_linearly(x, 1)), [0.0, 1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 5.0]);
    }
}
