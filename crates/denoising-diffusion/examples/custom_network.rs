//! Trains a network of your own, with BatchNorm and Dropout, on the embedded digits; then draws a grid.
//!
//!     cargo run --release -p denoising-diffusion --example custom_network
//!
//! A network is a Burn module and one function. Nothing else here is special to it: the Trainer, the moving average and the
//! samplers take it as they take the U-Net.

use std::error::Error;
use std::sync::Arc;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, activation};
use denoising_diffusion::data::{DataConfig, Dataset, Flip, ImageShape, Loader, LoaderConfig};
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig, Examples};
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::models::{Network, NetworkInput};
use denoising_diffusion::report::{GridOptions, save_grid};
use denoising_diffusion::sampler::SampleConfig;
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};

const WIDTH: usize = 48;
const STEPS: u64 = 400;

/// Convolutions with batch normalisation and dropout, each shifted by an embedding of the noise level.
#[derive(Module, Debug)]
struct ConvNet {
    first: Conv2d,
    blocks: Vec<Block>,
    last: Conv2d,
}

#[derive(Module, Debug)]
struct Block {
    time: Linear,
    norm: BatchNorm,
    conv: Conv2d,
    dropout: Dropout,
}

impl ConvNet {
    fn new(channels: usize, device: &Device) -> Self {
        let conv = |from, to| Conv2dConfig::new([from, to], [3, 3]).with_padding(PaddingConfig2d::Same).init(device);
        let block = || Block {
            time: LinearConfig::new(2, WIDTH).init(device),
            norm: BatchNormConfig::new(WIDTH).init(device),
            conv: conv(WIDTH, WIDTH),
            dropout: DropoutConfig::new(0.1).init(),
        };
        Self { first: conv(channels, WIDTH), blocks: (0..4).map(|_| block()).collect(), last: conv(WIDTH, channels) }
    }
}

impl Network for ConvNet {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let NetworkInput { x, time, .. } = input; // x [b, c, h, w], time [b] in 0..1000
        let angle = (time * (std::f64::consts::FRAC_PI_2 / 1000.0)).unsqueeze_dim::<2>(1);
        let level = Tensor::cat(vec![angle.clone().sin(), angle.cos()], 1); // [b, 2]
        let mut x = self.first.forward(x);
        for block in &self.blocks {
            let shift = block.time.forward(level.clone()).unsqueeze_dims::<4>(&[2, 3]);
            let h = activation::silu(block.norm.forward(x.clone()) + shift);
            x = x + block.dropout.forward(block.conv.forward(h));
        }
        self.last.forward(x)
    }

    fn channels(&self) -> usize {
        self.last.weight.dims()[0]
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    device.seed(1); // Burn's own layers draw their weights from Burn's generator
    let data = Arc::new(Dataset::open(&DataConfig::default())?);
    let ImageShape { channels, height, width } = data.shape();

    let config = TrainConfig { steps: STEPS, batch_size: 64, lr: 2e-3, ..TrainConfig::default() };
    let loader =
        LoaderConfig { batch_size: config.batch_size, seed: config.seed, flip: Flip::Off, augment: 0.0, workers: 0 };
    let mut loader = Loader::new(data, loader)?;
    let model = ConvNet::new(channels, &device.clone().autodiff());
    let diffusion = Diffusion::new(&DiffusionConfig::default())?;
    let mut trainer = Trainer::new(model, diffusion.clone(), config, EmaConfig::default(), &device)?;

    for _ in 0..STEPS {
        let report = trainer.step(vec![Examples::of(loader.next_batch()?, &device)]);
        if report.step % 100 == 0 {
            println!("step {} loss {:.4}", report.step, report.loss);
        }
    }

    // `eval()` is the only way to something that samples: dropout is off, statistics are the stored ones.
    let sample = SampleConfig { sampling_timesteps: Some(50), ..SampleConfig::default() };
    let request = Request::new(&sample, 0, 36, [channels, height, width]);
    let network = trainer.ema().eval();
    let images = Generator::new(&network, &diffusion, &device).generate(&request)?;
    save_grid("custom_network.png", &images, GridOptions::default())?;
    println!("custom_network.png");
    Ok(())
}
