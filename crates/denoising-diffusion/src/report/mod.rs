//! Results for people: sample grids, trajectories, loss curves, the run log, the progress line, and an evaluation as a table and as a page.
//!
//! Everything here takes plain numbers and writes files (or stderr, or returns text). Not here: tensors, networks and trainers; callers copy tensors
//! into an [`ImageBatch`](crate::data::ImageBatch) first.

pub mod curve;
pub mod gif;
pub mod grid;
pub mod log;
pub mod page;
pub mod pairs;
pub mod progress;
pub mod sequences;
pub mod table;
pub mod tensorboard;

mod figures;
mod files;
mod raster;

use std::path::{Path, PathBuf};

use crate::data::ImageBatchError;

pub use curve::{CurveOptions, Series, Smoothing, YScale, save_curve_png, save_curve_svg};
pub use figures::thousands;
pub use gif::TrajectoryGif;
pub use grid::{GridOptions, Scale, check_grid, grid_png, save_grid, save_images};
pub use log::{Record, RunLog};
pub use page::{History, Page};
pub use pairs::{PairsOptions, pairs_picture};
pub use progress::{Progress, Status, StderrProgress};
pub use sequences::{MOST_SEQUENCES, SequenceSet, save_sequences, sequences_svg};
pub use table::{table, table_within};

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A batch whose data do not fill its shape.
    #[error(transparent)]
    Batch(#[from] ImageBatchError),
    /// Images where sequences are expected.
    #[error("data of shape {shape:?} ([n, c, h, w]) are not sequences, which have height 1")]
    NotSequences {
        /// `[n, c, h, w]`.
        shape: [usize; 4],
    },
    /// A pixel is NaN or infinite.
    #[error(
        "image {image} has the pixel value {value} in channel {channel}, row {row}, column {column}: only finite values can be drawn"
    )]
    NonFinitePixel {
        /// Index of the image in its batch.
        image: usize,
        /// Channel of the first such pixel.
        channel: usize,
        /// Row of the first such pixel.
        row: usize,
        /// Column of the first such pixel.
        column: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The grid would be larger than file formats or memory allow.
    #[error(
        "a grid of {width} x {height} pixels is too large (at most {max_side} on a side and {max_pixels} in all): draw fewer images or write them one per file"
    )]
    GridTooLarge {
        /// Width of the grid in pixels.
        width: usize,
        /// Height of the grid in pixels.
        height: usize,
        /// The largest side in pixels.
        max_side: usize,
        /// The largest area in pixels.
        max_pixels: usize,
    },
    /// The frames of an animation differ in shape.
    #[error("frame {frame} has images of shape {actual:?}, the first frame has {expected:?}")]
    FrameShape {
        /// The step that the frame belongs to.
        frame: usize,
        /// Shape of the first frame.
        expected: [usize; 4],
        /// Shape of this one.
        actual: [usize; 4],
    },
    /// An animation without frames.
    #[error("an animation needs at least one frame")]
    NoFrames,
    /// No series has a point that can be drawn.
    #[error("none of the {given} points can be drawn on a {scale} axis: they must be finite{}",
        if *scale == "logarithmic" { " and above zero" } else { "" })]
    NoPoints {
        /// Total number of points in all series.
        given: usize,
        /// Name of the y axis's scale.
        scale: &'static str,
    },
    /// A picture of this size cannot be drawn.
    #[error(
        "a curve of {width} x {height} pixels cannot be drawn: sides from {min_width} x {min_height} to 8192 pixels are possible"
    )]
    CurveSize {
        /// Requested width in pixels.
        width: u32,
        /// Requested height in pixels.
        height: u32,
        /// The smallest width in pixels.
        min_width: u32,
        /// The smallest height in pixels.
        min_height: u32,
    },
    /// A line of the log is not a record.
    #[error("{}, line {line}: {reason}", path.display())]
    LogLine {
        /// The log.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A record that cannot be written as one line with a step.
    #[error("a log record must be an object with a whole number under \"step\", but got {record}")]
    LogRecord {
        /// The record.
        record: String,
    },
    /// The operating system reported an error.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The PNG encoder failed.
    #[error("cannot encode {} as PNG", path.display())]
    Png {
        /// The file to be written.
        path: PathBuf,
        /// The cause.
        source: image::ImageError,
    },
    /// The PNG encoder failed on a picture for another file.
    #[error("cannot encode a picture as PNG")]
    PngInMemory {
        /// The cause.
        source: image::ImageError,
    },
    /// Pairs need equal numbers of samples, training images and distances, and images of one shape.
    #[error(
        "pairs of samples {samples:?}, training images {training:?} ([n, c, h, w]) and {distances} distances do not match"
    )]
    Pairs {
        /// Shape of the samples.
        samples: [usize; 4],
        /// Shape of the training images.
        training: [usize; 4],
        /// Number of distances.
        distances: usize,
    },
    /// The GIF encoder failed.
    #[error("cannot encode {} as GIF", path.display())]
    Gif {
        /// The file to be written.
        path: PathBuf,
        /// The cause.
        source: ::gif::EncodingError,
    },
}

impl ReportError {
    /// For `map_err`: an I/O error with its action and path.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
