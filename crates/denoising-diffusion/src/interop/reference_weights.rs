//! One network of the reference with what its file holds beside it, and its way to our names. Not here: files (`reference.rs`), telling
//! configurations from tensors (`infer.rs`).

use super::error::InteropError;
use super::infer::{Inferred, infer};
use super::learned_schedule;
use super::names::to_ours;
use super::state_dict::StateDict;

/// Under which attribute a network was saved, which the reference's diffusion classes differ in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wrapper {
    /// Under none: it stands for itself.
    #[default]
    None,
    /// `model`: every class but one.
    Model,
    /// `net`: ElucidatedDiffusion.
    Net,
}

/// One network out of a checkpoint, under the reference's names without prefix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceWeights {
    pub unet: StateDict,
    pub wrapper: Wrapper,
    /// The schedule's tables (`betas`, `loss_weight`, ...) and other tensors beside the network; may be empty.
    pub tables: StateDict,
    /// The parameters of a learned noise schedule (`log_snr.*` of ContinuousTimeGaussianDiffusion); empty if there is none.
    pub schedule: StateDict,
}

impl ReferenceWeights {
    /// Tells the network's configuration from its tensors' shapes, and the formulation from what is beside it.
    ///
    /// # Errors
    /// Tensors that are no U-Net of the reference, with the first one that does not fit; tables that are no schedule.
    pub fn infer(&self) -> Result<Inferred, InteropError> {
        infer(self)
    }

    /// The tensors under our names: those of [`Unet`](crate::models::Unet), or, with a learned schedule, of
    /// [`Scheduled`](crate::models::Scheduled).
    ///
    /// # Errors
    /// See [`to_ours`]; tensors that are no learned schedule.
    pub fn to_ours(&self) -> Result<StateDict, InteropError> {
        let unet = to_ours(&self.unet)?;
        if self.schedule.is_empty() {
            return Ok(unet);
        }
        Ok(learned_schedule::beside(unet, learned_schedule::to_ours(&self.schedule)?))
    }
}
