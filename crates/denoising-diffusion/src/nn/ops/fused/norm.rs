//! RMS normalisation with the operations that follow it.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::activation::Activation;
use denoising_diffusion_kernels::norm::{RmsNormGrads, RmsNormShape, rms_norm_backward, rms_norm_forward};

use super::{Kernel, dims, slice, tensor};

/// Whether SiLU follows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Silu {
    With,
    Without,
}

impl Silu {
    fn activation(self) -> Activation {
        match self {
            Silu::With => Activation::Silu,
            Silu::Without => Activation::Identity,
        }
    }
}

/// `x [b, h, w, c]`, `g [c]`.
#[derive(Clone, Debug)]
pub(super) struct RmsNorm(pub(super) Silu);

/// The same plus a residual like `x`.
#[derive(Clone, Debug)]
pub(super) struct RmsNormAdd(pub(super) Silu);

/// `x [b, h, w, c]`, `g [c]`, `scale_shift [b, 2 c]`; with SiLU.
#[derive(Clone, Debug)]
pub(super) struct RmsNormScaled;

pub(super) fn shape_of(x: &FlexTensor) -> RmsNormShape {
    let [batch, h, w, channels] = dims(x);
    RmsNormShape { batch, positions: h * w, channels }
}

fn forward(
    x: &FlexTensor,
    g: &FlexTensor,
    scale_shift: Option<&FlexTensor>,
    activation: Activation,
    residual: Option<&FlexTensor>,
) -> FlexTensor {
    tensor(dims::<4>(x), |y| {
        let (scale_shift, residual) = (scale_shift.map(slice), residual.map(slice));
        rms_norm_forward(&shape_of(x), slice(x), slice(g), scale_shift, activation, residual, y);
    })
}

/// Gradients of x, g and, if given, scale and shift: one pass computes all of them.
fn backward(
    x: &FlexTensor,
    g: &FlexTensor,
    scale_shift: Option<&FlexTensor>,
    activation: Activation,
    dy: &FlexTensor,
) -> [Option<FlexTensor>; 3] {
    let shape = shape_of(x);
    let (mut dg, mut dscale_shift) = (None, None);
    let dx = tensor(dims::<4>(x), |dx| {
        dg = Some(tensor([shape.channels], |dg| {
            let mut run = |dscale_shift: Option<&mut [f32]>| {
                let grads = RmsNormGrads { x: &mut *dx, g: &mut *dg, scale_shift: dscale_shift };
                rms_norm_backward(&shape, slice(x), slice(g), scale_shift.map(slice), activation, slice(dy), grads);
            };
            match scale_shift {
                None => run(None),
                Some(given) => dscale_shift = Some(tensor(dims::<2>(given), |d| run(Some(d)))),
            }
        }));
    });
    [Some(dx), dg, dscale_shift]
}

impl Kernel<2> for RmsNorm {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [x, g]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
        (forward(&x, &g, None, self.0.activation(), None), (x, g))
    }

    fn saved(&self, [x, g]: [FlexTensor; 2]) -> Self::Saved {
        (x, g)
    }

    fn backward(&self, (x, g): Self::Saved, dy: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [dx, dg, _] = backward(&x, &g, None, self.0.activation(), &dy);
        [dx, dg]
    }
}

impl Kernel<3> for RmsNormAdd {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [x, g, residual]: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        (forward(&x, &g, None, self.0.activation(), Some(&residual)), (x, g))
    }

    fn saved(&self, [x, g, _]: [FlexTensor; 3]) -> Self::Saved {
        (x, g)
    }

    fn backward(&self, (x, g): Self::Saved, dy: FlexTensor, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [dx, dg, _] = backward(&x, &g, None, self.0.activation(), &dy);
        [dx, dg, Some(dy)]
    }
}

impl Kernel<3> for RmsNormScaled {
    type Saved = [FlexTensor; 3];

    fn forward(&self, [x, g, scale_shift]: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        (forward(&x, &g, Some(&scale_shift), Activation::Silu, None), [x, g, scale_shift])
    }

    fn saved(&self, inputs: [FlexTensor; 3]) -> Self::Saved {
        inputs
    }

    fn backward(&self, [x, g, scale_shift]: Self::Saved, dy: FlexTensor, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        backward(&x, &g, Some(&scale_shift), Activation::Silu, &dy)
    }
}
