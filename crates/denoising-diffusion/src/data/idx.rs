//! IDX files, the format of MNIST and its kin, plain or gzipped.
//!
//! Format: two zero bytes, a type (8 = unsigned byte), the number of dimensions, each dimension as a
//! big-endian u32, then the values. Images are `[n, h, w]`; labels `[n]`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::array::{ArraySource, Held};
use super::classes::{self, Classes};
use super::decode::read_limited;
use super::raster::Samples;
use super::{DataConfig, DataError, DataLayout, ImageShape};

/// The type code of the only accepted element type.
const UNSIGNED_BYTE: u8 = 8;

/// Reads images, and labels from the file next to them, if there is one.
///
/// # Errors
/// The file is not IDX, holds something other than images, or ends early; labels are unusable although classes were requested.
pub(super) fn load(path: &Path, config: &DataConfig) -> Result<ArraySource, DataError> {
    let (dims, bytes) = read(path)?;
    let [count, height, width] = dims[..] else {
        let found = format!("{} dimensions {dims:?}", dims.len());
        return Err(DataError::format(path, "images with 3 dimensions [n, h, w]", found));
    };
    let mut source = ArraySource {
        path: path.to_path_buf(),
        kind: "IDX file",
        count,
        shape: ImageShape { channels: 1, height, width },
        samples: Held::Memory(Samples::U8(bytes)),
        classes: None,
        ignored_labels: None,
        values: "uint8 0 to 255 -> [0, 1]".into(),
        range: None,
        layout: DataLayout::Images,
        depth: 1,
    };
    if let Some(file) = labels_file(path).filter(|_| config.labels.is_none()) {
        source.take_labels(load_labels(&file, count), config)?;
    }
    Ok(source)
}

/// Reads labels for `images` images.
///
/// # Errors
/// The file is not IDX, holds something other than labels, or holds another number of them.
pub(super) fn load_labels(path: &Path, images: usize) -> Result<Classes, DataError> {
    let (dims, bytes) = read(path)?;
    let [count] = dims[..] else {
        let found = format!("{} dimensions {dims:?}", dims.len());
        return Err(DataError::format(path, "labels with 1 dimension [n]", found));
    };
    classes::check_count(path, count, images)?;
    Ok(Classes::number(&bytes))
}

/// `train-images-idx3-ubyte.gz` -> `train-labels-idx1-ubyte` or `...gz`, whichever exists.
fn labels_file(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let name = name.strip_suffix(".gz").unwrap_or(name);
    if !name.contains("images") {
        return None;
    }
    let name = name.replace("images", "labels").replace("idx3", "idx1");
    [format!("{name}.gz"), name].into_iter().map(|name| images.with_file_name(name)).find(|path| path.is_file())
}

fn read(path: &Path) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let io = |e| DataError::io("read", path, e);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    if file.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]) {
        read_values(MultiGzDecoder::new(file), path)
    } else {
        read_values(file, path)
    }
}

fn read_values(mut reader: impl Read, path: &Path) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let header_error = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => DataError::format(path, "an IDX header", "the end of the file"),
        _ => DataError::io("read", path, e),
    };
    let mut word = [0; 4];
    reader.read_exact(&mut word).map_err(header_error)?;
    let [0, 0, kind, rank] = word else {
        let found = format!("first bytes {word:02x?}");
        return Err(DataError::format(path, "an IDX file (00 00 08 ..)", found));
    };
    if kind != UNSIGNED_BYTE || rank == 0 {
        let found = format!("type {kind:#04x} with {rank} dimensions");
        return Err(DataError::format(path, "IDX values of type 0x08 (unsigned byte)", found));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        reader.read_exact(&mut word).map_err(header_error)?;
        dims.push(u32::from_be_bytes(word) as usize);
    }
    let expected = dims
        .iter()
        .try_fold(1u64, |n, &side| n.checked_mul(side as u64))
        .ok_or_else(|| DataError::format(path, "an array that memory can hold", format!("{dims:?}")))?;
    // A gzip stream that ends early is an error of its own; its full length is unknown.
    let (bytes, more) = match read_limited(reader, expected) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(DataError::format(path, "a complete gzip stream", "a truncated one"));
        }
        result => result.map_err(|e| DataError::io("read", path, e))?,
    };
    if (bytes.len() as u64) < expected {
        return Err(DataError::Truncated { path: path.to_path_buf(), expected, found: bytes.len() as u64 });
    }
    if more {
        let found = "more bytes after them".to_owned();
        return Err(DataError::format(path, format!("{expected} bytes of values"), found));
    }
    Ok((dims, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        bytes.extend(dims.iter().flat_map(|side| side.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn images_and_the_labels_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let images = idx(&[3, 1, 2], &[0, 1, 2, 3, 4, 5]);
        let labels = idx(&[3], &[2, 0, 2]);
        let at = |name: &str| folder.path().join(name);
        let plain = DataConfig::default();
        std::fs::write(at("train-images-idx3-ubyte.gz"), gzip(&images)).unwrap();
        std::fs::write(at("train-labels-idx1-ubyte.gz"), gzip(&labels)).unwrap();
        std::fs::write(at("t10k-images-idx3-ubyte"), &images).unwrap();
        std::fs::write(at("t10k-labels-idx1-ubyte"), &labels).unwrap();
        for name in ["train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"] {
            let source = load(&at(name), &plain).unwrap();
            assert_eq!(source.count, 3);
            assert_eq!((source.shape.height, source.shape.width), (1, 2));
            assert!(matches!(source.samples, Held::Memory(Samples::U8(v)) if v == [0, 1, 2, 3, 4, 5]));
            let classes = source.classes.unwrap();
            assert_eq!(classes.of_image, [1, 0, 1]);
            assert_eq!(classes.names, ["0", "2"]);
        }
        std::fs::write(at("t10k-labels-idx1-ubyte"), idx(&[2], &[0, 0])).unwrap();
        let classes = DataConfig { class_condition: true, ..plain.clone() };
        let error = load(&at("t10k-images-idx3-ubyte"), &classes).unwrap_err();
        assert!(error.to_string().contains("2 labels for 3 images"), "{error}");
        std::fs::write(at("plain"), &images).unwrap();
        assert!(load(&at("plain"), &plain).unwrap().classes.is_none());
        let ignored = load(&at("t10k-images-idx3-ubyte"), &plain).unwrap().ignored_labels.unwrap();
        assert!(ignored.contains("2 labels for 3 images"), "{ignored}");
    }

    #[test]
    fn bad_files_say_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images");
        let good = idx(&[2, 2, 2], &[7; 8]);
        let zipped = gzip(&good);
        let cases = [
            (good[..20].to_vec(), "promises 8 bytes of values, found 4"),
            (good[..10].to_vec(), "end of the file"),
            ([&good[..], &[0]].concat(), "more bytes after them"),
            (zipped[..zipped.len() - 10].to_vec(), "gzip"),
            (gzip(&good[..20]), "found 4"),
            (idx(&[u32::MAX; 3], &[]), "memory can hold"),
            (idx(&[8], &[7; 8]), "3 dimensions"),
            (vec![0, 0, 13, 3, 0, 0, 0, 1], "type 0x0d"),
            (b"text".to_vec(), "IDX file"),
        ];
        for (bytes, expected) in cases {
            std::fs::write(&path, bytes).unwrap();
            let error = load(&path, &DataConfig::default()).unwrap_err().to_string();
            assert!(error.contains(expected), "`{expected}` not in `{error}`");
        }
    }
}
