//! What the tensors of a reference checkpoint tell, as a value. Not here: telling it (`infer.rs`, `infer_diffusion.rs`), and what someone says
//! besides (`said.rs`, `said_network.rs`).

use super::error::InteropError;
use super::karras_unet::infer_karras_unet;
use super::reference_weights::ReferenceWeights;
use crate::data::DataLayout;
use crate::diffusion::DiffusionConfig;
use crate::models::unet_config::UnetConfig;
use crate::models::{Extent, KarrasUnetConfig, NetworkConfig};
use crate::nn::Axes;

/// What the tensors of a reference checkpoint tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Inferred {
    /// Fits the tensors exactly: every parameter is there in its shape, and none is left over. Of a KarrasUnet the size of the data is still
    /// open, see [`network_for`](Self::network_for).
    pub network: NetworkConfig,
    /// `None` if nothing tells the formulation. See [`diffusion_with`](Self::diffusion_with).
    pub diffusion: Option<DiffusionConfig>,
    /// The stored noise schedule if no named one gives it; `diffusion.beta_schedule` and its parameters then mean nothing.
    pub betas: Option<Vec<f64>>,
    /// Configuration keys that no tensor tells; they hold the likeliest values. `diffusion` among them: the formulation itself, and so
    /// all of its options.
    pub assumed: Vec<&'static str>,
    /// What was inferred from what, and what remains open, in sentences.
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

    /// What the network is for.
    pub fn layout(&self) -> DataLayout {
        match &self.network {
            NetworkConfig::Unet(unet) if unet.axes == Axes::Width => DataLayout::Sequences,
            other => other.layout(),
        }
    }

    /// The network for data of a size, as a model card says it. Only of a KarrasUnet the size decides something: at which of its stages it
    /// attends.
    ///
    /// # Errors
    /// A KarrasUnet for volumes, whose depth nobody says.
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
