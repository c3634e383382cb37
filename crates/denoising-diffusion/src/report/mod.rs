//! What a person looks at: sample grids, trajectories, loss curves, the run log, the progress line, and an evaluation as a table
//! and as a page.
//!
//! Everything here takes plain numbers and writes files (or stderr, or returns text). It knows no tensor, no network and no trainer;
//! whoever has tensors copies them into an [`ImageBatch`] first.

pub mod curve;
pub mod gif;
pub mod grid;
pub mod log;
pub mod page;
pub mod pairs;
pub mod progress;
pub mod sequences;
pub mod table;

mod figures;
mod files;
mod raster;

use std::path::{Path, PathBuf};

pub use curve::{CurveOptions, Series, Smoothing, YScale, save_curve_png, save_curve_svg};
pub use figures::thousands;
pub use gif::TrajectoryGif;
pub use grid::{GridOptions, Scale, check_grid, grid_png, save_grid, save_images};
pub use log::{Record, RunLog};
pub use page::{History, Page};
pub use pairs::{PairsOptions, pairs_picture};
pub use progress::{NoProgress, Progress, Status, StderrProgress, Task};
pub use sequences::{SequenceSet, save_sequences, sequences_svg};
pub use table::{table, table_within};

/// A batch of images on the host, `[n, c, h, w]` in row-major order.
///
/// Pixels are nominally in `[0, 1]`; what lies outside is clamped when the image is quantised, what is not finite is
/// an error then.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// `[n, c, h, w]`: images, channels, rows, columns.
    pub shape: [usize; 4],
    /// `n * c * h * w` pixels.
    pub data: Vec<f32>,
}

impl ImageBatch {
    /// A batch whose `data` fills `shape` exactly.
    ///
    /// # Errors
    /// [`ReportError::EmptyShape`] when a dimension is zero, [`ReportError::DataLength`] when `data` has another
    /// number of pixels than `shape` asks for.
    pub fn new(shape: [usize; 4], data: Vec<f32>) -> Result<Self, ReportError> {
        let batch = Self { shape, data };
        batch.validate()?;
        Ok(batch)
    }

    /// Each image behind what it belongs to, `[2 n, c, h, w]`; grey beside colour becomes colour. `None` if the two cannot stand side by
    /// side: other sizes, or channels that are no grey or colour.
    pub fn beside(&self, conditions: &Self) -> Option<Self> {
        let shape = Self::shape_beside(self.shape, conditions.shape)?;
        let ([n, c, h, w], k) = (self.shape, conditions.shape[1]);
        let (channels, plane) = (shape[1], h * w);
        let mut data = Vec::with_capacity(2 * n * channels * plane);
        for i in 0..n {
            for (batch, own) in [(conditions, k), (self, c)] {
                let image = &batch.data[i * own * plane..][..own * plane];
                (0..channels / own).for_each(|_| data.extend_from_slice(image));
            }
        }
        Some(Self { shape, data })
    }

    /// The shape of images of a shape [behind](Self::beside) conditions of another.
    pub fn shape_beside([n, c, h, w]: [usize; 4], conditions: [usize; 4]) -> Option<[usize; 4]> {
        let k = conditions[1];
        let drawn = matches!((c, k), (1 | 3, 1 | 3)) || c == k;
        (drawn && conditions == [n, k, h, w]).then_some([2 * n, c.max(k), h, w])
    }

    /// Holds the fields, which are public, to what [`ImageBatch::new`] promises.
    fn validate(&self) -> Result<(), ReportError> {
        let shape = self.shape;
        if shape.contains(&0) {
            return Err(ReportError::EmptyShape { shape });
        }
        let expected = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        if expected != Some(self.data.len()) {
            return Err(ReportError::DataLength { shape, expected, actual: self.data.len() });
        }
        Ok(())
    }
}

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A dimension of a batch is zero.
    #[error("images of shape {shape:?} ([n, c, h, w]) hold nothing: every dimension must be at least 1")]
    EmptyShape {
        /// `[n, c, h, w]`.
        shape: [usize; 4],
    },
    /// A batch's data does not fill its shape.
    #[error("images of shape {shape:?} ([n, c, h, w]) need {} pixels, but {actual} were given",
        expected.map_or_else(|| "more than addressable".to_owned(), |count| count.to_string()))]
    DataLength {
        /// `[n, c, h, w]`.
        shape: [usize; 4],
        /// The product of `shape`; `None` when it overflows.
        expected: Option<usize>,
        /// Length of the data.
        actual: usize,
    },
    /// Images where sequences are wanted.
    #[error("data of shape {shape:?} ([n, c, h, w]) are no sequences, which have height 1")]
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
    /// The grid would be larger than the file formats or the memory reasonably hold.
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
        /// The step that the frame was given for.
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
        /// Points in all series together.
        given: usize,
        /// Name of the y axis' scale.
        scale: &'static str,
    },
    /// The drawing surface cannot be made.
    #[error(
        "a curve of {width} x {height} pixels cannot be drawn: sides from {min_width} x {min_height} to 8192 pixels are possible"
    )]
    CurveSize {
        /// Width asked for, in pixels.
        width: u32,
        /// Height asked for, in pixels.
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
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A record cannot be written as one line with a step.
    #[error("a log record must be an object with a whole number under \"step\", but got {record}")]
    LogRecord {
        /// What was to be written.
        record: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The PNG encoder refused.
    #[error("cannot encode {} as PNG", path.display())]
    Png {
        /// The file to be written.
        path: PathBuf,
        /// Why not.
        source: image::ImageError,
    },
    /// The PNG encoder refused a picture that was to become part of another file.
    #[error("cannot encode a picture as PNG")]
    PngInMemory {
        /// Why not.
        source: image::ImageError,
    },
    /// Pairs need as many samples as training images, of one shape, and as many distances.
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
    /// The GIF encoder refused.
    #[error("cannot encode {} as GIF", path.display())]
    Gif {
        /// The file to be written.
        path: PathBuf,
        /// Why not.
        source: ::gif::EncodingError,
    },
}

impl ReportError {
    /// For `map_err`: an I/O error with its place.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_must_fill_its_shape() {
        assert!(ImageBatch::new([1, 2, 3, 4], vec![0.0; 24]).is_ok());
        let error = ImageBatch::new([1, 2, 3, 4], vec![0.0; 23]).unwrap_err();
        assert!(matches!(error, ReportError::DataLength { expected: Some(24), actual: 23, .. }));
        let error = ImageBatch::new([0, 1, 8, 8], vec![]).unwrap_err();
        assert!(matches!(error, ReportError::EmptyShape { shape: [0, 1, 8, 8] }));
        let error = ImageBatch::new([usize::MAX, 2, 1, 1], vec![]).unwrap_err();
        assert!(matches!(error, ReportError::DataLength { expected: None, .. }));
    }
}
