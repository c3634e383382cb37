//! Reads one image file, its header or its pixels, within limits. Every failure comes with a reason in words.
//!
//! The format is determined by the content, not by the name. Palettes and 1-, 2- and 4-bit samples are expanded to 8 bits. EXIF orientation and
//! colour profiles are not applied, as in PIL. A truncated file counts as broken; a JPEG that is damaged in the middle does not, because its decoder
//! does not report that.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::error::{ImageError, LimitErrorKind, UnsupportedErrorKind};
use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::ImageShape;
use super::raster::{Alpha, Raster, Samples, alpha_of};
use super::source::kind;
use super::{jpeg_end, tiff_alpha};

/// The largest size in bytes of the decoded pixels of one file: 178 million pixels of 8-bit RGB.
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// The most memory, in bytes, that the PNG decoder may use besides the pixels: for a row of them, and for texts and colour profiles, which can expand
/// from kilobytes to gigabytes.
const MAX_PNG_EXTRAS: u64 = 64 << 20;

/// The largest size in bytes of a compressed file.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Why a file cannot be used, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// The operating system could not read it this time.
    Unread(String),
    /// Its contents are at fault, so it cannot be used until it is written anew.
    Content(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unread(words) | Self::Content(words)) = self;
        f.write_str(words)
    }
}

impl From<String> for Unusable {
    fn from(words: String) -> Self {
        Self::Content(words)
    }
}

impl From<std::io::Error> for Unusable {
    fn from(error: std::io::Error) -> Self {
        // A decoder's error about a file's content has no error number of the operating system.
        match error.raw_os_error() {
            Some(_) => Self::Unread(error.to_string()),
            None => Self::Content(error.to_string()),
        }
    }
}

impl From<ImageError> for Unusable {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(error) => error.into(),
            ImageError::Unsupported(error) => match error.kind() {
                UnsupportedErrorKind::Color(color) => Self::Content(format!("{}; {DEPTHS}", in_words(&color))),
                _ => Self::Content(error.to_string()),
            },
            ImageError::Limits(error) if matches!(error.kind(), LimitErrorKind::InsufficientMemory) => {
                Self::Content("decoding it takes more memory than is allowed for an image".into())
            }
            error => Self::Content(error.to_string()),
        }
    }
}

const DEPTHS: &str = "only 8 and 16 bit are supported, grey or RGB, with or without transparency";

/// Names an unsupported kind of samples.
fn in_words(color: &ExtendedColorType) -> String {
    match color {
        ExtendedColorType::Unknown(bits) => format!("an unsupported form of pixels of {bits} bits"),
        other => format!("{other:?} samples"),
    }
}

/// What a file's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// As decoded, with palettes expanded.
    pub(super) shape: ImageShape,
    /// 8 or 16.
    pub(super) bits: u32,
}

/// Reads only the header.
///
/// # Errors
/// Why the file cannot be used.
pub(super) fn probe(path: &Path) -> Result<Probe, Unusable> {
    check_length(path)?;
    let file = File::open(path)?;
    let (probe, _) = guarded(|| open(BufReader::new(file)))?;
    Ok(probe)
}

/// Decodes the whole file.
///
/// # Errors
/// Why the file cannot be used.
pub(super) fn decode(path: &Path) -> Result<Raster, Unusable> {
    check_length(path)?;
    let bytes = std::fs::read(path)?;
    guarded(|| decode_bytes(&bytes))
}

fn check_length(path: &Path) -> Result<(), Unusable> {
    let meta = std::fs::metadata(path)?;
    if let Some(kind) = kind(meta.file_type()) {
        return Err(Unusable::Unread(format!("{kind}, not a file")));
    }
    match meta.len() {
        0 => Err("empty file (0 bytes)".to_string().into()),
        1..=MAX_FILE_BYTES => Ok(()),
        length => Err(format!("file of {} MiB, the limit is {} MiB", length >> 20, MAX_FILE_BYTES >> 20).into()),
    }
}

/// Turns a panic of a decoder on a malformed file into an error, so that it does not end the run.
fn guarded<T>(read: impl FnOnce() -> Result<T, Unusable>) -> Result<T, Unusable> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("the decoder failed".to_string().into()))
}

fn open<'a, R: BufRead + Seek + 'a>(reader: R) -> Result<(Probe, impl ImageDecoder + 'a), Unusable> {
    let mut reader = ImageReader::new(reader).with_guessed_format()?;
    let Some(format) = reader.format() else {
        return Err("not an image: its first bytes match no known format".to_string().into());
    };
    if !format.reading_enabled() {
        return Err(format!("{format:?} images are not supported").into());
    }
    let mut limits = Limits::no_limits();
    // What decoders need besides the pixels themselves.
    limits.max_alloc = Some(if format == ImageFormat::Png { MAX_PNG_EXTRAS } else { 2 * MAX_DECODED_BYTES });
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    let bytes = decoder.total_bytes();
    if bytes > MAX_DECODED_BYTES {
        return Err(format!(
            "{height}x{width} pixels take {} MiB decoded, the limit is {} MiB",
            bytes >> 20,
            MAX_DECODED_BYTES >> 20
        )
        .into());
    }
    if width == 0 || height == 0 {
        return Err(format!("no pixels ({height}x{width})").into());
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
        other => return Err(format!("{other:?} samples; {DEPTHS}").into()),
    };
    let shape = ImageShape { channels, height: height as usize, width: width as usize };
    Ok((Probe { shape, bits }, decoder))
}

fn decode_bytes(bytes: &[u8]) -> Result<Raster, Unusable> {
    let format = image::guess_format(bytes).ok();
    if format == Some(ImageFormat::Jpeg) && !jpeg_end::has_end(bytes) {
        return Err("truncated JPEG: no end marker".to_string().into());
    }
    let (probe, decoder) = open(Cursor::new(bytes))?;
    let mut samples = match DynamicImage::from_decoder(decoder)? {
        DynamicImage::ImageLuma8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageLumaA8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageRgb8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageRgba8(i) => Samples::U8(i.into_raw()),
        DynamicImage::ImageLuma16(i) => Samples::U16(i.into_raw()),
        DynamicImage::ImageLumaA16(i) => Samples::U16(i.into_raw()),
        DynamicImage::ImageRgb16(i) => Samples::U16(i.into_raw()),
        DynamicImage::ImageRgba16(i) => Samples::U16(i.into_raw()),
        _ => return Err("unsupported samples".to_string().into()),
    };
    let channels = probe.shape.channels;
    if format == Some(ImageFormat::Tiff) && alpha_of(channels) == Alpha::Last && tiff_alpha::is_associated(bytes) {
        tiff_alpha::divide(&mut samples, channels);
    }
    Ok(Raster { shape: probe.shape, samples, alpha: alpha_of(channels) })
}

/// Reads at most `limit` bytes and returns them with whether there were more.
pub(super) fn read_limited(reader: impl Read, limit: u64) -> std::io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    let more = bytes.len() as u64 > limit;
    bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok((bytes, more))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A chunk of a PNG file.
    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let body = [name, data].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&body);
        [&(data.len() as u32).to_be_bytes(), &body[..], &crc.sum().to_be_bytes()].concat()
    }

    /// A PNG with a colour profile of `length` bytes.
    fn with_profile(length: u64) -> Vec<u8> {
        let mut png = Vec::new();
        image::RgbImage::new(4, 4).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        let mut packed = flate2::write::ZlibEncoder::new(b"x\0\0".to_vec(), flate2::Compression::fast());
        std::io::copy(&mut std::io::repeat(0).take(length), &mut packed).unwrap();
        packed.flush().unwrap();
        let profile = chunk(b"iCCP", &packed.finish().unwrap());
        // Behind the signature and the header.
        let (start, rest) = png.split_at(8 + 25);
        [start, &profile, rest].concat()
    }

    #[test]
    fn a_profile_that_swells_is_not_unpacked() {
        for (length, kept) in [(1000, true), (MAX_PNG_EXTRAS + 1, false)] {
            let png = with_profile(length);
            let (_, mut decoder) = open(Cursor::new(&png[..])).unwrap();
            assert_eq!(decoder.icc_profile().unwrap().is_some(), kept, "{length}");
            assert_eq!(decode_bytes(&png).unwrap().shape.width, 4);
        }
    }

    #[test]
    fn what_the_system_said_is_told_from_what_the_file_holds() {
        let system: Unusable = std::io::Error::from_raw_os_error(5).into();
        assert!(matches!(system, Unusable::Unread(_)), "{system}");
        let ended: Unusable = std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into();
        assert!(matches!(ended, Unusable::Content(_)), "{ended}");
    }

    #[test]
    fn unsupported_samples_are_named_in_words() {
        assert_eq!(in_words(&ExtendedColorType::Unknown(32)), "an unsupported form of pixels of 32 bits");
    }
}
