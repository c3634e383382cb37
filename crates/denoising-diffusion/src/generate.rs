//! From a network in eval behaviour to images: noise levels, sampler, guidance and batches chosen by configurations, on one device or several. Not
//! here: the samplers themselves, and files.

use std::fmt::Debug;
use std::ops::{ControlFlow, Range};

use burn::tensor::{Device, Tensor};

use crate::data::{DataError, ImageBatch};
use crate::diffusion::{Diffusion, GuidanceConfig, NetworkDenoiser, NoiseLevel};
use crate::models::{Calls, Network};
use crate::nn::params::{from_host, host_values};
use crate::sampler::{Interrupted, SampleConfig, SeededNoise, Step};

mod check;
mod replicas;
mod samples;

use check::finite;
pub use check::{GenerateError, room_for};
pub use samples::{Depth, Samples};

/// What to draw.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub sample: &'a SampleConfig,
    /// Seed of the noise: sample `i` uses stream `first + i`.
    pub seed: u64,
    /// Number of images.
    pub count: usize,
    /// Number of the first sample among all samples of the seed, so that a large set can be drawn in parts.
    pub first: u64,
    /// `[channels, height, width]`
    pub shape: [usize; 3],
    /// x_T of every sample, `[count, c, h, w]` in row-major order, in place of noise drawn from the seed. Of standard deviation 1, whatever the
    /// formulation.
    pub init_noise: Option<&'a [f32]>,
    /// The class of every sample, for networks that take classes and for classifier guidance. A network with `n` classes takes 0 to `n - 1`, and `n`
    /// for a sample without class; a network without classes does not get those meant for the classifier.
    pub classes: Option<&'a [u32]>,
    /// The condition image of every sample, `[count, condition channels, h, w]` in the data's range, for networks that take a condition.
    pub conditions: Option<&'a dyn Conditions>,
    /// The conditioning vector of every sample, `[count, vector_dim]` in row-major order and scaled as in training, for networks that take vectors.
    pub vectors: Option<&'a [f32]>,
}

/// The condition images of samples. They are asked for batch by batch, so that not all of them need be in memory.
pub trait Conditions: Debug + Sync {
    /// The shape of all of them, `[n, c, h, w]`.
    fn shape(&self) -> [usize; 4];

    /// Those of the samples with these numbers.
    ///
    /// # Errors
    /// Errors of reading.
    fn of(&self, numbers: Range<usize>) -> Result<ImageBatch, DataError>;
}

impl Conditions for ImageBatch {
    fn shape(&self) -> [usize; 4] {
        self.shape
    }

    fn of(&self, numbers: Range<usize>) -> Result<ImageBatch, DataError> {
        Ok(self.slice(numbers.start, numbers.len()))
    }
}

/// A classifier's gradient: `scale grad_x ln p(y | x)` for x at a level and the classes y.
pub type ClassifierGradient<'a> = dyn Fn(Tensor<4>, NoiseLevel, &[u32]) -> Tensor<4> + Sync + 'a;

/// Draws images from a network.
pub struct Generator<'a, M> {
    /// The device that the network is on.
    pub device: Device,
    pub model: Calls<'a, M>,
    pub diffusion: &'a Diffusion,
    pub guidance: GuidanceConfig,
    /// The network to guide away from, in place of the model's own unconditional prediction.
    pub weak: Option<Calls<'a, M>>,
    pub classifier: Option<&'a ClassifierGradient<'a>>,
    /// The same networks on other devices, which share the batches that [`generate`](Generator::generate) draws. With replicas, networks are always
    /// launched, never recorded.
    pub replicas: Vec<Replica<'a, M>>,
}

/// The networks of a [`Generator`] on another device.
pub struct Replica<'a, M> {
    pub device: Device,
    pub model: Calls<'a, M>,
    pub weak: Option<Calls<'a, M>>,
    pub classifier: Option<&'a ClassifierGradient<'a>>,
}

/// A completed step of a batch.
#[derive(Debug)]
pub struct BatchStep<'a> {
    /// Number of the batch's first image. With several devices, batches are drawn concurrently.
    pub first: usize,
    /// Completed steps of this batch, from 1, and their total.
    pub step: usize,
    pub steps: usize,
    /// The data after this step, on the network's scale.
    pub x: &'a Tensor<4>,
}

impl<'a> Request<'a> {
    /// The first samples of a seed, with drawn noise and without conditions.
    pub fn new(sample: &'a SampleConfig, seed: u64, count: usize, shape: [usize; 3]) -> Self {
        let (init_noise, classes, conditions, vectors) = (None, None, None, None);
        Self { sample, seed, count, first: 0, shape, init_noise, classes, conditions, vectors }
    }

    /// Number of batches.
    pub fn batches(&self) -> usize {
        self.count.div_ceil(self.sample.sample_batch_size)
    }

    /// Numbers of the samples of batch `k`.
    pub(crate) fn batch(&self, k: usize) -> Range<usize> {
        let size = self.sample.sample_batch_size;
        k * size..self.count.min((k + 1) * size)
    }
}

/// Called after every step of every batch; `Break` ends sampling.
pub type Watch<'a> = dyn FnMut(&BatchStep<'_>) -> ControlFlow<()> + 'a;

/// Receives a batch of samples, and the position of its first one in the request.
pub type Take<'a, E> = dyn FnMut(usize, ImageBatch) -> Result<(), E> + 'a;

/// One batch of samples before denoising.
pub struct SampleBatch<'a, M> {
    pub denoiser: NetworkDenoiser<'a, M>,
    /// Number of the batch's first sample.
    pub first: usize,
    /// Standard normal, `[b, c, h, w]`.
    pub init: Tensor<4>,
    pub noise: SeededNoise,
}

impl<'a, M: Network> Generator<'a, M> {
    /// Without guidance. `device` is the device that the network is on.
    pub fn new(model: impl Into<Calls<'a, M>>, diffusion: &'a Diffusion, device: &Device) -> Self {
        let (guidance, weak, classifier, replicas) = (GuidanceConfig::default(), None, None, Vec::new());
        Self { device: device.clone(), model: model.into(), diffusion, guidance, weak, classifier, replicas }
    }

    /// Draws `request.count` images, in the data's range and before any rounding. A sample depends on the seed and its number; the batch size, and
    /// which of several devices draws it, change it only by rounding. A non-finite value is an error, never a picture.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub fn generate(&self, request: &Request<'_>) -> Result<ImageBatch, GenerateError> {
        self.generate_watched(request, &mut |_| ControlFlow::Continue(()))
    }

    /// [`generate`](Self::generate) with a callback.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub fn generate_watched(&self, request: &Request<'_>, watch: &mut Watch<'_>) -> Result<ImageBatch, GenerateError> {
        let [c, h, w] = request.shape;
        let mut data = room_for(request.count, request.shape)?;
        data.resize(request.count * c * h * w, 0.0);
        self.generate_each(request, watch, &mut |first, images| {
            data[first * c * h * w..][..images.data.len()].copy_from_slice(&images.data);
            Ok::<_, GenerateError>(())
        })?;
        Ok(ImageBatch { shape: [request.count, c, h, w], data })
    }

    /// Draws the same images, and hands over each batch as soon as it is drawn, with the position of its first image in the request. With several
    /// devices, batches come in any order.
    ///
    /// # Errors
    /// [`GenerateError`], and the errors of `take`, which end sampling. Batches handed over before are valid.
    pub fn generate_each<E: From<GenerateError>>(
        &self,
        request: &Request<'_>,
        watch: &mut Watch<'_>,
        take: &mut Take<'_, E>,
    ) -> Result<(), E> {
        self.check(request)?;
        if !self.replicas.is_empty() {
            return self.on_all_devices(request, watch, take);
        }
        for k in 0..request.batches() {
            let numbers = request.batch(k);
            let x = self.solve(self.batch(request, numbers.clone())?, request, watch);
            let values = host_values(self.diffusion.unnormalize(x.map_err(GenerateError::from)?));
            take(numbers.start, finite(values, numbers.start, request)?)?;
        }
        Ok(())
    }

    /// Denoises a batch with the configured solver.
    fn solve(
        &self,
        mut batch: SampleBatch<'a, M>,
        request: &Request<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<4>, Interrupted> {
        let (config, formulation) = (request.sample, self.diffusion.formulation());
        let steps = config.steps(formulation);
        let levels = batch.denoiser.levels(config.levels_for(formulation), steps, config.karras_rho);
        let x = batch.init * self.diffusion.formulation().init_deviation();
        let mut callback = |step: &Step<'_, 4>| {
            watch(&BatchStep { first: batch.first, step: step.index + 1, steps: step.total, x: step.x })
        };
        config.run(&batch.denoiser, x, &levels, &mut batch.noise, &mut callback)
    }

    /// Makes samples from noise batch by batch, on one device; `make` returns them on the network's scale. Ends with the first batch that has a
    /// non-finite value.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub fn in_batches<E: Into<GenerateError>>(
        &self,
        request: &Request<'_>,
        mut make: impl FnMut(SampleBatch<'a, M>) -> Result<Tensor<4>, E>,
    ) -> Result<ImageBatch, GenerateError>
    where
        Self: 'a,
    {
        self.check(request)?;
        let [c, h, w] = request.shape;
        let mut data = room_for(request.count, request.shape)?;
        for k in 0..request.batches() {
            let numbers = request.batch(k);
            let x = make(self.batch(request, numbers.clone())?).map_err(E::into)?;
            data.extend(finite(host_values(self.diffusion.unnormalize(x)), numbers.start, request)?.data);
        }
        Ok(ImageBatch { shape: [request.count, c, h, w], data })
    }

    /// The batch of the samples with these numbers, before denoising. The request must be valid for [`in_batches`](Self::in_batches).
    pub(crate) fn batch(
        &self,
        request: &Request<'_>,
        numbers: Range<usize>,
    ) -> Result<SampleBatch<'a, M>, GenerateError>
    where
        Self: 'a,
    {
        let [c, h, w] = request.shape;
        let (Range { start: first, end }, b, size) = (numbers.clone(), numbers.len(), c * h * w);
        let noise = SeededNoise::new(request.seed, request.first + first as u64, &self.device);
        let init = match request.init_noise {
            Some(values) => from_host(values[first * size..end * size].to_vec(), [b, c, h, w], &self.device),
            None => noise.init([b, c, h, w]),
        };
        let mut denoiser = self.denoiser(request.classes.map(|classes| &classes[numbers.clone()]));
        if let Some(conditions) = request.conditions {
            let ImageBatch { shape, data } = conditions.of(numbers).map_err(GenerateError::ReadConditions)?;
            denoiser = denoiser.with_condition(from_host(data, shape, &self.device));
        }
        if let Some(vectors) = request.vectors {
            let dim = self.model.network().vector_dim();
            denoiser = denoiser.with_vectors(vectors[first * dim..end * dim].to_vec());
        }
        Ok(SampleBatch { denoiser, first, init, noise })
    }

    /// The guided denoiser of a batch with these classes.
    fn denoiser(&self, classes: Option<&[u32]>) -> NetworkDenoiser<'a, M> {
        let mut denoiser = self.diffusion.denoiser(self.model.clone()).guided(&self.guidance);
        if let Some(classes) = classes {
            denoiser = denoiser.with_classes(classes.to_vec());
            if let Some(gradient) = self.classifier {
                let classes = classes.to_vec();
                denoiser = denoiser.with_push(Box::new(move |x, level| gradient(x, level, &classes)));
            }
        }
        match &self.weak {
            Some(weak) => denoiser.with_weak(weak.clone()),
            None => denoiser,
        }
    }
}
