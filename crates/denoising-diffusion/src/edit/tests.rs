//! Inverted images are reproduced, whatever their classes and however many are made at once.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::*;
use crate::diffusion::{Diffusion, GaussianConfig, GuidanceConfig, Objective, Threshold};
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
    let images = generator.interpolate(&request, ENDS, Between::Inverted, &mut |_| std::ops::ControlFlow::Continue(()));
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

#[test]
fn images_are_filled_in_by_the_configured_sampler_or_not_at_all() {
    let (diffusion, network) = network();
    let (image, mask) = ([0.25; 4], [0.0; 4]);
    let jumps = Jumps { jump_length: 2, jump_n_sample: 1 };
    let fill = |sample: SampleConfig| {
        let request = Request { classes: Some(&[0]), ..Request::new(&sample, 0, 1, SHAPE) };
        let mut watch = |_: &BatchStep<'_>| std::ops::ControlFlow::Continue(());
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
        let mut watch = |_: &BatchStep<'_>| std::ops::ControlFlow::Continue(());
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
