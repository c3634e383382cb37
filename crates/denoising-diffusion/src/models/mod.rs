//! Networks, each readable on one page, and the trait that makes a network trainable here; also the learned noise schedule, which is trained as a
//! part of a network ([`Scheduled`]). A network knows nothing of formulations, losses or samplers: its time is a number.

mod calls;
mod classifier;
mod dit;
mod dit_config;
mod extent;
mod image_network;
mod karras_unet;
mod karras_unet_blocks;
mod karras_unet_config;
mod kept;
mod network_config;
mod network_options;
mod per_stage;
mod scheduled;
#[cfg(test)]
mod tests;
mod transfer;
mod unet;
mod unet1d_config;
mod unet_config;
mod unet_stages;
mod uvit;
mod uvit_config;

use burn::module::Module;
use burn::tensor::{DType, FloatDType, Int, Tensor};
use thiserror::Error;

use crate::nn::ops::{Precision, precision};
use crate::nn::{Eval, Vectors};

pub use crate::recording::RecordingState;
pub use calls::Calls;
pub use classifier::{Classifier, ClassifierConfig};
pub use dit::{Dit, DitBlock, TimestepEmbedder};
pub use dit_config::{DitConfig, DitConfigError, DitSize};
pub use extent::Extent;
pub use image_network::ImageNetwork;
pub use karras_unet::{Block, Decoder, Encoder, KarrasUnet};
pub use karras_unet_config::{DownsampleType, KarrasUnetConfig, KarrasUnetConfigError, SpaceTimeAttention};
pub use network_config::{NetworkConfig, NetworkConfigError, NetworkFit};
pub(crate) use network_options::{Input, NetworkKind, NetworkOptions};
pub use per_stage::PerStage;
pub use scheduled::{LearnedSchedule, LearnedScheduleOptions, ScheduleWeights, Scheduled};
pub use transfer::{Origin, Transfer, start_from};
pub use unet::{ClassesMlp, StageAttention, TimeEmbedding, TimeMlp, Unet, UnetStage};
pub use unet_config::{Downsampling, UnetConfig, UnetConfigError};
pub use unet_stages::Stage;
pub use unet1d_config::Unet1dConfig;
pub use uvit::{PatchNorm, Uvit, UvitBlock, UvitDown, UvitInput, UvitUp};
pub use uvit_config::{ImageTransform, UvitConfig, UvitConfigError};

/// The input of a network: a batch of noisy data, its noise levels, and the conditions. Data are `[b, c, h, w]`: a sequence is an image of height 1,
/// a volume `[d, h, w]` an image of height `d h` (slices stacked vertically).
#[derive(Clone, Debug)]
pub struct NetworkInput {
    /// `[b, c, h, w]`
    pub x: Tensor<4>,
    /// `[b]`, the noise level as the formulation numbers it (Gaussian diffusion: t).
    pub time: Tensor<1>,
    /// `[b, c, h, w]`, an earlier estimate of the clean data, if the network takes one; zeros if there is none yet.
    pub x_self_cond: Option<Tensor<4>>,
    /// `[b]`, the class of each example in `0..num_classes`, or `num_classes` for "no class", if the network takes classes.
    pub classes: Option<Tensor<1, Int>>,
    /// `[b, condition channels, h, w]`, the condition image, if the network takes one.
    pub condition: Option<Tensor<4>>,
    /// The conditioning vector of each example, if the network takes vectors.
    pub vectors: Option<Vectors>,
    /// `[b, 9]`, how each training image was [augmented](crate::data::augment), if the network is told; absent where none was.
    pub augment_labels: Option<Tensor<2>>,
}

impl NetworkInput {
    /// Only noisy data and their levels.
    pub fn new(x: Tensor<4>, time: Tensor<1>) -> Self {
        Self { x, time, x_self_cond: None, classes: None, condition: None, vectors: None, augment_labels: None }
    }

    /// The input of a network's first layer, concatenated along the channels: the earlier estimate, for networks that take one (zeros if there is
    /// none yet), the noisy data, and the condition.
    pub fn stacked(&self, self_condition: bool) -> Tensor<4> {
        let x = self.x.clone();
        let earlier = self_condition.then(|| self.x_self_cond.clone().unwrap_or_else(|| x.zeros_like()));
        let parts: Vec<_> = earlier.into_iter().chain([x.clone()]).chain(self.condition.clone()).collect();
        if parts.len() == 1 { x } else { Tensor::cat(parts, 1) }
    }
}

/// Largest number of channels, heads or classes: limits that keep parameter counts computable and catch typing errors.
const MOST_OF_ANYTHING: u64 = 1_000_000;

/// For serde: zero is the default and is not written.
pub(crate) fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A size that a network cannot handle, and the nearest valid ones.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{0}")]
pub struct SizeError(pub String);

/// A network that can be trained to denoise. Derive Burn's `Module` and implement this; see `examples/custom_network.rs`. Layers take their mode
/// from Burn: training behaviour on an autodiff device, evaluation behaviour in a copy made by [`eval`](crate::nn::EvalMode::eval).
pub trait Network: Module + Sync {
    /// `[b, channels, h, w] -> [b, out_channels, h, w]`
    fn forward(&self, input: NetworkInput) -> Tensor<4>;

    /// Whether [`forward`](Network::forward) works on data in bf16, giving an output in bf16; the inputs that are embedded (time, vectors) stay f32.
    /// Weights of [`Conv2d`](crate::nn::Conv2d) may be in bf16 then, so call it with bf16 data only.
    fn takes_bf16(&self) -> bool {
        false
    }

    /// The number type that [`predict`](Network::predict) computes in.
    fn data_type(&self) -> DType {
        if precision() == Precision::Bf16 && self.takes_bf16() { DType::BF16 } else { DType::F32 }
    }

    /// [`forward`](Network::forward) in this process's [`Precision`], if the network [supports it](Network::takes_bf16): f32 in, f32 out.
    fn predict(&self, input: NetworkInput) -> Tensor<4> {
        if self.data_type() == DType::F32 {
            return self.forward(input);
        }
        let narrow = |data: Tensor<4>| data.cast(FloatDType::BF16);
        let NetworkInput { x, x_self_cond, condition, .. } = input;
        let (x_self_cond, condition) = (x_self_cond.map(narrow), condition.map(narrow));
        let input = NetworkInput { x: narrow(x), x_self_cond, condition, ..input };
        self.forward(input).cast(FloatDType::F32)
    }

    /// Channels of the data.
    fn channels(&self) -> usize;

    /// Channels of the output.
    fn out_channels(&self) -> usize {
        self.channels()
    }

    /// Whether the network uses [`NetworkInput::x_self_cond`].
    fn self_condition(&self) -> bool {
        false
    }

    /// Number of classes that the network is conditioned on; 0 if it is not.
    fn num_classes(&self) -> usize {
        0
    }

    /// Channels of [`NetworkInput::condition`]; 0 if the network takes none.
    fn condition_channels(&self) -> usize {
        0
    }

    /// Length of each of [`NetworkInput::vectors`]; 0 if the network takes none.
    fn vector_dim(&self) -> usize {
        0
    }

    /// Whether the network uses [`NetworkInput::augment_labels`].
    fn augment_labels(&self) -> bool {
        false
    }

    /// The probability with which training hides an example's class and vector from it.
    fn class_drop_prob(&self) -> f64 {
        0.0
    }

    /// Whether training normalises the rows of the tensor with this name (one row for each output value) to root mean square 1: at each step, after
    /// the optimizer and before the average (forced weight normalisation, EDM2, algorithm 1).
    fn forces_norm_of(&self, _name: &str) -> bool {
        false
    }

    /// The noise schedule that is trained with it, if any.
    fn noise_schedule(&self) -> Option<&LearnedSchedule> {
        None
    }

    /// Whether [`NetworkInput::time`] may be as large as 1000, which Fourier features of random frequency cannot resolve.
    fn resolves_large_times(&self) -> bool {
        true
    }

    /// Refuses heights and widths that the network cannot handle.
    fn check_size(&self, _height: usize, _width: usize) -> Result<(), SizeError> {
        Ok(())
    }
}

impl<M> Eval<M> {
    /// The same network, ready for many [predictions](Network::predict) in the current precision of this process: weights are converted once instead
    /// of in each of them.
    pub fn for_predictions(self) -> Self
    where
        M: Network,
    {
        let dtype = self.data_type();
        self.for_data(dtype)
    }
}
