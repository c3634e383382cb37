//! Functions of each value, and dropout.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::activation::{Pointwise, pointwise_backward, pointwise_forward};
use denoising_diffusion_kernels::dropout::{Mask, dropout};

use super::{Kernel, dims, slice, tensor};

/// `x` of rank 4.
#[derive(Clone, Debug)]
pub(super) struct Each(pub(super) Pointwise);

impl Kernel<1> for Each {
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Self::Saved) {
        (tensor(dims::<4>(&x), |y| pointwise_forward(self.0, slice(&x), y)), x)
    }

    fn saved(&self, [x]: [FlexTensor; 1]) -> Self::Saved {
        x
    }

    fn backward(&self, x: Self::Saved, dy: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(tensor(dims::<4>(&x), |dx| pointwise_backward(self.0, slice(&x), slice(&dy), dx)))]
    }
}

/// `x` of rank 4.
#[derive(Clone, Debug)]
pub(super) struct Dropout(pub(super) Mask);

impl Kernel<1> for Dropout {
    type Saved = ();

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Self::Saved) {
        (tensor(dims::<4>(&x), |y| dropout(&self.0, slice(&x), y)), ())
    }

    fn saved(&self, _: [FlexTensor; 1]) -> Self::Saved {}

    fn backward(&self, (): Self::Saved, dy: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(self.forward([dy]).0)]
    }
}
