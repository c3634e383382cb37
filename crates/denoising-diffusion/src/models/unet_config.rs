//! The configuration of a U-Net: its options, their defaults and the checks done before any weight is made. Not here: the stages that they define
//! (`unet_stages.rs`), and the network itself (`unet.rs`).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::kept::Tally;
use super::network_options::{Input, NetworkKind, NetworkOptions, SharedOptions, check_multiple, check_multiples};
use super::unet_stages::{Stage, stage_widths};
use super::{ImageNetwork, MOST_OF_ANYTHING, NetworkConfig, NetworkConfigError, NetworkFit, PerStage, Unet, is_zero};
use crate::data::{DataLayout, ImageShape};
use crate::nn::{Axes, Init};

/// How a stage halves its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Downsampling {
    /// Blocks of 2x2 pixels become channels, followed by a 1x1 convolution.
    #[default]
    Unshuffle,
    /// A 4x4 convolution of stride 2.
    Strided,
}

/// Options of [`Unet`](super::Unet). `Default` is the reference's default with `dim = 64`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnetConfig {
    /// Base width; stage `i` has `dim * dim_mults[i]` channels.
    pub dim: usize,
    /// Width after the first 7x7 convolution; `dim` if absent.
    pub init_dim: Option<usize>,
    /// Channels of the output; `channels`, twice that with `learned_variance`, if absent.
    pub out_dim: Option<usize>,
    /// Width of each stage as a multiple of `dim`; every stage but the last halves both sides.
    pub dim_mults: Vec<usize>,
    /// Channels of the data.
    pub channels: usize,
    /// Whether the network also takes an earlier estimate of the clean data (Chen et al. 2022, "Analog Bits").
    pub self_condition: bool,
    /// Whether the output has a second half that parameterises the variance.
    pub learned_variance: bool,
    /// Time embedding by learned Fourier frequencies in place of fixed sinusoids.
    pub learned_sinusoidal_cond: bool,
    /// Time embedding by fixed random Fourier frequencies; overrides `learned_sinusoidal_cond`.
    pub random_fourier_features: bool,
    /// Number of Fourier features (even) for the two options above.
    pub learned_sinusoidal_dim: usize,
    /// Base of the sinusoidal embedding's geometric frequencies.
    pub sinusoidal_pos_emb_theta: f64,
    /// Dropout probability after the first block of each residual block, in train behaviour only.
    pub dropout: f64,
    /// Width of an attention head, for all stages or per stage.
    pub attn_dim_head: PerStage<usize>,
    /// Number of attention heads, for all stages or per stage.
    pub attn_heads: PerStage<usize>,
    /// Softmax attention (`true`) or linear attention (`false`), for all stages or per stage; if absent, softmax in the innermost stage only. The
    /// middle block always has softmax attention.
    pub full_attn: Option<PerStage<bool>>,
    /// Number of learned key-value pairs in addition to the positions, in every attention; 0: none.
    pub num_mem_kv: usize,
    /// Attention heads of the middle block; those of the innermost stage if absent.
    pub mid_attn_heads: Option<usize>,
    /// Width of a head of the middle block; that of the innermost stage if absent.
    pub mid_attn_dim_head: Option<usize>,
    pub downsample: Downsampling,
    /// Number of classes that the network is conditioned on; 0: none. Set by the data, like `channels`.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_classes: usize,
    /// Channels of the condition image, which the first layer gets in addition to the noisy data; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub condition_channels: usize,
    /// Length of the conditioning vector, which is embedded and added to the embedding of the noise level; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub vector_dim: usize,
    /// Whether the network is told how a training image was [augmented](crate::data::augment). Follows the data, like `channels`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub augment_labels: bool,
    /// Probability with which training hides an example's class and vector, in [0, 1] (Ho and Salimans 2022, "Classifier-free diffusion guidance",
    /// algorithm 1: p_uncond). Used by the training code: the network itself never drops anything. Has no effect without classes and vectors.
    pub class_drop_prob: f64,
    /// The axes of images, or that of sequences. Set by [`Unet1dConfig`](super::Unet1dConfig); not an option in files.
    #[serde(skip)]
    pub axes: Axes,
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            init_dim: None,
            out_dim: None,
            dim_mults: vec![1, 2, 4, 8],
            channels: 3,
            self_condition: false,
            learned_variance: false,
            learned_sinusoidal_cond: false,
            random_fourier_features: false,
            learned_sinusoidal_dim: 16,
            sinusoidal_pos_emb_theta: 10_000.0,
            dropout: 0.0,
            attn_dim_head: PerStage::All(32),
            attn_heads: PerStage::All(4),
            full_attn: None,
            num_mem_kv: 4,
            mid_attn_heads: None,
            mid_attn_dim_head: None,
            downsample: Downsampling::Unshuffle,
            num_classes: 0,
            condition_channels: 0,
            vector_dim: 0,
            augment_labels: false,
            class_drop_prob: 0.5,
            axes: Axes::Both,
        }
    }
}

/// Stages at most: no side of an image is longer than 2^16.
pub(super) const MOST_STAGES: usize = 16;

/// Why a [`UnetConfig`] is invalid, or does not fit the size of the data.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum UnetConfigError {
    #[error("`{key}` must be at least {least}, got {got}")]
    TooSmall { key: &'static str, least: usize, got: usize },
    #[error("`dim_mults` must name at least one stage")]
    NoStages,
    #[error(
        "`dim` {dim} times {mult} of `dim_mults` makes a stage too wide; at most {} channels are allowed",
        MOST_OF_ANYTHING
    )]
    TooWide { dim: usize, mult: usize },
    #[error("`dim_mults` names {got} stages; at most {} are allowed", MOST_STAGES)]
    TooManyStages { got: usize },
    #[error("`{key}` has {got} values for {stages} stages: give one value, or one per stage")]
    PerStage { key: &'static str, stages: usize, got: usize },
    #[error("`learned_sinusoidal_dim` must be even, got {0}")]
    OddFourierDim(usize),
    #[error(
        "`dim` must be even (half of the time embedding is sines, half cosines) and at least 4, got {0}; with `learned_sinusoidal_cond` \
         or `random_fourier_features` any value is allowed"
    )]
    BadDim(usize),
    #[error("`dropout` must lie in [0, 1), got {0}")]
    Dropout(f64),
    #[error("`class_drop_prob` must lie in [0, 1], got {0}")]
    ClassDropProb(f64),
    #[error("`sinusoidal_pos_emb_theta` must be a number above 1, got {0}")]
    Theta(f64),
    #[error(
        "a network of {stages} stages needs sides that are multiples of {factor}, as every stage but the last halves them; \
         {height}x{width} is not: the nearest sizes that work are {}", nearest.join(" and ")
    )]
    Size { height: usize, width: usize, stages: usize, factor: usize, nearest: Vec<String> },
    #[error(
        "a network of {stages} stages needs a length that is a multiple of {factor}, as every stage but the last halves it; \
         {length} is not: the nearest lengths that work are {}", nearest.join(" and ")
    )]
    Length { length: usize, stages: usize, factor: usize, nearest: Vec<String> },
    #[error("for sequences, `downsample` must be \"strided\"")]
    UnshuffledSequence,
}

impl UnetConfig {
    /// Channels of the network's output.
    pub fn out_channels(&self) -> usize {
        self.out_dim.unwrap_or(self.channels * if self.learned_variance { 2 } else { 1 })
    }

    /// Input channels of the first convolution.
    pub fn in_channels(&self) -> usize {
        self.channels * if self.self_condition { 2 } else { 1 } + self.condition_channels
    }

    /// Channels after the first convolution.
    pub fn first_dim(&self) -> usize {
        self.init_dim.unwrap_or(self.dim)
    }

    /// Width of the time embedding.
    pub fn time_dim(&self) -> usize {
        self.dim * 4
    }

    /// Width of the conditioning of each residual block: the time embedding and, with classes, the class embedding.
    pub fn cond_dim(&self) -> usize {
        self.time_dim() * if self.num_classes > 0 { 2 } else { 1 }
    }

    /// Whether time is embedded by Fourier features rather than sinusoids.
    pub fn fourier_time(&self) -> bool {
        self.learned_sinusoidal_cond || self.random_fourier_features
    }

    /// Heads of the middle block's attention, and the width of each.
    pub fn mid_attention(&self, innermost: &Stage) -> (usize, usize) {
        let heads = self.mid_attn_heads.unwrap_or(innermost.heads);
        (heads, self.mid_attn_dim_head.unwrap_or(innermost.dim_head))
    }

    /// Both sides of the data (for sequences, the length) must be multiples of this.
    pub fn downsample_factor(&self) -> usize {
        1 << (self.dim_mults.len().clamp(1, MOST_STAGES) - 1)
    }

    /// Refuses what is invalid for any number of stages.
    pub(super) fn check_scalars(&self) -> Result<(), UnetConfigError> {
        if self.dim_mults.is_empty() {
            return Err(UnetConfigError::NoStages);
        }
        at_least_one("dim", self.dim)?;
        if !self.fourier_time() && (self.dim < 4 || !self.dim.is_multiple_of(2)) {
            return Err(UnetConfigError::BadDim(self.dim));
        }
        at_least_one("channels", self.channels)?;
        at_least_one("init_dim", self.first_dim())?;
        at_least_one("out_dim", self.out_channels())?;
        at_least_one("learned_sinusoidal_dim", self.learned_sinusoidal_dim)?;
        if !self.learned_sinusoidal_dim.is_multiple_of(2) {
            return Err(UnetConfigError::OddFourierDim(self.learned_sinusoidal_dim));
        }
        at_least_one("mid_attn_heads", self.mid_attn_heads.unwrap_or(1))?;
        at_least_one("mid_attn_dim_head", self.mid_attn_dim_head.unwrap_or(1))?;
        if self.axes == Axes::Width && self.downsample != Downsampling::Strided {
            return Err(UnetConfigError::UnshuffledSequence);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(UnetConfigError::Dropout(self.dropout));
        }
        if !(0.0..=1.0).contains(&self.class_drop_prob) {
            return Err(UnetConfigError::ClassDropProb(self.class_drop_prob));
        }
        if !(self.sinusoidal_pos_emb_theta > 1.0 && self.sinusoidal_pos_emb_theta.is_finite()) {
            return Err(UnetConfigError::Theta(self.sinusoidal_pos_emb_theta));
        }
        Ok(())
    }

    /// Refuses sizes that the network cannot halve often enough, naming the nearest valid ones.
    ///
    /// # Errors
    /// [`UnetConfigError::Size`] and [`UnetConfigError::Length`]; other variants for options that describe no network.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), UnetConfigError> {
        self.stages()?;
        let (stages, factor) = (self.dim_mults.len(), self.downsample_factor());
        if self.axes == Axes::Width {
            let unfit = |nearest| UnetConfigError::Length { length: width, stages, factor, nearest };
            return check_multiple(factor, width).map_err(unfit);
        }
        let unfit = |nearest| UnetConfigError::Size { height, width, stages, factor, nearest };
        check_multiples(factor, height, width).map_err(unfit)
    }
}

impl NetworkOptions for UnetConfig {
    fn kind(&self) -> NetworkKind {
        NetworkKind {
            name: "unet",
            about: "U-Net of residual blocks and attention, for images; optional classes (Ho et al. 2020)",
            layout: DataLayout::Images,
            usual_lr: None,
            depths: &[],
            augment_labels: true,
        }
    }

    fn in_words(&self) -> String {
        format!("U-Net, stages {}", stage_widths(self.dim, &self.dim_mults))
    }

    fn shared(&self) -> SharedOptions {
        let Self { channels, num_classes, condition_channels, vector_dim, class_drop_prob, .. } = *self;
        let out_channels = self.out_channels();
        SharedOptions { channels, out_channels, num_classes, condition_channels, vector_dim, class_drop_prob }
    }

    fn resolves_large_times(&self) -> bool {
        !self.fourier_time()
    }

    fn inputs_of(&self, weights: &str) -> Vec<(Input, usize)> {
        match weights {
            "init_conv.weight" => self.shared().stacked(self.self_condition, 1),
            block if block.ends_with(".mlp.weight") => self.shared().level_and_class(self.time_dim()),
            _ => Vec::new(),
        }
    }

    fn check_options(&self) -> Result<(), NetworkConfigError> {
        self.stages()?;
        Ok(())
    }

    fn check_data(&self, height: usize, width: usize) -> Result<(), NetworkConfigError> {
        Ok(self.check_size(height, width)?)
    }

    fn build(&self, init: &mut Init) -> Result<ImageNetwork, NetworkConfigError> {
        Ok(ImageNetwork::Unet(Unet::new(self, init)?))
    }

    fn fitted(&self, fit: NetworkFit) -> NetworkConfig {
        let NetworkFit { channels, condition_channels, vector_dim, num_classes, augment_labels, .. } = fit;
        let config = Self { channels, condition_channels, vector_dim, num_classes, augment_labels, ..self.clone() };
        let suits = self.insists_on_outputs().is_some() || config.out_channels() == fit.out_channels;
        let out_dim = if suits { self.out_dim } else { Some(fit.out_channels) };
        NetworkConfig::Unet(Self { out_dim, ..config })
    }

    fn insists_on_outputs(&self) -> Option<&'static str> {
        self.out_dim.map(|_| "out_dim").or(self.learned_variance.then_some("learned_variance"))
    }

    fn own_options(&self) -> NetworkConfig {
        let Self { channels, out_dim, num_classes, condition_channels, vector_dim, augment_labels, .. } =
            Self::default();
        NetworkConfig::Unet(Self {
            channels,
            out_dim,
            num_classes,
            condition_channels,
            vector_dim,
            augment_labels,
            ..self.clone()
        })
    }

    /// From the widths of the stages.
    fn kept(&self, shape: ImageShape, recomputed: bool) -> Result<u64, NetworkConfigError> {
        let (mut tally, mut pixels) = (Tally::default(), (shape.height * shape.width) as u64);
        for stage in self.stages()? {
            let inner = stage.heads * stage.dim_head;
            tally.add_stage(recomputed, pixels, stage.dim_in, inner); // encoder
            tally.add_stage(recomputed, pixels, stage.dim_out, inner); // decoder
            if stage.is_last {
                tally.add_stage(recomputed, pixels, stage.dim_out, inner); // middle
            } else {
                pixels /= if self.axes == Axes::Both { 4 } else { 2 };
            }
        }
        Ok(tally.values())
    }
}

pub(super) fn at_least_one(key: &'static str, got: usize) -> Result<(), UnetConfigError> {
    at_least(key, 1, got)
}

pub(super) fn at_least(key: &'static str, least: usize, got: usize) -> Result<(), UnetConfigError> {
    if got < least { Err(UnetConfigError::TooSmall { key, least, got }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
