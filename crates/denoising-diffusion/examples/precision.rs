//! Trains the same network on the same batches and noise in f32 and in bf16 and compares the losses.
//!
//! ```text
//! cargo run --release -p denoising-diffusion --example precision -- [DEVICE] [STEPS]
//! ```
//!
//! DEVICE is as in `ddpm --device` (default: cpu, which needs a matrix unit for bf16).

use std::error::Error;
use std::sync::Arc;

use denoising_diffusion::data::{DataConfig, Dataset, Flip, Loader, LoaderConfig};
use denoising_diffusion::device::{DeviceChoice, computes_in_bf16, open};
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig, Examples};
use denoising_diffusion::models::{Unet, UnetConfig};
use denoising_diffusion::nn::Init;
use denoising_diffusion::nn::ops::Precision;
use denoising_diffusion::recipe::ArithmeticConfig;
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};

/// Steps whose losses are averaged.
const PART: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let choice: DeviceChoice = args.next().as_deref().unwrap_or("cpu").parse()?;
    let steps: usize = args.next().as_deref().unwrap_or("500").parse()?;
    let device = open(choice)?.device;
    if !computes_in_bf16(&device) {
        return Err("this device does not compute in bf16".into());
    }
    let data = Arc::new(Dataset::open(&DataConfig::default())?);
    let shape = data.shape();

    let losses = |precision| -> Result<Vec<f64>, Box<dyn Error>> {
        ArithmeticConfig { precise: false, precision }.set_on(&device);
        let config =
            UnetConfig { dim: 16, dim_mults: vec![1, 2, 4], channels: shape.channels, ..UnetConfig::default() };
        let network = Unet::new(&config, &mut Init::new(0, &device.clone().autodiff()))?;
        let config = TrainConfig { batch_size: 32, lr: 1e-3, ..TrainConfig::default() };
        let loader = LoaderConfig {
            batch_size: config.batch_size,
            seed: config.seed,
            flip: Flip::Off,
            augment: 0.0,
            workers: 0,
        };
        let mut loader = Loader::new(data.clone(), loader)?;
        let diffusion = Diffusion::new(&DiffusionConfig::default())?;
        let mut trainer = Trainer::new(network, diffusion, config, EmaConfig::default(), &device)?;
        let mut losses = Vec::with_capacity(steps);
        for _ in 0..steps {
            losses.push(trainer.step(vec![Examples::of(loader.next_batch()?, &device)]).loss);
        }
        Ok(losses)
    };
    let (exact, rounded) = (losses(Precision::F32)?, losses(Precision::Bf16)?);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    println!("steps      f32      bf16     bf16 / f32");
    for (part, (a, b)) in exact.chunks(PART).zip(rounded.chunks(PART)).enumerate() {
        let (a, b) = (mean(a), mean(b));
        println!("{:>4}..{:<4} {a:.5}  {b:.5}  {:.4}", part * PART, part * PART + PART, b / a);
    }
    println!("all        {:.5}  {:.5}  {:.4}", mean(&exact), mean(&rounded), mean(&rounded) / mean(&exact));
    Ok(())
}
