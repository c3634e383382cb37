//! The training of a classifier from data to a file: batches, measurements on held-out images, and the file, which each measurement rewrites. Not
//! here: a single step (`classifier`). Such a training cannot be resumed: it is short compared with that of the network that the classifier guides.

use std::path::{Path, PathBuf};
use std::time::Instant;

use thiserror::Error;

use super::classifier::{ClassifierStep, ClassifierTrainer};
use super::event::{Outcome, StopSignal};
use super::periodic::HELD_OUT_IMAGES;
use super::step_report::TrainError;
use crate::classifier_file::{ClassifierCard, ClassifierFile};
use crate::data::{DataError, Flip, Loader, LoaderConfig, Subset};
use crate::diffusion::Examples;
use crate::eval::accuracy::{HeldOutAccuracy, held_out_accuracy};
use crate::interop::InteropError;

/// What the training of a classifier needs in addition to its trainer.
#[derive(Clone, Debug)]
pub struct ClassifierSetup {
    /// Where the classifier is written, repeatedly; the folder must exist.
    pub file: PathBuf,
    /// The metadata of the file; step and accuracy are filled in.
    pub card: ClassifierCard,
    /// Images with classes.
    pub train: Subset,
    pub held_out: Subset,
    pub flip: Flip,
    /// Decoding threads; 0: chosen automatically.
    pub workers: usize,
}

/// Progress events for the caller to show.
#[derive(Debug)]
pub enum ClassifierEvent<'a> {
    Step { report: &'a ClassifierStep, images_per_s: f64 },
    HeldOut { step: u64, accuracy: &'a HeldOutAccuracy },
    Written { step: u64, file: &'a Path },
}

/// Why no classifier could be trained.
#[derive(Debug, Error)]
pub enum ClassifierTrainError {
    #[error("the data have no classes")]
    NoClasses,
    #[error("the data have {got} classes, but the classifier has {expected}")]
    Classes { expected: usize, got: usize },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Training(#[from] TrainError),
    #[error("the classifier could not be written")]
    Write(#[from] InteropError),
}

/// Trains until all steps are made or `stop` is requested, and writes the moving average in both cases. Returns the metadata of the file; it
/// contains a measurement of the final step unless `stop` came first, there are no held-out images, or their loss is not finite.
///
/// # Errors
/// [`ClassifierTrainError`]. Files written before remain.
pub fn train_classifier(
    trainer: &mut ClassifierTrainer,
    setup: &ClassifierSetup,
    stop: &StopSignal,
    on_event: &mut dyn FnMut(ClassifierEvent<'_>),
) -> Result<(Outcome, ClassifierCard), ClassifierTrainError> {
    check_classes(trainer, setup)?;
    let (config, device) = (trainer.config().clone(), trainer.device());
    let mut loader = open_loader(trainer, setup)?;
    let mut written: Option<ClassifierCard> = None;
    while trainer.step_count() < config.steps && !stop.is_requested() {
        let started = Instant::now();
        let Examples { data, classes, .. } = Examples::of(loader.next_batch()?, &device);
        let classes = classes.ok_or(ClassifierTrainError::NoClasses)?;
        let report = trainer.step(data, &classes)?;
        let images_per_s = config.batch_size as f64 / started.elapsed().as_secs_f64();
        on_event(ClassifierEvent::Step { report: &report, images_per_s });
        if report.step.is_multiple_of(config.measure_interval()) || report.step == config.steps {
            let accuracy = measure(trainer, setup, stop)?;
            if let Some(accuracy) = &accuracy {
                on_event(ClassifierEvent::HeldOut { step: report.step, accuracy });
            }
            written = Some(write(trainer, setup, accuracy, on_event)?);
        }
    }
    let outcome = if trainer.step_count() < config.steps { Outcome::Stopped } else { Outcome::Finished };
    match written.filter(|card| card.step == trainer.step_count()) {
        Some(card) => Ok((outcome, card)),
        None => Ok((outcome, write(trainer, setup, None, on_event)?)),
    }
}

fn check_classes(trainer: &ClassifierTrainer, setup: &ClassifierSetup) -> Result<(), ClassifierTrainError> {
    let (expected, got) = (trainer.model().config().num_classes, setup.train.num_classes());
    match got {
        0 => Err(ClassifierTrainError::NoClasses),
        got if got != expected => Err(ClassifierTrainError::Classes { expected, got }),
        _ => Ok(()),
    }
}

fn open_loader(trainer: &ClassifierTrainer, setup: &ClassifierSetup) -> Result<Loader, DataError> {
    let config = trainer.config();
    let loader = LoaderConfig {
        batch_size: config.batch_size,
        seed: config.seed,
        flip: setup.flip,
        augment: 0.0,
        workers: setup.workers,
    };
    Loader::start_at(setup.train.clone(), loader, trainer.step_count())
}

/// The accuracy of the average on held-out images. `None` if there are none, if `stop` was requested meanwhile, or if the loss is not finite.
fn measure(
    trainer: &ClassifierTrainer,
    setup: &ClassifierSetup,
    stop: &StopSignal,
) -> Result<Option<HeldOutAccuracy>, ClassifierTrainError> {
    let some = setup.held_out.spread(HELD_OUT_IMAGES);
    if some.is_empty() {
        return Ok(None);
    }
    let (device, config) = (trainer.device(), trainer.config());
    let batches = some.batches(config.batch_size)?.collect::<Result<Vec<_>, _>>()?;
    let batches = batches.into_iter().take_while(|_| !stop.is_requested()).filter_map(|batch| {
        let Examples { data, classes, .. } = Examples::of(batch, &device);
        Some((data, classes?))
    });
    let accuracy = held_out_accuracy(&trainer.ema().eval(), trainer.diffusion(), batches, config.seed, &device);
    Ok(accuracy.filter(|_| !stop.is_requested()))
}

fn write(
    trainer: &ClassifierTrainer,
    setup: &ClassifierSetup,
    held_out: Option<HeldOutAccuracy>,
    on_event: &mut dyn FnMut(ClassifierEvent<'_>),
) -> Result<ClassifierCard, ClassifierTrainError> {
    let step = trainer.step_count();
    let card = ClassifierCard { step, held_out, ..setup.card.clone() };
    let file = ClassifierFile { card, state: trainer.ema().to_state_dict() };
    file.write(&setup.file)?;
    on_event(ClassifierEvent::Written { step, file: &setup.file });
    Ok(file.card)
}
