//! The magnitude-preserving U-Net of EDM2 (Karras et al. 2023, "Analyzing and improving the training dynamics of diffusion models",
//! arXiv:2312.02696, figure 21) for sequences, images and volumes. One network for all of them: it works on `[b, d, h, w, c]`, and kernels and
//! resizing skip the axes that the data do not have.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use super::karras_unet_blocks::BlockDims;
use super::karras_unet_config::{KarrasUnetConfig, KarrasUnetConfigError};
use super::{Network, NetworkInput, SizeError};
use crate::nn::ops::{self, AxisResize};
use crate::nn::{
    Among, Dropout, Gain, Init, MP_SILU, MpAttention, MpConv, MpFourierEmbedding, MpInput, MpLinear, Vectors, mp_cat,
    mp_silu, mp_sum, pixel_norm, recompute,
};

/// A magnitude-preserving U-Net. Input and output are `[b, c, d h, w]`: sequences have height 1, the slices of volumes are stacked vertically.
#[derive(Module, Debug)]
pub struct KarrasUnet {
    pub input: MpConv,
    pub time_features: MpFourierEmbedding,
    pub time_emb: MpLinear,
    /// Only in a network with classes.
    pub class_emb: Option<MpLinear>,
    /// Only in a network with vectors.
    pub vector_emb: Option<MpLinear>,
    pub downs: Vec<Encoder>,
    pub mids: Vec<Decoder>,
    pub ups: Vec<Decoder>,
    pub output: MpConv,
    pub output_gain: Gain,
    #[module(skip)]
    config: KarrasUnetConfig,
}

/// An encoder block: normalised pixels, two convolutions, attention.
#[derive(Module, Debug)]
pub struct Encoder {
    /// If the size is halved.
    pub downsample_conv: Option<MpConv>,
    pub block: Block,
    #[module(skip)]
    dims: BlockDims,
}

/// A block of the middle or the decoder: two convolutions, attention.
#[derive(Module, Debug)]
pub struct Decoder {
    /// If the number of channels changes.
    pub res_conv: Option<MpConv>,
    pub block: Block,
    #[module(skip)]
    dims: BlockDims,
}

/// The layers that both kinds of blocks have.
#[derive(Module, Debug)]
pub struct Block {
    pub emb: MpLinear,
    pub emb_gain: Gain,
    pub conv1: MpConv,
    pub dropout: Dropout,
    pub conv2: MpConv,
    /// Over all positions, or within each slice if there is `time_attn`, too.
    pub attn: Option<MpAttention>,
    pub time_attn: Option<MpAttention>,
    residual_t: f64,
}

impl KarrasUnet {
    /// Draws initial weights; `init` holds the seed and the device.
    ///
    /// # Errors
    /// Options that describe no network.
    pub fn new(config: &KarrasUnetConfig, init: &mut Init) -> Result<Self, KarrasUnetConfigError> {
        let blocks = config.blocks()?;
        let kernel = KarrasUnetConfig::kernel(config.extent()?.layout, 3);
        let decoder = |init: &mut Init, dims: &BlockDims| Decoder {
            res_conv: (dims.dim_in != dims.dim_out).then(|| pointwise(init, dims)),
            block: Block::new(init, config, dims.dim_in, dims, kernel),
            dims: *dims,
        };
        let (dim, emb_dim) = (config.dim, config.emb_dim());
        Ok(Self {
            input: MpConv::new(init, config.in_channels(), dim, kernel, MpInput::OnesAndData),
            time_features: MpFourierEmbedding::new(init, config.fourier_dim),
            time_emb: MpLinear::new(init, config.fourier_dim, emb_dim),
            class_emb: (config.num_classes > 0).then(|| MpLinear::new(init, config.num_classes, emb_dim)),
            vector_emb: (config.vector_dim > 0).then(|| MpLinear::new(init, config.vector_dim, emb_dim)),
            downs: blocks
                .downs
                .iter()
                .map(|dims| Encoder {
                    downsample_conv: dims.resized.map(|_| pointwise(init, dims)),
                    block: Block::new(init, config, dims.dim_out, dims, kernel),
                    dims: *dims,
                })
                .collect(),
            mids: blocks.mids.iter().map(|dims| decoder(init, dims)).collect(),
            ups: blocks.ups.iter().map(|dims| decoder(init, dims)).collect(),
            output: MpConv::new(init, dim, config.out_channels(), kernel, MpInput::Data),
            output_gain: Gain::new(init),
            config: config.clone(),
        })
    }

    /// The options that this network was built from.
    pub fn config(&self) -> &KarrasUnetConfig {
        &self.config
    }

    /// Embedding of level, class and vector of each example, `[b, 4 dim]`. A missing class or vector counts as zeros.
    fn embed(&self, time: Tensor<1>, classes: Option<Tensor<1, Int>>, vectors: Option<Vectors>) -> Tensor<2> {
        let ([b], device) = (time.dims(), time.device());
        let class = self.class_emb.as_ref().map(|emb| {
            let no_class = || Tensor::full([b], self.config.num_classes as i64, &device);
            emb.forward_class(classes.unwrap_or_else(no_class))
        });
        let vector = self.vector_emb.as_ref().map(|emb| {
            let Vectors { values, given } =
                vectors.unwrap_or_else(|| Vectors::unknown(b, self.config.vector_dim, &device));
            emb.forward(values * given)
        });
        let time = self.time_emb.forward(self.time_features.forward(time));
        let added = |sum, part| mp_sum(sum, part, self.config.mp_add_emb_t);
        mp_silu([class, vector].into_iter().flatten().fold(time, added))
    }
}

impl Network for KarrasUnet {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let x = input.stacked(self.config.self_condition);
        let NetworkInput { time, classes, vectors, .. } = input;
        let [b, c, rows, w] = x.dims();
        let depth = self.config.extent.map_or(1, |extent| extent.depth);
        let x = x.reshape([b, c, depth, rows / depth, w]).permute([0, 2, 3, 4, 1]);
        let emb = self.embed(time, classes, vectors);

        let mut x = self.input.forward(x);
        let mut skips = vec![x.clone()];
        for encoder in &self.downs {
            x = encoder.forward(x, emb.clone());
            skips.push(x.clone());
        }
        for decoder in &self.mids {
            x = decoder.forward(x, emb.clone());
        }
        for decoder in &self.ups {
            let skip = if decoder.dims.resized.is_none() { skips.pop() } else { None };
            x = match skip {
                Some(skip) => mp_cat(x, skip, self.config.mp_cat_t),
                None => x,
            };
            x = decoder.forward(x, emb.clone());
        }
        let x = self.output_gain.forward(self.output.forward(x));
        x.permute([0, 4, 1, 2, 3]).reshape([b, self.config.out_channels(), rows, w])
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

    /// All tensors named `weight`: every layer's weight has that name, and the only other trained tensors are gains and attention memory.
    fn forces_norm_of(&self, name: &str) -> bool {
        name.rsplit('.').next() == Some("weight")
    }
}

fn pointwise(init: &mut Init, dims: &BlockDims) -> MpConv {
    MpConv::new(init, dims.dim_in, dims.dim_out, [1; 3], MpInput::Data)
}

impl Encoder {
    fn forward(&self, x: Tensor<5>, emb: Tensor<2>) -> Tensor<5> {
        recompute::block(self, [x], [emb], |block, [x], [emb]| block.forward_kept(x, emb))
    }

    fn forward_kept(&self, x: Tensor<5>, emb: Tensor<2>) -> Tensor<5> {
        let x = resized(x, self.dims.resized, AxisResize::HalveByMean);
        let x = match &self.downsample_conv {
            Some(conv) => conv.forward(x),
            None => x,
        };
        let x = pixel_norm(x);
        self.block.forward(x.clone(), x, emb)
    }
}

impl Decoder {
    fn forward(&self, x: Tensor<5>, emb: Tensor<2>) -> Tensor<5> {
        recompute::block(self, [x], [emb], |block, [x], [emb]| block.forward_kept(x, emb))
    }

    fn forward_kept(&self, x: Tensor<5>, emb: Tensor<2>) -> Tensor<5> {
        let x = resized(x, self.dims.resized, AxisResize::DoubleLinearly);
        let residual = match &self.res_conv {
            Some(conv) => conv.forward(x.clone()),
            None => x.clone(),
        };
        self.block.forward(x, residual, emb)
    }
}

/// Depth, height and width, each resized if its flag is set.
fn resized(x: Tensor<5>, axes: Option<[bool; 3]>, by: AxisResize) -> Tensor<5> {
    let axes = axes.unwrap_or_default();
    (1..=3).filter(|axis| axes[axis - 1]).fold(x, |x, axis| ops::resize_axis(x, axis, by))
}

impl Block {
    fn new(init: &mut Init, config: &KarrasUnetConfig, dim_in: usize, dims: &BlockDims, kernel: [usize; 3]) -> Self {
        let dim = dims.dim_out;
        let attention = |init: &mut Init| {
            MpAttention::new(init, dim, config.heads(dim), config.attn_dim_head, config.attn_res_mp_add_t)
        };
        Self {
            emb: MpLinear::new(init, config.emb_dim(), dim),
            emb_gain: Gain::new(init),
            conv1: MpConv::new(init, dim_in, dim, kernel, MpInput::Data),
            dropout: Dropout::new(config.dropout),
            conv2: MpConv::new(init, dim, dim, kernel, MpInput::Data),
            attn: dims.attention.then(|| attention(init)),
            time_attn: (dims.attention && config.is_factorized(dims)).then(|| attention(init)),
            residual_t: config.resnet_mp_add_t,
        }
    }

    /// `x` `[b, d, h, w, c_in]`, `residual` `[b, d, h, w, c_out]`, `emb` `[b, 4 dim]`.
    fn forward(&self, x: Tensor<5>, residual: Tensor<5>, emb: Tensor<2>) -> Tensor<5> {
        let hidden = self.conv1.forward_times(ops::silu(x), MP_SILU);
        let scale = self.emb_gain.forward(self.emb.forward(emb)) + 1.0;
        let dims @ [b, d, h, w, c] = hidden.dims();
        let hidden = ops::gated_silu(hidden.reshape([b, d * h, w, c]), scale).reshape(dims);
        let x = self.conv2.forward_mp_sum(self.dropout.forward(hidden), MP_SILU, residual, self.residual_t);
        match (&self.attn, &self.time_attn) {
            (Some(space), Some(time)) => time.forward_residual(space.forward_residual(x, Among::Slice), Among::Place),
            (Some(attn), None) => attn.forward_residual(x, Among::All),
            _ => x,
        }
    }
}
