//! Every solver over every spacing, with its options, guided and not, in few steps and from networks that have hardly been trained: what
//! comes out is data. That it is the right data, `oracle` and `toy` say.

use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::{
    Diffusion, DiffusionConfig, Examples, FormulationConfig, GuidanceConfig, NoiseLevels, Threshold,
};
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::models::{Calls, Network};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::nn::{Eval, EvalMode};
use denoising_diffusion::sampler::{
    Jumps, Known, PosteriorVariance, RePaint, SampleConfig, SamplerKind, SeededNoise, ddim_inversion, ignore, inpaint,
};
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};

use crate::mlp::{Mlp, SHAPE, Takes, learned_schedule, scheduled};
use crate::points;
use crate::variants::{self, Variant};

/// Every solver with its options over every spacing, where a formulation allows that, in `steps` steps.
pub fn solvers(config: &DiffusionConfig, steps: usize) -> Vec<(String, SampleConfig)> {
    let plain = SamplerKind::ALL.map(|sampler| (sampler.name(), SampleConfig { sampler, ..SampleConfig::default() }));
    let of = |sampler| SampleConfig { sampler, ..SampleConfig::default() };
    let with_options = [
        ("ddim, eta 1", SampleConfig { eta: Some(1.0), ..of(SamplerKind::Ddim) }),
        ("euler_ancestral, eta 0.5", SampleConfig { eta: Some(0.5), ..of(SamplerKind::EulerAncestral) }),
        ("dpmpp_sde_2m, eta 0.5", SampleConfig { eta: Some(0.5), ..of(SamplerKind::DpmppSde2m) }),
        ("dpmpp_sde_3m, eta 0.5", SampleConfig { eta: Some(0.5), ..of(SamplerKind::DpmppSde3m) }),
        ("euler, churn", SampleConfig { s_churn: 4.0, ..of(SamplerKind::Euler) }),
        ("heun, churn", SampleConfig { s_churn: 40.0, ..of(SamplerKind::Heun) }),
        (
            "heun, some churn",
            SampleConfig { s_churn: 10.0, s_tmin: 0.05, s_tmax: Some(50.0), s_noise: 1.003, ..of(SamplerKind::Heun) },
        ),
        ("ddpm, small", SampleConfig { posterior_variance: Some(PosteriorVariance::Small), ..of(SamplerKind::Ddpm) }),
        ("ddpm, large", SampleConfig { posterior_variance: Some(PosteriorVariance::Large), ..of(SamplerKind::Ddpm) }),
        (
            "ddpm, learned",
            SampleConfig { posterior_variance: Some(PosteriorVariance::Learned), ..of(SamplerKind::Ddpm) },
        ),
    ];
    let (mut solvers, diffusion) = (Vec::new(), Diffusion::new(config).unwrap());
    for (name, sample) in plain.into_iter().chain(with_options) {
        for noise_levels in NoiseLevels::ALL {
            let sample =
                SampleConfig { noise_levels: Some(noise_levels), sampling_timesteps: Some(steps), ..sample.clone() };
            // Nothing holds the variance within its bounds that a network gives far away from its data, and nothing holds the estimate there.
            let unbounded =
                sample.posterior_variance == Some(PosteriorVariance::Learned) && !config.shared.auto_normalize;
            if !unbounded && sample.validate(diffusion.formulation()).is_ok() {
                solvers.push((format!("{name}, {}, {steps} steps", noise_levels.name()), sample));
            }
        }
    }
    solvers
}

/// After three steps of training.
fn hardly_trained<M: Network>(model: M, diffusion: &Diffusion) -> Eval<M> {
    let device = Device::flex();
    let train = TrainConfig { lr: 1e-2, ..TrainConfig::default() };
    let mut trainer = Trainer::new(model, diffusion.clone(), train, EmaConfig::default(), &device).unwrap();
    for step in 0..3 {
        let data = points::batch(diffusion, 8 * step, 8, &device);
        trainer.step(vec![Examples { classes: Some(points::classes(8 * step, 8)), ..data.into() }]);
    }
    trainer.model().eval()
}

/// Three samples in two batches.
fn check<M: Network>(name: &str, generator: &Generator<'_, M>, sample: &SampleConfig, classes: Option<&[u32]>) {
    let sample = SampleConfig { sample_batch_size: 2, ..sample.clone() };
    let request = Request { classes, ..Request::new(&sample, 5, 3, SHAPE) };
    let images = generator.generate(&request);
    let images = images.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!((images.shape, images.data.len()), ([3, 1, 1, 2], 6), "{name}");
    // The last estimate lies within the range of data, and is what every solver ends at.
    if generator.diffusion.shared().auto_normalize && generator.guidance.threshold != Threshold::None {
        assert!(images.data.iter().all(|v| (-1e-6..=1.0 + 1e-6).contains(v)), "{name}: {:?}", images.data);
    }
}

fn check_solvers<M: Network>(name: &str, model: M, diffusion: &Diffusion) {
    let model = hardly_trained(model, diffusion);
    let generator = Generator::new(&model, diffusion, &Device::flex());
    for steps in [1, 2, 5] {
        for (solver, sample) in solvers(diffusion.config().unwrap(), steps) {
            check(&format!("{name}, {solver}"), &generator, &sample, None);
        }
    }
}

#[test]
fn every_formulation_by_every_solver_over_every_spacing() {
    for Variant { name, config } in variants::own(12).into_iter().chain(variants::shared(12)) {
        let diffusion = Diffusion::new(&config).unwrap();
        let device = Device::flex().autodiff();
        let model = Mlp::new(&diffusion, Takes::EarlierEstimate, 1, &device);
        match learned_schedule(&diffusion) {
            Some(options) => check_solvers(&name, scheduled(model, options, 1, &device), &diffusion),
            None => check_solvers(&name, model, &diffusion),
        }
    }
}

#[test]
fn every_formulation_guided_in_every_way() {
    let plain = GuidanceConfig { guidance: 3.0, ..GuidanceConfig::default() };
    let ways = [
        ("guided", plain.clone()),
        ("unconditional", GuidanceConfig { guidance: 0.0, ..plain.clone() }),
        ("rescaled", GuidanceConfig { rescale_phi: 0.7, ..plain.clone() }),
        ("projected", GuidanceConfig { keep_parallel: 0.0, ..plain.clone() }),
        ("shortened", GuidanceConfig { guidance_norm_threshold: Some(0.1), ..plain.clone() }),
        ("cfg++", GuidanceConfig { guidance: 0.6, cfg_plus_plus: true, ..plain.clone() }),
        ("in an interval", GuidanceConfig { guidance_interval: Some([0.2, 5.0]), ..plain.clone() }),
        ("dynamic threshold", GuidanceConfig { threshold: Threshold::Dynamic, ..plain.clone() }),
        ("no threshold", GuidanceConfig { threshold: Threshold::None, ..plain }),
    ];
    let device = Device::flex().autodiff();
    for config in FormulationConfig::all().into_iter().map(DiffusionConfig::from) {
        let diffusion = Diffusion::new(&config).unwrap();
        let [model, weak] =
            [1, 2].map(|seed| hardly_trained(Mlp::new(&diffusion, Takes::Classes, seed, &device), &diffusion));
        for (way, guidance) in &ways {
            guidance.validate().unwrap();
            for weak in [None, Some(&weak)] {
                let generator = Generator {
                    guidance: guidance.clone(),
                    weak: weak.map(Calls::from),
                    ..Generator::new(&model, &diffusion, &Device::flex())
                };
                for sampler in SamplerKind::ALL {
                    let name = format!("{}, {way}, {}", config.formulation.name(), sampler.name());
                    let sample = SampleConfig { sampler, sampling_timesteps: Some(4), ..SampleConfig::default() };
                    if sample.check_guidance(guidance).is_err() {
                        assert!(guidance.cfg_plus_plus && !sampler.renoises());
                        continue;
                    }
                    check(&name, &generator, &sample, Some(&[0, 1, 1]));
                }
            }
        }
    }
}

/// Inversion and inpainting.
fn check_edits<M: Network>(name: &str, model: M, diffusion: &Diffusion) {
    let device = Device::flex();
    let finite = |x: &Tensor<4>| host_values(x.clone()).iter().all(|v| v.is_finite());
    let model = hardly_trained(model, diffusion);
    let denoiser = diffusion.denoiser(&model);
    let noise = |first| SeededNoise::new(1, first, &device);
    let x_start = diffusion.normalize(points::batch(diffusion, 0, 2, &device));
    for noise_levels in NoiseLevels::ALL {
        let levels = denoiser.levels(noise_levels, 6, 7.0);
        let inverted = ddim_inversion(&denoiser, x_start.clone(), &levels, &mut ignore).unwrap();
        assert!(finite(&inverted), "{name}");

        let mask = Tensor::<4>::from_floats([[[[1.0, 0.0]]]], &device);
        let known = Known { x_start: x_start.clone(), mask: mask.clone() };
        let repaint = RePaint { jumps: Jumps { jump_length: 2, jump_n_sample: 2 }, ..RePaint::default() };
        let x = noise(0).init([2, 1, 1, 2]) * diffusion.formulation().init_deviation();
        let x = inpaint(&denoiser, x, &levels, &known, &repaint, &mut noise(0), &mut ignore).unwrap();
        assert!(finite(&x), "{name}");
        assert_eq!(host_values(x * mask.clone()), host_values(x_start.clone() * mask), "{name}");
    }
}

#[test]
fn every_formulation_on_data_that_is_given() {
    let device = Device::flex().autodiff();
    for Variant { name, config } in variants::own(12) {
        let diffusion = Diffusion::new(&config).unwrap();
        let model = Mlp::new(&diffusion, Takes::Nothing, 1, &device);
        match learned_schedule(&diffusion) {
            Some(options) => check_edits(&name, scheduled(model, options, 1, &device), &diffusion),
            None => check_edits(&name, model, &diffusion),
        }
    }
}
