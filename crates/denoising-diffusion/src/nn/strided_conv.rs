//! The convolution that halves an image or a sequence in the reference's older networks: four pixels along each axis, two apart.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::ops::PadMode;

use super::{Axes, Init, ops};

/// Size of the kernel along an axis, in pixels.
const KERNEL: usize = 4;

/// `y = x * weight + bias` with a kernel of size four along each axis, stride 2, padding 1: `[b, h, w, c_in] -> [b, h / 2, w / 2, c_out]`, or
/// `[b, 1, w / 2, c_out]` for sequences. Halved sides must be even.
#[derive(Module, Debug)]
pub struct StridedConv {
    /// `[c_out, c_in, 4, 4]` or `[c_out, c_in, 1, 4]`.
    pub weight: Param<Tensor<4>>,
    /// `[c_out]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    axes: Axes,
}

impl StridedConv {
    pub fn new(init: &mut Init, axes: Axes, dim_in: usize, dim_out: usize) -> Self {
        let [height, width] = axes.kernel(KERNEL);
        let fan_in = dim_in * height * width;
        Self {
            weight: init.uniform([dim_out, dim_in, height, width], fan_in),
            bias: init.uniform([dim_out], fan_in),
            axes,
        }
    }

    /// Computed as a convolution of stride 1 over pairs of pixels, for which there are kernels: taps -1, 0, 1 and 2 of a pair's first pixel are the
    /// second pixel of the previous pair, the pair's own two, and the first of the next pair.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, h, w, c] = x.dims();
        let weight = self.weight.val();
        let [o, i, ..] = weight.dims();
        let (pairs, weight) = match self.axes {
            Axes::Width => {
                let weight = weight.pad((1, 1, 0, 0), PadMode::Constant(0.0)).reshape([o, i, 3, 2]);
                (x.reshape([b, h, w / 2, 2 * c]), weight.permute([0, 3, 1, 2]).reshape([o, 2 * i, 1, 3]))
            }
            Axes::Both => {
                let weight = weight.pad((1, 1, 1, 1), PadMode::Constant(0.0)).reshape([o, i, 3, 2, 3, 2]);
                let blocks = x.reshape([b, h / 2, 2, w / 2, 2, c]).permute([0, 1, 3, 2, 4, 5]);
                (blocks.reshape([b, h / 2, w / 2, 4 * c]), weight.permute([0, 3, 5, 1, 2, 4]).reshape([o, 4 * i, 3, 3]))
            }
        };
        ops::conv2d(pairs, weight, Some(self.bias.val()))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn::tensor::module::conv2d;
    use burn::tensor::ops::ConvOptions;

    use super::*;
    use crate::nn::params::host_values;

    #[test]
    fn equals_the_convolution_of_stride_two() {
        let device = Device::flex().autodiff();
        for (axes, size, stride, padding) in [
            (Axes::Both, [6, 4], [2, 2], [1, 1]),
            (Axes::Both, [2, 2], [2, 2], [1, 1]),
            (Axes::Width, [1, 10], [1, 2], [0, 1]),
        ] {
            let init = &mut Init::new(3, &device);
            let conv = StridedConv::new(init, axes, 3, 5);
            let x = init.normal([2, size[0], size[1], 3]).val().detach().require_grad();
            let y = conv.forward(x.clone());
            let options = ConvOptions::new(stride, padding, [1, 1], 1);
            let reference = conv2d(ops::to_nchw(x.clone()), conv.weight.val(), Some(conv.bias.val()), options);
            let reference = ops::to_nhwc(reference);
            assert_eq!(y.dims(), reference.dims());
            let cotangent = init.normal(y.dims()).val().detach();
            let gradients = |y: Tensor<4>| {
                let gradients = (y * cotangent.clone()).sum().backward();
                let [x, weight] = [&x, &conv.weight.val()].map(|of| host_values(of.grad(&gradients).unwrap()));
                [x, weight, host_values(conv.bias.val().grad(&gradients).unwrap())]
            };
            let close = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close(&host_values(y.clone()), &host_values(reference.clone())), "{axes:?}");
            for (ours, theirs) in gradients(y).iter().zip(&gradients(reference)) {
                assert!(close(ours, theirs), "{axes:?}");
            }
        }
    }
}
