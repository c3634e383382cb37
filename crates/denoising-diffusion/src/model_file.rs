//! Weights that are complete in themselves: a safetensors file whose metadata say which network they belong to, how it was trained and
//! on what size of data. Whatever samples or measures starts from one. The reference's checkpoints are read into the same thing.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::classifier_file::CLASSIFIER_CARD_KEY;
use crate::data::ImageShape;
use crate::diffusion::{Diffusion, DiffusionConfig, DiffusionConfigError};
use crate::interop::{self, InteropError, Metadata, StateDict};
use crate::models::{Unet, UnetConfig, UnetConfigError};
use crate::nn::params::{self, ParamsError};
use crate::nn::{Eval, EvalMode, Init};

/// The metadata key under which the card stands, as JSON.
pub const CARD_KEY: &str = "denoising-diffusion.card";

/// Which weights a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsKind {
    /// The moving average.
    #[default]
    Ema,
    /// The network in training.
    Model,
}

/// Which network weights belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkConfig {
    Unet(UnetConfig),
    /// A network of the user's own, by name; only its own program can build it.
    Custom {
        name: String,
    },
}

/// All that must be known to use weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Version of the library that wrote it.
    pub version: String,
    pub network: NetworkConfig,
    pub diffusion: DiffusionConfig,
    /// The schedule, where it has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<Vec<f64>>,
    /// Size of the data.
    pub image: ImageShape,
    pub weights: WeightsKind,
    /// Optimizer steps made.
    pub step: u64,
    /// Decay of the moving average at that step, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
}

/// A card and the tensors under our names.
#[derive(Clone, Debug)]
pub struct ModelFile {
    pub card: ModelCard,
    pub state: StateDict,
}

/// Why a file gives no network.
#[derive(Debug, Error)]
pub enum ModelFileError {
    #[error(transparent)]
    File(#[from] InteropError),
    #[error("{path} holds no model card: it is a safetensors file of another program")]
    NoCard { path: String },
    #[error("{path} holds a classifier, not a network that denoises")]
    Classifier { path: String },
    #[error("the model card of {path} cannot be read")]
    Card { path: String, source: serde_json::Error },
    #[error("{path} holds the weights of a custom network, `{name}`; only the program that defines it can build it")]
    Custom { path: String, name: String },
    #[error("the model card describes no network")]
    Network(#[from] UnetConfigError),
    #[error("the model card describes no diffusion")]
    Diffusion(#[from] DiffusionConfigError),
    #[error("the weights do not fit the network that the model card describes")]
    Weights(#[from] ParamsError),
}

impl ModelCard {
    /// The formulation.
    ///
    /// # Errors
    /// A card that contradicts itself.
    pub fn diffusion(&self) -> Result<Diffusion, DiffusionConfigError> {
        Diffusion::with_betas(&self.diffusion, self.betas.clone())
    }
}

impl ModelFile {
    /// Reads a file written by [`write`](Self::write).
    pub fn read(path: &Path) -> Result<Self, ModelFileError> {
        let (state, metadata) = interop::read_safetensors(path)?;
        let shown = || path.display().to_string();
        let Some(json) = metadata.get(CARD_KEY) else {
            let path = shown();
            let classifier = metadata.contains_key(CLASSIFIER_CARD_KEY);
            return Err(if classifier { ModelFileError::Classifier { path } } else { ModelFileError::NoCard { path } });
        };
        let card = serde_json::from_str(json).map_err(|source| ModelFileError::Card { path: shown(), source })?;
        Ok(Self { card, state })
    }

    /// Writes card and tensors, aside first and then renamed.
    pub fn write(&self, path: &Path) -> Result<(), InteropError> {
        let card = serde_json::to_string(&self.card).expect("a card holds numbers and strings only");
        interop::write_safetensors(path, &self.state, &Metadata::from([(CARD_KEY.to_string(), card)]))
    }

    /// The U-Net in eval behaviour on `device`.
    pub fn unet(&self, path: &Path, device: &Device) -> Result<Eval<Unet>, ModelFileError> {
        match &self.card.network {
            NetworkConfig::Unet(config) => {
                let unet = Unet::new(config, &mut Init::new(0, device))?;
                Ok(load(unet, &self.state)?.eval())
            }
            NetworkConfig::Custom { name } => {
                Err(ModelFileError::Custom { path: path.display().to_string(), name: name.clone() })
            }
        }
    }
}

fn load<M: Module>(module: M, state: &StateDict) -> Result<M, ParamsError> {
    params::load_state_dict(module, state)
}
