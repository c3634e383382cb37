//! Solvers that add noise give the distribution of the data, and add as much noise as documented.

use burn::tensor::{Device, Tensor};

use super::mixture::{FAMILIES, Family, Mixture, Point, distance, flow_from_pure_noise, points, start, to_clean};
use super::solvers::{CHURN, STOCHASTIC, seeded};
use crate::diffusion::{Denoiser, Estimate, NoiseLevel};
use crate::nn::params::host_values;
use crate::sampler::*;
use crate::testing::largest_difference;

const SAMPLES: usize = 2500;

/// The largest difference of a mean, a variance or the covariance. Chance alone contributes about 0.015 each.
fn difference(samples: &[Point], mixture: &Mixture) -> f64 {
    let expectation = |f: &dyn Fn(&Point) -> f64| samples.iter().map(f).sum::<f64>() / samples.len() as f64;
    let mean = [0, 1].map(|k| expectation(&|x| x[k]));
    let central = |i: usize, j: usize| expectation(&|x| (x[i] - mean[i]) * (x[j] - mean[j]));
    let (expected_mean, expected) = mixture.moments();
    let got = [mean[0], mean[1], central(0, 0), central(0, 1), central(1, 1)];
    let expected = [expected_mean[0], expected_mean[1], expected[0], expected[1], expected[2]];
    largest_difference(&got, &expected)
}

fn steps(name: &str) -> usize {
    if name.contains("2m") || name.contains("3m") || name.contains("heun") { 40 } else { 200 }
}

#[test]
fn stochastic_solvers_reach_the_moments_of_the_data() {
    let mixture = Mixture::three(Family::VariancePreserving);
    for (name, solver) in STOCHASTIC {
        let levels = to_clean(mixture.family.log_spaced(20.0, 0.02, steps(name)));
        let x = start(levels[0], SAMPLES);
        let difference = difference(&points(solver(&mixture, x, &levels).unwrap()), &mixture);
        println!("{name} {difference:.3}");
        assert!(difference < 0.05, "{name} {difference}");
    }
}

#[test]
fn stochastic_solvers_start_from_pure_noise() {
    let mixture = Mixture::three(Family::Flow);
    for (name, solver) in STOCHASTIC {
        let levels = to_clean(flow_from_pure_noise(0.01, 2 * steps(name)));
        let x = start(levels[0], SAMPLES);
        let difference = difference(&points(solver(&mixture, x, &levels).unwrap()), &mixture);
        println!("{name} {difference:.3}");
        assert!(difference < 0.05, "{name} {difference}");
    }
}

/// The same noise and the same `sigma / alpha` give the same data, whatever alpha is.
#[test]
fn stochastic_solvers_do_not_depend_on_alpha() {
    for (name, solver) in STOCHASTIC {
        let [vp, edm, flow] = FAMILIES.map(|family| {
            let levels = to_clean(family.log_spaced(20.0, 0.02, 20));
            points(solver(&Mixture::three(family), start(levels[0], 16), &levels).unwrap())
        });
        assert!(distance(&vp, &edm) < 1e-4 && distance(&vp, &flow) < 1e-4, "{name} {vp:?} {edm:?} {flow:?}");
    }
}

/// Counts draws; their indices must be those of the steps.
struct Counted(SeededNoise, Vec<usize>);

impl NoiseSource<2> for Counted {
    fn step(&mut self, index: usize, dims: [usize; 2]) -> Tensor<2> {
        self.1.push(index);
        self.0.step(index, dims)
    }
}

#[test]
fn churn_adds_noise_between_its_bounds_only() {
    let family = Family::VariancePreserving;
    let (mixture, levels) = (Mixture::three(family), to_clean(family.karras(20.0, 0.02, 30)));
    let x = start(levels[0], 1);
    let draws = |churn: Churn| {
        let mut noise = Counted(seeded(), Vec::new());
        heun(&mixture, x.clone(), &levels, &churn, &mut noise, &mut ignore).unwrap();
        noise.1
    };
    let within = |level: &NoiseLevel| (CHURN.s_tmin..=CHURN.s_tmax).contains(&(level.sigma / level.alpha));
    let expected: Vec<usize> = (0..30).filter(|&i| within(&levels[i])).collect();
    assert!(expected.len() > 5 && expected.len() < 25);
    assert_eq!(draws(CHURN), expected);
    assert_eq!(draws(Churn { s_churn: 1.0, ..Churn::default() }).len(), 31);
    assert!(draws(Churn::default()).is_empty());
}

/// `sigma_hat = sigma (1 + min(s_churn / N, sqrt(2) - 1))`, and x contains as much noise as the level states.
#[test]
fn churn_raises_x_to_the_level_that_it_returns() {
    for family in FAMILIES {
        let (mixture, t) = (Mixture::three(family), family.level(0.5));
        for (s_churn, gamma) in [(4.0, 0.1), (1000.0, std::f64::consts::SQRT_2 - 1.0)] {
            let churn = Churn { s_churn, s_noise: 1.5, ..Churn::default() };
            let z = start(NoiseLevel { alpha: 0.0, sigma: 1.0, time: 0.0 }, 4);
            let x = Tensor::full([4, 2], t.alpha, &Device::flex());
            let (x_hat, hat) = churn.apply(&mixture, x, t, 40, || z.clone());
            assert!((hat.sigma / hat.alpha - 0.5 * (1.0 + gamma)).abs() < 1e-12);
            let added = 1.5 * 0.5 * (2.0 * gamma + gamma * gamma).sqrt();
            let expected: Vec<Point> = points(z).iter().map(|z| z.map(|z| hat.alpha * (1.0 + added * z))).collect();
            assert!(distance(&points(x_hat), &expected) < 1e-6);
        }
    }
}

/// A mixture whose network learned a variance.
struct Learned(Mixture, Option<f64>);

impl Denoiser<2> for Learned {
    fn denoise(&self, x: Tensor<2>, level: NoiseLevel, x_self_cond: Option<Tensor<2>>) -> Estimate<2> {
        let variance = self.1.map(|v| Tensor::full(x.dims(), v, &x.device()));
        Estimate { variance, ..self.0.denoise(x, level, x_self_cond) }
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.0.level_at_log_snr(log_snr)
    }
}

#[test]
fn a_learned_variance_lies_between_small_and_large() {
    let family = Family::VariancePreserving;
    let levels = to_clean(family.log_spaced(20.0, 0.02, 10));
    let x = start(levels[0], 8);
    let run = |variance, fraction| {
        let denoiser = Learned(Mixture::three(family), fraction);
        points(ddpm(&denoiser, x.clone(), &levels, variance, &mut seeded(), &mut ignore).unwrap())
    };
    let (small, large) = (run(PosteriorVariance::Small, None), run(PosteriorVariance::Large, None));
    assert!(distance(&small, &large) > 0.1);
    assert_eq!(run(PosteriorVariance::Learned, None), small);
    assert_eq!(run(PosteriorVariance::Small, Some(0.5)), small);
    assert!(distance(&run(PosteriorVariance::Learned, Some(0.0)), &small) < 1e-5);
    assert!(distance(&run(PosteriorVariance::Learned, Some(1.0)), &large) < 1e-5);

    // One step: the deviations are in geometric progression.
    let pair = [family.level(2.0), family.level(1.0)];
    let added = |fraction| {
        let denoiser = Learned(Mixture::three(family), Some(fraction));
        let run = |z: f64| {
            let noise = [Tensor::full([8, 2], z, &Device::flex())];
            let mut noise = noise.as_slice();
            host_values(ddpm(&denoiser, x.clone(), &pair, PosteriorVariance::Learned, &mut noise, &mut ignore).unwrap())
        };
        f64::from(run(1.0)[0] - run(0.0)[0])
    };
    let [small, between, large] = [0.0, 0.25, 1.0].map(added);
    assert!((between - small.powf(0.75) * large.powf(0.25)).abs() < 1e-5, "{small} {between} {large}");
    assert!((small - pair[0].posterior_variance(&pair[1]).sqrt()).abs() < 1e-5);
}
