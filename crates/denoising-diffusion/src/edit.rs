//! Images made from images: inpainting, variations and interpolation. Not here: the solvers (`sampler`), files.

use burn::tensor::{Device, Tensor};
use thiserror::Error;

use crate::data::ImageBatch;
use crate::diffusion::NoiseLevel;
use crate::generate::{BatchStep, GenerateError, Generator, Request, SampleBatch, Watch};
use crate::models::Network;
use crate::nn::params::from_host;
use crate::noise::{Purpose, normal_batch};
use crate::sampler::{
    Callback, Interrupted, Jumps, Known, NoiseSource, RePaint, RePaintStep, SampleConfig, SampleConfigError,
    SeededNoise, Step, ddim_inversion, inpaint, noised_mixture, repaint_schedule, slerp,
};

#[cfg(test)]
mod tests;

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
}

/// Minimum number of steps of an inversion: with few, the noise that it finds leads to a different image.
const INVERSION_STEPS: usize = 250;

/// How to interpolate between two images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Between {
    /// Both are inverted to noise along the deterministic path, mixed there along the arc, and denoised (Song et al. 2020, arXiv:2010.02502, section
    /// 5.3).
    Inverted,
    /// Both are noised to a level with the same noise, mixed there along a line, and denoised by the configured solver (Ho et al. 2020, section
    /// 4.4). The level is `strength` of the way from clean data to noise.
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
    /// (Meng et al. 2021, "SDEdit", arXiv:2108.01073).
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
            let levels = last_share(&self.levels(&batch, request), strength);
            let x_start = self.diffusion.normalize(part(images, &batch, request.shape, &self.device));
            let x = x_start * levels[0].alpha + batch.init * levels[0].sigma;
            let mut callback = passed_on(batch.first, watch);
            request.sample.run(&batch.denoiser, x, &levels, &mut batch.noise, &mut callback)
        })?)
    }

    /// `request.count` images from `pair[0]` to `pair[1]` (each `[c, h, w]`, in the data's range), both included. With inversion, the two images are
    /// reproduced: each is inverted under the conditions of its own frame, the first or the last, in [this many steps](Self::inversion_steps), which
    /// `watch` sees, too.
    ///
    /// # Errors
    /// [`EditError`].
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
        let mut share = 1.0;
        if let Between::Noised { strength } = between {
            check_strength(strength)?;
            share = strength;
        }
        let last = request.count.saturating_sub(1);
        let ends = pair.map(|image| self.diffusion.normalize(from_host(image.to_vec(), [1, c, h, w], &self.device)));
        let noise: Tensor<4> = normal_batch(request.seed, Purpose::SampleInit, 0, 0, [1, c, h, w], &self.device);
        let mut inverted = None;
        Ok(self.in_batches(request, |batch| -> Result<_, GenerateError> {
            let levels = last_share(&self.levels(&batch, request), share);
            let lambdas = (batch.first..batch.first + batch.init.dims()[0]).map(|i| i as f64 / last.max(1) as f64);
            let mixed = match between {
                Between::Inverted => {
                    let [from, to] = match inverted.take() {
                        Some(noises) => noises,
                        None => {
                            let [from, to] = ends.clone();
                            let mut invert = |number, image| self.inverted(request, number, image, watch);
                            [invert(0, from)?, invert(last, to)?]
                        }
                    };
                    inverted = Some([from.clone(), to.clone()]);
                    lambdas.map(|lambda| slerp(from.clone(), to.clone(), lambda)).collect()
                }
                Between::Noised { .. } => {
                    let noises = || [noise.clone(), noise.clone()];
                    lambdas.map(|lambda| noised_mixture(ends.clone(), lambda, levels[0], noises())).collect()
                }
            };
            let mut callback = passed_on(batch.first, watch);
            // The same noise in every image, so that adjacent images look alike.
            let mut noise = Shared(SeededNoise::new(request.seed, 0, &self.device));
            Ok(request.sample.run(&batch.denoiser, Tensor::cat(mixed, 0), &levels, &mut noise, &mut callback)?)
        })?)
    }

    /// The noise that generates an image, `[1, c, h, w]` on the network's scale, under the conditions of the sample with this number.
    fn inverted(
        &'a self,
        request: &Request<'_>,
        number: usize,
        image: Tensor<4>,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<4>, GenerateError> {
        let batch = self.batch(request, number..number + 1)?;
        let upwards = self.levels_of(&batch, request, self.inversion_steps(request.sample));
        Ok(ddim_inversion(&batch.denoiser, image, &upwards, &mut passed_on(number, watch))?)
    }

    fn levels(&self, batch: &SampleBatch<'_, M>, request: &Request<'_>) -> Vec<NoiseLevel> {
        self.levels_of(batch, request, request.sample.steps(self.diffusion.formulation()))
    }

    fn levels_of(&self, batch: &SampleBatch<'_, M>, request: &Request<'_>, steps: usize) -> Vec<NoiseLevel> {
        batch.denoiser.levels(request.sample.levels_for(self.diffusion.formulation()), steps, request.sample.karras_rho)
    }

    /// Number of steps in the inversion of one image.
    pub fn inversion_steps(&self, sample: &SampleConfig) -> usize {
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

/// The levels from `strength` of the way to noise downwards; at least one step.
fn last_share(levels: &[NoiseLevel], strength: f64) -> Vec<NoiseLevel> {
    let steps = levels.len() - 1;
    let kept = ((strength * steps as f64).round() as usize).clamp(1, steps);
    levels[steps - kept..].to_vec()
}

/// The images of a batch, `[b, ...shape]`.
fn part<M>(values: &[f32], batch: &SampleBatch<'_, M>, shape: [usize; 3], device: &Device) -> Tensor<4> {
    let (size, b) = (shape.iter().product::<usize>(), batch.init.dims()[0]);
    let values = values[batch.first * size..(batch.first + b) * size].to_vec();
    from_host(values, [b, shape[0], shape[1], shape[2]], device)
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
