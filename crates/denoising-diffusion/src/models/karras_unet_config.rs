//! The configuration of a magnitude-preserving U-Net: its options, their defaults and the checks done before any weight is made. Not here: the blocks
//! that they define (`karras_unet_blocks.rs`), and the network itself (`karras_unet.rs`).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::kept::{Again, Tally};
use super::network_options::{Input, NetworkKind, NetworkOptions, SharedOptions, check_multiple};
use super::{Extent, ImageNetwork, KarrasUnet, NetworkConfig, NetworkConfigError, NetworkFit, PerStage, is_zero};
use crate::data::{DataLayout, ImageShape};
use crate::nn::Init;

/// Which axes of volumes a stage halves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownsampleType {
    #[default]
    All,
    /// Only the depth.
    Frame,
    /// Height and width.
    Image,
}

/// Which positions of a volume attend to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpaceTimeAttention {
    /// All of them.
    #[default]
    Joint,
    /// Those within each slice, then those at the same place in all slices, in every block: far fewer pairs.
    Factorized,
    /// Factorized in the blocks that change the size, joint in the others: the reference's `factorize_space_time_attn`.
    FactorizedAtResizing,
}

/// Maximum number of halvings: no side of an image is longer than 2^16.
const MOST_DOWNSAMPLES: usize = 16;

/// Options of [`KarrasUnet`](super::KarrasUnet), of any rank. `Default` is the reference's (configuration G of EDM2, figure 21).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KarrasUnetConfig {
    /// Width of the outermost stage; each stage doubles it.
    pub dim: usize,
    /// Upper limit of the width of any stage.
    pub dim_max: usize,
    /// Channels of the data.
    pub channels: usize,
    /// Channels of the output; those of the data if absent. Set by the formulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_dim: Option<usize>,
    /// Number of stages below the outermost.
    pub num_downsamples: usize,
    /// Blocks per stage in encoder and decoder: one number, or one for each stage (a list that omits the outermost stage gives it the first number).
    pub num_blocks_per_stage: PerStage<usize>,
    /// Which axes of a volume each stage halves: one value for all, or one for each.
    pub downsample_types: PerStage<DownsampleType>,
    /// Sizes at which attention is used: the length of sequences, otherwise the shorter of height and width.
    pub attn_res: Vec<usize>,
    /// Which positions of a volume attend to each other.
    pub space_time_attn: SpaceTimeAttention,
    /// Width of an attention head; there are at least two heads.
    pub attn_dim_head: usize,
    /// Number of Fourier features (even) of the noise level.
    pub fourier_dim: usize,
    /// Weight of the skip connection when concatenated with the data, in (0, 1).
    pub mp_cat_t: f64,
    /// Weight of the class, and of the vector, in the sum of embeddings.
    pub mp_add_emb_t: f64,
    /// Weight of the input in the sum with the attention's output.
    pub attn_res_mp_add_t: f64,
    /// Weight of the input in the sum with the block's output.
    pub resnet_mp_add_t: f64,
    /// Dropout probability within blocks, in train behaviour only.
    pub dropout: f64,
    /// Whether the network also takes an earlier estimate of the clean data.
    pub self_condition: bool,
    /// Number of classes that the network is conditioned on; 0: none. Set by the data, like `channels`.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_classes: usize,
    /// Channels of the condition image, which the first layer gets in addition to the noisy data; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub condition_channels: usize,
    /// Length of the conditioning vector, which is embedded and added to the embedding of the noise level; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub vector_dim: usize,
    /// Probability with which training hides an example's class and vector, in [0, 1]; the reference, which cannot guide this network, has no such
    /// option. Has no effect without classes and vectors.
    pub class_drop_prob: f64,
    /// Set by the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extent: Option<Extent>,
}

impl Default for KarrasUnetConfig {
    fn default() -> Self {
        Self {
            dim: 192,
            dim_max: 768,
            channels: 4,
            out_dim: None,
            num_downsamples: 3,
            num_blocks_per_stage: PerStage::All(4),
            downsample_types: PerStage::All(DownsampleType::All),
            attn_res: vec![16, 8],
            space_time_attn: SpaceTimeAttention::Joint,
            attn_dim_head: 64,
            fourier_dim: 16,
            mp_cat_t: 0.5,
            mp_add_emb_t: 0.5,
            attn_res_mp_add_t: 0.3,
            resnet_mp_add_t: 0.3,
            dropout: 0.1,
            self_condition: false,
            num_classes: 0,
            condition_channels: 0,
            vector_dim: 0,
            class_drop_prob: 0.1,
            extent: None,
        }
    }
}

/// Why a [`KarrasUnetConfig`] is invalid, or does not fit the size of the data.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum KarrasUnetConfigError {
    #[error("`{key}` must be at least 1, got 0")]
    Zero { key: &'static str },
    #[error("`fourier_dim` must be even, got {0}")]
    OddFourierDim(usize),
    #[error("`{key}` must lie {range}, got {got}")]
    Value { key: &'static str, range: &'static str, got: f64 },
    #[error("`{key}` has {got} values for {stages} stages: give one value, or one per stage")]
    PerStage { key: &'static str, stages: usize, got: usize },
    #[error("`downsample_types` is for volumes, but the data are {0}")]
    DownsampleTypes(DataLayout),
    #[error("`space_time_attn` is for volumes, but the data are {0}")]
    SpaceTime(DataLayout),
    #[error(
        "`{axis}` is halved {times} times and must be a multiple of {}, got {got}: the nearest that work are {}",
        1_usize << times, nearest.join(" and ")
    )]
    Size { axis: &'static str, times: usize, got: usize, nearest: Vec<String> },
    #[error("the network is for sequences, whose height is 1, got {height}")]
    NotSequences { height: usize },
    #[error(
        "the network is for volumes of {depth} slices, one below the other, so the height must be a multiple of {depth}, got {height}: \
         the nearest that work are {}", nearest.join(" and ")
    )]
    Slices { depth: usize, height: usize, nearest: Vec<String> },
    #[error("the size of the data is not known (`extent`)")]
    NoExtent,
}

impl KarrasUnetConfig {
    /// Channels of the network's output.
    pub fn out_channels(&self) -> usize {
        self.out_dim.unwrap_or(self.channels)
    }

    /// Channels that the first convolution sees.
    pub fn in_channels(&self) -> usize {
        self.channels * if self.self_condition { 2 } else { 1 } + self.condition_channels
    }

    /// Width of the embedding of level and class.
    pub fn emb_dim(&self) -> usize {
        4 * self.dim
    }

    /// Number of attention heads for `dim` channels.
    pub fn heads(&self, dim: usize) -> usize {
        dim.div_ceil(self.attn_dim_head).max(2)
    }

    pub(crate) fn extent(&self) -> Result<Extent, KarrasUnetConfigError> {
        self.extent.ok_or(KarrasUnetConfigError::NoExtent)
    }

    /// Kernel size along depth, height and width.
    pub(crate) fn kernel(layout: DataLayout, kernel: usize) -> [usize; 3] {
        match layout {
            DataLayout::Sequences => [1, 1, kernel],
            DataLayout::Volumes => [kernel; 3],
            DataLayout::Images | DataLayout::Auto => [1, kernel, kernel],
        }
    }

    /// Refuses options that are invalid for any size of data.
    ///
    /// # Errors
    /// [`KarrasUnetConfigError`].
    pub fn validate(&self) -> Result<(), KarrasUnetConfigError> {
        for (key, value) in [
            ("dim", self.dim),
            ("dim_max", self.dim_max),
            ("channels", self.channels),
            ("out_dim", self.out_channels()),
            ("attn_dim_head", self.attn_dim_head),
            ("fourier_dim", self.fourier_dim),
        ] {
            if value == 0 {
                return Err(KarrasUnetConfigError::Zero { key });
            }
        }
        let Extent { depth, height, width, .. } = self.extent.unwrap_or(Extent::ONE);
        for (key, value) in [("extent.depth", depth), ("extent.height", height), ("extent.width", width)] {
            if value == 0 {
                return Err(KarrasUnetConfigError::Zero { key });
            }
        }
        if self.num_downsamples > MOST_DOWNSAMPLES {
            let (key, got) = ("num_downsamples", self.num_downsamples as f64);
            return Err(KarrasUnetConfigError::Value { key, range: "in [0, 16]", got });
        }
        if !self.fourier_dim.is_multiple_of(2) {
            return Err(KarrasUnetConfigError::OddFourierDim(self.fourier_dim));
        }
        let value =
            |key, ok, range, got| if ok { Ok(()) } else { Err(KarrasUnetConfigError::Value { key, range, got }) };
        for (key, t) in [
            ("mp_cat_t", self.mp_cat_t),
            ("mp_add_emb_t", self.mp_add_emb_t),
            ("attn_res_mp_add_t", self.attn_res_mp_add_t),
            ("resnet_mp_add_t", self.resnet_mp_add_t),
        ] {
            value(key, t > 0.0 && t < 1.0, "in (0, 1)", t)?;
        }
        value("dropout", (0.0..1.0).contains(&self.dropout), "in [0, 1)", self.dropout)?;
        value("class_drop_prob", (0.0..=1.0).contains(&self.class_drop_prob), "in [0, 1]", self.class_drop_prob)?;
        self.blocks_per_stage()?;
        self.types().map(drop)
    }

    /// Refuses sizes that the network cannot halve often enough, naming the nearest valid ones.
    ///
    /// # Errors
    /// [`KarrasUnetConfigError::Size`]; other variants for options that describe no network.
    pub fn check_extent(&self, extent: Extent) -> Result<(), KarrasUnetConfigError> {
        self.validate()?;
        let halved = self.halved()?;
        let axes = [("depth", extent.depth), ("height", extent.height), ("width", extent.width)];
        for (index, (axis, got)) in axes.into_iter().enumerate() {
            let times = halved.iter().filter(|halved| halved[index]).count();
            check_multiple(1 << times, got).map_err(|nearest| KarrasUnetConfigError::Size {
                axis,
                times,
                got,
                nearest,
            })?;
        }
        Ok(())
    }

    /// Refuses sizes of the stored data: the slices of volumes are stacked vertically.
    ///
    /// # Errors
    /// As [`check_extent`](Self::check_extent); [`KarrasUnetConfigError::NotSequences`], [`KarrasUnetConfigError::Slices`].
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), KarrasUnetConfigError> {
        self.validate()?;
        let extent = self.extent()?;
        let depth = extent.depth;
        if extent.layout == DataLayout::Sequences && height != 1 {
            return Err(KarrasUnetConfigError::NotSequences { height });
        }
        if extent.layout == DataLayout::Volumes {
            check_multiple(depth, height).map_err(|nearest| KarrasUnetConfigError::Slices {
                depth,
                height,
                nearest,
            })?;
        }
        self.check_extent(Extent { height: height / depth, width, ..extent })
    }

    /// Width of a stage, counted from the outermost.
    fn width(&self, stage: usize) -> usize {
        self.dim.saturating_mul(1 << stage.min(MOST_DOWNSAMPLES)).min(self.dim_max)
    }
}

impl NetworkOptions for KarrasUnetConfig {
    fn kind(&self) -> NetworkKind {
        NetworkKind {
            name: "karras_unet",
            about: "magnitude-preserving U-Net, for images, sequences, volumes; optional classes (Karras et al. 2023)",
            layout: DataLayout::Auto,
            // Forced weight normalisation keeps the norm of weights constant, and Adam's steps must be large enough relative to it: EDM2 (Karras et
            // al. 2023, arXiv:2312.02696) begins at about 1e-2.
            usual_lr: Some(1e-2),
            depths: &["num_blocks_per_stage"],
            augment_labels: false,
        }
    }

    fn in_words(&self) -> String {
        let dims = (0..=self.num_downsamples.min(MOST_DOWNSAMPLES)).map(|stage| self.width(stage).to_string());
        let of = self.extent.map_or(String::new(), |extent| format!(" for {}", extent.layout));
        format!("magnitude-preserving U-Net{of}, stages {}", dims.collect::<Vec<_>>().join(", "))
    }

    fn shared(&self) -> SharedOptions {
        let Self { channels, num_classes, condition_channels, vector_dim, class_drop_prob, .. } = *self;
        let out_channels = self.out_channels();
        SharedOptions { channels, out_channels, num_classes, condition_channels, vector_dim, class_drop_prob }
    }

    fn layout(&self) -> DataLayout {
        self.extent.map_or(DataLayout::Auto, |extent| extent.layout)
    }

    fn depth(&self) -> usize {
        self.extent.map_or(1, |extent| extent.depth)
    }

    fn resolves_large_times(&self) -> bool {
        false
    }

    fn inputs_of(&self, weights: &str) -> Vec<(Input, usize)> {
        match weights {
            "input.weight" => {
                [(Input::Ones, 1)].into_iter().chain(self.shared().stacked(self.self_condition, 1)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn check_options(&self) -> Result<(), NetworkConfigError> {
        Ok(self.validate()?)
    }

    fn check_data(&self, height: usize, width: usize) -> Result<(), NetworkConfigError> {
        Ok(self.check_size(height, width)?)
    }

    fn build(&self, init: &mut Init) -> Result<ImageNetwork, NetworkConfigError> {
        Ok(ImageNetwork::KarrasUnet(KarrasUnet::new(self, init)?))
    }

    fn fitted(&self, fit: NetworkFit) -> NetworkConfig {
        let NetworkFit { channels, condition_channels, vector_dim, num_classes, .. } = fit;
        let out_dim = (fit.out_channels != channels).then_some(fit.out_channels);
        NetworkConfig::KarrasUnet(Self {
            channels,
            condition_channels,
            vector_dim,
            num_classes,
            out_dim,
            extent: Some(fit.extent),
            ..self.clone()
        })
    }

    fn own_options(&self) -> NetworkConfig {
        let Self { channels, out_dim, num_classes, condition_channels, vector_dim, extent, .. } = Self::default();
        NetworkConfig::KarrasUnet(Self {
            channels,
            out_dim,
            num_classes,
            condition_channels,
            vector_dim,
            extent,
            ..self.clone()
        })
    }

    /// The inputs, activations and outputs of the two convolutions of each block, in encoder and decoder.
    fn kept(&self, shape: ImageShape, recomputed: bool) -> Result<u64, NetworkConfigError> {
        self.validate()?;
        let (again, mut tally) = (recomputed.then_some(Again::Tape), Tally::default());
        let mut positions = (shape.height * shape.width) as u64;
        let axes = match self.layout() {
            DataLayout::Sequences => 2,
            DataLayout::Volumes => 8,
            DataLayout::Images | DataLayout::Auto => 4,
        };
        let blocks = match &self.num_blocks_per_stage {
            PerStage::All(blocks) => *blocks,
            PerStage::Each(blocks) => blocks.iter().copied().max().unwrap_or(0),
        };
        for stage in 0..=self.num_downsamples {
            let dim = self.width(stage) as u64;
            // In encoder and decoder, and one more in each where the size changes.
            for _ in 0..2 * blocks {
                tally.add(again, 10 * positions * dim, positions * dim);
            }
            for _ in 0..2 {
                tally.add(again, 6 * positions * dim, positions * dim);
            }
            positions /= axes;
        }
        Ok(tally.values())
    }
}

#[cfg(test)]
mod tests;
