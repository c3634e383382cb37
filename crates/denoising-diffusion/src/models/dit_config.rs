//! The configuration of a DiT: its options, their defaults and the checks done before any weight is made. Not here: the network itself (`dit.rs`).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::kept::{Again, Tally};
use super::network_options::{Input, NetworkKind, NetworkOptions, SharedOptions, check_multiples};
use super::{Dit, ImageNetwork, NetworkConfig, NetworkConfigError, NetworkFit, is_zero};
use crate::data::{DataLayout, ImageShape};
use crate::nn::Init;

/// Size of the sinusoidal timestep embedding, sines and cosines together.
pub(super) const TIME_FREQUENCIES: usize = 256;

/// The sizes of Peebles and Xie 2022, table 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DitSize {
    #[default]
    S,
    B,
    L,
    Xl,
}

impl DitSize {
    /// Width, number of blocks, number of heads.
    fn parts(self) -> [usize; 3] {
        match self {
            Self::S => [384, 12, 6],
            Self::B => [768, 12, 12],
            Self::L => [1024, 24, 16],
            Self::Xl => [1152, 28, 16],
        }
    }
}

/// Options of [`Dit`](super::Dit), under the names of the paper's code. `Default` is DiT-S/2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DitConfig {
    /// Sets the next three options unless they are given.
    pub dit_size: DitSize,
    /// Width of a token: a multiple of 4 and of `num_heads`.
    pub hidden_size: Option<usize>,
    /// Number of blocks.
    pub depth: Option<usize>,
    pub num_heads: Option<usize>,
    /// Side of the square of pixels that becomes a token.
    pub patch_size: usize,
    /// Width of the hidden layer in each block, as a multiple of `hidden_size`.
    pub mlp_ratio: f64,
    /// Probability with which training hides an example's class and vector, in [0, 1]. Has no effect without classes and vectors.
    #[serde(alias = "class_dropout_prob")]
    pub class_drop_prob: f64,
    /// Channels of the data.
    pub channels: usize,
    /// Channels of the output; those of the data if absent. Set by the formulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_dim: Option<usize>,
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
}

impl Default for DitConfig {
    fn default() -> Self {
        Self {
            dit_size: DitSize::S,
            hidden_size: None,
            depth: None,
            num_heads: None,
            patch_size: 2,
            mlp_ratio: 4.0,
            class_drop_prob: 0.1,
            channels: 3,
            out_dim: None,
            num_classes: 0,
            condition_channels: 0,
            vector_dim: 0,
            augment_labels: false,
        }
    }
}

/// Why a [`DitConfig`] is invalid, or does not fit the size of the data.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum DitConfigError {
    #[error("`{key}` must be at least 1, got 0")]
    Zero { key: &'static str },
    #[error("`hidden_size` must be a multiple of {what}, got {got}")]
    HiddenSize { what: String, got: usize },
    #[error(
        "`mlp_ratio` must be a number, at most 1000, that gives `hidden_size` {hidden_size} a hidden layer of at least 1, got {got}"
    )]
    MlpRatio { hidden_size: usize, got: f64 },
    #[error("`class_drop_prob` must lie in [0, 1], got {0}")]
    ClassDropProb(f64),
    #[error(
        "patches of {patch_size}x{patch_size} do not tile {height}x{width}: the nearest sizes that work are {}",
        nearest.join(" and ")
    )]
    Size { patch_size: usize, height: usize, width: usize, nearest: Vec<String> },
}

impl DitConfig {
    /// Width of a token.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size.unwrap_or(self.dit_size.parts()[0])
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.depth.unwrap_or(self.dit_size.parts()[1])
    }

    /// Attention heads of each block.
    pub fn num_heads(&self) -> usize {
        self.num_heads.unwrap_or(self.dit_size.parts()[2])
    }

    /// Width of the hidden layer of each block.
    pub fn mlp_dim(&self) -> usize {
        (self.hidden_size() as f64 * self.mlp_ratio) as usize
    }

    /// Channels of the network's input.
    pub fn in_channels(&self) -> usize {
        self.channels + self.condition_channels
    }

    /// Channels of the network's output.
    pub fn out_channels(&self) -> usize {
        self.out_dim.unwrap_or(self.channels)
    }

    /// Refuses options that describe no network.
    ///
    /// # Errors
    /// [`DitConfigError`].
    pub fn validate(&self) -> Result<(), DitConfigError> {
        let hidden_size = self.hidden_size();
        for (key, value) in [
            ("hidden_size", hidden_size),
            ("depth", self.depth()),
            ("num_heads", self.num_heads()),
            ("patch_size", self.patch_size),
            ("channels", self.channels),
            ("out_dim", self.out_channels()),
        ] {
            if value == 0 {
                return Err(DitConfigError::Zero { key });
            }
        }
        // A quarter each for sines and cosines of rows and columns.
        if !hidden_size.is_multiple_of(4) {
            return Err(DitConfigError::HiddenSize { what: "4".to_string(), got: hidden_size });
        }
        if !hidden_size.is_multiple_of(self.num_heads()) {
            let what = format!("`num_heads` ({})", self.num_heads());
            return Err(DitConfigError::HiddenSize { what, got: hidden_size });
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 1000.0 && self.mlp_dim() > 0) {
            return Err(DitConfigError::MlpRatio { hidden_size, got: self.mlp_ratio });
        }
        if !(0.0..=1.0).contains(&self.class_drop_prob) {
            return Err(DitConfigError::ClassDropProb(self.class_drop_prob));
        }
        Ok(())
    }

    /// Refuses sizes that are not a multiple of the patch size, naming the nearest valid ones.
    ///
    /// # Errors
    /// [`DitConfigError::Size`]; other variants for options that describe no network.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), DitConfigError> {
        self.validate()?;
        let patch_size = self.patch_size;
        let unfit = |nearest| DitConfigError::Size { patch_size, height, width, nearest };
        check_multiples(patch_size, height, width).map_err(unfit)
    }
}

impl NetworkOptions for DitConfig {
    fn kind(&self) -> NetworkKind {
        NetworkKind {
            name: "dit",
            about: "transformer on patches, for images; optional classes (Peebles and Xie 2022)",
            layout: DataLayout::Images,
            usual_lr: None,
            depths: &["depth"],
            augment_labels: true,
        }
    }

    fn in_words(&self) -> String {
        let (depth, width, heads, p) = (self.depth(), self.hidden_size(), self.num_heads(), self.patch_size);
        format!("DiT, {depth} blocks of width {width} with {heads} heads, patches of {p}x{p}")
    }

    fn shared(&self) -> SharedOptions {
        let Self { channels, num_classes, condition_channels, vector_dim, class_drop_prob, .. } = *self;
        let out_channels = self.out_channels();
        SharedOptions { channels, out_channels, num_classes, condition_channels, vector_dim, class_drop_prob }
    }

    fn resolves_large_times(&self) -> bool {
        true
    }

    /// A class and a vector are added to the embedding of the noise level.
    fn inputs_of(&self, weights: &str) -> Vec<(Input, usize)> {
        match weights {
            "x_embedder.weight" => self.shared().stacked(false, self.patch_size * self.patch_size),
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
        Ok(ImageNetwork::Dit(Dit::new(self, init)?))
    }

    fn fitted(&self, fit: NetworkFit) -> NetworkConfig {
        let NetworkFit { channels, condition_channels, vector_dim, num_classes, augment_labels, .. } = fit;
        let out_dim = Some(fit.out_channels);
        NetworkConfig::Dit(Self {
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
        NetworkConfig::Dit(Self {
            channels,
            out_dim,
            num_classes,
            condition_channels,
            vector_dim,
            augment_labels,
            ..self.clone()
        })
    }

    /// For each block what its kernels save, and its hidden layer before and after GELU. Attention weights are not kept.
    fn kept(&self, shape: ImageShape, recomputed: bool) -> Result<u64, NetworkConfigError> {
        self.validate()?;
        let tokens = (shape.height * shape.width / (self.patch_size * self.patch_size)) as u64;
        let (hidden, mlp) = (self.hidden_size() as u64, self.mlp_dim() as u64);
        let (again, mut tally) = (recomputed.then_some(Again::Tape), Tally::default());
        for _ in 0..self.depth() {
            tally.add(again, tokens.saturating_mul(6 * hidden + 2 * mlp), tokens * hidden);
        }
        Ok(tally.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_papers_and_keys_win() {
        let config = DitConfig { dit_size: DitSize::Xl, depth: Some(3), ..DitConfig::default() };
        assert_eq!([config.hidden_size(), config.depth(), config.num_heads(), config.mlp_dim()], [1152, 3, 16, 4608]);
        assert_eq!(serde_json::to_value(DitSize::Xl).unwrap(), "xl");
        DitConfig::default().validate().unwrap();
    }

    #[test]
    fn wrong_options_are_named() {
        let bad = |config: DitConfig| config.validate().unwrap_err().to_string();
        assert!(bad(DitConfig { patch_size: 0, ..DitConfig::default() }).contains("`patch_size`"));
        assert!(bad(DitConfig { hidden_size: Some(30), ..DitConfig::default() }).contains("multiple of 4"));
        assert!(bad(DitConfig { num_heads: Some(5), ..DitConfig::default() }).contains("`num_heads` (5)"));
        assert!(bad(DitConfig { mlp_ratio: f64::NAN, ..DitConfig::default() }).contains("`mlp_ratio`"));
        assert!(bad(DitConfig { class_drop_prob: 2.0, ..DitConfig::default() }).contains("`class_drop_prob`"));
        let size = DitConfig { patch_size: 4, ..DitConfig::default() }.check_size(30, 32).unwrap_err().to_string();
        assert!(size.contains("28x32") && size.contains("32x32"), "{size}");
    }

    #[test]
    fn invalid_options_are_refused_wherever_they_are_used() {
        let config = DitConfig { patch_size: 0, ..DitConfig::default() };
        assert_eq!(config.check_size(32, 32), Err(DitConfigError::Zero { key: "patch_size" }));
        let shape = ImageShape { channels: 3, height: 32, width: 32 };
        assert_eq!(config.kept(shape, false), Err(DitConfigError::Zero { key: "patch_size" }.into()));
    }
}
