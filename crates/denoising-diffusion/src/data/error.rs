//! What can go wrong with data, in the terms of whoever brought the data.
//!
//! Each variant carries what was expected and what came. Not here: what to do about it (`hint.rs`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ImageShape, ImageSize};

/// A file that looks like an image by its name and could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Path relative to the data folder.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// Why, in words.
    pub reason: String,
}

/// JSON has no other names.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", shown(&self.path), self.reason)
    }
}

/// An error of opening, reading or ordering data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A setting outside its range.
    #[error("`{key}` is {value}; expected {expected}")]
    Setting {
        /// Configuration key.
        key: &'static str,
        /// The value that came.
        value: String,
        /// What is accepted, in words.
        expected: &'static str,
    },
    /// Nothing at this path.
    #[error("no data at {}: no such file or folder", shown(path))]
    NotFound {
        /// The path asked for.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", shown(path))]
    Io {
        /// What was attempted, for example `read`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A folder without a single image.
    #[error("no images in {} ({other_files} other files)", shown(path))]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// Number of visible files that are no images by their names.
        other_files: usize,
        /// An array file in the folder that was probably meant.
        array: Option<PathBuf>,
    },
    /// A file that is no known kind of data.
    #[error("{} is neither IDX, .npy nor .npz (first bytes {first_bytes})", shown(path))]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its first bytes in hexadecimal.
        first_bytes: String,
    },
    /// Neither a file nor a folder.
    #[error("{} is {kind}; expected a file or a folder", shown(path))]
    NotAFile {
        /// What is there.
        path: PathBuf,
        /// What it is, in words.
        kind: &'static str,
    },
    /// More broken files than allowed.
    #[error(
        "{} of {total} image files are broken ({:.1} %, at most {:.1} % allowed): {}",
        broken.len(), 100.0 * broken.len() as f64 / *total as f64, 100.0 * limit, shortened(broken)
    )]
    TooManyBroken {
        /// Every broken file.
        broken: Vec<Broken>,
        /// Number of image files by name, broken ones included.
        total: usize,
        /// Allowed fraction.
        limit: f64,
    },
    /// Images of several sizes and no training size.
    #[error(
        "images differ in size: {} is {} (height x width), most are {}",
        shown(path), found.full(), common.full()
    )]
    MixedSizes {
        /// First image of another size.
        path: PathBuf,
        /// Its size.
        found: ImageSize,
        /// The most frequent size.
        common: ImageSize,
    },
    /// Images with several numbers of channels and none asked for.
    #[error("images differ in channels: {} has {found}, most have {common}", shown(path))]
    MixedChannels {
        /// First image with another number.
        path: PathBuf,
        /// Its number of channels.
        found: usize,
        /// The most frequent number.
        common: usize,
    },
    /// A number of channels that the source cannot give.
    #[error("channels = {expected} was requested, but {} has {found}", shown(path))]
    Channels {
        /// The source.
        path: PathBuf,
        /// What was asked for.
        expected: usize,
        /// What it has, in words.
        found: String,
        /// Whether it is image files, whose channels can be converted.
        files: bool,
    },
    /// A file that was readable at the scan and no longer is.
    #[error("cannot decode {}: {reason}", shown(path))]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// A file whose size or channels are no longer those of the scan.
    #[error("{} changed while in use: expected {expected}, found {found} (channels x height x width)", shown(path))]
    Changed {
        /// The file.
        path: PathBuf,
        /// Shape at the scan.
        expected: ImageShape,
        /// Shape now.
        found: ImageShape,
    },
    /// An array file that breaks its format, or holds what cannot be images.
    #[error("{}: expected {expected}, found {found}", shown(path))]
    Format {
        /// The file (and the array within a `.npz`).
        path: PathBuf,
        /// What was expected.
        expected: String,
        /// What came.
        found: String,
    },
    /// An array that is none of the shapes that are read.
    #[error("{}: expected {expected}, found {found}", shown(path))]
    Shape {
        /// The file (and the array within a `.npz`).
        path: PathBuf,
        /// The shapes that are read, in words.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// A file that ends before its header says.
    #[error("{} is truncated: its header promises {expected} bytes of values, found {found}", shown(path))]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes promised by the header.
        expected: u64,
        /// Bytes present.
        found: u64,
    },
    /// Values outside of the accepted ranges.
    #[error("{}: values range from {min} to {max}; expected {}", shown(path), expected_range(*declared))]
    ValueRange {
        /// The file.
        path: PathBuf,
        /// Smallest value.
        min: f32,
        /// Largest value.
        max: f32,
        /// The declared range.
        declared: Option<[f64; 2]>,
    },
    /// Values far from those that a network was trained on.
    #[error(
        "{}: values range from {min} to {max}; the network was trained on values from {} to {}", shown(path), trained[0], trained[1]
    )]
    OtherUnits {
        /// The file.
        path: PathBuf,
        /// Smallest value.
        min: f32,
        /// Largest value.
        max: f32,
        /// What 0 and 1 stood for in training.
        trained: [f64; 2],
    },
    /// NaN or infinity.
    #[error("{}: value {value} of image {image} is not a finite number", shown(path))]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Index of the image.
        image: usize,
        /// The value.
        value: f32,
    },
    /// A labels array that does not belong to the images.
    #[error("{} has {labels} labels for {images} images", shown(path))]
    LabelCount {
        /// The labels' file.
        path: PathBuf,
        /// Number of labels.
        labels: usize,
        /// Number of images.
        images: usize,
    },
    /// Conditions that do not belong to the examples.
    #[error("the conditions in {} do not fit: {reason}", shown(path))]
    Conditions {
        /// The conditions' folder or file.
        path: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// An error of the conditions' own data.
    #[error(transparent)]
    OfConditions(Box<DataError>),
    /// Another number of vectors than of examples.
    #[error("{} holds {rows} vectors for {examples} examples", shown(path))]
    Vectors {
        /// The vectors' file.
        path: PathBuf,
        /// How many there are.
        rows: usize,
        /// How many there should be.
        examples: usize,
    },
    /// An index past the end.
    #[error("image {index} was requested, but the data have {len} images")]
    IndexOutOfRange {
        /// The index.
        index: usize,
        /// Number of images.
        len: usize,
    },
    /// A batch that the data cannot fill without repeating an image.
    #[error("batch_size is {batch_size}, but there are only {images} images to train on")]
    BatchTooLarge {
        /// Images per batch.
        batch_size: usize,
        /// Images in the training set.
        images: usize,
    },
    /// Batch numbers are used up.
    #[error("batch {0} is the last that can be numbered")]
    OutOfBatches(u64),
    /// Code of a loader thread panicked.
    #[error("a loader thread failed at batch {batch}: {message}")]
    Worker {
        /// The batch it worked on.
        batch: u64,
        /// The panic's message.
        message: String,
    },
    /// No thread could be started.
    #[error("cannot start a loader thread")]
    Thread(#[source] io::Error),
}

/// The first few broken files, and how many more there are.
fn shortened(broken: &[Broken]) -> String {
    const SHOWN: usize = 3;
    let mut text = broken.iter().take(SHOWN).map(Broken::to_string).collect::<Vec<_>>().join("; ");
    if broken.len() > SHOWN {
        text.push_str(&format!("; and {} more", broken.len() - SHOWN));
    }
    text
}

/// A path for people: what would move a terminal's cursor, or end the line, is escaped.
pub(super) fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// The same of any name.
pub(super) fn printable(name: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(escaped).collect()
}

fn expected_range(declared: Option<[f64; 2]>) -> String {
    match declared {
        Some([low, high]) => format!("[{low}, {high}]"),
        None => "[0, 1] or [-1, 1]".to_string(),
    }
}

impl DataError {
    /// Wraps an operating system error, giving a missing path its own variant.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            _ => Self::Io { action, path, source },
        }
    }

    pub(super) fn format(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Format { path: path.to_path_buf(), expected: expected.into(), found: found.into() }
    }
}
