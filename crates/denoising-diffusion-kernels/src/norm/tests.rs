//! Compares the fused normalisation with plain f64 loops, and those with finite differences.

use super::*;
use crate::testing::{assert_close, assert_some_close, numeric, one_and_two_threads_agree, random, some_indices, wide};
use proptest::prelude::*;

fn forward64(s: &RmsNormShape, x: &[f64], g: &[f64], scale_shift: Option<&[f64]>, activation: Activation) -> Vec<f64> {
    let c = s.channels;
    let mut y = Vec::new();
    for (row, x) in x.chunks_exact(c).enumerate() {
        let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        for k in 0..c {
            let at = row / s.positions * 2 * c + k;
            let (scale, shift) = scale_shift.map_or((0.0, 0.0), |d| (d[at], d[at + c]));
            let u = x[k] / norm * (c as f64).sqrt() * g[k] * (1.0 + scale) + shift;
            y.push(match activation {
                Activation::Identity => u,
                Activation::Silu => u / (1.0 + (-u).exp()),
            });
        }
    }
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn agrees_with_f64_and_finite_differences(
        (batch, positions, channels) in (1usize..=5, 1usize..=289, 1usize..=70),
        modulated: bool,
        silu: bool,
        residual: bool,
        seed: u64,
    ) {
        let s = RmsNormShape { batch, positions, channels };
        let activation = if silu { Activation::Silu } else { Activation::Identity };
        let x: Vec<f32> = random(s.len(), seed).iter().map(|v| v + v.signum() * 0.3).collect();
        let (g, dy) = (random(channels, seed ^ 1), random(s.len(), seed ^ 2));
        let scale_shift = modulated.then(|| random(2 * batch * channels, seed ^ 3));
        let (x64, g64) = (wide(&x), wide(&g));
        let m64 = scale_shift.as_deref().map(wide);
        let residual = residual.then(|| random(s.len(), seed ^ 4));
        let mut exact = forward64(&s, &x64, &g64, m64.as_deref(), activation);
        for (y, r) in exact.iter_mut().zip(residual.iter().flatten()) {
            *y += f64::from(*r);
        }
        let (of_x, of_g, of_m) = (some_indices(x.len()), some_indices(channels), some_indices(2 * batch * channels));
        let dx64 = numeric(&x64, &dy, &of_x, |x| forward64(&s, x, &g64, m64.as_deref(), activation));
        let dg64 = numeric(&g64, &dy, &of_g, |g| forward64(&s, &x64, g, m64.as_deref(), activation));
        let dm64 = m64.as_ref().map(|m| numeric(m, &dy, &of_m, |m| forward64(&s, &x64, &g64, Some(m), activation)));
        for isa in Isa::all() {
            let mut y = vec![7.0; s.len()];
            forward_with(isa, &s, &x, &g, scale_shift.as_deref(), activation, residual.as_deref(), &mut y);
            assert_close(&y, &exact, 1e-6);
            let (mut dx, mut dg) = (vec![7.0; s.len()], vec![7.0; channels]);
            let mut dm = scale_shift.clone();
            let grads = RmsNormGrads { x: &mut dx, g: &mut dg, scale_shift: dm.as_deref_mut() };
            backward_with(isa, &s, &x, &g, scale_shift.as_deref(), activation, &dy, grads);
            assert_some_close(&dx, &of_x, &dx64, 1e-6);
            assert_some_close(&dg, &of_g, &dg64, 1e-6);
            if let (Some(dm), Some(exact)) = (dm, &dm64) {
                assert_some_close(&dm, &of_m, exact, 1e-6);
            }
        }
    }
}

#[test]
fn a_zero_row_gives_the_shift_and_a_finite_gradient() {
    let s = RmsNormShape { batch: 1, positions: 1, channels: 3 };
    let (g, scale_shift) = ([2.0; 3], [1.0, 1.0, 1.0, 5.0, 6.0, 7.0]);
    for isa in Isa::all() {
        let (mut y, mut dx, mut dg, mut dm) = ([0.0; 3], [0.0; 3], [7.0; 3], [7.0; 6]);
        forward_with(isa, &s, &[0.0; 3], &g, Some(&scale_shift), Activation::Identity, None, &mut y);
        assert_eq!(y, [5.0, 6.0, 7.0]);
        let grads = RmsNormGrads { x: &mut dx, g: &mut dg, scale_shift: Some(&mut dm) };
        let dy = [1e-12, 0.0, 0.0];
        backward_with(isa, &s, &[0.0; 3], &g, Some(&scale_shift), Activation::Identity, &dy, grads);
        assert_close(&dx, &[4.0 * 3f64.sqrt(), 0.0, 0.0], 1e-6);
        assert_eq!((dg, dm), ([0.0; 3], [0.0, 0.0, 0.0, 1e-12, 0.0, 0.0]));
    }
}

#[test]
fn bad_values_stay_in_their_position() {
    // Narrow rows in fours and one by one, rows that vectors do not divide, wide rows.
    for (c, positions) in [(10, 3), (32, 7), (136, 3)] {
        let s = RmsNormShape { batch: 1, positions, channels: c };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, g, dy) = (random(s.len(), 1), vec![1.0; c], vec![1.0; s.len()]);
            x[c + 2] = bad;
            for isa in Isa::all() {
                let mut y = vec![0.0; s.len()];
                forward_with(isa, &s, &x, &g, None, Activation::Silu, None, &mut y);
                assert!(y[c + 2].is_nan());
                assert!(y[..c].iter().chain(&y[2 * c..]).all(|v| v.is_finite()));
                let (mut dx, mut dg) = (vec![0.0; s.len()], vec![0.0; c]);
                let grads = RmsNormGrads { x: &mut dx, g: &mut dg, scale_shift: None };
                backward_with(isa, &s, &x, &g, None, Activation::Silu, &dy, grads);
                assert!(dx[c + 2].is_nan() && dg[2].is_nan());
                assert!(dx[..c].iter().chain(&dx[2 * c..]).all(|v| v.is_finite()));
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let s = RmsNormShape { batch: 3, positions: 1000, channels: 50 };
    let (x, dy) = (random(s.len(), 1), random(s.len(), 2));
    let (g, m) = (random(50, 3), random(300, 4));
    one_and_two_threads_agree(|| {
        let (mut y, mut dx, mut dg, mut dm) = (x.clone(), x.clone(), g.clone(), m.clone());
        rms_norm_forward(&s, &x, &g, Some(&m), Activation::Silu, Some(&dy), &mut y);
        let grads = RmsNormGrads { x: &mut dx, g: &mut dg, scale_shift: Some(&mut dm) };
        rms_norm_backward(&s, &x, &g, Some(&m), Activation::Silu, &dy, grads);
        [y, dx, dg, dm].concat()
    });
}
