//! The common shape of the images of a folder, or why there is none.

use std::collections::BTreeMap;
use std::path::Path;

use super::folder::{ImageFile, Scan};
use super::shape::ChannelPolicy;
use super::{DataConfig, DataError, ImageShape, ImageSize};

/// Refuses a folder without any image.
pub(super) fn refuse_empty(root: &Path, scan: &Scan) -> Result<(), DataError> {
    if scan.files.is_empty() && scan.broken.is_empty() {
        return Err(DataError::NoImages {
            path: root.to_path_buf(),
            other_files: scan.other_files,
            array: scan.array.clone(),
        });
    }
    Ok(())
}

/// Refuses numbers of channels that no image file can be converted to, before any file is opened.
pub(super) fn refuse_channels(root: &Path, channels: ChannelPolicy) -> Result<(), DataError> {
    match channels {
        ChannelPolicy::Auto | ChannelPolicy::Exact(1..=4) => Ok(()),
        ChannelPolicy::Exact(expected) => {
            let found = "image files, which give 1 to 4".into();
            Err(DataError::Channels { path: root.to_path_buf(), expected, found, files: true })
        }
    }
}

/// The shape that all images of a folder are brought to.
pub(super) fn common_shape(root: &Path, scan: &Scan, config: &DataConfig) -> Result<ImageShape, DataError> {
    let channels = match config.channels {
        ChannelPolicy::Exact(channels) => channels,
        ChannelPolicy::Auto => uniform(&scan.files, |file| file.probe.shape.channels)
            .map_err(|(file, found, common)| DataError::MixedChannels { path: root.join(&file.path), found, common })?,
    };
    let ImageSize { height, width } = match config.image_size {
        Some(size) => size,
        None => uniform(&scan.files, |file| file.probe.shape.size())
            .map_err(|(file, found, common)| DataError::MixedSizes { path: root.join(&file.path), found, common })?,
    };
    Ok(ImageShape { channels, height, width })
}

/// The value of `key` that all files share; otherwise the first file that differs from the majority, its value and that of the majority. `files` is
/// not empty.
fn uniform<K: Copy + Ord + Default>(
    files: &[ImageFile],
    key: impl Fn(&ImageFile) -> K,
) -> Result<K, (&ImageFile, K, K)> {
    let mut counts = BTreeMap::new();
    for file in files {
        *counts.entry(key(file)).or_insert(0usize) += 1;
    }
    let common = counts.into_iter().max_by_key(|(_, count)| *count);
    let common = common.map(|(value, _)| value).unwrap_or_default();
    match files.iter().find(|file| key(file) != common) {
        None => Ok(common),
        Some(file) => Err((file, key(file), common)),
    }
}
