//! What can go wrong with data, in terms that the user of the data understands.
//!
//! Each variant says what was expected and what was found. Not here: what to do about it (`hint.rs`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{DataLayout, ImageShape, ImageSize};

/// A file that has the name of an image but cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Path relative to the data folder.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// Why, in words.
    pub reason: String,
}

/// As text, because JSON has no other form for paths.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", shown(&self.path), self.reason)
    }
}

/// An error in opening, reading or ordering data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A setting outside its range.
    #[error("`{key}` is {value}; expected {expected}")]
    Setting {
        /// Configuration key.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// What is accepted, in words.
        expected: &'static str,
    },
    /// Sequences or volumes expected of something that can only hold images.
    #[error("{} holds images, but `layout` is {layout}: only .npy and .npz arrays hold {layout}", shown(path))]
    Layout {
        /// The folder or file, or `digits`.
        path: PathBuf,
        /// The layout asked for.
        layout: DataLayout,
    },
    /// There is nothing at this path.
    #[error("no data at {}: no such file or folder", shown(path))]
    NotFound {
        /// The requested path.
        path: PathBuf,
    },
    /// The operating system reported an error.
    #[error("cannot {action} {}", shown(path))]
    Io {
        /// What was attempted, for example `read`.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A folder without any image.
    #[error("no images in {} ({other_files} other files)", shown(path))]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// Number of visible files without the name of an image.
        other_files: usize,
        /// An array file in the folder, which was probably meant.
        array: Option<PathBuf>,
    },
    /// A file of an unknown format.
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
        /// Number of files with the name of an image, including broken ones.
        total: usize,
        /// Allowed fraction.
        limit: f64,
    },
    /// Images of several sizes, and no training size given.
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
    /// Images with different numbers of channels, and no number given.
    #[error("images differ in channels: {} has {found}, most have {common}", shown(path))]
    MixedChannels {
        /// First image with another number of channels.
        path: PathBuf,
        /// Its number of channels.
        found: usize,
        /// The most frequent number.
        common: usize,
    },
    /// A number of channels that the source cannot provide.
    #[error("channels = {expected} was requested, but {} has {found}", shown(path))]
    Channels {
        /// The source.
        path: PathBuf,
        /// The requested number.
        expected: usize,
        /// What the source has, in words.
        found: String,
        /// Whether the source is image files, whose channels can be converted.
        files: bool,
    },
    /// A file that could be read when it was scanned and no longer can.
    #[error("cannot decode {}: {reason}", shown(path))]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// A file whose size or channels have changed since the scan.
    #[error("{} changed while in use: expected {expected}, found {found} (channels x height x width)", shown(path))]
    Changed {
        /// The file.
        path: PathBuf,
        /// Shape at the scan.
        expected: ImageShape,
        /// Shape now.
        found: ImageShape,
    },
    /// An array file that was written to since it was opened.
    #[error("{} changed while in use", shown(path))]
    Written {
        /// The file.
        path: PathBuf,
    },
    /// An array file that violates its format, or whose values cannot be images.
    #[error("{}: expected {expected}, found {found}", shown(path))]
    Format {
        /// The file (and the array within a `.npz`).
        path: PathBuf,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// An array with a shape that is not accepted.
    #[error("{}: expected {expected}, found {found}", shown(path))]
    Shape {
        /// The file (and the array within a `.npz`).
        path: PathBuf,
        /// The accepted shapes, in words.
        expected: &'static str,
        /// The shape that was found.
        found: String,
    },
    /// A file that is shorter than its header says.
    #[error("{} is truncated: its header promises {expected} bytes of values, found {found}", shown(path))]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Number of bytes according to the header.
        expected: u64,
        /// Number of bytes present.
        found: u64,
    },
    /// Values outside the accepted ranges.
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
    /// Values far outside the range that a network was trained on.
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
    /// Labels that do not match the images in number.
    #[error("{} has {labels} labels for {images} images", shown(path))]
    LabelCount {
        /// The file of the labels.
        path: PathBuf,
        /// Number of labels.
        labels: usize,
        /// Number of images.
        images: usize,
    },
    /// Conditions that do not match the examples.
    #[error("the conditions in {} do not fit: {reason}", shown(path))]
    Conditions {
        /// The folder or file of the conditions.
        path: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// An error in the data of the conditions.
    #[error(transparent)]
    OfConditions(Box<DataError>),
    /// A number of vectors that is not that of the examples.
    #[error("{} holds {rows} vectors for {examples} examples", shown(path))]
    Vectors {
        /// The file of the vectors.
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
    /// A batch that cannot be filled without repeating an image.
    #[error("batch_size is {batch_size}, but there are only {images} images to train on")]
    BatchTooLarge {
        /// Images per batch.
        batch_size: usize,
        /// Images in the training set.
        images: usize,
    },
    /// There are no further batch numbers.
    #[error("batch {0} is the last that can be numbered")]
    OutOfBatches(u64),
    /// A thread of the loader panicked.
    #[error("a loader thread failed at batch {batch}: {message}")]
    Worker {
        /// The batch that it was working on.
        batch: u64,
        /// The panic's message.
        message: String,
    },
    /// No thread could be started.
    #[error("cannot start a loader thread")]
    Thread(#[source] io::Error),
}

/// The first few broken files, and the number of others.
fn shortened(broken: &[Broken]) -> String {
    const SHOWN: usize = 3;
    let mut text = broken.iter().take(SHOWN).map(Broken::to_string).collect::<Vec<_>>().join("; ");
    if broken.len() > SHOWN {
        text.push_str(&format!("; and {} more", broken.len() - SHOWN));
    }
    text
}

/// A path for display: characters that would move a terminal's cursor or end the line are escaped.
pub fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// The same for any name.
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
    /// Wraps an operating system error; a missing path has its own variant.
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
