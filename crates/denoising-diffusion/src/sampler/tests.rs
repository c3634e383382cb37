//! Samplers on data whose denoiser is known exactly: a Gaussian.

mod contract;
mod mixture;
mod order;
mod real_levels;
mod repaint;
mod solvers;
mod stochastic;

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};

use super::*;
use crate::diffusion::{Denoiser, Estimate, Formulation, GaussianConfig, GaussianDiffusion, NoiseLevel};
use crate::nn::params::host_values;

const MEAN: f64 = 0.3;
const DEVIATION: f64 = 0.5;

/// The expectation of x_start given x, for data drawn from N(MEAN, DEVIATION^2).
struct Gaussian;

impl<const D: usize> Denoiser<D> for Gaussian {
    fn denoise(&self, x: Tensor<D>, level: NoiseLevel, _: Option<Tensor<D>>) -> Estimate<D> {
        let NoiseLevel { alpha, sigma, .. } = level;
        let gain = alpha * DEVIATION.powi(2) / ((alpha * DEVIATION).powi(2) + sigma.powi(2));
        Estimate::of((x - alpha * MEAN) * gain + MEAN)
    }

    /// Variance preserving.
    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        let squared = 1.0 / (1.0 + (-log_snr).exp());
        NoiseLevel { alpha: squared.sqrt(), sigma: (1.0 - squared).sqrt(), time: 0.0 }
    }
}

fn diffusion() -> GaussianDiffusion {
    GaussianDiffusion::new(&GaussianConfig::default())
}

fn start(samples: usize) -> (SeededNoise, Tensor<2>) {
    let noise = SeededNoise::new(1, 0, &Device::flex());
    let x = noise.init([samples, 1]);
    (noise, x)
}

fn moments(x: Tensor<2>) -> (f64, f64) {
    let values: Vec<f64> = host_values(x).into_iter().map(f64::from).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt())
}

/// Without noise each point keeps its quantile: the sample for x_T is MEAN + DEVIATION x_T.
#[test]
fn deterministic_ddim_follows_the_probability_flow() {
    let (mut noise, x) = start(64);
    let levels = diffusion().levels(1000);
    let out = ddim(&Gaussian, x.clone(), &levels, 0.0, &mut noise, &mut ignore).unwrap();
    for (out, x) in host_values(out).into_iter().zip(host_values(x)) {
        assert!((f64::from(out) - (MEAN + DEVIATION * f64::from(x))).abs() < 5e-3, "{out} from {x}");
    }
}

/// Each step of DDIM with eta 1 draws from the same posterior as an ancestral step.
#[test]
fn ddim_with_eta_one_is_ancestral_sampling() {
    for steps in [1000, 37] {
        let levels = diffusion().levels(steps);
        let (mut noise, x) = start(16);
        let a = ddim(&Gaussian, x.clone(), &levels, 1.0, &mut noise, &mut ignore).unwrap();
        let b = ddpm(&Gaussian, x, &levels, PosteriorVariance::Small, &mut noise, &mut ignore).unwrap();
        for (a, b) in host_values(a).into_iter().zip(host_values(b)) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

/// Both variances give the data's distribution for many steps.
#[test]
fn ancestral_samples_have_the_moments_of_the_data() {
    for variance in [PosteriorVariance::Small, PosteriorVariance::Large] {
        let (mut noise, x) = start(4000);
        let out = ddpm(&Gaussian, x, &diffusion().levels(1000), variance, &mut noise, &mut ignore).unwrap();
        let (mean, deviation) = moments(out);
        assert!((mean - MEAN).abs() < 0.03 && (deviation - DEVIATION).abs() < 0.03, "{variance:?} {mean} {deviation}");
    }
}

/// The variance that a network has learned is used unless another is named; if it has learned none, the small one.
#[test]
fn a_learned_variance_is_used_unless_another_is_named() {
    /// A learned variance of this many times the range between the two bounds.
    struct Above(f64);
    impl Denoiser<2> for Above {
        fn denoise(&self, x: Tensor<2>, level: NoiseLevel, x_self_cond: Option<Tensor<2>>) -> Estimate<2> {
            let variance = Some(x.full_like(self.0));
            Estimate { variance, ..Gaussian.denoise(x, level, x_self_cond) }
        }

        fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
            Denoiser::<2>::level_at_log_snr(&Gaussian, log_snr)
        }
    }
    let levels = diffusion().levels(20);
    let run = |denoiser: &dyn Denoiser<2>, posterior_variance| {
        let (mut noise, x) = start(8);
        let sample = SampleConfig { sampler: SamplerKind::Ddpm, posterior_variance, ..SampleConfig::default() };
        host_values(sample.run(&solvers::By(denoiser), x, &levels, &mut noise, &mut ignore).unwrap())
    };
    let [small, large] =
        [PosteriorVariance::Small, PosteriorVariance::Large].map(|named| run(&Above(1.0), Some(named)));
    assert_ne!(small, large);
    // No step's variance should exceed the bound, so none does.
    for learned in [run(&Above(1.0), None), run(&Above(7.0), None)] {
        for (a, b) in learned.iter().zip(&large) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
    assert_eq!(run(&Gaussian, None), small);
    // The same holds when no part of an image is known.
    let filled = |denoiser: &dyn Denoiser<2>, posterior_variance| {
        let (mut noise, x) = start(8);
        let known = Known { x_start: x.zeros_like(), mask: x.zeros_like() };
        let options = RePaint {
            jumps: Jumps { jump_n_sample: 1, ..Jumps::default() },
            step: RePaintStep::Ddpm { posterior_variance },
        };
        let denoiser = &solvers::By(denoiser);
        host_values(inpaint(denoiser, x, &levels, &known, &options, &mut noise, &mut ignore).unwrap())
    };
    let [small, large] =
        [PosteriorVariance::Small, PosteriorVariance::Large].map(|named| filled(&Gaussian, Some(named)));
    assert_ne!(small, large);
    for (a, b) in filled(&Above(7.0), None).iter().zip(&large) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    assert_eq!(filled(&Gaussian, None), small);
}

#[test]
fn a_callback_sees_every_step_and_can_stop() {
    let levels = diffusion().levels(10);
    let (mut noise, x) = start(1);
    let mut seen = Vec::new();
    let mut callback = |step: &Step<'_, 2>| {
        seen.push((step.index, step.total));
        if step.index == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = ddim(&Gaussian, x, &levels, 0.0, &mut noise, &mut callback).unwrap_err();
    assert_eq!(stopped, Interrupted { done: 7, total: 10 });
    assert_eq!(seen, (0..7).map(|i| (i, 10)).collect::<Vec<_>>());
}

/// The same estimate everywhere.
struct Constant;

impl<const D: usize> Denoiser<D> for Constant {
    fn denoise(&self, x: Tensor<D>, _: NoiseLevel, _: Option<Tensor<D>>) -> Estimate<D> {
        Estimate::of(x.zeros_like() + MEAN)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        Denoiser::<D>::level_at_log_snr(&Gaussian, log_snr)
    }
}

/// `x / alpha` is huge at the first of these levels. With a constant estimate, the noise in x must stay the same.
#[test]
fn lms_loses_no_digits_where_alpha_is_nearly_0() {
    let levels = [1e-6_f64, 0.01, 0.2, 0.5, 0.8].map(|alpha| NoiseLevel {
        alpha,
        sigma: (1.0 - alpha * alpha).sqrt(),
        time: 0.0,
    });
    let (_, x) = start(16);
    let out = lms(&Constant, x.clone(), &levels, &mut ignore).unwrap();
    for (out, eps) in host_values(out).into_iter().zip(host_values(x)) {
        let expected = 0.8 * MEAN + 0.6 * f64::from(eps);
        assert!((f64::from(out) - expected).abs() < 3e-6, "{out} {expected}");
    }
}
