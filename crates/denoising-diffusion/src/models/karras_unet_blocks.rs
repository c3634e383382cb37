//! The blocks of a magnitude-preserving U-Net that its options define: how many, and widths, sizes and attention of each. Not here: the options
//! (`karras_unet_config.rs`), and the network (`karras_unet.rs`).

use super::PerStage;
use super::karras_unet_config::{DownsampleType, KarrasUnetConfig, KarrasUnetConfigError, SpaceTimeAttention};
use crate::data::DataLayout;

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
    /// One number for the outermost stage and each one below it.
    pub(super) fn blocks_per_stage(&self) -> Result<Vec<usize>, KarrasUnetConfigError> {
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

    /// The `downsample_types`, one for each stage.
    pub(super) fn types(&self) -> Result<Vec<DownsampleType>, KarrasUnetConfigError> {
        let stages = self.num_downsamples;
        let got = self.downsample_types.given();
        let unfit = KarrasUnetConfigError::PerStage { key: "downsample_types", stages, got };
        self.downsample_types.resolve(stages).ok_or(unfit)
    }

    /// Which axes (depth, height, width) each stage halves.
    pub(super) fn halved(&self) -> Result<Vec<[bool; 3]>, KarrasUnetConfigError> {
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

    /// Whether a block attends to space and time separately.
    pub(crate) fn is_factorized(&self, block: &BlockDims) -> bool {
        match self.space_time_attn {
            SpaceTimeAttention::Joint => false,
            SpaceTimeAttention::Factorized => true,
            SpaceTimeAttention::FactorizedAtResizing => block.resized.is_some(),
        }
    }

    /// The blocks for the data that the network is made for.
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
