//! U-ViT (Hoogeboom et al. 2023, "simple diffusion", arXiv:2301.11093) in the reference's form: a U-Net whose middle is a transformer, so that most
//! of its work is done at the lowest resolution.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::unet::{ClassesMlp, TimeMlp};
use super::uvit_config::{ImageTransform, UvitConfig, UvitConfigError};
use super::{Network, NetworkInput, SizeError};
use crate::data::augment;
use crate::nn::{
    AugmentEmbedding, Conv2d, Downsample, Embedding, Init, LayerNorm, Linear, LinearAttention, Linears,
    QkNormAttention, ResnetBlock, ScaledFeedForward, Unpatchify, Upsample, VectorEmbedding, haar, inverse_haar, ops,
    pixel_unshuffle, recompute,
};

/// Number of heads of the linear attentions and their width: constants of the reference.
const LINEAR_HEADS: [usize; 2] = [4, 32];

/// A U-ViT for images, conditioned on a class if `num_classes` is above 0.
#[derive(Module, Debug)]
pub struct Uvit {
    pub init_conv: UvitInput,
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
    pub downs: Vec<UvitDown>,
    pub vit: Vec<UvitBlock>,
    pub ups: Vec<UvitUp>,
    pub final_res_block: ResnetBlock,
    pub final_conv: Conv2d,
    /// Only with patches.
    pub unpatchify: Option<Unpatchify>,
    #[module(skip)]
    config: UvitConfig,
}

/// The first layer: on pixels, or on patches.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // one of them exists
pub enum UvitInput {
    Pixels(Conv2d),
    Patches(Downsample),
    NormalisedPatches(PatchNorm),
}

/// Patches, normalised before and after their linear layer (Kumar et al. 2023, "Dual PatchNorm").
#[derive(Module, Debug)]
pub struct PatchNorm {
    pub norm1: LayerNorm,
    pub linear: Conv2d,
    pub norm2: LayerNorm,
    #[module(skip)]
    patch: usize,
}

/// One resolution of the encoder.
#[derive(Module, Debug)]
pub struct UvitDown {
    pub block1: ResnetBlock,
    pub block2: ResnetBlock,
    pub attn: LinearAttention,
    pub downsample: Downsample,
}

/// One block of the transformer.
#[derive(Module, Debug)]
pub struct UvitBlock {
    pub attn: QkNormAttention,
    pub ff: ScaledFeedForward,
}

/// One resolution of the decoder.
#[derive(Module, Debug)]
pub struct UvitUp {
    pub upsample: Upsample,
    pub block1: ResnetBlock,
    pub block2: ResnetBlock,
    pub attn: LinearAttention,
}

impl Uvit {
    /// Draws initial weights; `init` holds the seed and the device.
    ///
    /// # Errors
    /// Invalid options.
    pub fn new(config: &UvitConfig, init: &mut Init) -> Result<Self, UvitConfigError> {
        config.validate()?;
        let stages = config.stages()?;
        let (cond_dim, first_dim, num_classes) = (config.cond_dim(), config.first_dim(), config.num_classes);
        let block = |init: &mut Init, dim_in, dim_out| ResnetBlock::new(init, dim_in, dim_out, cond_dim, 0.0);
        let linear_attention = |init: &mut Init, dim| {
            let [heads, dim_head] = LINEAR_HEADS;
            LinearAttention::new(init, dim, heads, dim_head, 0)
        };

        let init_conv = UvitInput::new(init, config);
        let time_mlp = TimeMlp::fourier(init, config.learned_sinusoidal_dim, config.time_dim());
        let classes_emb = (num_classes > 0).then(|| Embedding::new(init, num_classes, config.dim));
        let null_classes_emb = (num_classes > 0).then(|| init.normal([config.dim]));
        let classes_mlp = (num_classes > 0).then(|| ClassesMlp::new(init, config.dim));
        let vector_emb =
            (config.vector_dim > 0).then(|| VectorEmbedding::new(init, config.vector_dim, config.time_dim()));
        let augment_emb =
            config.augment_labels.then(|| AugmentEmbedding::new(init, augment::LABELS, config.time_dim()));

        let downs = stages.iter().map(|s| UvitDown {
            block1: block(init, s.dim_in, s.dim_in),
            block2: block(init, s.dim_in, s.dim_in),
            attn: linear_attention(init, s.dim_in),
            downsample: Downsample::new(init, s.dim_in, s.dim_out, s.factor),
        });
        let downs = downs.collect();

        let inner = stages[stages.len() - 1].dim_out;
        let vit = (0..config.vit_depth).map(|_| UvitBlock {
            attn: QkNormAttention::new(init, inner, config.attn_heads, config.attn_dim_head, config.vit_dropout),
            ff: ScaledFeedForward::new(init, inner, config.ff_mult, cond_dim, config.vit_dropout),
        });
        let vit = vit.collect();

        let ups = stages.iter().rev().map(|s| UvitUp {
            upsample: Upsample::new(init, s.dim_out, s.dim_in, s.factor),
            block1: block(init, 2 * s.dim_in, s.dim_in),
            block2: block(init, 2 * s.dim_in, s.dim_in),
            attn: linear_attention(init, s.dim_in),
        });
        let ups = ups.collect();

        // The output of a patch has as many values as its input, and the last layer mixes them.
        let (out, patch) = (config.transformed(config.out_channels()), config.patch_size);
        let final_dim = out * patch * patch;
        Ok(Self {
            init_conv,
            time_mlp,
            classes_emb,
            null_classes_emb,
            classes_mlp,
            vector_emb,
            augment_emb,
            downs,
            vit,
            ups,
            final_res_block: block(init, 2 * first_dim, first_dim),
            final_conv: Conv2d::new(init, first_dim, final_dim, 1),
            unpatchify: (patch > 1).then(|| Unpatchify::new(init, final_dim, out, patch)),
            config: config.clone(),
        })
    }

    /// The options that this network was built from.
    pub fn config(&self) -> &UvitConfig {
        &self.config
    }

    /// The linear layers that read the condition of each block.
    fn conditioned(&self) -> impl Iterator<Item = &Linear> {
        let downs = self.downs.iter().flat_map(|stage| [&stage.block1, &stage.block2]);
        let ups = self.ups.iter().flat_map(|stage| [&stage.block1, &stage.block2]);
        let blocks = downs.chain(ups).chain([&self.final_res_block]).map(|block| &block.mlp);
        blocks.chain(self.vit.iter().map(|block| &block.ff.to_scale_shift))
    }

    /// The condition of every block, `[b, cond_dim]`. Absent `classes` are "no class" for all.
    fn condition(&self, input: NetworkInput) -> Tensor<2> {
        let NetworkInput { time, classes, vectors, augment_labels, .. } = input;
        let b = time.dims()[0];
        let t = self.time_mlp.forward(time);
        let t = match &self.vector_emb {
            Some(emb) => t + emb.forward(vectors, b),
            None => t,
        };
        let t = match self.augment_emb.as_ref().zip(augment_labels) {
            Some((emb, labels)) => t + emb.forward(labels),
            None => t,
        };
        let (Some(emb), Some(null), Some(mlp)) = (&self.classes_emb, &self.null_classes_emb, &self.classes_mlp) else {
            return t;
        };
        let null = null.val();
        let no_class = || Tensor::full([b], self.config.num_classes as i64, &null.device());
        let c = mlp.forward(emb.forward_or(classes.unwrap_or_else(no_class), null.clone()));
        Tensor::cat(vec![t, c], 1)
    }
}

impl Network for Uvit {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let x = input.stacked(false);
        let x = ops::to_nhwc(x); // [b, h, w, c] from here on
        let x = match self.config.image_transform {
            ImageTransform::None => x,
            ImageTransform::Haar => haar(x),
        };
        let mut x = self.init_conv.forward(x);
        let cond = Linears::new(ops::silu(self.condition(input)), self.conditioned());
        let first = x.clone();

        let mut skips = Vec::with_capacity(2 * self.downs.len());
        for stage in &self.downs {
            x = stage.block1.forward(x, None, &cond);
            skips.push(x.clone());
            x = stage.block2.forward(x, None, &cond);
            x = stage.attn.forward_residual(x);
            skips.push(x.clone());
            x = stage.downsample.forward(x);
        }

        for block in &self.vit {
            x = block.forward(x, &cond);
        }

        for stage in &self.ups {
            x = stage.upsample.forward(x);
            x = stage.block1.forward(x, skips.pop(), &cond);
            x = stage.block2.forward(x, skips.pop(), &cond);
            x = stage.attn.forward_residual(x);
        }

        x = self.final_conv.forward(self.final_res_block.forward(x, Some(first), &cond));
        if let Some(unpatchify) = &self.unpatchify {
            x = unpatchify.forward(x);
        }
        ops::to_nchw(match self.config.image_transform {
            ImageTransform::None => x,
            ImageTransform::Haar => inverse_haar(x),
        })
    }

    fn channels(&self) -> usize {
        self.config.channels
    }

    fn out_channels(&self) -> usize {
        self.config.out_channels()
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
        false
    }

    fn check_size(&self, height: usize, width: usize) -> Result<(), SizeError> {
        self.config.check_size(height, width).map_err(|error| SizeError(error.to_string()))
    }
}

impl UvitBlock {
    /// `x [b, h, w, c]`; `cond` of `[b, cond_dim]`.
    fn forward(&self, x: Tensor<4>, cond: &Linears) -> Tensor<4> {
        recompute::block(self, [x], [cond.of(&self.ff.to_scale_shift)], |block, [x], [scale_shift]| {
            block.ff.forward_residual(block.attn.forward_residual(x), scale_shift)
        })
    }
}

impl UvitInput {
    fn new(init: &mut Init, config: &UvitConfig) -> Self {
        let (dim_in, dim_out, patch) =
            (config.transformed(config.in_channels()), config.first_dim(), config.patch_size);
        if patch == 1 {
            return Self::Pixels(Conv2d::new(init, dim_in, dim_out, 7));
        }
        if !config.dual_patchnorm {
            return Self::Patches(Downsample::new(init, dim_in, dim_out, patch));
        }
        let values = dim_in * patch * patch;
        Self::NormalisedPatches(PatchNorm {
            norm1: LayerNorm::new(init, values),
            linear: Conv2d::new(init, values, dim_out, 1),
            norm2: LayerNorm::new(init, dim_out),
            patch,
        })
    }

    /// `[b, h, w, c] -> [b, h / patch, w / patch, init_dim]`
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Pixels(conv) => conv.forward(x),
            Self::Patches(patches) => patches.forward(x),
            Self::NormalisedPatches(PatchNorm { norm1, linear, norm2, patch }) => {
                norm2.forward(linear.forward(norm1.forward(pixel_unshuffle(x, *patch))))
            }
        }
    }
}
