//! `ddpm inpaint`, `ddpm vary` and `ddpm interpolate`: images made from images by a trained network.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use denoising_diffusion::data::{DataConfig, DataError, ImageBatch};
use denoising_diffusion::edit::{Between, EditError};
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::generate::{BatchStep, Depth, Generator, Request, room_for};
use denoising_diffusion::models::ImageNetwork;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::report::GridOptions;
use denoising_diffusion::sampler::{Jumps, RePaint, RePaintStep, SampleConfig, SamplerKind};
use denoising_diffusion::train::StopSignal;
use denoising_diffusion::weights::WeightsKind;
use serde_json::{Value, json};

use crate::failure::{Failure, FailureExt, Result};
use crate::image_source::{all, open_prepared, prepared_as};
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::NetworkMachineArgs;
use crate::numbers::at_least;
use crate::out_of_memory::Work;
use crate::output::{self, Rows, counted, note};
use crate::recipe_flags::UntoldFlags;
use crate::sample_output::{Out, Writing, shape_of};
use crate::sampling::{Drawable, SamplingArgs, SamplingProgress, Settings, or_interrupted};
use crate::weights::{Found, weights_kind};

/// What the three commands share.
#[derive(Args, Debug)]
pub struct EditArgs {
    /// Run folder (its latest intact checkpoint), RUN/best (its best), checkpoint folder, .safetensors file, or .pt file of the reference
    target: PathBuf,
    /// Which weights to use [default: ema]
    #[arg(long, value_parser = weights_kind())]
    weights: Option<WeightsKind>,
    /// Grid (.png), folder of images (ends in /), or float32 array (.npy: images in [0, 1], or beyond with --threshold none, else in the units of the data)
    #[arg(long, value_name = "FILE|DIR/")]
    out: PathBuf,
    /// Overwrite an existing --out
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: NetworkMachineArgs,
    #[command(flatten)]
    untold: UntoldFlags,
}

/// Fill in the missing parts of images (RePaint); what is known comes back exactly.
#[derive(Args, Debug)]
#[command(
    after_help = "Masks: white is known, black is filled in, grey is in between; what is transparent counts as white."
)]
pub struct InpaintArgs {
    #[command(flatten)]
    common: EditArgs,
    /// Images: a file, a folder, or an array; fitted to the network's size
    #[arg(long, value_name = "DATA")]
    images: PathBuf,
    /// Mask: one image for all, or as many as there are images
    #[arg(long, value_name = "DATA")]
    mask: PathBuf,
    /// Number of different fillings of each image
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least(1_u32))]
    variants: u32,
    /// Noise levels that a jump goes back, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 10)]
    jump_length: usize,
    /// Times that each stretch of levels is denoised, at most 1000; 1: no jumps
    #[arg(long, value_name = "N", default_value_t = 10)]
    jump_n_sample: usize,
}

/// Draw variations of images: add noise, and denoise again.
#[derive(Args, Debug)]
pub struct VaryArgs {
    #[command(flatten)]
    common: EditArgs,
    /// Images: a file, a folder, or an array; fitted to the network's size
    #[arg(long, value_name = "DATA")]
    images: PathBuf,
    /// How far to go towards pure noise along the noise levels of training, whatever the sampler: near 0 hardly changes the image, 1 is a new image
    #[arg(long, value_name = "X", default_value_t = 0.6)]
    strength: f64,
    /// Number of variations of each image
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least(1_u32))]
    variants: u32,
}

/// Draw images between two images.
#[derive(Args, Debug)]
pub struct InterpolateArgs {
    #[command(flatten)]
    common: EditArgs,
    /// Folder or array whose first two images to use
    #[arg(long, value_name = "DATA", required_unless_present = "from", conflicts_with_all = ["from", "to"])]
    images: Option<PathBuf>,
    /// First image, a file
    #[arg(long, value_name = "FILE", requires = "to")]
    from: Option<PathBuf>,
    /// Second image, a file
    #[arg(long, value_name = "FILE", requires = "from")]
    to: Option<PathBuf>,
    /// Number of images, including both ends
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = at_least(2_u32))]
    frames: u32,
    /// Mix at this much noise, in (0, 1], as the reference does (counted as by `ddpm vary`), instead of inverting both images to noise, which takes
    /// at least 250 steps
    #[arg(long, value_name = "X")]
    strength: Option<f64>,
}

/// A command with its network and settings, ready to run.
struct Job<'a> {
    args: &'a EditArgs,
    out: Out,
    path: PathBuf,
    recipe: Option<Recipe>,
    from: Drawable,
    settings: Settings,
    stop: StopSignal,
    /// Number of images that are made of each picture.
    variants: usize,
}

impl<'a> Job<'a> {
    /// Without `--sampler`, `fit` replaces the run's own sampler by a suitable one if necessary.
    fn new(args: &'a EditArgs, fit: impl FnOnce(SamplerKind) -> SamplerKind) -> Result<Self> {
        let out = Out::of(&args.out)?;
        out.refuse_existing(0, !args.force)?;
        let found = Found::open(&args.target, args.weights)?;
        let (path, recipe) = (found.path.clone(), found.recipe.clone());
        let file = found.into_model(&args.untold)?;
        let out = Out::for_card(Some(out.path()), &file.card)?;
        let settings = args.sampling.settings_fit_for(fit, recipe.as_ref(), &file.card.diffusion)?;
        let machine = args.machine.start(Work::Sampling)?;
        let from = args.sampling.open(file, &path, &machine)?;
        let stop = stop_on_ctrl_c("cancelling")?;
        Ok(Self { args, out, path, recipe, from, settings, stop, variants: 1 })
    }

    /// Images, prepared like the network's training data.
    fn images(&self, path: &Path) -> Result<Images> {
        let run = self.recipe.as_ref().map(|recipe| recipe.data.clone().images_alone());
        let dataset = open_prepared(path, prepared_as(&self.from.file, run.as_ref())?)?;
        Ok(all(&dataset))
    }

    /// Makes `count` images with `make`, in `steps` steps per batch after `before` initial ones, with progress, and writes them.
    fn finish(
        &self,
        generator: &Generator<'_, ImageNetwork>,
        count: usize,
        (before, steps): (usize, usize),
        details: &Value,
        make: impl FnOnce(
            &Request<'_>,
            &mut dyn FnMut(&BatchStep<'_>) -> ControlFlow<()>,
        ) -> std::result::Result<ImageBatch, EditError>,
    ) -> Result {
        let (sample, started) = (&self.settings.sample, Instant::now());
        let classes = self.args.sampling.classes_by_image(&self.from, count, &self.settings.guidance)?;
        let conditions = self.args.sampling.conditions(&self.from, self.recipe.as_ref())?;
        // In the order of the images, with all variants of an image in sequence.
        let places = |of: usize| (0..count).map(move |i| i * of / count);
        let conditions = conditions.map(|of| of.picked(places(of.len()).collect()));
        let vectors = self.args.sampling.vectors(&self.from)?.map(|of| of.pick(places(of.rows())));
        let request = Request {
            classes: classes.as_deref(),
            conditions: conditions.as_ref().map(|of| of as _),
            vectors: vectors.as_deref(),
            ..Request::new(sample, self.args.sampling.seed, count, self.from.shape)
        };
        let images = counted(count, self.from.file.card.network.layout().noun());
        note(format!("drawing {images} with {}, from {}", sample.sampler.name(), self.path.display()));
        let mut progress = SamplingProgress::new(before + request.batches() * steps, &self.stop);
        let images = make(&request, &mut |_| progress.see());
        progress.finish(generator);
        let images = match images {
            Err(EditError::Generate(error)) => return Err(or_interrupted(error)),
            Err(error @ EditError::Value { .. }) => return Err(error).or_usage(),
            images => images?,
        };
        self.out.write(&images, &self.writing(count))?;
        if self.args.json {
            return output::json(&json!({
                "out": output::path(self.out.path()),
                "images": count,
                "shape": shape_of(&self.from.file.card.network, self.from.shape),
                "sampler": sample.sampler,
                "seed": self.args.sampling.seed,
                "details": details,
                "seconds": started.elapsed().as_secs_f64(),
            }));
        }
        let mut rows = Rows::default();
        rows.row("images", self.out.path().display());
        output::result(rows.aligned())
    }

    fn writing(&self, count: usize) -> Writing<'_> {
        let grid = GridOptions::of_variants(count, self.variants);
        Writing { grid, card: &self.from.file.card, real: None, conditions: None }
    }

    /// Refuses more images than `--out` can hold, before any are drawn.
    fn check_count(&self, count: usize) -> Result {
        let [c, h, w] = self.from.shape;
        room_for(count, self.from.shape).or_usage()?;
        self.out.check_size([count, c, h, w], &self.writing(count))
    }

    fn steps(&self) -> usize {
        self.settings.sample.steps(self.from.diffusion.formulation())
    }
}

/// Each image `times` times in a row.
fn repeated(values: &[f32], images: usize, times: usize) -> Vec<f32> {
    values.chunks(values.len() / images.max(1)).flat_map(|image| image.repeat(times)).collect()
}

pub fn inpaint(args: &InpaintArgs) -> Result {
    let jumps = Jumps { jump_length: args.jump_length, jump_n_sample: args.jump_n_sample };
    jumps.validate().or_usage()?;
    let mut replaced = false;
    let mut job = Job::new(&args.common, |own| {
        replaced = !matches!(own, SamplerKind::Ddpm | SamplerKind::Ddim);
        if replaced { SamplerKind::Ddim } else { own }
    })?;
    let sample = &mut job.settings.sample;
    if replaced && sample.eta.is_none() {
        // RePaint's own step is ancestral.
        sample.eta = Some(1.0);
    }
    let Some(step) = RePaintStep::of(&job.settings.sample) else {
        let sampler = job.settings.sample.sampler.name();
        return Err(Failure::usage(format!("inpainting cannot use --sampler {sampler}"))
            .hint("use --sampler ddpm or ddim, for which RePaint is defined"));
    };
    let images = job.images(&args.images)?;
    let n = images.len();
    let variants = args.variants as usize;
    let count = n * variants;
    job.variants = variants;
    job.check_count(count)?;
    let mask = mask(&args.mask, &job, n)?;
    let (images, mask) = (repeated(&images.values()?, n, variants), repeated(&mask, n, variants));
    let generator = job.from.generator(&job.settings.guidance);
    let steps = generator.inpaint_steps(&job.settings.sample, jumps);
    if jumps.jump_n_sample > 1 && steps <= job.steps() {
        note(format!(
            "note: nothing is denoised again: {steps} steps are too few to jump back by {} (give more --steps, or a smaller --jump-length)",
            jumps.jump_length
        ));
    }
    let repaint = RePaint { jumps, step };
    job.finish(&generator, count, (0, steps), &json!({ "repaint": repaint, "steps": steps }), |request, watch| {
        generator.inpaint(request, &images, &mask, jumps, watch)
    })
}

/// Masks of `n` images, `[n, 1, h, w]`.
fn mask(path: &Path, job: &Job<'_>, n: usize) -> Result<Vec<f32>> {
    let resize = job.recipe.as_ref().map_or(job.from.file.card.resize, |run| run.data.resize);
    let grey = DataConfig {
        resize,
        channels: denoising_diffusion::data::ChannelPolicy::Exact(1),
        // Independent of the units of the data.
        trained_range: Some([0.0, 1.0]),
        ..prepared_as(&job.from.file, None)?
    };
    let masks = open_prepared(path, grey).map_err(|error| match error {
        // The range is that of masks, not of what the network was trained on.
        DataError::OtherUnits { min, max, .. } => Failure::usage(format!("its values range from {min} to {max}")),
        error => error.into(),
    });
    let masks = masks.context(format!(
        "--mask {}: a mask has one channel with values from 0 (to be filled) to 1 (known)",
        path.display()
    ))?;
    let masks = all(&masks);
    let values = masks.values()?;
    let largest = values.iter().copied().fold(0.0, f32::max);
    if largest > 0.0 && largest <= 1.0 / 255.0 && masks.depth() == Depth::Bits8 {
        return Err(Failure::usage(format!(
            "--mask {}: an 8-bit mask is white at 255, and the largest value here is 1",
            path.display()
        ))
        .hint("store a mask of zeros and ones as bool, or as 0 and 255"));
    }
    match masks.len() {
        1 => Ok(values.repeat(n)),
        count if count == n => Ok(values),
        count => Err(Failure::usage(format!("--mask {}: {count} masks for {n} images", path.display()))
            .hint("give one mask for all images, or one for each")),
    }
}

pub fn vary(args: &VaryArgs) -> Result {
    let mut job = Job::new(&args.common, |own| own)?;
    let images = job.images(&args.images)?;
    let (n, variants) = (images.len(), args.variants as usize);
    let count = n * variants;
    job.variants = variants;
    job.check_count(count)?;
    let images = repeated(&images.values()?, n, variants);
    let generator = job.from.generator(&job.settings.guidance);
    let steps = generator.steps_from(&job.settings.sample, args.strength);
    let details = json!({ "strength": args.strength, "steps": steps });
    job.finish(&generator, count, (0, steps), &details, |request, watch| {
        generator.vary(request, &images, args.strength, watch)
    })
}

pub fn interpolate(args: &InterpolateArgs) -> Result {
    // Reproducing the two images requires a sampler without noise.
    let inverted = args.strength.is_none();
    let mut job = Job::new(&args.common, |own| match own {
        noisy if inverted && noisy.is_stochastic() => SamplerKind::Ddim,
        _ => own,
    })?;
    if inverted {
        job.settings.sample = without_noise(&job.settings.sample, &args.common.sampling);
    }
    let frames = args.frames as usize;
    job.check_count(frames)?;
    let mut ends = Vec::new();
    for (path, wanted) in [(&args.images, 2), (&args.from, 1), (&args.to, 1)] {
        let Some(path) = path else { continue };
        let images = job.images(path)?;
        let first: Vec<usize> = (0..images.len().min(wanted)).collect();
        ends.extend(images.pick(&first)?.data);
    }
    let size = job.from.shape.iter().product::<usize>();
    if ends.len() < 2 * size {
        return Err(Failure::usage("interpolation needs two images, but only one is given"));
    }
    let generator = job.from.generator(&job.settings.guidance);
    let sample = &job.settings.sample;
    let (between, before, steps) = match args.strength {
        Some(strength) => (Between::Noised { strength }, 0, generator.steps_from(sample, strength)),
        None => (Between::InvertedWithNoise, generator.inversion_steps(sample), job.steps()),
    };
    let details = json!({ "strength": args.strength, "steps": steps });
    job.finish(&generator, frames, (before, steps), &details, |request, watch| {
        let pair = [&ends[..size], &ends[size..2 * size]];
        generator.interpolate(request, pair, between, watch)
    })
}

/// The run's own sampler without noise, except for noise that flags ask for.
fn without_noise(sample: &SampleConfig, flags: &SamplingArgs) -> SampleConfig {
    let mut quiet = sample.clone();
    if !flags.say("eta") {
        quiet.eta = quiet.eta.map(|_| 0.0);
    }
    if !flags.say("s_churn") {
        quiet.s_churn = 0.0;
    }
    if quiet.draws_noise() {
        note(
            "warning: the sampler draws noise, so the two images will not come back as the ends (--strength mixes at a level of noise)",
        );
    }
    quiet
}
