//! From a network in eval behaviour to images: noise levels, sampler and batches chosen by a [`SampleConfig`]. Not here: the samplers
//! themselves, and files.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor, TensorData};
use thiserror::Error;

use crate::diffusion::GaussianDiffusion;
use crate::models::Network;
use crate::nn::Eval;
use crate::nn::params::host_values;
use crate::report::ImageBatch;
use crate::sampler::{Callback, Interrupted, SampleConfig, SamplerKind, SeededNoise, Step, ddim, ddpm};

/// What samples are made of.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub sample: &'a SampleConfig,
    /// Of the noise: sample `i` takes stream `i`.
    pub seed: u64,
    /// Number of images.
    pub count: usize,
    /// `[channels, height, width]`
    pub shape: [usize; 3],
    /// x_T of every sample, `[count, c, h, w]` in row-major order, in place of noise drawn from the seed.
    pub init_noise: Option<&'a [f32]>,
}

/// Where sampling stands.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Images finished before this batch.
    pub images_done: usize,
    /// Steps done in this batch, from 1, and how many there are.
    pub step: usize,
    pub steps: usize,
    /// The data after this step, on the network's scale.
    pub x: &'a Tensor<4>,
}

/// Why there are no samples.
#[derive(Debug, Error, PartialEq)]
pub enum GenerateError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("{count} samples of shape {shape:?} need {expected} values of initial noise, got {got}")]
    InitNoise { count: usize, shape: [usize; 3], expected: usize, got: usize },
    #[error("sample {sample} is not finite: the network's output is NaN or infinite")]
    NonFinite { sample: usize },
}

/// Draws `request.count` images, in the data's range and before any rounding. A sample depends on the seed and its number; the size
/// of the batch changes it by rounding alone. A value that is not finite is an error, never a picture.
pub fn generate<M: Network<4>>(
    model: &Eval<M>,
    diffusion: &GaussianDiffusion,
    request: &Request<'_>,
    device: &Device,
    progress: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<ImageBatch, GenerateError> {
    let [c, h, w] = request.shape;
    let (count, size) = (request.count, c * h * w);
    if let Some(noise) = request.init_noise
        && noise.len() != count * size
    {
        let (shape, expected, got) = (request.shape, count * size, noise.len());
        return Err(GenerateError::InitNoise { count, shape, expected, got });
    }
    let mut data = Vec::with_capacity(count * size);
    for first in (0..count).step_by(request.sample.sample_batch_size) {
        let b = request.sample.sample_batch_size.min(count - first);
        let mut noise = SeededNoise::new(request.seed, first as u64, device);
        let x = match request.init_noise {
            Some(values) => {
                let values = values[first * size..(first + b) * size].to_vec();
                Tensor::from_data(TensorData::new(values, [b, c, h, w]), device)
            }
            None => noise.init([b, c, h, w]),
        };
        let mut callback = |step: &Step<'_, 4>| {
            progress(&Progress { images_done: first, step: step.index + 1, steps: step.total, x: step.x })
        };
        let x = run_sampler(model, diffusion, request.sample, x, &mut noise, &mut callback)?;
        data.extend(host_values(diffusion.unnormalize(x)));
    }
    if let Some(at) = data.iter().position(|value| !value.is_finite()) {
        return Err(GenerateError::NonFinite { sample: at / size });
    }
    Ok(ImageBatch { shape: [count, c, h, w], data })
}

fn run_sampler<M: Network<4>>(
    model: &Eval<M>,
    diffusion: &GaussianDiffusion,
    config: &SampleConfig,
    x: Tensor<4>,
    noise: &mut SeededNoise,
    callback: &mut Callback<'_, 4>,
) -> Result<Tensor<4>, Interrupted> {
    let denoiser = diffusion.denoiser(model);
    let levels = diffusion.spaced_levels(config.steps(diffusion.config().timesteps));
    match config.sampler {
        SamplerKind::Ddpm => ddpm(&denoiser, x, &levels, config.posterior_variance, noise, callback),
        SamplerKind::Ddim => ddim(&denoiser, x, &levels, config.ddim_sampling_eta, noise, callback),
    }
}
