//! Compares features that only the direct convolutions have with plain f64 loops: residuals, inputs in parts, kernels whose windows do not overlap,
//! kernels of many positions; and the sums and tiles into which long and short rows are divided.

use super::direct::{Direction, convolve};
use super::weight_grad::weight_grad;
use super::*;
use crate::testing::{assert_close, one_and_two_threads_agree, random};
use proptest::prelude::*;

fn shape(batch: usize, size: [usize; 2], channels: [usize; 2], kernel: usize, stride: usize) -> Conv2dShape {
    let padding = [if stride == kernel { 0 } else { kernel / 2 }; 2];
    let [height, width] = size;
    let [in_channels, out_channels] = channels;
    Conv2dShape { batch, height, width, upsample: 1, in_channels, out_channels, kernel: [kernel; 2], stride, padding }
}

/// y, dx and dweight by definition, in f64.
fn exact(s: &Conv2dShape, x: &[f32], weight: &[f32], dy: &[f32]) -> [Vec<f64>; 3] {
    let mut all = [vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weight.len()]];
    let (rows, columns) = (s.out_height(), s.out_width());
    for pixel in 0..s.batch * rows * columns {
        let (image, i, j) = (pixel / (rows * columns), pixel / columns % rows, pixel % columns);
        for tap in 0..s.taps() {
            let (row, column) = (i * s.stride + tap / s.kernel[1], j * s.stride + tap % s.kernel[1]);
            let inside = (s.padding[0]..s.padding[0] + s.height).contains(&row)
                && (s.padding[1]..s.padding[1] + s.width).contains(&column);
            if !inside {
                continue;
            }
            let at_x = ((image * s.height + row - s.padding[0]) * s.width + column - s.padding[1]) * s.in_channels;
            for (o, c) in (0..s.out_channels).flat_map(|o| (0..s.in_channels).map(move |c| (o, c))) {
                let (at_y, at_x) = (pixel * s.out_channels + o, at_x + c);
                let at_w = (o * s.in_channels + c) * s.taps() + tap;
                let [x, weight, dy] = [x[at_x], weight[at_w], dy[at_y]].map(f64::from);
                all[0][at_y] += x * weight;
                all[1][at_x] += dy * weight;
                all[2][at_w] += dy * x;
            }
        }
    }
    all
}

/// Checks the forward pass with bias and residual, the input gradient and the weight gradient, with every instruction set.
fn check(s: &Conv2dShape, seed: u64) {
    s.validate().unwrap();
    let [x, weight, dy, bias, residual] =
        [s.input_len(), s.weight_len(), s.output_len(), s.out_channels, s.output_len()]
            .map(|len| random(len, seed ^ len as u64));
    let [mut y64, dx64, dweight64] = exact(s, &x, &weight, &dy);
    for (at, y) in y64.iter_mut().enumerate() {
        *y += f64::from(bias[at % s.out_channels]) + f64::from(residual[at]);
    }
    let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), ..Epilogue::default() };
    for isa in Isa::all() {
        let (mut y, mut dx, mut dweight) = (vec![7.0; dy.len()], vec![7.0; x.len()], vec![7.0; weight.len()]);
        convolve(isa, Direction::Forward, s, &x, &weight, epilogue, &mut y);
        assert_close(&y, &y64, 2e-6);
        convolve(isa, Direction::InputGrad, s, &dy, &weight, Epilogue::default(), &mut dx);
        assert_close(&dx, &dx64, 2e-6);
        weight_grad(isa, s, &x, &dy, &mut dweight);
        assert_close(&dweight, &dweight64, 2e-6);
    }
}

/// Compares the 1 x 1 functions for an input in parts with those for the same input in one piece.
fn check_parts(pixels: usize, channels: &[usize], outputs: usize, seed: u64) {
    let inputs = channels.iter().sum();
    let s = shape(1, [1, pixels], [inputs, outputs], 1, 1);
    let [x, weight, dy, bias, residual] = [s.input_len(), s.weight_len(), s.output_len(), outputs, s.output_len()]
        .map(|len| random(len, seed ^ len as u64));
    let mut first = 0;
    let split: Vec<Vec<f32>> = channels
        .iter()
        .map(|&count| {
            let range = first..first + count;
            first += count;
            x.chunks_exact(inputs).flat_map(|row| &row[range.clone()]).copied().collect()
        })
        .collect();
    let parts: Vec<(&[f32], usize)> = split.iter().map(|part| &part[..]).zip(channels.iter().copied()).collect();
    let [mut y64, dx64, dweight64] = exact(&s, &x, &weight, &dy);
    for (at, y) in y64.iter_mut().enumerate() {
        *y += f64::from(bias[at % outputs]) + f64::from(residual[at]);
    }
    let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), ..Epilogue::default() };
    for isa in Isa::all() {
        let (mut y, mut dweight) = (vec![7.0; dy.len()], vec![7.0; weight.len()]);
        pointwise::forward(isa, &parts, &weight, epilogue, outputs, &mut y);
        assert_close(&y, &y64, 2e-6);
        pointwise::weight_grad(isa, &parts, &dy, outputs, &mut dweight);
        assert_close(&dweight, &dweight64, 2e-6);
        let mut grads: Vec<Vec<f32>> = split.iter().map(|part| vec![7.0; part.len()]).collect();
        let mut targets: Vec<_> = grads.iter_mut().map(|grad| &mut grad[..]).zip(channels.iter().copied()).collect();
        pointwise::input_grads(isa, &dy, &weight, outputs, &mut targets);
        let mut first = 0;
        for (grad, &count) in grads.iter().zip(channels) {
            let want: Vec<f64> =
                dx64.chunks_exact(inputs).flat_map(|row| &row[first..first + count]).copied().collect();
            assert_close(grad, &want, 2e-6);
            first += count;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn one_by_one_agrees_with_f64(
        batch in 1usize..5, size in [1usize..17, 1usize..17], channels in [1usize..70, 1usize..70], seed: u64,
    ) {
        check(&shape(batch, size, channels, 1, 1), seed);
    }

    #[test]
    fn windows_side_by_side_agree_with_f64(
        batch in 1usize..5, size in [1usize..17, 1usize..17], channels in [1usize..70, 1usize..70],
        kernel in 1usize..4, seed: u64,
    ) {
        check(&shape(batch, size.map(|size| size.max(kernel)), channels, kernel, kernel), seed);
    }

    #[test]
    fn any_kernel_agrees_with_f64(
        batch in 1usize..3, size in [1usize..13, 1usize..13], channels in [1usize..40, 1usize..40],
        kernel in [1usize..8, 1usize..8], stride in 1usize..3, padding in [0usize..4, 0usize..4], seed: u64,
    ) {
        let kernel = [0, 1].map(|axis| kernel[axis].min(size[axis] + 2 * padding[axis]));
        check(&Conv2dShape { kernel, padding, ..shape(batch, size, channels, 1, stride) }, seed);
    }

    #[test]
    fn inputs_in_parts_agree_with_f64(
        pixels in 1usize..400, channels in prop::collection::vec(1usize..50, 1..4), outputs in 1usize..70, seed: u64,
    ) {
        check_parts(pixels, &channels, outputs, seed);
    }
}

#[test]
fn long_sums_agree_with_f64() {
    // Sums over several parts of a tap, several taps, and several splits of the pixels.
    check(&shape(1, [3, 5], [300, 129], 1, 1), 1);
    check(&shape(1, [3, 3], [131, 260], 3, 1), 2);
    check(&shape(2, [4, 6], [150, 70], 2, 2), 3);
    check(&shape(5, [21, 25], [20, 33], 1, 1), 4);
    check(&shape(3, [32, 32], [3, 20], 7, 1), 5);
    check_parts(200, &[256, 130, 3], 40, 6);
}

#[test]
fn bits_do_not_depend_on_threads() {
    for s in [shape(5, [20, 21], [40, 50], 1, 1), shape(3, [24, 26], [20, 40], 2, 2), shape(2, [4, 4], [200, 90], 1, 1)]
    {
        let [x, weight, dy] = [s.input_len(), s.weight_len(), s.output_len()].map(|len| random(len, len as u64));
        one_and_two_threads_agree(|| {
            let (mut y, mut dx, mut dweight) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weight.len()]);
            let isa = Isa::detect();
            convolve(
                isa,
                Direction::Forward,
                &s,
                &x,
                &weight,
                Epilogue { residual: Some(&dy), ..Epilogue::default() },
                &mut y,
            );
            convolve(isa, Direction::InputGrad, &s, &dy, &weight, Epilogue::default(), &mut dx);
            weight_grad(isa, &s, &x, &dy, &mut dweight);
            [y, dx, dweight].concat()
        });
    }
}

#[test]
fn nan_and_infinity_come_out_where_they_belong() {
    for s in [shape(2, [6, 7], [20, 19], 1, 1), shape(2, [6, 8], [18, 21], 2, 2), shape(2, [9, 9], [3, 20], 7, 1)] {
        for (isa, bad) in Isa::all().into_iter().flat_map(|isa| [(isa, f32::NAN), (isa, f32::INFINITY)]) {
            let [mut x, weight, mut dy] =
                [s.input_len(), s.weight_len(), s.output_len()].map(|len| random(len, len as u64));
            let finite = |values: &[f32]| values.iter().filter(|v| v.is_finite()).count();
            let (mut y, mut dx, mut dweight) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weight.len()]);
            // The first channel of the first pixel affects all channels of the output pixels whose windows contain it.
            x[0] = bad;
            convolve(isa, Direction::Forward, &s, &x, &weight, Epilogue::default(), &mut y);
            let touched = if s.padding[0] > 0 { (s.padding[0] + 1).pow(2) } else { 1 };
            assert_eq!(finite(&y), y.len() - touched * s.out_channels);
            weight_grad(isa, &s, &x, &dy, &mut dweight);
            // One input channel, at the kernel positions that meet the pixel.
            assert_eq!(finite(&dweight), dweight.len() - touched * s.out_channels);
            dy[0] = bad;
            convolve(isa, Direction::InputGrad, &s, &dy, &weight, Epilogue::default(), &mut dx);
            let taps = if s.padding[0] > 0 { (s.padding[0] + 1).pow(2) } else { s.taps() };
            assert_eq!(finite(&dx), dx.len() - taps * s.in_channels);
            // A residual brings its own.
            let mut residual = vec![0.0; y.len()];
            residual[5] = bad;
            x[0] = 0.0;
            convolve(
                isa,
                Direction::Forward,
                &s,
                &x,
                &weight,
                Epilogue { residual: Some(&residual), ..Epilogue::default() },
                &mut y,
            );
            assert!(finite(&y) == y.len() - 1 && !y[5].is_finite());
        }
    }
}
