//! What the tensors of a reference checkpoint reveal, as a value. Not here: inferring it (`infer.rs`, `infer_diffusion.rs`), and values given by the
//! user (`said.rs`, `said_network.rs`).

use super::error::InteropError;
use super::karras_unet::infer_karras_unet;
use super::reference_weights::ReferenceWeights;
use crate::data::DataLayout;
use crate::diffusion::DiffusionConfig;
use crate::models::UnetConfig;
use crate::models::{Extent, KarrasUnetConfig, NetworkConfig};
use crate::nn::Axes;

/// What the tensors of a reference checkpoint reveal.
#[derive(Clone, Debug, PartialEq)]
pub struct Inferred {
    /// Fits the tensors exactly: every parameter is present in its shape, and none is left over. For a KarrasUnet, the size of the data is still
    /// open; see [`network_for`](Self::network_for).
    pub network: NetworkConfig,
    /// `None` if nothing reveals the formulation. See [`diffusion_with`](Self::diffusion_with).
    pub diffusion: Option<DiffusionConfig>,
    /// The stored noise schedule if no named one gives it; then `diffusion.beta_schedule` and its parameters are meaningless.
    pub betas: Option<Vec<f64>>,
    /// Configuration keys that no tensor reveals; they have the likeliest values. If `diffusion` is among them, the formulation itself is assumed,
    /// and so are all its options.
    pub assumed: Vec<&'static str>,
    /// What was inferred from what, and what remains open, as sentences.
    pub notes: Vec<String>,
}

impl Inferred {
    /// The U-Net, if it is one.
    pub fn unet(&self) -> Option<&UnetConfig> {
        match &self.network {
            NetworkConfig::Unet(unet) => Some(unet),
            _ => None,
        }
    }

    /// The kind of data that the network is for.
    pub fn layout(&self) -> DataLayout {
        match &self.network {
            NetworkConfig::Unet(unet) if unet.axes == Axes::Width => DataLayout::Sequences,
            other => other.layout(),
        }
    }

    /// The network for data of a given size, as in a model card. The size only matters for a KarrasUnet: it determines the stages with attention.
    ///
    /// # Errors
    /// A KarrasUnet for volumes, whose depth is unknown.
    pub fn network_for(
        &self,
        weights: &ReferenceWeights,
        height: usize,
        width: usize,
    ) -> Result<NetworkConfig, InteropError> {
        match &self.network {
            NetworkConfig::Unet(unet) => Ok(NetworkConfig::of_unet(unet.clone())),
            NetworkConfig::KarrasUnet(config) => {
                let layout = config.extent.map_or(DataLayout::Images, |extent| extent.layout);
                if layout == DataLayout::Volumes {
                    return Err(InteropError::Volumes);
                }
                let height = if layout == DataLayout::Sequences { 1 } else { height };
                let fitted = infer_karras_unet(&weights.state, Extent { layout, depth: 1, height, width })?;
                let KarrasUnetConfig { attn_res, extent, .. } = fitted;
                Ok(NetworkConfig::KarrasUnet(KarrasUnetConfig { attn_res, extent, ..config.clone() }))
            }
            other => Ok(other.clone()),
        }
    }
}
