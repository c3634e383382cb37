//! How samples are drawn: the flags shared by the commands that draw some, and drawing with progress.

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::Args;
use denoising_diffusion::data::{ChannelPolicy, DataConfig, ImageBatch, ImageShape, VectorTable};
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig, GuidanceConfig, Threshold};
use denoising_diffusion::eval::images::{Images, Picked};
use denoising_diffusion::eval::result::Sampling;
use denoising_diffusion::generate::{Request, Samples};
use denoising_diffusion::model_file::ModelFile;
use denoising_diffusion::models::{ImageNetwork, Network};
use denoising_diffusion::nn::Eval;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::sampler::{SampleConfig, SamplerKind};
use denoising_diffusion::train::StopSignal;

use crate::classifier::GuidingClassifier;
use crate::failure::{Failure, FailureExt, Result};
use crate::image_source::{all, open_prepared, prepared_as};
use crate::machine::Machine;
use crate::output::{note, word};
use crate::recipe_flags::{SamplingFlags, UntoldFlags};
use crate::weights::{Found, Source};

mod classes;
mod drawable;
mod ignored;
mod progress;

use classes::{Classes, parse_classes};
pub use drawable::{Drawable, Networks};
pub use ignored::{guides, tell_ignored};
pub use progress::{SamplingProgress, or_interrupted};

/// Flags of sampling.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Classes of the images, in turn: 0-9, or 3, or 0,2,5 [default: all, if the network takes classes]; inpaint, vary and interpolate spread
    /// them over the images in order [default: no class]
    #[arg(long, value_name = "LIST", value_parser = parse_classes)]
    pub classes: Option<Classes>,
    /// Conditions of the samples, for networks trained with --condition: an image, a folder, or an array; fitted as in training, one for
    /// each sample in turn
    #[arg(long, value_name = "DATA")]
    pub condition: Option<PathBuf>,
    /// Vectors of the samples, for networks trained with --vectors: .npy file, one row for each sample in turn
    #[arg(long, value_name = "FILE")]
    pub vectors: Option<PathBuf>,
    /// Guide away from this weaker network (an earlier checkpoint, a smaller network) instead of from the unconditional prediction
    #[arg(long, value_name = "RUN|FILE")]
    weak: Option<PathBuf>,
    /// Guide towards --classes with this classifier of noisy images (`ddpm train-classifier`), in any sampler
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// How strongly the classifier pushes [default: 1]
    #[arg(long, value_name = "X", requires = "classifier", allow_negative_numbers = true)]
    classifier_scale: Option<f64>,
    /// On GPUs, record the network once and replay it in each step: less work for the host, the same images
    #[arg(long, help_heading = "Machine")]
    device_graph: bool,
    #[command(flatten)]
    flags: SamplingFlags,
}

/// The resolved settings of sampling.
#[derive(Clone, Debug)]
pub struct Settings {
    pub sample: SampleConfig,
    pub guidance: GuidanceConfig,
}

impl SamplingArgs {
    /// The run's own settings, overridden by the flags and checked against the formulation.
    pub fn settings(&self, run: Option<&Recipe>, diffusion: &DiffusionConfig) -> Result<Settings> {
        self.settings_fit_for(|own| own, run, diffusion)
    }

    /// The same for work that some samplers cannot do: without `--sampler`, `fit` replaces the run's own sampler by a suitable one.
    pub fn settings_fit_for(
        &self,
        fit: impl FnOnce(SamplerKind) -> SamplerKind,
        run: Option<&Recipe>,
        diffusion: &DiffusionConfig,
    ) -> Result<Settings> {
        let mut recipe = run.cloned().unwrap_or_default();
        recipe.diffusion = diffusion.clone();
        if run.is_none() {
            recipe.sample.sampler = SamplerKind::usual(&diffusion.formulation, &recipe.guidance);
        }
        let own = recipe.sample.sampler;
        let said = self.flags.0.only("sampler");
        let sampler = match said.iter().next() {
            Some(_) => said.apply(&recipe).or_usage()?.sample.sampler,
            None if !own.renoises() && self.flags.0.apply(&recipe).or_usage()?.guidance.cfg_plus_plus => {
                SamplerKind::Ddim
            }
            None => fit(own),
        };
        if sampler != own {
            // Steps and options of few samplers belong to the run's own sampler; the spacing of levels applies to all.
            let SampleConfig { num_samples, sample_batch_size, noise_levels, karras_rho, .. } = recipe.sample;
            recipe.sample = SampleConfig {
                sampler,
                num_samples,
                sample_batch_size,
                noise_levels,
                karras_rho,
                ..SampleConfig::default()
            };
        }
        let Recipe { sample, guidance, .. } = self.flags.0.apply(&recipe).or_usage()?;
        sample.validate(Diffusion::new(diffusion).or_usage()?.formulation()).or_usage()?;
        guidance.validate().or_usage()?;
        let limits = self.say("threshold") && guidance.threshold != Threshold::None;
        if limits && !diffusion.shared.auto_normalize {
            note("warning: --threshold has no effect without auto_normalize: the range of the data is not known");
        }
        tell_ignored(&self.flags.0, &sample, &guidance);
        if self.weak.is_some() && !guides(&guidance) {
            note("warning: --weak has no effect without --guidance");
        }
        sample.check_guidance(&guidance).or_usage()?;
        Ok(Settings { sample, guidance })
    }

    /// Whether this flag of the sampler or of guidance was given.
    pub fn say(&self, key: &str) -> bool {
        self.flags.0.only(key).iter().next().is_some()
    }

    /// The conditions of a network's samples, prepared as in training, if it needs any.
    pub fn conditions(&self, from: &Drawable, run: Option<&Recipe>) -> Result<Option<Images>> {
        let (channels, image) = (from.own.model.condition_channels(), from.file.card.image);
        let path = match &self.condition {
            Some(path) if channels > 0 => path,
            Some(_) => {
                return Err(Failure::usage("--condition is given, but the network was trained without conditions")
                    .hint("leave it out, or train a network with --condition"));
            }
            None if channels == 0 => return Ok(None),
            None => {
                let shape = ImageShape { channels, ..image };
                return Err(Failure::usage(format!(
                    "the network needs a condition for each sample, an image of {shape} (channels x height x width), but none is given"
                ))
                .hint("give an image, a folder or an array: --condition DATA"));
            }
        };
        let prepared = prepared_as(&from.file, run.map(|run| &run.data))?;
        let config = DataConfig {
            channels: ChannelPolicy::Exact(channels),
            value_range: prepared.condition_value_range,
            trained_range: prepared.trained_condition_range,
            ..prepared.images_alone()
        };
        Ok(Some(all(&open_prepared(path, config)?)))
    }

    /// The vectors of a network's samples, scaled as in training, if it needs any.
    pub fn vectors(&self, from: &Drawable) -> Result<Option<VectorTable>> {
        let dim = from.own.model.vector_dim();
        match &self.vectors {
            Some(path) if dim > 0 => Ok(Some(VectorTable::open(path, from.file.card.vectors.as_ref())?)),
            Some(_) => Err(Failure::usage("--vectors is given, but the network was trained without vectors")
                .hint("leave it out, or train a network with --vectors")),
            None if dim == 0 => Ok(None),
            None => Err(Failure::usage(format!(
                "the network needs a vector of {dim} numbers for each sample, but none is given"
            ))
            .hint("give a .npy file with a row for each sample: --vectors FILE")),
        }
    }

    /// Opens a network, and its guidance, on each of the machine's devices.
    pub fn open(&self, file: ModelFile, path: &Path, machine: &Machine) -> Result<Drawable> {
        let shape = check(&file, path)?;
        let weak = self.weak.as_deref().map(|target| open_weak(target, &file, shape)).transpose()?;
        let on = |device: &Device| -> Result<(Networks, Diffusion)> {
            let (model, diffusion) = file.build(device)?;
            let weak = weak.as_ref().map(|(weak, path)| build_weak(weak, path, &diffusion, device)).transpose()?;
            let (scale, image) = (self.classifier_scale.unwrap_or(1.0), file.card.image);
            let classifier = self
                .classifier
                .as_deref()
                .map(|path| GuidingClassifier::open(path, scale, &diffusion, image, device))
                .transpose()?;
            Ok((Networks { device: device.clone(), model, weak, classifier }, diffusion))
        };
        let (own, diffusion) = on(machine.device())?;
        let replicas = machine.others().iter().map(|device| Ok(on(device)?.0)).collect::<Result<_>>()?;
        Ok(Drawable { file, own, replicas, diffusion, shape, device_graph: self.device_graph })
    }
}

/// The weaker network to guide away from, and its path.
fn open_weak(target: &Path, strong: &ModelFile, shape: [usize; 3]) -> Result<(ModelFile, PathBuf)> {
    let found = Found::open(target, None)?;
    let path = found.path.clone();
    // It is shown what the other one is, whatever the size of that.
    let [_, height, width] = shape;
    let untold = match &found.source {
        Source::Ours(_) => UntoldFlags::default(),
        Source::Reference(_) => UntoldFlags::image_size(height, width),
    };
    let mut weak = found.into_model(&untold)?;
    (weak.card.image.height, weak.card.image.width) = (height, width);
    if let (Some(own), Some(others)) = (&strong.card.class_names, &weak.card.class_names)
        && own != others
    {
        return Err(Failure::usage(format!(
            "--weak {}: its classes are {}, but those of the network are {}",
            path.display(),
            others.join(", "),
            own.join(", ")
        )));
    }
    let differ = |what: &str, of: &str| {
        Failure::usage(format!("--weak {}: trained with {what} that were {of}", path.display()))
            .hint("give a checkpoint of the same run, or a network that was trained on the same data")
    };
    if let (Some(own), Some(others)) = (&strong.card.vectors, &weak.card.vectors)
        && own != others
    {
        return Err(differ("vectors", "scaled by other factors"));
    }
    let conditions = |file: &ModelFile| file.card.network.condition_channels() > 0;
    if conditions(strong) && conditions(&weak) && strong.card.condition_value_range != weak.card.condition_value_range {
        return Err(differ("conditions", "read with another range of values"));
    }
    if check(&weak, &path)? != shape || weak.card.value_range != strong.card.value_range {
        return Err(Failure::usage(format!(
            "--weak {}: trained on images with other channels or another range of values",
            path.display()
        )));
    }
    Ok((weak, path))
}

/// The weaker network, which must take the same noisy input and predict the same quantity as one under `diffusion`.
fn build_weak(weak: &ModelFile, path: &Path, diffusion: &Diffusion, device: &Device) -> Result<Eval<ImageNetwork>> {
    let (network, of_weak) = weak.build(device)?;
    if !diffusion.reads_the_same_as(&of_weak) {
        return Err(Failure::usage(format!("--weak {}: trained with another formulation", path.display())));
    }
    Ok(network)
}

/// Checks that the network can draw images of the card's size; returns their shape `[c, h, w]`.
fn check(file: &ModelFile, path: &Path) -> Result<[usize; 3]> {
    let (image, card) = (file.card.image, &file.card);
    card.network.check_size(image.height, image.width).or_usage()?;
    if let Some(got) = card.network.out_channels() {
        let expected = card.diffusion.out_channels(image.channels);
        if got != expected {
            return Err(Failure::failed(format!(
                "the network in {} has {got} output channels, but `{}` needs {expected}",
                path.display(),
                card.diffusion.formulation.name()
            )));
        }
    }
    Ok([image.channels, image.height, image.width])
}

impl SamplingArgs {
    /// How samples of a network are drawn, for reports.
    pub fn describe(&self, from: &Drawable, settings: &Settings) -> Sampling {
        let (card, Settings { sample, guidance }) = (&from.file.card, settings);
        let path = |path: &PathBuf| path.display().to_string();
        Sampling {
            sampler: word(&sample.sampler),
            steps: sample.steps(from.diffusion.formulation()),
            evaluations: Some(sample.evaluations(from.diffusion.formulation())),
            weights: word(&card.weights),
            step: card.step,
            ema_decay: card.ema_decay,
            ema_sigma_rel: card.ema_sigma_rel,
            options: Some(sample.clone()),
            guidance: Some(guidance.clone()),
            weak: self.weak.as_ref().map(path),
            classifier: self.classifier.as_ref().map(|file| (path(file), self.classifier_scale.unwrap_or(1.0))),
            classes: self.classes.as_ref().map(Classes::numbers),
            condition: self.condition.as_ref().map(path),
            vectors: self.vectors.as_ref().map(path),
        }
    }
}

/// The classes, conditions and vectors of a set of samples.
#[derive(Clone, Debug, Default)]
pub struct BelongTo {
    /// Used unless `--classes` names others.
    pub classes: Option<Vec<u32>>,
    pub conditions: Option<Picked>,
    pub vectors: Option<Vec<f32>>,
}

impl BelongTo {
    /// Those given by the flags, in turn for `count` samples, so that all are used about equally often.
    pub fn named(args: &SamplingArgs, from: &Drawable, run: Option<&Recipe>, count: usize) -> Result<Self> {
        Self::named_or(Self::default(), args, from, run, count)
    }

    /// The same, with `own` for whatever the flags do not give.
    pub fn named_or(
        own: Self,
        args: &SamplingArgs,
        from: &Drawable,
        run: Option<&Recipe>,
        count: usize,
    ) -> Result<Self> {
        let conditions = match own.conditions.filter(|_| args.condition.is_none()) {
            Some(own) => Some(own),
            None => in_turn(args.conditions(from, run)?.as_ref(), 0..count),
        };
        let vectors = match own.vectors.filter(|_| args.vectors.is_none()) {
            Some(own) => Some(own),
            None => args.vectors(from)?.map(|of| of.in_turn(0..count)),
        };
        Ok(Self { classes: own.classes, conditions, vectors })
    }
}

/// The conditions of samples with these numbers: in turn, repeated from the start.
pub fn in_turn(conditions: Option<&Images>, numbers: Range<usize>) -> Option<Picked> {
    conditions.map(|of| of.picked(numbers.map(|i| i % of.len()).collect()))
}

/// Draws samples into `room`, with progress; Ctrl-C cancels.
pub fn draw(
    from: &Drawable,
    settings: &Settings,
    args: &SamplingArgs,
    mut samples: Samples,
    belong_to: &BelongTo,
    stop: &StopSignal,
) -> Result<Images> {
    let count = samples.len();
    let classes = args.classes_of(from, 0..count, &settings.guidance)?;
    let own = belong_to.classes.as_ref().filter(|_| args.classes.is_none() && classes.is_some());
    let classes = own.or(classes.as_ref());
    let request = Request {
        classes: classes.map(Vec::as_slice),
        conditions: belong_to.conditions.as_ref().map(|of| of as _),
        vectors: belong_to.vectors.as_deref(),
        ..Request::new(&settings.sample, args.seed, count, from.shape)
    };
    let mut take = |first, images: ImageBatch| {
        samples.put(first, &images);
        Ok(())
    };
    from.draw_each(&settings.guidance, &request, stop, &mut |_| {}, &mut take)?;
    Ok(samples.into())
}
