//! Image batches as PNG: one grid to look at, or one file per image at native size.
//!
//! A pixel x becomes the byte floor(clamp(255 x + 0.5, 0, 255)), as in torchvision's `save_image`. Colours by number of channels:
//!
//! | channels | grid | single files |
//! |---|---|---|
//! | 1 | grey | grey |
//! | 2 | grey and alpha, composited on white | grey with alpha |
//! | 3 | RGB | RGB |
//! | 4 | RGBA, composited on white | RGBA |
//! | 5 and more | one grey plane per channel, side by side in one cell | the same |
//!
//! Not here: reading images (`data`).

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use rayon::prelude::*;

use super::ReportError;
use super::raster::{Planes, png, write_one_of_many, write_png};
use crate::data::{ImageBatch, ImageBatchError};

/// Images are magnified until their shorter side has at least this many pixels.
const COMFORTABLE_SIDE: usize = 64;
/// Images are not magnified so much that a side of the grid exceeds this many pixels.
const MAGNIFIED_GRID_SIDE: usize = 2048;
/// The largest side of a grid in pixels, which is that of a GIF.
pub(super) const MAX_SIDE: usize = u16::MAX as usize;
/// The largest area of a grid in pixels.
pub(super) const MAX_PIXELS: usize = 1 << 28;

/// How large images are drawn in a grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// The smallest integer factor that makes the shorter side at least 64 pixels (8 x 8 is drawn at 64 x 64, 28 x 28 at 84 x 84, 32 x 32 at 64 x 64;
    /// 64 x 64 and larger are not magnified), unless a side of the grid would exceed 2048 pixels; then less.
    #[default]
    Auto,
    /// This factor, by nearest neighbour.
    Factor(NonZeroUsize),
}

/// How a grid is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridOptions {
    /// Images per row; `None`: see [`columns_for`].
    pub columns: Option<NonZeroUsize>,
    /// Number of kinds that the images go through in turn; each kind gets a row, and `columns` is ignored.
    pub kinds: Option<NonZeroUsize>,
    /// Pixels between the images and around the grid.
    pub padding: usize,
    /// Magnification.
    pub scale: Scale,
    /// Grey level of the padding and of cells without an image; dark grey by default, so that the edges of black images can be seen and an empty cell
    /// does not look like a black image.
    pub background: u8,
}

impl Default for GridOptions {
    fn default() -> Self {
        Self { columns: None, kinds: None, padding: 2, scale: Scale::Auto, background: 64 }
    }
}

impl GridOptions {
    /// One row per class, if the classes come in turn and each at least twice.
    pub fn of_classes(classes: Option<&[u32]>) -> Self {
        let classes = classes.unwrap_or_default();
        let kinds = classes.iter().skip(1).position(|class| Some(class) == classes.first()).map_or(0, |at| at + 1);
        let in_turn = classes.iter().enumerate().all(|(i, class)| i < kinds || classes[i - kinds] == *class);
        let several = kinds > 1 && classes.len() >= 2 * kinds && in_turn;
        Self { kinds: NonZeroUsize::new(kinds).filter(|_| several), ..Self::default() }
    }
}

impl GridOptions {
    /// For `count` pairs of images, with the two images of each pair side by side.
    pub fn of_pairs(count: usize) -> Self {
        // A pair is twice as wide as high, so half as many columns of pairs give a square.
        let pairs = (1..).find(|pairs| 2 * pairs * pairs >= count).unwrap_or(1);
        Self { columns: NonZeroUsize::new(2 * pairs), ..Self::default() }
    }

    /// For `count` images, `variants` in a row of each picture: no picture's variants are on two lines.
    pub fn of_variants(count: usize, variants: usize) -> Self {
        let pictures = (1..).find(|pictures| (pictures * variants).pow(2) >= count).unwrap_or(1);
        let columns = NonZeroUsize::new(pictures * variants).filter(|_| variants > 1);
        Self { columns, ..Self::default() }
    }
}

/// Number of columns for a pleasing grid of `count` images: about square, rather wide than high, with few empty cells.
///
/// It minimises 2 x (empty cells) + (columns - rows), starting at ceil(sqrt(count)); ties go to the grid with fewer empty cells: 10 images form 5 x
/// 2, 32 form 8 x 4, 25 form 5 x 5, 7 form 4 + 3.
pub fn columns_for(count: usize) -> usize {
    let square = (1..).find(|side| side * side >= count).unwrap_or(1);
    let cost = |columns: usize| {
        let rows = count.div_ceil(columns);
        let empty = columns * rows - count;
        (2 * empty + columns.abs_diff(rows), empty)
    };
    (square..=2 * square).min_by_key(|&columns| cost(columns)).unwrap_or(square)
}

/// Checks, before there are any images, that images of shape `[n, c, h, w]` fit into a grid.
///
/// # Errors
/// No images, or a grid that is too large.
pub fn check_grid(shape: [usize; 4], options: GridOptions) -> Result<(), ReportError> {
    if shape.contains(&0) {
        return Err(ImageBatchError::Empty { shape }.into());
    }
    Geometry::new(shape[0], cell(shape), options).map(|_| ())
}

/// Width and height of an image of this shape as it is drawn, before magnification.
pub(super) fn cell([_, c, h, w]: [usize; 4]) -> [usize; 2] {
    [if c > 4 { c * w } else { w }, h]
}

/// Writes `images` as one PNG.
///
/// The file is either complete or absent; parent folders are created.
///
/// # Errors
/// A malformed batch, a pixel that is not finite, a grid that is too large, or a file that cannot be written.
pub fn save_grid(path: impl AsRef<Path>, images: &ImageBatch, options: GridOptions) -> Result<(), ReportError> {
    let path = path.as_ref();
    let grid = Planes::quantise(images)?.grid(options)?;
    write_png(path, &grid)
}

/// The same grid as the bytes of a PNG, to be embedded in another file.
///
/// # Errors
/// A malformed batch, a pixel that is not finite, or a grid that is too large.
pub fn grid_png(images: &ImageBatch, options: GridOptions) -> Result<Vec<u8>, ReportError> {
    png(&Planes::quantise(images)?.grid(options)?)
}

/// Writes each image at its native size: `000000.png` and so on in `folder`, numbered from `start_index`.
///
/// Each file is either complete or absent, whatever happens to the process; the device is not waited for, so that a power failure can take the last
/// seconds' files. Nothing is written if a pixel of any image is not finite.
///
/// # Errors
/// A malformed batch, a pixel that is not finite, or a file that cannot be written.
pub fn save_images(folder: impl AsRef<Path>, images: &ImageBatch, start_index: usize) -> Result<(), ReportError> {
    let planes = Planes::quantise(images)?;
    let folder = folder.as_ref();
    fs::create_dir_all(folder).map_err(ReportError::io("create folder", folder))?;
    (0..images.shape[0]).into_par_iter().try_for_each(|index| {
        let path = folder.join(format!("{:06}.png", start_index + index));
        write_one_of_many(&path, &planes.native(index))
    })
}

/// The layout of a grid in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub columns: usize,
    kinds: Option<NonZeroUsize>,
    pub scale: usize,
    /// Width and height of a magnified cell, without padding.
    pub cell: [usize; 2],
    pub padding: usize,
    /// Width and height of the grid.
    pub size: [usize; 2],
}

impl Geometry {
    /// `cell` is the width and height of one image before magnification.
    pub fn new(count: usize, cell: [usize; 2], options: GridOptions) -> Result<Self, ReportError> {
        let (columns, rows) = match options.kinds {
            Some(kinds) => (count.div_ceil(kinds.get()), kinds.get().min(count)),
            None => {
                let columns = options.columns.map_or_else(|| columns_for(count), |columns| columns.get().min(count));
                (columns, count.div_ceil(columns))
            }
        };
        // Saturating, so that an absurd size is reported by the check below instead of wrapping around to a small one.
        let side = |cells: usize, pixels: usize, scale: usize| {
            let pitch = pixels.saturating_mul(scale).saturating_add(options.padding);
            cells.saturating_mul(pitch).saturating_add(options.padding)
        };
        let size_at = |scale: usize| [side(columns, cell[0], scale), side(rows, cell[1], scale)];
        let scale = match options.scale {
            Scale::Factor(factor) => factor.get(),
            Scale::Auto => {
                let comfortable = COMFORTABLE_SIDE.div_ceil(cell[0].min(cell[1]));
                let fits = |scale: &usize| size_at(*scale).iter().all(|&side| side <= MAGNIFIED_GRID_SIDE);
                (1..=comfortable).rev().find(fits).unwrap_or(1)
            }
        };
        let [width, height] = size_at(scale);
        if width.max(height) > MAX_SIDE || width * height > MAX_PIXELS {
            return Err(ReportError::GridTooLarge { width, height, max_side: MAX_SIDE, max_pixels: MAX_PIXELS });
        }
        let cell = [cell[0] * scale, cell[1] * scale];
        Ok(Self { columns, kinds: options.kinds, scale, cell, padding: options.padding, size: [width, height] })
    }

    /// Column and row of the top left pixel of image `index`.
    pub fn origin(&self, index: usize) -> [usize; 2] {
        let place = |cell: usize, pixels: usize| self.padding + cell * (pixels + self.padding);
        let (column, row) = match self.kinds {
            Some(kinds) => (index / kinds, index % kinds),
            None => (index % self.columns, index / self.columns),
        };
        [place(column, self.cell[0]), place(row, self.cell[1])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(shape: [usize; 4], pixel: impl Fn(usize) -> f32) -> ImageBatch {
        ImageBatch::new(shape, (0..shape.iter().product()).map(pixel).collect()).unwrap()
    }

    #[test]
    fn columns_make_pleasing_grids() {
        let expected = [
            (1, 1),
            (2, 2),
            (3, 3),
            (4, 2),
            (5, 3),
            (6, 3),
            (7, 4),
            (8, 4),
            (9, 3),
            (10, 5),
            (12, 4),
            (13, 5),
            (16, 4),
            (20, 5),
            (25, 5),
            (32, 8),
            (50, 10),
            (64, 8),
            (100, 10),
        ];
        for (count, columns) in expected {
            assert_eq!(columns_for(count), columns, "{count} images");
        }
    }

    #[test]
    fn variants_of_a_picture_share_a_line() {
        let columns = |count, variants| GridOptions::of_variants(count, variants).columns.map(NonZeroUsize::get);
        assert_eq!(
            [columns(12, 4), columns(4, 4), columns(32, 4), columns(300, 3)],
            [Some(4), Some(4), Some(8), Some(18)]
        );
        assert_eq!(columns(9, 1), None);
    }

    #[test]
    fn classes_in_turn_get_a_row_each() {
        let kinds = |classes: &[u32]| GridOptions::of_classes(Some(classes)).kinds.map(NonZeroUsize::get);
        assert_eq!(kinds(&[4, 1, 4, 1, 4]), Some(2));
        for classes in [&[][..], &[1], &[1, 1, 1, 1], &[0, 1, 2], &[0, 1, 2, 0], &[0, 1, 0, 0]] {
            assert_eq!(kinds(classes), None, "{classes:?}");
        }
        let options = GridOptions {
            padding: 0,
            scale: Scale::Factor(NonZeroUsize::MIN),
            ..GridOptions::of_classes(Some(&[4, 1, 4, 1, 4]))
        };
        let geometry = Geometry::new(5, [10, 10], options).unwrap();
        assert_eq!((geometry.columns, geometry.size), (3, [30, 20]));
        assert_eq!([0, 1, 2, 4].map(|i| geometry.origin(i)), [[0, 0], [0, 10], [10, 0], [20, 0]]);
    }

    #[test]
    fn small_images_are_magnified_and_large_grids_are_not() {
        let scale = |count, cell| Geometry::new(count, cell, GridOptions::default()).unwrap().scale;
        assert_eq!(scale(25, [8, 8]), 8);
        assert_eq!(scale(25, [28, 28]), 3);
        assert_eq!(scale(25, [32, 32]), 2);
        assert_eq!(scale(25, [64, 64]), 1);
        assert_eq!(scale(25, [20, 28]), 4);
        assert_eq!(scale(10_000, [8, 8]), 2);
        assert_eq!(scale(10_000, [32, 32]), 1);
    }

    #[test]
    fn colour_by_channels() {
        let cases: [(usize, &[u8]); 5] = [
            (1, &[51]),
            // (51 x 102 + 255 x 153) / 255
            (1, &[173]),
            (3, &[51, 102, 153]),
            // (c x 204 + 255 x 51) / 255
            (3, &[92, 133, 173]),
            (1, &[51, 102, 153, 204, 255]),
        ];
        for (channels, (drawn, expected)) in (1..).zip(cases) {
            let images = batch([1, channels, 1, 1], |plane| (plane + 1) as f32 / 5.0);
            let options = GridOptions { padding: 0, scale: Scale::Factor(NonZeroUsize::MIN), ..Default::default() };
            let grid = Planes::quantise(&images).unwrap().grid(options).unwrap();
            assert_eq!(grid.channels, drawn);
            assert_eq!(grid.pixels, expected, "{channels} channels");
        }
    }

    #[test]
    fn a_grid_on_disk_has_the_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples/grid.png");
        let images = batch([3, 3, 2, 2], |i| i as f32 / 35.0);
        let two = NonZeroUsize::new(2);
        let options =
            GridOptions { columns: two, kinds: None, scale: Scale::Factor(two.unwrap()), padding: 1, background: 9 };
        save_grid(&path, &images, options).unwrap();
        let png = image::open(&path).unwrap().into_rgb8();
        // Two columns and rows of 4-pixel cells, with 1 pixel between and around them.
        assert_eq!(png.dimensions(), (11, 11));
        assert_eq!(png.get_pixel(0, 0).0, [9, 9, 9]);
        assert_eq!(png.get_pixel(10, 10).0, [9, 9, 9], "the fourth cell is empty");
        let level = |i: usize| (i as f32 / 35.0 * 255.0 + 0.5) as u8;
        // Image 1, row 1, column 0 covers rows 3..5 and columns 6..8.
        assert_eq!(png.get_pixel(7, 4).0, [level(12 + 2), level(12 + 6), level(12 + 10)]);
        // Image 2, row 0, column 1 covers rows 6..8 and columns 3..5.
        assert_eq!(png.get_pixel(3, 6).0, [level(24 + 1), level(24 + 5), level(24 + 9)]);
        assert_eq!(grid_png(&images, options).unwrap(), std::fs::read(&path).unwrap());
    }

    #[test]
    fn single_files_are_native() {
        let folder = tempfile::tempdir().unwrap();
        for channels in 1..=5 {
            let images = batch([2, channels, 3, 2], |i| i as f32 / 59.0);
            let target = folder.path().join(channels.to_string());
            save_images(&target, &images, 41).unwrap();
            assert_eq!(std::fs::read_dir(&target).unwrap().count(), 2);
            let png = image::open(target.join("000042.png")).unwrap();
            let expected = if channels == 5 { (10, 3, 1) } else { (2, 3, channels as u8) };
            assert_eq!((png.width(), png.height(), png.color().channel_count()), expected);
            assert_eq!(png.into_bytes(), Planes::quantise(&images).unwrap().native(1).pixels);
        }
    }

    #[test]
    fn a_pixel_that_is_not_finite_is_named_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut images = batch([2, 3, 4, 5], |_| 0.5);
        images.data[60 + 2 * 20 + 3 * 5 + 1] = f32::NAN;
        let error = save_images(folder.path(), &images, 0).unwrap_err();
        assert!(matches!(error, ReportError::NonFinitePixel { image: 1, channel: 2, row: 3, column: 1, .. }));
        assert!(save_grid(folder.path().join("grid.png"), &images, GridOptions::default()).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_absurd_grid_is_refused() {
        let options = GridOptions { padding: usize::MAX, ..Default::default() };
        assert!(matches!(Geometry::new(4, [8, 8], options), Err(ReportError::GridTooLarge { .. })));
        let options = GridOptions { columns: NonZeroUsize::new(70_000), ..Default::default() };
        assert!(matches!(Geometry::new(70_000, [8, 8], options), Err(ReportError::GridTooLarge { .. })));
        let check = |shape| check_grid(shape, GridOptions::default());
        assert!(matches!(check([70_000, 3, 256, 256]), Err(ReportError::GridTooLarge { .. })));
        assert!(matches!(check([1, 400, 8, 200]), Err(ReportError::GridTooLarge { .. })), "planes side by side");
        assert!(matches!(check([0, 1, 8, 8]), Err(ReportError::Batch(ImageBatchError::Empty { .. }))));
        assert!(check([10_000, 1, 8, 8]).is_ok());
    }

    proptest! {
        #[test]
        fn every_image_stands_where_the_geometry_says(
            count in 1_usize..30,
            channels in 1_usize..6,
            height in 1_usize..6,
            width in 1_usize..6,
            columns in proptest::option::of(1_usize..12),
            padding in 0_usize..4,
            factor in 1_usize..4,
        ) {
            let images = batch([count, channels, height, width], |i| (i * 37 % 256) as f32 / 255.0);
            let options = GridOptions {
                columns: columns.and_then(NonZeroUsize::new),
                kinds: None,
                padding,
                scale: Scale::Factor(NonZeroUsize::new(factor).unwrap()),
                background: 77,
            };
            let planes = Planes::quantise(&images).unwrap();
            let grid = planes.grid(options).unwrap();
            let geometry = Geometry::new(count, planes.cell(), options).unwrap();
            prop_assert_eq!([grid.width, grid.height], geometry.size);
            let mut free = vec![true; grid.width * grid.height];
            for index in 0..count {
                let image = planes.native(index).composited_on_white();
                let [left, top] = geometry.origin(index);
                for (y, x) in (0..geometry.cell[1]).flat_map(|y| (0..geometry.cell[0]).map(move |x| (y, x))) {
                    let at = (top + y) * grid.width + left + x;
                    prop_assert!(left + x < grid.width && std::mem::take(&mut free[at]), "images overlap");
                    let source = y / factor * image.width + x / factor;
                    prop_assert_eq!(
                        &grid.pixels[at * grid.channels..][..grid.channels],
                        &image.pixels[source * image.channels..][..image.channels]
                    );
                }
            }
            for at in (0..free.len()).filter(|&at| free[at]) {
                prop_assert!(grid.pixels[at * grid.channels..][..grid.channels].iter().all(|&c| c == 77));
            }
        }
    }
}
