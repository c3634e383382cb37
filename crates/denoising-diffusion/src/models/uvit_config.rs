//! The configuration of a U-ViT: its options, their defaults and the checks done before any weight is made. Not here: the network itself
//! (`uvit.rs`).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::kept::{Again, Tally};
use super::network_options::{Input, NetworkKind, NetworkOptions, SharedOptions, check_multiples};
use super::unet_stages::{stage_width, stage_widths};
use super::{ImageNetwork, MOST_OF_ANYTHING, NetworkConfig, NetworkConfigError, NetworkFit, PerStage, Uvit, is_zero};
use crate::data::{DataLayout, ImageShape};
use crate::nn::Init;

/// An invertible transform of images, applied before the first layer and inverted after the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageTransform {
    #[default]
    None,
    /// One level of the Haar transform: half the sides, four times the channels.
    Haar,
}

impl ImageTransform {
    /// The factor by which each side shrinks.
    pub fn factor(self) -> usize {
        match self {
            Self::None => 1,
            Self::Haar => 2,
        }
    }
}

/// Options of [`Uvit`](super::Uvit). `Default` is the reference's default with `dim = 64`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UvitConfig {
    /// Base width; stage `i` leads to `dim * dim_mults[i]` channels.
    pub dim: usize,
    /// Width after the first convolution; `dim` if absent.
    pub init_dim: Option<usize>,
    /// Channels of the output; those of the data if absent. Set by the formulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_dim: Option<usize>,
    /// Width after each stage as a multiple of `dim`. The last is the transformer's.
    pub dim_mults: Vec<usize>,
    /// The factor by which each stage divides both sides, for all stages or per stage.
    pub downsample_factor: PerStage<usize>,
    /// Channels of the data.
    pub channels: usize,
    /// Number of blocks of the transformer.
    pub vit_depth: usize,
    /// Dropout probability of the transformer's attention weights and hidden layers, in train behaviour only.
    pub vit_dropout: f64,
    /// Width of an attention head of the transformer. The linear attentions around it have 4 heads of width 32, as in the reference.
    pub attn_dim_head: usize,
    /// Number of the transformer's attention heads.
    pub attn_heads: usize,
    /// Width of the hidden layer in each block of the transformer, as a multiple of the transformer's width.
    pub ff_mult: usize,
    /// Number of Fourier features (even) of the noise level.
    pub learned_sinusoidal_dim: usize,
    /// Transform applied to images before the network and inverted after it.
    pub image_transform: ImageTransform,
    /// Side of the square of pixels that the first layer takes as one patch; 1: a 7x7 convolution.
    pub patch_size: usize,
    /// Whether patches are normalised before and after that layer (Kumar et al. 2023, "Dual PatchNorm").
    pub dual_patchnorm: bool,
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
    /// Probability with which training hides an example's class and vector, in [0, 1]. Has no effect without classes and vectors.
    pub class_drop_prob: f64,
}

impl Default for UvitConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            init_dim: None,
            out_dim: None,
            dim_mults: vec![1, 2, 4, 8],
            downsample_factor: PerStage::All(2),
            channels: 3,
            vit_depth: 6,
            vit_dropout: 0.2,
            attn_dim_head: 32,
            attn_heads: 4,
            ff_mult: 4,
            learned_sinusoidal_dim: 16,
            image_transform: ImageTransform::None,
            patch_size: 1,
            dual_patchnorm: false,
            num_classes: 0,
            condition_channels: 0,
            vector_dim: 0,
            augment_labels: false,
            class_drop_prob: 0.5,
        }
    }
}

/// Why a [`UvitConfig`] is invalid, or does not fit the size of the data.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum UvitConfigError {
    #[error("`{key}` must be at least 1, got 0")]
    Zero { key: &'static str },
    #[error("`dim_mults` must name at least one stage")]
    NoStages,
    #[error("`downsample_factor` has {got} values for {stages} stages: give one value, or one per stage")]
    PerStage { stages: usize, got: usize },
    #[error("`learned_sinusoidal_dim` must be even, got {0}")]
    OddFourierDim(usize),
    #[error("`vit_dropout` must lie in [0, 1), got {0}")]
    Dropout(f64),
    #[error("`class_drop_prob` must lie in [0, 1], got {0}")]
    ClassDropProb(f64),
    #[error("`dual_patchnorm` normalises patches, and needs a `patch_size` above 1")]
    DualPatchnorm,
    #[error(
        "`dim` {dim} times {mult} of `dim_mults` makes a stage too wide; at most {} channels are allowed",
        MOST_OF_ANYTHING
    )]
    TooWide { dim: usize, mult: usize },
    #[error("the product of `{key}` is too large")]
    TooLarge { key: &'static str },
    #[error(
        "the network divides both sides by {factor} (`image_transform`, `patch_size` and every `downsample_factor` together), so they must \
         be multiples of it; {height}x{width} is not: the nearest sizes that work are {}", nearest.join(" and ")
    )]
    Size { height: usize, width: usize, factor: usize, nearest: Vec<String> },
}

/// One stage, all options resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UvitStageDims {
    pub dim_in: usize,
    pub dim_out: usize,
    pub factor: usize,
}

impl UvitConfig {
    /// Channels of the network's input.
    pub fn in_channels(&self) -> usize {
        self.channels + self.condition_channels
    }

    /// Channels of the network's output.
    pub fn out_channels(&self) -> usize {
        self.out_dim.unwrap_or(self.channels)
    }

    /// Channels after the first convolution.
    pub fn first_dim(&self) -> usize {
        self.init_dim.unwrap_or(self.dim)
    }

    /// Width of the time embedding.
    pub fn time_dim(&self) -> usize {
        4 * self.dim
    }

    /// Width of the conditioning of each block: the time embedding and, with classes, the class embedding.
    pub fn cond_dim(&self) -> usize {
        self.time_dim() * if self.num_classes > 0 { 2 } else { 1 }
    }

    /// Number of channels after the transform of `channels` channels.
    pub(crate) fn transformed(&self, channels: usize) -> usize {
        channels * self.image_transform.factor() * self.image_transform.factor()
    }

    /// Both sides of the data must be multiples of this.
    ///
    /// # Errors
    /// Invalid options.
    pub fn size_factor(&self) -> Result<usize, UvitConfigError> {
        let stages = self.stages()?.into_iter().map(|stage| stage.factor);
        let mut factors = stages.chain([self.patch_size, self.image_transform.factor()]);
        let factor = factors.try_fold(1_usize, |product, factor| product.checked_mul(factor));
        factor.ok_or(UvitConfigError::TooLarge { key: "downsample_factor" })
    }

    /// The stages, outermost first.
    pub(crate) fn stages(&self) -> Result<Vec<UvitStageDims>, UvitConfigError> {
        self.check_scalars()?;
        let (n, factors) = (self.dim_mults.len(), self.factors()?);
        for (key, values) in [("downsample_factor", &factors), ("dim_mults", &self.dim_mults)] {
            values.iter().try_for_each(|value| at_least_one(key, *value))?;
        }
        let mut dims = vec![self.first_dim()];
        for &mult in &self.dim_mults {
            dims.push(stage_width(self.dim, mult).ok_or(UvitConfigError::TooWide { dim: self.dim, mult })?);
        }
        Ok((0..n).map(|i| UvitStageDims { dim_in: dims[i], dim_out: dims[i + 1], factor: factors[i] }).collect())
    }

    /// The factor by which each stage divides both sides.
    ///
    /// # Errors
    /// If their number differs from that of the stages.
    pub fn factors(&self) -> Result<Vec<usize>, UvitConfigError> {
        let n = self.dim_mults.len();
        let got = self.downsample_factor.given();
        self.downsample_factor.resolve(n).ok_or(UvitConfigError::PerStage { stages: n, got })
    }

    /// Refuses invalid options.
    ///
    /// # Errors
    /// [`UvitConfigError`].
    pub fn validate(&self) -> Result<(), UvitConfigError> {
        self.size_factor().map(drop)
    }

    fn check_scalars(&self) -> Result<(), UvitConfigError> {
        if self.dim_mults.is_empty() {
            return Err(UvitConfigError::NoStages);
        }
        for (key, value) in [
            ("dim", self.dim),
            ("init_dim", self.first_dim()),
            ("channels", self.channels),
            ("out_dim", self.out_channels()),
            ("vit_depth", self.vit_depth),
            ("attn_dim_head", self.attn_dim_head),
            ("attn_heads", self.attn_heads),
            ("ff_mult", self.ff_mult),
            ("learned_sinusoidal_dim", self.learned_sinusoidal_dim),
            ("patch_size", self.patch_size),
        ] {
            at_least_one(key, value)?;
        }
        if !self.learned_sinusoidal_dim.is_multiple_of(2) {
            return Err(UvitConfigError::OddFourierDim(self.learned_sinusoidal_dim));
        }
        if !(0.0..1.0).contains(&self.vit_dropout) {
            return Err(UvitConfigError::Dropout(self.vit_dropout));
        }
        if !(0.0..=1.0).contains(&self.class_drop_prob) {
            return Err(UvitConfigError::ClassDropProb(self.class_drop_prob));
        }
        if self.dual_patchnorm && self.patch_size == 1 {
            return Err(UvitConfigError::DualPatchnorm);
        }
        Ok(())
    }

    /// Refuses sizes that the network cannot divide, naming the nearest valid ones.
    ///
    /// # Errors
    /// [`UvitConfigError::Size`]; other variants for invalid options.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), UvitConfigError> {
        let factor = self.size_factor()?;
        let unfit = |nearest| UvitConfigError::Size { height, width, factor, nearest };
        check_multiples(factor, height, width).map_err(unfit)
    }
}

impl NetworkOptions for UvitConfig {
    fn kind(&self) -> NetworkKind {
        NetworkKind {
            name: "uvit",
            about: "U-Net around a transformer, for images; optional classes (Hoogeboom et al. 2023)",
            layout: DataLayout::Images,
            usual_lr: None,
            depths: &["vit_depth"],
            augment_labels: true,
        }
    }

    fn in_words(&self) -> String {
        let (stages, blocks, heads) = (stage_widths(self.dim, &self.dim_mults), self.vit_depth, self.attn_heads);
        format!("U-ViT, stages {stages}, {blocks} blocks with {heads} heads")
    }

    fn shared(&self) -> SharedOptions {
        let Self { channels, num_classes, condition_channels, vector_dim, class_drop_prob, .. } = *self;
        let out_channels = self.out_channels();
        SharedOptions { channels, out_channels, num_classes, condition_channels, vector_dim, class_drop_prob }
    }

    fn resolves_large_times(&self) -> bool {
        false
    }

    /// Transform and patches make several values of each channel, side by side.
    fn inputs_of(&self, weights: &str) -> Vec<(Input, usize)> {
        let conditioned = |layer: &str| layer.ends_with(".mlp.weight") || layer.ends_with(".ff.to_scale_shift.weight");
        match weights {
            // A convolution of pixels, a layer on patches, or one with its norm.
            "init_conv.weight"
            | "init_conv.conv.weight"
            | "init_conv.linear.weight"
            | "init_conv.norm1.weight"
            | "init_conv.norm1.bias" => {
                self.shared().stacked(false, self.transformed(1) * self.patch_size * self.patch_size)
            }
            layer if conditioned(layer) => self.shared().level_and_class(self.time_dim()),
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
        Ok(ImageNetwork::Uvit(Uvit::new(self, init)?))
    }

    fn fitted(&self, fit: NetworkFit) -> NetworkConfig {
        let NetworkFit { channels, condition_channels, vector_dim, num_classes, augment_labels, .. } = fit;
        let out_dim = (fit.out_channels != channels).then_some(fit.out_channels);
        NetworkConfig::Uvit(Self {
            channels,
            condition_channels,
            vector_dim,
            num_classes,
            augment_labels,
            out_dim,
            ..self.clone()
        })
    }

    fn own_options(&self) -> NetworkConfig {
        let Self { channels, out_dim, num_classes, condition_channels, vector_dim, augment_labels, .. } =
            Self::default();
        NetworkConfig::Uvit(Self {
            channels,
            out_dim,
            num_classes,
            condition_channels,
            vector_dim,
            augment_labels,
            ..self.clone()
        })
    }

    /// Stages like those of a U-Net, and a transformer with as many tokens as the innermost stage has pixels.
    fn kept(&self, shape: ImageShape, recomputed: bool) -> Result<u64, NetworkConfigError> {
        /// Number of heads times their width in the linear attentions.
        const INNER: usize = 128;
        self.validate()?;
        let outer = self.patch_size * self.image_transform.factor();
        let mut pixels = (shape.height * shape.width / (outer * outer)) as u64;
        let (mut tally, mut inner) = (Tally::default(), self.first_dim());
        for (mult, factor) in self.dim_mults.iter().zip(self.factors()?) {
            let dim = self.dim * mult;
            for dim in [inner, dim] {
                tally.add_stage(recomputed, pixels, dim, INNER);
            }
            pixels /= (factor * factor) as u64;
            inner = dim;
        }
        let (hidden, heads, drops) = (inner as u64, self.attn_heads as u64, self.vit_dropout > 0.0);
        let attention = 8 * heads * self.attn_dim_head as u64 + if drops { 2 * heads * pixels } else { 0 };
        for _ in 0..self.vit_depth {
            let all = pixels.saturating_mul(8 * hidden + 6 * hidden * self.ff_mult as u64 + attention);
            tally.add(recomputed.then_some(Again::Tape), all, pixels * hidden);
        }
        Ok(tally.values())
    }
}

fn at_least_one(key: &'static str, value: usize) -> Result<(), UvitConfigError> {
    if value == 0 { Err(UvitConfigError::Zero { key }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
