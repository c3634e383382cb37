//! `ddpm average`: an average of another length, made from those that a run kept.

use std::path::PathBuf;

use clap::Args;
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;
use denoising_diffusion::train::{Averaged, Snapshots, SnapshotsError};
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::output::{self, Rows, create_folder_of, note, refuse_file, thousands};
use crate::recipes;

/// Make an average of another length from those that a run has kept (--post-hoc-sigma-rels).
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct AverageArgs {
    /// Run folder
    run: PathBuf,
    /// Length of the average: standard deviation of its weights over the steps, as a fraction of the training; 0.2886 is nearly
    /// the plain mean of all steps
    #[arg(long, value_name = "X")]
    sigma_rel: f64,
    /// The average as it would be after this step, which must have a snapshot (a checkpoint does not count) [default: the
    /// last]
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// File to write
    #[arg(long, value_name = "SAFETENSORS")]
    out: PathBuf,
    /// Overwrite an existing --out
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Which length draws the best samples is not known before training: make some and compare them with `ddpm eval`.
The file is self-contained: `ddpm sample`, `eval`, `convert` and the other commands read it.";

/// With a larger error, the result is not the average that was requested.
const LARGE_ERROR: f64 = 0.1;

pub fn run(args: &AverageArgs) -> Result {
    if args.out.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Failure::usage(format!("--out {}: the name must end in .safetensors", args.out.display())));
    }
    refuse_file(&args.out, !args.force)?;
    // Reports an error if this is not a run folder.
    recipes::of_run(&args.run)?;
    let mut shown = None;
    let averaged = Snapshots::of_run(&args.run).average(args.sigma_rel, args.step, &mut |read, all| {
        let progress = shown.get_or_insert_with(|| StderrProgress::new(Task::Average, 0, all as u64));
        progress.update(Status { step: read as u64, ..Status::default() });
    });
    if let Some(mut progress) = shown {
        progress.finish();
    }
    let Averaged { file, made_of, relative_error } = averaged.map_err(usage_if_length)?;
    create_folder_of(&args.out)?;
    file.write(&args.out)?;
    let percent = 100.0 * relative_error;
    if relative_error > LARGE_ERROR {
        note(format!(
            "warning: the error of this average is {percent:.0} %: the run has too few snapshots, or none of a similar length"
        ));
    }
    if args.json {
        return output::json(&json!({
            "out": output::path(&args.out),
            "sigma_rel": args.sigma_rel,
            "step": file.card.step,
            "snapshots": made_of,
            "relative_error": relative_error,
        }));
    }
    let mut rows = Rows::default();
    rows.row("written", args.out.display())
        .row("average", format!("sigma_rel {}, after step {}", args.sigma_rel, thousands(file.card.step)))
        .row("made of", format!("{made_of} snapshots, with an error of {percent:.2} %"));
    output::result(rows.aligned())
}

fn usage_if_length(error: SnapshotsError) -> Failure {
    match error {
        SnapshotsError::Length(_) => Failure::from(error).into_usage(),
        error => error.into(),
    }
}
