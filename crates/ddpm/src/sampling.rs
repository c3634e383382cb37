//! How samples are drawn: the flags that `sample` and the evaluating commands share, and drawing them with progress.

use std::ops::ControlFlow;

use clap::{Args, ValueEnum};
use denoising_diffusion::diffusion::GaussianDiffusion;
use denoising_diffusion::eval::result::Sampling;
use denoising_diffusion::generate::{GenerateError, Request, generate};
use denoising_diffusion::model_file::ModelFile;
use denoising_diffusion::models::Unet;
use denoising_diffusion::nn::Eval;
use denoising_diffusion::report::{ImageBatch, Progress, Status, StderrProgress, Task};
use denoising_diffusion::sampler::{PosteriorVariance, SampleConfig, SamplerKind};
use denoising_diffusion::train::StopSignal;

use crate::failure::{Failure, Result};
use crate::machine::Machine;
use crate::plan::word;

/// Flags of a sampler.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Solver [default: as in the run's recipe, else ddim]
    #[arg(long)]
    sampler: Option<SamplerArg>,
    /// Evaluations of the network per image [default: T for ddpm, at most 100 for ddim]
    #[arg(long, visible_alias = "steps", value_name = "N")]
    sampling_timesteps: Option<usize>,
    /// Noise of ddim, 0 (none) to 1 (as ancestral sampling) [default: 0]
    #[arg(long, visible_alias = "ddim-sampling-eta", value_name = "X")]
    eta: Option<f64>,
    /// Variance of the steps of ddpm [default: small]
    #[arg(long, visible_alias = "posterior-variance")]
    variance: Option<VarianceArg>,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Images per batch; changes nothing but speed and memory [default: 64]
    #[arg(long, visible_alias = "sample-batch-size", value_name = "N")]
    batch_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SamplerArg {
    /// Ancestral sampling.
    Ddpm,
    /// Denoising diffusion implicit models.
    Ddim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VarianceArg {
    Small,
    Large,
}

impl SamplingArgs {
    /// The run's own settings with what the flags change.
    pub fn config(&self, run: Option<&SampleConfig>) -> SampleConfig {
        let mut config = run.cloned().unwrap_or_default();
        if let Some(sampler) = self.sampler {
            let sampler = match sampler {
                SamplerArg::Ddpm => SamplerKind::Ddpm,
                SamplerArg::Ddim => SamplerKind::Ddim,
            };
            if sampler != config.sampler {
                // The run's other settings belong to its own sampler.
                let SampleConfig { num_samples, sample_batch_size, .. } = config;
                config = SampleConfig { sampler, num_samples, sample_batch_size, ..SampleConfig::default() };
            }
        }
        config.sample_batch_size = self.batch_size.unwrap_or(config.sample_batch_size);
        config.sampling_timesteps = self.sampling_timesteps.or(config.sampling_timesteps);
        config.ddim_sampling_eta = self.eta.unwrap_or(config.ddim_sampling_eta);
        config.posterior_variance = match self.variance {
            Some(VarianceArg::Small) => PosteriorVariance::Small,
            Some(VarianceArg::Large) => PosteriorVariance::Large,
            None => config.posterior_variance,
        };
        config
    }
}

/// A network ready to draw from.
pub struct Drawable {
    pub file: ModelFile,
    pub model: Eval<Unet>,
    pub diffusion: GaussianDiffusion,
    /// `[channels, height, width]`
    pub shape: [usize; 3],
}

/// How samples of a network are drawn, for reports.
pub fn describe(from: &Drawable, sample: &SampleConfig) -> Sampling {
    let card = &from.file.card;
    Sampling {
        sampler: word(&sample.sampler),
        steps: sample.steps(card.diffusion.timesteps),
        weights: word(&card.weights),
        step: card.step,
        ema_decay: card.ema_decay,
    }
}

/// Draws `count` images, with progress; Ctrl-C gives up.
pub fn draw(
    from: &Drawable,
    sample: &SampleConfig,
    count: usize,
    seed: u64,
    machine: &Machine,
    stop: &StopSignal,
) -> Result<ImageBatch> {
    let request = Request { sample, seed, count, shape: from.shape, init_noise: None };
    let steps = sample.steps(from.diffusion.config().timesteps);
    let batches = count.div_ceil(sample.sample_batch_size);
    let mut progress = StderrProgress::new(Task::Sample, 0, (batches * steps) as u64);
    let images = generate(&from.model, &from.diffusion, &request, &machine.device, &mut |at| {
        let step = (at.images_done / sample.sample_batch_size * at.steps + at.step) as u64;
        progress.update(Status { step, ..Status::default() });
        if stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    progress.finish();
    match images {
        Err(GenerateError::Interrupted(_)) => Err(Failure::interrupted()),
        images => Ok(images?),
    }
}
