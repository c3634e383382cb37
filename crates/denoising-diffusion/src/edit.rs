//! Images made from images: inpainting, variations and interpolation. Not here: the solvers (`sampler`), files.

use burn::tensor::{Device, Tensor};
use thiserror::Error;

use crate::data::ImageBatch;
use crate::diffusion::NoiseLevel;
use crate::generate::{BatchStep, Conditions, GenerateError, Generator, Request, SampleBatch, Watch};
use crate::models::Network;
use crate::nn::params::from_host;
use crate::noise::{Purpose, normal_batch};
use crate::sampler::{
    Callback, Interrupted, Jumps, Known, NoiseSource, RePaint, RePaintStep, SampleConfig, SampleConfigError,
    SeededNoise, Step, ddim_inversion, inpaint, noised_mixture, repaint_schedule, slerp,
};

mod start;
#[cfg(test)]
mod tests;

use start::{levels_from, start_level};

/// Why images could not be edited.
#[derive(Debug, Error)]
pub enum EditError {
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error("{what} must have {expected} values ({count} images of shape {shape:?}), got {got}")]
    Size { what: &'static str, count: usize, shape: [usize; 3], expected: usize, got: usize },
    #[error(transparent)]
    Jumps(#[from] SampleConfigError),
    #[error("images are filled in by `ddpm` or `ddim`, not by `{sampler}`")]
    Sampler { sampler: &'static str },
    #[error("`{key}` must be {expected}, got {got}")]
    Value { key: &'static str, expected: &'static str, got: f64 },
    #[error(
        "inverted images come back only without noise, and `{sampler}` draws some: use `ddim`, or set `eta` and `s_churn` to 0"
    )]
    DrawsNoise { sampler: &'static str },
    #[error("interpolation finds or draws its own noise: it takes no initial noise")]
    InitNoise,
}

/// Minimum number of steps of an inversion: with few, the noise that it finds leads to a different image.
const INVERSION_STEPS: usize = 250;

/// How to interpolate between two images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Between {
    /// Both are inverted to noise along the deterministic path, mixed there along the arc, and denoised (Song et al. 2020, arXiv:2010.02502, section
    /// 5.3). The sampler must draw no noise, so that both come back.
    Inverted,
    /// The same with any sampler: if it draws noise, the two images do not come back.
    InvertedWithNoise,
    /// Both are noised to a level with the same noise, mixed there along a line, and denoised by the configured solver (Ho et al. 2020, section
    /// 4.4). The level is `strength` of the way from clean data to noise along the formulation's own levels, as in [`Generator::vary`].
    Noised { strength: f64 },
}

impl<'a, M: Network> Generator<'a, M> {
    /// Fills in `images` where `mask` is 0 (Lugmayr et al. 2022, arXiv:2201.09865); where it is 1 they are returned bit for bit. `images` are
    /// `[count, c, h, w]` in the data's range, `mask` is `[count, 1, h, w]` with values from 0 to 1. The steps are those of the configured sampler,
    /// `ddpm` or `ddim`.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn inpaint(
        &'a self,
        request: &Request<'_>,
        images: &[f32],
        mask: &[f32],
        jumps: Jumps,
        watch: &mut Watch<'_>,
    ) -> Result<ImageBatch, EditError> {
        let [c, h, w] = request.shape;
        jumps.validate()?;
        check_size("the images", images, request.count, request.shape)?;
        check_size("the mask", mask, request.count, [1, h, w])?;
        let step = RePaintStep::of(request.sample);
        let step = step.ok_or(EditError::Sampler { sampler: request.sample.sampler.name() })?;
        let repaint = RePaint { jumps, step };
        let mut filled = self.in_batches(request, |mut batch| {
            let known = Known {
                x_start: self.diffusion.normalize(part(images, &batch, [c, h, w], &self.device)),
                mask: part(mask, &batch, [1, h, w], &self.device),
            };
            let levels = self.levels(&batch, request);
            let x = batch.init * self.diffusion.formulation().init_deviation();
            let mut callback = passed_on(batch.first, watch);
            inpaint(&batch.denoiser, x, &levels, &known, &repaint, &mut batch.noise, &mut callback)
        })?;
        // Mapping to the network's range and back rounds, so known pixels are copied.
        let size = h * w;
        for (at, value) in filled.data.iter_mut().enumerate() {
            let pixel = at / (c * size) * size + at % size;
            if mask[pixel] == 1.0 {
                *value = images[at];
            }
        }
        Ok(filled)
    }

    /// Denoising steps that [`inpaint`](Self::inpaint) makes for each batch, with [valid](Jumps::validate) jumps.
    pub fn inpaint_steps(&self, sample: &SampleConfig, jumps: Jumps) -> usize {
        let steps = sample.steps(self.diffusion.formulation());
        repaint_schedule(steps, &jumps).windows(2).filter(|pair| pair[0] < pair[1]).count()
    }

    /// Noises `images` (`[count, c, h, w]`) to the level that is `strength` of the way to pure noise, in (0, 1], and denoises them again
    /// (Meng et al. 2021, "SDEdit", arXiv:2108.01073). The way is that of the formulation's own levels (in discrete time: t = `strength` T), so that a
    /// strength means the same amount of noise with every sampler, spacing and number of steps. The steps are those of the sampler below that level.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn vary(
        &'a self,
        request: &Request<'_>,
        images: &[f32],
        strength: f64,
        watch: &mut Watch<'_>,
    ) -> Result<ImageBatch, EditError> {
        check_strength(strength)?;
        check_size("the images", images, request.count, request.shape)?;
        Ok(self.in_batches(request, |mut batch| {
            let levels = self.levels_from(&batch, request, strength);
            let x_start = self.diffusion.normalize(part(images, &batch, request.shape, &self.device));
            let x = x_start * levels[0].alpha + batch.init * levels[0].sigma;
            let mut callback = passed_on(batch.first, watch);
            request.sample.run(&batch.denoiser, x, &levels, &mut batch.noise, &mut callback)
        })?)
    }

    /// Denoising steps of each batch of [`vary`](Self::vary), and of [`interpolate`](Self::interpolate) at this strength.
    pub fn steps_from(&self, sample: &SampleConfig, strength: f64) -> usize {
        let diffusion = self.diffusion.with_schedule_of::<M>(self.model.network());
        let formulation = diffusion.formulation();
        let levels = sample.levels_for(self.diffusion.formulation());
        let levels = levels.of(formulation, sample.steps(self.diffusion.formulation()), sample.karras_rho);
        levels_from(start_level(formulation, strength), &levels).len() - 1
    }

    /// `request.count` images from `pair[0]` to `pair[1]` (each `[c, h, w]`, in the data's range), both included. With inversion, the two images are
    /// reproduced: each is inverted under the conditions of its own frame, the first or the last, in steps that `watch` sees, too
    /// ([how many](Self::inversion_steps)). All images share the noise of one sample, the first of the request.
    ///
    /// # Errors
    /// [`EditError`]; given initial noise is one.
    pub fn interpolate(
        &'a self,
        request: &Request<'_>,
        pair: [&[f32]; 2],
        between: Between,
        watch: &mut Watch<'_>,
    ) -> Result<ImageBatch, EditError> {
        let shape @ [c, h, w] = request.shape;
        for image in pair {
            check_size("an image", image, 1, shape)?;
        }
        match between {
            Between::Noised { strength } => check_strength(strength)?,
            Between::Inverted if request.sample.draws_noise() => {
                return Err(EditError::DrawsNoise { sampler: request.sample.sampler.name() });
            }
            Between::Inverted | Between::InvertedWithNoise => {}
        }
        if request.init_noise.is_some() {
            return Err(EditError::InitNoise);
        }
        let last = request.count.saturating_sub(1);
        let ends = pair.map(|image| self.diffusion.normalize(from_host(image.to_vec(), [1, c, h, w], &self.device)));
        let noise = normal_batch(request.seed, Purpose::SampleInit, request.first, 0, [1, c, h, w], &self.device);
        let mut inverted: Option<[Tensor<4>; 2]> = None;
        Ok(self.in_batches(request, |batch| -> Result<_, GenerateError> {
            let lambdas = (batch.first..batch.first + batch.init.dims()[0]).map(|i| i as f64 / last.max(1) as f64);
            let (levels, mixed) = match between {
                Between::Inverted | Between::InvertedWithNoise => {
                    let noises = match inverted.take() {
                        Some(noises) => noises,
                        None => self.inverted(request, ends.clone(), watch)?,
                    };
                    let [from, to] = inverted.insert(noises);
                    let mixed = lambdas.map(|lambda| slerp(from.clone(), to.clone(), lambda)).collect();
                    (self.levels(&batch, request), mixed)
                }
                Between::Noised { strength } => {
                    let levels = self.levels_from(&batch, request, strength);
                    let noises = || [noise.clone(), noise.clone()];
                    let mixed = lambdas.map(|lambda| noised_mixture(ends.clone(), lambda, levels[0], noises()));
                    let mixed = mixed.collect();
                    (levels, mixed)
                }
            };
            let mut callback = passed_on(batch.first, watch);
            // The same noise in every image, so that adjacent images look alike.
            let mut noise = Shared(SeededNoise::new(request.seed, request.first, &self.device));
            Ok(request.sample.run(&batch.denoiser, Tensor::cat(mixed, 0), &levels, &mut noise, &mut callback)?)
        })?)
    }

    /// The noises that generate the two images, each `[1, c, h, w]` on the network's scale, under the conditions of the first and the last sample.
    fn inverted(
        &'a self,
        request: &Request<'_>,
        ends: [Tensor<4>; 2],
        watch: &mut Watch<'_>,
    ) -> Result<[Tensor<4>; 2], GenerateError> {
        let (frames, dim) = ([0, request.count - 1], self.model.network().vector_dim());
        let classes = request.classes.map(|of| frames.map(|i| of[i]));
        let conditions = request.conditions.map(|all| conditions_of(all, frames)).transpose()?;
        let vectors: Option<Vec<f32>> =
            request.vectors.map(|rows| frames.iter().flat_map(|&i| &rows[i * dim..][..dim]).copied().collect());
        let both = Request {
            count: 2,
            classes: classes.as_ref().map(<[u32; 2]>::as_slice),
            conditions: conditions.as_ref().map(|of| of as _),
            vectors: vectors.as_deref(),
            ..request.clone()
        };
        let x = Tensor::cat(ends.into(), 0);
        let mut noises = Vec::new();
        for k in 0..both.batches() {
            let numbers = both.batch(k);
            let (first, b) = (numbers.start, numbers.len());
            let batch = self.batch(&both, numbers)?;
            let upwards = self.levels_of(&batch, request, self.upward_steps(request.sample));
            let x = x.clone().narrow(0, first, b);
            noises.push(ddim_inversion(&batch.denoiser, x, &upwards, &mut passed_on(0, watch))?);
        }
        let noises = Tensor::cat(noises, 0);
        Ok([0, 1].map(|i| noises.clone().narrow(0, i, 1)))
    }

    fn levels(&self, batch: &SampleBatch<'_, M>, request: &Request<'_>) -> Vec<NoiseLevel> {
        self.levels_of(batch, request, request.sample.steps(self.diffusion.formulation()))
    }

    fn levels_of(&self, batch: &SampleBatch<'_, M>, request: &Request<'_>, steps: usize) -> Vec<NoiseLevel> {
        batch.denoiser.levels(request.sample.levels_for(self.diffusion.formulation()), steps, request.sample.karras_rho)
    }

    /// The levels from `strength` of the way to noise downwards.
    fn levels_from(&self, batch: &SampleBatch<'_, M>, request: &Request<'_>, strength: f64) -> Vec<NoiseLevel> {
        let start = start_level(batch.denoiser.diffusion().formulation(), strength);
        levels_from(start, &self.levels(batch, request))
    }

    /// Steps of the inversion of the two images to interpolate between: both in one batch, if batches may be that large.
    pub fn inversion_steps(&self, sample: &SampleConfig) -> usize {
        2_usize.div_ceil(sample.sample_batch_size.max(1)) * self.upward_steps(sample)
    }

    fn upward_steps(&self, sample: &SampleConfig) -> usize {
        let most = self.diffusion.formulation().timesteps().unwrap_or(INVERSION_STEPS);
        sample.steps(self.diffusion.formulation()).max(INVERSION_STEPS.min(most))
    }
}

/// Noise that is the same for all examples of a batch.
struct Shared(SeededNoise);

impl NoiseSource<4> for Shared {
    fn step(&mut self, index: usize, dims: [usize; 4]) -> Tensor<4> {
        let [b, c, h, w] = dims;
        self.0.step(index, [1, c, h, w]).repeat_dim(0, b)
    }
}

/// The images of a batch, `[b, ...shape]`.
fn part<M>(values: &[f32], batch: &SampleBatch<'_, M>, shape: [usize; 3], device: &Device) -> Tensor<4> {
    let (size, b) = (shape.iter().product::<usize>(), batch.init.dims()[0]);
    let values = values[batch.first * size..(batch.first + b) * size].to_vec();
    from_host(values, [b, shape[0], shape[1], shape[2]], device)
}

/// The conditions of the first and the last frame.
fn conditions_of(all: &dyn Conditions, frames: [usize; 2]) -> Result<ImageBatch, GenerateError> {
    let [_, c, h, w] = all.shape();
    let mut data = Vec::new();
    for frame in frames {
        data.extend(all.of(frame..frame + 1).map_err(GenerateError::ReadConditions)?.data);
    }
    Ok(ImageBatch { shape: [2, c, h, w], data })
}

fn passed_on<'w>(first: usize, watch: &'w mut Watch<'_>) -> Box<Callback<'w, 4>> {
    Box::new(move |step: &Step<'_, 4>| watch(&BatchStep { first, step: step.index + 1, steps: step.total, x: step.x }))
}

fn check_size(what: &'static str, values: &[f32], count: usize, shape: [usize; 3]) -> Result<(), EditError> {
    let (expected, got) = (count * shape.iter().product::<usize>(), values.len());
    if got == expected { Ok(()) } else { Err(EditError::Size { what, count, shape, expected, got }) }
}

fn check_strength(got: f64) -> Result<(), EditError> {
    let inside = got > 0.0 && got <= 1.0;
    if inside { Ok(()) } else { Err(EditError::Value { key: "strength", expected: "above 0 and at most 1", got }) }
}

impl From<Interrupted> for EditError {
    fn from(interrupted: Interrupted) -> Self {
        Self::Generate(interrupted.into())
    }
}
