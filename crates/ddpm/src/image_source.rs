//! The sources of images to compare: images, statistics of features, or weights to draw images from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use denoising_diffusion::data::{
    ChannelPolicy, DataConfig, DataError, DataLayout, Dataset, ImageShape, Subset, Verify, inspect_with,
};
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::metrics::statistics::Gaussian;
use denoising_diffusion::eval::needs::{Unmeasurable, check_images};
use denoising_diffusion::eval::statistics_file::{holds_statistics, read_statistics};
use denoising_diffusion::model_file::ModelFile;
use denoising_diffusion::recipe::Recipe;

use crate::failure::{Failure, FailureExt, Result};
use crate::opening::opening;
use crate::recipe_flags::UntoldFlags;
use crate::weights::{Found, best_of};

/// What a path refers to.
pub enum ImageSource {
    /// From a folder, IDX, `.npy` or `.npz`.
    Data(Images),
    /// `.npz` statistics.
    Statistics(Box<Gaussian>),
    /// From a run, a checkpoint, a file.
    Weights(Box<Weights>),
}

/// Weights to draw images from.
pub struct Weights {
    pub file: ModelFile,
    /// The file that was read.
    pub path: PathBuf,
    /// The recipe of the run that they belong to, if a run was named.
    pub recipe: Option<Recipe>,
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
            let found = Found::open(path, None)?;
            let (path, recipe) = (found.path.clone(), found.recipe.clone());
            let file = found.into_model(&UntoldFlags::default())?;
            return Ok(Self::Weights(Box::new(Weights { file, path, recipe })));
        }
        Ok(Self::Data(all(&open_images(path)?)))
    }

    /// The same, for Inception: sequences, volumes, and whatever else people would not view as images, are refused.
    pub fn open_for_inception(path: &Path) -> Result<Self> {
        let source = Self::open(path)?;
        match &source {
            Self::Data(images) => refuse_all_but_images(path, images)?,
            Self::Weights(weights) => {
                let (network, ImageShape { channels, height, width }) =
                    (&weights.file.card.network, weights.file.card.image);
                refuse(path, network.layout(), [channels, height, width])?;
            }
            Self::Statistics(_) => {}
        }
        Ok(source)
    }
}

/// Refuses data that Inception is not shown.
pub fn refuse_all_but_images(path: &Path, images: &Images) -> Result {
    refuse(path, images.layout(), images.shape())
}

fn refuse(path: &Path, layout: DataLayout, shape: [usize; 3]) -> Result {
    check_images(layout, shape).map_err(|why| {
        let failure = Failure::usage(format!("{}: {why}", path.display()));
        match why {
            Unmeasurable::NoImages(_) | Unmeasurable::Thin { .. } => failure
                .hint("to compare other data with those of a run, use `ddpm eval RUN DATA --metrics swd,spectrum`"),
            _ => failure,
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inception_is_shown_images_alone() {
        let refused = |layout, shape| refuse(Path::new("x.npy"), layout, shape).map_err(|failure| failure.to_text());
        let text = refused(DataLayout::Images, [3, 1, 64]).unwrap_err();
        assert!(text.contains("1 high and 64 wide") && text.contains("swd,spectrum"), "{text}");
        assert!(refused(DataLayout::Volumes, [1, 64, 8]).unwrap_err().contains("the data are volumes"));
        assert!(!refused(DataLayout::Images, [7, 8, 8]).unwrap_err().contains("swd"));
        refused(DataLayout::Images, [1, 8, 8]).unwrap();
    }
}
