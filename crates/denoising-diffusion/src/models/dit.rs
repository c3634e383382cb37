//! DiT (Peebles and Xie 2022, arXiv:2212.09748): a transformer on patches, conditioned by adaLN-Zero: noise level and class scale, shift and gate
//! every block, and an untrained network outputs zeros.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use super::dit_config::{DitConfig, DitConfigError, TIME_FREQUENCIES};
use super::{Network, NetworkInput, SizeError};
use crate::data::augment;
use crate::nn::ops::Pointwise;
use crate::nn::{AugmentEmbedding, Embedding, Init, Linear, Linears, VectorEmbedding, ops, recompute};

/// Standard deviation of the initial weights of embeddings.
const EMBEDDING_DEVIATION: f64 = 0.02;

/// A transformer for images, conditioned on a class if `num_classes` is above 0.
#[derive(Module, Debug)]
pub struct Dit {
    /// `[hidden, c patch patch]`
    pub x_embedder: Linear,
    pub t_embedder: TimestepEmbedder,
    /// `[num_classes + 1, hidden]`, the last row for "no class".
    pub y_embedder: Option<Embedding>,
    /// Only in a network with vectors.
    pub vector_emb: Option<VectorEmbedding>,
    /// In a network that is told of augmentation.
    pub augment_emb: Option<AugmentEmbedding>,
    pub blocks: Vec<DitBlock>,
    /// Gives shift and scale, `[2 hidden, hidden]`.
    pub final_modulation: Linear,
    /// `[patch patch out, hidden]`
    pub final_linear: Linear,
    #[module(skip)]
    config: DitConfig,
}

/// Embeds the noise level: cosines and sines, linear, SiLU, linear.
#[derive(Module, Debug)]
pub struct TimestepEmbedder {
    pub linear1: Linear,
    pub linear2: Linear,
}

/// Attention and an MLP, each normalised, shifted and scaled before, and gated after.
#[derive(Module, Debug)]
pub struct DitBlock {
    /// Gives shift, scale and gate of attention, then of the MLP, `[6 hidden, hidden]`.
    pub modulation: Linear,
    pub qkv: Linear,
    pub proj: Linear,
    pub fc1: Linear,
    pub fc2: Linear,
    #[module(skip)]
    heads: usize,
}

impl Dit {
    /// Draws initial weights as in the paper's code: linear layers from Xavier's uniform distribution, embeddings from a normal one, zeros where
    /// blocks and output are gated.
    ///
    /// # Errors
    /// Options that describe no network.
    pub fn new(config: &DitConfig, init: &mut Init) -> Result<Self, DitConfigError> {
        config.validate()?;
        let (hidden, area) = (config.hidden_size(), config.patch_size * config.patch_size);
        let x_embedder = Linear::xavier(init, config.in_channels() * area, hidden);
        let t_embedder = TimestepEmbedder {
            linear1: Linear::normal(init, TIME_FREQUENCIES, hidden, EMBEDDING_DEVIATION),
            linear2: Linear::normal(init, hidden, hidden, EMBEDDING_DEVIATION),
        };
        let rows = config.num_classes + 1;
        let y_embedder = (rows > 1).then(|| Embedding { weight: init.normal_of([rows, hidden], EMBEDDING_DEVIATION) });
        let vector_emb = (config.vector_dim > 0).then(|| VectorEmbedding::new(init, config.vector_dim, hidden));
        let augment_emb = config.augment_labels.then(|| AugmentEmbedding::new(init, augment::LABELS, hidden));
        let blocks = (0..config.depth()).map(|_| DitBlock::new(init, config)).collect();
        Ok(Self {
            x_embedder,
            t_embedder,
            y_embedder,
            vector_emb,
            augment_emb,
            blocks,
            final_modulation: Linear::zeros(init, hidden, 2 * hidden),
            final_linear: Linear::zeros(init, hidden, area * config.out_channels()),
            config: config.clone(),
        })
    }

    /// The options that this network was built from.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// `[b, c, h, w]` to tokens `[b, h / patch, w / patch, c patch patch]`.
    fn patches(&self, x: Tensor<4>) -> Tensor<4> {
        let ([b, c, h, w], p) = (x.dims(), self.config.patch_size);
        let x = x.reshape([b, c, h / p, p, w / p, p]).permute([0, 2, 4, 1, 3, 5]);
        x.reshape([b, h / p, w / p, c * p * p])
    }

    /// Tokens `[b, h / patch, w / patch, patch patch out]` to `[b, out, h, w]`.
    fn image(&self, x: Tensor<4>) -> Tensor<4> {
        let ([b, h, w, _], p, c) = (x.dims(), self.config.patch_size, self.config.out_channels());
        let x = x.reshape([b, h, w, p, p, c]).permute([0, 5, 1, 3, 2, 4]);
        x.reshape([b, c, h * p, w * p])
    }

    /// What every block is conditioned on, `[b, hidden]`. Absent `classes` are "no class" for all.
    fn condition(&self, input: NetworkInput) -> Tensor<2> {
        let NetworkInput { time, classes, vectors, augment_labels, .. } = input;
        let b = time.dims()[0];
        let no_class = || Tensor::full([b], self.config.num_classes as i64, &time.device());
        let y = self.y_embedder.as_ref().map(|table| table.weight.val().select(0, classes.unwrap_or_else(no_class)));
        let v = self.vector_emb.as_ref().map(|emb| emb.forward(vectors, b));
        let a = self.augment_emb.as_ref().zip(augment_labels).map(|(emb, labels)| emb.forward(labels));
        [y, v, a].into_iter().flatten().fold(self.t_embedder.forward(time), |t, embedded| t + embedded)
    }
}

impl Network for Dit {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let x = input.stacked(false);
        let x = on_tokens(&self.x_embedder, self.patches(x)); // [b, h / patch, w / patch, hidden] from here on
        let [_, rows, columns, hidden] = x.dims();
        let x = x.clone() + positions(rows, columns, hidden, &x).cast(x.dtype());
        let modulations = self.blocks.iter().map(|block| &block.modulation).chain([&self.final_modulation]);
        let condition = Linears::new(ops::silu(self.condition(input)), modulations);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, condition.of(&block.modulation)));
        let [shift, scale] = parts(condition.of(&self.final_modulation));
        self.image(on_tokens(&self.final_linear, modulated(x, shift, scale)))
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

    fn check_size(&self, height: usize, width: usize) -> Result<(), SizeError> {
        self.config.check_size(height, width).map_err(|error| SizeError(error.to_string()))
    }
}

impl TimestepEmbedder {
    /// Embeds `time * 10000^(-k / 128)`, k = 0..128: cosines, then sines.
    fn forward(&self, time: Tensor<1>) -> Tensor<2> {
        let half = TIME_FREQUENCIES / 2;
        let frequencies = (0..half).map(|k| (-(10_000_f64.ln()) * k as f64 / half as f64).exp() as f32).collect();
        let frequencies = Tensor::<2>::from_data(TensorData::new::<f32, _>(frequencies, [1, half]), &time.device());
        let angles = time.unsqueeze_dim::<2>(1) * frequencies;
        let waves = Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1);
        self.linear2.forward(ops::silu(self.linear1.forward(waves)))
    }
}

impl DitBlock {
    fn new(init: &mut Init, config: &DitConfig) -> Self {
        let (hidden, mlp) = (config.hidden_size(), config.mlp_dim());
        Self {
            modulation: Linear::zeros(init, hidden, 6 * hidden),
            qkv: Linear::xavier(init, hidden, 3 * hidden),
            proj: Linear::xavier(init, hidden, hidden),
            fc1: Linear::xavier(init, hidden, mlp),
            fc2: Linear::xavier(init, mlp, hidden),
            heads: config.num_heads(),
        }
    }

    /// `x [b, h, w, hidden]`; `modulation` `[b, 6 hidden]` is the output of the `modulation` layer for the condition.
    fn forward(&self, x: Tensor<4>, modulation: Tensor<2>) -> Tensor<4> {
        recompute::block(self, [x], [modulation], |block, [x], [modulation]| block.forward_kept(x, modulation))
    }

    fn forward_kept(&self, x: Tensor<4>, modulation: Tensor<2>) -> Tensor<4> {
        let [shift, scale, gate, mlp_shift, mlp_scale, mlp_gate] = parts(modulation);
        let attended = self.attention(modulated(x.clone(), shift, scale));
        let x = ops::gated_add(on_tokens(&self.proj, attended), gate, x);
        let hidden = on_tokens(&self.fc1, modulated(x.clone(), mlp_shift, mlp_scale));
        ops::gated_add(on_tokens(&self.fc2, ops::pointwise(Pointwise::GeluTanh, hidden)), mlp_gate, x)
    }

    /// `softmax(q k^T / sqrt(d)) v` per head, `[b, h, w, hidden]`.
    fn attention(&self, x: Tensor<4>) -> Tensor<4> {
        let no_memory = Tensor::zeros([2, self.heads, 0, x.dims()[3] / self.heads], &x.device());
        ops::attention(on_tokens(&self.qkv, x), no_memory)
    }
}

/// A linear layer on each token, `[b, h, w, c_in] -> [b, h, w, c_out]`.
fn on_tokens(linear: &Linear, x: Tensor<4>) -> Tensor<4> {
    let weight = linear.weight.val();
    let [c_out, c_in] = weight.dims();
    ops::conv2d(x, weight.reshape([c_out, c_in, 1, 1]), Some(linear.bias.val()))
}

/// Splits `[b, N hidden]` into N parts `[b, hidden]`.
fn parts<const N: usize>(x: Tensor<2>) -> [Tensor<2>; N] {
    let all = x.dims()[1];
    std::array::from_fn(|i| x.clone().narrow(1, i * all / N, all / N))
}

/// The normalised `x`, scaled by `1 + scale` and shifted.
fn modulated(x: Tensor<4>, shift: Tensor<2>, scale: Tensor<2>) -> Tensor<4> {
    ops::layer_norm_scaled(x, Tensor::cat(vec![scale, shift], 1))
}

/// Sines and cosines of a token's column, then of its row, `[1, rows, columns, hidden]` (in the order of the paper's code).
fn positions(rows: usize, columns: usize, hidden: usize, like: &Tensor<4>) -> Tensor<4> {
    let quarter = hidden / 4;
    let waves = |at: usize| {
        let angle = move |k: usize| at as f64 / 10_000_f64.powf(k as f64 / quarter as f64);
        (0..quarter).map(move |k| angle(k).sin()).chain((0..quarter).map(move |k| angle(k).cos()))
    };
    // Those of each place along a side once, not those of each token.
    let places: Vec<Vec<f32>> =
        (0..rows.max(columns)).map(|at| waves(at).map(|value| value as f32).collect()).collect();
    let of = |token: usize| [places[token % columns].as_slice(), &places[token / columns]];
    let values = (0..rows * columns).map(of).flat_map(|parts| parts.concat()).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, [1, rows, columns, hidden]), &like.device())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::EvalMode;
    use crate::nn::params::host_values;
    use crate::noise::{Purpose, normal_batch};

    #[test]
    fn a_new_network_gives_zeros_on_any_grid() {
        let device = Device::flex();
        let small =
            DitConfig { hidden_size: Some(8), depth: Some(1), num_heads: Some(2), channels: 1, ..DitConfig::default() };
        let dit = Dit::new(&small, &mut Init::new(0, &device)).unwrap().eval();
        for (h, w) in [(4, 4), (6, 10)] {
            let x = normal_batch(0, Purpose::SampleInit, 0, 0, [2, 1, h, w], &device);
            let out = dit.forward(NetworkInput::new(x, Tensor::full([2], 5.0, &device)));
            assert_eq!(out.dims(), [2, 1, h, w]);
            assert!(host_values(out).iter().all(|v| *v == 0.0));
        }
        assert!(dit.check_size(5, 4).is_err());
    }
}
