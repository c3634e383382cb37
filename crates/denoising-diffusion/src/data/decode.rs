//! One image file: its header and its pixels, within limits, with every failure as a reason in words.
//!
//! The format is told from the content, not from the name. Palettes and 1-, 2- and 4-bit samples are
//! expanded to 8 bits. EXIF orientation and colour profiles are not applied, as PIL does not apply them
//! either. A file that decodes partially is broken.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::ImageShape;
use super::raster::{Raster, Samples, alpha_of};

/// Most bytes that the decoded pixels of one file may take: 178 million pixels of 8-bit RGB.
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// Most bytes of one compressed file.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What a file's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// As decoded: palettes expanded.
    pub(super) shape: ImageShape,
    /// 8 or 16.
    pub(super) bits: u32,
}

/// Reads the header only.
///
/// # Errors
/// The reason why the file cannot be used.
pub(super) fn probe(path: &Path) -> Result<Probe, String> {
    check_length(path)?;
    let file = File::open(path).map_err(|e| e.to_string())?;
    let (probe, _) = guarded(|| open(BufReader::new(file)))?;
    Ok(probe)
}

/// Decodes the whole file.
///
/// # Errors
/// The reason why the file cannot be used.
pub(super) fn decode(path: &Path) -> Result<Raster, String> {
    check_length(path)?;
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    guarded(|| decode_bytes(&bytes))
}

fn check_length(path: &Path) -> Result<(), String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    match length {
        0 => Err("empty file (0 bytes)".into()),
        1..=MAX_FILE_BYTES => Ok(()),
        _ => Err(format!("file of {} MiB, the limit is {} MiB", length >> 20, MAX_FILE_BYTES >> 20)),
    }
}

/// A decoder that panics on a malformed file must not take the run with it.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("the decoder gave up".into()))
}

fn open<'a, R: BufRead + Seek + 'a>(reader: R) -> Result<(Probe, impl ImageDecoder + 'a), String> {
    let mut reader = ImageReader::new(reader).with_guessed_format().map_err(|e| e.to_string())?;
    let Some(format) = reader.format() else {
        return Err("not an image: its first bytes match no known format".into());
    };
    if !format.reading_enabled() {
        return Err(format!("{format:?} images are not supported"));
    }
    let mut limits = Limits::no_limits();
    // What decoders need besides the pixels themselves.
    limits.max_alloc = Some(2 * MAX_DECODED_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    let bytes = decoder.total_bytes();
    if bytes > MAX_DECODED_BYTES {
        return Err(format!(
            "{height}x{width} pixels take {} MiB decoded, the limit is {} MiB",
            bytes >> 20,
            MAX_DECODED_BYTES >> 20
        ));
    }
    if width == 0 || height == 0 {
        return Err(format!("no pixels ({height}x{width})"));
    }
    let (channels, bits) = match decoder.color_type() {
        ColorType::L8 => (1, 8),
        ColorType::La8 => (2, 8),
        ColorType::Rgb8 => (3, 8),
        ColorType::Rgba8 => (4, 8),
        ColorType::L16 => (1, 16),
        ColorType::La16 => (2, 16),
        ColorType::Rgb16 => (3, 16),
        ColorType::Rgba16 => (4, 16),
        other => return Err(format!("{other:?} samples; only 8 and 16 bit are supported")),
    };
    let shape = ImageShape { channels, height: height as usize, width: width as usize };
    Ok((Probe { shape, bits }, decoder))
}

fn decode_bytes(bytes: &[u8]) -> Result<Raster, String> {
    if let Ok(ImageFormat::Jpeg) = image::guess_format(bytes) {
        check_jpeg_end(bytes)?;
    }
    let (probe, decoder) = open(Cursor::new(bytes))?;
    let samples = match DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())? {
        DynamicImage::ImageLuma8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageLumaA8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageRgb8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageRgba8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageLuma16(i) => Samples::U16(i.into_raw()),
        DynamicImage::ImageLumaA16(i) => Samples::U16(i.into_raw()),
        DynamicImage::ImageRgb16(i) => Samples::U16(i.into_raw()),
        DynamicImage::ImageRgba16(i) => Samples::U16(i.into_raw()),
        _ => return Err("unsupported samples".into()),
    };
    Ok(Raster { shape: probe.shape, samples, alpha: alpha_of(probe.shape.channels) })
}

/// The JPEG decoder fills what is missing with grey; PIL calls such a file truncated, and so do we.
/// Entropy-coded data never contains a marker, so the end marker must follow the last start of a scan.
fn check_jpeg_end(bytes: &[u8]) -> Result<(), String> {
    let last = |marker| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    match (last(0xda), last(0xd9)) {
        (Some(scan), Some(end)) if end > scan => Ok(()),
        _ => Err("truncated JPEG: no end marker".into()),
    }
}

/// Reads at most `limit` bytes, then says whether there was more.
pub(super) fn read_limited(reader: impl Read, limit: u64) -> std::io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    let more = bytes.len() as u64 > limit;
    bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok((bytes, more))
}
