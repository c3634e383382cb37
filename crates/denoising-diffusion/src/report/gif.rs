//! How noise becomes images: a sequence of grids as an animated GIF.
//!
//! Of the steps of a sampler, an even selection is shown, because a thousand frames show no more than a few dozen, and noise does not compress. Not
//! here: which steps there are (the sampler).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use gif::{Encoder, Frame, Repeat};

use super::raster::{Planes, Raster};
use super::{GridOptions, ReportError, files};
use crate::data::ImageBatch;

/// The largest number of frames of an animation.
pub const MAX_FRAMES: usize = 64;
/// How long the last frame is shown, in hundredths of a second.
const HOLD_CS: u16 = 200;
/// How long all frames before the last are shown together, in hundredths of a second.
const MOTION_CS: usize = 500;
/// Limits of the duration of a frame, in hundredths of a second: viewers slow down faster frames.
const FRAME_CS: [usize; 2] = [4, 25];
/// NeuQuant's sampling factor: 1 is best and slowest, 30 worst and fastest.
const QUANTISER_SPEED: i32 = 10;

/// Collects the states of a sampling run and writes them as an animated GIF that repeats for ever.
///
/// At most [`MAX_FRAMES`] of the run's steps are kept, evenly spaced and including the first and the last. The motion takes about five seconds, then
/// the last frame is held for two. Grey grids keep their 256 levels exactly; coloured ones get a palette of 256 colours per frame.
///
/// ```no_run
/// use denoising_diffusion::data::{ImageBatch, ImageBatchError};
/// use denoising_diffusion::report::{GridOptions, ReportError, TrajectoryGif};
///
/// # fn state(step: usize) -> Result<ImageBatch, ImageBatchError> { ImageBatch::new([1, 1, 2, 2], vec![step as f32 / 250.0; 4]) }
/// let mut gif = TrajectoryGif::new(250, GridOptions::default());
/// for step in 0..250 {
///     if gif.wants(step) {
///         gif.push(step, &state(step)?)?;
///     }
/// }
/// gif.save("trajectory.gif")?;
/// # Ok::<(), ReportError>(())
/// ```
pub struct TrajectoryGif {
    steps: usize,
    options: GridOptions,
    shape: Option<[usize; 4]>,
    /// By step.
    frames: BTreeMap<usize, Planes>,
}

impl TrajectoryGif {
    /// For a run of `steps` states, counted from 0.
    pub fn new(steps: usize, options: GridOptions) -> Self {
        Self { steps, options, shape: None, frames: BTreeMap::new() }
    }

    /// Whether the state of `step` will be kept. Ask this before copying images from a device.
    pub fn wants(&self, step: usize) -> bool {
        if self.steps <= MAX_FRAMES {
            return step < self.steps;
        }
        // Frame i shows step round(i (steps - 1) / (MAX_FRAMES - 1)); does some i give this step?
        let (last_step, last_frame) = (self.steps - 1, MAX_FRAMES - 1);
        let shown = |frame: usize| (2 * frame * last_step + last_frame) / (2 * last_frame);
        let near = step.saturating_mul(last_frame) / last_step;
        (near..=near + 1).any(|frame| frame <= last_frame && shown(frame) == step)
    }

    /// Adds the state of `step`; a state that is not [wanted](Self::wants) is ignored.
    ///
    /// Pixels outside `[0, 1]`, which noisy states have, are clamped.
    ///
    /// # Errors
    /// A malformed batch, a pixel that is not finite, or images of another shape than before.
    pub fn push(&mut self, step: usize, images: &ImageBatch) -> Result<(), ReportError> {
        self.push_part(step, 0, images.shape[0], images)
    }

    /// The same for the images from `first` on of the `count` that a state has; those that are not added are black. Steps and parts come in any order.
    ///
    /// # Errors
    /// As [`push`](Self::push); also images beyond `count`.
    pub fn push_part(
        &mut self,
        step: usize,
        first: usize,
        count: usize,
        images: &ImageBatch,
    ) -> Result<(), ReportError> {
        if !self.wants(step) {
            return Ok(());
        }
        let [n, c, h, w] = images.shape;
        let expected = *self.shape.get_or_insert([count, c, h, w]);
        if [count, c, h, w] != expected || first.checked_add(n).is_none_or(|end| end > count) {
            return Err(ReportError::FrameShape { frame: step, expected, actual: images.shape });
        }
        let part = Planes::quantise(images)?;
        self.frames.entry(step).or_insert_with(|| Planes::black(expected)).put(first, &part);
        Ok(())
    }

    /// Number of bytes that the frames of states of this shape, `[n, c, h, w]`, take until they are written.
    pub fn bytes(&self, shape: [usize; 4]) -> usize {
        shape.iter().fold(self.steps.min(MAX_FRAMES), |bytes, &side| bytes.saturating_mul(side))
    }

    /// Number of frames kept so far.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Writes the animation. The file is either complete or absent; parent folders are created.
    ///
    /// # Errors
    /// No frame was kept, the grid is too large, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), ReportError> {
        let path = path.as_ref();
        let failed = |source| ReportError::Gif { path: path.to_owned(), source };
        let frames: Vec<&Planes> = self.frames.values().collect();
        let Some((last, motion)) = frames.split_last() else {
            return Err(ReportError::NoFrames);
        };
        let delay = (MOTION_CS / motion.len().max(1)).clamp(FRAME_CS[0], FRAME_CS[1]) as u16;
        let last = last.grid(self.options)?;
        let greys: Vec<u8> = (0..=255).flat_map(|level| [level; 3]).collect();
        let palette: &[u8] = if last.channels == 1 { &greys } else { &[] };
        let mut bytes = Vec::new();
        // A grid has at most u16::MAX pixels on a side.
        let mut encoder = Encoder::new(&mut bytes, last.width as u16, last.height as u16, palette).map_err(failed)?;
        encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
        for planes in motion {
            encoder.write_frame(&frame(planes.grid(self.options)?, delay)).map_err(failed)?;
        }
        encoder.write_frame(&frame(last, HOLD_CS)).map_err(failed)?;
        drop(encoder);
        files::write(path, &bytes)
    }
}

/// The levels of a grey grid are indices into the animation's palette of greys; a coloured grid has its own palette.
fn frame(grid: Raster, delay: u16) -> Frame<'static> {
    let (width, height) = (grid.width as u16, grid.height as u16);
    let frame = if grid.channels == 1 {
        Frame { width, height, buffer: Cow::Owned(grid.pixels), ..Frame::default() }
    } else {
        Frame::from_rgb_speed(width, height, &grid.pixels, QUANTISER_SPEED)
    };
    Frame { delay, ..frame }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(path: &Path) -> (usize, usize, Vec<(u16, Vec<u8>)>) {
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(std::fs::File::open(path).unwrap()).unwrap();
        let size = (decoder.width().into(), decoder.height().into());
        let mut frames = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            frames.push((frame.delay, frame.buffer.to_vec()));
        }
        (size.0, size.1, frames)
    }

    fn record(steps: usize, channels: usize) -> (tempfile::TempDir, TrajectoryGif) {
        let mut gif = TrajectoryGif::new(steps, GridOptions::default());
        for step in 0..steps {
            let level = |i: usize| ((i * 7 + step) % 97) as f32 / 96.0;
            let images = ImageBatch::new([3, channels, 4, 4], (0..48 * channels).map(level).collect()).unwrap();
            gif.push(step, &images).unwrap();
        }
        (tempfile::tempdir().unwrap(), gif)
    }

    #[test]
    fn a_long_run_is_subsampled_and_its_end_is_held() {
        let (folder, gif) = record(1000, 1);
        assert_eq!(gif.frames(), MAX_FRAMES);
        let path = folder.path().join("deep/trajectory.gif");
        gif.save(&path).unwrap();
        let (width, height, frames) = decode(&path);
        let expected = gif.frames[&999].grid(GridOptions::default()).unwrap();
        assert_eq!((width, height), (expected.width, expected.height));
        assert_eq!(frames.len(), MAX_FRAMES);
        assert!(frames[..MAX_FRAMES - 1].iter().all(|frame| frame.0 == 7));
        assert_eq!(frames[MAX_FRAMES - 1].0, 200);
        let greys: Vec<u8> = frames[MAX_FRAMES - 1].1.chunks_exact(4).map(|rgba| rgba[0]).collect();
        assert_eq!(greys, expected.pixels, "greys are exact");
    }

    #[test]
    fn colours_come_close() {
        let (folder, gif) = record(3, 3);
        let path = folder.path().join("trajectory.gif");
        gif.save(&path).unwrap();
        let (_, _, frames) = decode(&path);
        assert_eq!(frames.iter().map(|frame| frame.0).collect::<Vec<_>>(), [25, 25, 200]);
        for (frame, planes) in frames.iter().zip(gif.frames.values()) {
            let grid = planes.grid(GridOptions::default()).unwrap();
            let drawn = frame.1.chunks_exact(4).flat_map(|rgba| &rgba[..3]);
            assert!(drawn.zip(&grid.pixels).all(|(&a, &b)| a.abs_diff(b) <= 8));
        }
    }

    #[test]
    fn parts_in_any_order_make_the_same_frames() {
        let (_folder, whole) = record(2, 1);
        let mut gif = TrajectoryGif::new(2, GridOptions::default());
        for (step, first, n) in [(1, 2, 1), (0, 1, 2), (1, 0, 2), (0, 0, 1)] {
            let level = |i: usize| ((i * 7 + step) % 97) as f32 / 96.0;
            let part = ImageBatch::new([n, 1, 4, 4], (16 * first..16 * (first + n)).map(level).collect()).unwrap();
            gif.push_part(step, first, 3, &part).unwrap();
            let beyond = gif.push_part(step, 4 - n, 3, &part);
            assert!(matches!(beyond, Err(ReportError::FrameShape { .. })));
        }
        let states = |gif: &TrajectoryGif| {
            gif.frames
                .values()
                .flat_map(|frame| frame.grid(GridOptions::default()).unwrap().pixels)
                .collect::<Vec<u8>>()
        };
        assert_eq!(states(&gif), states(&whole));
        assert_eq!((gif.bytes([3, 1, 4, 4]), whole.bytes([usize::MAX, 1, 2, 2])), (2 * 48, usize::MAX));
    }

    #[test]
    fn refuses_what_is_no_animation() {
        let gif = TrajectoryGif::new(10, GridOptions::default());
        assert!(matches!(gif.save("never-written.gif"), Err(ReportError::NoFrames)));
        let (_folder, mut gif) = record(2, 1);
        let other = ImageBatch::new([2, 1, 4, 4], vec![0.0; 32]).unwrap();
        assert!(matches!(gif.push(1, &other), Err(ReportError::FrameShape { frame: 1, .. })));
        let broken = ImageBatch::new([3, 1, 4, 4], vec![f32::INFINITY; 48]).unwrap();
        assert!(matches!(gif.push(1, &broken), Err(ReportError::NonFinitePixel { .. })));
    }

    proptest! {
        #[test]
        fn an_even_selection_with_both_ends(steps in 1_usize..5000) {
            let gif = TrajectoryGif::new(steps, GridOptions::default());
            let kept: Vec<usize> = (0..steps + 3).filter(|&step| gif.wants(step)).collect();
            prop_assert_eq!(kept.len(), steps.min(MAX_FRAMES));
            prop_assert_eq!(kept[0], 0);
            prop_assert_eq!(kept[kept.len() - 1], steps - 1);
            let gaps: Vec<usize> = kept.windows(2).map(|pair| pair[1] - pair[0]).collect();
            if let (Some(least), Some(most)) = (gaps.iter().min(), gaps.iter().max()) {
                prop_assert!(most - least <= 1);
            }
        }
    }
}
