//! `ddpm sample`: weights, a sampler, and images in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use denoising_diffusion::data::npy::read_npy_f32;
use denoising_diffusion::data::{DataLayout, ImageBatch, VectorTable};
use denoising_diffusion::diffusion::{Diffusion, Formulation};
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::generate::{BatchStep, Request};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::report::{GridOptions, ReportError, TrajectoryGif, check_grid, save_images};
use denoising_diffusion::sampler::SampleConfig;
use denoising_diffusion::train::StopSignal;
use denoising_diffusion::weights::WeightsKind;
use serde_json::json;

use crate::failure::{Failure, FailureExt, Result};
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::NetworkDevicesArgs;
use crate::opening::open_data;
use crate::out_of_memory::Work;
use crate::output::{self, Rows, counted, note, refuse_file, thousands};
use crate::recipe_flags::UntoldFlags;
use crate::sample_output::{Out, Writing, remove_numbered, shape_of};
use crate::sampling::{BelongTo, Drawable, SamplingArgs, Settings, in_turn};
use crate::weights::{Found, weights_kind};

/// Draw images from a trained network.
#[derive(Args, Debug)]
#[command(after_help = "The same seed gives the same images, whatever the batch size and the number of threads.")]
pub struct SampleArgs {
    /// Run folder (its latest intact checkpoint), RUN/best (its best), checkpoint folder, .safetensors file, or .pt file of the reference
    target: PathBuf,
    /// Number of images [default: one per entry of --condition or --vectors, else as in the run's recipe, else 25]
    #[arg(short = 'n', long, value_name = "N")]
    num_samples: Option<usize>,
    /// Number of the first image. The images of a seed are numbered from 0, and are the same whether drawn at once or in parts; files in
    /// a folder (--out DIR/) have the same numbers
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["init_noise", "real"])]
    first: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Start from this noise: a float32 .npy file of shape [n, channels, height, width], for sequences [n, channels, length]
    #[arg(long, value_name = "NPY")]
    init_noise: Option<PathBuf>,
    /// Which weights to use [default: ema]
    #[arg(long, value_parser = weights_kind())]
    weights: Option<WeightsKind>,
    /// Grid (.png), folder of images (ends in /), float32 array (.npy: images in [0, 1], or beyond with --threshold none, else in the units of the
    /// data), or curves for sequences (.svg, at most 100) [default: samples.png, for sequences samples.svg, which is overwritten]
    #[arg(long, value_name = "FILE|DIR/")]
    out: Option<PathBuf>,
    /// Show as many sequences of the run's data beside the samples (with --out FILE.svg)
    #[arg(long)]
    real: bool,
    /// Also write an animated GIF of the noise becoming images
    #[arg(long, value_name = "GIF")]
    trajectory: Option<PathBuf>,
    /// Overwrite existing --out and --trajectory
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: NetworkDevicesArgs,
    #[command(flatten)]
    untold: UntoldFlags,
}

pub fn run(args: &SampleArgs) -> Result {
    let plan = Plan::new(args)?;
    let stop = stop_on_ctrl_c("cancelling")?;
    note(plan.in_words());
    let started = Instant::now();
    let mut frames = args.trajectory.is_some().then(|| Frames::new(plan.gif(), plan.settings.sample.num_samples));
    plan.draw(&stop, frames.as_mut())?;
    let seconds = started.elapsed().as_secs_f64();
    if let (Some(path), Some(frames)) = (&args.trajectory, frames) {
        frames.save(path)?;
    }
    report(&plan, seconds)
}

/// Everything that is known before images are drawn.
struct Plan<'a> {
    args: &'a SampleArgs,
    out: Out,
    path: PathBuf,
    from: Drawable,
    settings: Settings,
    init_noise: Option<Vec<f32>>,
    belong_to: BelongTo,
    /// Data drawn next to the samples.
    real: Option<ImageBatch>,
}

impl<'a> Plan<'a> {
    fn new(args: &'a SampleArgs) -> Result<Self> {
        if let Some(out) = &args.out {
            Out::of(out)?.refuse_existing(args.first, !args.force)?;
        }
        if let Some(gif) = &args.trajectory {
            let extension = gif.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
            if extension.as_deref() != Some("gif") {
                return Err(Failure::usage(format!("--trajectory {}: it is written as FILE.gif", gif.display())));
            }
            refuse_file(gif, !args.force)?;
        }
        let found = Found::open(&args.target, args.weights)?;
        let (path, recipe) = (found.path.clone(), found.recipe.clone());
        let file = found.into_model(&args.untold)?;
        let out = Out::for_card(args.out.as_deref(), &file.card)?;
        let mut settings = args.sampling.settings(recipe.as_ref(), &file.card.diffusion)?;

        let machine = args.machine.start(Work::Sampling)?;
        let from = args.sampling.open(file, &path, &machine)?;
        let init_noise =
            args.init_noise.as_deref().map(|noise| read_noise(noise, args.num_samples, &from)).transpose()?;
        let conditions = args.sampling.conditions(&from, recipe.as_ref())?;
        let vectors = args.sampling.vectors(&from)?;
        let one_each = conditions.as_ref().map(Images::len).max(vectors.as_ref().map(VectorTable::rows));
        let count = &mut settings.sample.num_samples;
        *count = args.num_samples.or(one_each).unwrap_or(*count);
        if let Some(noise) = &init_noise {
            *count = noise.len() / from.shape.iter().product::<usize>();
        }
        let numbers = out.check_room(args.first, *count, from.shape)?;
        settings.sample.validate(from.diffusion.formulation()).or_usage()?;
        out.refuse_numbered(numbers.clone(), !args.force)?;
        let real = args.real.then(|| real_sequences(recipe.as_ref(), &out, numbers.len())).transpose()?;
        let belong_to = BelongTo {
            classes: args.sampling.classes_of(&from, numbers.clone(), &settings.guidance)?,
            conditions: in_turn(conditions.as_ref(), numbers.clone()),
            vectors: vectors.map(|of| of.in_turn(numbers)),
        };
        let plan = Self { args, out, path, from, settings, init_noise, belong_to, real };
        plan.check_grids()?;
        Ok(plan)
    }

    /// Refuses grids that are too large.
    fn check_grids(&self) -> Result {
        let [c, h, w] = self.from.shape;
        let shape = [self.settings.sample.num_samples, c, h, w];
        self.out.check_size(shape, &self.writing())?;
        if self.args.trajectory.is_none() {
            return Ok(());
        }
        check_grid(shape, self.frame_layout()).or_usage()?;
        let bytes = self.gif().bytes(shape);
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| {
            Failure::usage(format!(
                "--trajectory: the states of {} take {} MiB, for which there is no memory",
                counted(shape[0], "image"),
                thousands(bytes as u64 >> 20)
            ))
            .hint("draw fewer images")
        })
    }

    fn gif(&self) -> TrajectoryGif {
        TrajectoryGif::new(self.steps(), self.frame_layout())
    }

    fn request(&self) -> Request<'_> {
        let sample = &self.settings.sample;
        Request {
            first: self.args.first as u64,
            init_noise: self.init_noise.as_deref(),
            classes: self.belong_to.classes.as_deref(),
            conditions: self.belong_to.conditions.as_ref().map(|of| of as _),
            vectors: self.belong_to.vectors.as_deref(),
            ..Request::new(sample, self.args.sampling.seed, sample.num_samples, self.from.shape)
        }
    }

    fn writing(&self) -> Writing<'_> {
        Writing {
            grid: GridOptions::of_classes(self.belong_to.classes.as_deref()),
            card: &self.from.file.card,
            real: self.real.as_ref(),
            conditions: self.belong_to.conditions.as_ref().map(|of| of as _),
        }
    }

    /// The layout of a frame of the trajectory: that of the grid, without conditions.
    fn frame_layout(&self) -> GridOptions {
        let [c, h, w] = self.from.shape;
        Writing { conditions: None, ..self.writing() }.in_grid([self.settings.sample.num_samples, c, h, w]).1
    }

    fn steps(&self) -> usize {
        self.settings.sample.steps(self.from.diffusion.formulation())
    }

    fn in_words(&self) -> String {
        let (sample, card) = (&self.settings.sample, &self.from.file.card);
        let layout = card.network.layout();
        format!(
            "drawing {} of {} with {}, {}, from {}",
            counted(sample.num_samples, layout.noun()),
            layout.shape_in_words(card.image, card.network.depth()),
            sample.sampler.name(),
            steps_in_words(sample, self.from.diffusion.formulation()),
            self.path.display()
        )
    }

    /// Draws the images and writes them: into a folder batch by batch, else all at the end.
    fn draw(&self, stop: &StopSignal, mut frames: Option<&mut Frames>) -> Result {
        let (guidance, request) = (&self.settings.guidance, self.request());
        let mut see = |at: &BatchStep<'_>| {
            if let Some(frames) = &mut frames {
                frames.take(at, &self.from.diffusion);
            }
        };
        let Out::Folder(folder) = &self.out else {
            let drawn = self.from.draw(guidance, &request, stop, &mut see);
            let images = drawn.inspect_err(|_| note(format!("{} is not written", self.out.path().display())))?;
            return self.out.write(&images, &self.writing());
        };
        if self.args.force && self.args.first == 0 {
            remove_numbered(folder, 0)?;
        }
        let mut done = BTreeMap::new();
        let drawn = self.from.draw_each(guidance, &request, stop, &mut see, &mut |first, images| {
            save_images(folder, &images, self.args.first + first)?;
            done.insert(first, images.shape[0]);
            Ok(())
        });
        if drawn.is_err() {
            tell_where_to_go_on(self.args.first, &done, request.count);
        }
        drawn
    }
}

/// After an early end: says which images are written and how to draw the rest.
fn tell_where_to_go_on(first: usize, done: &BTreeMap<usize, usize>, count: usize) {
    let there = done.iter().fold(0, |there, (&at, &images)| if at == there { at + images } else { there });
    if !done.is_empty() {
        // Several devices finish batches in any order.
        let beyond_a_gap = done.keys().any(|&at| at >= there);
        note(format!(
            "the first {there} of {count} images are written; draw the others with --first {} -n {}{}",
            first + there,
            count - there,
            if beyond_a_gap { " --force" } else { "" }
        ));
    }
}

/// `18 steps (35 evaluations)`.
fn steps_in_words(sample: &SampleConfig, formulation: &dyn Formulation) -> String {
    match (sample.steps(formulation), sample.evaluations(formulation)) {
        (steps, evaluations) if steps == evaluations => counted(steps, "step"),
        (steps, evaluations) => format!("{} ({evaluations} evaluations)", counted(steps, "step")),
    }
}

/// x_T of every image, in the shape that `--out` would write.
fn read_noise(path: &Path, count: Option<usize>, from: &Drawable) -> Result<Vec<f32>> {
    let (got, values) = read_npy_f32(path)?;
    let [c, h, w] = from.shape;
    let network = &from.file.card.network;
    let shape = shape_of(network, from.shape);
    let fits = |each: &[usize]| *each == [c, h, w] || *each == shape;
    if matches!(&got[..], [n, each @ ..] if *n > 0 && count.is_none_or(|count| count == *n) && fits(each)) {
        return Ok(values);
    }
    let n = count.map_or("n".to_string(), |n| n.to_string());
    let names = match network.layout() {
        DataLayout::Sequences => "sequences, channels, length",
        DataLayout::Volumes => "volumes, channels, depth, height, width",
        _ => "images, channels, height, width",
    };
    let sides: String = shape[1..].iter().map(|side| format!(", {side}")).collect();
    Err(Failure::usage(format!(
        "--init-noise {}: expected an array of shape [{n}, {c}{sides}] ({names}), got {got:?}",
        path.display()
    )))
}

/// `count` evenly spaced sequences of the data that a run was trained on; from the held-out ones, if there are any.
fn real_sequences(recipe: Option<&Recipe>, out: &Out, count: usize) -> Result<ImageBatch> {
    let (Some(recipe), Out::Curves(_)) = (recipe, out) else {
        return Err(Failure::usage("--real needs a run folder, whose recipe names the data, and --out FILE.svg"));
    };
    let dataset = Arc::new(open_data(&recipe.data)?);
    let (train, held_out) = dataset.split_held_out(recipe.data.held_out, recipe.train.seed);
    let from = if held_out.is_empty() { train } else { held_out };
    let (count, shape) = (count.min(from.len()), dataset.shape());
    let mut values = Vec::with_capacity(count * shape.len());
    for i in 0..count {
        values.extend(dataset.get(from.indices()[i * from.len() / count])?.pixels);
    }
    Ok(ImageBatch::new([count, shape.channels, shape.height, shape.width], values)?)
}

/// The states of all images, taken as they are seen.
struct Frames {
    gif: TrajectoryGif,
    /// Number of images.
    count: usize,
    failed: Option<ReportError>,
}

impl Frames {
    fn new(gif: TrajectoryGif, count: usize) -> Self {
        Self { gif, count, failed: None }
    }

    /// Takes a batch's state, in 8 bits, if it will be shown. An error is told at the end, when the images are written.
    fn take(&mut self, at: &BatchStep<'_>, diffusion: &Diffusion) {
        let step = at.step - 1;
        if self.gif.wants(step) && self.failed.is_none() {
            let state = ImageBatch { shape: at.x.dims(), data: host_values(diffusion.unnormalize(at.x.clone())) };
            self.failed = self.gif.push_part(step, at.first, self.count, &state).err();
        }
    }

    fn save(self, path: &Path) -> Result {
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok(self.gif.save(path)?),
        }
    }
}

fn report(plan: &Plan<'_>, seconds: f64) -> Result {
    let Plan { args, out, from, .. } = plan;
    let (card, sample) = (&from.file.card, &plan.settings.sample);
    if args.json {
        return output::json(&json!({
            "out": output::path(out.path()),
            "trajectory": args.trajectory.as_deref().map(output::path),
            "images": sample.num_samples,
            "first": args.first,
            "shape": shape_of(&card.network, from.shape),
            "sampler": sample.sampler,
            "noise_levels": sample.levels_for(from.diffusion.formulation()),
            "steps": sample.steps(from.diffusion.formulation()),
            "evaluations": sample.evaluations(from.diffusion.formulation()),
            "classes": plan.belong_to.classes,
            "seed": args.sampling.seed,
            "weights": card.weights,
            "step": card.step,
            "seconds": seconds,
        }));
    }
    let mut rows = Rows::default();
    rows.row("samples", out.path().display());
    if let Some(gif) = &args.trajectory {
        rows.row("trajectory", gif.display());
    }
    output::result(rows.aligned())
}
