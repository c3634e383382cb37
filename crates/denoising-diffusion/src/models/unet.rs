//! The U-Net of Ho et al. 2020 in the reference's form: residual blocks with RMS normalisation, linear attention in the outer stages, softmax
//! attention in the innermost.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, activation};

use super::unet_config::{Downsampling, UnetConfig, UnetConfigError};
use super::unet_stages::Stage;
use super::{Network, NetworkInput, SizeError};
use crate::data::augment;
use crate::nn::{
    Attention, AugmentEmbedding, Conv2d, Embedding, FourierPosEmb, FourierWeights, Init, Linear, LinearAttention,
    Linears, Resample, Resampling, ResnetBlock, SinusoidalPosEmb, VectorEmbedding, ops,
};

/// A U-Net for images, or for sequences stored as images of height 1 (`[b, c, 1, l]`); conditioned on a class if `num_classes` is above 0.
#[derive(Module, Debug)]
pub struct Unet {
    pub init_conv: Conv2d,
    pub time_mlp: TimeMlp,
    /// This and the next two exist only in a network with classes.
    pub classes_emb: Option<Embedding>,
    /// `[dim]`, the embedding of "no class".
    pub null_classes_emb: Option<Param<Tensor<1>>>,
    pub classes_mlp: Option<ClassesMlp>,
    /// Only in a network with vectors.
    pub vector_emb: Option<VectorEmbedding>,
    /// In a network that is told of augmentation.
    pub augment_emb: Option<AugmentEmbedding>,
    pub downs: Vec<UnetStage>,
    pub mid_block1: ResnetBlock,
    pub mid_attn: Attention,
    pub mid_block2: ResnetBlock,
    pub ups: Vec<UnetStage>,
    pub final_res_block: ResnetBlock,
    pub final_conv: Conv2d,
    #[module(skip)]
    config: UnetConfig,
}

/// One resolution: two residual blocks, attention, and the layer that leads to the next resolution.
#[derive(Module, Debug)]
pub struct UnetStage {
    pub block1: ResnetBlock,
    pub block2: ResnetBlock,
    pub attn: StageAttention,
    pub resample: Resample,
}

/// The attention of a stage.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a handful of them exist
pub enum StageAttention {
    Softmax(Attention),
    Linear(LinearAttention),
}

/// Embeds the noise level: embedding, linear, GELU, linear.
#[derive(Module, Debug)]
pub struct TimeMlp {
    pub embed: TimeEmbedding,
    pub linear1: Linear,
    pub linear2: Linear,
}

/// Processes the class embedding: linear, GELU, linear.
#[derive(Module, Debug)]
pub struct ClassesMlp {
    pub linear1: Linear,
    pub linear2: Linear,
}

/// How the noise level is embedded.
#[derive(Module, Debug)]
pub enum TimeEmbedding {
    Sinusoidal(SinusoidalPosEmb),
    Fourier(FourierPosEmb),
}

impl Unet {
    /// Draws initial weights; `init` holds the seed and the device.
    pub fn new(config: &UnetConfig, init: &mut Init) -> Result<Self, UnetConfigError> {
        let stages = config.stages()?;
        let (cond_dim, first_dim) = (config.cond_dim(), config.first_dim());
        let (num_classes, dim) = (config.num_classes, config.dim);
        let (axes, memory) = (config.axes, config.num_mem_kv);
        let block = |init: &mut Init, dim_in, dim_out| {
            ResnetBlock::along(init, axes, dim_in, dim_out, cond_dim, config.dropout)
        };
        let resample = |init: &mut Init, dim_in, dim_out, kind| match config.downsample {
            Downsampling::Unshuffle => Resample::new(init, dim_in, dim_out, kind),
            Downsampling::Strided => Resample::strided(init, axes, dim_in, dim_out, kind),
        };

        let init_conv = Conv2d::along(init, axes, config.in_channels(), first_dim, 7);
        let time_mlp = TimeMlp::new(init, config);
        let classes_emb = (num_classes > 0).then(|| Embedding::new(init, num_classes, dim));
        let null_classes_emb = (num_classes > 0).then(|| init.normal([dim]));
        let classes_mlp = (num_classes > 0).then(|| ClassesMlp::new(init, dim));
        let vector_emb =
            (config.vector_dim > 0).then(|| VectorEmbedding::new(init, config.vector_dim, config.time_dim()));
        let augment_emb =
            config.augment_labels.then(|| AugmentEmbedding::new(init, augment::LABELS, config.time_dim()));

        let downs = stages.iter().map(|s| UnetStage {
            block1: block(init, s.dim_in, s.dim_in),
            block2: block(init, s.dim_in, s.dim_in),
            attn: StageAttention::new(init, s.dim_in, s, memory),
            resample: resample(init, s.dim_in, s.dim_out, if s.is_last { Resampling::Keep } else { Resampling::Halve }),
        });
        let downs = downs.collect();

        let inner = stages[stages.len() - 1];
        let mid_block1 = block(init, inner.dim_out, inner.dim_out);
        let (heads, dim_head) = config.mid_attention(&inner);
        let mid_attn = Attention::new(init, inner.dim_out, heads, dim_head, memory);
        let mid_block2 = block(init, inner.dim_out, inner.dim_out);

        let ups = stages.iter().enumerate().rev().map(|(i, s)| UnetStage {
            block1: block(init, s.dim_out + s.dim_in, s.dim_out),
            block2: block(init, s.dim_out + s.dim_in, s.dim_out),
            attn: StageAttention::new(init, s.dim_out, s, memory),
            resample: resample(init, s.dim_out, s.dim_in, if i == 0 { Resampling::Keep } else { Resampling::Double }),
        });
        let ups = ups.collect();

        Ok(Self {
            init_conv,
            time_mlp,
            classes_emb,
            null_classes_emb,
            classes_mlp,
            vector_emb,
            augment_emb,
            downs,
            mid_block1,
            mid_attn,
            mid_block2,
            ups,
            final_res_block: block(init, 2 * first_dim, first_dim),
            final_conv: Conv2d::along(init, axes, first_dim, config.out_channels(), 1),
            config: config.clone(),
        })
    }

    /// The options that this network was built from.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    fn blocks(&self) -> impl Iterator<Item = &ResnetBlock> {
        let stages = self.downs.iter().chain(&self.ups).flat_map(|stage| [&stage.block1, &stage.block2]);
        stages.chain([&self.mid_block1, &self.mid_block2, &self.final_res_block])
    }

    /// The class embedding of each of `b` examples: `[b, 4 dim]`. Absent `classes` are "no class" for all.
    fn embed_classes(&self, classes: Option<Tensor<1, Int>>, b: usize) -> Option<Tensor<2>> {
        let (emb, null, mlp) =
            (self.classes_emb.as_ref()?, self.null_classes_emb.as_ref()?, self.classes_mlp.as_ref()?);
        let null = null.val();
        let no_class = || Tensor::full([b], self.config.num_classes as i64, &null.device());
        Some(mlp.forward(emb.forward_or(classes.unwrap_or_else(no_class), null.clone())))
    }
}

impl Network for Unet {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let x = input.stacked(self.config.self_condition);
        let NetworkInput { time, classes, vectors, augment_labels, .. } = input;
        let b = x.dims()[0];
        let x = self.init_conv.forward(ops::to_nhwc(x)); // [b, h, w, c] from here on
        let t = self.time_mlp.forward(time); // [b, 4 dim]
        let t = match &self.vector_emb {
            Some(emb) => t + emb.forward(vectors, b),
            None => t,
        };
        let t = match self.augment_emb.as_ref().zip(augment_labels) {
            Some((emb, labels)) => t + emb.forward(labels),
            None => t,
        };
        let cond = match self.embed_classes(classes, b) {
            Some(c) => Tensor::cat(vec![t, c], 1), // [b, 8 dim]
            None => t,
        };
        let cond = Linears::new(ops::silu(cond), self.blocks().map(|block| &block.mlp));
        let first = x.clone();

        let mut x = x;
        let mut skips = Vec::with_capacity(2 * self.downs.len());
        for stage in &self.downs {
            x = stage.block1.forward(x, None, &cond);
            skips.push(x.clone());
            x = stage.block2.forward(x, None, &cond);
            x = stage.attn.forward_residual(x);
            skips.push(x.clone());
            x = stage.resample.forward(x);
        }

        x = self.mid_block1.forward(x, None, &cond);
        x = self.mid_attn.forward_residual(x);
        x = self.mid_block2.forward(x, None, &cond);

        for stage in &self.ups {
            x = stage.block1.forward(x, skips.pop(), &cond);
            x = stage.block2.forward(x, skips.pop(), &cond);
            x = stage.attn.forward_residual(x);
            x = stage.resample.forward(x);
        }

        x = self.final_res_block.forward(x, Some(first), &cond);
        ops::to_nchw(self.final_conv.forward(x))
    }

    fn channels(&self) -> usize {
        self.config.channels
    }

    fn out_channels(&self) -> usize {
        self.config.out_channels()
    }

    fn self_condition(&self) -> bool {
        self.config.self_condition
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn condition_channels(&self) -> usize {
        self.config.condition_channels
    }

    fn vector_dim(&self) -> usize {
        self.config.vector_dim
    }

    fn augment_labels(&self) -> bool {
        self.config.augment_labels
    }

    fn class_drop_prob(&self) -> f64 {
        self.config.class_drop_prob
    }

    fn takes_bf16(&self) -> bool {
        true
    }

    fn resolves_large_times(&self) -> bool {
        !self.config.fourier_time()
    }

    fn check_size(&self, height: usize, width: usize) -> Result<(), SizeError> {
        self.config.check_size(height, width).map_err(|error| SizeError(error.to_string()))
    }
}

impl StageAttention {
    pub(super) fn new(init: &mut Init, dim: usize, stage: &Stage, memory: usize) -> Self {
        if stage.full_attn {
            Self::Softmax(Attention::new(init, dim, stage.heads, stage.dim_head, memory))
        } else {
            Self::Linear(LinearAttention::new(init, dim, stage.heads, stage.dim_head, memory))
        }
    }

    pub(super) fn forward_residual(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Softmax(attention) => attention.forward_residual(x),
            Self::Linear(attention) => attention.forward_residual(x),
        }
    }
}

impl TimeMlp {
    pub(super) fn new(init: &mut Init, config: &UnetConfig) -> Self {
        let kind = if config.random_fourier_features { FourierWeights::Fixed } else { FourierWeights::Learned };
        let (embed, dim) = if config.fourier_time() {
            let dim = config.learned_sinusoidal_dim;
            (TimeEmbedding::Fourier(FourierPosEmb::new(init, dim, kind)), dim + 1)
        } else {
            let embed = SinusoidalPosEmb::new(config.dim, config.sinusoidal_pos_emb_theta);
            (TimeEmbedding::Sinusoidal(embed), config.dim)
        };
        Self {
            embed,
            linear1: Linear::new(init, dim, config.time_dim()),
            linear2: Linear::new(init, config.time_dim(), config.time_dim()),
        }
    }

    /// A network from `features` (even) learned Fourier features to `time_dim`.
    pub(super) fn fourier(init: &mut Init, features: usize, time_dim: usize) -> Self {
        Self {
            embed: TimeEmbedding::Fourier(FourierPosEmb::new(init, features, FourierWeights::Learned)),
            linear1: Linear::new(init, features + 1, time_dim),
            linear2: Linear::new(init, time_dim, time_dim),
        }
    }

    pub(super) fn forward(&self, time: Tensor<1>) -> Tensor<2> {
        let embedded = match &self.embed {
            TimeEmbedding::Sinusoidal(embed) => embed.forward(time),
            TimeEmbedding::Fourier(embed) => embed.forward(time),
        };
        self.linear2.forward(activation::gelu(self.linear1.forward(embedded)))
    }
}

impl ClassesMlp {
    pub(super) fn new(init: &mut Init, dim: usize) -> Self {
        Self { linear1: Linear::new(init, dim, 4 * dim), linear2: Linear::new(init, 4 * dim, 4 * dim) }
    }

    pub(super) fn forward(&self, embedded: Tensor<2>) -> Tensor<2> {
        self.linear2.forward(activation::gelu(self.linear1.forward(embedded)))
    }
}
