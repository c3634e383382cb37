//! Group normalisation against plain f64 loops, and those against finite differences.

use super::group::{backward_with, forward_with};
use super::*;
use crate::testing::{assert_close, assert_some_close, numeric, one_and_two_threads_agree, random, some_indices, wide};
use proptest::prelude::*;

/// g, b, and scale and shift.
type Affine64<'a> = (&'a [f64], &'a [f64], Option<&'a [f64]>);

fn forward64(s: &GroupNormShape, x: &[f64], (g, b, scale_shift): Affine64<'_>, activation: Activation) -> Vec<f64> {
    let (c, per_group) = (s.channels, s.channels / s.groups);
    let mut y = vec![0.0; x.len()];
    for (image, group) in (0..s.batch).flat_map(|image| (0..s.groups).map(move |group| (image, group))) {
        let indices = || {
            (0..s.positions).flat_map(move |position| {
                (group * per_group..(group + 1) * per_group).map(move |k| (k, (image * s.positions + position) * c + k))
            })
        };
        let count = (s.positions * per_group) as f64;
        let mean = indices().map(|(_, at)| x[at]).sum::<f64>() / count;
        let variance = indices().map(|(_, at)| (x[at] - mean).powi(2)).sum::<f64>() / count;
        for (k, at) in indices() {
            let row = image * 2 * c + k;
            let (scale, shift) = scale_shift.map_or((0.0, 0.0), |d| (d[row], d[row + c]));
            let z = (x[at] - mean) / (variance + f64::from(s.eps)).sqrt() * g[k] + b[k];
            let u = z * (1.0 + scale) + shift;
            y[at] = match activation {
                Activation::Identity => u,
                Activation::Silu => u / (1.0 + (-u).exp()),
            };
        }
    }
    y
}

/// Values and gradients of one call.
struct Case {
    x: Vec<f32>,
    g: Vec<f32>,
    b: Vec<f32>,
    scale_shift: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
    dy: Vec<f32>,
}

impl Case {
    fn new(s: &GroupNormShape, modulated: bool, residual: bool, seed: u64) -> Self {
        Self {
            x: random(s.len(), seed),
            g: random(s.channels, seed ^ 1),
            b: random(s.channels, seed ^ 2),
            scale_shift: modulated.then(|| random(2 * s.batch * s.channels, seed ^ 3)),
            residual: residual.then(|| random(s.len(), seed ^ 4)),
            dy: random(s.len(), seed ^ 5),
        }
    }

    /// y, dx, dg, db, and those of scale and shift.
    fn run(&self, isa: Isa, s: &GroupNormShape, activation: Activation) -> [Vec<f32>; 5] {
        let affine = GroupNormAffine { g: &self.g, b: &self.b, scale_shift: self.scale_shift.as_deref() };
        let (mut y, mut dx) = (vec![7.0; s.len()], vec![7.0; s.len()]);
        let (mut dg, mut db) = (vec![7.0; s.channels], vec![7.0; s.channels]);
        let mut dm = self.scale_shift.clone();
        forward_with(isa, s, &self.x, affine, activation, self.residual.as_deref(), &mut y);
        let grads = GroupNormGrads { x: &mut dx, g: &mut dg, b: &mut db, scale_shift: dm.as_deref_mut() };
        backward_with(isa, s, &self.x, affine, activation, &self.dy, grads);
        [y, dx, dg, db, dm.unwrap_or_default()]
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn agrees_with_f64_and_finite_differences(
        (batch, positions, per_group, groups) in (1usize..=5, 1usize..=289, 1usize..=10, 1usize..=7),
        (modulated, silu, residual) in any::<(bool, bool, bool)>(),
        seed: u64,
    ) {
        let s = GroupNormShape { batch, positions, channels: per_group * groups, groups, eps: 1e-2 };
        let activation = if silu { Activation::Silu } else { Activation::Identity };
        let case = Case::new(&s, modulated, residual, seed);
        let (x, g, b) = (wide(&case.x), wide(&case.g), wide(&case.b));
        let m = case.scale_shift.as_deref().map(wide);
        let m = m.as_deref();
        let mut exact = forward64(&s, &x, (&g, &b, m), activation);
        let (of_x, of_c, of_m) = (some_indices(x.len()), some_indices(g.len()), some_indices(m.map_or(0, <[f64]>::len)));
        let dx = numeric(&x, &case.dy, &of_x, |x| forward64(&s, x, (&g, &b, m), activation));
        let dg = numeric(&g, &case.dy, &of_c, |g| forward64(&s, &x, (g, &b, m), activation));
        let db = numeric(&b, &case.dy, &of_c, |b| forward64(&s, &x, (&g, b, m), activation));
        let dm = numeric(m.unwrap_or(&[]), &case.dy, &of_m, |m| forward64(&s, &x, (&g, &b, Some(m)), activation));
        for (y, r) in exact.iter_mut().zip(case.residual.iter().flatten()) {
            *y += f64::from(*r);
        }
        for isa in Isa::all() {
            let [y, got_dx, got_dg, got_db, got_dm] = case.run(isa, &s, activation);
            assert_close(&y, &exact, 1e-6);
            assert_some_close(&got_dx, &of_x, &dx, 1e-6);
            assert_some_close(&got_dg, &of_c, &dg, 1e-6);
            assert_some_close(&got_db, &of_c, &db, 1e-6);
            assert_some_close(&got_dm, &of_m, &dm, 1e-6);
        }
    }
}

#[test]
fn a_mean_far_from_zero_costs_no_accuracy() {
    let s = GroupNormShape { batch: 2, positions: 700, channels: 24, groups: 3, eps: 1e-5 };
    let mut case = Case::new(&s, true, false, 1);
    case.x.iter_mut().for_each(|x| *x += 1000.0);
    let (x, g, b) = (wide(&case.x), wide(&case.g), wide(&case.b));
    let m = wide(case.scale_shift.as_ref().unwrap());
    let exact = forward64(&s, &x, (&g, &b, Some(&m)), Activation::Silu);
    let of_c = some_indices(s.channels);
    let dg = numeric(&g, &case.dy, &of_c, |g| forward64(&s, &x, (g, &b, Some(&m)), Activation::Silu));
    for isa in Isa::all() {
        let [y, _, got_dg, ..] = case.run(isa, &s, Activation::Silu);
        assert_close(&y, &exact, 2e-6);
        assert_some_close(&got_dg, &of_c, &dg, 1e-5);
    }
}

#[test]
fn bad_values_stay_in_their_group() {
    let s = GroupNormShape { batch: 2, positions: 5, channels: 12, groups: 3, eps: 1e-5 };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut case = Case::new(&s, false, false, 1);
        // Position 2 of the first image, second group.
        case.x[2 * 12 + 5] = bad;
        let hit = |at: usize| at < 60 && (4..8).contains(&(at % 12));
        for (isa, activation) in Isa::all().into_iter().flat_map(|i| [(i, Activation::Identity), (i, Activation::Silu)])
        {
            let [y, dx, dg, ..] = case.run(isa, &s, activation);
            for at in 0..s.len() {
                assert_eq!(y[at].is_finite(), !hit(at), "y[{at}] = {}", y[at]);
                assert_eq!(dx[at].is_finite(), !hit(at), "dx[{at}] = {}", dx[at]);
            }
            assert!((0..12).all(|k| dg[k].is_finite() != (4..8).contains(&k)));
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let s = GroupNormShape { batch: 3, positions: 1000, channels: 48, groups: 8, eps: 1e-5 };
    let case = Case::new(&s, true, true, 1);
    one_and_two_threads_agree(|| case.run(Isa::detect(), &s, Activation::Silu).concat());
}
