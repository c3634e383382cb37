//! One network of the reference with what its file holds beside it, and its translation to our names. Not here: files (`reference.rs`), inferring
//! configurations from tensors (`infer.rs`).

use super::error::InteropError;
use super::infer::infer;
use super::inferred::Inferred;
use super::karras_unet::karras_unet_to_ours;
use super::learned_schedule;
use super::names::to_ours;
use super::safetensors_file::Metadata;
use super::uvit::uvit_to_ours;
use crate::weights::StateDict;

/// The attribute under which a network was saved, which differs between the reference's diffusion classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wrapper {
    /// None: the network was saved alone.
    #[default]
    None,
    /// `model`: every class but one.
    Model,
    /// `net`: ElucidatedDiffusion.
    Net,
}

/// The networks of the reference, grouped by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceNetwork {
    /// `Unet`, the one of `classifier_free_guidance`, `Unet1D`.
    Unet,
    /// `simple_diffusion.UViT`.
    Uvit,
    /// `KarrasUnet`, `KarrasUnet1D`, `KarrasUnet3D`.
    KarrasUnet,
}

impl ReferenceNetwork {
    /// The name of its class.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "Unet",
            Self::Uvit => "UViT",
            Self::KarrasUnet => "KarrasUnet",
        }
    }
}

/// One network from a checkpoint, with the reference's names without prefix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceWeights {
    pub state: StateDict,
    pub wrapper: Wrapper,
    /// The schedule's tables (`betas`, `loss_weight`, ...) and other tensors beside the network; may be empty.
    pub tables: StateDict,
    /// The parameters of a learned noise schedule (`log_snr.*` of ContinuousTimeGaussianDiffusion); empty if there is none.
    pub schedule: StateDict,
    /// What the metadata of a file written by `ddpm convert --to reference` state of network and diffusion; empty in other files.
    pub stated: Metadata,
}

impl ReferenceWeights {
    /// The kind of network, recognised by a tensor that only this kind has.
    pub fn kind(&self) -> ReferenceNetwork {
        if self.state.contains("input_block.weight") {
            ReferenceNetwork::KarrasUnet
        } else if self.state.names().any(|name| name.starts_with("vit.")) {
            ReferenceNetwork::Uvit
        } else {
            ReferenceNetwork::Unet
        }
    }

    /// Infers the network's configuration from the shapes of its tensors, and the formulation from what is beside it.
    ///
    /// # Errors
    /// Tensors that are not a network of the reference, with the first one that does not fit; tables that are not a schedule.
    pub fn infer(&self) -> Result<Inferred, InteropError> {
        infer(self)
    }

    /// The tensors with our names: those of the network, or, with a learned schedule, of [`Scheduled`](crate::models::Scheduled).
    ///
    /// # Errors
    /// See [`to_ours`]; tensors that are not a learned schedule.
    pub fn to_ours(&self) -> Result<StateDict, InteropError> {
        let network = match self.kind() {
            ReferenceNetwork::Unet => to_ours(&self.state)?,
            ReferenceNetwork::Uvit => uvit_to_ours(&self.state)?,
            ReferenceNetwork::KarrasUnet => karras_unet_to_ours(&self.state)?,
        };
        if self.schedule.is_empty() {
            return Ok(network);
        }
        Ok(learned_schedule::beside(network, learned_schedule::to_ours(&self.schedule)?))
    }
}
