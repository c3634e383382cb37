//! Layers, channels-last, one file per layer; the operations that they are made of (`ops`); modes of behaviour (`mode`); and a network's parameters
//! by name (`params`). The interface of the layers is narrow on purpose: a faster operation can replace a slower one inside `ops` without changing
//! the networks.

mod attention;
mod augment_embedding;
mod block;
mod conv;
pub mod dropout;
mod embedding;
mod feed_forward;
mod haar;
mod init;
mod layer_norm;
mod linear;
mod magnitude;
mod mode;
mod norm;
pub mod ops;
pub mod params;
mod pixel_shuffle;
mod qk_norm_attention;
pub mod recompute;
mod resample;
mod strided_conv;
pub(crate) mod sweeps;
mod unpatchify;
mod vector_embedding;

pub use attention::{Attention, LinearAttention};
pub use augment_embedding::AugmentEmbedding;
pub use block::{Block, ResnetBlock};
pub use conv::{Axes, Conv2d};
pub use dropout::Dropout;
pub use embedding::{Embedding, FourierPosEmb, FourierWeights, SinusoidalPosEmb};
pub use feed_forward::ScaledFeedForward;
pub use haar::{haar, inverse_haar};
pub use init::Init;
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, Linears};
pub use magnitude::{
    Among, Gain, MP_EPS, MP_SILU, MpAttention, MpConv, MpFourierEmbedding, MpInput, MpLinear, mp_cat, mp_silu, mp_sum,
    pixel_norm,
};
pub use mode::{Eval, EvalMode, TrainNoGrad};
pub use norm::RmsNorm;
pub use pixel_shuffle::{Downsample, Upsample, pixel_shuffle, pixel_unshuffle};
pub use qk_norm_attention::QkNormAttention;
pub use resample::{Resample, ResampleConv, Resampling};
pub use strided_conv::StridedConv;
pub use unpatchify::Unpatchify;
pub use vector_embedding::{VectorEmbedding, Vectors};
