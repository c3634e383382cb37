//! Samples above the training images nearest to them, as one picture that shows what a distance looks like.
//!
//! Pairs are drawn in the given order. Not here: finding the nearest images.

use super::ReportError;
use super::curve::raster::{DENSITY, draw};
use super::curve::scene::{Anchor, Direction, INK, Label, Scene, Shape};
use super::curve::text;
use super::figures::significant;
use super::grid::{MAX_PIXELS, MAX_SIDE};
use super::raster::{Planes, png};
use crate::data::ImageBatch;

/// Images are magnified by the smallest integer factor that gives their shorter side this many pixels ...
const COMFORTABLE_SIDE: usize = 160;
/// ... but not so much that their longer side has more than this many.
const MAGNIFIED_SIDE: usize = 1024;
// The following are in units of the text, of DENSITY pixels each.
const TEXT: f64 = 13.0;
const EDGE: u32 = 8;
/// Distance between one pair and the next.
const GAP: u32 = 10;
/// Distance between a sample and its training image.
const BETWEEN: u32 = 4;
/// Room below a pair for its distance.
const CAPTION: u32 = 30;
/// If pairs were narrower, their captions would touch.
const LEAST_PITCH: u32 = 62;
/// Labels of the upper and the lower images.
const NAMES: [&[&str]; 2] = [&["sample"], &["training", "image"]];

/// How wide a picture of pairs may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairsOptions {
    /// Width in pixels. A row has as many pairs as fit, but at least one; further pairs go into further rows, all about equally long. By default, ten
    /// pairs of small images fit.
    pub width: usize,
}

impl Default for PairsOptions {
    fn default() -> Self {
        Self { width: 2240 }
    }
}

/// A PNG of pairs: sample i above training image i, with `distances[i]` below. Text is twice as large as on an ordinary screen, so that the picture
/// can be shown at half its size and is sharp on high-density ones.
///
/// Pixels are treated as in grids: clamped to `[0, 1]`, alpha composited on white, five and more channels side by side in grey.
///
/// # Errors
/// Batches of different shapes or with another number of distances, a pixel that is not finite, or a picture that is too large.
pub fn pairs_picture(
    samples: &ImageBatch,
    training: &ImageBatch,
    distances: &[f64],
    options: PairsOptions,
) -> Result<Vec<u8>, ReportError> {
    let upper = Planes::quantise(samples)?;
    let lower = Planes::quantise(training)?;
    if samples.shape != training.shape || samples.shape[0] != distances.len() {
        let (samples, training) = (samples.shape, training.shape);
        return Err(ReportError::Pairs { samples, training, distances: distances.len() });
    }
    let layout = Layout::new(distances.len(), upper.cell(), options)?;
    let mut picture = draw(&layout.scene(distances))?;
    for index in 0..distances.len() {
        for (row, planes) in [&upper, &lower].into_iter().enumerate() {
            let image = planes.native(index).composited_on_white().into_rgb();
            let at = layout.image(index, row).map(|side| (side * DENSITY) as usize);
            picture.paste(&image, at, layout.factor);
        }
    }
    png(&picture)
}

/// The position of everything, in units of the text.
struct Layout {
    count: usize,
    columns: usize,
    /// Magnification of images, in pixels.
    factor: usize,
    /// Width and height of a magnified image.
    cell: [u32; 2],
    /// Where the first column begins.
    left: u32,
    /// Width of a column.
    pitch: u32,
    size: [u32; 2],
}

impl Layout {
    fn new(count: usize, image: [usize; 2], options: PairsOptions) -> Result<Self, ReportError> {
        let density = DENSITY as usize;
        // Whole units, so that images are aligned with pixels.
        let comfortable = COMFORTABLE_SIDE.div_ceil(image[0].min(image[1]));
        let factor = comfortable.min(MAGNIFIED_SIDE / image[0].max(image[1])).max(1);
        let sides = image.map(|side| side.saturating_mul(factor).div_ceil(density));
        let left = EDGE as usize + names_width() as usize + GAP as usize;
        let pitch = sides[0].saturating_add(GAP as usize).max(LEAST_PITCH as usize);
        let fitting = (options.width / density).saturating_sub(left) / pitch;
        // Rows of about equal length look better than a last row of one.
        let rows = count.div_ceil(fitting.clamp(1, count));
        let columns = count.div_ceil(rows);
        let row = sides[1].saturating_mul(2).saturating_add((BETWEEN + CAPTION) as usize);
        let size = [
            columns.saturating_mul(pitch).saturating_add(left + EDGE as usize),
            rows.saturating_mul(row).saturating_add(2 * EDGE as usize),
        ];
        let [width, height] = size.map(|side| side.saturating_mul(density));
        if width.max(height) > MAX_SIDE || width * height > MAX_PIXELS {
            return Err(ReportError::GridTooLarge { width, height, max_side: MAX_SIDE, max_pixels: MAX_PIXELS });
        }
        // All of them are less than MAX_SIDE at this point.
        let narrow = |side: usize| side as u32;
        let (cell, size) = (sides.map(narrow), size.map(narrow));
        Ok(Self { count, columns, factor, cell, left: narrow(left), pitch: narrow(pitch), size })
    }

    /// The top left corner of an image: of the sample in row 0 of pair `index`, of the training image in row 1.
    fn image(&self, index: usize, row: usize) -> [u32; 2] {
        let [column, line] = [(index % self.columns) as u32, (index / self.columns) as u32];
        let pair = 2 * self.cell[1] + BETWEEN + CAPTION;
        let inset = (self.pitch - GAP - self.cell[0].min(self.pitch - GAP)) / 2;
        [self.left + column * self.pitch + inset, EDGE + line * pair + row as u32 * (self.cell[1] + BETWEEN)]
    }

    /// Names and distances.
    fn scene(&self, distances: &[f64]) -> Scene {
        let mut shapes = Vec::new();
        let mut text = |text: String, at: [f64; 2], anchor| {
            let label = Label { text, at, size: TEXT, colour: INK, anchor, direction: Direction::Right };
            shapes.push(Shape::Text(label));
        };
        for (index, &distance) in distances.iter().enumerate() {
            let [x, y] = self.image(index, 1).map(f64::from);
            let [width, height] = self.cell.map(f64::from);
            text(significant(distance, 3), [x + width / 2.0, y + height + 1.3 * TEXT], Anchor::Middle);
        }
        let right = f64::from(self.left - GAP);
        for first in (0..self.count).step_by(self.columns) {
            for (row, lines) in NAMES.into_iter().enumerate() {
                let middle = f64::from(self.image(first, row)[1]) + f64::from(self.cell[1]) / 2.0;
                let top = middle - 0.6 * TEXT * lines.len() as f64;
                for (line, name) in lines.iter().enumerate() {
                    let baseline = top + TEXT * (0.95 + 1.2 * line as f64);
                    text((*name).to_owned(), [right, baseline], Anchor::End);
                }
            }
        }
        Scene { width: self.size[0], height: self.size[1], shapes }
    }
}

fn names_width() -> f64 {
    NAMES.iter().flat_map(|lines| lines.iter()).map(|name| text::width(name, TEXT)).fold(0.0, f64::max).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageBatchError;

    fn batch(shape: [usize; 4]) -> ImageBatch {
        let count = shape.iter().product();
        ImageBatch::new(shape, (0..count).map(|i: usize| (i * 37 % 101) as f32 / 100.0).collect()).unwrap()
    }

    fn picture(shape: [usize; 4], width: usize) -> image::RgbImage {
        let distances: Vec<f64> = (0..shape[0]).map(|i| 0.01 * (i + 1) as f64).collect();
        let bytes = pairs_picture(&batch(shape), &batch(shape), &distances, PairsOptions { width }).unwrap();
        image::load_from_memory(&bytes).unwrap().into_rgb8()
    }

    #[test]
    fn ten_small_pairs_stand_in_a_row_and_wrap_where_it_is_narrow() {
        let layout = |shape: [usize; 2], width| Layout::new(10, shape, PairsOptions { width }).unwrap();
        let wide = layout([8, 8], PairsOptions::default().width);
        assert_eq!((wide.columns, wide.factor, wide.cell), (10, 20, [80, 80]));
        assert_eq!(layout([28, 28], 2240).columns, 10);
        assert_eq!(layout([8, 8], 1300).columns, 5);
        assert_eq!(layout([8, 8], 1).columns, 1);
        assert_eq!(layout([256, 256], 2240).columns, 5);
        for (width, columns) in [(2240, 10), (1300, 5), (1, 1)] {
            let Layout { size, .. } = layout([8, 8], width);
            let picture = picture([10, 1, 8, 8], width);
            assert_eq!(picture.dimensions(), (2 * size[0], 2 * size[1]));
            assert!(size[0] * 2 <= width as u32 || columns == 1);
        }
    }

    #[test]
    fn every_image_is_enlarged_by_a_whole_factor() {
        for channels in 1..=5 {
            let shape = [3, channels, 7, 5];
            let images = batch(shape);
            let planes = Planes::quantise(&images).unwrap();
            let picture = picture(shape, 2240);
            let layout = Layout::new(3, planes.cell(), PairsOptions::default()).unwrap();
            for (index, row) in [(0, 0), (0, 1), (1, 0), (2, 1)] {
                let expected = planes.native(index).composited_on_white().into_rgb();
                let [left, top] = layout.image(index, row).map(|side| side * DENSITY);
                for (at, pixel) in expected.pixels.chunks_exact(3).enumerate() {
                    let (x, y) = (at % expected.width, at / expected.width);
                    for offset in [0, layout.factor - 1] {
                        let at = [x, y].map(|side| (side * layout.factor + offset) as u32);
                        assert_eq!(picture.get_pixel(left + at[0], top + at[1]).0, pixel, "{channels} channels");
                    }
                }
            }
        }
    }

    #[test]
    fn there_is_text_beside_and_below() {
        let picture = picture([2, 1, 8, 8], 2240);
        let layout = Layout::new(2, [8, 8], PairsOptions::default()).unwrap();
        let dark = |x: std::ops::Range<u32>, y: std::ops::Range<u32>| {
            x.flat_map(|x| y.clone().map(move |y| (x, y))).filter(|&(x, y)| picture.get_pixel(x, y).0[0] < 100).count()
        };
        let [left, top] = layout.image(1, 1).map(|side| side * DENSITY);
        let [width, height] = layout.cell.map(|side| side * DENSITY);
        assert!(dark(left..left + width, top + height..picture.height()) > 100, "a distance");
        assert!(dark(0..(layout.left - GAP) * DENSITY, 0..picture.height()) > 500, "names");
        assert_eq!(dark(0..EDGE, 0..picture.height()), 0, "an edge");
    }

    #[test]
    fn what_does_not_match_is_refused() {
        let (two, three) = (batch([2, 1, 8, 8]), batch([3, 1, 8, 8]));
        let refused = |samples, training, distances: &[f64]| {
            pairs_picture(samples, training, distances, PairsOptions::default()).unwrap_err()
        };
        assert!(matches!(refused(&two, &three, &[0.1; 2]), ReportError::Pairs { .. }));
        assert!(matches!(refused(&two, &two, &[0.1; 3]), ReportError::Pairs { distances: 3, .. }));
        let empty = ImageBatch { shape: [0, 1, 8, 8], data: vec![] };
        assert!(matches!(refused(&empty, &empty, &[]), ReportError::Batch(ImageBatchError::Empty { .. })));
        let mut broken = two.clone();
        broken.data[70] = f32::NAN;
        assert!(matches!(refused(&two, &broken, &[0.1; 2]), ReportError::NonFinitePixel { image: 1, .. }));
        let flat = batch([1, 1, 1, 70_000]);
        assert!(matches!(refused(&flat, &flat, &[0.1]), ReportError::GridTooLarge { .. }));
        let odd = picture([2, 1, 3, 201], 2240);
        assert!(odd.width() > 201);
    }

    #[test]
    fn long_images_are_enlarged_no_more_than_fits() {
        for (image, factor) in
            [([64, 1], 16), ([410, 1], 2), ([1, 1024], 1), ([4096, 1], 1), ([1, 1], 160), ([3, 201], 5)]
        {
            let layout = Layout::new(10, image, PairsOptions::default()).unwrap();
            assert_eq!(layout.factor, factor, "{image:?}");
        }
    }
}
