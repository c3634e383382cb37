//! Halving and doubling of an image's sides, or of a sequence's length.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Axes, Conv2d, Init, StridedConv};

pub use super::ops::Resampling;

/// A change of size with its convolution.
#[derive(Module, Debug)]
pub struct Resample {
    pub conv: ResampleConv,
    #[module(skip)]
    kind: Resampling,
    #[module(skip)]
    axes: Axes,
}

/// The convolution of a change of size.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a handful of them exist
pub enum ResampleConv {
    /// A convolution after the resampling.
    Plain(Conv2d),
    /// A convolution whose stride halves.
    Strided(StridedConv),
}

impl Resample {
    /// For images. Halving has a 1x1 convolution, the others a 3x3 one.
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, kind: Resampling) -> Self {
        let (dim_in, kernel) = match kind {
            Resampling::Halve => (4 * dim_in, 1),
            Resampling::Double | Resampling::Keep => (dim_in, 3),
        };
        let conv = ResampleConv::Plain(Conv2d::new(init, dim_in, dim_out, kernel));
        Self { conv, kind, axes: Axes::Both }
    }

    /// Along the given axes; halving is done by a convolution of stride 2.
    pub fn strided(init: &mut Init, axes: Axes, dim_in: usize, dim_out: usize, kind: Resampling) -> Self {
        let conv = match kind {
            Resampling::Halve => ResampleConv::Strided(StridedConv::new(init, axes, dim_in, dim_out)),
            Resampling::Double | Resampling::Keep => ResampleConv::Plain(Conv2d::along(init, axes, dim_in, dim_out, 3)),
        };
        Self { conv, kind, axes }
    }

    /// `[b, h, w, c_in]` to `[b, h/2, w/2, c_out]`, `[b, 2h, 2w, c_out]` or `[b, h, w, c_out]`; sides to be halved must be even. With [`Axes::Width`]
    /// the height does not change.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match (&self.conv, self.kind, self.axes) {
            (ResampleConv::Strided(conv), ..) => conv.forward(x),
            (ResampleConv::Plain(conv), Resampling::Double, Axes::Width) => {
                let [b, h, w, c] = x.dims();
                conv.forward(x.reshape([b, h, w, 1, c]).expand([b, h, w, 2, c]).reshape([b, h, 2 * w, c]))
            }
            (ResampleConv::Plain(conv), kind, _) => conv.forward_resampled(x, kind),
        }
    }
}
