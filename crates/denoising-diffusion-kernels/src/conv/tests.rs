//! Compares every convolution kernel with plain f64 loops.

use super::*;
use crate::testing::{assert_close, one_and_two_threads_agree, random};
use proptest::prelude::*;

/// Calls `f(x index, weight index, y index)` for every product of the definition.
fn each_product(s: &Conv2dShape, mut f: impl FnMut(usize, usize, usize)) {
    let (rows, columns) = (s.out_height(), s.out_width());
    for b in 0..s.batch {
        for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
            for (u, v) in (0..s.kernel[0]).flat_map(|u| (0..s.kernel[1]).map(move |v| (u, v))) {
                let (row, column) = (i * s.stride + u, j * s.stride + v);
                if row < s.padding[0] || column < s.padding[1] {
                    continue;
                }
                let (row, column) = ((row - s.padding[0]) / s.upsample, (column - s.padding[1]) / s.upsample);
                if row >= s.height || column >= s.width {
                    continue;
                }
                for o in 0..s.out_channels {
                    for c in 0..s.in_channels {
                        f(
                            ((b * s.height + row) * s.width + column) * s.in_channels + c,
                            ((o * s.in_channels + c) * s.kernel[0] + u) * s.kernel[1] + v,
                            ((b * rows + i) * columns + j) * s.out_channels + o,
                        );
                    }
                }
            }
        }
    }
}

fn product(a: f32, b: f32) -> f64 {
    f64::from(a) * f64::from(b)
}

/// Checks all four kernels for one shape, with every instruction set and both algorithms.
fn check(s: &Conv2dShape, seed: u64) {
    s.validate().unwrap();
    let x = random(s.input_len(), seed);
    let weight = random(s.weight_len(), seed ^ 1);
    let bias = random(s.out_channels, seed ^ 2);
    let dy = random(s.output_len(), seed ^ 3);
    let mut y64: Vec<f64> = (0..s.output_len()).map(|at| bias[at % s.out_channels].into()).collect();
    let (mut dx64, mut dweight64) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
    each_product(s, |at_x, at_w, at_y| {
        y64[at_y] += product(x[at_x], weight[at_w]);
        dx64[at_x] += product(dy[at_y], weight[at_w]);
        dweight64[at_w] += product(dy[at_y], x[at_x]);
    });
    for isa in Isa::all() {
        for (algorithm, tolerance) in
            [(ConvAlgorithm::Direct, 2e-6), (ConvAlgorithm::Auto, 2e-5), (ConvAlgorithm::Winograd, 2e-5)]
        {
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            let (mut y, mut dx, mut dweight) = (vec![7.0; y64.len()], vec![7.0; x.len()], vec![7.0; weight.len()]);
            forward_with(isa, s, algorithm, &[&x], &weight, epilogue, &mut y);
            input_grad_with(isa, s, algorithm, &dy, &weight, &mut [&mut dx]);
            weight_grad_with(isa, s, algorithm, &[&x], &dy, &mut dweight);
            assert_close(&y, &y64, tolerance);
            let mut rectified = vec![7.0; y.len()];
            let epilogue = Epilogue { activation: ConvActivation::Relu, ..epilogue };
            forward_with(isa, s, algorithm, &[&x], &weight, epilogue, &mut rectified);
            assert!(rectified.iter().zip(&y).all(|(&r, &y)| r == y.max(0.0)), "relu of {s:?}");
            assert_close(&dx, &dx64, tolerance);
            assert_close(&dweight, &dweight64, tolerance);
        }
    }
    let mut dbias = vec![7.0; s.out_channels];
    bias_grad(&dy, s.out_channels, &mut dbias);
    let (mut dbias64, mut sizes) = (vec![0.0; s.out_channels], vec![1.0; s.out_channels]);
    for (at, &d) in dy.iter().enumerate() {
        dbias64[at % s.out_channels] += f64::from(d);
        sizes[at % s.out_channels] += f64::from(d.abs());
    }
    // Terms have both signs, so a sum can be far smaller than its terms. Each of up to 64 additions in f32 has a rounding error of half an epsilon of
    // the terms.
    let tolerance = 64.0 * f64::from(f32::EPSILON) / 2.0;
    for ((&got, &exact), size) in dbias.iter().zip(&dbias64).zip(sizes) {
        assert!(
            (f64::from(got) - exact).abs() <= tolerance * size,
            "dbias {got} instead of {exact}, terms of size {size}"
        );
    }
}

pub(super) fn same(batch: usize, side: usize, in_channels: usize, out_channels: usize, kernel: usize) -> Conv2dShape {
    Conv2dShape {
        batch,
        height: side,
        width: side,
        upsample: 1,
        in_channels,
        out_channels,
        kernel: [kernel; 2],
        stride: 1,
        padding: [kernel / 2; 2],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape_agrees_with_f64(
        (batch, height, width) in (1usize..=5, 1usize..=17, 1usize..=17),
        (in_channels, out_channels) in (1usize..=70, 1usize..=70),
        (kh, kw, stride, upsample) in (1usize..5, 1usize..5, 1usize..4, 1usize..3), padding in [0usize..4, 0usize..4],
        seed: u64,
    ) {
        let kernel = [kh.min(height * upsample + 2 * padding[0]), kw.min(width * upsample + 2 * padding[1])];
        check(&Conv2dShape { batch, height, width, upsample, in_channels, out_channels, kernel, stride, padding }, seed);
    }

    #[test]
    fn three_by_three_agrees_with_f64(
        (batch, height, width) in (1usize..=5, 1usize..=17, 1usize..=17),
        (in_channels, out_channels) in (1usize..=70, 1usize..=70),
        (padding, upsample) in (0usize..3, 1usize..3),
        seed: u64,
    ) {
        let kernel = [3, 3];
        prop_assume!(height * upsample + 2 * padding >= 3 && width * upsample + 2 * padding >= 3);
        check(&Conv2dShape { batch, height, width, upsample, in_channels, out_channels, kernel, stride: 1, padding: [padding; 2] }, seed);
    }

    #[test]
    fn parts_give_what_the_whole_gives(
        (batch, side, upsample) in (1usize..6, 3usize..12, 1usize..3),
        first in prop::sample::select(vec![0usize, 1, 16, 20, 32, 48]),
        (second, out_channels) in (1usize..40, 1usize..40),
        kernel in prop::sample::select(vec![1usize, 3]),
        seed: u64,
    ) {
        let s = Conv2dShape { upsample, ..same(batch, side, first + second, out_channels, kernel) };
        let (x, weight, dy) = (random(s.input_len(), seed), random(s.weight_len(), seed ^ 1), random(s.output_len(), seed ^ 2));
        let residual = random(s.output_len(), seed ^ 3);
        let part = |from: usize, to: usize| -> Vec<f32> {
            x.chunks_exact(s.in_channels).flat_map(|pixel| pixel[from..to].to_vec()).collect()
        };
        let (left, right) = (part(0, first), part(first, s.in_channels));
        for isa in Isa::all() {
            for algorithm in [ConvAlgorithm::Winograd, ConvAlgorithm::Direct] {
                let (mut y, mut y_parts) = (dy.clone(), dy.clone());
                forward_with(isa, &s, algorithm, &[&x], &weight, Epilogue::default(), &mut y);
                forward_with(isa, &s, algorithm, &[&left, &right], &weight, Epilogue { residual: Some(&residual), ..Epilogue::default() }, &mut y_parts);
                let sum: Vec<f64> = y.iter().zip(&residual).map(|(&y, &r)| f64::from(y) + f64::from(r)).collect();
                assert_close(&y_parts, &sum, 2e-5);
                let (mut dx, mut dleft, mut dright) = (x.clone(), left.clone(), right.clone());
                input_grad_with(isa, &s, algorithm, &dy, &weight, &mut [&mut dx]);
                input_grad_with(isa, &s, algorithm, &dy, &weight, &mut [&mut dleft, &mut dright]);
                for (pixel, dx) in dx.chunks_exact(s.in_channels).enumerate() {
                    let parts = [&dleft[pixel * first..][..first], &dright[pixel * second..][..second]].concat();
                    assert_close(&parts, &dx.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), 2e-5);
                }
                let (mut dweight, mut dweight_parts) = (weight.clone(), weight.clone());
                weight_grad_with(isa, &s, algorithm, &[&x], &dy, &mut dweight);
                weight_grad_with(isa, &s, algorithm, &[&left, &right], &dy, &mut dweight_parts);
                assert_close(&dweight_parts, &dweight.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), 2e-5);
            }
        }
    }
}

#[test]
fn shapes_of_the_networks_agree_with_f64() {
    for shape in [same(2, 12, 3, 64, 7), same(3, 9, 64, 3, 1), same(3, 7, 128, 200, 3), same(5, 4, 140, 70, 1)] {
        check(&shape, 5);
    }
}

#[test]
fn winograd_stays_exact_enough_at_1024_channels() {
    for shape in [same(3, 9, 1024, 20, 3), same(12, 4, 20, 1024, 3)] {
        check(&shape, 9);
    }
}

#[test]
fn gradients_are_the_slopes_of_the_forward_pass() {
    // The convolution is linear in x and in the weight, so a difference of any size is the exact slope.
    let s = same(2, 9, 20, 30, 3);
    let (x, weight, dy) = (random(s.input_len(), 1), random(s.weight_len(), 2), random(s.output_len(), 3));
    let (step_x, step_weight) = (random(s.input_len(), 4), random(s.weight_len(), 5));
    let mut slopes = [0.0; 2];
    each_product(&s, |at_x, at_w, at_y| {
        let d = f64::from(dy[at_y]);
        slopes[0] += product(step_x[at_x], weight[at_w]) * d;
        slopes[1] += product(x[at_x], step_weight[at_w]) * d;
    });
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| product(a, b)).sum::<f64>();
    for algorithm in [ConvAlgorithm::Auto, ConvAlgorithm::Direct] {
        let (mut dx, mut dweight) = (x.clone(), weight.clone());
        conv2d_input_grad(&s, algorithm, &dy, &weight, &mut [&mut dx]);
        conv2d_weight_grad(&s, algorithm, &[&x], &dy, &mut dweight);
        for (got, want) in [dot(&dx, &step_x), dot(&dweight, &step_weight)].into_iter().zip(slopes) {
            assert!((got - want).abs() <= 1e-4 * want.abs().max(100.0), "{got} instead of {want}");
        }
    }
}

#[test]
fn auto_takes_winograd_where_it_pays() {
    let wants = |s: &Conv2dShape| ConvAlgorithm::Auto.wants_winograd(s);
    assert!(wants(&same(16, 32, 64, 64, 3)) && wants(&same(16, 4, 512, 512, 3)) && wants(&same(32, 7, 128, 128, 3)));
    assert!(!wants(&same(16, 32, 64, 64, 1)) && !wants(&same(16, 32, 3, 64, 3)) && !wants(&same(1, 4, 512, 512, 3)));
    assert!(!wants(&Conv2dShape { stride: 2, ..same(16, 32, 64, 64, 3) }));
    assert!(!ConvAlgorithm::Direct.wants_winograd(&same(16, 32, 64, 64, 3)));
}

#[test]
fn bits_do_not_depend_on_threads() {
    for s in [same(3, 16, 33, 70, 3), same(4, 20, 3, 20, 7), same(4, 20, 40, 50, 1), same(2, 4, 80, 90, 3)] {
        let (x, weight, dy) = (random(s.input_len(), 1), random(s.weight_len(), 2), random(s.output_len(), 3));
        for algorithm in [ConvAlgorithm::Auto, ConvAlgorithm::Direct] {
            one_and_two_threads_agree(|| {
                let (mut y, mut dx, mut dweight) = (dy.clone(), x.clone(), weight.clone());
                let mut dbias = vec![0.0; s.out_channels];
                conv2d_forward(&s, algorithm, &[&x], &weight, Epilogue::default(), &mut y);
                conv2d_input_grad(&s, algorithm, &dy, &weight, &mut [&mut dx]);
                conv2d_weight_grad(&s, algorithm, &[&x], &dy, &mut dweight);
                bias_grad(&dy, s.out_channels, &mut dbias);
                [y, dx, dweight, dbias].concat()
            });
        }
    }
}

#[test]
fn nan_and_infinity_propagate() {
    let s = same(3, 8, 20, 20, 3);
    let (weight, dy) = (random(s.weight_len(), 2), random(s.output_len(), 3));
    for bad in [f32::NAN, f32::INFINITY] {
        for algorithm in [ConvAlgorithm::Auto, ConvAlgorithm::Direct] {
            let mut x = random(s.input_len(), 1);
            x[(3 * 8 + 3) * 20] = bad;
            let (mut y, mut dweight) = (vec![0.0; s.output_len()], vec![0.0; s.weight_len()]);
            conv2d_forward(&s, algorithm, &[&x], &weight, Epilogue::default(), &mut y);
            conv2d_weight_grad(&s, algorithm, &[&x], &dy, &mut dweight);
            assert!(y[(3 * 8 + 3) * 20..][..20].iter().all(|v| !v.is_finite()));
            assert!(dweight[..9].iter().all(|v| !v.is_finite()));
        }
    }
}

#[test]
fn impossible_shapes_are_named() {
    let good = same(1, 4, 2, 2, 3);
    assert_eq!(good.validate(), Ok(()));
    assert_eq!(Conv2dShape { stride: 0, ..good }.validate(), Err(ShapeError::Zero("stride")));
    // Three times this overflows to 1 if that is not noticed.
    let batch = usize::MAX / 3 * 2 + 1;
    assert_eq!(Conv2dShape { batch, ..good }.validate(), Err(ShapeError::TooLarge));
    let error = Conv2dShape { width: 2, padding: [0; 2], ..good }.validate().unwrap_err();
    assert_eq!(error.to_string(), "a kernel of 3 does not fit into 2 columns plus 0 on each side");
}
