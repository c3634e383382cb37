//! The configuration of a U-Net: its options, their defaults and the checks done before any weight is made. Not here: the network itself
//! (`unet.rs`).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{MOST_OF_ANYTHING, is_zero};
use crate::nn::Axes;

/// One value for all stages, or one value per stage (outermost first).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerStage<T> {
    All(T),
    Each(Vec<T>),
}

impl<T: Clone> PerStage<T> {
    /// The values of `stages` stages, or `None` if a list of another length was given.
    pub fn resolve(&self, stages: usize) -> Option<Vec<T>> {
        match self {
            PerStage::All(value) => Some(vec![value.clone(); stages]),
            PerStage::Each(values) => (values.len() == stages).then(|| values.clone()),
        }
    }

    fn given(&self) -> usize {
        match self {
            PerStage::All(_) => 1,
            PerStage::Each(values) => values.len(),
        }
    }
}

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
const MOST_STAGES: usize = 16;

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
        "a network of {stages} stages halves both sides {} times, so they must be multiples of {factor}; \
         {height}x{width} is not: the nearest sizes that work are {}", stages - 1, nearest.join(" and ")
    )]
    Size { height: usize, width: usize, stages: usize, factor: usize, nearest: Vec<String> },
    #[error(
        "a network of {stages} stages halves the length {} times, so it must be a multiple of {factor}; \
         {length} is not: the nearest lengths that work are {}", stages - 1, nearest.join(" and ")
    )]
    Length { length: usize, stages: usize, factor: usize, nearest: Vec<String> },
    #[error("for sequences, `downsample` must be \"strided\"")]
    UnshuffledSequence,
}

/// The configuration of one stage, all options resolved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    pub dim_in: usize,
    pub dim_out: usize,
    pub full_attn: bool,
    pub heads: usize,
    pub dim_head: usize,
    pub is_last: bool,
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

    /// The stages, outermost first.
    pub fn stages(&self) -> Result<Vec<Stage>, UnetConfigError> {
        self.check_scalars()?;
        let n = self.dim_mults.len();
        if n > MOST_STAGES {
            return Err(UnetConfigError::TooManyStages { got: n });
        }
        let innermost_only = PerStage::Each((0..n).map(|i| i + 1 == n).collect());
        let full_attn = per_stage("full_attn", self.full_attn.as_ref().unwrap_or(&innermost_only), n)?;
        let heads = per_stage("attn_heads", &self.attn_heads, n)?;
        let dim_head = per_stage("attn_dim_head", &self.attn_dim_head, n)?;
        for (key, values) in [("attn_heads", &heads), ("attn_dim_head", &dim_head), ("dim_mults", &self.dim_mults)] {
            at_least_one(key, values.iter().copied().min().unwrap_or(0))?;
        }
        let mut dims = vec![self.first_dim()];
        for &mult in &self.dim_mults {
            dims.push(stage_width(self.dim, mult).ok_or(UnetConfigError::TooWide { dim: self.dim, mult })?);
        }
        Ok((0..n)
            .map(|i| Stage {
                dim_in: dims[i],
                dim_out: dims[i + 1],
                full_attn: full_attn[i],
                heads: heads[i],
                dim_head: dim_head[i],
                is_last: i + 1 == n,
            })
            .collect())
    }

    fn check_scalars(&self) -> Result<(), UnetConfigError> {
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
        let factor = self.downsample_factor();
        if self.axes == Axes::Width {
            return self.check_length(width);
        }
        if height > 0 && width > 0 && height.is_multiple_of(factor) && width.is_multiple_of(factor) {
            return Ok(());
        }
        let down = |side: usize| (side / factor).max(1) * factor;
        let up = |side: usize| side.div_ceil(factor).max(1) * factor;
        let mut nearest = vec![format!("{}x{}", down(height), down(width)), format!("{}x{}", up(height), up(width))];
        nearest.dedup();
        let stages = self.dim_mults.len();
        Err(UnetConfigError::Size { height, width, stages, factor, nearest })
    }
}

impl UnetConfig {
    fn check_length(&self, length: usize) -> Result<(), UnetConfigError> {
        let factor = self.downsample_factor();
        if length > 0 && length.is_multiple_of(factor) {
            return Ok(());
        }
        let mut nearest = vec![((length / factor).max(1) * factor).to_string()];
        nearest.push((length.div_ceil(factor).max(1) * factor).to_string());
        nearest.dedup();
        Err(UnetConfigError::Length { length, stages: self.dim_mults.len(), factor, nearest })
    }
}

/// `None` if it is too wide.
pub(super) fn stage_width(dim: usize, mult: usize) -> Option<usize> {
    dim.checked_mul(mult).filter(|&width| width as u64 <= MOST_OF_ANYTHING)
}

fn per_stage<T: Clone>(key: &'static str, value: &PerStage<T>, stages: usize) -> Result<Vec<T>, UnetConfigError> {
    value.resolve(stages).ok_or(UnetConfigError::PerStage { key, stages, got: value.given() })
}

fn at_least_one(key: &'static str, got: usize) -> Result<(), UnetConfigError> {
    at_least(key, 1, got)
}

pub(super) fn at_least(key: &'static str, least: usize, got: usize) -> Result<(), UnetConfigError> {
    if got < least { Err(UnetConfigError::TooSmall { key, least, got }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_has_softmax_attention_innermost_only() {
        let stages = UnetConfig::default().stages().unwrap();
        assert_eq!(stages.iter().map(|s| s.full_attn).collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!(
            stages.iter().map(|s| (s.dim_in, s.dim_out)).collect::<Vec<_>>(),
            [(64, 64), (64, 128), (128, 256), (256, 512)]
        );
    }

    #[test]
    fn full_attn_false_means_none() {
        let config = UnetConfig { full_attn: Some(PerStage::All(false)), ..Default::default() };
        assert!(config.stages().unwrap().iter().all(|s| !s.full_attn));
    }

    #[test]
    fn size_error_names_neighbours() {
        let error = UnetConfig::default().check_size(30, 32).unwrap_err().to_string();
        assert!(error.contains("24x32") && error.contains("32x32") && error.contains("multiples of 8"), "{error}");
        assert!(UnetConfig::default().check_size(24, 40).is_ok());
        assert!(UnetConfig::default().check_size(0, 8).is_err());
    }

    #[test]
    fn options_from_before_there_were_classes_are_read() {
        let old: UnetConfig = serde_json::from_str(r#"{"dim": 8, "dim_mults": [1, 2], "full_attn": null}"#).unwrap();
        assert_eq!((old.num_classes, old.class_drop_prob, old.cond_dim()), (0, 0.5, 32));
        assert!(serde_json::to_value(&old).unwrap().get("num_classes").is_none());
        let new = UnetConfig { num_classes: 3, class_drop_prob: 1.0, ..old };
        let again: UnetConfig = serde_json::from_value(serde_json::to_value(&new).unwrap()).unwrap();
        assert_eq!(again, new);
        assert_eq!(new.cond_dim(), 64);
        new.stages().unwrap();
    }

    #[test]
    fn stages_have_a_largest_number() {
        let of = |n| UnetConfig { dim_mults: vec![1; n], ..UnetConfig::default() };
        assert_eq!(of(16).check_size(1 << 15, 1 << 16), Ok(()));
        for n in [17, 65, 100_000] {
            assert_eq!(of(n).check_size(64, 64), Err(UnetConfigError::TooManyStages { got: n }));
        }
        assert_eq!(of(0).check_size(64, 64), Err(UnetConfigError::NoStages));
        let error = of(65).stages().unwrap_err().to_string();
        assert_eq!(error, "`dim_mults` names 65 stages; at most 16 are allowed");
    }

    #[test]
    fn wrong_options_are_named() {
        let bad = |config: UnetConfig| config.stages().unwrap_err().to_string();
        assert!(bad(UnetConfig { dim: 0, ..Default::default() }).contains("`dim`"));
        assert!(bad(UnetConfig { dropout: 1.0, ..Default::default() }).contains("`dropout`"));
        for class_drop_prob in [-0.1, 1.1, f64::NAN] {
            assert!(bad(UnetConfig { class_drop_prob, ..Default::default() }).contains("`class_drop_prob`"));
        }
        assert!(
            bad(UnetConfig { attn_heads: PerStage::Each(vec![1, 2]), ..Default::default() }).contains("`attn_heads`")
        );
        assert!(bad(UnetConfig { dim_mults: vec![], ..Default::default() }).contains("`dim_mults`"));
    }
}
