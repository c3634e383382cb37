//! Inverted images are reproduced, whatever their classes and however many are made at once; a strength is an amount of noise, whatever follows.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::*;
use crate::diffusion::{
    BetaSchedule, ContinuousTimeConfig, Diffusion, ElucidatedConfig, FormulationConfig, GaussianConfig, GuidanceConfig,
    NoiseLevels, NoiseSchedule, Objective, RectifiedFlowConfig, ScheduleConfig, Threshold,
};
use crate::generate::ClassifierGradient;
use crate::models::NetworkInput;
use crate::nn::params::host_values;
use crate::nn::{Eval, EvalMode};
use crate::sampler::{SampleConfig, SamplerKind};
use crate::testing::largest_difference;

const SHAPE: [usize; 3] = [1, 2, 2];

/// The exact denoiser of normally distributed pixels, with a different mean for each class (the last: no class).
#[derive(Module, Debug)]
struct Exact {
    means: Param<Tensor<1>>,
    #[module(skip)]
    diffusion: Arc<Diffusion>,
}

const MEANS: [f32; 4] = [-0.6, 0.0, 0.6, 0.2];
const DEVIATION: f64 = 0.5;

impl Network for Exact {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let (b, device) = (input.x.dims()[0], input.x.device());
        let none = || Tensor::full([b], MEANS.len() as i64 - 1, &device);
        let mean = self.means.val().select(0, input.classes.unwrap_or_else(none)).reshape([b, 1, 1, 1]);
        // All examples of a batch have the same level.
        let NoiseLevel { alpha, sigma, .. } = self.diffusion.level(host_values(input.time)[0].into());
        let gain = alpha * DEVIATION.powi(2) / ((alpha * DEVIATION).powi(2) + sigma.powi(2));
        (input.x - mean.clone() * alpha) * gain + mean
    }

    fn channels(&self) -> usize {
        1
    }

    fn num_classes(&self) -> usize {
        MEANS.len() - 1
    }
}

fn network() -> (Arc<Diffusion>, Eval<Exact>) {
    let config = GaussianConfig { objective: Objective::PredX0, ..GaussianConfig::default() };
    let diffusion = Arc::new(Diffusion::new(&config.into()).unwrap());
    let means = Param::from_tensor(Tensor::from_floats(MEANS, &Device::flex()));
    (diffusion.clone(), Exact { means, diffusion }.eval())
}

/// Frames from one image to another, with this many per batch.
fn frames(classes: &[u32], sample_batch_size: usize, classifier: Option<&ClassifierGradient<'_>>) -> Vec<Vec<f32>> {
    let (diffusion, model) = network();
    let guidance = GuidanceConfig { threshold: Threshold::None, ..GuidanceConfig::default() };
    let generator = Generator { guidance, classifier, ..Generator::new(&model, &diffusion, &Device::flex()) };
    let sample = SampleConfig {
        sampler: SamplerKind::Ddim,
        sampling_timesteps: Some(500),
        sample_batch_size,
        ..SampleConfig::default()
    };
    let request = Request { classes: Some(classes), ..Request::new(&sample, 0, classes.len(), SHAPE) };
    let images = generator.interpolate(&request, ENDS, Between::Inverted, &mut |_| ControlFlow::Continue(()));
    images.unwrap().data.chunks(4).map(<[f32]>::to_vec).collect()
}

const ENDS: [&[f32]; 2] = [&[0.1, 0.4, 0.2, 0.9], &[0.7, 0.3, 0.8, 0.0]];

#[test]
fn both_ends_come_back_as_what_they_belong_to() {
    for classes in [[1; 5], [0, 0, 1, 2, 2], [3, 3, 3, 3, 0]] {
        let frames = frames(&classes, 64, None);
        let away = [largest_difference(&frames[0], ENDS[0]), largest_difference(&frames[4], ENDS[1])];
        println!("{classes:?} {away:?}");
        assert!(away.iter().all(|&away| away < 0.02), "{classes:?} {away:?}");
        assert!(largest_difference(&frames[2], ENDS[0]) > 0.1);
    }
}

#[test]
fn the_size_of_a_batch_is_not_to_be_seen() {
    let classes = [0, 0, 1, 2, 2];
    let whole = frames(&classes, 64, None);
    for size in [1, 2, 3] {
        for (a, b) in frames(&classes, size, None).iter().zip(&whole) {
            assert!(largest_difference(a, b) < 1e-5, "{size}: {a:?} {b:?}");
        }
    }
}

/// Both are in one batch, if batches may be that large.
#[test]
fn the_steps_of_an_inversion_are_known_before() {
    let (diffusion, network) = network();
    let generator = Generator::new(&network, &diffusion, &Device::flex());
    for (sample_batch_size, expected) in [(1, 500), (2, 250), (64, 250)] {
        let sample = quiet(sample_batch_size);
        let request = Request { classes: Some(&[0; 3]), ..Request::new(&sample, 0, 3, SHAPE) };
        let mut seen = 0;
        let mut watch = |_: &BatchStep<'_>| {
            seen += 1;
            ControlFlow::Continue(())
        };
        generator.interpolate(&request, ENDS, Between::Inverted, &mut watch).unwrap();
        assert_eq!(generator.inversion_steps(&sample), expected);
        assert_eq!(seen, expected + request.batches() * 3, "{sample_batch_size}");
    }
}

/// DDIM in three steps.
fn quiet(sample_batch_size: usize) -> SampleConfig {
    let sampler = SamplerKind::Ddim;
    SampleConfig { sampler, sampling_timesteps: Some(3), sample_batch_size, ..SampleConfig::default() }
}

#[test]
fn samplers_that_draw_noise_do_not_claim_to_reproduce() {
    let (diffusion, network) = network();
    let generator = Generator::new(&network, &diffusion, &Device::flex());
    let interpolate = |sample: SampleConfig, between| {
        let request = Request { classes: Some(&[0, 0]), ..Request::new(&sample, 0, 2, SHAPE) };
        generator.interpolate(&request, ENDS, between, &mut |_| ControlFlow::Continue(()))
    };
    let by = |sampler, eta, s_churn| SampleConfig { sampler, eta, s_churn, ..quiet(64) };
    for (sample, sampler) in [
        (by(SamplerKind::default(), None, 0.0), "dpmpp_sde_2m"),
        (by(SamplerKind::Ddpm, None, 0.0), "ddpm"),
        (by(SamplerKind::Ddim, Some(0.5), 0.0), "ddim"),
        (by(SamplerKind::Euler, None, 5.0), "euler"),
    ] {
        let refused = interpolate(sample.clone(), Between::Inverted).unwrap_err();
        assert!(matches!(refused, EditError::DrawsNoise { sampler: name } if name == sampler), "{refused}");
        assert!(interpolate(sample, Between::InvertedWithNoise).is_ok());
    }
    for sample in [by(SamplerKind::DpmppSde2m, Some(0.0), 0.0), by(SamplerKind::Euler, None, 0.0)] {
        assert_eq!(
            interpolate(sample.clone(), Between::Inverted).unwrap(),
            interpolate(sample, Between::InvertedWithNoise).unwrap()
        );
    }
}

#[test]
fn interpolation_draws_the_noise_of_its_first_sample() {
    let (diffusion, network) = network();
    let generator = Generator::new(&network, &diffusion, &Device::flex());
    let sample = SampleConfig { sampler: SamplerKind::Ddpm, ..quiet(64) };
    let between = Between::Noised { strength: 0.5 };
    let draw = |first: u64, init_noise| {
        let classes: Option<&[u32]> = Some(&[0, 0]);
        let request = Request { classes, first, init_noise, ..Request::new(&sample, 0, 2, SHAPE) };
        generator.interpolate(&request, ENDS, between, &mut |_| ControlFlow::Continue(()))
    };
    assert_eq!(draw(3, None).unwrap(), draw(3, None).unwrap());
    assert_ne!(draw(3, None).unwrap(), draw(0, None).unwrap());
    assert!(matches!(draw(0, Some(&[0.0; 8])), Err(EditError::InitNoise)));
}

/// A network that predicts zeros, and the classes that a classifier asks for.
#[derive(Module, Debug)]
struct Blank {
    nothing: Param<Tensor<1>>,
}

impl Network for Blank {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        input.x.zeros_like()
    }

    fn channels(&self) -> usize {
        1
    }
}

/// The level at which a variation starts, and the steps that follow.
fn start_of(diffusion: &Diffusion, sample: &SampleConfig, strength: f64) -> (NoiseLevel, usize) {
    let device = Device::flex();
    let blank = Blank { nothing: Param::from_tensor(Tensor::zeros([1], &device)) }.eval();
    let levels = Mutex::new(Vec::new());
    let see = |x: Tensor<4>, level: NoiseLevel, _: &[u32]| {
        levels.lock().unwrap().push(level);
        x.zeros_like()
    };
    let generator = Generator { classifier: Some(&see), ..Generator::new(&blank, diffusion, &device) };
    let request = Request { classes: Some(&[0]), ..Request::new(sample, 0, 1, SHAPE) };
    let mut seen = 0;
    let mut watch = |step: &BatchStep<'_>| {
        seen += 1;
        assert_eq!(step.steps, generator.steps_from(sample, strength));
        ControlFlow::Continue(())
    };
    generator.vary(&request, ENDS[0], strength, &mut watch).unwrap();
    assert_eq!(seen, generator.steps_from(sample, strength));
    (levels.into_inner().unwrap()[0], seen)
}

#[test]
fn a_strength_is_an_amount_of_noise_whatever_the_sampler() {
    let gaussian = |beta_schedule| {
        let schedule = ScheduleConfig { beta_schedule, ..ScheduleConfig::default() };
        FormulationConfig::Gaussian(GaussianConfig { schedule, ..GaussianConfig::default() })
    };
    let cosine = ContinuousTimeConfig { noise_schedule: NoiseSchedule::Cosine, ..Default::default() };
    let rho = |strength: f64| {
        let [low, high] = [0.002_f64, 80.0].map(|sigma| sigma.powf(1.0 / 7.0));
        (low + (high - low) * strength).powf(7.0)
    };
    // The formulation's own time at a strength.
    type Time<'a> = &'a dyn Fn(f64) -> f64;
    let own: [(FormulationConfig, Time<'_>); 5] = [
        (gaussian(BetaSchedule::Sigmoid), &|strength| 1000.0 * strength - 1.0),
        (gaussian(BetaSchedule::Cosine), &|strength| 1000.0 * strength - 1.0),
        (FormulationConfig::ContinuousTime(cosine), &|strength| strength),
        (FormulationConfig::Elucidated(ElucidatedConfig::default()), &rho),
        (FormulationConfig::RectifiedFlow(RectifiedFlowConfig::default()), &|strength| strength),
    ];
    for (config, time) in own {
        let diffusion = Diffusion::new(&config.into()).unwrap();
        for strength in [0.1, 0.6, 0.95] {
            let expected = diffusion.level(time(strength));
            for sampler in [SamplerKind::DpmppSde2m, SamplerKind::Ddim, SamplerKind::Euler, SamplerKind::Heun] {
                let spacings = [None, Some(NoiseLevels::Trained), Some(NoiseLevels::Karras), Some(NoiseLevels::LogSnr)];
                for (noise_levels, steps) in spacings.into_iter().flat_map(|of| [1, 9, 10, 50].map(|steps| (of, steps)))
                {
                    let sampling_timesteps = Some(steps);
                    let sample = SampleConfig { sampler, noise_levels, sampling_timesteps, ..SampleConfig::default() };
                    let (start, taken) = start_of(&diffusion, &sample, strength);
                    let case = format!("{strength} {sample:?} {:?}: {start:?} {expected:?}", diffusion.formulation());
                    assert!((start.log_snr() - expected.log_snr()).abs() < 0.05, "{case}");
                    assert!((1..=steps).contains(&taken), "{case}");
                }
            }
        }
    }
}

#[test]
fn the_steps_below_the_start_are_those_of_the_sampler() {
    let diffusion = Diffusion::new(&GaussianConfig::default().into()).unwrap();
    let trained = |steps| SampleConfig { noise_levels: Some(NoiseLevels::Trained), ..by_steps(steps) };
    for (steps, strength, expected) in [(50, 0.6, 30), (50, 1.0, 50), (1000, 0.25, 250), (10, 0.001, 1), (1, 0.6, 1)] {
        assert_eq!(start_of(&diffusion, &trained(steps), strength).1, expected, "{steps} {strength}");
    }
    // All of the list: from the noisiest level, as when sampling.
    assert_eq!(start_of(&diffusion, &by_steps(50), 1.0), (diffusion.formulation().range()[0], 50));
    let formulation = diffusion.formulation();
    for steps in [1, 2, 9, 10, 50] {
        let levels = NoiseLevels::LogSnr.of(formulation, steps, 7.0);
        for strength in [0.01, 0.3, 0.6, 0.61, 0.62, 0.99] {
            let down = levels_from(start_level(formulation, strength), &levels);
            let gaps: Vec<f64> = down.windows(2).map(|pair| pair[1].log_snr() - pair[0].log_snr()).collect();
            let short = gaps.windows(2).any(|gaps| gaps[1].is_finite() && gaps[0] < 0.49 * gaps[1]);
            assert!(gaps.iter().all(|gap| *gap > 0.0) && !short, "{steps} {strength} {gaps:?}");
        }
    }
}

fn by_steps(steps: usize) -> SampleConfig {
    SampleConfig { sampling_timesteps: Some(steps), ..SampleConfig::default() }
}

/// Pure noise has no finite log-SNR, and other levels are equally far from it.
#[test]
fn a_schedule_may_end_in_pure_noise() {
    let schedule = ScheduleConfig { zero_terminal_snr: true, ..ScheduleConfig::default() };
    let diffusion = Diffusion::new(&GaussianConfig { schedule, ..GaussianConfig::default() }.into()).unwrap();
    let formulation = diffusion.formulation();
    for kind in NoiseLevels::ALL {
        for steps in [1, 2, 50] {
            let levels = kind.of(formulation, steps, 7.0);
            assert_eq!(levels_from(start_level(formulation, 1.0), &levels), levels, "{kind:?} {steps}");
            let down = levels_from(start_level(formulation, 0.999), &levels);
            assert_eq!((down[0].time, down.last()), (998.0, levels.last()), "{kind:?} {steps}");
            assert!(down.windows(2).all(|pair| pair[0].log_snr() < pair[1].log_snr()), "{kind:?} {steps} {down:?}");
        }
    }
}

/// Work on the batches that follow would be lost.
#[test]
fn the_first_batch_that_is_not_finite_is_the_last() {
    let device = Device::flex();
    let blank = Blank { nothing: Param::from_tensor(Tensor::zeros([1], &device)) }.eval();
    let diffusion = Diffusion::new(&GaussianConfig::default().into()).unwrap();
    let sample = SampleConfig { sample_batch_size: 2, ..SampleConfig::default() };
    let mut made = 0;
    let images = Generator::new(&blank, &diffusion, &device).in_batches(&Request::new(&sample, 0, 6, SHAPE), |batch| {
        made += 1;
        Ok::<_, GenerateError>(if made == 2 { batch.init * f64::NAN } else { batch.init })
    });
    assert!(matches!(images, Err(GenerateError::NonFinite { sample: 2 })));
    assert_eq!(made, 2);
}

#[test]
fn images_are_filled_in_by_the_configured_sampler_or_not_at_all() {
    let (diffusion, network) = network();
    let (image, mask) = ([0.25; 4], [0.0; 4]);
    let jumps = Jumps { jump_length: 2, jump_n_sample: 1 };
    let fill = |sample: SampleConfig| {
        let request = Request { classes: Some(&[0]), ..Request::new(&sample, 0, 1, SHAPE) };
        let mut watch = |_: &BatchStep<'_>| ControlFlow::Continue(());
        Generator::new(&network, &diffusion, &Device::flex()).inpaint(&request, &image, &mask, jumps, &mut watch)
    };
    let by = |sampler, eta| SampleConfig { sampler, eta, sampling_timesteps: Some(4), ..SampleConfig::default() };
    let still = fill(by(SamplerKind::Ddim, None)).unwrap();
    let noisy = fill(by(SamplerKind::Ddim, Some(1.0))).unwrap();
    assert_ne!(still, noisy, "eta is heeded");
    assert_ne!(fill(by(SamplerKind::Ddpm, None)).unwrap(), noisy);
    assert!(matches!(fill(by(SamplerKind::Heun, None)), Err(EditError::Sampler { sampler: "heun" })));
}

/// A walk without end would be written down before its first step.
#[test]
fn jumps_that_describe_no_walk_are_refused() {
    let (diffusion, network) = network();
    let sample = SampleConfig { sampling_timesteps: Some(4), ..SampleConfig::default() };
    let request = Request { classes: Some(&[0]), ..Request::new(&sample, 0, 1, SHAPE) };
    for (jump_length, jump_n_sample, key, number) in [
        (0, 10, "jump_length", 0),
        (10, 0, "jump_n_sample", 0),
        (1001, 10, "jump_length", 1001),
        (1, 1_000_000_000, "jump_n_sample", 1_000_000_000),
    ] {
        let jumps = Jumps { jump_length, jump_n_sample };
        let mut watch = |_: &BatchStep<'_>| ControlFlow::Continue(());
        let generator = Generator::new(&network, &diffusion, &Device::flex());
        let error = generator.inpaint(&request, &[0.25; 4], &[0.0; 4], jumps, &mut watch).unwrap_err();
        assert_eq!(error.to_string(), format!("`{key}` must be from 1 to 1000, got {number}"));
    }
    assert_eq!(Jumps::default().validate(), Ok(()));
    assert_eq!(Jumps { jump_length: 1, jump_n_sample: 1 }.validate(), Ok(()));
}

#[test]
fn a_classifier_is_asked_for_the_classes_of_what_it_is_shown() {
    let asked = |x: Tensor<4>, _: NoiseLevel, classes: &[u32]| {
        assert_eq!(x.dims()[0], classes.len());
        x.zeros_like()
    };
    assert_eq!(frames(&[0, 1, 2], 64, Some(&asked)), frames(&[0, 1, 2], 64, None));
}
