//! 8-bit pixels: batches quantised, put into grids, and encoded as PNG.
//!
//! Not here: the layout of a grid (`grid`).

use std::io::Cursor;
use std::path::Path;

use image::error::{LimitError, LimitErrorKind};
use image::{ExtendedColorType, ImageEncoder, ImageError, codecs::png::PngEncoder};

use super::grid::{Geometry, cell};
use super::{GridOptions, ReportError, files};
use crate::atomic_file::write_whole;
use crate::data::ImageBatch;

/// Interleaved 8-bit pixels, `[height, width, channels]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raster {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    pub pixels: Vec<u8>,
}

/// A quantised batch, still planar: `[n, c, h, w]`.
pub(super) struct Planes {
    shape: [usize; 4],
    bytes: Vec<u8>,
}

impl Planes {
    /// Quantises a batch; a pixel that is not finite is an error.
    pub fn quantise(images: &ImageBatch) -> Result<Self, ReportError> {
        images.validate()?;
        let shape @ [_, c, h, w] = images.shape;
        if let Some(at) = images.data.iter().position(|x| !x.is_finite()) {
            return Err(ReportError::NonFinitePixel {
                image: at / (c * h * w),
                channel: at / (h * w) % c,
                row: at / w % h,
                column: at % w,
                value: images.data[at],
            });
        }
        // The cast truncates, which equals floor here.
        let bytes = images.data.iter().map(|x| (x * 255.0 + 0.5).clamp(0.0, 255.0) as u8).collect();
        Ok(Self { shape, bytes })
    }

    pub fn black(shape: [usize; 4]) -> Self {
        Self { shape, bytes: vec![0; shape.iter().product()] }
    }

    /// Replaces the images from `first` on.
    pub fn put(&mut self, first: usize, images: &Self) {
        let [_, c, h, w] = self.shape;
        self.bytes[first * c * h * w..][..images.bytes.len()].copy_from_slice(&images.bytes);
    }

    /// Width and height of an image as it is drawn, before magnification.
    pub fn cell(&self) -> [usize; 2] {
        cell(self.shape)
    }

    /// Image `index` at its native size with its own channels.
    pub fn native(&self, index: usize) -> Raster {
        let [_, c, h, w] = self.shape;
        let image = &self.bytes[index * c * h * w..(index + 1) * c * h * w];
        let [width, height] = self.cell();
        let channels = if c > 4 { 1 } else { c };
        let mut pixels = Vec::with_capacity(c * h * w);
        for y in 0..h {
            if c > 4 {
                // One row of each plane in turn, which puts the planes side by side.
                pixels.extend((0..c).flat_map(|plane| &image[(plane * h + y) * w..(plane * h + y + 1) * w]));
            } else {
                pixels.extend((0..w).flat_map(|x| (0..c).map(move |plane| image[(plane * h + y) * w + x])));
            }
        }
        Raster { width, height, channels, pixels }
    }

    /// All images in one raster of 1 (grey) or 3 (RGB) channels.
    pub fn grid(&self, options: GridOptions) -> Result<Raster, ReportError> {
        let geometry = Geometry::new(self.shape[0], self.cell(), options)?;
        let [width, height] = geometry.size;
        let channels = if matches!(self.shape[1], 3 | 4) { 3 } else { 1 };
        let mut grid = Raster { width, height, channels, pixels: vec![options.background; width * height * channels] };
        for index in 0..self.shape[0] {
            let image = self.native(index).composited_on_white();
            grid.paste(&image, geometry.origin(index), geometry.scale);
        }
        Ok(grid)
    }
}

impl Raster {
    /// Converts to three channels, which are equal for a grey raster. Not for rasters with alpha.
    pub fn into_rgb(self) -> Self {
        if self.channels != 1 {
            return self;
        }
        let pixels = self.pixels.iter().flat_map(|&level| [level; 3]).collect();
        Self { channels: 3, pixels, ..self }
    }

    /// Removes alpha: a (c - 255) + 255 in units of 1/255, rounded.
    pub fn composited_on_white(self) -> Self {
        if !matches!(self.channels, 2 | 4) {
            return self;
        }
        let colours = self.channels - 1;
        let over_white = |pixel: &[u8]| {
            let alpha = u32::from(pixel[colours]);
            let blend = move |c: u8| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
            pixel[..colours].iter().map(|&c| blend(c)).collect::<Vec<u8>>()
        };
        let pixels = self.pixels.chunks_exact(self.channels).flat_map(over_white).collect();
        Self { channels: colours, pixels, ..self }
    }

    /// Draws `image`, magnified, with its top left corner at `origin`; both have the same number of channels.
    pub fn paste(&mut self, image: &Raster, origin: [usize; 2], scale: usize) {
        let row_len = image.width * scale * self.channels;
        for y in 0..image.height * scale {
            let source = &image.pixels[y / scale * image.width * image.channels..][..image.width * image.channels];
            let at = ((origin[1] + y) * self.width + origin[0]) * self.channels;
            let target = &mut self.pixels[at..at + row_len];
            for (x, pixel) in target.chunks_exact_mut(self.channels).enumerate() {
                pixel.copy_from_slice(&source[x / scale * self.channels..][..self.channels]);
            }
        }
    }
}

/// Encodes and writes a file.
pub(super) fn write_png(path: &Path, raster: &Raster) -> Result<(), ReportError> {
    files::write(path, &png_for(path, raster)?)
}

/// The same in a folder that exists, without waiting for the device.
pub(super) fn write_one_of_many(path: &Path, raster: &Raster) -> Result<(), ReportError> {
    write_whole(path, &png_for(path, raster)?).map_err(ReportError::io("write", path))
}

fn png_for(path: &Path, raster: &Raster) -> Result<Vec<u8>, ReportError> {
    encode_png(raster).map_err(|source| ReportError::Png { path: path.to_owned(), source })
}

/// The bytes of a PNG that is to be embedded in another file.
pub(super) fn png(raster: &Raster) -> Result<Vec<u8>, ReportError> {
    encode_png(raster).map_err(|source| ReportError::PngInMemory { source })
}

/// What the header of a PNG says.
pub(super) struct PngHeader {
    pub width: u32,
    pub height: u32,
    /// A palette counts as RGB.
    pub channels: u8,
}

/// What PNG files begin with: the signature, and the beginning of the chunk that tells width, height, bits and kind of colour.
pub(super) const PNG_BEGINNING: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

impl PngHeader {
    pub fn read(png: &[u8]) -> Option<Self> {
        let header = png.strip_prefix(PNG_BEGINNING)?;
        let (&width, header) = header.split_first_chunk::<4>()?;
        let (&height, header) = header.split_first_chunk::<4>()?;
        let channels = match header.get(1)? {
            0 => 1,
            4 => 2,
            6 => 4,
            _ => 3,
        };
        Some(Self { width: u32::from_be_bytes(width), height: u32::from_be_bytes(height), channels })
    }
}

/// 1 to 4 channels are grey, grey with alpha, RGB, RGBA.
fn encode_png(raster: &Raster) -> Result<Vec<u8>, ImageError> {
    let colour = match raster.channels {
        1 => ExtendedColorType::L8,
        2 => ExtendedColorType::La8,
        3 => ExtendedColorType::Rgb8,
        _ => ExtendedColorType::Rgba8,
    };
    let side = |pixels: usize| {
        u32::try_from(pixels).map_err(|_| ImageError::Limits(LimitError::from_kind(LimitErrorKind::DimensionError)))
    };
    let (width, height) = (side(raster.width)?, side(raster.height)?);
    let mut bytes = Cursor::new(Vec::new());
    PngEncoder::new(&mut bytes).write_image(&raster.pixels, width, height, colour)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantises_like_torchvision() {
        // torch.tensor(x).mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)
        let images = ImageBatch::new([1, 1, 1, 7], vec![-0.5, 0.0, 0.0019, 0.002, 0.5, 1.0, 1.5]).unwrap();
        assert_eq!(Planes::quantise(&images).unwrap().bytes, [0, 0, 0, 1, 128, 255, 255]);
    }
}
