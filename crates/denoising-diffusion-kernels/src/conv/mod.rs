//! Two-dimensional convolution (cross-correlation, as in PyTorch) and its gradients.
//!
//! x is `[batch, height, width, in_channels]`, y `[batch, out_height, out_width, out_channels]`, the weight
//! `[out_channels, in_channels, kernel_height, kernel_width]`:
//!
//! `y[b, i, j, o] = bias[o] + sum over u, v, c of weight[o, c, u, v] x[b, (i stride + u - padding[0]) / upsample, (j stride + v - padding[1]) / upsample, c]`
//!
//! with zeros outside x. The input may come in parts that are concatenated along the channels, as with a skip connection; they are not copied
//! together. No groups, no dilation, no transposed convolution.

mod bf16;
mod direct;
#[cfg(test)]
mod direct_tests;
mod disjoint;
mod epilogue;
mod output;
mod pack;
mod parts;
mod patch_grad;
mod pointwise;
mod shape;
#[cfg(test)]
mod tests;
mod weight_grad;
mod windows;
mod winograd;

use crate::gemm::PANEL;
use crate::matrix_unit::Unit;
use crate::par::{ELEMENTS_PER_TASK, Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;
use direct::Direction;
use parts::{Parts, PartsMut};

pub use epilogue::{ConvActivation, Epilogue};
pub use shape::{Conv2dShape, ShapeError};

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConvAlgorithm {
    /// The fastest for the shape. Winograd's method works on tiles of 4 x 4 outputs: a value that is not finite makes whole tiles not finite,
    /// including outputs that it does not affect by definition; it is never lost.
    #[default]
    Auto,
    /// Products and sums only, for the smallest rounding error.
    Direct,
    /// Winograd's method wherever it can be used (3 x 3, step 1, equal paddings of at most 2, enlarged at most twice), otherwise products and sums.
    Winograd,
    /// Products of factors rounded to bf16, with sums in f32, where the machine [does that fast](crate::multiplies_bf16) and the shape suits it (step
    /// 1, an output of the input's size, sixteen channels and more); otherwise [`Auto`](ConvAlgorithm::Auto).
    Bf16,
}

impl ConvAlgorithm {
    /// The unit that multiplies bf16, if that is wanted.
    fn bf16_unit(self, shape: &Conv2dShape) -> Option<Unit> {
        (self == ConvAlgorithm::Bf16).then(|| bf16::unit_for(shape)).flatten()
    }

    fn wants_winograd(self, shape: &Conv2dShape) -> bool {
        winograd::applies(shape)
            && match self {
                ConvAlgorithm::Auto | ConvAlgorithm::Bf16 => winograd::pays(shape),
                ConvAlgorithm::Direct => false,
                ConvAlgorithm::Winograd => true,
            }
    }
}

/// y = activation(x * weight + bias + residual).
///
/// x is given as one slice or as several, each `[batch, height, width, channels of the part]`. Lengths: `input_len` in total, `weight_len`,
/// `output_len`.
pub fn conv2d_forward(
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    x: &[&[f32]],
    weight: &[f32],
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    forward_with(Isa::detect(), shape, algorithm, x, weight, epilogue, y);
}

/// dx, the gradient of a loss with respect to the input, from dy, that with respect to the sums before an activation. dx has the parts of x. Lengths:
/// `output_len`, `weight_len`, `input_len` of `shape`.
pub fn conv2d_input_grad(
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [&mut [f32]],
) {
    input_grad_with(Isa::detect(), shape, algorithm, dy, weight, dx);
}

/// dweight, the gradient with respect to the weight, from the input x, in one or several parts, and dy, as for [`conv2d_input_grad`].
/// Lengths: `input_len`, `output_len`, `weight_len` of `shape`.
pub fn conv2d_weight_grad(
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    x: &[&[f32]],
    dy: &[f32],
    dweight: &mut [f32],
) {
    weight_grad_with(Isa::detect(), shape, algorithm, x, dy, dweight);
}

/// `dbias[c]` is the sum over all pixels of `dy[.., c]`; `dy` is `[pixels, channels]`, `dbias` `[channels]`.
pub fn bias_grad(dy: &[f32], channels: usize, dbias: &mut [f32]) {
    assert!(channels > 0 && dy.len().is_multiple_of(channels), "dy of {} has no rows of {channels}", dy.len());
    assert_eq!(dbias.len(), channels, "length of dbias");
    let pixels = dy.len() / channels;
    // Short sums in f32, added up in f64: both fast and accurate enough.
    let size = (ELEMENTS_PER_TASK / channels).clamp(1, 64);
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
    x: &[&[f32]],
    weight: &[f32],
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    shape.check(x.iter().map(|x| x.len()).sum(), weight.len(), y.len());
    epilogue.check(shape.out_channels, y.len());
    let pixels = shape.batch * shape.height * shape.width;
    let x = Parts::new(pixels, x);
    if let Some(unit) = algorithm.bf16_unit(shape) {
        return bf16::forward((isa, unit), shape, &x, weight, epilogue, y);
    }
    if algorithm.wants_winograd(shape) {
        let y = &mut [y];
        let y = PartsMut::new(shape.batch * shape.out_height() * shape.out_width(), y);
        return x.in_panels(pixels, |x| winograd::convolve(isa, Direction::Forward, shape, x, weight, epilogue, &y));
    }
    if shape.is_pointwise() {
        return pointwise::forward(isa, &x.pairs(), weight, epilogue, shape.out_channels, y);
    }
    let (shape, copy) = (shape.of_enlarged(), enlarged(shape, &x));
    let x = x.single().filter(|_| copy.is_none()).or(copy.as_deref()).unwrap_or_default();
    direct::convolve(isa, Direction::Forward, &shape, x, weight, epilogue, y);
}

fn input_grad_with(
    isa: Isa,
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [&mut [f32]],
) {
    shape.check(dx.iter().map(|dx| dx.len()).sum(), weight.len(), dy.len());
    let pixels = shape.batch * shape.height * shape.width;
    if let Some(unit) = algorithm.bf16_unit(shape) {
        let compute = |s: &Conv2dShape, dx: &PartsMut<'_>| bf16::input_grad((isa, unit), s, dy, weight, dx);
        let parts = PartsMut::new(pixels, dx);
        if shape.upsample == 1 && parts.iter().all(|part| part.first.is_multiple_of(PANEL)) {
            return compute(shape, &parts);
        }
        return joined_input_grad(shape, dx, |s, joined| {
            compute(s, &PartsMut::new(s.batch * s.height * s.width, &mut [joined]));
        });
    }
    if algorithm.wants_winograd(shape) {
        let dy = Parts::new(shape.batch * shape.out_height() * shape.out_width(), &[dy]);
        let dx = PartsMut::new(pixels, dx);
        return winograd::convolve(isa, Direction::InputGrad, shape, &dy, weight, Epilogue::default(), &dx);
    }
    if shape.is_pointwise() {
        let mut dx: Vec<_> = dx.iter_mut().map(|dx| (dx.len() / pixels, dx)).map(|(n, dx)| (&mut dx[..], n)).collect();
        return pointwise::input_grads(isa, dy, weight, shape.out_channels, &mut dx);
    }
    if let ([dx], 1) = (&mut dx[..], shape.upsample) {
        return direct::convolve(isa, Direction::InputGrad, shape, dy, weight, Epilogue::default(), dx);
    }
    joined_input_grad(shape, dx, |s, joined| {
        direct::convolve(isa, Direction::InputGrad, s, dy, weight, Epilogue::default(), joined);
    });
}

/// dx from that of an image that is enlarged and in one piece, which `compute` gives.
fn joined_input_grad(shape: &Conv2dShape, dx: &mut [&mut [f32]], compute: impl FnOnce(&Conv2dShape, &mut [f32])) {
    let pixels = shape.batch * shape.height * shape.width;
    let enlarged = shape.of_enlarged();
    let mut joined = Scratch::new(enlarged.input_len());
    compute(&enlarged, &mut joined);
    if shape.upsample == 1 {
        return parts::split(&joined, pixels, dx);
    }
    let (channels, upsample) = (shape.in_channels, shape.upsample);
    let row_len = shape.width * channels;
    let mut reduced = Scratch::zeroed(shape.input_len());
    let out = Shared::new(&mut reduced);
    for_each_task(shape.batch * shape.height, |row| {
        // SAFETY: every task has its own row.
        let sums = unsafe { out.part(row * row_len..(row + 1) * row_len) };
        for copy in joined[row * upsample.pow(2) * row_len..].chunks_exact(upsample * row_len).take(upsample) {
            for (sums, copies) in sums.chunks_exact_mut(channels).zip(copy.chunks_exact(upsample * channels)) {
                for copy in copies.chunks_exact(channels) {
                    for (sum, value) in sums.iter_mut().zip(copy) {
                        *sum += value;
                    }
                }
            }
        }
    });
    parts::split(&reduced, pixels, dx);
}

fn weight_grad_with(
    isa: Isa,
    shape: &Conv2dShape,
    algorithm: ConvAlgorithm,
    x: &[&[f32]],
    dy: &[f32],
    dweight: &mut [f32],
) {
    shape.check(x.iter().map(|x| x.len()).sum(), dweight.len(), dy.len());
    let pixels = shape.batch * shape.height * shape.width;
    let x = Parts::new(pixels, x);
    if let Some(unit) = algorithm.bf16_unit(shape) {
        return bf16::weight_grad(unit, shape, &x, dy, dweight);
    }
    if algorithm.wants_winograd(shape) {
        return x.in_panels(pixels, |x| winograd::weight_grad(isa, shape, x, dy, dweight));
    }
    if shape.is_pointwise() {
        return pointwise::weight_grad(isa, &x.pairs(), dy, shape.out_channels, dweight);
    }
    let (shape, copy) = (shape.of_enlarged(), enlarged(shape, &x));
    let x = x.single().filter(|_| copy.is_none()).or(copy.as_deref()).unwrap_or_default();
    weight_grad::weight_grad(isa, &shape, x, dy, dweight);
}

/// The input in one piece and enlarged; `None` if it already is.
fn enlarged(shape: &Conv2dShape, x: &Parts<'_>) -> Option<Scratch> {
    if shape.upsample == 1 && x.single().is_some() {
        return None;
    }
    let mut joined = Scratch::new(shape.input_len());
    x.join(&mut joined);
    if shape.upsample == 1 {
        return Some(joined);
    }
    let mut copy = Scratch::new(shape.of_enlarged().input_len());
    each_copy(shape, |from, to| {
        copy[to..to + shape.in_channels].copy_from_slice(&joined[from..from + shape.in_channels]);
    });
    Some(copy)
}

/// Calls `f` with the index of the first channel of each pixel of the input and of each of its copies in the enlarged input.
fn each_copy(shape: &Conv2dShape, mut f: impl FnMut(usize, usize)) {
    let [rows, columns] = shape.enlarged();
    for row in 0..shape.batch * rows {
        for column in 0..columns {
            let from = row / shape.upsample * shape.width + column / shape.upsample;
            f(from * shape.in_channels, (row * columns + column) * shape.in_channels);
        }
    }
}
