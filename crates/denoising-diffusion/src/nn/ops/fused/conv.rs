//! Convolution and its gradients.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::conv::{
    Conv2dShape, ConvActivation, ConvAlgorithm, Epilogue, bias_grad, conv2d_forward, conv2d_input_grad,
    conv2d_weight_grad,
};

use super::super::settings::{CpuArithmetic, cpu_arithmetic};
use super::super::{Resampling, Window};
use super::{Kernel, dims, slice, tensor, when};

/// `x [b, h, w, c_in]`, `weight [c_out, c_in, k, k]`, `bias [c_out]`; stride 1, padding `k / 2`, of the resampled `x`.
#[derive(Clone, Debug)]
pub(super) struct Conv(pub(super) Resampling);

/// The maximum of 0 and a convolution with the given windows: `x`, `weight`, `bias`.
#[derive(Clone, Debug)]
pub(super) struct ConvRelu(pub(super) Window);

/// Like [`Conv`], of `x` and `skip` concatenated along the channels: `x`, `skip`, `weight`, `bias`.
#[derive(Clone, Debug)]
pub(super) struct ConvSkip;

/// Like [`Conv`], plus `residual`: `x`, `weight`, `bias`, `residual`.
#[derive(Clone, Debug)]
pub(super) struct ConvAdd;

fn algorithm() -> ConvAlgorithm {
    match cpu_arithmetic() {
        CpuArithmetic::Fast => ConvAlgorithm::Auto,
        CpuArithmetic::Precise => ConvAlgorithm::Direct,
        CpuArithmetic::Bf16 => ConvAlgorithm::Bf16,
    }
}

/// That of [`ConvRelu`], of which the networks consist that measure images: never in bf16.
fn exact_algorithm() -> ConvAlgorithm {
    match algorithm() {
        ConvAlgorithm::Bf16 => ConvAlgorithm::Auto,
        other => other,
    }
}

/// `channels`: the number of channels of all inputs together.
fn shape_of(x: &FlexTensor, channels: usize, resampling: Resampling, weight: &FlexTensor) -> Conv2dShape {
    let [batch, height, width, _] = dims(x);
    let [out_channels, _, kh, kw] = dims(weight);
    let same = Conv2dShape {
        batch,
        height,
        width,
        upsample: 1,
        in_channels: channels,
        out_channels,
        kernel: [kh, kw],
        stride: 1,
        padding: [kh / 2, kw / 2],
    };
    match resampling {
        Resampling::Keep => same,
        Resampling::Double => Conv2dShape { upsample: 2, ..same },
        // A weight [c_out, 4 c_in, 1, 1] for blocks turned into channels is a weight [c_out, c_in, 2, 2] for the blocks.
        Resampling::Halve => Conv2dShape { kernel: [2, 2], stride: 2, padding: [0; 2], ..same },
    }
}

fn forward(
    shape: &Conv2dShape,
    x: &[&FlexTensor],
    weight: &FlexTensor,
    bias: &FlexTensor,
    residual: Option<&FlexTensor>,
) -> FlexTensor {
    let activation = ConvActivation::Identity;
    forward_by(
        algorithm(),
        shape,
        x,
        weight,
        Epilogue { bias: Some(slice(bias)), residual: residual.map(slice), activation },
    )
}

fn forward_by(
    algorithm: ConvAlgorithm,
    shape: &Conv2dShape,
    x: &[&FlexTensor],
    weight: &FlexTensor,
    epilogue: Epilogue<'_>,
) -> FlexTensor {
    let x: Vec<&[f32]> = x.iter().map(|x| slice(x)).collect();
    tensor([shape.batch, shape.out_height(), shape.out_width(), shape.out_channels], |y| {
        conv2d_forward(shape, algorithm, &x, slice(weight), epilogue, y);
    })
}

/// Gradients of weight and bias, if they are wanted.
fn parameter_gradients(
    algorithm: ConvAlgorithm,
    shape: &Conv2dShape,
    x: &[&FlexTensor],
    weight: &FlexTensor,
    dy: &FlexTensor,
    wanted: [bool; 2],
) -> [Option<FlexTensor>; 2] {
    let x: Vec<&[f32]> = x.iter().map(|x| slice(x)).collect();
    let dweight =
        when(wanted[0], || tensor(dims::<4>(weight), |dw| conv2d_weight_grad(shape, algorithm, &x, slice(dy), dw)));
    let dbias = when(wanted[1], || tensor([shape.out_channels], |db| bias_grad(slice(dy), shape.out_channels, db)));
    [dweight, dbias]
}

fn input_gradient(
    algorithm: ConvAlgorithm,
    shape: &Conv2dShape,
    x: &FlexTensor,
    weight: &FlexTensor,
    dy: &FlexTensor,
) -> FlexTensor {
    tensor(dims::<4>(x), |dx| conv2d_input_grad(shape, algorithm, slice(dy), slice(weight), &mut [dx]))
}

impl Kernel<3> for Conv {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [x, weight, bias]: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        let [_, _, _, channels] = dims(&x);
        (forward(&shape_of(&x, channels, self.0, &weight), &[&x], &weight, &bias, None), (x, weight))
    }

    fn saved(&self, [x, weight, _]: [FlexTensor; 3]) -> Self::Saved {
        (x, weight)
    }

    fn backward(&self, (x, weight): Self::Saved, dy: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [_, _, _, channels] = dims(&x);
        let shape = shape_of(&x, channels, self.0, &weight);
        let dx = when(wanted[0], || input_gradient(algorithm(), &shape, &x, &weight, &dy));
        let [dweight, dbias] = parameter_gradients(algorithm(), &shape, &[&x], &weight, &dy, [wanted[1], wanted[2]]);
        [dx, dweight, dbias]
    }
}

impl ConvRelu {
    fn shape_of(&self, x: &FlexTensor, weight: &FlexTensor) -> Conv2dShape {
        let ([batch, height, width, in_channels], [out_channels, _, kh, kw]) = (dims(x), dims(weight));
        let Window { stride, padding } = self.0;
        Conv2dShape { batch, height, width, upsample: 1, in_channels, out_channels, kernel: [kh, kw], stride, padding }
    }
}

impl Kernel<3> for ConvRelu {
    type Saved = [FlexTensor; 3];

    fn forward(&self, [x, weight, bias]: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        let shape = self.shape_of(&x, &weight);
        let epilogue = Epilogue { bias: Some(slice(&bias)), residual: None, activation: ConvActivation::Relu };
        let y = forward_by(exact_algorithm(), &shape, &[&x], &weight, epilogue);
        (y.clone(), [x, weight, y])
    }

    fn backward(&self, [x, weight, y]: Self::Saved, dy: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let shape = self.shape_of(&x, &weight);
        let dy = tensor(dims::<4>(&y), |d| {
            for ((d, &dy), &y) in d.iter_mut().zip(slice(&dy)).zip(slice(&y)) {
                *d = if y > 0.0 { dy } else { 0.0 };
            }
        });
        let dx = when(wanted[0], || input_gradient(exact_algorithm(), &shape, &x, &weight, &dy));
        let [dweight, dbias] =
            parameter_gradients(exact_algorithm(), &shape, &[&x], &weight, &dy, [wanted[1], wanted[2]]);
        [dx, dweight, dbias]
    }
}

impl ConvSkip {
    fn shape_of(x: &FlexTensor, skip: &FlexTensor, weight: &FlexTensor) -> Conv2dShape {
        let channels = [x, skip].map(|x| dims::<4>(x)[3]);
        shape_of(x, channels[0] + channels[1], Resampling::Keep, weight)
    }
}

impl Kernel<4> for ConvSkip {
    type Saved = [FlexTensor; 3];

    fn forward(&self, [x, skip, weight, bias]: [FlexTensor; 4]) -> (FlexTensor, Self::Saved) {
        let y = forward(&Self::shape_of(&x, &skip, &weight), &[&x, &skip], &weight, &bias, None);
        (y, [x, skip, weight])
    }

    fn saved(&self, [x, skip, weight, _]: [FlexTensor; 4]) -> Self::Saved {
        [x, skip, weight]
    }

    fn backward(&self, [x, skip, weight]: Self::Saved, dy: FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let shape = Self::shape_of(&x, &skip, &weight);
        let mut dskip = None;
        let dx = when(wanted[0] || wanted[1], || {
            tensor(dims::<4>(&x), |dx| {
                dskip = Some(tensor(dims::<4>(&skip), |dskip| {
                    conv2d_input_grad(&shape, algorithm(), slice(&dy), slice(&weight), &mut [dx, dskip]);
                }));
            })
        });
        let [dweight, dbias] =
            parameter_gradients(algorithm(), &shape, &[&x, &skip], &weight, &dy, [wanted[2], wanted[3]]);
        [dx, dskip, dweight, dbias]
    }
}

impl Kernel<4> for ConvAdd {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [x, weight, bias, residual]: [FlexTensor; 4]) -> (FlexTensor, Self::Saved) {
        let [_, _, _, channels] = dims(&x);
        let shape = shape_of(&x, channels, Resampling::Keep, &weight);
        (forward(&shape, &[&x], &weight, &bias, Some(&residual)), (x, weight))
    }

    fn saved(&self, [x, weight, ..]: [FlexTensor; 4]) -> Self::Saved {
        (x, weight)
    }

    fn backward(&self, saved: Self::Saved, dy: FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [dx, dweight, dbias] =
            Conv(Resampling::Keep).backward(saved, dy.clone(), [wanted[0], wanted[1], wanted[2]]);
        [dx, dweight, dbias, Some(dy)]
    }
}
