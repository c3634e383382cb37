//! `ddpm train-classifier`: a classifier of noisy images that can guide a network, in a file. Not here: guiding by one (`sample`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use denoising_diffusion::classifier_file::ClassifierCard;
use denoising_diffusion::data::{DataConfig, DataLayout, Flip};
use denoising_diffusion::diffusion::Diffusion;
use denoising_diffusion::eval::accuracy::HeldOutAccuracy;
use denoising_diffusion::model_file::ModelFile;
use denoising_diffusion::models::{Classifier, ClassifierConfig, NetworkConfig};
use denoising_diffusion::nn::Init;
use denoising_diffusion::nn::params::num_trainable;
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;
use denoising_diffusion::train::{
    ClassifierEvent, ClassifierSetup, ClassifierTrainConfig, ClassifierTrainer, Outcome, train_classifier,
};
use serde_json::json;

use crate::failure::{Failure, FailureExt, Result};
use crate::formulations;
use crate::image_source::prepared_as;
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::{Machine, MachineArgs};
use crate::opening::open_data;
use crate::out_of_memory::Work;
use crate::output::{self, Rows, create_folder_of, note, plural, refuse_file, thousands};
use crate::recipe_flags::UntoldFlags;
use crate::weights::Found;

/// Train a classifier of noisy images to guide a network.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct TrainClassifierArgs {
    /// Images with classes: a folder per class, an array with labels, or `digits` [default: what the run of --like was trained on]
    data: Option<PathBuf>,
    /// The network that it will guide: run folder, checkpoint folder, .safetensors file, or .pt file of the reference
    #[arg(long, value_name = "RUN|FILE")]
    like: PathBuf,
    /// File to write the classifier to (.safetensors)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite an existing --out
    #[arg(long)]
    force: bool,
    /// IDX or .npy file with the labels of an array [default: those in the .npz file, or beside the IDX file]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Optimizer steps
    #[arg(long, value_name = "N", default_value_t = ClassifierTrainConfig::default().steps)]
    steps: u64,
    /// Images per step
    #[arg(long, value_name = "N", default_value_t = ClassifierTrainConfig::default().batch_size)]
    batch_size: usize,
    /// Learning rate after the warm-up; it falls to 0 along a cosine
    #[arg(long, value_name = "X", default_value_t = ClassifierTrainConfig::default().lr)]
    lr: f64,
    /// Base width [default: that of the network, if it is a U-Net, else 32]
    #[arg(long, value_name = "N")]
    dim: Option<usize>,
    /// Width of each stage as a multiple of dim; each stage but the last halves the size [default: those of the network, if it is
    /// a U-Net, else 1,2,4,8]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    dim_mults: Option<Vec<usize>>,
    /// Dropout probability
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    dropout: f64,
    /// Seed of weights, data order, noise levels and noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    untold: UntoldFlags,
}

const AFTER_HELP: &str = "\
Formulation, image size and channels are those of the network. The file is written after every tenth of the steps and at the end.
Ctrl-C finishes the step, writes the file and exits with code 130. Training cannot be resumed; it starts anew.";

pub fn run(args: &TrainClassifierArgs) -> Result {
    refuse_file(&args.out, !args.force)?;
    let found = Found::open(&args.like, None)?;
    let run = found.recipe.as_ref().map(|recipe| recipe.data.clone());
    let file = found.into_model(&args.untold)?;
    let diffusion = Diffusion::with_betas(&file.card.diffusion, file.card.betas.clone()).or_usage()?;
    if file.card.network.layout() != DataLayout::Images {
        let nouns = plural(file.card.network.layout().noun());
        return Err(Failure::usage(format!("classifiers are for images, and {} draws {nouns}", args.like.display())));
    }
    if diffusion.formulation().learned_schedule().is_some() {
        return Err(Failure::usage(format!(
            "the noise schedule of {} is learned, and classifiers need a fixed one",
            args.like.display()
        ))
        .hint("give a network that was trained without --noise-schedule learned"));
    }
    let (data, train) = (data(args, &file, run)?, settings(args)?);
    let (flip, workers) = (data.flip, data.workers);
    let setup = setup(args, &file, &data, (flip, workers))?;
    let machine = args.machine.start(Work::TrainingClassifier)?;
    let init = &mut Init::new(train.seed, &machine.device().clone().autodiff());
    let classifier = Classifier::new(&setup.card.classifier, init).or_usage()?;
    let plan = Plan { setup, train, parameters: num_trainable(&classifier) as u64, machine };
    note(plan.rows().aligned());
    plan.train(classifier, diffusion, args.json)
}

/// The images, as the network draws them.
fn data(args: &TrainClassifierArgs, file: &ModelFile, run: Option<DataConfig>) -> Result<DataConfig> {
    let mut config = prepared_as(file, run.as_ref())?;
    match (&args.data, run) {
        (Some(path), _) => (config.path, config.labels) = (Some(path.clone()), None),
        (None, Some(_)) => {}
        (None, None) => {
            return Err(Failure::usage("no DATA is given, and --like is not a run folder whose data could be used")
                .hint("give the data: `ddpm train-classifier DATA --like FILE --out FILE`"));
        }
    }
    if args.labels.is_some() {
        config.labels.clone_from(&args.labels);
    }
    // Classifiers see nothing of what the images belong to but classes, and labels that cannot be used are an error here.
    Ok(DataConfig { labels: config.labels.clone(), class_condition: true, ..config.images_alone() })
}

/// How it is trained.
fn settings(args: &TrainClassifierArgs) -> Result<ClassifierTrainConfig> {
    let default = ClassifierTrainConfig::default();
    let TrainClassifierArgs { steps, batch_size, lr, seed, .. } = *args;
    // A tenth of few steps.
    let warmup_steps = default.warmup_steps.min(steps / 10);
    let config = ClassifierTrainConfig { steps, batch_size, lr, seed, warmup_steps, ..default };
    config.validate().or_usage()?;
    Ok(config)
}

/// The classifier's options: those of the network that it guides, but for flags.
fn classifier(args: &TrainClassifierArgs, file: &ModelFile, num_classes: usize) -> ClassifierConfig {
    let channels = file.card.image.channels;
    let mut config = ClassifierConfig { channels, num_classes, dropout: args.dropout, ..ClassifierConfig::default() };
    if let NetworkConfig::Unet(unet) = &file.card.network {
        (config.dim, config.dim_mults) = (unet.dim, unet.dim_mults.clone());
        let same_stages = args.dim_mults.as_ref().is_none_or(|mults| mults.len() == unet.dim_mults.len());
        if same_stages {
            let unet = unet.clone();
            (config.attn_heads, config.attn_dim_head, config.full_attn) =
                (unet.attn_heads, unet.attn_dim_head, unet.full_attn);
        }
    }
    config.dim = args.dim.unwrap_or(config.dim);
    config.dim_mults = args.dim_mults.clone().unwrap_or(config.dim_mults);
    config
}

fn setup(
    args: &TrainClassifierArgs,
    file: &ModelFile,
    data: &DataConfig,
    (flip, workers): (Flip, usize),
) -> Result<ClassifierSetup> {
    let card = &file.card;
    let shown = data.path.as_deref().unwrap_or(Path::new("digits")).display();
    let dataset = open_data(data).context(format!(
        "cannot read {shown} as images of {} (channels x height x width), which the network draws",
        card.image
    ))?;
    let dataset = Arc::new(dataset);
    let Some(class_names) = dataset.class_names().map(<[String]>::to_vec) else {
        return Err(Failure::failed(format!("{shown} has no classes"))
            .hint("give a folder with a subfolder per class, or labels: --labels FILE"));
    };
    if class_names.len() < 2 {
        return Err(Failure::failed(format!(
            "{shown} has only one class, `{}`; a classifier needs at least two",
            class_names.join("")
        )));
    }
    let config = classifier(args, file, class_names.len());
    config.stages().or_usage()?;
    config.check_size(card.image.height, card.image.width).or_usage()?;
    create_folder_of(&args.out)?;
    let (train, held_out) = dataset.split_held_out(data.held_out, args.seed);
    Ok(ClassifierSetup {
        file: args.out.clone(),
        card: ClassifierCard {
            version: env!("CARGO_PKG_VERSION").to_string(),
            classifier: config,
            diffusion: card.diffusion.clone(),
            betas: card.betas.clone(),
            image: card.image,
            class_names,
            step: 0,
            held_out: None,
        },
        train,
        held_out,
        flip,
        workers,
    })
}

/// Everything decided.
struct Plan {
    setup: ClassifierSetup,
    train: ClassifierTrainConfig,
    parameters: u64,
    machine: Machine,
}

impl Plan {
    fn rows(&self) -> Rows {
        let ClassifierSetup { card, train, held_out, file, .. } = &self.setup;
        let summary = train.dataset().summary();
        let widths: Vec<String> =
            card.classifier.dim_mults.iter().map(|mult| (card.classifier.dim * mult).to_string()).collect();
        let mut rows = Rows::default();
        rows.row("data", format!("{} ({})", summary.source, summary.kind))
            .row(
                "images",
                format!(
                    "{} of {}, {} classes; {} to train, {} held out",
                    thousands(summary.images as u64),
                    card.image,
                    card.class_names.len(),
                    thousands(train.len() as u64),
                    thousands(held_out.len() as u64)
                ),
            )
            .row("classifier", format!("encoder of a U-Net, stages {}", widths.join(", ")))
            .row("parameters", thousands(self.parameters))
            .row("noise", formulations::in_words(&card.diffusion))
            .row("steps", format!("{} of {} images", thousands(self.train.steps), self.train.batch_size))
            .row("device", format!("{}, {} threads", self.machine.name, self.machine.threads))
            .row("file", file.display());
        rows
    }

    fn train(&self, classifier: Classifier, diffusion: Diffusion, as_json: bool) -> Result {
        let mut trainer = ClassifierTrainer::new(classifier, diffusion, self.train.clone(), self.machine.device())?;
        let stop = stop_on_ctrl_c("finishing this step and writing the classifier")?;
        let (started, mut loss) = (Instant::now(), None);
        let mut progress = StderrProgress::new(Task::Train, 0, self.train.steps);
        let done = train_classifier(&mut trainer, &self.setup, &stop, &mut |event| match event {
            ClassifierEvent::Step { report, images_per_s } => {
                if let Some(cause) = &report.skipped {
                    let (step, kind, tensor) = (report.step, cause.kind, &cause.tensor);
                    progress.note(&format!("warning: step {step} skipped: {kind} not finite, first in `{tensor}`"));
                } else {
                    loss = Some(report.loss);
                }
                progress.update(Status { step: report.step, loss, images_per_s: Some(images_per_s) });
            }
            ClassifierEvent::HeldOut { step, accuracy } => {
                progress.note(&format!("step {step}: {}", in_words(accuracy)));
            }
            ClassifierEvent::Written { .. } => {}
        });
        progress.finish();
        let (outcome, card) = done?;
        self.report(outcome, &card, loss, started.elapsed().as_secs_f64(), as_json)?;
        match outcome {
            Outcome::Finished => Ok(()),
            Outcome::Stopped => Err(Failure::interrupted()),
        }
    }

    fn report(
        &self,
        outcome: Outcome,
        card: &ClassifierCard,
        loss: Option<f64>,
        seconds: f64,
        as_json: bool,
    ) -> Result {
        let held_out = card.held_out.as_ref();
        if as_json {
            return output::json(&json!({
                "outcome": match outcome { Outcome::Finished => "finished", Outcome::Stopped => "interrupted" },
                "out": output::path(&self.setup.file),
                "step": card.step,
                "steps": self.train.steps,
                "classes": card.class_names,
                "loss": loss,
                "held_out_images": held_out.map(|of| of.images),
                "held_out_loss": held_out.map(|of| of.loss),
                "held_out_loss_by_quarter": held_out.map(|of| of.loss_by_quarter),
                "accuracy": held_out.map(|of| of.accuracy),
                "accuracy_by_quarter": held_out.map(|of| of.accuracy_by_quarter),
                "parameters": self.parameters,
                "seconds": seconds,
            }));
        }
        let mut rows = Rows::default();
        rows.row("classifier", self.setup.file.display()).row("step", format!("{} of {}", card.step, self.train.steps));
        if let Some(of) = held_out {
            rows.row("held-out loss", format!("{:.4}", of.loss)).row("accuracy", percent(of.accuracy)).row(
                "by noise",
                format!(
                    "{} (quarters of the noise levels, cleanest first)",
                    of.accuracy_by_quarter.map(percent).join(", ")
                ),
            );
        }
        output::result(rows.aligned())
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn in_words(of: &HeldOutAccuracy) -> String {
    let quarters = of.accuracy_by_quarter.map(percent).join(", ");
    format!(
        "held-out loss {:.4}, accuracy {} on {} images (by quarter of the noise levels: {quarters})",
        of.loss,
        percent(of.accuracy),
        of.images
    )
}
