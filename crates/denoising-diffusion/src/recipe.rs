//! A recipe: everything that determines a training run, as described by a TOML file. Sections group the keys for readers; no two sections share a
//! key, so that a command line can name every key without its section.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::data::{DataConfig, DataError, DataLayout, Dataset, ImageShape, VectorTable};
use crate::device::is_cpu;
use crate::diffusion::{Diffusion, DiffusionConfig, DiffusionConfigError, GuidanceConfig};
use crate::eval::config::{EvaluateConfig, EvaluateConfigError};
use crate::models::{
    DitConfig, Extent, KarrasUnetConfig, NetworkConfig, NetworkConfigError, NetworkFit, Unet1dConfig, UnetConfig,
    UvitConfig,
};
use crate::nn::ops::{CpuArithmetic, Precision, set_cpu_arithmetic, set_precision};
use crate::sampler::{SampleConfig, SampleConfigError};
use crate::train::{EmaConfig, PostHocConfig, PowerEmaError, TrainConfig, TrainConfigError, TrainerError};

mod model;
mod run;
mod start;
#[cfg(test)]
mod tests;

pub use model::{Model, ModelConfig};
pub use run::{may_change, plain};

/// How a run computes. It affects the bits of the result, so it must not change on resume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArithmeticConfig {
    /// Convolutions without Winograd's algorithm.
    pub precise: bool,
    pub precision: Precision,
}

impl ArithmeticConfig {
    /// Applies it to the whole process, which computes on `device` (and others of its kind). On the CPU, `precise` has no effect in bf16.
    pub fn set_on(self, device: &Device) {
        let narrow = self.precision == Precision::Bf16 && is_cpu(device);
        set_cpu_arithmetic(match self.precise {
            _ if narrow => CpuArithmetic::Bf16,
            true => CpuArithmetic::Precise,
            false => CpuArithmetic::Fast,
        });
        set_precision(if narrow { Precision::F32 } else { self.precision });
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
    /// For `model = "unet"`. In the sections of networks, `channels` is set by the data and is not a key of a recipe.
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
    #[error(
        "`augment` is for images and the networks {}, but this run is of {of}",
        Model::names_of(Model::can_be_augmented)
    )]
    Augment { of: String },
    #[error("`guidance` is {guidance}, but the network is told neither classes nor vectors: nothing to guide towards")]
    NothingToGuide { guidance: f64 },
    #[error("`class_condition` is set, but the data have no classes (a folder per class, or labels)")]
    NoClasses,
    #[error(
        "time embeddings by Fourier features (`learned_sinusoidal_cond`, `random_fourier_features`, and always in {}) are made for noise \
         levels between about -15 and 15, but those of `diffusion = \"{formulation}\"` go up to 1000",
        Model::names_of(Model::always_fourier_time)
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
        if self.data.augment > 0.0 && !model.can_be_augmented() {
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
        let (model, default) = (self.network.model, Self::default());
        let says = |other| self.options_of(other) != default.options_of(other);
        if let Some(other) = Model::ALL.into_iter().find(|&other| other != model && says(other)) {
            return Err(RecipeError::OtherModel { section: other.name(), model: model.name() });
        }
        Ok(self.bare_network().validate()?)
    }

    /// The network's options, before those set by the data.
    fn bare_network(&self) -> NetworkConfig {
        self.options_of(self.network.model)
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
        if let (Some(key), Some(got)) = (network.insists_on_outputs(), network.out_channels())
            && got != expected
        {
            let formulation = self.diffusion.formulation.name();
            return Err(RecipeError::OutChannels { key, formulation, expected, got });
        }
        network.validate()?;
        network.check_size(shape.height, shape.width)?;
        Ok(network)
    }
}
