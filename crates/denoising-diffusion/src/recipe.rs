//! A recipe: everything that determines a training run, as described by a TOML file. Sections group the keys for readers; no two sections share a
//! key, so that a command line can name every key without its section.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::data::{DataConfig, DataError, DataLayout, Dataset, ImageShape, VectorTable};
use crate::diffusion::{Diffusion, DiffusionConfig, DiffusionConfigError, GuidanceConfig};
use crate::eval::config::{EvaluateConfig, EvaluateConfigError};
use crate::models::{
    DitConfig, Extent, KarrasUnetConfig, NetworkConfig, NetworkConfigError, NetworkFit, Unet1dConfig, UnetConfig,
    UvitConfig,
};
use crate::nn::ops::{ConvPrecision, Precision, set_conv_precision, set_precision};
use crate::sampler::{SampleConfig, SampleConfigError};
use crate::train::{EmaConfig, PostHocConfig, PowerEmaError, TrainConfig, TrainConfigError, TrainerError};

mod run;
mod start;
#[cfg(test)]
mod tests;

pub use run::{may_change, plain};

/// The network that a recipe trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    #[default]
    Unet,
    Unet1d,
    Dit,
    Uvit,
    KarrasUnet,
}

impl Model {
    /// All networks.
    pub const ALL: [Self; 5] = [Self::Unet, Self::Unet1d, Self::Dit, Self::Uvit, Self::KarrasUnet];

    /// The name in configuration files, and the section of its options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Unet1d => "unet1d",
            Self::Dit => "dit",
            Self::Uvit => "uvit",
            Self::KarrasUnet => "karras_unet",
        }
    }

    /// The kind of data that it is for; [`DataLayout::Auto`] stands for all kinds.
    pub fn layout(self) -> DataLayout {
        match self {
            Self::Unet1d => DataLayout::Sequences,
            Self::Unet | Self::Dit | Self::Uvit => DataLayout::Images,
            Self::KarrasUnet => DataLayout::Auto,
        }
    }

    /// The default learning rate. Forced weight normalisation keeps the norm of weights constant, and Adam's steps must be large enough relative to
    /// it: EDM2 (Karras et al. 2023, arXiv:2312.02696) begins at about 1e-2. For the other networks it is that of the reference.
    pub fn usual_lr(self) -> f64 {
        match self {
            Self::KarrasUnet => 1e-2,
            _ => TrainConfig::default().lr,
        }
    }

    /// One-line description for the user.
    pub fn about(self) -> &'static str {
        match self {
            Self::Unet => "U-Net of residual blocks and attention, for images; optional classes (Ho et al. 2020)",
            Self::Unet1d => "the same for sequences, with linear attention; optional classes",
            Self::Dit => "transformer on patches, for images; optional classes (Peebles and Xie 2022)",
            Self::Uvit => "U-Net around a transformer, for images; optional classes (Hoogeboom et al. 2023)",
            Self::KarrasUnet => {
                "magnitude-preserving U-Net, for images, sequences, volumes; optional classes (Karras et al. 2023)"
            }
        }
    }
}

/// The choice of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    pub model: Model,
    /// The weights that training starts from: a run folder, a checkpoint or a file. `None`: initial weights are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

/// How a run computes. It affects the bits of the result, so it must not change on resume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArithmeticConfig {
    /// Convolutions without Winograd's algorithm.
    pub precise: bool,
    pub precision: Precision,
}

impl ArithmeticConfig {
    /// Applies it to the whole process.
    pub fn set(self) {
        set_conv_precision(if self.precise { ConvPrecision::Precise } else { ConvPrecision::Fast });
        set_precision(self.precision);
    }
}

/// The properties of the data that a network depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFacts {
    pub shape: ImageShape,
    pub layout: DataLayout,
    /// Slices of a volume, otherwise 1.
    pub depth: usize,
    /// 0: none.
    pub num_classes: usize,
    /// Channels of the condition images; 0: none.
    pub condition_channels: usize,
    /// Length of the conditioning vectors; 0: none.
    pub vector_dim: usize,
}

impl DataFacts {
    pub fn of(dataset: &Dataset) -> Self {
        Self {
            shape: dataset.shape(),
            layout: dataset.layout(),
            depth: dataset.depth(),
            num_classes: dataset.num_classes(),
            condition_channels: dataset.condition_shape().map_or(0, |shape| shape.channels),
            vector_dim: dataset.vectors().map_or(0, VectorTable::dim),
        }
    }

    fn extent(self) -> Extent {
        let Self { shape: ImageShape { height, width, .. }, layout, depth, .. } = self;
        Extent { layout, depth, height: height / depth, width }
    }
}

/// The parts of a training run. `Default` gives the reference's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    pub data: DataConfig,
    pub network: ModelConfig,
    /// For `model = "unet"`. In this and the next four, `channels` is set by the data and is not a key of a recipe.
    pub unet: UnetConfig,
    /// For `model = "unet1d"`.
    pub unet1d: Unet1dConfig,
    /// For `model = "dit"`.
    pub dit: DitConfig,
    /// For `model = "uvit"`.
    pub uvit: UvitConfig,
    /// For `model = "karras_unet"`.
    pub karras_unet: KarrasUnetConfig,
    pub diffusion: DiffusionConfig,
    pub train: TrainConfig,
    pub ema: EmaConfig,
    pub post_hoc: PostHocConfig,
    pub sample: SampleConfig,
    pub guidance: GuidanceConfig,
    pub evaluate: EvaluateConfig,
    pub arithmetic: ArithmeticConfig,
}

/// Why a recipe is invalid.
#[derive(Debug, Error)]
pub enum RecipeError {
    #[error("the recipe is not valid TOML, or has an unknown key or an invalid value")]
    Toml(#[from] toml::de::Error),
    /// TOML integers end at 2^63 - 1, and its strings are UTF-8.
    #[error("the recipe has a value that TOML cannot represent")]
    Write(#[from] toml::ser::Error),
    #[error("`{section}.channels` follows from the data: set `channels` in the section [data] instead")]
    Channels { section: &'static str },
    #[error(
        "`{section}.num_classes` follows from the data: set `class_condition = true` in the section [data] instead"
    )]
    Classes { section: &'static str },
    #[error(
        "`{section}.condition_channels` follows from the data: set `condition` and `condition_channels` in the section [data] instead"
    )]
    ConditionChannels { section: &'static str },
    #[error("`{section}.vector_dim` follows from the data: set `vectors` in the section [data] instead")]
    VectorDim { section: &'static str },
    #[error("`{section}.augment_labels` follows from the data: set `augment` in the section [data] instead")]
    AugmentLabels { section: &'static str },
    #[error(
        "the section [{section}] has settings, but the network is `model = \"{model}\"`: remove the settings or change `model`"
    )]
    OtherModel { section: &'static str, model: &'static str },
    #[error("`model = \"{model}\"` is a network for {of}, but `layout = \"{layout}\"`: change one of them")]
    Layout { model: &'static str, of: DataLayout, layout: DataLayout },
    #[error("the noise schedule of these weights is none that an option names, so no run can start from them")]
    UnnamedSchedule,
    #[error("`augment` is for images and the networks unet, dit and uvit, but this run is of {of}")]
    Augment { of: String },
    #[error("`guidance` is {guidance}, but the network is told neither classes nor vectors: nothing to guide towards")]
    NothingToGuide { guidance: f64 },
    #[error("`class_condition` is set, but the data have no classes (a folder per class, or labels)")]
    NoClasses,
    #[error(
        "time embeddings by Fourier features (`learned_sinusoidal_cond`, `random_fourier_features`, and always in a U-ViT and a \
         KarrasUnet) are made for noise levels between about -15 and 15, but those of `diffusion = \"{formulation}\"` go up to 1000"
    )]
    FourierTime { formulation: &'static str },
    #[error(
        "`{key}` gives the network {got} output channels, but `diffusion = \"{formulation}\"` needs {expected}: leave it out"
    )]
    OutChannels { key: &'static str, formulation: &'static str, expected: usize, got: usize },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Network(#[from] NetworkConfigError),
    #[error(transparent)]
    Diffusion(#[from] DiffusionConfigError),
    #[error(transparent)]
    Train(#[from] TrainConfigError),
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    #[error(transparent)]
    PowerEmas(#[from] PowerEmaError),
    #[error(transparent)]
    Sample(#[from] SampleConfigError),
    #[error(transparent)]
    Evaluate(#[from] EvaluateConfigError),
}

impl Recipe {
    /// Reads a recipe; missing keys have their defaults.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        let table: toml::Table = toml::from_str(text)?;
        for section in Model::ALL.map(Model::name) {
            let given = |key| table.get(section).and_then(|options| options.get(key)).is_some();
            if given("channels") {
                return Err(RecipeError::Channels { section });
            }
            if given("num_classes") {
                return Err(RecipeError::Classes { section });
            }
            if given("condition_channels") {
                return Err(RecipeError::ConditionChannels { section });
            }
            if given("augment_labels") {
                return Err(RecipeError::AugmentLabels { section });
            }
            if given("vector_dim") {
                return Err(RecipeError::VectorDim { section });
            }
        }
        let mut recipe: Self = toml::from_str(text)?;
        let says = |section: &str, key: &str| table.get(section).and_then(|section| section.get(key)).is_some();
        recipe.take_what_is_usual(says);
        Ok(recipe)
    }

    /// The whole recipe in the form that [`from_toml`](Self::from_toml) reads, with every key that has a value.
    ///
    /// # Errors
    /// [`RecipeError::Write`].
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        let mut table = toml::Table::try_from(self)?;
        for model in Model::ALL {
            if model != self.network.model {
                table.remove(model.name());
            } else if let Some(toml::Value::Table(options)) = table.get_mut(model.name()) {
                options.remove("channels");
            }
        }
        Ok(toml::to_string(&table)?)
    }

    /// Fills in defaults that depend on the network: the kind of data, and how large times are.
    pub fn resolved(mut self) -> Self {
        if self.data.layout == DataLayout::Auto {
            self.data.layout = self.network.model.layout();
        }
        if self.bare_network().fourier_time() {
            self.diffusion = self.diffusion.for_fourier_time();
        }
        self
    }

    /// Fills in defaults that depend on the size of the data. Must be called before [`trainer`](Self::trainer) and [`setup`](Self::setup).
    pub fn for_data(mut self, data: &Dataset) -> Self {
        let ImageShape { height, width, .. } = data.shape();
        self.diffusion = self.diffusion.for_size(height, width);
        self
    }

    /// Checks everything that can be checked without the data.
    pub fn validate(&self) -> Result<(), RecipeError> {
        self.data.validate()?;
        self.validate_network()?;
        let (model, layout) = (self.network.model, self.data.layout);
        if ![layout, model.layout()].contains(&DataLayout::Auto) && layout != model.layout() {
            return Err(RecipeError::Layout { model: model.name(), of: model.layout(), layout });
        }
        if self.data.augment > 0.0 && matches!(model, Model::Unet1d | Model::KarrasUnet) {
            return Err(RecipeError::Augment { of: model.name().to_string() });
        }
        self.diffusion.validate()?;
        self.train.validate()?;
        self.ema.validate()?;
        self.post_hoc.validate()?;
        let diffusion = Diffusion::new(&self.diffusion)?;
        self.sample.validate(diffusion.formulation())?;
        self.guidance.validate()?;
        self.sample.check_guidance(&self.guidance)?;
        self.evaluate.validate(&self.sample, diffusion.formulation())?;
        if self.bare_network().fourier_time() && diffusion.formulation().tells_large_times() {
            return Err(RecipeError::FourierTime { formulation: self.diffusion.formulation.name() });
        }
        Ok(())
    }

    /// Refuses options of a network that is not trained: they are a mistake, even if harmless.
    fn validate_network(&self) -> Result<(), RecipeError> {
        let model = self.network.model;
        let says = |other| match other {
            Model::Unet => self.unet != UnetConfig::default(),
            Model::Unet1d => self.unet1d != Unet1dConfig::default(),
            Model::Dit => self.dit != DitConfig::default(),
            Model::Uvit => self.uvit != UvitConfig::default(),
            Model::KarrasUnet => self.karras_unet != KarrasUnetConfig::default(),
        };
        if let Some(other) = Model::ALL.into_iter().find(|&other| other != model && says(other)) {
            return Err(RecipeError::OtherModel { section: other.name(), model: model.name() });
        }
        Ok(self.bare_network().validate()?)
    }

    /// The network's options, before those set by the data.
    fn bare_network(&self) -> NetworkConfig {
        match self.network.model {
            Model::Unet => NetworkConfig::Unet(self.unet.clone()),
            Model::Unet1d => NetworkConfig::Unet1d(self.unet1d.clone()),
            Model::Dit => NetworkConfig::Dit(self.dit.clone()),
            Model::Uvit => NetworkConfig::Uvit(self.uvit.clone()),
            Model::KarrasUnet => NetworkConfig::KarrasUnet(self.karras_unet.clone()),
        }
    }

    /// The network's options for data, after checking that they fit together.
    ///
    /// # Errors
    /// A network that does not fit the data or the formulation.
    pub fn network_for(&self, data: DataFacts) -> Result<NetworkConfig, RecipeError> {
        let DataFacts { shape, layout, num_classes, condition_channels, vector_dim, .. } = data;
        if self.data.augment > 0.0 && layout != DataLayout::Images {
            return Err(RecipeError::Augment { of: layout.to_string() });
        }
        if self.data.class_condition && num_classes == 0 {
            return Err(RecipeError::NoClasses);
        }
        let num_classes = if self.data.class_condition { num_classes } else { 0 };
        if self.guidance.guidance != 1.0 && num_classes == 0 && vector_dim == 0 {
            return Err(RecipeError::NothingToGuide { guidance: self.guidance.guidance });
        }
        let expected = self.diffusion.out_channels(shape.channels);
        let network = self.bare_network().fitted(NetworkFit {
            extent: data.extent(),
            channels: shape.channels,
            condition_channels,
            vector_dim,
            num_classes,
            out_channels: expected,
            augment_labels: self.data.augment > 0.0,
        });
        if let Some(got) = network.out_channels().filter(|&got| got != expected) {
            let insists = self.unet.out_dim.or(self.unet1d.out_dim).is_some();
            let key = if insists { "out_dim" } else { "learned_variance" };
            return Err(RecipeError::OutChannels {
                key,
                formulation: self.diffusion.formulation.name(),
                expected,
                got,
            });
        }
        network.validate()?;
        network.check_size(shape.height, shape.width)?;
        Ok(network)
    }
}
