//! `ddpm fid`: the Fréchet inception distance of two sets of images, as pytorch-fid computes it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use denoising_diffusion::eval::evaluate::{Inception, features};
use denoising_diffusion::eval::extract::{Extracted, Extractor};
use denoising_diffusion::eval::inception::FeatureBlock;
use denoising_diffusion::eval::metric::{FidInput, fid};
use denoising_diffusion::eval::metrics::statistics::Gaussian;
use denoising_diffusion::eval::result::{Measurement, Sampling};
use denoising_diffusion::generate::{Depth, Samples};
use serde_json::json;

use crate::evaluation::{StderrWatch, or_interrupted};
use crate::failure::{Failure, FailureExt, Result};
use crate::image_source::{ImageSource, Weights};
use crate::inception::InceptionArgs;
use crate::interrupt::stop_on_ctrl_c;
use crate::machine::{Machine, NetworkDevicesArgs};
use crate::numbers::at_least;
use crate::out_of_memory::Work;
use crate::output::{self, counted, note};
use crate::sampling::{BelongTo, SamplingArgs, draw};

/// Compute the Fréchet inception distance of two sets of images.
#[derive(Args, Debug)]
#[command(
    after_help = "A set is a folder of images, an IDX, .npy or .npz file, .npz statistics (mu and sigma, or m2 and s2), or a run or \
                  weights to draw images from. Images are read as they are and must all have one size. The limit beside a FID is its \
                  expected value for infinitely many generated images."
)]
pub struct FidArgs {
    /// Real images
    a: PathBuf,
    /// Generated images
    b: PathBuf,
    /// Features: 64, 192, 768 or 2048
    #[arg(long, value_name = "N", default_value = "2048", value_parser = parse_dims)]
    dims: FeatureBlock,
    /// Number of images to draw if weights are given [default: 10000]
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least(2_usize))]
    num_samples: Option<usize>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    inception: InceptionArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: NetworkDevicesArgs,
}

pub fn parse_dims(text: &str) -> std::result::Result<FeatureBlock, String> {
    let block = text.parse().ok().and_then(FeatureBlock::of_dims);
    block.ok_or_else(|| "expected 64, 192, 768 or 2048".to_string())
}

/// One of the two sets, ready to compare.
struct Side {
    values: Values,
    /// How its images were preprocessed.
    preprocessing: Option<String>,
    /// How its images were drawn, if they were.
    sampling: Option<Sampling>,
}

enum Values {
    Statistics(Gaussian),
    Features(Extracted),
}

impl Side {
    fn input(&self) -> FidInput<'_> {
        match &self.values {
            Values::Statistics(gaussian) => FidInput::Statistics(gaussian),
            Values::Features(extracted) => FidInput::Features(extracted),
        }
    }
}

pub fn run(args: &FidArgs) -> Result {
    let started = Instant::now();
    // Before Inception is prepared, which can involve a download.
    let (a, b) = (ImageSource::open_for_inception(&args.a)?, ImageSource::open_for_inception(&args.b)?);
    check_statistics(&a, &args.a, args)?;
    check_statistics(&b, &args.b, args)?;
    if args.num_samples.is_some() && ![&a, &b].iter().any(|set| matches!(set, ImageSource::Weights(_))) {
        note("warning: --num-samples has no effect: neither set is drawn from weights");
    }
    let machine = args.machine.start(Work::Sampling)?;
    let both_statistics = matches!((&a, &b), (ImageSource::Statistics(_), ImageSource::Statistics(_)));
    let extractor = if both_statistics { None } else { Some(args.inception.extractor(args.dims, machine.device())?) };
    let mut reader =
        Reader { args, machine: &machine, extractor: extractor.as_ref(), stop: stop_on_ctrl_c("cancelling")? };
    // Weights first: what is wrong with them is found before features are computed.
    let (a, b) = match &b {
        ImageSource::Weights(_) => {
            let b = reader.side(b, &args.b)?;
            (reader.side(a, &args.a)?, b)
        }
        _ => (reader.side(a, &args.a)?, reader.side(b, &args.b)?),
    };
    let result = fid(a.input(), b.input(), args.sampling.seed).context(format!(
        "{} and {} cannot be compared",
        args.a.display(),
        args.b.display()
    ))?;
    report(args, extractor.as_ref(), [&a, &b], &result, started.elapsed().as_secs_f64())
}

/// Refuses statistics of another block before any work.
fn check_statistics(source: &ImageSource, path: &Path, args: &FidArgs) -> Result {
    match source {
        ImageSource::Statistics(gaussian) if gaussian.dims() != args.dims.dims() => Err(Failure::usage(format!(
            "{} has statistics of {} features, but --dims is {}",
            path.display(),
            gaussian.dims(),
            args.dims.dims()
        ))
        .hint(match FeatureBlock::of_dims(gaussian.dims()) {
            Some(block) => format!("compare with --dims {}", block.dims()),
            None => "give statistics from Inception, which have 64, 192, 768 or 2048 features".to_string(),
        })),
        _ => Ok(()),
    }
}

struct Reader<'a> {
    args: &'a FidArgs,
    machine: &'a Machine,
    extractor: Option<&'a Extractor>,
    stop: denoising_diffusion::train::StopSignal,
}

impl Reader<'_> {
    fn side(&mut self, source: ImageSource, path: &Path) -> Result<Side> {
        let mut sampling = None;
        let images = match source {
            ImageSource::Statistics(gaussian) => {
                return Ok(Side { values: Values::Statistics(*gaussian), preprocessing: None, sampling: None });
            }
            ImageSource::Data(images) => images,
            ImageSource::Weights(weights) => {
                let Weights { file, path: file_path, recipe } = *weights;
                let args = &self.args.sampling;
                let settings = args.settings(recipe.as_ref(), &file.card.diffusion)?;
                let from = args.open(file, &file_path, self.machine)?;
                let count = self.args.num_samples.unwrap_or(10_000);
                note(format!("drawing {count} images from {}", file_path.display()));
                let room = Samples::with_room(count, from.shape, Depth::Bits8).or_usage()?;
                sampling = Some(args.describe(&from, &settings));
                let belong_to = BelongTo::named(args, &from, recipe.as_ref(), count)?;
                draw(&from, &settings, args, room, &belong_to, &self.stop)?
            }
        };
        if images.len() < 2 {
            return Err(Failure::failed(format!(
                "{} has {}; FID needs at least 2 in each set",
                path.display(),
                counted(images.len(), "image")
            )));
        }
        let store = self.args.inception.store();
        let Some(extractor) = self.extractor else {
            return Err(Failure::failed("images need the weights of Inception"));
        };
        let from = Inception { extractor, store: store.as_ref() };
        let mut watch = StderrWatch::new(&self.stop);
        let extracted = features(from, &images, &mut watch)
            .map_err(|error| or_interrupted(error.into()))
            .context(format!("cannot compute the features of {}", path.display()))?;
        let preprocessing = Some(extractor.preprocessing(images.shape())?);
        Ok(Side { values: Values::Features(extracted), preprocessing, sampling })
    }
}

fn report(args: &FidArgs, extractor: Option<&Extractor>, sets: [&Side; 2], fid: &Measurement, seconds: f64) -> Result {
    let digest = extractor.map(|extractor| extractor.digest.as_str());
    if args.json {
        return output::json(&json!({
            "fid": fid.value,
            "standard_error": fid.standard_error,
            "dims": args.dims.dims(),
            "n_real": fid.n_real,
            "n_generated": fid.n_generated,
            "notes": fid.notes,
            "inception": digest,
            "sets": [output::path(&args.a), output::path(&args.b)],
            "preprocessing": sets.map(|set| &set.preprocessing),
            "sampling": sets.map(|set| &set.sampling),
            "seed": args.sampling.seed,
            "seconds": seconds,
        }));
    }
    let error = fid.standard_error.map_or(String::new(), |error| format!(" ± {error:.2}"));
    let notes: String = fid.notes.iter().map(|note| format!("; {note}")).collect();
    output::result(format!("fid {:.4}{error}{notes}", fid.value))
}
