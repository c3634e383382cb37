//! The configuration of a magnitude-preserving U-Net: its options, their defaults, and the blocks that they define. Not here: the network itself
//! (`karras_unet.rs`).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::is_zero;
use super::unet_config::PerStage;
use crate::data::DataLayout;

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

/// The kind of data, and its size, which decides where attention is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Never [`DataLayout::Auto`].
    pub layout: DataLayout,
    /// 1 unless the data are volumes.
    pub depth: usize,
    /// 1 for sequences.
    pub height: usize,
    pub width: usize,
}

impl Extent {
    /// One pixel.
    const ONE: Self = Self { layout: DataLayout::Images, depth: 1, height: 1, width: 1 };
}

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
    #[error("`{axis}` is halved {times} times and must be a multiple of {}, got {got}", 1_usize << times)]
    Size { axis: &'static str, times: usize, got: usize },
    #[error("the size of the data is not known (`extent`)")]
    NoExtent,
}

/// One block, all options resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockDims {
    pub dim_in: usize,
    pub dim_out: usize,
    pub attention: bool,
    /// Whether depth, height and width are halved (or doubled) before it.
    pub resized: Option<[bool; 3]>,
}

/// All blocks, in the order of the forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub downs: Vec<BlockDims>,
    pub mids: [BlockDims; 2],
    pub ups: Vec<BlockDims>,
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

    /// Whether a block attends to space and time separately.
    pub(crate) fn is_factorized(&self, block: &BlockDims) -> bool {
        match self.space_time_attn {
            SpaceTimeAttention::Joint => false,
            SpaceTimeAttention::Factorized => true,
            SpaceTimeAttention::FactorizedAtResizing => block.resized.is_some(),
        }
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

    /// One number for the outermost stage and each one below it.
    fn blocks_per_stage(&self) -> Result<Vec<usize>, KarrasUnetConfigError> {
        let stages = self.num_downsamples + 1;
        let blocks = match &self.num_blocks_per_stage {
            PerStage::All(blocks) => vec![*blocks; stages],
            PerStage::Each(blocks) if blocks.len() == stages => blocks.clone(),
            PerStage::Each(blocks) if blocks.len() + 1 == stages && !blocks.is_empty() => {
                [&blocks[..1], blocks].concat()
            }
            PerStage::Each(blocks) => {
                let got = blocks.len();
                return Err(KarrasUnetConfigError::PerStage { key: "num_blocks_per_stage", stages, got });
            }
        };
        if blocks.contains(&0) {
            return Err(KarrasUnetConfigError::Zero { key: "num_blocks_per_stage" });
        }
        Ok(blocks)
    }

    fn types(&self) -> Result<Vec<DownsampleType>, KarrasUnetConfigError> {
        let stages = self.num_downsamples;
        let got = match &self.downsample_types {
            PerStage::All(_) => 1,
            PerStage::Each(types) => types.len(),
        };
        let unfit = KarrasUnetConfigError::PerStage { key: "downsample_types", stages, got };
        self.downsample_types.resolve(stages).ok_or(unfit)
    }

    /// Which axes (depth, height, width) each stage halves.
    fn halved(&self) -> Result<Vec<[bool; 3]>, KarrasUnetConfigError> {
        let (types, layout) = (self.types()?, self.extent()?.layout);
        if layout != DataLayout::Volumes && types.iter().any(|&each| each != DownsampleType::All) {
            return Err(KarrasUnetConfigError::DownsampleTypes(layout));
        }
        Ok(types
            .into_iter()
            .map(|each| match (layout, each) {
                (DataLayout::Sequences, _) => [false, false, true],
                (DataLayout::Images | DataLayout::Auto, _) => [false, true, true],
                (DataLayout::Volumes, DownsampleType::All) => [true; 3],
                (DataLayout::Volumes, DownsampleType::Frame) => [true, false, false],
                (DataLayout::Volumes, DownsampleType::Image) => [false, true, true],
            })
            .collect())
    }

    /// Refuses sizes that the network cannot halve often enough.
    ///
    /// # Errors
    /// [`KarrasUnetConfigError::Size`]; other variants for options that describe no network.
    pub fn check_extent(&self, extent: Extent) -> Result<(), KarrasUnetConfigError> {
        let halved = self.halved()?;
        let axes = [("depth", extent.depth), ("height", extent.height), ("width", extent.width)];
        for (index, (axis, got)) in axes.into_iter().enumerate() {
            let times = halved.iter().filter(|halved| halved[index]).count();
            if got == 0 || !got.is_multiple_of(1 << times) {
                return Err(KarrasUnetConfigError::Size { axis, times, got });
            }
        }
        Ok(())
    }

    /// Refuses sizes of the stored data: the slices of volumes are stacked vertically.
    ///
    /// # Errors
    /// As [`check_extent`](Self::check_extent).
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), KarrasUnetConfigError> {
        let extent = self.extent()?;
        let got = height;
        match extent.layout {
            DataLayout::Volumes if !height.is_multiple_of(extent.depth) => {
                Err(KarrasUnetConfigError::Size { axis: "depth", times: 0, got })
            }
            DataLayout::Sequences if height != 1 => Err(KarrasUnetConfigError::Size { axis: "height", times: 0, got }),
            _ => self.check_extent(Extent { height: height / extent.depth, width, ..extent }),
        }
    }

    pub(crate) fn blocks(&self) -> Result<Blocks, KarrasUnetConfigError> {
        self.validate()?;
        let extent = self.extent()?;
        self.check_extent(extent)?;
        if self.space_time_attn != SpaceTimeAttention::Joint && extent.layout != DataLayout::Volumes {
            return Err(KarrasUnetConfigError::SpaceTime(extent.layout));
        }
        let sequences = extent.layout == DataLayout::Sequences;
        let mut size = if sequences { extent.width } else { extent.height.min(extent.width) };
        let halved = self.halved()?;
        let counts = self.blocks_per_stage()?;
        let plain = |dim_in, dim_out, attention| BlockDims { dim_in, dim_out, attention, resized: None };

        // The decoder in reverse order: blocks made last run first.
        let (mut downs, mut up) = (Vec::new(), vec![plain(2 * self.dim, self.dim, false)]);
        let mut dim = self.dim;
        downs.extend(std::iter::repeat_n(plain(dim, dim, false), counts[0]));
        up.extend(std::iter::repeat_n(plain(2 * dim, dim, false), counts[0]));
        for (axes, count) in halved.into_iter().zip(&counts[1..]) {
            let dim_out = self.dim_max.min(2 * dim);
            let above = self.attn_res.contains(&size);
            up.push(BlockDims { dim_in: dim_out, dim_out: dim, attention: above, resized: Some(axes) });
            if axes[2] {
                size /= 2;
            }
            let attention = self.attn_res.contains(&size);
            downs.push(BlockDims { dim_in: dim, dim_out, attention, resized: Some(axes) });
            up.push(plain(2 * dim_out, dim_out, attention));
            downs.extend(std::iter::repeat_n(plain(dim_out, dim_out, attention), *count));
            up.extend(std::iter::repeat_n(plain(2 * dim_out, dim_out, attention), *count));
            dim = dim_out;
        }
        up.reverse();
        let mids = [plain(dim, dim, self.attn_res.contains(&size)); 2];
        Ok(Blocks { downs, mids, ups: up })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(side: usize) -> KarrasUnetConfig {
        let extent = Extent { layout: DataLayout::Images, depth: 1, height: side, width: side };
        KarrasUnetConfig { extent: Some(extent), ..KarrasUnetConfig::default() }
    }

    #[test]
    fn every_encoder_has_its_decoder() {
        let blocks = images(64).blocks().unwrap();
        let skips = blocks.ups.iter().filter(|block| block.resized.is_none()).count();
        assert_eq!((blocks.downs.len() + 1, blocks.downs.len()), (skips, 4 + 3 * 5));
        assert_eq!(blocks.downs.iter().filter(|block| block.attention).count(), 2 * 5);
        assert_eq!(blocks.mids[0], BlockDims { dim_in: 768, dim_out: 768, attention: true, resized: None });
        // The last doubling goes from 32 to 64, the one before from 16 to 32, at which there is no attention.
        let resized: Vec<bool> = blocks.ups.iter().filter(|b| b.resized.is_some()).map(|b| b.attention).collect();
        assert_eq!(resized, [true, false, false]);
    }

    #[test]
    fn volumes_are_halved_by_type_and_sizes_are_checked() {
        let extent = Extent { layout: DataLayout::Volumes, depth: 2, height: 8, width: 8 };
        let types = PerStage::Each(vec![DownsampleType::Image, DownsampleType::Frame, DownsampleType::Image]);
        let config = KarrasUnetConfig { extent: Some(extent), downsample_types: types, ..KarrasUnetConfig::default() };
        let blocks = config.blocks().unwrap();
        let resized: Vec<[bool; 3]> = blocks.downs.iter().filter_map(|block| block.resized).collect();
        assert_eq!(resized, [[false, true, true], [true, false, false], [false, true, true]]);
        config.check_size(2 * 12, 4).unwrap();
        let all = KarrasUnetConfig { downsample_types: PerStage::All(DownsampleType::All), ..config.clone() };
        assert!(all.blocks().unwrap_err().to_string().contains("`depth` is halved 3 times"));
        let error = KarrasUnetConfig { extent: images(64).extent, ..config }.blocks().unwrap_err();
        assert_eq!(error, KarrasUnetConfigError::DownsampleTypes(DataLayout::Images));
        let apart = KarrasUnetConfig { space_time_attn: SpaceTimeAttention::Factorized, ..images(64) };
        assert_eq!(apart.blocks().unwrap_err(), KarrasUnetConfigError::SpaceTime(DataLayout::Images));
        assert!(images(36).blocks().unwrap_err().to_string().contains("multiple of 8, got 36"));
    }

    #[test]
    fn wrong_options_are_named() {
        let ok = KarrasUnetConfig::default;
        for (key, config) in [
            ("dim", KarrasUnetConfig { dim: 0, ..ok() }),
            ("fourier_dim", KarrasUnetConfig { fourier_dim: 5, ..ok() }),
            ("extent.depth", KarrasUnetConfig { extent: Some(Extent { depth: 0, ..Extent::ONE }), ..ok() }),
            ("mp_cat_t", KarrasUnetConfig { mp_cat_t: 1.0, ..ok() }),
            ("dropout", KarrasUnetConfig { dropout: f64::NAN, ..ok() }),
            ("num_blocks_per_stage", KarrasUnetConfig { num_blocks_per_stage: PerStage::Each(vec![1, 2]), ..ok() }),
            ("num_blocks_per_stage", KarrasUnetConfig { num_blocks_per_stage: PerStage::All(0), ..ok() }),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        }
        assert_eq!(ok().blocks().unwrap_err(), KarrasUnetConfigError::NoExtent);
    }
}
