//! Trains the U-Net under a formulation of your own, TrigFlow (Lu and Song 2024, arXiv:2410.11081), on the embedded digits; then draws a grid.
//!
//!     cargo run --release -p denoising-diffusion --example custom_formulation
//!
//! A formulation is plain numbers: where noise levels come from, what the network predicts at each, how its error is weighed. Losses, every
//! solver, guidance and evaluation follow.

use std::error::Error;
use std::f64::consts::FRAC_PI_2;
use std::sync::Arc;

use burn::tensor::Device;
use denoising_diffusion::data::{DataConfig, Dataset, Flip, ImageShape, Loader, LoaderConfig};
use denoising_diffusion::diffusion::{
    Diffusion, Examples, Formulation, NoiseLevel, Prediction, SharedConfig, inverse_normal_cdf,
};
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::models::{Unet, UnetConfig};
use denoising_diffusion::nn::Init;
use denoising_diffusion::report::{GridOptions, save_grid};
use denoising_diffusion::sampler::{SampleConfig, SamplerKind};
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};

const STEPS: u64 = 400;

/// x_t = cos(t) x_start + sin(t) eps for t from 0 to pi / 2, where `ln tan t` is normal; the network is told t and predicts the velocity
/// cos(t) eps - sin(t) x_start.
#[derive(Debug)]
struct TrigFlow {
    mean: f64,
    deviation: f64,
}

impl TrigFlow {
    fn at(t: f64) -> NoiseLevel {
        NoiseLevel { alpha: t.cos(), sigma: t.sin(), time: t }
    }
}

impl Formulation for TrigFlow {
    fn time(&self, u: f64) -> f64 {
        (self.mean + self.deviation * inverse_normal_cdf(u)).exp().atan()
    }

    fn level(&self, t: f64) -> NoiseLevel {
        Self::at(t)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        Self::at((-0.5 * log_snr).exp().atan())
    }

    fn prediction(&self) -> Prediction {
        Prediction::V
    }

    fn loss_weight(&self, _: &NoiseLevel) -> f64 {
        1.0
    }

    /// Evenly spaced angles.
    fn levels(&self, steps: usize) -> Vec<NoiseLevel> {
        let [noisiest, _] = self.range();
        let angle = |k: usize| noisiest.time * (1.0 - k as f64 / steps as f64);
        (0..steps).map(|k| Self::at(angle(k))).chain([NoiseLevel::CLEAN]).collect()
    }

    fn range(&self) -> [NoiseLevel; 2] {
        [Self::at(FRAC_PI_2 - 0.005), Self::at(0.005)]
    }

    fn default_steps(&self) -> usize {
        50
    }

    /// t ends at 1.6.
    fn tells_large_times(&self) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let data = Arc::new(Dataset::open(&DataConfig::default())?);
    let ImageShape { channels, height, width } = data.shape();
    // Learned Fourier features resolve small times.
    let unet =
        UnetConfig { dim: 16, dim_mults: vec![1, 2], channels, learned_sinusoidal_cond: true, ..UnetConfig::default() };
    let unet = Unet::new(&unet, &mut Init::new(0, &device.clone().autodiff()))?;
    let diffusion = Diffusion::of(TrigFlow { mean: 0.0, deviation: 1.4 }, SharedConfig::default())?;

    let config = TrainConfig { steps: STEPS, batch_size: 32, lr: 2e-3, ..TrainConfig::default() };
    let loader =
        LoaderConfig { batch_size: config.batch_size, seed: config.seed, flip: Flip::Off, augment: 0.0, workers: 0 };
    let mut loader = Loader::new(data, loader)?;
    let mut trainer = Trainer::new(unet, diffusion.clone(), config, EmaConfig::default(), &device)?;
    for _ in 0..STEPS {
        let report = trainer.step(vec![Examples::of(loader.next_batch()?, &device)]);
        if report.step % 100 == 0 {
            println!("step {} loss {:.4}", report.step, report.loss);
        }
    }

    let sample =
        SampleConfig { sampler: SamplerKind::Dpmpp2m, sampling_timesteps: Some(20), ..SampleConfig::default() };
    let request = Request::new(&sample, 0, 36, [channels, height, width]);
    let network = trainer.ema().eval();
    let images = Generator::new(&network, &diffusion, &device).generate(&request)?;
    save_grid("custom_formulation.png", &images, GridOptions::default())?;
    println!("custom_formulation.png");
    Ok(())
}
