//! A run that is stopped, saved and resumed, in one process.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::data::{DataConfig, Dataset, ImageBatch};
use crate::diffusion::{Diffusion, DiffusionConfig, Threshold};
use crate::eval::config::EvaluateConfig;
use crate::eval::extract::FeatureStore;
use crate::eval::metric::Metric;
use crate::models::{NetworkConfig, Unet, UnetConfig};
use crate::nn::Init;
use crate::nn::params::{load_state_dict, to_state_dict};
use crate::report::log;
use crate::sampler::SamplerKind;
use crate::train::{EmaConfig, EvaluateSetup, Repair, TrainConfig};

fn parts(dir: &Path, settings: &[(&str, &str)]) -> (Trainer<Unet>, RunSetup) {
    let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
    let device = Device::flex();
    let model = Unet::new(&unet, &mut Init::new(1, &device.clone().autodiff())).unwrap();
    let config = TrainConfig { steps: 4, batch_size: 2, save_every: 2, ..TrainConfig::default() };
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let trainer = Trainer::new(model, diffusion, config, EmaConfig::default(), &device).unwrap();
    let digits = DataConfig { path: Some("digits".into()), ..DataConfig::default() };
    let train = Subset::from(Arc::new(Dataset::open(&digits).unwrap()));
    let card = ModelCard::for_data(NetworkConfig::Unet(unet), DiffusionConfig::default(), train.dataset());
    let setup = RunSetup {
        dir: dir.to_path_buf(),
        config_toml: String::new(),
        settings: settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        card,
        sample: SampleConfig { num_samples: 1, sampling_timesteps: Some(1), ..SampleConfig::default() },
        guidance: GuidanceConfig::default(),
        snapshot_every: 1,
        evaluate: None,
        held_out: train.spread(0),
        train,
        flip: Flip::Off,
        augment: 0.0,
        workers: 1,
        device_name: "cpu".into(),
    };
    (trainer, setup)
}

fn create(dir: &Path) -> Run<Unet> {
    let (trainer, setup) = parts(dir, &[]);
    Run::create(trainer, setup).unwrap()
}

fn resume(dir: &Path, settings: &[(&str, &str)]) -> Result<(Run<Unet>, Vec<Repair>), RunError> {
    let (trainer, setup) = parts(dir, settings);
    Run::resume(trainer, setup)
}

/// Runs until the first checkpoint, and puts a file into it.
fn stopped_at_its_first_checkpoint(dir: &Path) -> PathBuf {
    let stop = StopSignal::default();
    let outcome = create(dir).train(&stop, &mut |event| {
        if let (Event::Checkpoint { path, .. }, false) = (event, stop.is_requested()) {
            fs::write(path.join("mine"), "").unwrap();
            stop.request();
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Stopped);
    dir.join("checkpoints/step-00000002/mine")
}

#[test]
fn a_step_that_is_saved_is_not_written_again() {
    let place = tempfile::tempdir().unwrap();
    let mine = stopped_at_its_first_checkpoint(place.path());
    assert!(mine.exists(), "stopped where a checkpoint was due");
    let stop = StopSignal::default();
    stop.request();
    let (mut run, repairs) = resume(place.path(), &[]).unwrap();
    assert!(repairs.is_empty());
    assert_eq!(run.train(&stop, &mut |_| {}).unwrap(), Outcome::Stopped);
    assert!(mine.exists(), "stopped before a step was made");
    assert_eq!(run.trainer().step_count(), 2);
}

#[test]
fn what_cannot_be_saved_after_an_error_is_told_with_its_cause() {
    let place = tempfile::tempdir().unwrap();
    let mut run = create(place.path());
    // These files block the creation of folders.
    for name in ["samples", "checkpoints"] {
        fs::write(place.path().join(name), "").unwrap();
    }
    let mut told = Vec::new();
    let outcome = run.train(&StopSignal::default(), &mut |event| {
        if let Event::NotSaved { why } = event {
            told.push((why.to_string(), std::error::Error::source(why).map(ToString::to_string)));
        }
    });
    assert!(matches!(outcome, Err(RunError::Report(_))), "{outcome:?}");
    assert!(matches!(&told[..], [(_, Some(_))]), "{told:?}");
}

/// Its checkpoints would replace the other's, and its weights would pass for the other's.
#[cfg(unix)]
#[test]
fn a_run_whose_folder_was_moved_leaves_the_one_in_its_place_alone() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("run");
    let mut old = create(&dir);
    fs::rename(&dir, place.path().join("moved")).unwrap();
    let gone = |outcome| matches!(outcome, Err(RunError::Gone { path }) if path == dir);
    assert!(gone(old.train(&StopSignal::default(), &mut |_| {})));
    assert!(!dir.exists());
    let _new = create(&dir);
    assert!(gone(old.train(&StopSignal::default(), &mut |_| {})));
    assert!(!dir.join("checkpoints").exists());
}

#[test]
fn a_run_folder_is_one_runs() {
    let place = tempfile::tempdir().unwrap();
    let run = create(&place.path().join("run"));
    assert!(matches!(resume(&place.path().join("run"), &[]), Err(RunError::InUse { .. })));
    drop(run);
    assert!(resume(&place.path().join("run"), &[]).is_ok());
}

#[test]
fn settings_are_held_against_those_of_the_checkpoint() {
    let place = tempfile::tempdir().unwrap();
    let mine = stopped_at_its_first_checkpoint(place.path());
    // The checkpoint has no settings, like those of earlier versions.
    let (mut run, _) = resume(place.path(), &[("lr", "1"), ("seed", "2")]).unwrap();
    assert_eq!(run.train(&StopSignal::default(), &mut |_| {}).unwrap(), Outcome::Finished);
    drop(run);
    assert!(mine.exists());
    match resume(place.path(), &[("lr", "1"), ("seed", "3")]).unwrap_err() {
        RunError::OtherSetting { key, expected, got } => assert_eq!([key, expected, got], ["seed", "2", "3"]),
        error => panic!("{error}"),
    }
    let added = [("lr", "1"), ("seed", "2"), ("added", "3")];
    assert!(matches!(resume(place.path(), &added).unwrap_err(), RunError::OtherSetting { key, .. } if key == "added"));
    // Another version may have other keys.
    let (trainer, mut setup) = parts(place.path(), &added);
    setup.card.version = "2".into();
    assert!(Run::resume(trainer, setup).is_ok());
}

/// Parts of a run on a folder of eight images, which are read when they are needed; a step has two batches.
fn parts_on_images(dir: &Path, images: &Path) -> (Trainer<Unet>, RunSetup) {
    let (old, setup) = parts(dir, &[]);
    let config = TrainConfig { accumulate: 2, sample_every: Some(0), ..old.config().clone() };
    let trainer =
        Trainer::new(old.model().clone(), old.diffusion().clone(), config, EmaConfig::default(), &old.device())
            .unwrap();
    let data = DataConfig { path: Some(images.to_path_buf()), cache_mib: 0, ..DataConfig::default() };
    let train = Subset::from(Arc::new(Dataset::open(&data).unwrap()));
    (trainer, RunSetup { held_out: train.spread(0), train, ..setup })
}

#[test]
fn training_that_goes_on_after_an_error_uses_the_batches_that_it_would_have_used() {
    let place = tempfile::tempdir().unwrap();
    let images = place.path().join("images");
    fs::create_dir(&images).unwrap();
    for i in 0..8_u8 {
        image::GrayImage::from_pixel(4, 4, image::Luma([30 * i])).save(images.join(format!("{i}.png"))).unwrap();
    }
    let (trainer, setup) = parts_on_images(&place.path().join("whole"), &images);
    let mut whole = Run::create(trainer, setup).unwrap();
    assert_eq!(whole.train(&StopSignal::default(), &mut |_| {}).unwrap(), Outcome::Finished);

    let (trainer, setup) = parts_on_images(&place.path().join("interrupted"), &images);
    let (gone, file) = (place.path().join("gone"), images.join("5.png"));
    fs::rename(&file, &gone).unwrap();
    let mut run = Run::create(trainer, setup).unwrap();
    assert!(matches!(run.train(&StopSignal::default(), &mut |_| {}), Err(RunError::Data(_))));
    fs::rename(&gone, &file).unwrap();
    assert_eq!(run.train(&StopSignal::default(), &mut |_| {}).unwrap(), Outcome::Finished);
    assert!(to_state_dict(run.trainer().model()) == to_state_dict(whole.trainer().model()));
}

/// The log without what is measured.
fn log_of(dir: &Path) -> Vec<serde_json::Value> {
    let mut records = log::read(dir.join("log.jsonl")).unwrap();
    for record in &mut records {
        for measured in ["images_per_s", "seconds"] {
            record.as_object_mut().unwrap().remove(measured);
        }
    }
    records
}

#[test]
fn a_stop_abandons_the_held_out_loss_which_a_resumed_run_measures() {
    let place = tempfile::tempdir().unwrap();
    let parts = |name: &str| {
        let (trainer, setup) = parts(&place.path().join(name), &[]);
        (trainer, RunSetup { held_out: setup.train.spread(6), ..setup })
    };
    let measured = |run: &mut Run<Unet>, stop_at: Option<u64>| {
        let (stop, mut measured) = (StopSignal::default(), Vec::new());
        let outcome = run.train(&stop, &mut |event| match event {
            Event::Step { report, .. } if Some(report.step) == stop_at => stop.request(),
            Event::HeldOut { step, .. } => measured.push(step),
            _ => {}
        });
        (outcome.unwrap(), measured)
    };
    let (trainer, setup) = parts("whole");
    assert_eq!(measured(&mut Run::create(trainer, setup).unwrap(), None), (Outcome::Finished, vec![2, 4]));
    let (trainer, setup) = parts("stopped");
    assert_eq!(measured(&mut Run::create(trainer, setup).unwrap(), Some(2)), (Outcome::Stopped, vec![]));
    let (trainer, setup) = parts("stopped");
    assert_eq!(measured(&mut Run::resume(trainer, setup).unwrap().0, None), (Outcome::Finished, vec![2, 4]));
    assert_eq!(log_of(&place.path().join("stopped")), log_of(&place.path().join("whole")));
}

/// A log of a line per step is long: to read it at every checkpoint would take longer and longer.
#[test]
fn the_log_is_read_when_the_run_starts_or_resumes_and_not_again() {
    let place = tempfile::tempdir().unwrap();
    let parts = || {
        let (trainer, setup) = parts(place.path(), &[]);
        let (metrics, evaluate_every) = (vec![Metric::Loss], Some(2));
        let config = EvaluateConfig { evaluate_every, metrics, ..EvaluateConfig::default() };
        let evaluate = EvaluateSetup { config, extractor: None, store: FeatureStore::new(place.path()) };
        (trainer, RunSetup { held_out: setup.train.spread(6), evaluate: Some(evaluate), ..setup })
    };
    let (there, elsewhere) = (place.path().join("log.jsonl"), place.path().join("elsewhere"));
    let run_without_its_log = |run: &mut Run<Unet>, stop_at: u64| {
        fs::rename(&there, &elsewhere).unwrap();
        let stop = StopSignal::default();
        let outcome = run.train(&stop, &mut |event| {
            if matches!(event, Event::Checkpoint { step, .. } if step == stop_at) {
                stop.request();
            }
        });
        fs::rename(&elsewhere, &there).unwrap();
        assert!(run.logged == Logged::of(&log::read(&there).unwrap()));
        assert_eq!(run.logged.evaluations().len() as u64, run.trainer().step_count() / 2);
        outcome.unwrap()
    };
    let (trainer, setup) = parts();
    assert_eq!(run_without_its_log(&mut Run::create(trainer, setup).unwrap(), 2), Outcome::Stopped);
    let (trainer, setup) = parts();
    let mut run = Run::resume(trainer, setup).unwrap().0;
    assert_eq!(run_without_its_log(&mut run, 0), Outcome::Finished);
    assert_eq!(run.logged.curves().len(), 2);
    assert_eq!(Checkpoints::new(place.path().join("checkpoints")).steps().unwrap(), [2, 4]);
}

/// The condition and the class of a sample are those of one example. Without conditions, grids have all classes in turn, and measured samples have
/// them in the same proportions as the data.
#[test]
fn samples_are_of_the_classes_of_what_they_belong_to() {
    let place = tempfile::tempdir().unwrap();
    for i in 0..8_u8 {
        // A quarter are cats.
        let path = place.path().join(format!("images/{}/{i}.png", if i % 4 == 1 { "cat" } else { "dog" }));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_pixel(4, 4, image::Luma([10 * i])).save(path).unwrap();
    }
    let images = place.path().join("images");
    let run = |name: &str, condition: Option<PathBuf>| {
        let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, num_classes: 2, ..UnetConfig::default() };
        let unet = UnetConfig { condition_channels: usize::from(condition.is_some()), ..unet };
        let device = Device::flex();
        let model = Unet::new(&unet, &mut Init::new(1, &device.clone().autodiff())).unwrap();
        let config =
            DataConfig { path: Some(images.clone()), condition, class_condition: true, ..DataConfig::default() };
        let train = Subset::from(Arc::new(Dataset::open(&config).unwrap()));
        let (old, setup) = parts(&place.path().join(name), &[]);
        let trainer =
            Trainer::new(model, old.diffusion().clone(), old.config().clone(), EmaConfig::default(), &device).unwrap();
        Run::create(trainer, RunSetup { held_out: train.spread(5), train, ..setup }).unwrap()
    };

    let plain = run("plain", None);
    let all = Images::of_data(plain.setup.train.clone());
    assert_eq!(plain.classes_of_samples(4), Some(vec![0, 1, 0, 1]));
    assert_eq!(plain.classes_of_measured(8, &all), Some(vec![1, 0, 1, 1, 1, 0, 1, 1]));
    let without_classes = Images::of_samples(&ImageBatch { shape: [1, 1, 4, 4], data: vec![0.0; 16] });
    assert_eq!(plain.classes_of_measured(3, &without_classes), Some(vec![0, 1, 0]));

    let belonging = run("belonging", Some(images.clone()));
    let held_out = &belonging.setup.held_out;
    let expected: Vec<u32> = (0..7).map(|i| held_out.class_of(i % 5).unwrap() as u32).collect();
    assert_eq!(belonging.conditions_of_samples(7).unwrap().all().unwrap().shape, [7, 1, 4, 4]);
    assert_eq!(belonging.classes_of_samples(7), Some(expected.clone()));
    assert_eq!(belonging.classes_of_measured(7, &all), Some(expected));
}

/// Outputs of a network whose last weights are large: each step of a sampler magnifies them, and nothing limits them.
#[test]
fn samples_that_are_not_finite_end_no_run() {
    let place = tempfile::tempdir().unwrap();
    let (old, setup) = parts(place.path(), &[]);
    let mut state = to_state_dict(old.model());
    let mut last = state.get("final_conv.weight").unwrap().clone();
    last.values.iter_mut().for_each(|value| *value = 1e12);
    state.insert("final_conv.weight", last);
    let model = load_state_dict(old.model().clone(), &state).unwrap();
    let trainer =
        Trainer::new(model, old.diffusion().clone(), old.config().clone(), EmaConfig::default(), &old.device())
            .unwrap();
    let guidance = GuidanceConfig { threshold: Threshold::None, ..GuidanceConfig::default() };
    let sample =
        SampleConfig { sampler: SamplerKind::Ddim, sampling_timesteps: Some(20), num_samples: 1, ..setup.sample };
    let mut told = Vec::new();
    let mut run = Run::create(trainer, RunSetup { sample, guidance, ..setup }).unwrap();
    let outcome = run.train(&StopSignal::default(), &mut |event| {
        if let Event::NotSampled { step, why } = event {
            told.push((step, why.to_string()));
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(matches!(&told[..], [(2, why), (4, _)] if why.contains("not finite")), "{told:?}");
}

/// Grids and the measurements of samples, in a run on three devices that are actually one.
#[test]
fn samples_of_a_run_on_several_devices_are_those_of_one() {
    let place = tempfile::tempdir().unwrap();
    let samples_and_values = |name: &str, more: usize| {
        let dir = place.path().join(name);
        let (old, setup) = parts(&dir, &[]);
        let model = old.model().clone();
        let config = TrainConfig { steps: 2, accumulate: 3, ..old.config().clone() };
        let trainer =
            Trainer::new(model, old.diffusion().clone(), config, EmaConfig::default(), &old.device()).unwrap();
        let trainer = trainer.with_replicas(&vec![old.device(); more]).unwrap();
        let evaluate = EvaluateConfig {
            evaluate_every: Some(2),
            metrics: vec![Metric::Swd],
            evaluate_samples: 5,
            evaluate_real: Some(20),
            ..EvaluateConfig::default()
        };
        let store = FeatureStore::new(&dir);
        let evaluate = Some(EvaluateSetup { config: evaluate, extractor: None, store });
        let sample = SampleConfig { num_samples: 5, sample_batch_size: 2, ..setup.sample };
        let mut run = Run::create(trainer, RunSetup { sample, evaluate, ..setup }).unwrap();
        let (mut values, mut batches) = (Vec::new(), Vec::new());
        let outcome = run.train(&StopSignal::default(), &mut |event| match event {
            Event::Evaluation { measurements, .. } => values.push(measurements[0].value),
            Event::Sampling { first, .. } => batches.push(first),
            _ => {}
        });
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        batches.sort();
        assert_eq!(batches, [0, 2, 4]);
        assert_eq!(values.len(), 1);
        (fs::read(dir.join("samples/step-00000002.png")).unwrap(), values)
    };
    assert!(samples_and_values("one", 0) == samples_and_values("three", 2));
}
