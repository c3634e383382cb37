//! Self-contained weights: a safetensors file whose metadata describe the network, how it was trained and the size of its data. All sampling and
//! measuring starts from one. The reference's checkpoints are converted to the same type.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::data::{Dataset, ImageShape, ResizePolicy, VectorScale};
use crate::diffusion::{Diffusion, DiffusionConfig, DiffusionConfigError};
use crate::interop::InteropError;
use crate::models::{ImageNetwork, LearnedSchedule, NetworkConfig, NetworkConfigError, Scheduled};
use crate::nn::params::{self, ParamsError};
use crate::nn::{Eval, EvalMode, Init};
use crate::weights::{StateDict, WeightsKind};
use crate::weights_file::{self, NoCard, Of};

/// All that is needed to use weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Version of the library that wrote it.
    pub version: String,
    pub network: NetworkConfig,
    pub diffusion: DiffusionConfig,
    /// The betas of a schedule that has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<Vec<f64>>,
    /// Size of the data.
    pub image: ImageShape,
    /// How images of another size were fitted; may be absent in cards of version 0.1.0.
    #[serde(default)]
    pub resize: ResizePolicy,
    /// The values of 0 and 1 in the units of the training data; `[0, 1]` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_range: Option<[f64; 2]>,
    /// The same for the condition images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition_value_range: Option<[f64; 2]>,
    /// How the conditioning vectors were scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<VectorScale>,
    /// Names of the classes that the network was trained on, in the order of their numbers; absent for a network without classes, and in cards that
    /// do not know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
    pub weights: WeightsKind,
    /// Optimizer steps made.
    pub step: u64,
    /// Decay of the moving average at that step, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// The average's length relative to the training, if it has a power-function profile ([`crate::post_hoc`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_sigma_rel: Option<f64>,
    /// Number of steps that changed the weights, if some of [`step`](Self::step) may have been skipped: in snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates: Option<u64>,
}

/// A card and the tensors with our names.
#[derive(Clone, Debug)]
pub struct ModelFile {
    pub card: ModelCard,
    pub state: StateDict,
}

/// Why a file contains no usable network.
#[derive(Debug, Error)]
pub enum ModelFileError {
    #[error(transparent)]
    File(#[from] InteropError),
    #[error("{path} holds no model card: it is a safetensors file from another program")]
    NoCard { path: String },
    #[error("{path} holds a classifier, not a denoising network")]
    Classifier { path: String },
    #[error("cannot read the model card of {path}")]
    Card { path: String, source: serde_json::Error },
    #[error("the model card of {path} does not describe a valid network")]
    InvalidNetwork { path: String, source: NetworkConfigError },
    #[error("the model card of {path} is of data without values: {image} (channels x height x width)")]
    EmptyImage { path: String, image: ImageShape },
    #[error("the network that the model card describes cannot be built")]
    Network(#[from] NetworkConfigError),
    #[error("the model card does not describe a valid formulation")]
    Diffusion(#[from] DiffusionConfigError),
    #[error("the weights do not match the network described by the model card")]
    Weights(#[from] ParamsError),
}

impl ModelCard {
    /// The card of averaged weights before training, for images of this shape with pixel values.
    pub fn new(network: NetworkConfig, diffusion: DiffusionConfig, image: ImageShape) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_string(),
            network,
            diffusion,
            betas: None,
            image,
            resize: ResizePolicy::default(),
            value_range: None,
            condition_value_range: None,
            vectors: None,
            class_names: None,
            weights: WeightsKind::Ema,
            step: 0,
            ema_decay: None,
            ema_sigma_rel: None,
            updates: None,
        }
    }

    /// The same for a network that is trained on `data`.
    pub fn for_data(network: NetworkConfig, diffusion: DiffusionConfig, data: &Dataset) -> Self {
        let takes_classes = network.num_classes() > 0 || matches!(network, NetworkConfig::Custom { .. });
        Self {
            resize: data.resize(),
            value_range: data.trained_range(),
            condition_value_range: data.trained_condition_range(),
            vectors: data.vectors().map(|vectors| vectors.scale().clone()),
            class_names: data.class_names().filter(|_| takes_classes).map(<[String]>::to_vec),
            ..Self::new(network, diffusion, data.shape())
        }
    }
}

impl ModelFile {
    /// Reads a file written by [`write`](Self::write).
    pub fn read(path: &Path) -> Result<Self, ModelFileError> {
        let (card, state) = weights_file::read(path, Of::Model).map_err(|error| no_card(path, error))?;
        Ok(Self { card: checked(path, card)?, state })
    }

    /// The card of a file, without its tensors.
    pub fn read_card(path: &Path) -> Result<ModelCard, ModelFileError> {
        checked(path, weights_file::read_card(path, Of::Model).map_err(|error| no_card(path, error))?)
    }

    /// Writes card and tensors to a temporary file that is then renamed.
    pub fn write(&self, path: &Path) -> Result<(), InteropError> {
        weights_file::write(path, Of::Model, &self.card, &self.state)
    }

    /// The network in eval behaviour on `device`, and its formulation, with the schedule that was learned with the network, if any.
    ///
    /// # Errors
    /// A custom network; a card that contradicts itself, or that does not fit the tensors.
    pub fn build(&self, device: &Device) -> Result<(Eval<ImageNetwork>, Diffusion), ModelFileError> {
        let diffusion = Diffusion::with_betas(&self.card.diffusion, self.card.betas.clone())?;
        let init = &mut Init::zeros_for_loading(device);
        let network = self.card.network.build(init)?;
        let Some(options) = diffusion.formulation().learned_schedule() else {
            return Ok((params::load_state_dict(network, &self.state)?.eval().for_predictions(), diffusion));
        };
        let noise_schedule = LearnedSchedule::new(init, options);
        let both = params::load_state_dict(Scheduled { network, noise_schedule }, &self.state)?;
        let diffusion = diffusion.with_schedule_of(&both);
        Ok((both.network.eval().for_predictions(), diffusion))
    }
}

/// A card whose network can be asked about. Of a custom one nothing is known.
fn checked(path: &Path, card: ModelCard) -> Result<ModelCard, ModelFileError> {
    let (path, image) = (|| path.display().to_string(), card.image);
    if matches!(card.network, NetworkConfig::Custom { .. }) {
        return Ok(card);
    }
    if image.channels == 0 || image.height == 0 || image.width == 0 {
        return Err(ModelFileError::EmptyImage { path: path(), image });
    }
    match card.network.validate() {
        Ok(()) => Ok(card),
        Err(source) => Err(ModelFileError::InvalidNetwork { path: path(), source }),
    }
}

fn no_card(path: &Path, error: NoCard) -> ModelFileError {
    let path = path.display().to_string();
    match error {
        NoCard::File(error) => ModelFileError::File(error),
        NoCard::OfOther => ModelFileError::Classifier { path },
        NoCard::Absent => ModelFileError::NoCard { path },
        NoCard::Unreadable(source) => ModelFileError::Card { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataLayout;
    use crate::diffusion::{ContinuousTimeConfig, FormulationConfig, NoiseSchedule};
    use crate::models::{Extent, KarrasUnetConfig, Network, Unet, UnetConfig};

    fn card(diffusion: DiffusionConfig) -> ModelCard {
        let network = UnetConfig {
            dim: 4,
            dim_mults: vec![1],
            channels: 1,
            learned_sinusoidal_cond: true,
            ..UnetConfig::default()
        };
        let image = ImageShape { channels: 1, height: 4, width: 4 };
        ModelCard {
            weights: WeightsKind::Model,
            step: 1,
            ..ModelCard::new(NetworkConfig::Unet(network), diffusion, image)
        }
    }

    /// Stands for trained weights: drawn from another seed than `build` uses.
    fn scheduled(card: &ModelCard, device: &Device) -> Scheduled<Unet> {
        let NetworkConfig::Unet(config) = &card.network else { unreachable!() };
        let options = Diffusion::new(&card.diffusion).unwrap().formulation().learned_schedule().unwrap();
        let init = &mut Init::new(7, device);
        Scheduled { network: Unet::new(config, init).unwrap(), noise_schedule: LearnedSchedule::new(init, options) }
    }

    #[test]
    fn a_learned_schedule_comes_back_with_its_network() {
        let device = Device::flex();
        let continuous = ContinuousTimeConfig {
            noise_schedule: NoiseSchedule::Learned,
            learned_schedule_hidden_dim: Some(5),
            ..ContinuousTimeConfig::default()
        };
        let card = card(FormulationConfig::ContinuousTime(continuous).into());
        let trained = scheduled(&card, &device);
        let state = params::to_state_dict(&trained);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ema.safetensors");
        ModelFile { card, state }.write(&path).unwrap();

        let file = ModelFile::read(&path).unwrap();
        let (unet, diffusion) = file.build(&device).unwrap();
        assert_eq!(params::to_state_dict(&*unet), file.state.strip_prefix("network."));
        let untrained = Diffusion::new(&file.card.diffusion).unwrap();
        let weights = Network::noise_schedule(&trained).unwrap().weights();
        for t in [0.1, 0.5, 0.9] {
            let log_snr = diffusion.level(t).log_snr();
            assert!((log_snr - weights.log_snr(t)).abs() < 1e-9);
            assert!((log_snr - untrained.level(t).log_snr()).abs() > 1e-3, "{log_snr}");
        }
    }

    /// Whoever reads a card asks its network about sizes, which those would not survive.
    #[test]
    fn cards_are_checked_before_they_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ema.safetensors");
        let refused = |card: &ModelCard| {
            ModelFile { card: card.clone(), state: StateDict::new() }.write(&path).unwrap();
            let errors = [ModelFile::read(&path).unwrap_err(), ModelFile::read_card(&path).unwrap_err()];
            let [whole, alone] = errors.map(|error| {
                assert!(error.to_string().contains("ema.safetensors"), "{error}");
                let cause = std::error::Error::source(&error).map(|cause| cause.to_string());
                cause.unwrap_or_else(|| error.to_string())
            });
            assert_eq!(whole, alone);
            whole
        };
        let good = card(DiffusionConfig::default());
        let of = |network| ModelCard { network, ..good.clone() };
        let unet = |dim_mults| of(NetworkConfig::Unet(UnetConfig { dim_mults, ..UnetConfig::default() }));
        assert!(refused(&unet(vec![])).contains("`dim_mults` must name at least one stage"));
        assert!(refused(&unet(vec![1; 65])).contains("`dim_mults` names 65 stages"));
        let extent = Extent { layout: DataLayout::Volumes, depth: 0, height: 4, width: 4 };
        let karras = KarrasUnetConfig { extent: Some(extent), ..KarrasUnetConfig::default() };
        assert!(refused(&of(NetworkConfig::KarrasUnet(karras))).contains("`extent.depth` must be at least 1"));
        let karras = KarrasUnetConfig { num_downsamples: 1 << 40, ..KarrasUnetConfig::default() };
        assert!(refused(&of(NetworkConfig::KarrasUnet(karras))).contains("`num_downsamples`"));
        let empty = ModelCard { image: ImageShape { height: 0, ..good.image }, ..good.clone() };
        assert!(refused(&empty).contains("1x0x4"));
        let custom = of(NetworkConfig::Custom { name: "mine".into() });
        ModelFile { card: custom.clone(), state: StateDict::new() }.write(&path).unwrap();
        assert_eq!(ModelFile::read_card(&path).unwrap(), custom);
        let error = ModelFile::read(&path).unwrap().build(&Device::flex()).unwrap_err();
        assert!(matches!(error, ModelFileError::Network(NetworkConfigError::Custom { name }) if name == "mine"));
    }

    #[test]
    fn tensors_that_do_not_fit_the_card_are_named() {
        let device = Device::flex();
        let continuous =
            ContinuousTimeConfig { noise_schedule: NoiseSchedule::Learned, ..ContinuousTimeConfig::default() };
        let learned = card(FormulationConfig::ContinuousTime(continuous).into());
        let state = params::to_state_dict(&scheduled(&learned, &device));
        let refused = |card: &ModelCard, state: &StateDict| {
            let file = ModelFile { card: card.clone(), state: state.clone() };
            let error = file.build(&device).unwrap_err();
            let ModelFileError::Weights(error) = error else { panic!("{error}") };
            error.to_string()
        };
        let plain = card(DiffusionConfig::default());
        assert!(refused(&plain, &state).contains("`init_conv.weight` is missing"));
        let mut without = state.clone();
        without.remove("noise_schedule.last.bias");
        assert!(refused(&learned, &without).contains("`noise_schedule.last.bias`"));
        assert!(refused(&learned, &state.strip_prefix("network.")).contains("`network.init_conv.weight`"));
    }
}
