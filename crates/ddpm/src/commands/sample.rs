//! `ddpm sample`: weights, a sampler, and images in a file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;
use clap::Args;
use denoising_diffusion::atomic_file::write_atomically;
use denoising_diffusion::data::npy::{read_npy_f32, write_npy_f32};
use denoising_diffusion::data::{DataLayout, ImageBatch, VectorTable};
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig};
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::generate::Request;
use denoising_diffusion::model_file::{ModelCard, NetworkConfig};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::report::{
    GridOptions, SequenceSet, TrajectoryGif, check_grid, save_grid, save_images, sequences_svg,
};
use denoising_diffusion::sampler::SampleConfig;
use denoising_diffusion::weights::WeightsKind;
use serde_json::json;

use crate::failure::{Failure, FailureExt, Result};
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::NetworkMachineArgs;
use crate::out_of_memory::Work;
use crate::output::{self, Rows, note};
use crate::plan::open_data;
use crate::recipe_flags::UntoldFlags;
use crate::sampling::{Drawable, SamplingArgs, SamplingProgress, Settings, in_turn, or_interrupted};
use crate::weights::{Found, weights_kind};

/// Draw images from a trained network.
#[derive(Args, Debug)]
#[command(after_help = "The same seed gives the same images, whatever the batch size and the number of threads.")]
pub struct SampleArgs {
    /// Run folder (its latest whole checkpoint), RUN/best (its best), checkpoint's folder, .safetensors file, or .pt file of the reference
    target: PathBuf,
    /// Number of images [default: one for each of --condition or --vectors, else as in the run's recipe, else 25]
    #[arg(short = 'n', long, value_name = "N")]
    num_samples: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Start from this noise: a float32 .npy file of shape [n, channels, height, width], of sequences [n, channels, length]
    #[arg(long, value_name = "NPY")]
    init_noise: Option<PathBuf>,
    /// Which weights to use [default: ema]
    #[arg(long, value_parser = weights_kind())]
    weights: Option<WeightsKind>,
    /// Grid (.png), folder of images (ends in /), float32 array (.npy: images in [0, 1], else in the units of the data), or curves of sequences
    /// (.svg) [default: samples.png, of sequences samples.svg, which is replaced]
    #[arg(long, value_name = "FILE|DIR/")]
    out: Option<PathBuf>,
    /// Draw as many sequences of the run's data beside the samples (with --out FILE.svg)
    #[arg(long)]
    real: bool,
    /// Also write how noise becomes images, as an animated GIF
    #[arg(long, value_name = "GIF")]
    trajectory: Option<PathBuf>,
    /// Replace what --out and --trajectory name
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: NetworkMachineArgs,
    #[command(flatten)]
    untold: UntoldFlags,
}

/// Where images go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    Grid(PathBuf),
    Folder(PathBuf),
    Array(PathBuf),
    Curves(PathBuf),
}

/// How samples are written.
#[derive(Clone, Copy)]
pub struct Writing<'a> {
    pub grid: GridOptions,
    pub card: &'a ModelCard,
    /// Data to draw beside the samples.
    pub real: Option<&'a ImageBatch>,
    /// What each sample belongs to, drawn before it in grids.
    pub conditions: Option<&'a ImageBatch>,
}

pub fn run(args: &SampleArgs) -> Result {
    if let Some(out) = &args.out {
        Out::of(out)?.refuse_existing(!args.force)?;
    }
    if let Some(gif) = &args.trajectory {
        refuse_file(gif, !args.force)?;
    }
    let found = Found::open(&args.target, args.weights)?;
    let path = found.path.clone();
    let recipe = found.recipe.clone();
    let file = found.into_model(&args.untold)?;
    let out = Out::for_card(args.out.as_deref(), &file.card)?;
    let Settings { mut sample, guidance } = args.sampling.settings(recipe.as_ref(), &file.card.diffusion)?;

    let machine = args.machine.start(Work::Sampling)?;
    let from = args.sampling.open(file, &path, &machine)?;
    let shape = from.shape;
    let init_noise = args.init_noise.as_deref().map(|noise| read_noise(noise, args.num_samples, &from)).transpose()?;
    let conditions = args.sampling.conditions(&from, recipe.as_ref())?;
    let vectors = args.sampling.vectors(&from)?;
    let one_each = conditions.as_ref().map(Images::len).max(vectors.as_ref().map(VectorTable::rows));
    sample.num_samples = args.num_samples.or(one_each).unwrap_or(sample.num_samples);
    if let Some(noise) = &init_noise {
        sample.num_samples = noise.len() / shape.iter().product::<usize>();
    }
    sample.validate(from.diffusion.config()).or_usage()?;
    let conditions = in_turn(conditions.as_ref(), sample.num_samples)?;
    let vectors = vectors.map(|of| of.in_turn(sample.num_samples));
    let classes = args.sampling.classes_of(&from, sample.num_samples, &guidance)?;
    let request = Request {
        sample: &sample,
        seed: args.sampling.seed,
        count: sample.num_samples,
        shape,
        init_noise: init_noise.as_deref(),
        classes: classes.as_deref(),
        conditions: conditions.as_ref(),
        vectors: vectors.as_deref(),
    };
    let grid = GridOptions::of_classes(classes.as_deref());
    let writing = Writing { grid, card: &from.file.card, real: None, conditions: conditions.as_ref() };
    let [c, h, w] = shape;
    out.check_size([sample.num_samples, c, h, w], &writing)?;
    if args.trajectory.is_some() {
        check_grid([sample.num_samples, c, h, w], GridOptions::default()).or_usage()?;
    }
    let steps = sample.steps(from.diffusion.config());
    note(format!(
        "{} images of {} by {}, {}, from {}",
        request.count,
        from.file.card.image,
        sample.sampler.name(),
        steps_in_words(&sample, from.diffusion.config()),
        path.display()
    ));
    let stop = stop_on_ctrl_c("giving up")?;
    let started = Instant::now();
    let mut progress = SamplingProgress::new(&request, steps, &stop);
    let mut frames = Frames::new(steps, args.trajectory.is_some());
    let generator = from.generator(&guidance);
    let images = generator.generate(&request, machine.device(), &mut |at| {
        frames.take(at.step - 1, at.x, &from.diffusion);
        progress.see(at)
    });
    progress.finish(&generator);
    let images = images.map_err(or_interrupted)?;
    let seconds = started.elapsed().as_secs_f64();
    let real = args.real.then(|| real_sequences(recipe.as_ref(), &out, images.shape[0])).transpose()?;
    out.write(&images, &Writing { real: real.as_ref(), ..writing })?;
    if let Some(gif) = &args.trajectory {
        frames.save(gif, shape)?;
    }
    report(args, &out, &from, &request, seconds)
}

/// `18 steps (35 evaluations)`.
fn steps_in_words(sample: &SampleConfig, diffusion: &DiffusionConfig) -> String {
    match (sample.steps(diffusion), sample.evaluations(diffusion)) {
        (steps, evaluations) if steps == evaluations => format!("{steps} steps"),
        (steps, evaluations) => format!("{steps} steps ({evaluations} evaluations)"),
    }
}

/// x_T of every image, in the shape that `--out` would write.
fn read_noise(path: &Path, count: Option<usize>, from: &Drawable) -> Result<Vec<f32>> {
    let (got, values) = read_npy_f32(path)?;
    let [c, h, w] = from.shape;
    let network = &from.file.card.network;
    let sides = sides_of(network, h, w);
    let fits = |each: &[usize]| *each == [c, h, w] || *each == [&[c], &sides[..]].concat();
    if matches!(&got[..], [n, each @ ..] if *n > 0 && count.is_none_or(|count| count == *n) && fits(each)) {
        return Ok(values);
    }
    let n = count.map_or("n".to_string(), |n| n.to_string());
    let names = match network.layout() {
        DataLayout::Sequences => "sequences, channels, length",
        DataLayout::Volumes => "volumes, channels, depth, height, width",
        _ => "images, channels, height, width",
    };
    let sides: String = sides.iter().map(|side| format!(", {side}")).collect();
    Err(Failure::usage(format!(
        "--init-noise {}: expected an array of shape [{n}, {c}{sides}] ({names}), got {got:?}",
        path.display()
    )))
}

/// The sides of what a network draws, which is carried as `h` by `w`: sequences have a length, volumes lie slice below slice.
fn sides_of(network: &NetworkConfig, h: usize, w: usize) -> Vec<usize> {
    match network.layout() {
        DataLayout::Sequences => vec![w],
        DataLayout::Volumes => vec![network.depth(), h / network.depth(), w],
        _ => vec![h, w],
    }
}

impl Writing<'_> {
    /// The shape of what stands in a grid of images of a shape, and how.
    fn in_grid(&self, shape: [usize; 4]) -> ([usize; 4], GridOptions) {
        // Slices lie one below the other: a column per volume.
        if self.card.network.layout() == DataLayout::Volumes {
            return (shape, GridOptions { columns: NonZeroUsize::new(shape[0]), ..GridOptions::default() });
        }
        match self.conditions.and_then(|conditions| ImageBatch::shape_beside(shape, conditions.shape)) {
            Some(pairs) => (pairs, GridOptions::of_pairs(shape[0])),
            None => (shape, self.grid),
        }
    }
}

impl Out {
    /// What `--out` asks for, or the default, of what a network draws.
    pub fn for_card(path: Option<&Path>, card: &ModelCard) -> Result<Self> {
        let sequences = card.network.layout() == DataLayout::Sequences;
        match path.map(Self::of).transpose()? {
            None if sequences => Ok(Self::Curves("samples.svg".into())),
            None => Ok(Self::Grid("samples.png".into())),
            Some(Self::Grid(path) | Self::Folder(path)) if sequences => {
                Err(Failure::usage(format!("--out {}: the network draws sequences, not images", path.display()))
                    .hint("end it in .svg for curves, or in .npy for an array"))
            }
            Some(Self::Curves(path)) if !sequences => {
                Err(Failure::usage(format!("--out {}: only sequences are drawn as curves", path.display()))
                    .hint("end it in .png for a grid, in / for a folder of images, or in .npy for an array"))
            }
            Some(out) => Ok(out),
        }
    }

    pub fn of(path: &Path) -> Result<Self> {
        let owned = path.to_path_buf();
        if path.is_dir() || path.to_string_lossy().ends_with(['/', '\\']) {
            return Ok(Self::Folder(owned));
        }
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("png") => Ok(Self::Grid(owned)),
            Some("npy") => Ok(Self::Array(owned)),
            Some("svg") => Ok(Self::Curves(owned)),
            _ => Err(Failure::usage(format!("--out {}: not known what to write", path.display()))
                .hint("end it in .png for a grid, in / for a folder of images, or in .npy for an array")),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Grid(path) | Self::Folder(path) | Self::Array(path) | Self::Curves(path) => path,
        }
    }

    pub fn refuse_existing(&self, refuse: bool) -> Result {
        match self {
            Self::Grid(path) | Self::Array(path) | Self::Curves(path) => refuse_file(path, refuse),
            Self::Folder(path) => {
                let taken = path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
                if taken && refuse { Err(exists(path)) } else { Ok(()) }
            }
        }
    }

    /// Refuses images of a shape, `[n, c, h, w]`, that the file cannot hold, before there are any.
    pub fn check_size(&self, shape: [usize; 4], writing: &Writing<'_>) -> Result {
        let Self::Grid(path) = self else { return Ok(()) };
        let (shape, options) = writing.in_grid(shape);
        check_grid(shape, options).or_usage().context(format!("--out {}", path.display()))
    }

    pub fn write(&self, images: &ImageBatch, writing: &Writing<'_>) -> Result {
        let card = writing.card;
        let range @ [low, high] = card.value_range.unwrap_or([0.0, 1.0]);
        match self {
            Self::Grid(path) => {
                let (shape, options) = writing.in_grid(images.shape);
                let pairs = writing.conditions.filter(|_| shape != images.shape).and_then(|of| images.beside(of));
                save_grid(path, pairs.as_ref().unwrap_or(images), options)?;
            }
            Self::Folder(path) => save_images(path, images, 0)?,
            Self::Array(path) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder).context(format!("cannot create {}", folder.display()))?;
                }
                let values: Vec<f32> =
                    images.data.iter().map(|v| (low + (high - low) * f64::from(*v)) as f32).collect();
                let [n, c, h, w] = images.shape;
                write_npy_f32(path, &[&[n, c], &sides_of(&card.network, h, w)[..]].concat(), &values)?;
            }
            Self::Curves(path) => {
                let (samples, data) = (format!("{} samples", images.shape[0]), "the data");
                let generated = SequenceSet { title: &samples, batch: images };
                let svg = match writing.real {
                    Some(batch) => sequences_svg(&[SequenceSet { title: data, batch }, generated], range)?,
                    None => sequences_svg(&[generated], range)?,
                };
                write_atomically(path, |out| out.write_all(svg.as_bytes()))
                    .context(format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// So many sequences of the data that a run was trained on, far apart; of those that were held out, if there are any.
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

pub fn refuse_file(path: &Path, refuse: bool) -> Result {
    if refuse && path.exists() { Err(exists(path)) } else { Ok(()) }
}

fn exists(path: &Path) -> Failure {
    Failure::usage(format!("{} exists already", path.display())).hint("replace it with --force, or choose another name")
}

/// The states of all images by step; batches come one after the other.
struct Frames {
    gif: Option<TrajectoryGif>,
    states: BTreeMap<usize, Vec<f32>>,
}

impl Frames {
    fn new(steps: usize, wanted: bool) -> Self {
        Self { gif: wanted.then(|| TrajectoryGif::new(steps, GridOptions::default())), states: BTreeMap::new() }
    }

    fn take(&mut self, step: usize, x: &Tensor<4>, diffusion: &Diffusion) {
        if self.gif.as_ref().is_some_and(|gif| gif.wants(step)) {
            self.states.entry(step).or_default().extend(host_values(diffusion.unnormalize(x.clone())));
        }
    }

    fn save(self, path: &Path, [c, h, w]: [usize; 3]) -> Result {
        let Some(mut gif) = self.gif else { return Ok(()) };
        for (step, data) in self.states {
            let n = data.len() / (c * h * w);
            gif.push(step, &ImageBatch::new([n, c, h, w], data)?)?;
        }
        Ok(gif.save(path)?)
    }
}

fn report(args: &SampleArgs, out: &Out, from: &Drawable, request: &Request<'_>, seconds: f64) -> Result {
    let (card, sample) = (&from.file.card, request.sample);
    if args.json {
        return output::json(&json!({
            "out": output::path(out.path()),
            "trajectory": args.trajectory.as_deref().map(output::path),
            "images": request.count,
            "shape": request.shape,
            "sampler": sample.sampler,
            "noise_levels": sample.noise_levels,
            "steps": sample.steps(&card.diffusion),
            "evaluations": sample.evaluations(&card.diffusion),
            "classes": request.classes,
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
