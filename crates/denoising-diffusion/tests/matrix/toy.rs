//! Short trainings on points around two places: the loss falls, and samples reach both places.

use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::{
    Diffusion, DiffusionConfig, Examples, FormulationConfig, GuidanceConfig, Prediction,
};
use denoising_diffusion::eval::held_out::held_out_loss;
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::models::Network;
use denoising_diffusion::nn::{Eval, EvalMode};
use denoising_diffusion::sampler::{SampleConfig, SamplerKind};
use denoising_diffusion::train::{EmaConfig, LrSchedule, TrainConfig, Trainer};

use crate::mlp::{Mlp, SHAPE, Takes, learned_schedule, scheduled};
use crate::points;
use crate::variants::{self, Variant};

const BATCH: usize = 128;
/// Steps of a training that is to sample.
const LONG: u64 = 300;
/// Steps of a training whose loss is to fall.
const SHORT: u64 = 60;
const SAMPLES: usize = 256;

struct Training<M> {
    trainer: Trainer<M>,
    device: Device,
}

impl<M: Network> Training<M> {
    fn new(model: M, diffusion: &Diffusion, schedule: LrSchedule) -> Self {
        let device = Device::flex();
        let lr = if schedule == LrSchedule::Cosine { 0.025 } else { 0.004 };
        let train = TrainConfig { batch_size: BATCH, lr, lr_schedule: schedule, steps: LONG, ..TrainConfig::default() };
        let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 0, ema_decay: 0.9, ..EmaConfig::default() };
        Self { trainer: Trainer::new(model, diffusion.clone(), train, ema, &device).unwrap(), device }
    }

    fn step(&mut self) {
        let first = self.trainer.step_count() * BATCH as u64;
        let data = points::batch(self.trainer.diffusion(), first, BATCH, &self.device);
        let report = self.trainer.step(vec![Examples { classes: Some(points::classes(first, BATCH)), ..data.into() }]);
        assert!(report.skipped.is_none(), "{report:?}");
    }

    /// The loss of the present weights on the same points and noise every time.
    fn held_out(&self) -> f64 {
        let data: Tensor<4> = points::batch(self.trainer.diffusion(), 1 << 40, 256, &self.device);
        let model = self.trainer.model().eval();
        held_out_loss(&model, self.trainer.diffusion(), [data].into_iter(), 1, &self.device).unwrap().mean
    }

    /// The mean loss after the last ten of 60 steps over that after the first ten.
    fn fall(mut self) -> f64 {
        let mut losses = Vec::new();
        for step in 0..SHORT {
            self.step();
            if !(10..SHORT - 10).contains(&step) {
                losses.push(self.held_out());
            }
        }
        losses[10..].iter().sum::<f64>() / losses[..10].iter().sum::<f64>()
    }

    /// The averaged network after the long training.
    fn trained(mut self) -> Eval<M> {
        (0..LONG).for_each(|_| self.step());
        self.trainer.ema().eval()
    }
}

/// Shares of samples near each place.
fn shares<M: Network>(generator: &Generator<'_, M>, sample: SampleConfig, classes: Option<&[u32]>) -> [f64; 2] {
    let sample = SampleConfig { sample_batch_size: SAMPLES, ..sample };
    sample.validate(generator.diffusion.formulation()).unwrap();
    let request = Request { classes, ..Request::new(&sample, 4, SAMPLES, SHAPE) };
    let images = generator.generate(&request).unwrap();
    points::shares(generator.diffusion, &images.data)
}

/// 65 % of the points are near one place, 35 % near the other; a short training gets there roughly. Of points anywhere a sixth
/// would be near each.
fn check_places<M: Network>(name: &str, model: M, diffusion: &Diffusion) {
    let model = Training::new(model, diffusion, LrSchedule::Cosine).trained();
    let generator = Generator::new(&model, diffusion, &Device::flex());
    let of = |sampler, steps| SampleConfig { sampler, sampling_timesteps: Some(steps), ..SampleConfig::default() };
    for sample in [of(SamplerKind::Ddpm, 50), of(SamplerKind::Dpmpp2m, 20)] {
        let solver = sample.sampler.name();
        let shares = shares(&generator, sample, None);
        let near = shares.iter().sum::<f64>();
        assert!(near >= 0.65 && shares[1] >= 0.08 && shares[0] > shares[1], "{name}, {solver}: {shares:?}");
    }
}

fn check_fall<M: Network>(name: &str, model: M, diffusion: &Diffusion) {
    let fall = Training::new(model, diffusion, LrSchedule::Constant).fall();
    assert!(fall < 0.95, "{name}: {fall}");
}

/// Where data are predicted under weights of SNR, up to 1e4 in continuous time, so short a training sees the cleanest levels only.
fn with_bounded_weights(mut config: DiffusionConfig) -> DiffusionConfig {
    let prediction = Diffusion::new(&config).unwrap().formulation().prediction();
    if matches!(prediction, Prediction::XStart) && matches!(config.formulation, FormulationConfig::ContinuousTime(_)) {
        config.shared.min_snr_loss_weight = Some(true);
    }
    config
}

fn places_of(variants: impl Iterator<Item = Variant>, takes: Takes) {
    let device = Device::flex().autodiff();
    for Variant { name, config } in variants {
        let diffusion = Diffusion::new(&with_bounded_weights(config)).unwrap();
        let model = Mlp::new(&diffusion, takes, 1, &device);
        match learned_schedule(&diffusion) {
            Some(options) => check_places(&name, scheduled(model, options, 1, &device), &diffusion),
            None => check_places(&name, model, &diffusion),
        }
    }
}

fn in_discrete_time(variant: &Variant) -> bool {
    ["gaussian", "learned_variance", "weighted_objective"].contains(&variant.config.formulation.name())
}

#[test]
fn samples_reach_both_places_in_discrete_time() {
    places_of(variants::own(100).into_iter().filter(in_discrete_time), Takes::Nothing);
}

#[test]
fn samples_reach_both_places_in_continuous_time() {
    places_of(variants::own(100).into_iter().filter(|variant| !in_discrete_time(variant)), Takes::Nothing);
}

/// Not of immiscible diffusion: it trains on noise that was chosen, and losses are measured on noise that was not.
#[test]
fn the_loss_falls() {
    let device = Device::flex().autodiff();
    let variants = variants::own(100).into_iter().chain(variants::shared(100));
    for Variant { name, config } in variants.filter(|variant| !variant.config.shared.immiscible) {
        let diffusion = Diffusion::new(&config).unwrap();
        let model = Mlp::new(&diffusion, Takes::Nothing, 1, &device);
        match learned_schedule(&diffusion) {
            Some(options) => check_fall(&name, scheduled(model, options, 1, &device), &diffusion),
            None => check_fall(&name, model, &diffusion),
        }
    }
}

/// An earlier estimate that is given in training is given in sampling, too, and means the same there.
#[test]
fn samples_from_an_earlier_estimate_reach_both_places() {
    places_of(variants::own(100).into_iter(), Takes::EarlierEstimate);
}

/// Samples of a class lie where that class lies.
#[test]
fn guided_samples_lie_where_they_are_asked_to() {
    let device = Device::flex().autodiff();
    for config in FormulationConfig::all().map(DiffusionConfig::from) {
        let diffusion = Diffusion::new(&config).unwrap();
        let model = Mlp::new(&diffusion, Takes::Classes, 1, &device);
        let model = Training::new(model, &diffusion, LrSchedule::Cosine).trained();
        for guidance in [1.0, 1.5] {
            let guidance = GuidanceConfig { guidance, ..GuidanceConfig::default() };
            let generator = Generator { guidance, ..Generator::new(&model, &diffusion, &Device::flex()) };
            for class in [0, 1] {
                let sample = SampleConfig { sampling_timesteps: Some(20), ..SampleConfig::default() };
                let shares = shares(&generator, sample, Some(&[class; SAMPLES]));
                assert!(shares[class as usize] > 0.8, "{}, {class}: {shares:?}", config.formulation.name());
            }
        }
    }
}
