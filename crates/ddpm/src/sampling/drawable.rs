//! A network ready for sampling, and sampling with progress. Not here: opening one (`sampling`), and what happens to the images.

use burn::tensor::Device;
use denoising_diffusion::data::ImageBatch;
use denoising_diffusion::diffusion::{Diffusion, GuidanceConfig};
use denoising_diffusion::generate::{BatchStep, GenerateError, Generator, Replica, Request, Watch};
use denoising_diffusion::model_file::ModelFile;
use denoising_diffusion::models::{Calls, ImageNetwork, Network};
use denoising_diffusion::nn::Eval;
use denoising_diffusion::train::StopSignal;

use super::progress::{SamplingProgress, or_interrupted};
use crate::classifier::GuidingClassifier;
use crate::failure::{Failure, Result};
use crate::output::note;

/// The networks for sampling, on one device.
pub struct Networks {
    pub device: Device,
    pub model: Eval<ImageNetwork>,
    pub weak: Option<Eval<ImageNetwork>>,
    pub classifier: Option<GuidingClassifier>,
}

impl Networks {
    fn calls(&self, device_graph: bool) -> Replica<'_, ImageNetwork> {
        Replica {
            device: self.device.clone(),
            model: Calls::new(&self.model, device_graph),
            weak: self.weak.as_ref().map(|weak| Calls::new(weak, device_graph)),
            classifier: self.classifier.as_ref().map(|classifier| &*classifier.gradient),
        }
    }
}

/// A network ready for sampling.
pub struct Drawable {
    pub file: ModelFile,
    pub own: Networks,
    /// The same networks on other devices.
    pub replicas: Vec<Networks>,
    pub diffusion: Diffusion,
    /// `[channels, height, width]`
    pub shape: [usize; 3],
    /// Whether networks are recorded.
    pub device_graph: bool,
}

impl Drawable {
    /// Number of classes of the network, or of a classifier that guides it.
    pub fn num_classes(&self) -> usize {
        let by_classifier = self.own.classifier.as_ref().map_or(0, |classifier| classifier.class_names.len());
        self.own.model.num_classes().max(by_classifier)
    }

    /// The generator that draws from it.
    pub fn generator(&self, guidance: &GuidanceConfig) -> Generator<'_, ImageNetwork> {
        let Replica { model, weak, classifier, .. } = self.own.calls(self.device_graph);
        Generator {
            guidance: guidance.clone(),
            weak,
            classifier,
            replicas: self.replicas.iter().map(|networks| networks.calls(self.device_graph)).collect(),
            ..Generator::new(model, &self.diffusion, &self.own.device)
        }
    }

    /// Draws samples, with progress and a callback for each step; Ctrl-C cancels.
    pub fn draw(
        &self,
        guidance: &GuidanceConfig,
        request: &Request<'_>,
        stop: &StopSignal,
        see: &mut dyn FnMut(&BatchStep<'_>),
    ) -> Result<ImageBatch> {
        self.shown(guidance, request, stop, see, |generator, watch| {
            generator.generate_watched(request, watch).map_err(or_interrupted)
        })
    }

    /// The same, but hands over each batch as soon as it is drawn, with the position of its first image.
    pub fn draw_each(
        &self,
        guidance: &GuidanceConfig,
        request: &Request<'_>,
        stop: &StopSignal,
        see: &mut dyn FnMut(&BatchStep<'_>),
        take: &mut dyn FnMut(usize, ImageBatch) -> Result,
    ) -> Result {
        self.shown(guidance, request, stop, see, |generator, watch| {
            let mut take = |first, images| take(first, images).map_err(NotTaken::There);
            generator.generate_each(request, watch, &mut take).map_err(|error| match error {
                NotTaken::Drawn(error) => or_interrupted(error),
                NotTaken::There(failure) => failure,
            })
        })
    }

    /// Draws, with progress.
    fn shown<T>(
        &self,
        guidance: &GuidanceConfig,
        request: &Request<'_>,
        stop: &StopSignal,
        see: &mut dyn FnMut(&BatchStep<'_>),
        draw: impl FnOnce(&Generator<'_, ImageNetwork>, &mut Watch<'_>) -> Result<T>,
    ) -> Result<T> {
        let (devices, batches) = (1 + self.replicas.len(), request.batches());
        if batches < devices {
            note(format!(
                "warning: {devices} devices share only {batches} {}; --sample-batch-size {} gives each some of the {} samples",
                if batches == 1 { "batch" } else { "batches" },
                request.count.div_ceil(devices),
                request.count,
            ));
        }
        if devices > 1 && self.device_graph {
            note("warning: --device-graph has no effect on several devices");
        }
        let steps = request.sample.steps(self.diffusion.formulation());
        let mut progress = SamplingProgress::new(batches * steps, stop);
        let generator = self.generator(guidance);
        let drawn = draw(&generator, &mut |at| {
            see(at);
            progress.see()
        });
        progress.finish(&generator);
        drawn
    }
}

/// Why a batch could not be drawn or handed over.
enum NotTaken {
    Drawn(GenerateError),
    There(Failure),
}

impl From<GenerateError> for NotTaken {
    fn from(error: GenerateError) -> Self {
        Self::Drawn(error)
    }
}
