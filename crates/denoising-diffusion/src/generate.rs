//! From a network in eval behaviour to images: noise levels, sampler, guidance and batches chosen by configurations, on one device or on several. Not
//! here: the samplers themselves, and files.

use std::ops::{ControlFlow, Range};

use burn::tensor::{Device, Tensor};
use thiserror::Error;

use crate::data::ImageBatch;
use crate::diffusion::{Diffusion, DiffusionConfigError, GuidanceConfig, NetworkDenoiser, NoiseLevel};
use crate::models::{Calls, Network};
use crate::nn::params::{from_host, host_values};
use crate::sampler::{Interrupted, SampleConfig, SampleConfigError, SeededNoise, Step};

mod replicas;

/// What samples are made of.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub sample: &'a SampleConfig,
    /// Of the noise: sample `i` takes stream `first + i`.
    pub seed: u64,
    /// Number of images.
    pub count: usize,
    /// Of these and other samples of the seed, the number of the first: a large set can be drawn in parts.
    pub first: u64,
    /// `[channels, height, width]`
    pub shape: [usize; 3],
    /// x_T of every sample, `[count, c, h, w]` in row-major order, in place of noise drawn from the seed. Of deviation 1, whatever the
    /// formulation.
    pub init_noise: Option<&'a [f32]>,
    /// The class of every sample, for networks that take classes and for guidance by a classifier. A network that knows `n` classes takes
    /// 0 to `n - 1`, and `n` for a sample of no class; one that knows none is not shown those that a classifier guides towards.
    pub classes: Option<&'a [u32]>,
    /// What every sample is to belong to, `[count, condition channels, h, w]` in the data's range, for networks that take a condition.
    pub conditions: Option<&'a ImageBatch>,
    /// The vector of every sample, `[count, vector_dim]` in row-major order and scaled as in training, for networks that take vectors.
    pub vectors: Option<&'a [f32]>,
}

/// A classifier: `scale grad_x ln p(y | x)` for x of a level and the classes y.
pub type ClassifierGradient<'a> = dyn Fn(Tensor<4>, NoiseLevel, &[u32]) -> Tensor<4> + Sync + 'a;

/// Draws images from a network.
pub struct Generator<'a, M> {
    pub model: Calls<'a, 4, M>,
    pub diffusion: &'a Diffusion,
    pub guidance: GuidanceConfig,
    /// What the network is guided away from in place of its own unconditional prediction.
    pub weak: Option<Calls<'a, 4, M>>,
    pub classifier: Option<&'a ClassifierGradient<'a>>,
    /// The same on other devices, which share the batches that [`generate`](Generator::generate) draws.
    pub replicas: Vec<Replica<'a, M>>,
}

/// What a [`Generator`] draws from, on another device than its own.
pub struct Replica<'a, M> {
    pub device: Device,
    pub model: Calls<'a, 4, M>,
    pub weak: Option<Calls<'a, 4, M>>,
    pub classifier: Option<&'a ClassifierGradient<'a>>,
}

/// A step that a batch has made.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Number of the batch's first image. On several devices, batches are drawn at the same time.
    pub first: usize,
    /// Steps done in this batch, from 1, and how many there are.
    pub step: usize,
    pub steps: usize,
    /// The data after this step, on the network's scale.
    pub x: &'a Tensor<4>,
}

impl<'a> Request<'a> {
    /// The first samples of a seed, of noise that is drawn, told nothing.
    pub fn new(sample: &'a SampleConfig, seed: u64, count: usize, shape: [usize; 3]) -> Self {
        let (init_noise, classes, conditions, vectors) = (None, None, None, None);
        Self { sample, seed, count, first: 0, shape, init_noise, classes, conditions, vectors }
    }

    /// Batches that the samples are drawn in.
    pub fn batches(&self) -> usize {
        self.count.div_ceil(self.sample.sample_batch_size)
    }

    /// Numbers of the samples of batch `k`.
    fn batch(&self, k: usize) -> Range<usize> {
        let size = self.sample.sample_batch_size;
        k * size..self.count.min((k + 1) * size)
    }
}

/// What watches sampling, told of every step of every batch; `Break` ends it.
pub type Watch<'a> = dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a;

/// What takes a batch of samples, and the place of its first one among those of the request.
pub type Take<'a, E> = dyn FnMut(usize, ImageBatch) -> Result<(), E> + 'a;

/// Why there are no samples.
#[derive(Debug, Error, PartialEq)]
pub enum GenerateError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("{count} samples of shape {shape:?} need {expected} values of initial noise, got {got}")]
    InitNoise { count: usize, shape: [usize; 3], expected: usize, got: usize },
    #[error("{count} samples need {count} classes, got {got}")]
    Classes { count: usize, got: usize },
    #[error("class {class} was asked for, the network knows classes 0 to {last}")]
    UnknownClass { class: u32, last: usize },
    #[error(
        "samples of classes were asked for, but the network knows no classes and no classifier guides towards them"
    )]
    NoClasses,
    #[error("the network draws images that belong to others, of {channels} channels, and was given none")]
    NoConditions { channels: usize },
    #[error("{count} samples need conditions of shape {expected:?}, got {got:?}")]
    Conditions { count: usize, expected: [usize; 4], got: [usize; 4] },
    #[error("the network draws what belongs to vectors of {dim} numbers, and was given none")]
    NoVectors { dim: usize },
    #[error(
        "the weaker network is told other {told} than the network ({got} and {expected}); it may be told the same, or nothing"
    )]
    OtherWeak { told: &'static str, expected: usize, got: usize },
    #[error("{count} samples need vectors of {expected} numbers in all, got {got}")]
    Vectors { count: usize, expected: usize, got: usize },
    #[error(transparent)]
    Sample(#[from] SampleConfigError),
    #[error(transparent)]
    Guidance(DiffusionConfigError),
    #[error("{count} samples of shape {shape:?} do not fit into memory")]
    NoRoom { count: usize, shape: [usize; 3] },
    #[error("sample {sample} is not finite: the network's output is NaN or infinite")]
    NonFinite { sample: usize },
}

/// One batch of samples in the making.
pub struct SampleBatch<'a, M> {
    pub denoiser: NetworkDenoiser<'a, 4, M>,
    /// Number of its first sample.
    pub first: usize,
    /// Standard normal, `[b, c, h, w]`.
    pub init: Tensor<4>,
    pub noise: SeededNoise,
}

impl<'a, M: Network<4>> Generator<'a, M> {
    /// Without guidance.
    pub fn new(model: impl Into<Calls<'a, 4, M>>, diffusion: &'a Diffusion) -> Self {
        let (guidance, weak, classifier, replicas) = (GuidanceConfig::default(), None, None, Vec::new());
        Self { model: model.into(), diffusion, guidance, weak, classifier, replicas }
    }

    /// Draws `request.count` images, in the data's range and before any rounding. A sample depends on the seed and its number; the size
    /// of the batch changes it by rounding alone, and which of several devices of a kind draws it changes nothing. A value that is not finite is an
    /// error, never a picture.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub fn generate(
        &self,
        request: &Request<'_>,
        device: &Device,
        watch: &mut Watch<'_>,
    ) -> Result<ImageBatch, GenerateError> {
        let [c, h, w] = request.shape;
        let mut data = room_for(request.count, request.shape)?;
        data.resize(request.count * c * h * w, 0.0);
        self.generate_each(request, device, watch, &mut |first, images| {
            data[first * c * h * w..][..images.data.len()].copy_from_slice(&images.data);
            Ok::<_, GenerateError>(())
        })?;
        Ok(ImageBatch { shape: [request.count, c, h, w], data })
    }

    /// Draws the same images, and hands each batch over as soon as it is drawn, with the place of its first image among those of the request. On
    /// several devices batches come in any order.
    ///
    /// # Errors
    /// [`GenerateError`], and those of `take`, which end it. What was handed over before stays good.
    pub fn generate_each<E: From<GenerateError>>(
        &self,
        request: &Request<'_>,
        device: &Device,
        watch: &mut Watch<'_>,
        take: &mut Take<'_, E>,
    ) -> Result<(), E> {
        self.check(request)?;
        if !self.replicas.is_empty() {
            return self.on_all_devices(request, device, watch, take);
        }
        for k in 0..request.batches() {
            let numbers = request.batch(k);
            let x = self.solve(self.batch(request, numbers.clone(), device), request, watch);
            let values = host_values(self.diffusion.unnormalize(x.map_err(GenerateError::from)?));
            take(numbers.start, finite(values, numbers.start, request)?)?;
        }
        Ok(())
    }

    /// Has the configured solver denoise a batch.
    fn solve(
        &self,
        mut batch: SampleBatch<'a, M>,
        request: &Request<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<4>, Interrupted> {
        let config = request.sample;
        let levels =
            batch.denoiser.levels(config.noise_levels, config.steps(self.diffusion.config()), config.karras_rho);
        let x = batch.init * self.diffusion.formulation().init_deviation();
        let mut callback = |step: &Step<'_, 4>| {
            watch(&Progress { first: batch.first, step: step.index + 1, steps: step.total, x: step.x })
        };
        config.run(&batch.denoiser, x, &levels, &mut batch.noise, &mut callback)
    }

    /// Whatever makes samples of noise batch by batch, on one device; what `make` returns is on the network's scale.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub fn in_batches(
        &self,
        request: &Request<'_>,
        device: &Device,
        mut make: impl FnMut(SampleBatch<'a, M>) -> Result<Tensor<4>, Interrupted>,
    ) -> Result<ImageBatch, GenerateError>
    where
        Self: 'a,
    {
        self.check(request)?;
        let mut data = room_for(request.count, request.shape)?;
        for k in 0..request.batches() {
            let x = make(self.batch(request, request.batch(k), device))?;
            data.extend(host_values(self.diffusion.unnormalize(x)));
        }
        finite(data, 0, request)
    }

    /// The samples of these numbers, before anything is made of their noise. For requests that [`in_batches`](Self::in_batches) takes.
    pub(crate) fn batch(&self, request: &Request<'_>, numbers: Range<usize>, device: &Device) -> SampleBatch<'a, M>
    where
        Self: 'a,
    {
        let [c, h, w] = request.shape;
        let (Range { start: first, end }, b, size) = (numbers.clone(), numbers.len(), c * h * w);
        let noise = SeededNoise::new(request.seed, request.first + first as u64, device);
        let init = match request.init_noise {
            Some(values) => from_host(values[first * size..end * size].to_vec(), [b, c, h, w], device),
            None => noise.init([b, c, h, w]),
        };
        let mut denoiser = self.denoiser(request.classes.map(|classes| &classes[numbers]));
        if let Some(conditions) = request.conditions {
            let ImageBatch { shape, data } = conditions.slice(first, b);
            denoiser = denoiser.with_condition(from_host(data, shape, device));
        }
        if let Some(vectors) = request.vectors {
            let dim = self.model.network().vector_dim();
            denoiser = denoiser.with_vectors(vectors[first * dim..end * dim].to_vec());
        }
        SampleBatch { denoiser, first, init, noise }
    }

    /// The guided denoiser of a batch of these classes.
    fn denoiser(&self, classes: Option<&[u32]>) -> NetworkDenoiser<'a, 4, M> {
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

    fn check(&self, request: &Request<'_>) -> Result<(), GenerateError> {
        request.sample.validate(self.diffusion.config())?;
        self.guidance.validate().map_err(GenerateError::Guidance)?;
        let (count, shape) = (request.count, request.shape);
        let expected = count * shape.iter().product::<usize>();
        if let Some(got) = request.init_noise.map(<[f32]>::len).filter(|&got| got != expected) {
            return Err(GenerateError::InitNoise { count, shape, expected, got });
        }
        let channels = self.model.network().condition_channels();
        let expected = [count, channels, shape[1], shape[2]];
        match request.conditions.map(|conditions| conditions.shape) {
            None if channels > 0 => return Err(GenerateError::NoConditions { channels }),
            Some(got) if got != expected => return Err(GenerateError::Conditions { count, expected, got }),
            _ => {}
        }
        let (dim, got) = (self.model.network().vector_dim(), request.vectors.map(<[f32]>::len));
        match got {
            None if dim > 0 => return Err(GenerateError::NoVectors { dim }),
            Some(got) if got != count * dim => {
                return Err(GenerateError::Vectors { count, expected: count * dim, got });
            }
            _ => {}
        }
        self.check_weak()?;
        request.classes.map_or(Ok(()), |classes| self.check_classes(classes, count))
    }

    /// Whether the weaker network, if there is one, can be told what the network is told.
    fn check_weak(&self) -> Result<(), GenerateError> {
        let Some(weak) = &self.weak else { return Ok(()) };
        let (model, weak) = (self.model.network(), weak.network());
        let check = |told: &'static str, expected: usize, got: usize, may_be_unknown: bool| {
            let fits = got == 0 || got == expected || may_be_unknown && expected == 0;
            if fits { Ok(()) } else { Err(GenerateError::OtherWeak { told, expected, got }) }
        };
        check("classes", model.num_classes(), weak.num_classes(), true)?;
        check("numbers of a vector", model.vector_dim(), weak.vector_dim(), true)?;
        check("channels of conditions", model.condition_channels(), weak.condition_channels(), false)
    }

    /// Whether the network can be shown these classes of `count` samples. What a classifier knows is its own business: classes that it does
    /// not have push nowhere.
    fn check_classes(&self, classes: &[u32], count: usize) -> Result<(), GenerateError> {
        if classes.len() != count {
            return Err(GenerateError::Classes { count, got: classes.len() });
        }
        let known = self.model.network().num_classes();
        if known == 0 {
            return if self.classifier.is_some() { Ok(()) } else { Err(GenerateError::NoClasses) };
        }
        match classes.iter().find(|&&class| class as usize > known) {
            Some(&class) => Err(GenerateError::UnknownClass { class, last: known - 1 }),
            None => Ok(()),
        }
    }
}

/// Room for `count` samples of a shape, `[c, h, w]`: 4 bytes for each value.
///
/// # Errors
/// [`GenerateError::NoRoom`], in place of the end of the process.
pub fn room_for(count: usize, shape: [usize; 3]) -> Result<Vec<f32>, GenerateError> {
    let values = shape.iter().try_fold(count, |values, side| values.checked_mul(*side));
    let mut room = Vec::new();
    match values.map(|values| room.try_reserve_exact(values)) {
        Some(Ok(())) => Ok(room),
        _ => Err(GenerateError::NoRoom { count, shape }),
    }
}

/// Images of these values, the first of them in place `first` of a request, if all are numbers.
fn finite(data: Vec<f32>, first: usize, request: &Request<'_>) -> Result<ImageBatch, GenerateError> {
    let [c, h, w] = request.shape;
    let size = c * h * w;
    match data.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(GenerateError::NonFinite { sample: request.first as usize + first + at / size }),
        None => Ok(ImageBatch { shape: [data.len() / size.max(1), c, h, w], data }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::DiffusionConfig;
    use crate::models::{Unet, UnetConfig};
    use crate::nn::{EvalMode, Init};

    /// Samples of these classes from a network that knows so many, guided by a classifier or not.
    fn samples(classes: &[u32], known: usize, guided: bool) -> Result<ImageBatch, GenerateError> {
        let device = Device::flex();
        let config =
            UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, num_classes: known, ..UnetConfig::default() };
        let unet = Unet::new(&config, &mut Init::new(0, &device)).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let push = |x: Tensor<4>, _: NoiseLevel, _: &[u32]| x.zeros_like();
        let classifier = guided.then_some(&push as &ClassifierGradient<'_>);
        let generator = Generator { classifier, ..Generator::new(&unet, &diffusion) };
        let sample = SampleConfig { sampling_timesteps: Some(1), ..SampleConfig::default() };
        let request = Request { classes: Some(classes), ..Request::new(&sample, 0, 2, [1, 4, 4]) };
        generator.generate(&request, &device, &mut |_| ControlFlow::Continue(()))
    }

    #[test]
    fn classes_that_the_network_does_not_know_are_refused_with_a_classifier_as_without() {
        for guided in [false, true] {
            let unknown = |class| Some(GenerateError::UnknownClass { class, last: 2 });
            assert_eq!(samples(&[2, 4], 3, guided).err(), unknown(4));
            assert_eq!(samples(&[u32::MAX, 0], 3, guided).err(), unknown(u32::MAX));
            assert_eq!(samples(&[2], 3, guided).err(), Some(GenerateError::Classes { count: 2, got: 1 }));
            assert!(samples(&[0, 2], 3, guided).is_ok());
            assert!(samples(&[2, 3], 3, guided).is_ok(), "3 stands for no class");
        }
    }

    #[test]
    fn a_weaker_network_is_told_the_same_or_nothing() {
        let device = Device::flex();
        let unet = |num_classes| {
            let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, num_classes, ..UnetConfig::default() };
            Unet::new(&unet, &mut Init::new(0, &device)).unwrap().eval()
        };
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let sample = SampleConfig { sampling_timesteps: Some(1), ..SampleConfig::default() };
        let samples = |known, known_to_weak, classes| {
            let (strong, weak) = (unet(known), unet(known_to_weak));
            let guidance = GuidanceConfig { guidance: 2.0, ..GuidanceConfig::default() };
            let generator = Generator { guidance, weak: Some((&weak).into()), ..Generator::new(&strong, &diffusion) };
            let request = Request { classes, ..Request::new(&sample, 0, 2, [1, 4, 4]) };
            generator.generate(&request, &device, &mut |_| ControlFlow::Continue(()))
        };
        let classes: Option<&[u32]> = Some(&[0, 2]);
        assert!(samples(3, 3, classes).is_ok());
        assert!(samples(3, 0, classes).is_ok());
        let other = |expected, got| Some(GenerateError::OtherWeak { told: "classes", expected, got });
        assert!(samples(0, 3, None).is_ok(), "it is told that the class is unknown");
        assert_eq!(samples(3, 2, classes).err(), other(3, 2));
    }

    /// Configurations of one's own need not have been checked before.
    #[test]
    fn what_describes_no_samples_is_refused() {
        let device = Device::flex();
        let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
        let unet = Unet::new(&unet, &mut Init::new(0, &device)).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let drawn = |sample: SampleConfig, threshold_quantile: f64, count: usize| {
            let guidance = GuidanceConfig { threshold_quantile, ..GuidanceConfig::default() };
            let generator = Generator { guidance, ..Generator::new(&unet, &diffusion) };
            let request = Request::new(&sample, 0, count, [1, 4, 4]);
            generator.generate(&request, &device, &mut |_| ControlFlow::Continue(())).map(|images| images.shape[0])
        };
        let sample = SampleConfig { sampling_timesteps: Some(1), ..SampleConfig::default() };
        let none_at_a_time = SampleConfig { sample_batch_size: 0, ..sample.clone() };
        let in_no_steps = SampleConfig { sampling_timesteps: Some(0), ..sample.clone() };
        assert!(matches!(drawn(none_at_a_time, 0.9, 1), Err(GenerateError::Sample(_))));
        assert!(matches!(drawn(in_no_steps, 0.9, 1), Err(GenerateError::Sample(_))));
        assert!(matches!(drawn(sample.clone(), 2.0, 1), Err(GenerateError::Guidance(_))));
        for count in [usize::MAX, usize::MAX / 64] {
            assert_eq!(drawn(sample.clone(), 0.9, count), Err(GenerateError::NoRoom { count, shape: [1, 4, 4] }));
        }
        assert_eq!(drawn(sample, 0.9, 2), Ok(2));
    }

    #[test]
    fn a_network_without_classes_is_shown_none() {
        for classes in [[0, 0], [0, 1]] {
            assert_eq!(samples(&classes, 0, false).err(), Some(GenerateError::NoClasses));
            assert!(samples(&classes, 0, true).is_ok(), "only the classifier is asked");
        }
    }
}
