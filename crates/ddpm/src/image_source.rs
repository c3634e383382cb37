//! The sources of images to compare: images, statistics of features, or weights to draw images from.

use std::path::Path;
use std::sync::Arc;

use denoising_diffusion::data::{
    ChannelPolicy, DataConfig, DataError, DataLayout, Dataset, Subset, Verify, inspect_with,
};
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::metrics::statistics::Gaussian;
use denoising_diffusion::eval::statistics_file::{holds_statistics, read_statistics};
use denoising_diffusion::model_file::ModelFile;

use crate::failure::{FailureExt, Result};
use crate::opening::opening;
use crate::weights::{Found, best_of};

/// What a path refers to.
pub enum ImageSource {
    /// From a folder, IDX, `.npy` or `.npz`.
    Data(Images),
    /// `.npz` statistics.
    Statistics(Box<Gaussian>),
    /// A run, a checkpoint, a file of weights.
    Weights(Box<Found>),
}

impl ImageSource {
    /// Detects what is there, and opens it.
    pub fn open(path: &Path) -> Result<Self> {
        if holds_statistics(path) {
            return Ok(Self::Statistics(Box::new(read_statistics(path)?)));
        }
        let names_weights = path.extension().is_some_and(|ending| ending == "safetensors" || ending == "pt");
        let is_run = path.join("checkpoints").is_dir() || best_of(path)?.is_some();
        if names_weights || is_run || path.join("ema.safetensors").is_file() {
            return Ok(Self::Weights(Box::new(Found::open(path, None)?)));
        }
        Ok(Self::Data(all(&open_images(path)?)))
    }
}

/// Opens images as they are, at their own size; none may be broken. If grey and RGB files are mixed, all become RGB, as in pytorch-fid.
pub fn open_images(path: &Path) -> Result<Arc<Dataset>> {
    let config = DataConfig { path: Some(path.to_path_buf()), max_broken: 0.0, ..DataConfig::default() };
    match opening(|opening| Dataset::open_with(&config, opening)) {
        Err(DataError::MixedChannels { .. }) if are_grey_and_rgb(&config)? => {
            Ok(open_prepared(path, DataConfig { channels: ChannelPolicy::Exact(3), ..config })?)
        }
        dataset => Ok(Arc::new(dataset?)),
    }
}

/// Whether these two kinds are both present, and no transparency.
fn are_grey_and_rgb(config: &DataConfig) -> Result<bool> {
    let headers = DataConfig { verify: Verify::Header, ..config.clone() };
    let channels = opening(|opening| inspect_with(&headers, opening))?.channels;
    Ok(channels.iter().all(|tally| matches!(tally.value, 1 | 3)))
}

/// Opens images, fitted according to `config`; none may be broken.
pub fn open_prepared(path: &Path, config: DataConfig) -> std::result::Result<Arc<Dataset>, DataError> {
    let config = DataConfig { path: Some(path.to_path_buf()), max_broken: 0.0, ..config };
    opening(|opening| Dataset::open_with(&config, opening)).map(Arc::new)
}

/// All images of data, in order.
pub fn all(dataset: &Arc<Dataset>) -> Images {
    Images::of_data(Subset::from(dataset.clone()))
}

/// How data must be prepared to match a network's samples.
pub fn prepared_as(file: &ModelFile, run: Option<&DataConfig>) -> Result<DataConfig> {
    let (card, image) = (&file.card, file.card.image);
    let mut config = run.cloned().unwrap_or_else(|| DataConfig { resize: card.resize, ..DataConfig::default() });
    let layout = card.network.layout();
    if config.layout == DataLayout::Auto {
        config.layout = layout;
    }
    // A card without a range stands for pixels, or was written when [0, 1] was not stored.
    let unit = matches!(layout, DataLayout::Sequences | DataLayout::Volumes) || config.value_range.is_some();
    config.trained_range = card.value_range.or(unit.then_some([0.0, 1.0]));
    config.trained_condition_range = card.condition_value_range;
    config.trained_vectors.clone_from(&card.vectors);
    config.image_size = Some(image.size());
    config.channels = ChannelPolicy::Exact(image.channels);
    config.validate().or_usage()?;
    Ok(config)
}
