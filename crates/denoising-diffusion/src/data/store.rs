//! Where the images of a dataset are held, prepared or not, and how one of them is read. Not here: what they are, and which belong together.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::folder::{ImageFile, Prepare};
use super::order::Mirror;
use super::paged::PagedArray;
use super::raster::{Raster, Samples};
use super::{DataConfig, DataError, ImageShape, ImageSize, ResizePolicy, decode, resize};

/// Where the values are held; whatever is in memory is prepared, channels last.
#[derive(Debug)]
pub(super) enum Store {
    /// `[n, h, w, c]`.
    Array(Samples),
    /// In a file of examples of this shape.
    Paged { array: Box<PagedArray>, shape: ImageShape, size: ImageSize },
    Files {
        root: PathBuf,
        files: Vec<ImageFile>,
        prepare: Prepare,
        /// `[h, w, c]` each, once it has been decoded; bit depths may differ. `None` if there is not enough room for all.
        kept: Option<Vec<OnceLock<Samples>>>,
    },
}

impl Store {
    /// Whether all images are in memory by now.
    pub(super) fn is_in_memory(&self) -> bool {
        match self {
            Self::Array(_) => true,
            Self::Paged { .. } => false,
            Self::Files { kept, .. } => {
                kept.as_ref().is_some_and(|kept| kept.iter().all(|samples| samples.get().is_some()))
            }
        }
    }

    /// Bytes of memory once all images, of this shape, have been read.
    pub(super) fn bytes_in_memory(&self, shape: ImageShape) -> u64 {
        match self {
            Self::Array(samples) => samples.bytes() as u64,
            Self::Files { files, kept: Some(_), .. } => bytes_of(files, shape),
            Self::Paged { .. } | Self::Files { kept: None, .. } => 0,
        }
    }

    /// Writes image `index`, which must exist, as `[c, h, w]` in [0, 1].
    pub(super) fn write(
        &self,
        index: usize,
        shape: ImageShape,
        policy: ResizePolicy,
        mirror: Mirror,
        out: &mut [f32],
    ) -> Result<(), DataError> {
        match self {
            Self::Array(samples) => samples.write_unit(index * shape.len(), shape, mirror, out),
            Self::Paged { array, shape, size } => {
                let (samples, shape) = resize::fit_array(array.example(index)?, *shape, *size, policy);
                samples.write_unit(0, shape, mirror, out);
            }
            Self::Files { root, files, prepare, kept } => {
                let kept = kept.as_ref().map(|kept| &kept[index]);
                if let Some(samples) = kept.and_then(OnceLock::get) {
                    samples.write_unit(0, shape, mirror, out);
                    return Ok(());
                }
                let file = &files[index];
                let path = root.join(&file.path);
                let raster = match decode::decode(&path) {
                    Ok(raster) => raster,
                    Err(reason) => return Err(DataError::Decode { path, reason: reason.to_string() }),
                };
                if raster.shape != file.probe.shape {
                    return Err(DataError::Changed { path, expected: file.probe.shape, found: raster.shape });
                }
                let prepared = prepare.apply(raster);
                prepared.samples.write_unit(0, shape, mirror, out);
                if let Some(kept) = kept {
                    // Another thread may have been faster, with the same result.
                    let _ = kept.set(prepared.samples);
                }
            }
        }
        Ok(())
    }
}

/// Room for the images of all files, with those that are already decoded; `None` if not all may be kept.
pub(super) fn kept(
    decoded: Vec<Option<Raster>>,
    files: &[ImageFile],
    shape: ImageShape,
    config: &DataConfig,
) -> Option<Vec<OnceLock<Samples>>> {
    let filled = |raster: Option<Raster>| match raster {
        Some(raster) => OnceLock::from(raster.samples),
        None => OnceLock::new(),
    };
    (bytes_of(files, shape) <= config.memory_limit()).then(|| decoded.into_iter().map(filled).collect())
}

/// Bytes of the prepared images of all files.
fn bytes_of(files: &[ImageFile], shape: ImageShape) -> u64 {
    files.iter().map(|file| shape.len() as u64 * u64::from(file.probe.bits / 8)).sum()
}
