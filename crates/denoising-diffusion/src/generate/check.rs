//! Checks of what is requested, and the errors of sampling. Not here: sampling.

use std::iter::once;

use thiserror::Error;

use super::samples::room;
use super::{Conditions, Generator, Request};
use crate::data::{DataError, ImageBatch};
use crate::diffusion::{DiffusionConfigError, Misfit};
use crate::models::Network;
use crate::sampler::{Interrupted, SampleConfigError};

/// Why no samples were drawn.
#[derive(Debug, Error)]
pub enum GenerateError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("{count} samples of shape {shape:?} need {expected} values of initial noise, got {got}")]
    InitNoise { count: usize, shape: [usize; 3], expected: usize, got: usize },
    #[error("{count} samples need {count} classes, got {got}")]
    Classes { count: usize, got: usize },
    #[error("class {class} was requested, but the network has the classes 0 to {last}")]
    UnknownClass { class: u32, last: usize },
    #[error("classes were requested, but the network has none and no classifier guides towards them")]
    NoClasses,
    #[error("the network needs conditions of {channels} channels, but none are given")]
    NoConditions { channels: usize },
    #[error("{count} samples need conditions of shape {expected:?}, got {got:?}")]
    Conditions { count: usize, expected: [usize; 4], got: [usize; 4] },
    #[error("cannot read the conditions of the samples")]
    ReadConditions(#[source] DataError),
    #[error("the network needs vectors of {dim} numbers, but none are given")]
    NoVectors { dim: usize },
    #[error(
        "the weaker network takes {got} {told}, but the network takes {expected}; the weaker one must take as many, or none"
    )]
    OtherWeak { told: &'static str, expected: usize, got: usize },
    #[error("{count} samples need vectors of {expected} numbers in all, got {got}")]
    Vectors { count: usize, expected: usize, got: usize },
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error("the weaker network: {0}")]
    WeakMisfit(Misfit),
    #[error(transparent)]
    Sample(#[from] SampleConfigError),
    #[error(transparent)]
    Guidance(DiffusionConfigError),
    #[error("{count} samples of shape {shape:?} do not fit into memory")]
    NoRoom { count: usize, shape: [usize; 3] },
    #[error("sample {sample} is not finite: some of its values are NaN or infinite")]
    NonFinite { sample: usize },
}

impl<M: Network> Generator<'_, M> {
    /// Checks that the request and the options of the generator fit the network.
    pub(super) fn check(&self, request: &Request<'_>) -> Result<(), GenerateError> {
        request.sample.validate(self.diffusion.formulation())?;
        self.guidance.validate().map_err(GenerateError::Guidance)?;
        request.sample.check_guidance(&self.guidance)?;
        let (count, shape) = (request.count, request.shape);
        self.check_networks(shape)?;
        let expected = shape.iter().fold(count, |values, &side| values.saturating_mul(side));
        if let Some(got) = request.init_noise.map(<[f32]>::len).filter(|&got| got != expected) {
            return Err(GenerateError::InitNoise { count, shape, expected, got });
        }
        let channels = self.model.network().condition_channels();
        let expected = [count, channels, shape[1], shape[2]];
        match request.conditions.map(Conditions::shape) {
            None if channels > 0 => return Err(GenerateError::NoConditions { channels }),
            Some(got) if got != expected => return Err(GenerateError::Conditions { count, expected, got }),
            _ => {}
        }
        let (dim, got) = (self.model.network().vector_dim(), request.vectors.map(<[f32]>::len));
        match got {
            None if dim > 0 => return Err(GenerateError::NoVectors { dim }),
            Some(got) if got != count.saturating_mul(dim) => {
                return Err(GenerateError::Vectors { count, expected: count.saturating_mul(dim), got });
            }
            _ => {}
        }
        self.check_weak()?;
        request.classes.map_or(Ok(()), |classes| self.check_classes(classes, count))
    }

    /// Checks that all networks, those on other devices too, are of the formulation and draw images of this shape.
    fn check_networks(&self, shape: [usize; 3]) -> Result<(), GenerateError> {
        let own = (&self.model, &self.weak);
        for (model, weak) in once(own).chain(self.replicas.iter().map(|replica| (&replica.model, &replica.weak))) {
            self.diffusion.check_sampling(&**model.network(), shape)?;
            if let Some(weak) = weak {
                self.diffusion.check_sampling(&**weak.network(), shape).map_err(GenerateError::WeakMisfit)?;
            }
        }
        Ok(())
    }

    /// Checks that the conditions that the weaker network takes, if there is one, are compatible with the network's.
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

    /// Checks that the network accepts these classes of `count` samples. The classifier's classes are not checked: it ignores classes that it does
    /// not have.
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

/// Reserves memory for `count` samples of a shape, `[c, h, w]`: 4 bytes per value.
///
/// # Errors
/// [`GenerateError::NoRoom`], instead of aborting the process.
pub fn room_for(count: usize, shape: [usize; 3]) -> Result<Vec<f32>, GenerateError> {
    room(count, shape)
}

/// Images from these values, the first of them at position `first` of a request; an error if a value is not finite.
pub(super) fn finite(data: Vec<f32>, first: usize, request: &Request<'_>) -> Result<ImageBatch, GenerateError> {
    let [c, h, w] = request.shape;
    let size = c * h * w;
    match data.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(GenerateError::NonFinite { sample: request.first as usize + first + at / size }),
        None => Ok(ImageBatch { shape: [data.len() / size.max(1), c, h, w], data }),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::{ControlFlow, Range};
    use std::sync::Mutex;

    use burn::tensor::{Device, Tensor};

    use super::super::{ClassifierGradient, Replica};
    use super::*;
    use crate::diffusion::{Diffusion, DiffusionConfig, GuidanceConfig, NoiseLevel};
    use crate::models::{Unet, UnetConfig};
    use crate::nn::{Eval, EvalMode, Init};
    use crate::sampler::SampleConfig;

    /// Samples of these classes from a network with `known` classes, guided by a classifier or not.
    fn samples(classes: &[u32], known: usize, guided: bool) -> Result<ImageBatch, GenerateError> {
        let device = Device::flex();
        let config =
            UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, num_classes: known, ..UnetConfig::default() };
        let unet = Unet::new(&config, &mut Init::new(0, &device)).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let push = |x: Tensor<4>, _: NoiseLevel, _: &[u32]| x.zeros_like();
        let classifier = guided.then_some(&push as &ClassifierGradient<'_>);
        let generator = Generator { classifier, ..Generator::new(&unet, &diffusion, &device) };
        let sample = SampleConfig { sampling_timesteps: Some(1), ..SampleConfig::default() };
        let request = Request { classes: Some(classes), ..Request::new(&sample, 0, 2, [1, 4, 4]) };
        generator.generate(&request)
    }

    #[test]
    fn classes_that_the_network_does_not_know_are_refused_with_a_classifier_as_without() {
        for guided in [false, true] {
            for unknown in [4, u32::MAX] {
                let refused = samples(&[2, unknown], 3, guided);
                assert!(matches!(refused, Err(GenerateError::UnknownClass { class, last: 2 }) if class == unknown));
            }
            let too_few = samples(&[2], 3, guided);
            assert!(matches!(too_few, Err(GenerateError::Classes { count: 2, got: 1 })));
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
            let generator =
                Generator { guidance, weak: Some((&weak).into()), ..Generator::new(&strong, &diffusion, &device) };
            let request = Request { classes, ..Request::new(&sample, 0, 2, [1, 4, 4]) };
            generator.generate(&request)
        };
        let classes: Option<&[u32]> = Some(&[0, 2]);
        assert!(samples(3, 3, classes).is_ok());
        assert!(samples(3, 0, classes).is_ok());
        assert!(samples(0, 3, None).is_ok(), "it is told that the class is unknown");
        let other = samples(3, 2, classes);
        assert!(matches!(other, Err(GenerateError::OtherWeak { told: "classes", expected: 3, got: 2 })));
    }

    /// A classifier may have more classes than the weaker network.
    #[test]
    fn classes_of_a_classifier_are_not_told_to_a_weaker_network() {
        let device = Device::flex();
        let [strong, weak] = [0, 3].map(|num_classes| small(|unet| unet.num_classes = num_classes));
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let push = |x: Tensor<4>, _: NoiseLevel, _: &[u32]| x.zeros_like();
        let generator = Generator {
            guidance: GuidanceConfig { guidance: 2.0, ..GuidanceConfig::default() },
            weak: Some((&weak).into()),
            classifier: Some(&push),
            ..Generator::new(&strong, &diffusion, &device)
        };
        let sample = SampleConfig { sampling_timesteps: Some(2), ..SampleConfig::default() };
        let images = |classes: &[u32]| {
            generator.generate(&Request { classes: Some(classes), ..Request::new(&sample, 0, 2, [1, 4, 4]) }).unwrap()
        };
        assert_eq!(images(&[9, 4]), images(&[0, 1]));
    }

    #[test]
    fn all_networks_must_fit_the_formulation_and_the_images() {
        let device = Device::flex();
        let [one, two, three] = [small(|_| ()), small(|unet| unet.out_dim = Some(2)), small(|unet| unet.channels = 3)];
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let sample = SampleConfig { sampling_timesteps: Some(2), ..SampleConfig::default() };
        let request = Request::new(&sample, 0, 2, [1, 4, 4]);
        let by = |weak, replicas| Generator { weak, replicas, ..Generator::new(&one, &diffusion, &device) };
        let replica = |model: &'static str| match model {
            "one" => &one,
            "two" => &two,
            _ => &three,
        };
        let replica = |model, weak: Option<&'static str>| Replica {
            device: device.clone(),
            model: replica(model).into(),
            weak: weak.map(|weak| replica(weak).into()),
            classifier: None,
        };
        let (outputs, channels) =
            (Misfit::OutChannels { channels: 1, expected: 1, got: 2 }, Misfit::Channels { expected: 3, got: 1 });
        let weak = |misfit: &Misfit| Some(GenerateError::WeakMisfit(misfit.clone()).to_string());
        let error = |weak, replicas| by(weak, replicas).generate(&request).err().map(|error| error.to_string());
        assert_eq!(error(Some((&two).into()), Vec::new()), weak(&outputs));
        assert_eq!(error(Some((&three).into()), Vec::new()), weak(&channels));
        let own = |misfit: &Misfit| Some(GenerateError::Misfit(misfit.clone()).to_string());
        assert_eq!(error(None, vec![replica("one", None), replica("two", None)]), own(&outputs));
        assert_eq!(error(None, vec![replica("three", None)]), own(&channels));
        assert_eq!(error(Some((&one).into()), vec![replica("one", Some("two"))]), weak(&outputs));
        assert_eq!(error(Some((&one).into()), vec![replica("one", Some("one"))]), None);
    }

    fn small(change: impl FnOnce(&mut UnetConfig)) -> Eval<Unet> {
        let mut unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
        change(&mut unet);
        Unet::new(&unet, &mut Init::new(0, &Device::flex())).unwrap().eval()
    }

    /// Custom configurations may not have been checked before.
    #[test]
    fn what_describes_no_samples_is_refused() {
        let device = Device::flex();
        let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
        let unet = Unet::new(&unet, &mut Init::new(0, &device)).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let drawn = |sample: SampleConfig, threshold_quantile: f64, count: usize| {
            let guidance = GuidanceConfig { threshold_quantile, ..GuidanceConfig::default() };
            let generator = Generator { guidance, ..Generator::new(&unet, &diffusion, &device) };
            let request = Request::new(&sample, 0, count, [1, 4, 4]);
            generator.generate(&request).map(|images| images.shape[0])
        };
        let sample = SampleConfig { sampling_timesteps: Some(1), ..SampleConfig::default() };
        let none_at_a_time = SampleConfig { sample_batch_size: 0, ..sample.clone() };
        let in_no_steps = SampleConfig { sampling_timesteps: Some(0), ..sample.clone() };
        assert!(matches!(drawn(none_at_a_time, 0.9, 1), Err(GenerateError::Sample(_))));
        assert!(matches!(drawn(in_no_steps, 0.9, 1), Err(GenerateError::Sample(_))));
        assert!(matches!(drawn(sample.clone(), 2.0, 1), Err(GenerateError::Guidance(_))));
        for count in [usize::MAX, usize::MAX / 64] {
            assert!(
                matches!(drawn(sample.clone(), 0.9, count), Err(GenerateError::NoRoom { count: n, .. }) if n == count)
            );
        }
        assert_eq!(drawn(sample, 0.9, 2).unwrap(), 2);
    }

    /// Conditions of one pixel value, and which were asked for; those of sample 5 cannot be read.
    #[derive(Debug, Default)]
    struct Asked(Mutex<Vec<Range<usize>>>);

    impl Conditions for Asked {
        fn shape(&self) -> [usize; 4] {
            [6, 1, 4, 4]
        }

        fn of(&self, numbers: Range<usize>) -> Result<ImageBatch, DataError> {
            self.0.lock().unwrap().push(numbers.clone());
            if numbers.contains(&5) {
                return Err(DataError::MixedChannels { path: "5.png".into(), found: 3, common: 1 });
            }
            Ok(ImageBatch { shape: [numbers.len(), 1, 4, 4], data: vec![0.5; 16 * numbers.len()] })
        }
    }

    #[test]
    fn conditions_are_read_batch_by_batch() {
        let device = Device::flex();
        let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, condition_channels: 1, ..Default::default() };
        let unet = Unet::new(&unet, &mut Init::new(0, &device)).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let sample = SampleConfig { sampling_timesteps: Some(1), sample_batch_size: 2, ..SampleConfig::default() };
        let asked = Asked::default();
        let request = Request { conditions: Some(&asked), ..Request::new(&sample, 0, 6, [1, 4, 4]) };
        let mut drawn = 0;
        let ended = Generator::new(&unet, &diffusion, &device).generate_each(
            &request,
            &mut |_| ControlFlow::Continue(()),
            &mut |_, images| {
                drawn += images.shape[0];
                Ok(())
            },
        );
        assert!(matches!(ended, Err(GenerateError::ReadConditions(_))), "{ended:?}");
        assert_eq!((drawn, asked.0.into_inner().unwrap()), (4, vec![0..2, 2..4, 4..6]));
    }

    #[test]
    fn a_network_without_classes_is_shown_none() {
        for classes in [[0, 0], [0, 1]] {
            assert!(matches!(samples(&classes, 0, false), Err(GenerateError::NoClasses)));
            assert!(samples(&classes, 0, true).is_ok(), "only the classifier is asked");
        }
    }
}
