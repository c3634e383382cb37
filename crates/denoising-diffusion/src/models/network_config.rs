//! The configurations of all networks behind one type, for programs that learn from a file which network they have. Not here: the networks
//! (`image_network`), and the options of each (`unet_config` and its siblings).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::{
    Dit, DitConfig, DitConfigError, Extent, ImageNetwork, KarrasUnet, KarrasUnetConfig, KarrasUnetConfigError,
    MOST_OF_ANYTHING, Unet, Unet1dConfig, UnetConfig, UnetConfigError, Uvit, UvitConfig, UvitConfigError,
};
use crate::data::DataLayout;
use crate::nn::Init;

/// The kind of network that weights belong to, and its options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkConfig {
    Unet(UnetConfig),
    Unet1d(Unet1dConfig),
    Dit(DitConfig),
    Uvit(UvitConfig),
    KarrasUnet(KarrasUnetConfig),
    /// A user-defined network, by name; only the program that defines it can build it.
    Custom {
        name: String,
    },
}

/// What a network must fit: the data, and the output that a formulation reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkFit {
    pub extent: Extent,
    pub channels: usize,
    /// Channels of the condition image; 0: none.
    pub condition_channels: usize,
    /// Length of the conditioning vector; 0: none.
    pub vector_dim: usize,
    /// 0: none.
    pub num_classes: usize,
    pub out_channels: usize,
    /// Whether training images are augmented, of which `unet`, `dit` and `uvit` can be told.
    pub augment_labels: bool,
}

/// Options that all kinds of networks have.
#[derive(Clone, Copy, Debug)]
struct Shared {
    channels: usize,
    out_channels: usize,
    num_classes: usize,
    condition_channels: usize,
    vector_dim: usize,
    class_drop_prob: f64,
}

/// Why no network can be built from a configuration.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum NetworkConfigError {
    #[error(transparent)]
    Unet(#[from] UnetConfigError),
    #[error(transparent)]
    Dit(#[from] DitConfigError),
    #[error(transparent)]
    Uvit(#[from] UvitConfigError),
    #[error(transparent)]
    KarrasUnet(#[from] KarrasUnetConfigError),
    #[error("the network is for sequences [n, c, l], but the data are images of {height}x{width}")]
    NotSequences { height: usize, width: usize },
    #[error("`{name}` is a custom network; only the program that defines it can build it")]
    Custom { name: String },
    #[error("`{key}` is {got}; at most {most} is allowed")]
    TooLarge { key: String, most: u64, got: u64 },
}

/// Options that count blocks in sequence.
const DEPTHS: [&str; 3] = ["depth", "vit_depth", "num_blocks_per_stage"];
/// Largest number of blocks of one kind.
const MOST_BLOCKS: u64 = 1000;

impl NetworkConfig {
    /// The configuration for a U-Net's options: that of a sequence network if they describe one.
    pub fn of_unet(unet: UnetConfig) -> Self {
        Unet1dConfig::of_unet(&unet).map_or_else(|| Self::Unet(unet), Self::Unet1d)
    }

    /// Builds the network with initial weights.
    ///
    /// # Errors
    /// Invalid options; a custom network.
    pub fn build(&self, init: &mut Init) -> Result<ImageNetwork, NetworkConfigError> {
        self.check_magnitudes()?;
        Ok(match self {
            Self::Unet(config) => ImageNetwork::Unet(Unet::new(config, init)?),
            Self::Unet1d(config) => ImageNetwork::Unet(Unet::new(&config.unet(), init)?),
            Self::Dit(config) => ImageNetwork::Dit(Dit::new(config, init)?),
            Self::Uvit(config) => ImageNetwork::Uvit(Uvit::new(config, init)?),
            Self::KarrasUnet(config) => ImageNetwork::KarrasUnet(KarrasUnet::new(config, init)?),
            Self::Custom { name } => return Err(NetworkConfigError::Custom { name: name.clone() }),
        })
    }

    /// Number of parameter values, [`u64::MAX`] if there are more. No weights are made.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn num_parameters(&self) -> Result<u64, NetworkConfigError> {
        let mut init = Init::counting();
        self.build(&mut init)?;
        Ok(init.values())
    }

    /// Refuses invalid options.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn validate(&self) -> Result<(), NetworkConfigError> {
        self.check_magnitudes()?;
        match self {
            Self::Unet(config) => config.stages().map(drop)?,
            Self::Unet1d(config) => config.validate()?,
            Self::Dit(config) => config.validate()?,
            Self::Uvit(config) => config.validate()?,
            Self::KarrasUnet(config) => config.validate()?,
            Self::Custom { .. } => {}
        }
        Ok(())
    }

    /// Refuses numbers that are implausibly large.
    fn check_magnitudes(&self) -> Result<(), NetworkConfigError> {
        fn check(key: &str, value: &Value) -> Result<(), NetworkConfigError> {
            match value {
                Value::Array(values) => values.iter().try_for_each(|value| check(key, value)),
                // The size of the data is not an option of the network.
                Value::Object(fields) => {
                    let mut own = fields.iter().filter(|(key, _)| *key != "extent");
                    own.try_for_each(|(key, value)| check(key, value))
                }
                other => {
                    let most = if DEPTHS.contains(&key) { MOST_BLOCKS } else { MOST_OF_ANYTHING };
                    match other.as_u64().filter(|&got| got > most) {
                        Some(got) => Err(NetworkConfigError::TooLarge { key: key.to_string(), most, got }),
                        None => Ok(()),
                    }
                }
            }
        }
        serde_json::to_value(self).map_or(Ok(()), |options| check("", &options))
    }

    /// Whether time is embedded by Fourier features only, which cannot resolve levels numbered up to a thousand.
    pub fn fourier_time(&self) -> bool {
        match self {
            Self::Unet(config) => config.fourier_time(),
            Self::Unet1d(config) => config.unet().fourier_time(),
            Self::Uvit(_) | Self::KarrasUnet(_) => true,
            Self::Dit(_) | Self::Custom { .. } => false,
        }
    }

    /// The same network, adapted to `fit`; explicit options may keep a different number of output channels.
    pub fn fitted(self, fit: NetworkFit) -> Self {
        let NetworkFit { extent, channels, condition_channels, vector_dim, num_classes, out_channels, augment_labels } =
            fit;
        // Not set if the network has these output channels anyway, with or without a second half for the variance.
        let unless = |own: usize, insists: bool, out_dim| {
            if insists || own == out_channels { out_dim } else { Some(out_channels) }
        };
        match self {
            Self::Unet(config) => {
                let config =
                    UnetConfig { channels, num_classes, condition_channels, vector_dim, augment_labels, ..config };
                let insists = config.out_dim.is_some() || config.learned_variance;
                let out_dim = unless(config.out_channels(), insists, config.out_dim);
                Self::Unet(UnetConfig { out_dim, ..config })
            }
            Self::Unet1d(config) => {
                let config = Unet1dConfig { channels, num_classes, condition_channels, vector_dim, ..config };
                let insists = config.out_dim.is_some() || config.learned_variance;
                let out_dim = unless(config.unet().out_channels(), insists, config.out_dim);
                Self::Unet1d(Unet1dConfig { out_dim, ..config })
            }
            Self::Dit(config) => {
                let out_dim = Some(out_channels);
                Self::Dit(DitConfig {
                    channels,
                    num_classes,
                    condition_channels,
                    vector_dim,
                    augment_labels,
                    out_dim,
                    ..config
                })
            }
            Self::Uvit(config) => {
                let out_dim = (out_channels != channels).then_some(out_channels);
                Self::Uvit(UvitConfig {
                    channels,
                    num_classes,
                    condition_channels,
                    vector_dim,
                    augment_labels,
                    out_dim,
                    ..config
                })
            }
            Self::KarrasUnet(config) => {
                let (out_dim, extent) = ((out_channels != channels).then_some(out_channels), Some(extent));
                Self::KarrasUnet(KarrasUnetConfig {
                    channels,
                    num_classes,
                    condition_channels,
                    vector_dim,
                    out_dim,
                    extent,
                    ..config
                })
            }
            Self::Custom { .. } => self,
        }
    }

    /// Refuses sizes that the network cannot handle; a custom network is not checked.
    ///
    /// # Errors
    /// The size, and the nearest valid ones.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), NetworkConfigError> {
        match self {
            Self::Unet(config) => Ok(config.check_size(height, width)?),
            Self::Unet1d(_) if height != 1 => Err(NetworkConfigError::NotSequences { height, width }),
            Self::Unet1d(config) => Ok(config.unet().check_size(height, width)?),
            Self::Dit(config) => Ok(config.check_size(height, width)?),
            Self::Uvit(config) => Ok(config.check_size(height, width)?),
            Self::KarrasUnet(config) => Ok(config.check_size(height, width)?),
            Self::Custom { .. } => Ok(()),
        }
    }

    /// The kind of data that the network is for; `Auto` for a custom one.
    pub fn layout(&self) -> DataLayout {
        match self {
            Self::Unet1d(_) => DataLayout::Sequences,
            Self::Unet(_) | Self::Dit(_) | Self::Uvit(_) => DataLayout::Images,
            Self::KarrasUnet(config) => config.extent.map_or(DataLayout::Auto, |extent| extent.layout),
            Self::Custom { .. } => DataLayout::Auto,
        }
    }

    /// Slices of the volumes that the network is built for; 1 for other networks.
    pub fn depth(&self) -> usize {
        match self {
            Self::KarrasUnet(config) => config.extent.map_or(1, |extent| extent.depth),
            _ => 1,
        }
    }

    /// The options that all kinds of networks have; `None` for a custom one.
    fn shared(&self) -> Option<Shared> {
        macro_rules! shared {
            ($config:ident, $out_channels:expr, $class_drop_prob:expr) => {
                Some(Shared {
                    channels: $config.channels,
                    out_channels: $out_channels,
                    num_classes: $config.num_classes,
                    condition_channels: $config.condition_channels,
                    vector_dim: $config.vector_dim,
                    class_drop_prob: $class_drop_prob,
                })
            };
        }
        match self {
            Self::Unet(config) => shared!(config, config.out_channels(), config.class_drop_prob),
            Self::Unet1d(config) => shared!(config, config.unet().out_channels(), config.class_drop_prob),
            Self::Dit(config) => shared!(config, config.out_channels(), config.class_drop_prob),
            Self::Uvit(config) => shared!(config, config.out_channels(), config.class_drop_prob),
            Self::KarrasUnet(config) => shared!(config, config.out_channels(), config.class_drop_prob),
            Self::Custom { .. } => None,
        }
    }

    /// Channels of the data, if known.
    pub fn channels(&self) -> Option<usize> {
        self.shared().map(|shared| shared.channels)
    }

    /// Channels of the output, if known.
    pub fn out_channels(&self) -> Option<usize> {
        self.shared().map(|shared| shared.out_channels)
    }

    /// Number of classes that the network is conditioned on.
    pub fn num_classes(&self) -> usize {
        self.shared().map_or(0, |shared| shared.num_classes)
    }

    /// Channels of the condition image; 0 if there is none.
    pub fn condition_channels(&self) -> usize {
        self.shared().map_or(0, |shared| shared.condition_channels)
    }

    /// Length of the conditioning vector; 0 if the network takes none.
    pub fn vector_dim(&self) -> usize {
        self.shared().map_or(0, |shared| shared.vector_dim)
    }

    /// The probability with which training hides an example's class and vector.
    pub fn class_drop_prob(&self) -> f64 {
        self.shared().map_or(0.0, |shared| shared.class_drop_prob)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ImageTransform, PerStage};
    use super::*;

    /// The extent of the data is not limited: a volume may have more slices than a network has blocks.
    #[test]
    fn numbers_that_no_network_has_are_refused_and_those_of_the_data_are_not() {
        let extent = Extent { layout: DataLayout::Volumes, depth: 1600, height: 64, width: 2_000_000 };
        let karras = KarrasUnetConfig { extent: Some(extent), ..KarrasUnetConfig::default() };
        assert_eq!(NetworkConfig::KarrasUnet(karras.clone()).validate(), Ok(()));
        let wide = KarrasUnetConfig { dim: 1_000_001, ..karras };
        let error = NetworkConfig::KarrasUnet(wide).validate().unwrap_err();
        assert_eq!(error, NetworkConfigError::TooLarge { key: "dim".into(), most: 1_000_000, got: 1_000_001 });
    }

    /// No network is as wide; its weights are not even counted.
    #[test]
    fn stages_of_too_many_channels_are_refused() {
        let (dim, dim_mults) = (1_000_000, vec![1, 1_000_000]);
        for network in [
            NetworkConfig::Unet(UnetConfig { dim, dim_mults: dim_mults.clone(), ..UnetConfig::default() }),
            NetworkConfig::Unet1d(Unet1dConfig { dim, dim_mults: dim_mults.clone(), ..Unet1dConfig::default() }),
            NetworkConfig::Uvit(UvitConfig { dim, dim_mults: dim_mults.clone(), ..UvitConfig::default() }),
        ] {
            let error = network.num_parameters().unwrap_err();
            assert_eq!(network.validate(), Err(error.clone()));
            let said = error.to_string();
            assert!(said.contains("`dim` 1000000 times 1000000 of `dim_mults`"), "{said}");
            assert!(said.contains("at most 1000000 channels"), "{said}");
        }
    }

    /// With every option at its limit.
    #[test]
    fn the_largest_networks_can_be_counted() {
        let most = MOST_OF_ANYTHING as usize;
        let (dim, channels, num_classes, vector_dim) = (most, most, most, most);
        let unet = UnetConfig {
            dim,
            dim_mults: vec![1; 16],
            channels,
            num_classes,
            vector_dim,
            attn_heads: PerStage::All(most),
            attn_dim_head: PerStage::All(most),
            num_mem_kv: most,
            ..UnetConfig::default()
        };
        let uvit = UvitConfig {
            dim,
            dim_mults: vec![1; 3],
            downsample_factor: PerStage::All(most),
            channels,
            num_classes,
            vector_dim,
            vit_depth: MOST_BLOCKS as usize,
            attn_heads: most,
            attn_dim_head: most,
            ff_mult: most,
            patch_size: 1,
            ..UvitConfig::default()
        };
        let patches = UvitConfig {
            downsample_factor: PerStage::All(1),
            patch_size: most,
            image_transform: ImageTransform::Haar,
            condition_channels: most,
            ..uvit.clone()
        };
        let dit = DitConfig {
            hidden_size: Some(most),
            depth: Some(MOST_BLOCKS as usize),
            patch_size: most,
            mlp_ratio: 1000.0,
            num_heads: Some(1),
            channels,
            num_classes,
            vector_dim,
            ..DitConfig::default()
        };
        for network in [
            NetworkConfig::Unet(unet),
            NetworkConfig::Uvit(uvit),
            NetworkConfig::Uvit(patches),
            NetworkConfig::Dit(dit),
        ] {
            assert!(network.num_parameters().unwrap() > 1 << 60, "{network:?}");
        }
    }
}
