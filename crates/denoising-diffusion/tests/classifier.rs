//! Classifier guidance: the gradient, the training of the classifier, its file, and where guided samples land.

use std::sync::{Arc, Mutex};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion::classifier_file::{ClassifierCard, ClassifierFile, ClassifierFileError};
use denoising_diffusion::data::{DataConfig, Dataset, Flip, ImageShape};
use denoising_diffusion::diffusion::{
    ClassifierGuidance, Diffusion, DiffusionConfig, ElucidatedConfig, FormulationConfig, GaussianConfig,
    LearnedVarianceConfig, NoiseLevel, Objective, ScheduleConfig, SharedConfig,
};
use denoising_diffusion::eval::accuracy::{HeldOutAccuracy, held_out_accuracy};
use denoising_diffusion::generate::{ClassifierGradient, Generator, Request};
use denoising_diffusion::model_file::{ModelFile, ModelFileError};
use denoising_diffusion::models::{Classifier, ClassifierConfig, Network, NetworkInput, PerStage};
use denoising_diffusion::nn::params::{host_values, to_state_dict};
use denoising_diffusion::nn::{EvalMode, Init};
use denoising_diffusion::noise::{Purpose, Stream, normal_batch};
use denoising_diffusion::sampler::{SampleConfig, SamplerKind};
use denoising_diffusion::train::{
    ClassifierEvent, ClassifierSetup, ClassifierTrainConfig, ClassifierTrainError, ClassifierTrainer, EmaConfig,
    LrSchedule, Outcome, StopSignal, train_classifier,
};

/// Dropout draws from Burn's process-global generator; tests that train take turns.
static GENERATOR: Mutex<()> = Mutex::new(());

const SHAPE: ImageShape = ImageShape { channels: 1, height: 2, width: 2 };

fn tiny(num_classes: usize, dim_mults: &[usize]) -> ClassifierConfig {
    ClassifierConfig {
        dim: 8,
        dim_mults: dim_mults.to_vec(),
        attn_heads: PerStage::All(1),
        attn_dim_head: PerStage::All(8),
        channels: 1,
        num_classes,
        ..ClassifierConfig::default()
    }
}

fn gaussian(timesteps: usize, objective: Objective) -> Diffusion {
    let schedule = ScheduleConfig { timesteps, ..ScheduleConfig::default() };
    Diffusion::new(&GaussianConfig { schedule, objective, ..Default::default() }.into()).unwrap()
}

fn elucidated() -> Diffusion {
    Diffusion::new(&FormulationConfig::Elucidated(ElucidatedConfig::default()).into()).unwrap()
}

fn bits(model: &impl Module) -> Vec<u32> {
    to_state_dict(model).iter().flat_map(|(_, tensor)| tensor.values.iter().map(|v| v.to_bits())).collect()
}

/// The gradient against central differences of `ln p(y | x)`, pixel by pixel, with the scale of the input that EDM has. Dropout is off
/// and nothing is changed.
#[test]
fn the_gradient_is_that_of_the_log_probability() {
    let (device, tracked) = (Device::flex(), Device::flex().autodiff());
    let config = ClassifierConfig { dropout: 0.5, ..tiny(3, &[1, 2]) };
    let classifier = Classifier::new(&config, &mut Init::new(2, &tracked)).unwrap();
    let before = bits(&classifier);
    for (diffusion, time) in [(gaussian(100, Objective::PredV), 40.0), (elucidated(), 0.8)] {
        let guidance = ClassifierGuidance { classifier: classifier.eval(), diffusion, scale: 3.0 };
        let level = guidance.diffusion.level(time);
        let (classes, h) = ([2, 0, 3], 2e-2);
        let x = normal_batch::<4>(5, Purpose::SampleInit, 0, 0, [3, 1, 4, 6], &device);
        let gradient = guidance.gradient(x.clone(), level, &classes);
        assert!(!gradient.is_autodiff());
        let gradient = host_values(gradient);
        assert_eq!(gradient, host_values(guidance.gradient(x.clone(), level, &classes)));
        let largest = gradient.iter().fold(0.0_f32, |max, g| max.max(g.abs()));
        assert!(largest > 1e-3, "{largest}");
        let log_p = |x: Vec<f32>, i: usize| {
            let x = Tensor::from_data(TensorData::new(x, [3, 1, 4, 6]), &device);
            f64::from(host_values(guidance.log_probabilities(x, level))[3 * i + classes[i] as usize])
        };
        for pixel in [0, 7, 23] {
            for i in 0..2 {
                let moved = |by: f32| {
                    let mut x = host_values(x.clone());
                    x[24 * i + pixel] += by;
                    log_p(x, i)
                };
                let expected = 3.0 * (moved(h) - moved(-h)) / (2.0 * f64::from(h));
                let got = f64::from(gradient[24 * i + pixel]);
                assert!((got - expected).abs() < 0.02 * f64::from(largest) + 1e-4, "{got} {expected} {largest}");
            }
            assert_eq!(gradient[48 + pixel], 0.0, "a class that the classifier does not have pushes nowhere");
        }
    }
    assert_eq!(bits(&classifier), before);
}

/// Two classes of images of one colour, light and dark, with a little noise: data in [0, 1].
const LIGHT: f64 = 0.8;
const SPREAD: f64 = 0.05;

fn two_colours(first: u64, b: usize) -> (Tensor<4>, Vec<u32>) {
    let classes: Vec<u32> =
        (0..b as u64).map(|i| Stream::new(9, Purpose::Evaluation, first + i, 0).below(2) as u32).collect();
    let mean: Vec<f32> = classes.iter().map(|&class| if class == 0 { LIGHT } else { 1.0 - LIGHT } as f32).collect();
    let mean = Tensor::<4>::from_data(TensorData::new(mean, [b, 1, 1, 1]), &Device::flex());
    let noise = normal_batch::<4>(9, Purpose::Evaluation, first, 1, [b, 1, 2, 2], &Device::flex());
    (noise * SPREAD + mean, classes)
}

/// The exact estimate of clean data for [`two_colours`], which on the network's scale are Gaussians around m and -m.
#[derive(Module, Debug)]
struct TwoColours {
    #[module(skip)]
    levels: Vec<[f64; 2]>,
}

const M: f64 = 2.0 * LIGHT - 1.0;
const S: f64 = 2.0 * SPREAD;

impl TwoColours {
    fn new(diffusion: &Diffusion) -> Self {
        let tables = diffusion.tables().unwrap();
        let level = |t: usize| diffusion.level(t as f64);
        Self { levels: (0..tables.timesteps()).map(|t| [level(t).alpha, level(t).sigma]).collect() }
    }
}

fn variance(alpha: f64, sigma: f64) -> f64 {
    (alpha * S).powi(2) + sigma.powi(2)
}

impl Network for TwoColours {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let [alpha, sigma] = self.levels[host_values(input.time)[0].round() as usize];
        let (x, v) = (input.x, variance(alpha, sigma));
        let sum = x.clone().sum_dim(1).sum_dim(2).sum_dim(3);
        let mean = (sum * (alpha * M / v)).tanh() * M; // [b, 1, 1, 1]
        (x - mean.clone() * alpha) * (alpha * S.powi(2) / v) + mean
    }

    fn channels(&self) -> usize {
        1
    }
}

fn samples(diffusion: &Diffusion, classifier: Option<&ClassifierGradient<'_>>, class: u32) -> Vec<f64> {
    let sample = SampleConfig {
        sampler: SamplerKind::Ddim,
        sampling_timesteps: Some(25),
        sample_batch_size: 24,
        ..SampleConfig::default()
    };
    let classes = vec![class; 64];
    let request = Request { classes: classifier.map(|_| &classes[..]), ..Request::new(&sample, 4, 64, [1, 2, 2]) };
    let model = TwoColours::new(diffusion).eval();
    let generator = Generator { classifier, ..Generator::new(&model, diffusion, &Device::flex()) };
    let images = generator.generate(&request).unwrap();
    images.data.chunks(4).map(|image| image.iter().map(|&v| f64::from(v)).sum::<f64>() / 4.0).collect()
}

fn share_of_light(samples: &[f64]) -> f64 {
    samples.iter().filter(|&&mean| mean > 0.5).count() as f64 / samples.len() as f64
}

/// With the exact classifier at scale 1 the samples are those of the class: Bayes' rule.
#[test]
fn the_exact_classifier_makes_the_distribution_of_its_class() {
    let diffusion = gaussian(50, Objective::PredX0);
    let exact = |x: Tensor<4>, level: NoiseLevel, classes: &[u32]| {
        // ln sigmoid(z) with z = ln p(light | x) - ln p(dark | x).
        let slope = 2.0 * level.alpha * M / variance(level.alpha, level.sigma);
        let sign: Vec<f32> = classes.iter().map(|&class| if class == 0 { 1.0 } else { -1.0 }).collect();
        let sign = Tensor::<4>::from_data(TensorData::new(sign, [classes.len(), 1, 1, 1]), &x.device());
        let z = x.clone().sum_dim(1).sum_dim(2).sum_dim(3) * sign.clone() * slope;
        let one_minus_p = (z.exp() + 1.0).recip();
        x.ones_like() * one_minus_p * sign * slope
    };
    let unguided = samples(&diffusion, None, 0);
    assert!((0.3..0.7).contains(&share_of_light(&unguided)), "{}", share_of_light(&unguided));
    for (class, expected) in [(0, LIGHT), (1, 1.0 - LIGHT)] {
        let guided = samples(&diffusion, Some(&exact), class);
        assert!(guided.iter().all(|mean| (mean - expected).abs() < 0.15), "{guided:?}");
        let mean = guided.iter().sum::<f64>() / guided.len() as f64;
        assert!((mean - expected).abs() < 0.02, "{mean}");
    }
}

fn trainer(diffusion: Diffusion, config: &ClassifierConfig, steps: u64) -> ClassifierTrainer {
    let device = Device::flex();
    let train = ClassifierTrainConfig {
        steps,
        batch_size: 32,
        lr: 3e-3,
        lr_schedule: LrSchedule::Cosine,
        warmup_steps: 10,
        seed: 1,
        ema: EmaConfig { ema_update_every: 1, ema_update_after_step: 20, ..EmaConfig::default() },
        ..ClassifierTrainConfig::default()
    };
    let model = Classifier::new(config, &mut Init::new(1, &device.clone().autodiff())).unwrap();
    ClassifierTrainer::new(model, diffusion, train, &device).unwrap()
}

fn train(trainer: &mut ClassifierTrainer) -> Vec<f64> {
    let steps = trainer.config().steps;
    (trainer.step_count()..steps)
        .map(|step| {
            let (images, classes) = two_colours(32 * step, 32);
            trainer.step(images, &classes).unwrap().loss
        })
        .collect()
}

fn accuracy(trainer: &ClassifierTrainer) -> HeldOutAccuracy {
    let batches = (0..4).map(|k| two_colours(1_000_000 + 32 * k, 32));
    held_out_accuracy(&trainer.ema().eval(), trainer.diffusion(), batches, 0, &Device::flex()).unwrap()
}

#[test]
fn a_trained_classifier_guides_an_unconditional_network() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let diffusion = gaussian(50, Objective::PredX0);
    let mut trainer = trainer(diffusion.clone(), &tiny(2, &[1]), 160);
    let before = accuracy(&trainer);
    train(&mut trainer);
    let after = accuracy(&trainer);
    assert!(after.loss < 0.5 * before.loss && after.images == 128, "{before:?} {after:?}");
    assert!(after.accuracy_by_quarter[0] > 0.99 && after.accuracy_by_quarter[3] < 0.95, "{after:?}");

    let guidance = ClassifierGuidance { classifier: trainer.ema().eval(), diffusion: diffusion.clone(), scale: 1.5 };
    let gradient = |x: Tensor<4>, level: NoiseLevel, classes: &[u32]| guidance.gradient(x, level, classes);
    let unguided = share_of_light(&samples(&diffusion, None, 0));
    let [light, dark] = [0, 1].map(|class| share_of_light(&samples(&diffusion, Some(&gradient), class)));
    assert!((0.3..0.7).contains(&unguided), "{unguided}");
    assert!(light > 0.95 && dark < 0.05, "{light} {dark}");
}

/// The same bits again, dropout and all; another seed gives others; EDM's levels and scale of the input train as well.
#[test]
fn training_is_reproducible() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let config = ClassifierConfig { dropout: 0.2, ..tiny(2, &[1]) };
    let run = |steps| {
        let mut trainer = trainer(elucidated(), &config, steps);
        (train(&mut trainer), bits(&*trainer.ema().eval()))
    };
    let (losses, weights) = run(25);
    assert!(losses[20..].iter().sum::<f64>() < losses[..5].iter().sum::<f64>(), "{losses:?}");
    assert_eq!(run(25), (losses, weights));
}

#[test]
fn what_is_not_finite_is_skipped_and_ten_in_a_row_end_the_training() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let mut trainer = trainer(gaussian(50, Objective::PredV), &tiny(2, &[1]), 20);
    let before = bits(trainer.model());
    let (images, classes) = two_colours(0, 32);
    for _ in 0..9 {
        assert!(trainer.step(images.clone() * f32::NAN, &classes).unwrap().skipped.is_some());
    }
    assert_eq!(bits(trainer.model()), before);
    let error = trainer.step(images * f32::NAN, &classes).unwrap_err().to_string();
    assert!(error.contains("10 steps in a row"), "{error}");
}

fn card(diffusion: &Diffusion, classifier: ClassifierConfig, image: ImageShape) -> ClassifierCard {
    ClassifierCard {
        version: "0".to_string(),
        class_names: (0..classifier.num_classes).map(|class| class.to_string()).collect(),
        classifier,
        diffusion: diffusion.config().unwrap().clone(),
        betas: None,
        image,
        step: 0,
        held_out: None,
    }
}

#[test]
fn a_file_is_complete_and_refuses_what_it_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let (path, device, diffusion) =
        (folder.path().join("c.safetensors"), Device::flex(), gaussian(50, Objective::PredV));
    let config = tiny(3, &[1, 2]);
    let classifier = Classifier::new(&config, &mut Init::new(2, &device)).unwrap();
    let file = ClassifierFile { card: card(&diffusion, config, SHAPE), state: to_state_dict(&classifier) };
    file.write(&path).unwrap();
    let read = ClassifierFile::read(&path).unwrap();
    assert_eq!(read.card, file.card);
    assert_eq!(bits(&*read.classifier(&device).unwrap()), bits(&classifier));
    assert!(matches!(ModelFile::read(&path), Err(ModelFileError::Classifier { .. })));

    // Cards are checked before anything asks them for sizes.
    let without_stages = ClassifierConfig { dim_mults: vec![], ..file.card.classifier.clone() };
    let without_rows = ImageShape { height: 0, ..SHAPE };
    for (card, problem) in [
        (ClassifierCard { classifier: without_stages, ..file.card.clone() }, "does not describe a valid classifier"),
        (ClassifierCard { image: without_rows, ..file.card.clone() }, "images without values"),
    ] {
        let path = folder.path().join("damaged.safetensors");
        ClassifierFile { card, state: file.state.clone() }.write(&path).unwrap();
        let error = ClassifierFile::read(&path).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains("damaged.safetensors"), "{error}");
    }

    // What the network predicts is no matter; what it is shown is.
    assert_eq!(read.guidance(&gaussian(50, Objective::PredX0), SHAPE, 2.0, &device).unwrap().scale, 2.0);
    let other = read.guidance(&gaussian(60, Objective::PredV), SHAPE, 1.0, &device).unwrap_err().to_string();
    assert!(
        other.contains("timesteps = 50") && other.contains("timesteps = 60") && !other.contains("objective"),
        "{other}"
    );
    let wide = ImageShape { width: 4, ..SHAPE };
    let wrong = read.guidance(&diffusion, wide, 1.0, &device);
    assert!(matches!(wrong, Err(ClassifierFileError::Shape { expected, .. }) if expected == wide));

    let names = ClassifierFile { card: ClassifierCard { class_names: vec![], ..read.card.clone() }, state: read.state };
    names.write(&path).unwrap();
    assert!(matches!(ClassifierFile::read(&path), Err(ClassifierFileError::ClassNames { names: 0, num_classes: 3 })));
}

/// An option that has its default is not in the card; a schedule without a name is in the card as numbers.
#[test]
fn what_differs_between_a_classifier_and_a_network_is_told_of_both() {
    let device = Device::flex();
    let of = |config: &DiffusionConfig, betas: Option<Vec<f64>>| Diffusion::with_betas(config, betas).unwrap();
    let schedule = |sigmoid_start| ScheduleConfig { timesteps: 50, sigmoid_start, ..ScheduleConfig::default() };
    let gaussian = |schedule, objective, min_snr_gamma| DiffusionConfig {
        shared: SharedConfig { min_snr_gamma, ..SharedConfig::default() },
        ..DiffusionConfig::from(GaussianConfig { schedule, objective, ..GaussianConfig::default() })
    };
    let plain = gaussian(schedule(None), Objective::PredV, 5.0);
    let cut_off = gaussian(schedule(Some(-2.0)), Objective::PredX0, 3.0);
    let elucidated: DiffusionConfig = FormulationConfig::Elucidated(ElucidatedConfig::default()).into();
    let betas = || Some(vec![0.02; 50]);
    let config = tiny(3, &[1]);
    let classifier = Classifier::new(&config, &mut Init::new(0, &device)).unwrap();
    for (network, classifier_of, expected) in [
        ((&plain, None), (&cut_off, None), "it has sigmoid_start = -2.0, the network has sigmoid_start = default"),
        ((&cut_off, None), (&plain, None), "it has sigmoid_start = default, the network has sigmoid_start = -2.0"),
        (
            (&plain, None),
            (&plain, betas()),
            "it has a schedule without a name, the network has beta_schedule = \"sigmoid\"",
        ),
        (
            (&plain, betas()),
            (&cut_off, None),
            "it has beta_schedule = \"sigmoid\", sigmoid_start = -2.0, the network has a schedule without a name",
        ),
        (
            (&elucidated, None),
            (&plain, None),
            "it has diffusion = \"gaussian\", timesteps = 50, beta_schedule = \"sigmoid\", zero_terminal_snr = false, the network has \
             diffusion = \"elucidated\", sigma_data = 0.5",
        ),
    ] {
        let card = ClassifierCard {
            diffusion: classifier_of.0.clone(),
            betas: classifier_of.1,
            ..card(&of(classifier_of.0, None), config.clone(), SHAPE)
        };
        let file = ClassifierFile { card, state: to_state_dict(&classifier) };
        let error = file.guidance(&of(network.0, network.1), SHAPE, 1.0, &device).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}\n{expected}");
    }
}

#[test]
fn formulations_that_show_the_same_are_told_from_others() {
    let of = |formulation| Diffusion::new(&DiffusionConfig::from(formulation)).unwrap();
    let all = FormulationConfig::all().map(of);
    // Three readings of the output under one table, two schedules over the same levels: the network is told log-SNR in both.
    let alike = |i: usize| if i < 3 { 0 } else { i.max(4) };
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate() {
            let same = alike(i) == alike(j);
            assert_eq!(a.shows_the_same_as(b), same, "{:?} {:?}", a.config(), b.config());
        }
    }
    let other = ElucidatedConfig { sigma_data: 0.6, ..ElucidatedConfig::default() };
    assert!(!of(FormulationConfig::Elucidated(other)).shows_the_same_as(&elucidated()));
    let other = ElucidatedConfig { p_mean: 0.0, ..ElucidatedConfig::default() };
    assert!(of(FormulationConfig::Elucidated(other)).shows_the_same_as(&elucidated()));
    let schedule = ScheduleConfig { timesteps: 50, ..ScheduleConfig::default() };
    let variance = LearnedVarianceConfig { schedule, ..LearnedVarianceConfig::default() };
    assert!(of(FormulationConfig::LearnedVariance(variance)).shows_the_same_as(&gaussian(50, Objective::PredV)));
}

fn digits(steps: u64, folder: &std::path::Path) -> (ClassifierTrainer, ClassifierSetup) {
    let data = Arc::new(Dataset::open(&DataConfig::default()).unwrap());
    let (train, held_out) = data.split_held_out(0.05, 0);
    let (diffusion, config) = (gaussian(100, Objective::PredV), tiny(10, &[1]));
    let setup = ClassifierSetup {
        file: folder.join("classifier.safetensors"),
        card: card(&diffusion, config.clone(), data.shape()),
        train,
        held_out,
        flip: Flip::Auto,
        workers: 1,
    };
    (trainer(diffusion, &config, steps), setup)
}

#[test]
fn training_from_data_measures_and_writes_and_stops_when_asked() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let (mut trainer, setup) = digits(4, folder.path());
    let (mut seen, stop) = (Vec::new(), StopSignal::default());
    let (outcome, card) = train_classifier(&mut trainer, &setup, &stop, &mut |event| {
        seen.push(match event {
            ClassifierEvent::Step { report, .. } => format!("step {}", report.step),
            ClassifierEvent::HeldOut { step, .. } => format!("held-out {step}"),
            ClassifierEvent::Written { step, .. } => format!("written {step}"),
        });
    })
    .unwrap();
    let expected = (1..=4).flat_map(|k| ["step", "held-out", "written"].map(|what| format!("{what} {k}")));
    assert_eq!(seen, expected.collect::<Vec<_>>());
    let file = ClassifierFile::read(&setup.file).unwrap();
    assert_eq!((outcome, &file.card), (Outcome::Finished, &card));
    assert_eq!((card.step, card.held_out.unwrap().images), (4, 90));
    assert_eq!(bits(&*file.classifier(&Device::flex()).unwrap()), bits(&*trainer.ema().eval()));

    let (mut trainer, setup) = digits(30, folder.path());
    let (outcome, card) = train_classifier(&mut trainer, &setup, &stop, &mut |event| {
        if let ClassifierEvent::Step { report, .. } = event
            && report.step == 2
        {
            stop.request();
        }
    })
    .unwrap();
    assert_eq!((outcome, card.step, card.held_out), (Outcome::Stopped, 2, None));
    assert_eq!(ClassifierFile::read(&setup.file).unwrap().card, card);

    let (mut trainer, setup) = digits(4, folder.path());
    trainer = ClassifierTrainer::new(
        Classifier::new(&tiny(3, &[1]), &mut Init::new(0, &Device::flex().autodiff())).unwrap(),
        trainer.diffusion().clone(),
        trainer.config().clone(),
        &Device::flex(),
    )
    .unwrap();
    let wrong = train_classifier(&mut trainer, &setup, &StopSignal::default(), &mut |_| {});
    assert!(matches!(wrong, Err(ClassifierTrainError::Classes { expected: 3, got: 10 })));
}
