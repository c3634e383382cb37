//! Halving and doubling of an image's sides.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Conv2d, Init};

pub use super::ops::Resampling;

/// A change of size with the convolution that belongs to it.
#[derive(Module, Debug)]
pub struct Resample {
    pub conv: Conv2d,
    #[module(skip)]
    kind: Resampling,
}

impl Resample {
    /// Halving goes with a 1x1 convolution, the others with one of 3x3.
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, kind: Resampling) -> Self {
        let conv = match kind {
            Resampling::Halve => Conv2d::new(init, 4 * dim_in, dim_out, 1),
            Resampling::Double | Resampling::Keep => Conv2d::new(init, dim_in, dim_out, 3),
        };
        Self { conv, kind }
    }

    /// `[b, h, w, c_in]` to `[b, h/2, w/2, c_out]`, `[b, 2h, 2w, c_out]` or `[b, h, w, c_out]`; sides to be halved are even.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward_resampled(x, self.kind)
    }
}
