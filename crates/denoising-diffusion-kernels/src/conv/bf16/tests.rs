//! Compares products on matrix units, and the plain loops in their place, with the direct convolution of factors that were rounded before.

use proptest::prelude::*;

use super::super::parts::{Parts, PartsMut};
use super::super::tests::same;
use super::super::{Conv2dShape, ConvActivation, ConvAlgorithm, Epilogue};
use super::super::{forward_with, input_grad_with, weight_grad_with};
use super::{applies, convolve, weight_grad};
use crate::matrix_unit::{Unit, narrow};
use crate::simd::Isa;
use crate::testing::{assert_close, one_and_two_threads_agree, random, wide};

/// Values that bf16 holds.
fn rounded(len: usize, seed: u64) -> Vec<f32> {
    random(len, seed).into_iter().map(|value| f32::from_bits(u32::from(narrow(value)) << 16)).collect()
}

fn part(values: &[f32], channels: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    values.chunks_exact(channels).flat_map(|pixel| pixel[range.clone()].to_vec()).collect()
}

/// Checks the forward pass of an input in two parts, with all of an epilogue, and both gradients, on every unit.
fn check(s: &Conv2dShape, split: usize, seed: u64) {
    s.validate().unwrap();
    assert!(applies(s));
    let [x, weight, dy] = [(s.input_len(), 1), (s.weight_len(), 2), (s.output_len(), 3)]
        .map(|(len, salt)| rounded(len, seed.wrapping_mul(4) ^ salt));
    let (bias, residual) = (random(s.out_channels, seed ^ 4), random(s.output_len(), seed ^ 5));
    let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), activation: ConvActivation::Relu };
    let [mut y, mut dx, mut dweight] = [dy.clone(), x.clone(), weight.clone()];
    let isa = Isa::detect();
    forward_with(isa, s, ConvAlgorithm::Direct, &[&x], &weight, epilogue, &mut y);
    input_grad_with(isa, s, ConvAlgorithm::Direct, &dy, &weight, &mut [&mut dx]);
    weight_grad_with(isa, s, ConvAlgorithm::Direct, &[&x], &dy, &mut dweight);
    let [y, dx, dweight] = [y, dx, dweight].map(|values| wide(&values));

    let (left, right) = (part(&x, s.in_channels, 0..split), part(&x, s.in_channels, split..s.in_channels));
    let parts = Parts::new(s.batch * s.height * s.width, &[&left, &right]);
    for unit in Unit::all().into_iter().flat_map(|unit| Isa::all().into_iter().map(move |isa| (isa, unit))) {
        let [mut got_y, mut got_dx, mut got_dweight] = [y.len(), dx.len(), dweight.len()].map(|len| vec![7.0; len]);
        convolve::forward(unit, s, &parts, &weight, epilogue, &mut got_y);
        assert_close(&got_y, &y, 1e-5);
        weight_grad::weight_grad(unit.1, s, &parts, &dy, &mut got_dweight);
        assert_close(&got_dweight, &dweight, 1e-5);
        if s.upsample == 1 {
            let target = &mut [&mut got_dx[..]];
            let pixels = s.batch * s.height * s.width;
            convolve::input_grad(unit, s, &dy, &weight, &PartsMut::new(pixels, target));
            assert_close(&got_dx, &dx, 1e-5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape_agrees_with_the_direct_convolution(
        (batch, height, width) in (1usize..=18, 1usize..=9, 1usize..=20),
        (in_channels, out_channels) in (1usize..=70, 1usize..=70),
        (padding, upsample) in ([0usize..3, 0usize..3], 1usize..3),
        split in 0.0..1.0, seed: u64,
    ) {
        let kernel = padding.map(|padding| 2 * padding + 1);
        let s = Conv2dShape { batch, height, width, upsample, in_channels, out_channels, kernel, stride: 1, padding };
        check(&s, (split * in_channels as f64) as usize, seed);
    }
}

#[test]
fn sums_of_many_blocks_and_groups_agree_with_the_direct_convolution() {
    for s in [
        same(3, 32, 40, 33, 3),
        same(2, 4, 300, 270, 3),
        same(17, 5, 48, 33, 3),
        same(33, 8, 33, 65, 3),
        same(1, 40, 16, 140, 1),
    ] {
        check(&s, 16, 3);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let s = same(4, 20, 33, 70, 3);
    let (x, weight, dy) = (random(s.input_len(), 1), random(s.weight_len(), 2), random(s.output_len(), 3));
    for unit in Unit::all() {
        one_and_two_threads_agree(|| {
            let (mut y, mut dx, mut dweight) = (dy.clone(), x.clone(), weight.clone());
            let (unit, pixels) = ((Isa::detect(), unit), s.batch * s.height * s.width);
            let parts = Parts::new(pixels, &[&x]);
            convolve::forward(unit, &s, &parts, &weight, Epilogue::default(), &mut y);
            convolve::input_grad(unit, &s, &dy, &weight, &PartsMut::new(pixels, &mut [&mut dx]));
            weight_grad::weight_grad(unit.1, &s, &parts, &dy, &mut dweight);
            [y, dx, dweight].concat()
        });
    }
}

#[test]
fn nan_and_infinity_propagate() {
    let s = same(3, 8, 20, 20, 3);
    let (weight, dy) = (random(s.weight_len(), 2), random(s.output_len(), 3));
    for (unit, bad) in Unit::all().into_iter().flat_map(|unit| [(unit, f32::NAN), (unit, f32::INFINITY)]) {
        let mut x = random(s.input_len(), 1);
        x[(3 * 8 + 3) * 20] = bad;
        let parts = Parts::new(3 * 64, &[&x]);
        let (mut y, mut dweight) = (vec![0.0; s.output_len()], vec![0.0; s.weight_len()]);
        convolve::forward((Isa::detect(), unit), &s, &parts, &weight, Epilogue::default(), &mut y);
        weight_grad::weight_grad(unit, &s, &parts, &dy, &mut dweight);
        assert!(y[(3 * 8 + 3) * 20..][..20].iter().all(|v| !v.is_finite()), "{unit:?}");
        assert!(y[..20].iter().all(|v| v.is_finite()), "{unit:?}: far away");
        assert!(dweight[..9].iter().all(|v| !v.is_finite()), "{unit:?}");
    }
}
