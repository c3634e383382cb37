//! Compares layer normalisation and gates with plain f64 loops, and those with finite differences.

use proptest::prelude::*;

use super::RmsNormShape as RowShape;
use super::gate::*;
use super::layer::*;
use crate::activation::Activation;
use crate::simd::Isa;
use crate::testing::{assert_close, assert_some_close, numeric, one_and_two_threads_agree, random, some_indices, wide};

const EPS: f32 = 1e-6;

fn norm64(s: &RowShape, x: &[f64], m: &[f64]) -> Vec<f64> {
    let c = s.channels;
    let row = |(row, x): (usize, &[f64])| {
        let mean = x.iter().sum::<f64>() / c as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
        let at = row / s.positions * 2 * c;
        (0..c)
            .map(|k| (x[k] - mean) / (variance + f64::from(EPS)).sqrt() * (1.0 + m[at + k]) + m[at + c + k])
            .collect::<Vec<_>>()
    };
    x.chunks_exact(c).enumerate().flat_map(row).collect()
}

fn gate64(s: &RowShape, x: &[f64], gate: &[f64], residual: &[f64]) -> Vec<f64> {
    let image = s.positions * s.channels;
    (0..x.len()).map(|i| residual[i] + x[i] * gate[i / image * s.channels + i % s.channels]).collect()
}

fn silu64(s: &RowShape, x: &[f64], gate: &[f64]) -> Vec<f64> {
    gate64(s, x, gate, &vec![0.0; x.len()]).into_iter().map(|u| u / (1.0 + (-u).exp())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn all_agree_with_f64_and_finite_differences(
        (batch, positions, channels) in (1usize..=5, 1usize..=289, 2usize..=70), seed: u64,
    ) {
        let s = RowShape { batch, positions, channels };
        let (mut x, dy, r) = (random(s.len(), seed), random(s.len(), seed ^ 2), random(s.len(), seed ^ 4));
        // No row is nearly constant: its gradient would be the larger the smaller its deviation.
        x.chunks_exact_mut(channels).for_each(|row| {
            row[0] = 2.0;
            row[1] = -2.0;
        });
        let m = random(2 * batch * channels, seed ^ 3);
        let gate = &m[..batch * channels];
        let (x64, m64, gate64_, r64) = (wide(&x), wide(&m), wide(gate), wide(&r));
        let (of_x, of_m, of_gate) = (some_indices(x.len()), some_indices(m.len()), some_indices(gate.len()));
        let dx64 = numeric(&x64, &dy, &of_x, |x| norm64(&s, x, &m64));
        let dm64 = numeric(&m64, &dy, &of_m, |m| norm64(&s, &x64, m));
        let gate_dx64 = numeric(&x64, &dy, &of_x, |x| gate64(&s, x, &gate64_, &r64));
        let dgate64 = numeric(&gate64_, &dy, &of_gate, |gate| gate64(&s, &x64, gate, &r64));
        let silu_dx64 = numeric(&x64, &dy, &of_x, |x| silu64(&s, x, &gate64_));
        let silu_dgate64 = numeric(&gate64_, &dy, &of_gate, |gate| silu64(&s, &x64, gate));
        for isa in Isa::all() {
            let (mut y, mut dx) = (vec![7.0; s.len()], vec![7.0; s.len()]);
            let (mut dm, mut dgate) = (vec![7.0; m.len()], vec![7.0; gate.len()]);
            norm_with(isa, &s, &x, &m, EPS, &mut y);
            assert_close(&y, &norm64(&s, &x64, &m64), 2e-6);
            norm_grad_with(isa, &s, &x, &m, EPS, &dy, &mut dx, &mut dm);
            assert_some_close(&dx, &of_x, &dx64, 1e-6);
            assert_some_close(&dm, &of_m, &dm64, 1e-6);
            add_with(isa, &s, &x, gate, &r, &mut y);
            assert_close(&y, &gate64(&s, &x64, &gate64_, &r64), 1e-6);
            grad_with(isa, &s, &x, gate, Activation::Identity, &dy, &mut dx, &mut dgate);
            assert_some_close(&dx, &of_x, &gate_dx64, 1e-6);
            assert_some_close(&dgate, &of_gate, &dgate64, 1e-6);
            silu_with(isa, &s, &x, gate, &mut y);
            assert_close(&y, &silu64(&s, &x64, &gate64_), 1e-6);
            grad_with(isa, &s, &x, gate, Activation::Silu, &dy, &mut dx, &mut dgate);
            assert_some_close(&dx, &of_x, &silu_dx64, 1e-6);
            assert_some_close(&dgate, &of_gate, &silu_dgate64, 1e-6);
        }
    }
}

#[test]
fn a_mean_far_from_zero_costs_no_more_than_its_own_rounding() {
    for c in [20, 24, 100] {
        let s = RowShape { batch: 1, positions: 9, channels: c };
        let x: Vec<f32> = random(s.len(), 1).iter().map(|x| x + 10_000.0).collect();
        let m = vec![0.0; 2 * c];
        let exact = norm64(&s, &wide(&x), &wide(&m));
        for isa in Isa::all() {
            let mut y = vec![7.0; s.len()];
            norm_with(isa, &s, &x, &m, EPS, &mut y);
            // The error of the mean is a few units in its last place, about a thousandth.
            assert_close(&y, &exact, 5e-3);
        }
    }
}

#[test]
fn bad_values_stay_in_their_position() {
    for c in [10, 32] {
        let s = RowShape { batch: 1, positions: 3, channels: c };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, m, dy) = (random(s.len(), 1), vec![0.0; 2 * c], vec![1.0; s.len()]);
            x[c + 2] = bad;
            for isa in Isa::all() {
                let (mut y, mut dx, mut dm) = (vec![0.0; s.len()], vec![0.0; s.len()], vec![0.0; 2 * c]);
                norm_with(isa, &s, &x, &m, EPS, &mut y);
                norm_grad_with(isa, &s, &x, &m, EPS, &dy, &mut dx, &mut dm);
                assert!(y[c + 2].is_nan() && dx[c + 2].is_nan() && dm[2].is_nan(), "{isa:?} {bad}");
                assert!([&y, &dx].iter().all(|v| v[..c].iter().chain(&v[2 * c..]).all(|v| v.is_finite())));
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let s = RowShape { batch: 3, positions: 1000, channels: 50 };
    let (x, dy, m) = (random(s.len(), 1), random(s.len(), 2), random(300, 4));
    one_and_two_threads_agree(|| {
        let (mut y, mut dx, mut dm, mut dgate) = (x.clone(), x.clone(), m.clone(), m[..150].to_vec());
        layer_norm_forward(&s, &x, &m, EPS, &mut y);
        layer_norm_backward(&s, &x, &m, EPS, &dy, &mut dx, &mut dm);
        let first = [&y[..], &dx, &dm].concat();
        gated_add_forward(&s, &x, &m[..150], &dy, &mut y);
        gated_add_backward(&s, &x, &m[..150], &dy, &mut dx, &mut dgate);
        let second = [&y[..], &dx, &dgate].concat();
        gated_silu_forward(&s, &x, &m[..150], &mut y);
        gated_silu_backward(&s, &x, &m[..150], &dy, &mut dx, &mut dgate);
        [first, second, y, dx, dgate].concat()
    });
}
