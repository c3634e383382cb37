//! The configuration of a U-ViT: its options, their defaults and the checks done before any weight is made. Not here: the network itself
//! (`uvit.rs`).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::unet_config::{PerStage, stage_width};
use super::{MOST_OF_ANYTHING, is_zero};

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
        let got = match &self.downsample_factor {
            PerStage::All(_) => 1,
            PerStage::Each(factors) => factors.len(),
        };
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
        if height > 0 && width > 0 && height.is_multiple_of(factor) && width.is_multiple_of(factor) {
            return Ok(());
        }
        let down = |side: usize| (side / factor).max(1) * factor;
        let up = |side: usize| side.div_ceil(factor).max(1) * factor;
        let mut nearest = vec![format!("{}x{}", down(height), down(width)), format!("{}x{}", up(height), up(width))];
        nearest.dedup();
        Err(UvitConfigError::Size { height, width, factor, nearest })
    }
}

fn at_least_one(key: &'static str, value: usize) -> Result<(), UvitConfigError> {
    if value == 0 { Err(UvitConfigError::Zero { key }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_a_file() {
        let config: UvitConfig =
            serde_json::from_str(r#"{"dim": 8, "downsample_factor": [2, 1, 4, 2], "image_transform": "haar"}"#)
                .unwrap();
        assert_eq!((config.vit_depth, config.vit_dropout, config.size_factor().unwrap()), (6, 0.2, 32));
        let again: UvitConfig = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert!(serde_json::from_str::<UvitConfig>(r#"{"full_attn": true}"#).is_err());
    }

    #[test]
    fn size_error_names_neighbours() {
        let config = UvitConfig { patch_size: 2, dim_mults: vec![1, 2], ..UvitConfig::default() };
        let error = config.check_size(20, 16).unwrap_err().to_string();
        assert!(error.contains("16x16 and 24x16") && error.contains("by 8"), "{error}");
        assert!(config.check_size(24, 8).is_ok());
        assert!(config.check_size(0, 8).is_err());
    }

    #[test]
    fn wrong_options_are_named() {
        let bad = |config: UvitConfig| config.validate().unwrap_err().to_string();
        let ok = UvitConfig::default;
        for (key, config) in [
            ("dim", UvitConfig { dim: 0, ..ok() }),
            ("init_dim", UvitConfig { init_dim: Some(0), ..ok() }),
            ("out_dim", UvitConfig { out_dim: Some(0), ..ok() }),
            ("dim_mults", UvitConfig { dim_mults: vec![], ..ok() }),
            ("dim_mults", UvitConfig { dim_mults: vec![1, 0], ..ok() }),
            ("downsample_factor", UvitConfig { downsample_factor: PerStage::Each(vec![2, 2]), ..ok() }),
            ("downsample_factor", UvitConfig { downsample_factor: PerStage::All(0), ..ok() }),
            ("downsample_factor", UvitConfig { downsample_factor: PerStage::All(1 << 20), ..ok() }),
            ("vit_depth", UvitConfig { vit_depth: 0, ..ok() }),
            ("vit_dropout", UvitConfig { vit_dropout: 1.0, ..ok() }),
            ("learned_sinusoidal_dim", UvitConfig { learned_sinusoidal_dim: 5, ..ok() }),
            ("dual_patchnorm", UvitConfig { dual_patchnorm: true, ..ok() }),
            ("class_drop_prob", UvitConfig { class_drop_prob: f64::NAN, ..ok() }),
        ] {
            let error = bad(config);
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        }
    }
}
