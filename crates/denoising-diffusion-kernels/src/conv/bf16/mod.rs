//! Convolutions of factors rounded to bf16, with sums in f32, on a matrix unit ([`crate::matrix_unit`]).
//!
//! Images are laid out as one row of pixels with zeros between their lines ([`flat::Flat`]), so that a kernel position is a constant distance, and the
//! convolution is a sum of matrix products whose left factors are read in place. Only step 1 and an output of the input's size; no im2col copies.
//!
//! Data are f32 outside: each task rounds what it reads.

mod convolve;
mod flat;
#[cfg(test)]
mod tests;
mod weight_grad;
mod weights;

use super::Conv2dShape;
use crate::matrix_unit::Unit;

pub(super) use convolve::{forward, input_grad};
pub(super) use weight_grad::weight_grad;

/// The unit for a convolution and its gradients, if there is one and it pays: from sixteen channels on.
pub(super) fn unit_for(shape: &Conv2dShape) -> Option<Unit> {
    (applies(shape) && shape.in_channels >= 16 && shape.out_channels >= 16).then(Unit::detect).flatten()
}

/// Whether a unit can compute the convolution and its gradients at all.
fn applies(shape: &Conv2dShape) -> bool {
    shape.stride == 1 && (0..2).all(|axis| shape.kernel[axis] == 2 * shape.padding[axis] + 1)
}
