//! The networks for images behind one type, for programs that learn from a file which one they have; and their configurations. Not here:
//! the networks.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Dit, DitConfig, DitConfigError, Network, NetworkInput, SizeError, Unet, UnetConfig, UnetConfigError};
use crate::nn::Init;

/// Which network weights belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkConfig {
    Unet(UnetConfig),
    Dit(DitConfig),
    /// A network of the user's own, by name; only its own program can build it.
    Custom {
        name: String,
    },
}

/// Why a configuration gives no network.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum NetworkConfigError {
    #[error(transparent)]
    Unet(#[from] UnetConfigError),
    #[error(transparent)]
    Dit(#[from] DitConfigError),
    #[error("`{name}` is a custom network; only the program that defines it can build it")]
    Custom { name: String },
}

/// A network for images.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a handful of them exist
pub enum ImageNetwork {
    Unet(Unet),
    Dit(Dit),
}

impl NetworkConfig {
    /// Draws the network's weights.
    ///
    /// # Errors
    /// Options that describe no network; a custom one.
    pub fn build(&self, init: &mut Init) -> Result<ImageNetwork, NetworkConfigError> {
        Ok(match self {
            Self::Unet(config) => ImageNetwork::Unet(Unet::new(config, init)?),
            Self::Dit(config) => ImageNetwork::Dit(Dit::new(config, init)?),
            Self::Custom { name } => return Err(NetworkConfigError::Custom { name: name.clone() }),
        })
    }

    /// Refuses sizes that the network cannot work on; of a custom one nothing is known.
    ///
    /// # Errors
    /// A size, and the nearest ones that work.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), NetworkConfigError> {
        match self {
            Self::Unet(config) => Ok(config.check_size(height, width)?),
            Self::Dit(config) => Ok(config.check_size(height, width)?),
            Self::Custom { .. } => Ok(()),
        }
    }

    /// Channels of the output, where they are known.
    pub fn out_channels(&self) -> Option<usize> {
        match self {
            Self::Unet(config) => Some(config.out_channels()),
            Self::Dit(config) => Some(config.out_channels()),
            Self::Custom { .. } => None,
        }
    }

    /// Number of classes that the network is conditioned on.
    pub fn num_classes(&self) -> usize {
        match self {
            Self::Unet(config) => config.num_classes,
            Self::Dit(config) => config.num_classes,
            Self::Custom { .. } => 0,
        }
    }
}

/// Calls a method of whichever network it is.
macro_rules! of_each {
    ($self:ident, $network:ident => $call:expr) => {
        match $self {
            ImageNetwork::Unet($network) => $call,
            ImageNetwork::Dit($network) => $call,
        }
    };
}

impl Network<4> for ImageNetwork {
    fn forward(&self, input: NetworkInput<4>) -> Tensor<4> {
        of_each!(self, network => network.forward(input))
    }

    fn channels(&self) -> usize {
        of_each!(self, network => network.channels())
    }

    fn out_channels(&self) -> usize {
        of_each!(self, network => network.out_channels())
    }

    fn self_condition(&self) -> bool {
        of_each!(self, network => network.self_condition())
    }

    fn num_classes(&self) -> usize {
        of_each!(self, network => network.num_classes())
    }

    fn class_drop_prob(&self) -> f64 {
        of_each!(self, network => network.class_drop_prob())
    }

    fn check_size(&self, size: &[usize]) -> Result<(), SizeError> {
        of_each!(self, network => network.check_size(size))
    }
}
