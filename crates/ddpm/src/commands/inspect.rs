//! `ddpm inspect`: what is in the data, without training on it.

use std::path::PathBuf;

use clap::Args;
use denoising_diffusion::data::{ChannelPolicy, DataConfig, ImageSize, inspect};

use crate::failure::Result;
use crate::output;

/// Count images, sizes, channels and classes of data, and name broken files.
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
    /// IDX or .npy file with the labels of an array [default: those in the .npz file, or beside the IDX file]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &InspectArgs) -> Result {
    let config = DataConfig {
        path: Some(args.data.clone()),
        labels: args.labels.clone(),
        image_size: args.image_size,
        channels: args.channels,
        ..DataConfig::default()
    };
    let summary = inspect(&config)?;
    if args.json {
        output::json(&serde_json::to_value(&summary)?)
    } else {
        output::result(summary.to_string().trim_end())
    }
}
