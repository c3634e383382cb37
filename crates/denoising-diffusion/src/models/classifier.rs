//! A classifier of noisy images, for classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233, section 4): the U-Net up to its middle, then
//! normalisation, SiLU, the mean over all positions and one linear layer. Not here: its noisy input (`diffusion::classifier`) and its training
//! (`train::classifier`).

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::unet_config::{UnetConfig, UnetConfigError, at_least};
use super::unet_stages::{Stage, stage_widths};
use super::{PerStage, StageAttention, TimeMlp, UnetStage};
use crate::nn::{Attention, Conv2d, Init, Linear, Linears, Resample, Resampling, ResnetBlock, RmsNorm, ops};

/// Learned key-value pairs in each attention.
const MEMORY: usize = 4;

/// Options of [`Classifier`]; those that also exist in [`UnetConfig`] mean the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Base width; stage `i` has `dim * dim_mults[i]` channels.
    pub dim: usize,
    /// Width of each stage as a multiple of `dim`; every stage but the last halves both sides.
    pub dim_mults: Vec<usize>,
    /// Dropout probability after the first block of each residual block, in train behaviour only.
    pub dropout: f64,
    /// Width of an attention head, for all stages or per stage.
    pub attn_dim_head: PerStage<usize>,
    /// Number of attention heads, for all stages or per stage.
    pub attn_heads: PerStage<usize>,
    /// Softmax attention (`true`) or linear attention (`false`), for all stages or per stage; absent: softmax in the innermost stage
    /// only.
    pub full_attn: Option<PerStage<bool>>,
    /// Channels of the data.
    pub channels: usize,
    /// Number of classes, at least 2.
    pub num_classes: usize,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        let UnetConfig { dim_mults, attn_dim_head, attn_heads, full_attn, channels, .. } = UnetConfig::default();
        Self { dim: 32, dim_mults, dropout: 0.0, attn_dim_head, attn_heads, full_attn, channels, num_classes: 10 }
    }
}

impl ClassifierConfig {
    /// The U-Net whose first half this is.
    fn unet(&self) -> UnetConfig {
        let Self { dim, dim_mults, dropout, attn_dim_head, attn_heads, full_attn, channels, num_classes: _ } =
            self.clone();
        UnetConfig { dim, dim_mults, dropout, attn_dim_head, attn_heads, full_attn, channels, ..UnetConfig::default() }
    }

    /// The network in one line.
    pub fn in_words(&self) -> String {
        format!("the first half of a U-Net, stages {}", stage_widths(self.dim, &self.dim_mults))
    }

    /// The stages, outermost first.
    ///
    /// # Errors
    /// [`UnetConfigError`] naming the option.
    pub fn stages(&self) -> Result<Vec<Stage>, UnetConfigError> {
        at_least("num_classes", 2, self.num_classes)?;
        self.unet().stages()
    }

    /// Refuses sizes that the network cannot halve often enough, naming the nearest valid ones.
    ///
    /// # Errors
    /// [`UnetConfigError::Size`].
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), UnetConfigError> {
        self.unet().check_size(height, width)
    }
}

/// Predicts the class of a noisy image.
#[derive(Module, Debug)]
pub struct Classifier {
    pub init_conv: Conv2d,
    pub time_mlp: TimeMlp,
    pub downs: Vec<UnetStage>,
    pub mid_block1: ResnetBlock,
    pub mid_attn: Attention,
    pub mid_block2: ResnetBlock,
    pub norm: RmsNorm,
    pub to_logits: Linear,
    #[module(skip)]
    config: ClassifierConfig,
}

impl Classifier {
    /// Draws initial weights; `init` holds the seed and the device.
    ///
    /// # Errors
    /// [`UnetConfigError`] naming the invalid option.
    pub fn new(config: &ClassifierConfig, init: &mut Init) -> Result<Self, UnetConfigError> {
        let (stages, unet) = (config.stages()?, config.unet());
        let (cond_dim, inner) = (unet.time_dim(), stages[stages.len() - 1]);
        let block = |init: &mut Init, dim| ResnetBlock::new(init, dim, dim, cond_dim, config.dropout);

        let init_conv = Conv2d::new(init, config.channels, unet.first_dim(), 7);
        let time_mlp = TimeMlp::new(init, &unet);
        let downs = stages.iter().map(|s| UnetStage {
            block1: block(init, s.dim_in),
            block2: block(init, s.dim_in),
            attn: StageAttention::new(init, s.dim_in, s, MEMORY),
            resample: Resample::new(
                init,
                s.dim_in,
                s.dim_out,
                if s.is_last { Resampling::Keep } else { Resampling::Halve },
            ),
        });
        Ok(Self {
            init_conv,
            time_mlp,
            downs: downs.collect(),
            mid_block1: block(init, inner.dim_out),
            mid_attn: Attention::new(init, inner.dim_out, inner.heads, inner.dim_head, MEMORY),
            mid_block2: block(init, inner.dim_out),
            norm: RmsNorm::new(init, inner.dim_out),
            to_logits: Linear::new(init, inner.dim_out, config.num_classes),
            config: config.clone(),
        })
    }

    /// The options that this network was built from.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    fn blocks(&self) -> impl Iterator<Item = &ResnetBlock> {
        let stages = self.downs.iter().flat_map(|stage| [&stage.block1, &stage.block2]);
        stages.chain([&self.mid_block1, &self.mid_block2])
    }

    /// Noisy images `[b, channels, h, w]` and their noise levels `[b]`, as the formulation numbers them, to logits `[b, num_classes]`.
    pub fn forward(&self, x: Tensor<4>, time: Tensor<1>) -> Tensor<2> {
        let mut x = self.init_conv.forward(ops::to_nhwc(x)); // [b, h, w, c] from here on
        let cond = ops::silu(self.time_mlp.forward(time)); // [b, 4 dim]
        let cond = Linears::new(cond, self.blocks().map(|block| &block.mlp));

        for stage in &self.downs {
            x = stage.block1.forward(x, None, &cond);
            x = stage.block2.forward(x, None, &cond);
            x = stage.attn.forward_residual(x);
            x = stage.resample.forward(x);
        }

        x = self.mid_block1.forward(x, None, &cond);
        x = self.mid_attn.forward_residual(x);
        x = self.mid_block2.forward(x, None, &cond);

        x = self.norm.forward_silu(x);
        let [b, h, w, c] = x.dims();
        let mean = x.reshape([b, h * w, c]).mean_dim(1).reshape([b, c]);
        self.to_logits.forward(mean)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::EvalMode;
    use crate::nn::params::host_values;
    use crate::noise::{Purpose, normal_batch};

    fn tiny() -> ClassifierConfig {
        ClassifierConfig {
            dim: 4,
            dim_mults: vec![1, 2],
            attn_heads: PerStage::All(1),
            attn_dim_head: PerStage::All(4),
            channels: 1,
            num_classes: 3,
            ..ClassifierConfig::default()
        }
    }

    #[test]
    fn logits_depend_on_the_image_and_on_its_noise_level_alone() {
        let device = Device::flex();
        let classifier = Classifier::new(&tiny(), &mut Init::new(1, &device)).unwrap().eval();
        let x = normal_batch::<4>(0, Purpose::SampleInit, 0, 0, [3, 1, 6, 4], &device);
        let times = Tensor::from_floats([0.0, 7.0, 900.0], &device);
        let logits = classifier.forward(x.clone(), times);
        assert_eq!(logits.dims(), [3, 3]);
        let one = |i: usize, time: f64| {
            host_values(classifier.forward(x.clone().narrow(0, i, 1), Tensor::full([1], time, &device)))
        };
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        let logits = host_values(logits);
        assert!(close(&one(1, 7.0), &logits[3..6]));
        assert!(!close(&one(1, 8.0), &logits[3..6]));
        assert!(!close(&one(2, 7.0), &logits[3..6]));
    }

    #[test]
    fn options_are_those_of_the_u_net() {
        let stages = ClassifierConfig { dim: 64, ..ClassifierConfig::default() }.stages().unwrap();
        assert_eq!(stages, UnetConfig::default().stages().unwrap());
        let wrong = |config: ClassifierConfig| config.stages().unwrap_err().to_string();
        assert!(
            wrong(ClassifierConfig { num_classes: 1, ..tiny() }).contains("`num_classes` must be at least 2, got 1")
        );
        assert!(wrong(ClassifierConfig { dropout: 1.0, ..tiny() }).contains("`dropout`"));
        assert!(wrong(ClassifierConfig { dim_mults: vec![], ..tiny() }).contains("`dim_mults`"));
        assert!(tiny().check_size(6, 5).is_err() && tiny().check_size(6, 4).is_ok());
        assert!(serde_json::from_str::<ClassifierConfig>(r#"{"dims": 4}"#).is_err());
    }
}
