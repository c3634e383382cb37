//! Winograd's minimal filtering F(4 x 4, 3 x 3) for 3 x 3 kernels at stride 1 (Lavin & Gray 2016, "Fast Algorithms for
//! Convolutional Neural Networks"): 36 products per 4 x 4 output tile and channel pair instead of 144.
//!
//! y = A' [(G w G') . (B' x B)] A per tile, summed over input channels: for each of the 36 positions in the transformed
//! tile ("frequencies"), one matrix product over channels. The transforms cost some five bits of accuracy.
//!
//! Transformed data take 36/16 of an activation and four times a weight, so they are not stored as a whole where that can be avoided: see
//! [`convolve`] and [`weight_grad`].

mod convolve;
mod gather;
mod product;
mod transform;
mod weight_grad;

pub(super) use convolve::convolve;
pub(super) use weight_grad::weight_grad;

use super::Conv2dShape;

/// Whether Winograd's method can compute the convolution and its gradients at all.
pub(super) fn applies(shape: &Conv2dShape) -> bool {
    shape.kernel == [3, 3]
        && shape.stride == 1
        && shape.padding[0] == shape.padding[1]
        && shape.padding[0] <= 2
        && shape.upsample <= 2
}

/// Whether Winograd's method is faster than products and sums, as measured by `cargo bench --bench roofline -- --algorithms`: from sixteen channels
/// and four tiles on, unless a third or more of each tile lies outside the image.
pub(super) fn pays(shape: &Conv2dShape) -> bool {
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    let tiles = shape.batch * shape.out_height().div_ceil(4) * shape.out_width().div_ceil(4);
    shape.in_channels >= 16 && shape.out_channels >= 16 && tiles >= 4 && pixels >= 10 * tiles
}
