//! Weights from and to other programs: safetensors files, the reference's PyTorch checkpoints, and its names for a U-Net's parameters. Everything
//! here works on plain `f32` arrays.
//!
//! Not here: networks, devices, our own checkpoint folders (they use [`read_safetensors`] and [`write_safetensors`]).
//!
//! A reference checkpoint becomes one of ours in three steps: [`ReferenceCheckpoint::open`] finds the networks in a file, [`ReferenceWeights::infer`]
//! infers their configuration from the shapes of the tensors and from what is stored beside the network, and [`ReferenceWeights::to_ours`] renames
//! the parameters. [`to_reference`] is the way back.

mod checksum;
mod dtype;
mod error;
mod infer;
mod infer_diffusion;
mod infer_objective;
mod infer_schedule;
mod inferred;
mod karras_unet;
mod layout;
mod learned_schedule;
mod names;
mod pt;
mod reference;
mod reference_weights;
mod safetensors_file;
mod said;
mod said_network;
mod stated;
mod table_precision;
mod uvit;

pub use error::InteropError;
pub use inferred::Inferred;
pub use karras_unet::{infer_karras_unet, karras_unet_to_ours};
pub use layout::{ParameterName, reference_layout};
pub use names::{to_ours, to_reference};
pub use pt::PtFile;
pub use reference::{ReferenceCheckpoint, ReferenceKind};
pub use reference_weights::{ReferenceNetwork, ReferenceWeights, Wrapper};
pub use safetensors_file::{
    Metadata, is_safetensors, read_metadata, read_safetensors, write_safetensors, write_tensor_views,
};
pub use uvit::{infer_uvit, uvit_to_ours};
