//! The networks behind one type, for programs that learn from a file which one they have. Not here: the networks, and their configurations
//! (`network_config`).

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Dit, KarrasUnet, Network, NetworkInput, SizeError, Unet, Uvit};

/// A network for images, or for data stored as images: sequences have height 1.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a handful of them exist
pub enum ImageNetwork {
    Unet(Unet),
    Dit(Dit),
    Uvit(Uvit),
    KarrasUnet(KarrasUnet),
}

/// Calls a method of the network, whichever it is.
macro_rules! of_each {
    ($self:ident, $network:ident => $call:expr) => {
        match $self {
            ImageNetwork::Unet($network) => $call,
            ImageNetwork::Dit($network) => $call,
            ImageNetwork::Uvit($network) => $call,
            ImageNetwork::KarrasUnet($network) => $call,
        }
    };
}

impl Network for ImageNetwork {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
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

    fn condition_channels(&self) -> usize {
        of_each!(self, network => network.condition_channels())
    }

    fn vector_dim(&self) -> usize {
        of_each!(self, network => network.vector_dim())
    }

    fn augment_labels(&self) -> bool {
        of_each!(self, network => network.augment_labels())
    }

    fn class_drop_prob(&self) -> f64 {
        of_each!(self, network => network.class_drop_prob())
    }

    fn takes_bf16(&self) -> bool {
        of_each!(self, network => network.takes_bf16())
    }

    fn forces_norm_of(&self, name: &str) -> bool {
        of_each!(self, network => network.forces_norm_of(name))
    }

    fn resolves_large_times(&self) -> bool {
        of_each!(self, network => network.resolves_large_times())
    }

    fn check_size(&self, height: usize, width: usize) -> Result<(), SizeError> {
        of_each!(self, network => network.check_size(height, width))
    }
}
