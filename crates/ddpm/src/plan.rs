//! What a training run will do, resolved and checked before anything is written. Not here: doing it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use denoising_diffusion::data::{DataError, Dataset, ImageShape, Subset};
use denoising_diffusion::generate::room_for;
use denoising_diffusion::models::NetworkConfig;
use denoising_diffusion::recipe::{DataFacts, Recipe};
use denoising_diffusion::train::memory_estimate;
use serde_json::{Value, json};

use crate::evaluation::with_measurable;
use crate::failure::{Failure, FailureExt, Result};
use crate::formulations;
use crate::machine::Machine;
use crate::opening::open_data;
use crate::output::{self, Rows, plural, thousands, word};

/// Parent folder of runs started without --out.
const RUNS: &str = "runs";

const F32_BYTES: u64 = 4;

/// A run that can start.
#[derive(Debug)]
pub struct Plan {
    pub recipe: Recipe,
    /// The recipe's network, adapted to the data.
    pub network: NetworkConfig,
    pub train: Subset,
    pub held_out: Subset,
    pub machine: Machine,
    /// The run folder.
    pub dir: PathBuf,
    pub parameters: u64,
    /// Estimated peak memory of the training process, bytes.
    pub memory: u64,
}

impl Plan {
    /// Checks the recipe, opens the data and checks them against each other.
    pub fn new(recipe: Recipe, machine: Machine, dir: PathBuf) -> Result<Self> {
        let recipe = recipe.resolved();
        recipe.validate().or_usage()?;
        let dataset = Arc::new(open_data(&recipe.data)?);
        let recipe = recipe.for_data(&dataset);
        let network = recipe.network_for(DataFacts::of(&dataset)).or_usage()?;
        let (train, held_out) = dataset.split_held_out(recipe.data.held_out, recipe.train.seed);
        let recipe = with_measurable(recipe, &dataset, held_out.len())?;
        machine.check_shares(recipe.train.accumulate)?;
        let (batch_size, images) = (recipe.train.batch_size, train.len());
        if batch_size > images {
            let too_large = Failure::from(DataError::BatchTooLarge { batch_size, images }).into_usage();
            return Err(match held_out.len() {
                0 => too_large,
                _ => too_large.hint(format!(
                    "use --batch-size {images} or less; --held-out 0 trains on the held-out images, too"
                )),
            });
        }
        let ImageShape { channels, height, width } = dataset.shape();
        room_for(recipe.sample.num_samples, [channels, height, width]).or_usage()?;
        let parameters = network.num_parameters()?;
        let data_bytes = dataset.bytes_in_memory();
        let averages = recipe.post_hoc.post_hoc_sigma_rels.len() as u64;
        let memory = memory_estimate(&network, parameters, dataset.shape(), &recipe.train, averages)?;
        let memory = memory.saturating_add(data_bytes);
        Ok(Self { recipe, network, train, held_out, machine, dir, parameters, memory })
    }

    /// The device on which the network is trained.
    pub fn training_device(&self) -> Device {
        self.machine.device().clone().autodiff()
    }

    fn dataset(&self) -> &Dataset {
        self.train.dataset()
    }

    /// Number of passes over the training images.
    fn epochs(&self) -> f64 {
        let t = &self.recipe.train;
        (t.steps as f64) * (t.batch_size * t.accumulate) as f64 / self.train.len() as f64
    }

    /// The plan as aligned rows.
    pub fn rows(&self) -> Rows {
        let Recipe { diffusion, train, ema, .. } = &self.recipe;
        let (summary, shape) = (self.dataset().summary(), self.dataset().shape());
        let classes = match summary.classes.len() {
            0 => String::new(),
            n => format!(", {n} classes"),
        };
        let warmup =
            if train.warmup_steps > 0 { format!(", {} steps of warm-up", train.warmup_steps) } else { String::new() };
        let decay =
            if train.weight_decay > 0.0 { format!(", weight decay {}", train.weight_decay) } else { String::new() };
        let mut rows = Rows::default();
        rows.row("data", format!("{} ({})", summary.source, summary.kind));
        if let (Some(shape), Some(path)) = (self.dataset().condition_shape(), &self.recipe.data.condition) {
            rows.row("condition", format!("{} of {shape} (channels x height x width)", path.display()));
        }
        let (layout, depth) = (self.dataset().layout(), self.dataset().depth());
        rows.row(
            plural(layout.noun()),
            format!(
                "{} of {}{classes}; {} to train, {} held out",
                thousands(summary.images as u64),
                layout.shape_in_words(shape, depth),
                thousands(self.train.len() as u64),
                thousands(self.held_out.len() as u64)
            ),
        )
        .row("network", self.network_row())
        .row("parameters", thousands(self.parameters))
        .row("diffusion", formulations::in_words(diffusion));
        if let Some(target) = &self.recipe.network.init_from {
            rows.row("init from", target.display());
        }
        rows.row(
            "optimizer",
            format!(
                "Adam, lr {} ({}{warmup}){decay}, gradient norm at most {}",
                train.lr,
                word(&train.lr_schedule),
                train.max_grad_norm
            ),
        )
        .row("average", format!("EMA, decay up to {}", ema.ema_decay));
        if let Some(snapshots) = self.snapshots() {
            rows.row("snapshots", snapshots);
        }
        rows.row(
            "batch",
            match train.accumulate {
                1 => format!("{} images", train.batch_size),
                n => format!("{} images x {n} accumulated", train.batch_size),
            },
        )
        .row("steps", format!("{} = {:.1} epochs", thousands(train.steps), self.epochs()));
        if let Some(evaluation) = self.evaluation() {
            rows.row("evaluation", evaluation);
        }
        rows.row("memory", format!("about {} MiB", mib(self.memory)))
            .row("device", format!("{}, {} threads", self.machine.name, self.machine.threads))
            .row("run folder", self.dir.display());
        rows
    }

    fn network_row(&self) -> String {
        let network = self.network.in_words();
        match (self.network.num_classes(), self.network.vector_dim()) {
            (0, 0) => network,
            (n, 0) => format!("{network}, conditioned on {n} classes"),
            (0, dim) => format!("{network}, conditioned on vectors of {dim} numbers"),
            (n, dim) => format!("{network}, conditioned on {n} classes and vectors of {dim} numbers"),
        }
    }

    /// The post-hoc averages that are kept, and the space that they take.
    fn snapshots(&self) -> Option<String> {
        let sigma_rels: Vec<String> = self.recipe.post_hoc.post_hoc_sigma_rels.iter().map(f64::to_string).collect();
        let every = self.recipe.snapshot_every();
        let files = self.recipe.train.steps.div_ceil(every) * sigma_rels.len() as u64;
        let bytes = files.saturating_mul(self.parameters).saturating_mul(F32_BYTES);
        (!sigma_rels.is_empty()).then(|| {
            format!(
                "averages of sigma_rel {} every {} steps: {} files, {} MiB",
                sigma_rels.join(", "),
                thousands(every),
                thousands(files),
                thousands(mib(bytes))
            )
        })
    }

    /// When and how the run is evaluated.
    fn evaluation(&self) -> Option<String> {
        let config = &self.recipe.evaluate;
        let every = config.evaluate_every?;
        let metrics: Vec<&str> = config.metrics.iter().map(|metric| metric.name()).collect();
        Some(format!(
            "every {} steps: {} on {} samples; {}",
            thousands(every),
            metrics.join(", "),
            thousands(config.evaluate_samples as u64),
            config.best().map_or("no best checkpoint".to_string(), |best| format!("best checkpoint by {best}"))
        ))
    }

    /// The plan as JSON.
    pub fn json(&self) -> Value {
        let (summary, shape) = (self.dataset().summary(), self.dataset().shape());
        json!({
            "run": output::path(&self.dir),
            "parameters": self.parameters,
            "data": {
                "source": summary.source, "kind": summary.kind, "images": summary.images, "shape": shape,
                "classes": summary.classes.len(), "condition": self.dataset().condition_shape(), "vector_dim": self.network.vector_dim(), "train": self.train.len(), "held_out": self.held_out.len(),
            },
            "epochs": self.epochs(),
            "memory_mib": mib(self.memory),
            "device": self.machine.name,
            "threads": self.machine.threads,
            "recipe": self.recipe,
        })
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// The default name of a run folder: `runs/NAME-001`, or the next free number.
pub fn default_dir(data: Option<&Path>) -> PathBuf {
    numbered(&default_name(data), last_number(data) + 1)
}

/// Creates a folder with the default name. If several processes do so at once, each gets its own.
pub fn make_default_dir(data: Option<&Path>) -> Result<PathBuf> {
    std::fs::create_dir_all(RUNS).context(format!("cannot create {RUNS}"))?;
    let mut number = last_number(data);
    loop {
        number += 1;
        let dir = numbered(&default_name(data), number);
        match std::fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.context(format!("cannot create {}", dir.display()))?,
        }
    }
}

fn numbered(name: &str, number: u32) -> PathBuf {
    Path::new(RUNS).join(format!("{name}-{number:03}"))
}

/// The largest number in use for run folders of this name.
fn last_number(data: Option<&Path>) -> u32 {
    let name = default_name(data);
    let number = |entry: std::fs::DirEntry| {
        entry.file_name().to_str()?.strip_prefix(&name)?.strip_prefix('-')?.parse::<u32>().ok()
    };
    let entries = std::fs::read_dir(RUNS).into_iter().flatten().flatten();
    entries.filter_map(number).max().unwrap_or(0)
}

fn default_name(data: Option<&Path>) -> String {
    let name = data
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy())
        .map_or_else(|| "digits".to_string(), |name| name.split('.').next().unwrap_or_default().to_string());
    if name.is_empty() { "run".to_string() } else { name }
}
