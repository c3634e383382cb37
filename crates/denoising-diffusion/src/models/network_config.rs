//! The configurations of all networks behind one type, for programs that learn from a file which network they have. Not here: the networks
//! (`image_network`), the options of each (`unet_config` and its siblings), and what these must answer (`network_options`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::network_options::{NetworkOptions, SharedOptions};
use super::{
    DitConfig, DitConfigError, Extent, ImageNetwork, KarrasUnetConfig, KarrasUnetConfigError, MOST_OF_ANYTHING,
    Unet1dConfig, UnetConfig, UnetConfigError, UvitConfig, UvitConfigError,
};
use crate::data::{DataLayout, ImageShape};
use crate::nn::{Init, params};

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
    /// Whether training images are augmented, of which some networks can be told.
    pub augment_labels: bool,
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

/// Largest number of blocks of one kind.
const MOST_BLOCKS: u64 = 1000;

impl NetworkConfig {
    /// The configuration for a U-Net's options: that of a sequence network if they describe one.
    pub fn of_unet(unet: UnetConfig) -> Self {
        Unet1dConfig::of_unet(&unet).map_or_else(|| Self::Unet(unet), Self::Unet1d)
    }

    /// The options of the network, or the name of a custom one.
    fn options(&self) -> Result<&dyn NetworkOptions, &str> {
        match self {
            Self::Unet(options) => Ok(options),
            Self::Unet1d(options) => Ok(options),
            Self::Dit(options) => Ok(options),
            Self::Uvit(options) => Ok(options),
            Self::KarrasUnet(options) => Ok(options),
            Self::Custom { name } => Err(name),
        }
    }

    /// The network in one line.
    pub fn in_words(&self) -> String {
        self.options().map_or_else(|name| format!("custom: {name}"), NetworkOptions::in_words)
    }

    /// Builds the network with initial weights.
    ///
    /// # Errors
    /// Invalid options; a custom network.
    pub fn build(&self, init: &mut Init) -> Result<ImageNetwork, NetworkConfigError> {
        self.check_magnitudes()?;
        self.options().map_err(|name| NetworkConfigError::Custom { name: name.to_string() })?.build(init)
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

    /// Name and shape of every tensor of the network. No weights are made.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn tensors(&self) -> Result<BTreeMap<String, Vec<usize>>, NetworkConfigError> {
        let mut init = Init::counting();
        let network = self.build(&mut init)?;
        Ok(params::counted_shapes(&network, &init))
    }

    /// Refuses invalid options.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn validate(&self) -> Result<(), NetworkConfigError> {
        self.check_magnitudes()?;
        self.options().map_or(Ok(()), NetworkOptions::check_options)
    }

    /// Refuses numbers that are implausibly large.
    fn check_magnitudes(&self) -> Result<(), NetworkConfigError> {
        fn check(key: &str, value: &Value, depths: &[&str]) -> Result<(), NetworkConfigError> {
            match value {
                Value::Array(values) => values.iter().try_for_each(|value| check(key, value, depths)),
                // The size of the data is not an option of the network.
                Value::Object(fields) => {
                    let mut own = fields.iter().filter(|(key, _)| *key != "extent");
                    own.try_for_each(|(key, value)| check(key, value, depths))
                }
                other => {
                    let most = if depths.contains(&key) { MOST_BLOCKS } else { MOST_OF_ANYTHING };
                    match other.as_u64().filter(|&got| got > most) {
                        Some(got) => Err(NetworkConfigError::TooLarge { key: key.to_string(), most, got }),
                        None => Ok(()),
                    }
                }
            }
        }
        let depths = self.options().map_or([].as_slice(), |options| options.kind().depths);
        serde_json::to_value(self).map_or(Ok(()), |options| check("", &options, depths))
    }

    /// Whether time is embedded by Fourier features only, which cannot resolve levels numbered up to a thousand.
    pub fn fourier_time(&self) -> bool {
        self.options().is_ok_and(|options| !options.resolves_large_times())
    }

    /// The same network, adapted to `fit`; explicit options may keep a different number of output channels.
    pub fn fitted(self, fit: NetworkFit) -> Self {
        match self.options() {
            Ok(options) => options.fitted(fit),
            Err(_) => self,
        }
    }

    /// The option, if any, that keeps the number of output channels from being [fitted](Self::fitted).
    pub(crate) fn insists_on_outputs(&self) -> Option<&'static str> {
        self.options().ok()?.insists_on_outputs()
    }

    /// The same network with defaults for all options that [`fitted`](Self::fitted) sets.
    pub(crate) fn own_options(&self) -> Self {
        self.options().map_or_else(|_| self.clone(), NetworkOptions::own_options)
    }

    /// Refuses sizes that the network cannot handle; a custom network is not checked.
    ///
    /// # Errors
    /// The size, and the nearest valid ones.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), NetworkConfigError> {
        self.options().map_or(Ok(()), |options| options.check_data(height, width))
    }

    /// Number of values that the forward pass keeps of an example for the backward pass, in which all blocks may be `recomputed`; 0, as nothing is
    /// known, for a custom network.
    pub(crate) fn kept(&self, shape: ImageShape, recomputed: bool) -> Result<u64, NetworkConfigError> {
        self.options().map_or(Ok(0), |options| options.kept(shape, recomputed))
    }

    /// The kind of data that the network is for; `Auto` for a custom one.
    pub fn layout(&self) -> DataLayout {
        self.options().map_or(DataLayout::Auto, NetworkOptions::layout)
    }

    /// Slices of the volumes that the network is built for; 1 for other networks.
    pub fn depth(&self) -> usize {
        self.options().map_or(1, NetworkOptions::depth)
    }

    fn shared(&self) -> Option<SharedOptions> {
        self.options().ok().map(NetworkOptions::shared)
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
