//! Pooling and its gradient.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::pooling::{PoolShape, pool_backward, pool_forward};

use super::super::Pool;
use super::{Kernel, dims, slice, tensor, when};

/// `x [b, h, w, c]`.
#[derive(Clone, Debug)]
pub(super) struct Pooled(pub(super) Pool);

impl Pooled {
    fn shape_of(&self, x: &FlexTensor) -> PoolShape {
        let [batch, height, width, channels] = dims(x);
        let Pool { window, stride, padding, .. } = self.0;
        PoolShape { batch, height, width, channels, window, stride, padding }
    }
}

impl Kernel<1> for Pooled {
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Self::Saved) {
        let shape = self.shape_of(&x);
        let y = tensor([shape.batch, shape.out_height(), shape.out_width(), shape.channels], |y| {
            pool_forward(&shape, self.0.pooling, slice(&x), y);
        });
        (y, x)
    }

    fn saved(&self, [x]: [FlexTensor; 1]) -> Self::Saved {
        x
    }

    fn backward(&self, x: Self::Saved, dy: FlexTensor, wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let shape = self.shape_of(&x);
        [when(wanted[0], || {
            tensor(dims::<4>(&x), |dx| pool_backward(&shape, self.0.pooling, slice(&x), slice(&dy), dx))
        })]
    }
}
