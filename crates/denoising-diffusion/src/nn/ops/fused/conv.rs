//! Convolution and its three gradients.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::conv::{
    Conv2dShape, ConvAlgorithm, bias_grad, conv2d_forward, conv2d_input_grad, conv2d_weight_grad,
};

use super::{Kernel, dims, slice, tensor, when};

/// `x [b, h, w, c_in]`, `weight [c_out, c_in, k, k]`, `bias [c_out]`; stride 1, padding `k / 2`.
#[derive(Clone, Debug)]
pub(super) struct Conv;

const ALGORITHM: ConvAlgorithm = ConvAlgorithm::Auto;

fn shape_of(x: &FlexTensor, weight: &FlexTensor) -> Conv2dShape {
    let [batch, height, width, in_channels] = dims(x);
    let [out_channels, _, kh, kw] = dims(weight);
    Conv2dShape {
        batch,
        height,
        width,
        upsample: 1,
        in_channels,
        out_channels,
        kernel: [kh, kw],
        stride: 1,
        padding: kh / 2,
    }
}

impl Kernel<3> for Conv {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [x, weight, bias]: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        let shape = shape_of(&x, &weight);
        let y = tensor([shape.batch, shape.out_height(), shape.out_width(), shape.out_channels], |y| {
            conv2d_forward(&shape, ALGORITHM, &[slice(&x)], slice(&weight), Some(slice(&bias)), None, y);
        });
        (y, (x, weight))
    }

    fn backward(&self, (x, weight): Self::Saved, dy: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let shape = shape_of(&x, &weight);
        let dx = when(wanted[0], || {
            tensor(dims::<4>(&x), |dx| conv2d_input_grad(&shape, ALGORITHM, slice(&dy), slice(&weight), &mut [dx]))
        });
        let dweight = when(wanted[1], || {
            tensor(dims::<4>(&weight), |dw| conv2d_weight_grad(&shape, ALGORITHM, &[slice(&x)], slice(&dy), dw))
        });
        let dbias =
            when(wanted[2], || tensor([shape.out_channels], |db| bias_grad(slice(&dy), shape.out_channels, db)));
        [dx, dweight, dbias]
    }
}
