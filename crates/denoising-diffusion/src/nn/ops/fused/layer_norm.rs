//! Layer normalisation with scale and shift, and a gated sum: the operations around the layers of a transformer block.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::norm::{
    gated_add_backward, gated_add_forward, layer_norm_backward, layer_norm_forward,
};

use super::norm::shape_of;
use super::{Kernel, dims, slice, tensor};
use crate::nn::layer_norm::EPS;

/// `x [b, h, w, c]`, `scale_shift [b, 2 c]`.
#[derive(Clone, Debug)]
pub(super) struct LayerNormScaled;

/// `x [b, h, w, c]`, `gate [b, c]`, `residual` like `x`.
#[derive(Clone, Debug)]
pub(super) struct GatedAdd;

impl Kernel<2> for LayerNormScaled {
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, m]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
        let y = tensor(dims::<4>(&x), |y| layer_norm_forward(&shape_of(&x), slice(&x), slice(&m), EPS as f32, y));
        (y, [x, m])
    }

    fn saved(&self, inputs: [FlexTensor; 2]) -> Self::Saved {
        inputs
    }

    fn backward(&self, [x, m]: Self::Saved, dy: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let mut dm = None;
        let dx = tensor(dims::<4>(&x), |dx| {
            dm = Some(tensor(dims::<2>(&m), |dm| {
                layer_norm_backward(&shape_of(&x), slice(&x), slice(&m), EPS as f32, slice(&dy), dx, dm);
            }));
        });
        [Some(dx), dm]
    }
}

impl Kernel<3> for GatedAdd {
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, gate, residual]: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        let y = tensor(dims::<4>(&x), |y| {
            gated_add_forward(&shape_of(&x), slice(&x), slice(&gate), slice(&residual), y);
        });
        (y, [x, gate])
    }

    fn saved(&self, [x, gate, _]: [FlexTensor; 3]) -> Self::Saved {
        [x, gate]
    }

    fn backward(&self, [x, gate]: Self::Saved, dy: FlexTensor, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let mut dgate = None;
        let dx = tensor(dims::<4>(&x), |dx| {
            dgate = Some(tensor(dims::<2>(&gate), |dgate| {
                gated_add_backward(&shape_of(&x), slice(&x), slice(&gate), slice(&dy), dx, dgate);
            }));
        });
        [Some(dx), dgate, Some(dy)]
    }
}
