//! `ddpm eval`: measures a network's samples against data, by all requested metrics.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use denoising_diffusion::data::{DataConfig, DataLayout, Dataset};
use denoising_diffusion::eval::evaluate::{self, Inception, Judged, Measured, Sets, Split, Watch, bpd, loss, nll};
use denoising_diffusion::eval::extract::Extractor;
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::inception::FeatureBlock;
use denoising_diffusion::eval::metric::Metric;
use denoising_diffusion::eval::needs::Facts;
use denoising_diffusion::eval::result::{Evaluation, JudgedOn, Provenance};
use denoising_diffusion::generate::Samples;
use denoising_diffusion::model_file::ModelCard;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::report::table;
use denoising_diffusion::train::{CheckpointState, StopSignal};
use denoising_diffusion::weights::WeightsKind;

use crate::evaluation::{StderrWatch, listed, or_interrupted, those_measurable};
use crate::failure::{Failure, FailureExt, Result};
use crate::image_source::{all, prepared_as};
use crate::inception::InceptionArgs;
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::{Machine, NetworkDevicesArgs};
use crate::numbers::at_least;
use crate::opening::open_data;
use crate::out_of_memory::Work;
use crate::output::{self, counted, note, refuse_file};
use crate::recipe_flags::UntoldFlags;
use crate::report_page::{Shown, write_page};
use crate::sampling::{BelongTo, Drawable, SamplingArgs, Settings, draw};
use crate::weights::{Found, best_of, weights_kind};

/// Measure how good a network's samples are.
#[derive(Args, Debug)]
#[command(
    after_help = "fid, kid, is and prdc (precision, recall, density, coverage) are computed from Inception's features; swd (sliced Wasserstein \
                  distance), spectrum (difference of power spectra) and neighbours (nearest training images) from pixels; loss (by quarter of t), bpd \
                  (variational bound, bits per dimension) and nll (negative log-likelihood by the probability flow, bits per dimension; 128 \
                  evaluations of network and gradient per image) on held-out images, on training images if none were held out, or on DATA, and say \
                  on which. The limit beside a FID is its expected value for infinitely many samples."
)]
pub struct EvalArgs {
    /// Run folder (its latest intact checkpoint), RUN/best (its best), checkpoint folder, .safetensors file, or .pt file of the reference
    target: PathBuf,
    /// Data to compare with [default: what the run was trained on]
    data: Option<PathBuf>,
    /// Metrics, separated by commas [default: all but nll; those that need Inception only if its weights are available]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    metrics: Option<Vec<Metric>>,
    /// Images to draw
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10_000, value_parser = at_least(2_usize))]
    num_samples: usize,
    /// Use only this many of the real images, evenly spaced in the data [default: all]
    #[arg(long, value_name = "N", value_parser = at_least(2_usize))]
    num_real: Option<usize>,
    /// Which weights to use [default: ema]
    #[arg(long, value_parser = weights_kind())]
    weights: Option<WeightsKind>,
    /// Write a page with tables, plots and pictures
    #[arg(long, value_name = "HTML")]
    report: Option<PathBuf>,
    /// Overwrite an existing --report
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    inception: InceptionArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: NetworkDevicesArgs,
    #[command(flatten)]
    untold: UntoldFlags,
}

/// Everything that is known before samples are drawn.
struct Plan<'a> {
    args: &'a EvalArgs,
    stop: StopSignal,
    from: Drawable,
    path: PathBuf,
    settings: Settings,
    real: Images,
    real_digest: String,
    /// Training and held-out images, if the data are those of a run and at least two images were held out.
    split: Option<(Images, Images)>,
    /// The images that loss, bound and likelihood are measured on.
    judged: (JudgedOn, Images),
    metrics: Vec<Metric>,
    extractor: Option<Extractor>,
    recipe: Option<Recipe>,
}

pub fn run(args: &EvalArgs) -> Result {
    let started = Instant::now();
    if let Some(report) = &args.report {
        refuse_file(report, !args.force)?;
    }
    let plan = Plan::new(args)?;
    let generated = plan.draw()?;
    let mut watch = StderrWatch::new(&plan.stop);
    let measured = plan.measure(generated.as_ref(), &mut watch)?;
    let evaluation = plan.network_metrics(measured, &mut watch, started)?;
    // The numbers first, so that they are printed even if the page cannot be written.
    if args.json {
        output::json(&serde_json::to_value(&evaluation)?)?;
    } else {
        output::result(table(&evaluation))?;
    }
    if let Some(report) = &args.report {
        plan.write_report(report, &evaluation, generated.as_ref())?;
        note(format!("report: {}", report.display()));
    }
    Ok(())
}

impl<'a> Plan<'a> {
    fn new(args: &'a EvalArgs) -> Result<Self> {
        let found = Found::open(&args.target, args.weights)?;
        let (path, recipe) = (found.path.clone(), found.recipe.clone());
        let file = found.into_model(&args.untold)?;
        let settings = args.sampling.settings(recipe.as_ref(), &file.card.diffusion)?;

        let config = prepared_as(&file, recipe.as_ref().map(|recipe| &recipe.data))?;
        let mut dataset = open_data(&data_config(args, config, recipe.is_some())?)?;
        number_classes(&mut dataset, &file.card);
        let dataset = Arc::new(dataset);
        let real = some(all(&dataset), args.num_real);
        let parts = parts(&dataset, recipe.as_ref().filter(|_| args.data.is_none()), &path);
        let judged = judged(parts.as_ref(), &real, args);
        let facts = Facts {
            layout: layout(&dataset, &file.card),
            shape: real.shape(),
            samples: args.num_samples,
            real: real.len(),
            held_out: parts.as_ref().map(|(_, held_out)| held_out.len()),
            judged: (judged.0, judged.1.len()),
            judged_lack_conditions: file.card.network.condition_channels() > 0 && dataset.condition_shape().is_none(),
            diffusion: &file.card.diffusion,
        };
        let metrics = chosen(args, &facts)?;
        tell_unknown(&metrics, &dataset, &file.card);
        let machine = args.machine.start(Work::Sampling)?;
        let extractor = extractor(args, &metrics, &machine)?;
        let metrics = metrics.into_iter().filter(|metric| extractor.is_some() || !metric.needs_inception()).collect();
        let from = args.sampling.open(file, &path, &machine)?;
        Ok(Self {
            stop: stop_on_ctrl_c("cancelling")?,
            real,
            real_digest: dataset.digest().to_string(),
            args,
            from,
            path,
            settings,
            split: parts.filter(|(_, held_out)| held_out.len() > 1),
            judged,
            metrics,
            extractor,
            recipe,
        })
    }

    /// Draws samples, if a metric needs them. Their classes, conditions and vectors are those of --classes, --condition and --vectors, otherwise
    /// those of the data that they are compared with.
    fn draw(&self) -> Result<Option<Images>> {
        if !self.metrics.iter().any(|metric| metric.needs_samples()) {
            return Ok(None);
        }
        let n = self.args.num_samples;
        let room = Samples::with_room(n, self.from.shape, self.real.depth()).or_usage()?;
        let examples = counted(n, self.from.file.card.network.layout().noun());
        let sampler = self.settings.sample.sampler.name();
        note(format!("drawing {examples} with {sampler}, from {}", self.path.display()));
        let sampling = &self.args.sampling;
        let own = self.split.as_ref().map_or(&self.real, |(_, held_out)| held_out);
        let (conditions, vectors) = (own.conditions(n), own.vectors(n));
        let named = sampling.condition.is_some() || sampling.vectors.is_some();
        // Those of the same examples, otherwise in the same proportions as in the data that the samples are compared with.
        let classes = match !named && (conditions.is_some() || vectors.is_some()) {
            true => own.classes(n),
            false => self.real.classes_by_share(n),
        };
        let classes = classes.filter(|_| self.real.num_classes() == self.from.num_classes());
        let own = BelongTo { classes, conditions, vectors };
        let belong_to = BelongTo::named_or(own, sampling, &self.from, self.recipe.as_ref(), n)?;
        draw(&self.from, &self.settings, sampling, room, &belong_to, &self.stop).map(Some)
    }

    fn measure(&self, generated: Option<&Images>, watch: &mut dyn Watch) -> Result<Measured> {
        let Some(generated) = generated else { return Ok(Measured::default()) };
        let split = self.split.as_ref().map(|(training, held_out)| Split { training, held_out });
        let sets = Sets { generated, real: &self.real, split };
        let store = self.args.inception.store();
        let inception = self.extractor.as_ref().map(|extractor| Inception { extractor, store: store.as_ref() });
        evaluate::measure(&self.metrics, &sets, inception, self.args.sampling.seed, watch).map_err(or_interrupted)
    }

    /// The metrics of the network itself, and the complete result.
    fn network_metrics(&self, measured: Measured, watch: &mut dyn Watch, started: Instant) -> Result<Evaluation> {
        let judged = Judged { on: self.judged.0, images: &self.judged.1 };
        let (model, diffusion, seed) = (&self.from.own.model, &self.from.diffusion, self.args.sampling.seed);
        let device = &self.from.own.device;
        let wants = |metric| self.metrics.contains(&metric);
        let loss = wants(Metric::Loss)
            .then(|| loss(model, diffusion, judged, seed, device, watch).map_err(or_interrupted))
            .transpose()?;
        let bits_per_dim = wants(Metric::Bpd)
            .then(|| bpd(model, diffusion, judged, seed, device, watch).map_err(or_interrupted))
            .transpose()?;
        let nll = wants(Metric::Nll)
            .then(|| nll(model, diffusion, judged, seed, device, watch).map_err(or_interrupted))
            .transpose()?;
        Ok(Evaluation {
            version: env!("CARGO_PKG_VERSION").to_string(),
            provenance: self.provenance()?,
            measurements: measured.measurements,
            loss,
            bits_per_dim,
            nll,
            neighbours: measured.neighbours,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn provenance(&self) -> Result<Provenance> {
        let extractor = self.extractor.as_ref().map(|extractor| extractor.describe(self.from.shape)).transpose()?;
        Ok(Provenance {
            generated: self.path.display().to_string(),
            real: self.args.data.as_ref().map_or("the data of the run".to_string(), |data| data.display().to_string()),
            real_digest: Some(self.real_digest.clone()),
            seed: self.args.sampling.seed,
            sampling: Some(self.args.sampling.describe(&self.from, &self.settings)),
            extractor,
        })
    }

    fn write_report(&self, path: &Path, evaluation: &Evaluation, samples: Option<&Images>) -> Result {
        let log = run_of(&self.args.target)?.join("log.jsonl");
        let training = self.split.as_ref().map(|(training, _)| training);
        write_page(path, &Shown { evaluation, samples, training, log: log.is_file().then_some(log.as_path()) })
    }
}

/// The folder of the run, if the target is a run or `RUN/best`.
fn run_of(target: &Path) -> Result<&Path> {
    let of_best = best_of(target)?.and(target.parent());
    Ok(of_best.unwrap_or(target))
}

/// The data to compare with, prepared like the network's samples.
fn data_config(args: &EvalArgs, config: DataConfig, has_recipe: bool) -> Result<DataConfig> {
    match &args.data {
        // The run's labels and conditions do not apply to other data.
        Some(path) => {
            let class_condition = config.class_condition;
            Ok(DataConfig { path: Some(path.clone()), class_condition, ..config.images_alone() })
        }
        None if has_recipe => Ok(config),
        None => Err(Failure::usage(format!("{} does not say which data it was trained on", args.target.display()))
            .hint("give the data to compare with: `ddpm eval FILE DATA`")),
    }
}

/// Numbers the classes of the data as in the network; drops them if the network has other classes.
fn number_classes(dataset: &mut Dataset, card: &ModelCard) {
    let known = card.network.num_classes();
    if known == 0 || dataset.num_classes() == 0 {
        return;
    }
    let same = match &card.class_names {
        Some(names) => dataset.number_classes_as(names),
        None => dataset.num_classes() == known,
    };
    if !same {
        dataset.forget_classes();
        note("warning: the classes of the data are not those that the network was trained on; they are ignored");
    }
}

/// Warns about inputs that the network takes but the images it is judged on do not have.
fn tell_unknown(metrics: &[Metric], dataset: &Dataset, card: &ModelCard) {
    let judged = metrics.iter().filter(|metric| !metric.needs_samples());
    let unknown = [
        ("classes", card.network.num_classes() > 0 && dataset.num_classes() == 0),
        ("vectors", card.network.vector_dim() > 0 && dataset.vectors().is_none()),
    ];
    let unknown: Vec<&str> = unknown.into_iter().filter(|(_, unknown)| *unknown).map(|(what, _)| what).collect();
    if !unknown.is_empty() && judged.clone().next().is_some() {
        let what = unknown.join(" and ");
        note(format!(
            "warning: {} ignores the {what} that the network takes, because the data have none",
            listed(judged.copied())
        ));
    }
}

/// The training and held-out parts of the data of the run with this recipe. `None` for other data, also if the run's have changed since: they would
/// be divided otherwise.
fn parts(dataset: &Arc<Dataset>, recipe: Option<&Recipe>, weights: &Path) -> Option<(Images, Images)> {
    let recipe = recipe?;
    if CheckpointState::beside(weights).is_some_and(|state| state.data_digest != dataset.digest()) {
        note("warning: the data have changed since the run was trained on them: which of them it has seen is unknown");
        return None;
    }
    let (training, held_out) = dataset.split_held_out(recipe.data.held_out, recipe.train.seed);
    Some((Images::of_data(training), Images::of_data(held_out)))
}

/// The images that loss, bound and likelihood are measured on.
fn judged(parts: Option<&(Images, Images)>, real: &Images, args: &EvalArgs) -> (JudgedOn, Images) {
    match parts {
        Some((_, held_out)) if held_out.len() > 1 => (JudgedOn::HeldOut, held_out.clone()),
        Some((training, _)) => (JudgedOn::Training, some(training.clone(), args.num_real)),
        None => (JudgedOn::Given, real.clone()),
    }
}

/// If `count` is given, this many of them, evenly spaced.
fn some(images: Images, count: Option<usize>) -> Images {
    count.map_or(images.clone(), |n| images.spread(n))
}

/// The kind of the examples, according to the data or the network.
fn layout(dataset: &Dataset, card: &ModelCard) -> DataLayout {
    match dataset.layout() {
        DataLayout::Images => card.network.layout(),
        layout => layout,
    }
}

/// The requested metrics, or all of the usual ones that can be measured.
fn chosen(args: &EvalArgs, facts: &Facts<'_>) -> Result<Vec<Metric>> {
    let usual = || Metric::ALL.into_iter().filter(|metric| metric.is_usual()).collect();
    let mut metrics = args.metrics.clone().unwrap_or_else(usual);
    metrics.sort();
    metrics.dedup();
    those_measurable(&metrics, args.metrics.is_some(), facts)
}

/// Inception, if a metric needs it. If no such metric was requested by name, a missing Inception is only a warning.
fn extractor(args: &EvalArgs, metrics: &[Metric], machine: &Machine) -> Result<Option<Extractor>> {
    let wanting = metrics.iter().copied().filter(|metric| metric.needs_inception());
    if wanting.clone().next().is_none() {
        return Ok(None);
    }
    match args.inception.extractor(FeatureBlock::Final, machine.device()) {
        Ok(extractor) => Ok(Some(extractor)),
        Err(failure) if args.metrics.is_none() && !args.inception.is_named() => {
            note(format!("warning: skipping {}: {}", listed(wanting), failure.in_one_line()));
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}
