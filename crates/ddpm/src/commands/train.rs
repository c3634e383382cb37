//! `ddpm train`: from a plan to a run. Not here: what it is told (`settings`), and what is shown of it (`watch`).

use std::path::{Path, PathBuf};

use clap::Args;
use denoising_diffusion::atomic_file::write_atomically;
use denoising_diffusion::data::VectorTable;
use denoising_diffusion::diffusion::Diffusion;
use denoising_diffusion::eval::extract::FeatureStore;
use denoising_diffusion::eval::inception::FeatureBlock;
use denoising_diffusion::models::{LearnedSchedule, Network, Scheduled};
use denoising_diffusion::nn::Init;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::train::{
    Checkpoints, EvaluateSetup, LrSchedule, Outcome, Repair, Run, RunError, RunSetup, TrainConfig,
};

use crate::failure::{Failure, FailureExt, Result, chain};
use crate::inception::InceptionArgs;
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::DevicesArgs;
use crate::out_of_memory::Work;
use crate::output::{self, note};
use crate::plan::{self, Plan};
use crate::recipe_flags::RecipeFlags;
use crate::recipes;
use crate::sampling::{guides, tell_ignored};

mod settings;
mod start;
mod watch;

use settings::Settings;
use start::Start;
use watch::Watch;

/// Train a network on images, sequences or volumes, or resume a run.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct TrainArgs {
    /// Folder of images (a folder per class is fine), IDX file (.gz too), .npy or .npz file, or `digits`
    data: Option<PathBuf>,
    /// IDX or .npy file with the labels of an array [default: those in the .npz file, or beside the IDX file]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Condition on other images, such as small pictures for drawing large ones: a folder, matched by file name, or an array, matched by
    /// index; fitted to the size of the images
    #[arg(long, value_name = "DATA")]
    condition: Option<PathBuf>,
    /// Condition on vectors of numbers, such as measurements or text embeddings: .npy file with a row for each example, in the order of
    /// the array or of the files as `ddpm inspect DATA --files` prints them
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// Recipe: a TOML file, or the name of an embedded one (see `ddpm list`)
    #[arg(long, value_name = "RECIPE")]
    config: Option<String>,
    /// Start from these weights instead of drawing new ones: of a run, a checkpoint, or a file, also of the reference. Network, formulation
    /// and the size of the images are theirs, unless the recipe or flags say others
    #[arg(long, value_name = "RUN|FILE")]
    init_from: Option<PathBuf>,
    /// Resume the run in this folder from its latest intact checkpoint
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "out", "init_from"])]
    resume: Option<PathBuf>,
    /// Run folder; must be empty or not exist [default: runs/DATA-NNN]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the plan and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    inception: InceptionArgs,
    #[command(flatten)]
    devices: DevicesArgs,
    #[command(flatten)]
    recipe: RecipeFlags,
}

const AFTER_HELP: &str = "\
Without DATA and --config: the embedded handwritten digits, with the embedded recipe `digits`.
Flags override the recipe, which overrides the defaults shown above.
Ctrl-C finishes the step, writes a checkpoint and exits with code 130.";

pub fn run(args: &TrainArgs) -> Result {
    let Settings { recipe, dir, start } = Settings::of(args)?;
    let (devices, arithmetic) = (&args.devices, recipe.arithmetic);
    let machine =
        if args.dry_run { devices.describe(arithmetic)? } else { devices.start(arithmetic, Work::Training)? };
    let mut plan = Plan::new(recipe, machine, dir)?;
    if args.dry_run {
        return if args.json { output::json(&plan.json()) } else { output::result(plan.rows().aligned()) };
    }
    let by_default = args.resume.is_none() && args.out.is_none();
    if by_default {
        plan.dir = plan::make_default_dir(plan.recipe.data.path.as_deref())?;
    }
    note(plan.rows().aligned());
    tell_what_is_ignored(&plan, &args.recipe);
    let done = train(&plan, start.as_ref(), args);
    if by_default && done.is_err() {
        // Nothing comes of it if a run began in there: it is not empty.
        let _ = std::fs::remove_dir(&plan.dir);
    }
    done
}

/// Says what was given and changes nothing.
fn tell_what_is_ignored(plan: &Plan, said: &RecipeFlags) {
    let Recipe { sample, guidance, evaluate, .. } = &plan.recipe;
    tell_ignored(said, sample, guidance);
    let of_evaluations = said.iter().filter(|(flag, _)| evaluate.evaluate_every.is_none() && flag.is_of("evaluate"));
    for (flag, _) in of_evaluations {
        note(format!("warning: {} has no effect without --evaluate-every", flag.name()));
    }
    let dataset = plan.train.dataset();
    if let Some(why) = &dataset.summary().ignored_labels {
        note(format!("note: labels ignored: {why}"));
    }
    let never_dropped = plan.network.class_drop_prob() == 0.0;
    let told = plan.network.num_classes() > 0 || plan.network.vector_dim() > 0;
    let chosen = said.only("class_drop_prob").iter().next().is_some();
    if never_dropped && told && !chosen && !guides(guidance) && plan.recipe.network.init_from.is_some() {
        note(
            "note: classes and vectors are never dropped, as in the weights, so there will be no guidance (--class-drop-prob)",
        );
    }
    if guides(guidance) && never_dropped {
        note("warning: --guidance: with --class-drop-prob 0 the network never learns what it is guided away from");
    }
    let diffusion = &plan.recipe.diffusion;
    if diffusion.min_snr().is_some() && diffusion.has_zero_terminal_snr() {
        note(
            "warning: --min-snr-loss-weight gives weight 0 to the level where sampling begins, which has no signal with --zero-terminal-snr",
        );
    }
    let TrainConfig { warmup_steps, steps, .. } = plan.recipe.train;
    if warmup_steps >= steps && steps > 0 {
        note(format!("warning: the learning rate is never reached: --warmup-steps is {warmup_steps}, --steps {steps}"));
    }
    let constant = dataset.vectors().map(VectorTable::constant).unwrap_or_default();
    if !constant.is_empty() {
        let numbers = constant.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        note(format!(
            "note: nothing can be learned from columns of --vectors that are constant: {numbers} (counted from 0)"
        ));
    }
}

/// Builds the network, with the schedule that is trained beside it where there is one.
fn train(plan: &Plan, start: Option<&Start>, args: &TrainArgs) -> Result {
    let diffusion = Diffusion::new(&plan.recipe.diffusion).or_usage()?;
    let init = &mut Init::new(plan.recipe.train.seed, &plan.training_device());
    let network = plan.network.build(init).or_usage()?;
    match diffusion.formulation().learned_schedule() {
        Some(options) => {
            let noise_schedule = LearnedSchedule::new(init, options);
            train_network(Scheduled { network, noise_schedule }, plan, start, args)
        }
        None => train_network(network, plan, start, args),
    }
}

fn train_network<M: Network>(network: M, plan: &Plan, start: Option<&Start>, args: &TrainArgs) -> Result {
    let network = match start {
        Some(start) => start.give_to(network, &plan.network, classes_of(plan))?,
        None => network,
    };
    let mut run = open(network, plan, args)?;
    let stop = stop_on_ctrl_c("finishing this step and writing a checkpoint")?;
    let mut watch = Watch::new(run.trainer().step_count(), plan.recipe.train.steps);
    let outcome = run.train(&stop, &mut |event| watch.see(event));
    watch.finish();
    let outcome = outcome.map_err(|error| how_to_go_on(error, &plan.dir))?;
    watch.report(plan, outcome, run.trainer().step_count(), args.json)?;
    match outcome {
        Outcome::Finished => Ok(()),
        Outcome::Stopped => {
            note(format!("stopped; continue with `ddpm train --resume {}`", plan.dir.display()));
            Err(Failure::interrupted())
        }
    }
}

/// The names of the classes that the network is told, by their numbers.
fn classes_of(plan: &Plan) -> Option<&[String]> {
    plan.train.dataset().class_names().filter(|_| plan.network.num_classes() > 0)
}

/// A new run, or one that goes on.
fn open<M: Network>(network: M, plan: &Plan, args: &TrainArgs) -> Result<Run<M>> {
    let trainer = plan.recipe.trainer(network, &plan.training_device()).or_usage()?;
    let trainer = trainer.with_replicas(plan.machine.others()).or_usage()?;
    let setup = setup(plan, evaluation(plan, &args.inception)?)?;
    if args.resume.is_none() {
        return Ok(Run::create(trainer, setup)?);
    }
    let (run, repairs) = Run::resume(trainer, setup)?;
    for repair in repairs {
        note(format!("warning: {}", what_was_repaired(&repair)));
    }
    let (step, TrainConfig { steps, lr_schedule, .. }) = (run.trainer().step_count(), &plan.recipe.train);
    if step > *steps {
        return Err(Failure::usage(format!("the run has already made {step} steps, more than --steps {steps}")));
    }
    note(format!("continuing from step {step}"));
    let before = recipes::of_run(&plan.dir)?;
    if *lr_schedule == LrSchedule::Cosine && before.train.steps != *steps && step > 0 {
        note(format!(
            "warning: the learning rate jumps: its cosine schedule ended at step {}, and now ends at step {steps}",
            before.train.steps
        ));
    }
    let recipe = plan.recipe.to_toml()?;
    if before.to_toml()? != recipe {
        let path = plan.dir.join("config.toml");
        write_atomically(&path, |out| out.write_all(recipe.as_bytes()))
            .context(format!("cannot write {}", path.display()))?;
    }
    Ok(run)
}

fn setup(plan: &Plan, evaluate: Option<EvaluateSetup>) -> Result<RunSetup> {
    let (train, held_out) = (plan.train.clone(), plan.held_out.clone());
    let setup = plan.recipe.setup(&plan.dir, plan.network.clone(), train, held_out)?;
    Ok(RunSetup { evaluate, device_name: plan.machine.name.clone(), ..setup })
}

/// What evaluations need, if there are any.
fn evaluation(plan: &Plan, inception: &InceptionArgs) -> Result<Option<EvaluateSetup>> {
    let config = plan.recipe.evaluate.clone();
    if config.evaluate_every.is_none() {
        return Ok(None);
    }
    let needs_inception = config.metrics.iter().any(|metric| metric.needs_inception());
    let extractor =
        needs_inception.then(|| inception.extractor(FeatureBlock::Final, plan.machine.device())).transpose()?;
    let store = inception.store().unwrap_or_else(|| FeatureStore::new(plan.dir.join("features")));
    Ok(Some(EvaluateSetup { config, extractor, store }))
}

/// After an error in the middle of a run, the checkpoints are what matters.
fn how_to_go_on(error: RunError, dir: &Path) -> Failure {
    let whole = matches!(Checkpoints::new(dir.join("checkpoints")).latest(), Ok(Some(_)));
    let go_on = format!("the latest checkpoint is intact: continue with `ddpm train --resume {}`", dir.display());
    match error {
        RunError::Training(_) => error.into(),
        RunError::Gone { .. } => Failure::from(error)
            .hint("if it was moved, continue with `ddpm train --resume` and its new name; what was trained since its latest checkpoint is lost"),
        RunError::Checkpoint(_) | RunError::Snapshots(_) | RunError::Report(_) | RunError::NotLogged { .. } if whole => {
            Failure::from(error).hint(format!("free disk space or make the folder writable; {go_on}"))
        }
        _ if whole => Failure::from(error).hint(go_on),
        _ => error.into(),
    }
}

/// What was not in order in a run folder.
fn what_was_repaired(repair: &Repair) -> String {
    match repair {
        Repair::PassedOver { rejected, now } => {
            let (path, error) = (rejected.path.display(), chain(&rejected.error));
            format!("skipped the damaged checkpoint {path}, renamed to {}: {error}", now.display())
        }
        Repair::NoLog { log } => format!("{} was missing: a new log is started", log.display()),
        Repair::DamagedLog { error, now } => {
            format!("{}; the readable lines are kept, and the original log is now {}", chain(error), now.display())
        }
    }
}
