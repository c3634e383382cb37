//! `ddpm stats`: mean and covariance of Inception's features of images, in a file that pytorch-fid reads.

use std::path::PathBuf;

use clap::Args;
use denoising_diffusion::eval::evaluate::{Inception, features};
use denoising_diffusion::eval::inception::FeatureBlock;
use denoising_diffusion::eval::metrics::statistics::Gaussian;
use denoising_diffusion::eval::statistics_file::write_statistics;
use serde_json::json;

use crate::commands::fid::parse_dims;
use crate::evaluation::{StderrWatch, or_interrupted};
use crate::failure::{Failure, FailureExt, Result};
use crate::image_source::{all, open_images, refuse_all_but_images};
use crate::inception::InceptionArgs;
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::MachineArgs;
use crate::out_of_memory::Work;
use crate::output::{self, Rows, counted, create_folder_of, refuse_file};

/// Write the statistics of a set of images for later comparisons.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Folder of images, IDX, .npy or .npz file
    data: PathBuf,
    /// File to write (.npz): mu and sigma, as pytorch-fid has them, and n
    #[arg(short = 'o', long, value_name = "NPZ")]
    out: PathBuf,
    /// Features: 64, 192, 768 or 2048
    #[arg(long, value_name = "N", default_value = "2048", value_parser = parse_dims)]
    dims: FeatureBlock,
    /// Overwrite an existing --out
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    inception: InceptionArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

pub fn run(args: &StatsArgs) -> Result {
    if args.out.extension().is_none_or(|ending| ending != "npz") {
        return Err(Failure::usage(format!("--out {}: the name must end in .npz", args.out.display())));
    }
    refuse_file(&args.out, !args.force)?;
    let images = all(&open_images(&args.data)?);
    refuse_all_but_images(&args.data, &images)?;
    let data = args.data.display();
    if images.len() < 2 {
        return Err(Failure::failed(format!(
            "{data} has {}; statistics need at least 2",
            counted(images.len(), "image")
        )));
    }
    let machine = args.machine.start(Work::Features)?;
    let extractor = args.inception.extractor(args.dims, machine.device())?;
    let store = args.inception.store();
    let mut watch = StderrWatch::new(&stop_on_ctrl_c("cancelling")?);
    let extracted = features(Inception { extractor: &extractor, store: store.as_ref() }, &images, &mut watch)
        .map_err(|error| or_interrupted(error.into()))
        .context(format!("cannot compute the features of {data}"))?;
    let gaussian = extracted.table().map_err(Failure::from).and_then(|table| Ok(Gaussian::of(table)?));
    let gaussian = gaussian.context(format!("cannot compute the statistics of {data}"))?;
    create_folder_of(&args.out)?;
    write_statistics(&args.out, &gaussian)?;
    if args.json {
        return output::json(&json!({
            "out": output::path(&args.out),
            "n": extracted.n,
            "dims": extracted.dims,
            "inception": extractor.digest,
            "preprocessing": extractor.preprocessing(images.shape())?,
        }));
    }
    let mut rows = Rows::default();
    rows.row("statistics", args.out.display()).row("images", extracted.n).row("features", extracted.dims);
    output::result(rows.aligned())
}
