//! The options of a U-Net for sequences. Not here: the network itself, which is [`Unet`](super::Unet) along one axis.

use serde::{Deserialize, Serialize};

use super::network_options::{Input, NetworkKind, NetworkOptions, SharedOptions};
use super::unet_config::{Downsampling, UnetConfig, UnetConfigError};
use super::unet_stages::stage_widths;
use super::{ImageNetwork, NetworkConfig, NetworkConfigError, NetworkFit, PerStage, is_zero};
use crate::data::{DataLayout, ImageShape};
use crate::nn::{Axes, Init};

/// Options of a [`Unet`](super::Unet) for sequences, stored as `[b, c, 1, l]`. `Default` is the default of the reference's Unet1D with `dim = 64`;
/// classes are an extension. The network has linear attention with 4 heads of width 32 in every stage, no learned keys, and halves by convolutions
/// of stride 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unet1dConfig {
    /// Base width; stage `i` has `dim * dim_mults[i]` channels.
    pub dim: usize,
    /// Width after the first convolution, which spans 7 positions; `dim` if absent.
    pub init_dim: Option<usize>,
    /// Channels of the output; `channels`, twice that with `learned_variance`, if absent.
    pub out_dim: Option<usize>,
    /// Width of each stage as a multiple of `dim`; every stage but the last halves the length.
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
    /// Width of a head of the middle block's softmax attention.
    pub attn_dim_head: usize,
    /// Number of its heads.
    pub attn_heads: usize,
    /// Number of classes that the network is conditioned on; 0: none. Set by the data, like `channels`.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_classes: usize,
    /// Channels of the condition image, which the first layer gets in addition to the noisy data; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub condition_channels: usize,
    /// Length of the conditioning vector, which is embedded and added to the embedding of the noise level; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub vector_dim: usize,
    /// Probability with which training hides an example's class and vector, in [0, 1]. Has no effect without classes and vectors.
    pub class_drop_prob: f64,
}

impl Default for Unet1dConfig {
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
            attn_dim_head: 32,
            attn_heads: 4,
            num_classes: 0,
            condition_channels: 0,
            vector_dim: 0,
            class_drop_prob: 0.5,
        }
    }
}

impl Unet1dConfig {
    /// The same network as options of the general U-Net.
    pub fn unet(&self) -> UnetConfig {
        UnetConfig {
            dim: self.dim,
            init_dim: self.init_dim,
            out_dim: self.out_dim,
            dim_mults: self.dim_mults.clone(),
            channels: self.channels,
            self_condition: self.self_condition,
            learned_variance: self.learned_variance,
            learned_sinusoidal_cond: self.learned_sinusoidal_cond,
            random_fourier_features: self.random_fourier_features,
            learned_sinusoidal_dim: self.learned_sinusoidal_dim,
            sinusoidal_pos_emb_theta: self.sinusoidal_pos_emb_theta,
            dropout: self.dropout,
            attn_dim_head: PerStage::All(32),
            attn_heads: PerStage::All(4),
            full_attn: Some(PerStage::All(false)),
            num_mem_kv: 0,
            mid_attn_heads: Some(self.attn_heads),
            mid_attn_dim_head: Some(self.attn_dim_head),
            downsample: Downsampling::Strided,
            num_classes: self.num_classes,
            condition_channels: self.condition_channels,
            vector_dim: self.vector_dim,
            augment_labels: false,
            class_drop_prob: self.class_drop_prob,
            axes: Axes::Width,
        }
    }

    /// Refuses invalid options.
    ///
    /// # Errors
    /// [`UnetConfigError`].
    pub fn validate(&self) -> Result<(), UnetConfigError> {
        self.unet().stages().map(drop)
    }

    /// The options of a sequence network from those of a general U-Net, if they can express it.
    pub fn of_unet(unet: &UnetConfig) -> Option<Self> {
        let config = Self {
            dim: unet.dim,
            init_dim: unet.init_dim,
            out_dim: unet.out_dim,
            dim_mults: unet.dim_mults.clone(),
            channels: unet.channels,
            self_condition: unet.self_condition,
            learned_variance: unet.learned_variance,
            learned_sinusoidal_cond: unet.learned_sinusoidal_cond,
            random_fourier_features: unet.random_fourier_features,
            learned_sinusoidal_dim: unet.learned_sinusoidal_dim,
            sinusoidal_pos_emb_theta: unet.sinusoidal_pos_emb_theta,
            dropout: unet.dropout,
            attn_dim_head: unet.mid_attn_dim_head?,
            attn_heads: unet.mid_attn_heads?,
            num_classes: unet.num_classes,
            condition_channels: unet.condition_channels,
            vector_dim: unet.vector_dim,
            class_drop_prob: unet.class_drop_prob,
        };
        (config.unet() == *unet).then_some(config)
    }
}

impl NetworkOptions for Unet1dConfig {
    fn kind(&self) -> NetworkKind {
        NetworkKind {
            name: "unet1d",
            about: "the same for sequences, with linear attention; optional classes",
            layout: DataLayout::Sequences,
            usual_lr: None,
            depths: &[],
            augment_labels: false,
        }
    }

    fn in_words(&self) -> String {
        format!("U-Net for sequences, stages {}", stage_widths(self.dim, &self.dim_mults))
    }

    fn shared(&self) -> SharedOptions {
        self.unet().shared()
    }

    fn resolves_large_times(&self) -> bool {
        self.unet().resolves_large_times()
    }

    fn inputs_of(&self, weights: &str) -> Vec<(Input, usize)> {
        self.unet().inputs_of(weights)
    }

    fn check_options(&self) -> Result<(), NetworkConfigError> {
        Ok(self.validate()?)
    }

    fn check_data(&self, height: usize, width: usize) -> Result<(), NetworkConfigError> {
        if height != 1 {
            return Err(NetworkConfigError::NotSequences { height, width });
        }
        self.unet().check_data(height, width)
    }

    fn build(&self, init: &mut Init) -> Result<ImageNetwork, NetworkConfigError> {
        self.unet().build(init)
    }

    fn fitted(&self, fit: NetworkFit) -> NetworkConfig {
        let NetworkFit { channels, condition_channels, vector_dim, num_classes, .. } = fit;
        let config = Self { channels, condition_channels, vector_dim, num_classes, ..self.clone() };
        let suits = self.insists_on_outputs().is_some() || config.unet().out_channels() == fit.out_channels;
        let out_dim = if suits { self.out_dim } else { Some(fit.out_channels) };
        NetworkConfig::Unet1d(Self { out_dim, ..config })
    }

    fn insists_on_outputs(&self) -> Option<&'static str> {
        self.unet().insists_on_outputs()
    }

    fn own_options(&self) -> NetworkConfig {
        let Self { channels, out_dim, num_classes, condition_channels, vector_dim, .. } = Self::default();
        NetworkConfig::Unet1d(Self { channels, out_dim, num_classes, condition_channels, vector_dim, ..self.clone() })
    }

    fn kept(&self, shape: ImageShape, recomputed: bool) -> Result<u64, NetworkConfigError> {
        self.unet().kept(shape, recomputed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let config = Unet1dConfig { dim: 8, attn_heads: 2, num_classes: 3, ..Unet1dConfig::default() };
        assert_eq!(Unet1dConfig::of_unet(&config.unet()), Some(config));
        assert_eq!(Unet1dConfig::of_unet(&UnetConfig::default()), None);
    }

    #[test]
    fn lengths_that_work_are_named() {
        let unet = Unet1dConfig { dim_mults: vec![1, 2, 4], ..Unet1dConfig::default() }.unet();
        unet.check_size(1, 12).unwrap();
        let error = unet.check_size(1, 90).unwrap_err().to_string();
        assert!(error.contains("multiple of 4") && error.contains("88 and 92"), "{error}");
    }
}
