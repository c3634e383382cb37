//! Two-dimensional convolution (cross-correlation, as in PyTorch) and its gradients.
//!
//! x is `[batch, height, width, in_channels]`, y `[batch, out_height, out_width, out_channels]`, the weight
//! `[out_channels, in_channels, kernel_height, kernel_width]`:
//!
//! `y[b, i, j, o] = bias[o] + sum over u, v, c of weight[o, c, u, v] x[b, i stride + u - padding, j stride + v - padding, c]`
//!
//! with zeros outside x. No groups, no dilation, no transposed convolution.

mod direct;
#[cfg(test)]
mod direct_tests;
mod disjoint;
mod output;
mod pack;
mod patch_grad;
mod pointwise;
#[cfg(test)]
mod tests;
mod weight_grad;
mod windows;
mod winograd;

use crate::par::{ELEMENTS_PER_TASK, Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// Images.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between output pixels, in input pixels, both ways.
    pub stride: usize,
    /// Zeros on each of the four sides, in pixels.
    pub padding: usize,
}

/// Why a [`Conv2dShape`] describes no convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A size that must be at least 1 is 0.
    #[error("{0} is 0, it must be at least 1")]
    Zero(&'static str),
    /// The kernel does not fit into the padded input, so there would be no output.
    #[error("a kernel of {kernel} does not fit into {input} {axis} plus {padding} on each side")]
    KernelTooLarge {
        /// `rows` or `columns`.
        axis: &'static str,
        /// Size of the kernel along the axis.
        kernel: usize,
        /// Size of the input along the axis.
        input: usize,
        /// Padding on each side.
        padding: usize,
    },
}

/// How to compute a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConvAlgorithm {
    /// The fastest for the shape.
    #[default]
    Auto,
    /// Products and sums only, for the smallest rounding error.
    Direct,
}

impl ConvAlgorithm {
    fn wants_winograd(self, shape: &Conv2dShape) -> bool {
        self == ConvAlgorithm::Auto && winograd::applies(shape) && winograd::pays(shape)
    }
}

impl Conv2dShape {
    /// Checks that there is at least one value of everything, and an output.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let sizes = [
            ("batch", self.batch),
            ("height", self.height),
            ("width", self.width),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("stride", self.stride),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(ShapeError::Zero(name));
        }
        for (axis, kernel, input) in [("rows", self.kernel[0], self.height), ("columns", self.kernel[1], self.width)] {
            if kernel > input + 2 * self.padding {
                return Err(ShapeError::KernelTooLarge { axis, kernel, input, padding: self.padding });
            }
        }
        Ok(())
    }

    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel[0]) / self.stride + 1
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel[1]) / self.stride + 1
    }

    /// Values of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.in_channels
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_height() * self.out_width() * self.out_channels
    }

    /// Values of the weight.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.in_channels * self.taps()
    }

    /// Floating-point operations of the forward pass, a multiplication and an addition counted as two.
    pub fn flops(&self) -> usize {
        2 * self.batch * self.out_height() * self.out_width() * self.weight_len()
    }

    /// Positions of the kernel.
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn check(&self, x: usize, weight: usize, y: usize) {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        assert_eq!(x, self.input_len(), "length of the input of {self:?}");
        assert_eq!(weight, self.weight_len(), "length of the weight of {self:?}");
        assert_eq!(y, self.output_len(), "length of the output of {self:?}");
    }
}

/// y = x * weight + bias. Lengths: `input_len`, `weight_len`, `out_channels`, `output_len` of `shape`.
pub fn conv2d_forward(
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    forward_with(Isa::detect(), shape, algorithm, x, weight, bias, y);
}

/// dx, the gradient of a loss with respect to the input, from dy, the one with respect to the output.
/// Lengths: `output_len`, `weight_len`, `input_len` of `shape`.
pub fn conv2d_input_grad(shape: &Conv2dShape, algorithm: ConvAlgorithm, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
    input_grad_with(Isa::detect(), shape, algorithm, dy, weight, dx);
}

/// dweight, the gradient with respect to the weight, from the input x and dy.
/// Lengths: `input_len`, `output_len`, `weight_len` of `shape`.
pub fn conv2d_weight_grad(shape: &Conv2dShape, algorithm: ConvAlgorithm, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    weight_grad_with(Isa::detect(), shape, algorithm, x, dy, dweight);
}

/// `dbias[c]` is the sum over all pixels of `dy[.., c]`; `dy` is `[pixels, channels]`, `dbias` `[channels]`.
pub fn bias_grad(dy: &[f32], channels: usize, dbias: &mut [f32]) {
    assert!(channels > 0 && dy.len().is_multiple_of(channels), "dy of {} has no rows of {channels}", dy.len());
    assert_eq!(dbias.len(), channels, "length of dbias");
    let pixels = dy.len() / channels;
    // Short sums in f32, summed in f64: both fast and exact enough.
    let size = (ELEMENTS_PER_TASK / channels).clamp(1, 256);
    let tasks = pixels.div_ceil(size);
    let mut sums = Scratch::zeroed(tasks * channels);
    let out = Shared::new(&mut sums);
    for_each_task(tasks, |task| {
        // SAFETY: every task has its own row of sums.
        let sums = unsafe { out.part(task * channels..(task + 1) * channels) };
        let rows = task_range(task, size, pixels);
        for row in dy[rows.start * channels..rows.end * channels].chunks_exact(channels) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    });
    for (c, total) in dbias.iter_mut().enumerate() {
        *total = sums.iter().skip(c).step_by(channels).map(|&s| f64::from(s)).sum::<f64>() as f32;
    }
}

fn forward_with(
    isa: Isa,
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    shape.check(x.len(), weight.len(), y.len());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), shape.out_channels, "length of the bias of {shape:?}");
    }
    if algorithm.wants_winograd(shape) {
        winograd::convolve(isa, direct::Direction::Forward, shape, x, weight, bias, y);
    } else {
        direct::convolve(isa, direct::Direction::Forward, shape, x, weight, bias, None, y);
    }
}

fn input_grad_with(
    isa: Isa,
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
) {
    shape.check(dx.len(), weight.len(), dy.len());
    if algorithm.wants_winograd(shape) {
        winograd::convolve(isa, direct::Direction::InputGrad, shape, dy, weight, None, dx);
    } else {
        direct::convolve(isa, direct::Direction::InputGrad, shape, dy, weight, None, None, dx);
    }
}

fn weight_grad_with(
    isa: Isa,
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    x: &[f32],
    dy: &[f32],
    dweight: &mut [f32],
) {
    shape.check(x.len(), dweight.len(), dy.len());
    if algorithm.wants_winograd(shape) {
        winograd::weight_grad(isa, shape, x, dy, dweight);
    } else {
        weight_grad::weight_grad(isa, shape, x, dy, dweight);
    }
}
