//! How data are recognised: a digest for resumed runs, and a key for caches of what is computed from images. Not here: preparation, which changes
//! images but not data.

use std::path::Path;
use std::time::SystemTime;

use super::array::{ArraySource, Held};
use super::folder::ImageFile;
use super::raster::Samples;
use super::{DataError, ImageShape};
use crate::digest::Digest;

/// Number of values that are converted to bytes at a time.
const AT_ONCE: usize = 4096;

/// Digest of the paths and lengths of usable files.
pub(super) fn folder_digest(files: &[ImageFile]) -> String {
    let mut digest = Digest::new();
    digest.update(b"folder");
    for file in files {
        for part in file.path.components() {
            digest.update(part.as_os_str().as_encoded_bytes());
            digest.update(b"/");
        }
        digest.update(b"\0");
        digest.update(file.bytes.to_le_bytes());
    }
    digest.finish()
}

/// Combines the digests of examples and conditions.
pub(super) fn together(examples: &str, conditions: &str) -> String {
    let mut digest = Digest::new();
    digest.update(examples);
    digest.update(conditions);
    digest.finish()
}

/// Combines a folder's digest with where it is and the time when each file was last modified. Times alone would not tell folders apart whose files
/// have the same names and lengths: archives often hold the same time for all files.
pub(super) fn folder_cache_key(folder_digest: &str, root: &Path, files: &[ImageFile]) -> String {
    let mut digest = Digest::new();
    digest.update(folder_digest);
    // The folder of a file that is named alone is the empty path.
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    digest.update(root.as_os_str().as_encoded_bytes());
    for file in files {
        let nanoseconds = file.modified.map(|at| match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        });
        digest.update(nanoseconds.unwrap_or(i128::MIN).to_le_bytes());
    }
    digest.finish()
}

/// Digest of shape, values and labels.
///
/// # Errors
/// The file cannot be read to its end.
pub(super) fn array_digest(source: &ArraySource) -> Result<String, DataError> {
    let ImageShape { channels, height, width } = source.shape;
    let mut digest = Digest::new();
    digest.update(b"array");
    for side in [source.count, channels, height, width] {
        digest.update((side as u64).to_le_bytes());
    }
    let mut add = |samples: &Samples| match samples {
        Samples::U8(v) => digest.update(v),
        Samples::U16(v) => in_bytes(v, |v| v.to_le_bytes(), |bytes| digest.update(bytes)),
        Samples::F32(v) => in_bytes(v, |v| v.to_le_bytes(), |bytes| digest.update(bytes)),
    };
    match &source.samples {
        Held::Memory(samples) => add(samples),
        Held::Paged(array) => array.each_samples(|samples| add(&samples))?,
    }
    if let Some(classes) = &source.classes {
        classes.of_image.iter().for_each(|class| digest.update(class.to_le_bytes()));
        // The numbers of the classes alone would not distinguish labels 3 and 7 from 0 and 1.
        if !classes.named_by_number() {
            classes.names.iter().for_each(|name| digest.update(format!("{name}\0")));
        }
    }
    Ok(digest.finish())
}

/// Gives the bytes of values to `f`, those of many at a time, because a digest of single values would mostly call functions.
fn in_bytes<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N], mut f: impl FnMut(&[u8])) {
    let mut some = Vec::with_capacity(AT_ONCE * N);
    for values in values.chunks(AT_ONCE) {
        some.clear();
        values.iter().for_each(|&value| some.extend(bytes(value)));
        f(&some);
    }
}
