//! RePaint keeps the known part and makes the rest consistent with it.

use std::cell::{Cell, RefCell};

use burn::tensor::{Device, Tensor};

use super::mixture::{FAMILIES, Family, Mixture, Mode, Point, distance, points, start, tensor, to_clean};
use super::solvers::seeded;
use crate::diffusion::{Denoiser, Estimate, NoiseLevel};
use crate::sampler::*;

const STEPS: [RePaintStep; 2] =
    [RePaintStep::Ddpm { posterior_variance: Some(PosteriorVariance::Small) }, RePaintStep::Ddim { eta: 0.5 }];

/// Unit variances, correlation 0.9: given that the first number is v, the second is 0.9 v with variance 0.19.
fn correlated(family: Family) -> Mixture {
    let mode = Mode { weight: 1.0, mean: [0.0, 0.0], covariance: [1.0, 0.9, 1.0] };
    Mixture { family, modes: vec![mode], calls: Cell::new(0) }
}

fn known(samples: usize, value: f64) -> Known<2> {
    Known { x_start: tensor(&vec![[value, 7.0]; samples]), mask: tensor(&vec![[1.0, 0.0]; samples]) }
}

/// Mean and variance of the second number, given that the first is 1.
fn conditional(options: RePaint) -> (f64, f64) {
    let family = Family::VariancePreserving;
    let levels = to_clean(family.log_spaced(10.0, 0.05, 24));
    let samples = 2000;
    let x = start(levels[0], samples);
    let known = known(samples, 1.0);
    let out = inpaint(&correlated(family), x, &levels, &known, &options, &mut seeded(), &mut ignore).unwrap();
    let second: Vec<f64> = points(out).iter().map(|x| x[1]).collect();
    let mean = second.iter().sum::<f64>() / samples as f64;
    (mean, second.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / samples as f64)
}

#[test]
fn resampling_brings_the_unknown_part_to_its_conditional_distribution() {
    for step in STEPS {
        let run = |jump_n_sample| conditional(RePaint { jumps: Jumps { jump_length: 4, jump_n_sample }, step });
        let (without, with) = (run(1), run(8));
        println!("{step:?} {without:?} {with:?}");
        let error = |(mean, variance): (f64, f64)| (mean - 0.9).abs() + (variance - 0.19).abs();
        assert!(error(without) > 0.3 && error(with) < 0.1, "{step:?} {without:?} {with:?}");
    }
}

#[test]
fn known_data_comes_back_exactly() {
    for family in FAMILIES {
        for step in STEPS {
            for jump_n_sample in [1, 3] {
                let options = RePaint { jumps: Jumps { jump_length: 2, jump_n_sample }, step };
                let levels = to_clean(family.karras(10.0, 0.05, 8));
                let (x, known) = (start(levels[0], 5), known(5, 0.123_456_7));
                let noise = &mut seeded();
                let out = inpaint(&correlated(family), x, &levels, &known, &options, noise, &mut ignore).unwrap();
                for (out, known) in points(out).iter().zip(points(known.x_start)) {
                    assert_eq!(out[0].to_bits(), known[0].to_bits());
                    assert!(out[1].is_finite() && out[1] != known[1]);
                }
            }
        }
    }
}

/// One mask for all channels; half known is half of each.
#[test]
fn masks_spread_over_channels_and_may_be_soft() {
    let family = Family::VariancePreserving;
    let levels = to_clean(family.karras(10.0, 0.05, 8));
    let x = start(levels[0], 3);
    let x_start = tensor(&[[0.5, -0.25]; 3]);
    let run = |mask: f64| {
        let known = Known { x_start: x_start.clone(), mask: Tensor::full([3, 1], mask, &Device::flex()) };
        let (mut last, options) =
            (Vec::new(), RePaint { jumps: Jumps { jump_n_sample: 1, ..Jumps::default() }, ..RePaint::default() });
        let mut keep = |step: &Step<'_, 2>| {
            last = points(step.x_start.clone());
            std::ops::ControlFlow::Continue(())
        };
        let out = inpaint(&correlated(family), x.clone(), &levels, &known, &options, &mut seeded(), &mut keep).unwrap();
        (points(out), last)
    };
    assert_eq!(run(1.0).0, points(x_start.clone()));
    let (out, estimate) = run(0.5);
    for ((out, estimate), known) in out.iter().zip(estimate).zip(points(x_start)) {
        for k in 0..2 {
            assert!((out[k] - 0.5 * (known[k] + estimate[k])).abs() < 1e-6);
        }
    }
}

/// Data known to be 0, half of them by the mask: the state at a level is then pure noise, with the deviation of that level.
#[test]
fn soft_masks_keep_the_noise_of_each_level() {
    let (family, samples) = (Family::VariancePreserving, 4000);
    let levels = to_clean(family.karras(10.0, 0.05, 8));
    let zero = Mode { weight: 1.0, mean: [0.0; 2], covariance: [1e-6, 0.0, 1e-6] };
    let data = Mixture { family, modes: vec![zero], calls: Cell::new(0) };
    for mask in [0.0, 0.25, 0.5, 0.9, 1.0] {
        let known = Known {
            x_start: tensor(&vec![[0.0; 2]; samples]),
            mask: Tensor::full([samples, 1], mask, &Device::flex()),
        };
        let mut deviations = Vec::new();
        let mut keep = |step: &Step<'_, 2>| {
            let values = points(step.x.clone()).concat();
            deviations.push((values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt());
            std::ops::ControlFlow::Continue(())
        };
        let options = RePaint { jumps: Jumps { jump_n_sample: 1, ..Jumps::default() }, ..RePaint::default() };
        inpaint(&data, start(levels[0], samples), &levels, &known, &options, &mut seeded(), &mut keep).unwrap();
        for (deviation, level) in deviations.iter().zip(&levels[1..levels.len() - 1]) {
            assert!((deviation / level.sigma - 1.0).abs() < 0.05, "{mask}: {deviation} at {level:?}");
        }
    }
}

/// Records the number of each draw.
struct Numbers(Vec<usize>);

impl NoiseSource<2> for Numbers {
    fn step(&mut self, index: usize, dims: [usize; 2]) -> Tensor<2> {
        self.0.push(index);
        Tensor::zeros(dims, &Device::flex())
    }
}

#[test]
fn draws_are_numbered_and_steps_counted() {
    let options = RePaint { jumps: Jumps { jump_length: 2, jump_n_sample: 3 }, ..RePaint::default() };
    let levels = to_clean(Family::Edm.karras(10.0, 0.05, 7));
    let visits = repaint_schedule(8, &options.jumps);
    let down = visits.windows(2).filter(|pair| pair[1] > pair[0]).count();
    let (mut noise, mut seen) = (Numbers(Vec::new()), Vec::new());
    let mut callback = |step: &Step<'_, 2>| {
        seen.push((step.index, step.total));
        std::ops::ControlFlow::Continue(())
    };
    let (x, known) = (start(levels[0], 1), known(1, 0.3));
    inpaint(&correlated(Family::Edm), x, &levels, &known, &options, &mut noise, &mut callback).unwrap();
    assert_eq!(seen, (0..down).map(|i| (i, down)).collect::<Vec<_>>());
    // Two per step down except the last, one per jump.
    let jumps = visits.len() - 1 - down;
    assert_eq!(noise.0, (0..2 * (down - 1) + jumps).collect::<Vec<_>>());
    assert_eq!(jumps, 6);
}

#[test]
fn the_schedule_jumps_as_in_the_paper() {
    let jumps = |jump_length, jump_n_sample| Jumps { jump_length, jump_n_sample };
    let down = |steps, options| repaint_schedule(steps, &options).windows(2).filter(|pair| pair[1] > pair[0]).count();
    assert_eq!(repaint_schedule(6, &jumps(2, 2)), [0, 1, 2, 3, 1, 2, 3, 4, 5, 3, 4, 5, 6]);
    assert_eq!(repaint_schedule(3, &jumps(1, 3)), [0, 1, 0, 1, 0, 1, 2, 1, 2, 1, 2, 3]);
    for options in [jumps(10, 1), jumps(10, 0), jumps(0, 10)] {
        assert_eq!(repaint_schedule(5, &options), [0, 1, 2, 3, 4, 5]);
    }
    assert_eq!(repaint_schedule(0, &Jumps::default()), [0]);
    // The paper's 250 levels: 24 stretches of 10 steps, each repeated 9 times.
    assert_eq!(down(250, Jumps::default()), 250 + 24 * 9 * 10);
}

/// Records every x that it is called with.
struct Seen(Mixture, RefCell<Vec<Vec<Point>>>);

impl Denoiser<2> for Seen {
    fn denoise(&self, x: Tensor<2>, level: NoiseLevel, x_self_cond: Option<Tensor<2>>) -> Estimate<2> {
        self.1.borrow_mut().push(points(x.clone()));
        self.0.denoise(x, level, x_self_cond)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.0.level_at_log_snr(log_snr)
    }
}

/// A jump from level s to t: `x_t = (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z`, here with z = 1.
#[test]
fn a_jump_adds_the_noise_between_its_levels() {
    for family in FAMILIES {
        let options =
            RePaint { jumps: Jumps { jump_length: 1, jump_n_sample: 2 }, step: RePaintStep::Ddim { eta: 0.0 } };
        let levels = to_clean(vec![family.level(1.0), family.level(0.9)]);
        let denoiser = Seen(correlated(family), RefCell::new(Vec::new()));
        let ones = vec![tensor(&[[1.0, 1.0]]); 10];
        let mut after = Vec::new();
        let mut callback = |step: &Step<'_, 2>| {
            after.push(points(step.x.clone()));
            std::ops::ControlFlow::Continue(())
        };
        let x = start(levels[0], 1);
        inpaint(&denoiser, x, &levels, &known(1, 0.3), &options, &mut ones.as_slice(), &mut callback).unwrap();
        let (t, s) = (levels[0], levels[1]);
        let added = (t.sigma.powi(2) - (t.alpha / s.alpha * s.sigma).powi(2)).sqrt();
        let expected = after[0][0].map(|v| t.alpha / s.alpha * v + added);
        let (seen, expected) = (denoiser.1.borrow()[1].clone(), [expected]);
        assert!(distance(&seen, &expected) < 1e-6, "{family:?} {seen:?} {expected:?}");
        // And the known number is noised to its level after each step.
        assert!((after[0][0][0] - (s.alpha * 0.3 + s.sigma)).abs() < 1e-6);
    }
}
