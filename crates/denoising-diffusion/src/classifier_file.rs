//! A classifier in a self-contained file: a safetensors file whose metadata describe its network, the formulation and the images it was trained
//! with, and how well it did. Not here: networks that denoise (`model_file`).

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::data::ImageShape;
use crate::diffusion::{ClassifierGuidance, Diffusion, DiffusionConfig, DiffusionConfigError};
use crate::eval::accuracy::HeldOutAccuracy;
use crate::interop::InteropError;
use crate::models::{Classifier, ClassifierConfig, UnetConfigError};
use crate::nn::params::{self, ParamsError};
use crate::nn::{Eval, EvalMode, Init};
use crate::weights::StateDict;
use crate::weights_file::{self, NoCard, Of};

/// All that is needed to use a classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierCard {
    /// Version of the library that wrote it.
    pub version: String,
    pub classifier: ClassifierConfig,
    pub diffusion: DiffusionConfig,
    /// The betas of a schedule that has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<Vec<f64>>,
    /// Size of the images.
    pub image: ImageShape,
    /// Name of each class.
    pub class_names: Vec<String>,
    /// Optimizer steps made.
    pub step: u64,
    /// Measured at that step, if at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutAccuracy>,
}

/// A card and its tensors.
#[derive(Clone, Debug)]
pub struct ClassifierFile {
    pub card: ClassifierCard,
    pub state: StateDict,
}

/// Why a file contains no usable classifier.
#[derive(Debug, Error)]
pub enum ClassifierFileError {
    #[error(transparent)]
    File(#[from] InteropError),
    #[error("{path} holds a denoising network, not a classifier")]
    Denoiser { path: String },
    #[error("{path} holds no classifier: it is a safetensors file from another program")]
    NoCard { path: String },
    #[error("cannot read the card of the classifier {path}")]
    Card { path: String, source: serde_json::Error },
    #[error("the card of {path} does not describe a valid classifier")]
    InvalidNetwork { path: String, source: UnetConfigError },
    #[error("the card of {path} is of images without values: {image} (channels x height x width)")]
    EmptyImage { path: String, image: ImageShape },
    #[error("the card does not describe a valid classifier")]
    Network(#[from] UnetConfigError),
    #[error("the card names {names} classes, but the classifier has {num_classes}")]
    ClassNames { names: usize, num_classes: usize },
    #[error("the card does not describe a valid formulation")]
    Diffusion(#[from] DiffusionConfigError),
    #[error("the weights do not match the classifier described by the card")]
    Weights(#[from] ParamsError),
    #[error("the classifier was trained on images of {got}, but the network draws images of {expected}")]
    Shape { expected: ImageShape, got: ImageShape },
    #[error(
        "the classifier was trained for another formulation than the network: it has {got}, the network has {expected}"
    )]
    Formulation { expected: String, got: String },
}

impl ClassifierFile {
    /// Reads a file written by [`write`](Self::write).
    ///
    /// # Errors
    /// [`ClassifierFileError`]: the file is damaged, or contains something else.
    pub fn read(path: &Path) -> Result<Self, ClassifierFileError> {
        let shown = || path.display().to_string();
        let read = weights_file::read::<ClassifierCard>(path, Of::Classifier);
        let (card, state) = read.map_err(|error| match error {
            NoCard::File(error) => ClassifierFileError::File(error),
            NoCard::OfOther => ClassifierFileError::Denoiser { path: shown() },
            NoCard::Absent => ClassifierFileError::NoCard { path: shown() },
            NoCard::Unreadable(source) => ClassifierFileError::Card { path: shown(), source },
        })?;
        let image = card.image;
        if image.channels == 0 || image.height == 0 || image.width == 0 {
            return Err(ClassifierFileError::EmptyImage { path: shown(), image });
        }
        card.classifier.stages().map_err(|source| ClassifierFileError::InvalidNetwork { path: shown(), source })?;
        let (names, num_classes) = (card.class_names.len(), card.classifier.num_classes);
        if names != num_classes {
            return Err(ClassifierFileError::ClassNames { names, num_classes });
        }
        Ok(Self { card, state })
    }

    /// Writes card and tensors to a temporary file that is then renamed.
    ///
    /// # Errors
    /// The folder is missing or not writable, or the disk is full.
    pub fn write(&self, path: &Path) -> Result<(), InteropError> {
        weights_file::write(path, Of::Classifier, &self.card, &self.state)
    }

    /// The classifier in eval behaviour on `device`.
    ///
    /// # Errors
    /// Options that describe no classifier, or weights that do not fit them.
    pub fn classifier(&self, device: &Device) -> Result<Eval<Classifier>, ClassifierFileError> {
        let classifier = Classifier::new(&self.card.classifier, &mut Init::zeros_for_loading(device))?;
        Ok(params::load_state_dict(classifier, &self.state)?.eval())
    }

    /// The guidance by this classifier for a network that draws images of a shape under a formulation.
    ///
    /// # Errors
    /// [`ClassifierFileError::Shape`] and [`ClassifierFileError::Formulation`] if they differ from what the classifier was trained for; and the
    /// errors of [`classifier`](Self::classifier).
    pub fn guidance(
        &self,
        diffusion: &Diffusion,
        image: ImageShape,
        scale: f64,
        device: &Device,
    ) -> Result<ClassifierGuidance, ClassifierFileError> {
        if image != self.card.image {
            return Err(ClassifierFileError::Shape { expected: image, got: self.card.image });
        }
        let own = Diffusion::with_betas(&self.card.diffusion, self.card.betas.clone())?;
        if !diffusion.shows_the_same_as(&own) {
            let [expected, got] = differences(diffusion, &self.card);
            return Err(ClassifierFileError::Formulation { expected, got });
        }
        Ok(ClassifierGuidance { classifier: self.classifier(device)?, diffusion: diffusion.clone(), scale })
    }
}

/// The options that decide what a formulation [shows](Diffusion::shows_the_same_as) a network.
const SHOWN: [&str; 11] = [
    "diffusion",
    "timesteps",
    "beta_schedule",
    "cosine_s",
    "sigmoid_start",
    "sigmoid_end",
    "sigmoid_tau",
    "zero_terminal_snr",
    "sigma_data",
    "time_scale",
    "auto_normalize",
];

/// Of a schedule without a name, these say nothing.
const OF_NAMED_SCHEDULE: [&str; 5] = ["beta_schedule", "cosine_s", "sigmoid_start", "sigmoid_end", "sigmoid_tau"];

/// How the formulations of a network and of a classifier differ in what they show, each in words: `timesteps = 100, beta_schedule = "linear"`.
fn differences(network: &Diffusion, card: &ClassifierCard) -> [String; 2] {
    let Some(config) = network.config() else {
        let of_card = Sides::new([&card.diffusion, &card.diffusion], [false, card.betas.is_some()]);
        return ["options that are not ours".to_string(), of_card.words(1, &SHOWN)];
    };
    let unnamed = !Diffusion::new(config).is_ok_and(|named| network.shows_the_same_as(&named));
    let sides = Sides::new([config, &card.diffusion], [unnamed, card.betas.is_some()]);
    let differing = sides.differing();
    [0, 1].map(|side| sides.words(side, &differing))
}

/// Two formulations to be compared.
struct Sides {
    options: [Map<String, Value>; 2],
    /// All keys of each formulation, including those without a value.
    keys: [Vec<String>; 2],
    /// Whether its schedule has no name.
    unnamed: [bool; 2],
}

impl Sides {
    fn new(configs: [&DiffusionConfig; 2], unnamed: [bool; 2]) -> Self {
        let options = configs.map(|config| Map::from(config.clone()));
        Self { options, keys: configs.map(DiffusionConfig::keys), unnamed }
    }

    fn differing(&self) -> Vec<&'static str> {
        let [a, b] = &self.options;
        let differs =
            |key: &&str| a.get(*key) != b.get(*key) || self.unnamed.contains(&true) && *key == "beta_schedule";
        let differing: Vec<_> = SHOWN.into_iter().filter(differs).collect();
        if differing.is_empty() { vec!["diffusion"] } else { differing }
    }

    /// The values of options, as far as they apply.
    fn words(&self, side: usize, keys: &[&str]) -> String {
        let (options, unnamed) = (&self.options[side], self.unnamed[side]);
        let applies = |key: &&&str| {
            let known = self.keys[side].iter().any(|known| known == **key);
            known && !(unnamed && OF_NAMED_SCHEDULE.contains(*key))
        };
        let word = |key: &&str| match options.get(*key) {
            Some(value) => format!("{key} = {value}"),
            None => format!("{key} = default"),
        };
        let words = keys.iter().filter(applies).map(word);
        words.chain(unnamed.then(|| "a schedule without a name".to_string())).collect::<Vec<_>>().join(", ")
    }
}
