//! `ddpm inspect`: what the data contain, without training on them.

use std::path::PathBuf;

use clap::Args;
use denoising_diffusion::data::{
    ChannelPolicy, DataConfig, DataLayout, ImageSize, Opening, ValueRange, files, inspect, shown,
};

use crate::failure::{Failure, Result};
use crate::output;

/// Count the images, sizes, channels and classes of data, and name broken files.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Folder of images, IDX file (.gz too), .npy or .npz file, or `digits`
    data: PathBuf,
    /// Size to train at: 28, or height x width: 28x20
    #[arg(long, value_name = "SIZE")]
    image_size: Option<ImageSize>,
    /// Channels to train on: auto, 1 (grey), 3 (RGB), ...
    #[arg(long, default_value = "auto")]
    channels: ChannelPolicy,
    /// What an array holds: auto, images, sequences or volumes
    #[arg(long, default_value = "auto")]
    layout: DataLayout,
    /// Array values that become 0 and 1: measured, or two numbers: -5,5 [default: the range of the type; for floats [0, 1] or
    /// [-1, 1]; measured for sequences and volumes]
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true)]
    value_range: Option<ValueRange>,
    /// IDX or .npy file with the labels of an array [default: those in the .npz file, or beside the IDX file]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Print the paths of a folder's usable images instead, one per line, in the order of the data: that of the rows of --vectors
    #[arg(long)]
    files: bool,
    /// Print the result as one JSON object; with --files, as an array
    #[arg(long)]
    json: bool,
}

pub fn run(args: &InspectArgs) -> Result {
    let config = DataConfig {
        path: Some(args.data.clone()),
        labels: args.labels.clone(),
        image_size: args.image_size,
        channels: args.channels,
        layout: args.layout,
        value_range: args.value_range,
        ..DataConfig::default()
    };
    if args.files {
        return list(&config, args);
    }
    let summary = inspect(&config)?;
    if args.json {
        output::json(&serde_json::to_value(&summary)?)
    } else {
        output::result(summary.to_string().trim_end())
    }
}

/// Prints the paths of the images.
fn list(config: &DataConfig, args: &InspectArgs) -> Result {
    let Some(files) = files(config, &Opening::default())? else {
        let data = args.data.display();
        return Err(Failure::usage(format!(
            "{data} is no folder: its examples have no files, and the order of the array"
        )));
    };
    if args.json {
        return output::json(&files.iter().map(|file| output::path(file)).collect());
    }
    files.iter().try_for_each(|file| output::result(shown(file)))
}
