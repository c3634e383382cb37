//! Images that come as one array: what all such sources share, and NumPy files.
//!
//! A four-dimensional NumPy array is `[n, c, h, w]` or `[n, h, w, c]`, told apart by which axis has 1 to 4 entries
//! (or as many as are asked for); if both have, it is read as `[n, c, h, w]`. Three dimensions are grey `[n, h, w]`.
//! uint8 spans 0 to 255. Floats must lie in [0, 1], or in [-1, 1], which is mapped to [0, 1].

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use super::classes::{self, Classes};
use super::config::ChannelPolicy;
use super::npy::{NpyArray, Values, read_npy};
use super::raster::Samples;
use super::{DataError, ImageShape};

/// Names of the image array in a `.npz`, in order of preference.
const IMAGE_NAMES: [&str; 7] = ["images", "train_images", "x_train", "x", "data", "samples", "arr_0"];
/// Names of the labels in a `.npz`.
const LABEL_NAMES: [&str; 6] = ["labels", "train_labels", "y_train", "y", "label", "arr_1"];

/// Floats may leave their range by this much, as rounding does; they are clamped.
const SLACK: f32 = 1e-6;

/// All images of a source in memory, as they were stored but for their layout.
#[derive(Debug)]
pub(super) struct ArraySource {
    pub(super) path: PathBuf,
    pub(super) kind: &'static str,
    pub(super) count: usize,
    pub(super) shape: ImageShape,
    /// `[n, h, w, c]`.
    pub(super) samples: Samples,
    pub(super) classes: Option<Classes>,
    /// Range of the values and what it is mapped to, in words.
    pub(super) values: String,
}

/// Reads a `.npy` file.
pub(super) fn load_npy(path: &Path, channels: ChannelPolicy) -> Result<ArraySource, DataError> {
    let file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let array = read_npy(BufReader::new(file), path)?;
    images(array, path, "NumPy array", channels)
}

/// Reads the images of a `.npz` file, and its labels, if it has them.
pub(super) fn load_npz(path: &Path, channels: ChannelPolicy) -> Result<ArraySource, DataError> {
    let file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let bad_zip = |e: zip::result::ZipError| DataError::format(path, "a .npz archive", e.to_string());
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(bad_zip)?;
    let names: Vec<String> =
        archive.file_names().filter_map(|name| Some(name.ok()?.strip_suffix(".npy")?.to_owned())).collect();
    let choose = |known: &[&'static str]| known.iter().copied().find(|k| names.iter().any(|n| n == k));
    let image_name = match (choose(&IMAGE_NAMES), &names[..]) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => {
            let expected = format!("one array, or one of the names {}", IMAGE_NAMES.join(", "));
            return Err(DataError::format(path, expected, format!("arrays {names:?}")));
        }
    };
    let mut read = |name: &str| {
        let entry = archive.by_name(&format!("{name}.npy")).map_err(bad_zip)?;
        read_npy(entry, &path.join(name))
    };
    let mut source = images(read(image_name)?, &path.join(image_name), "NumPy archive", channels)?;
    if let Some(name) = choose(&LABEL_NAMES) {
        let labels_path = path.join(name);
        source.classes = classes::of_array(read(name)?, &labels_path, source.count)?;
    }
    source.path = path.to_path_buf();
    Ok(source)
}

/// Where the channels of an array stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    ChannelsFirst,
    ChannelsLast,
}

fn layout(shape: &[usize], channels: ChannelPolicy) -> Result<(usize, ImageShape, Layout), String> {
    let shape_of = |channels, height, width| ImageShape { channels, height, width };
    let [n, first, middle, last] = match *shape {
        [n, h, w] => return Ok((n, shape_of(1, h, w), Layout::ChannelsLast)),
        [n, a, b, c] => [n, a, b, c],
        _ => return Err(format!("shape {shape:?}")),
    };
    let asked_for = |side| channels == ChannelPolicy::Exact(side);
    let usual = |side| (1..=4).contains(&side);
    let channels_first = Ok((n, shape_of(first, middle, last), Layout::ChannelsFirst));
    let channels_last = Ok((n, shape_of(last, first, middle), Layout::ChannelsLast));
    if asked_for(first) {
        channels_first
    } else if asked_for(last) {
        channels_last
    } else if usual(first) {
        channels_first
    } else if usual(last) {
        channels_last
    } else {
        Err(format!("shape {shape:?}, where neither axis has 1 to 4 channels (--channels N says which one)"))
    }
}

fn images(array: NpyArray, path: &Path, kind: &'static str, channels: ChannelPolicy) -> Result<ArraySource, DataError> {
    let (count, shape, layout) = layout(&array.shape, channels)
        .map_err(|found| DataError::format(path, "images [n, c, h, w], [n, h, w, c] or [n, h, w]", found))?;
    let (samples, values) = match array.values {
        Values::U8(v) => (Samples::U8(channels_last(v, shape, layout)), "uint8 0 to 255 -> [0, 1]".into()),
        Values::F32(v) => {
            let (v, values) = unit_range(v, shape, path)?;
            (Samples::F32(channels_last(v, shape, layout)), values)
        }
        Values::Int(_) => {
            let found = format!("dtype `{}`", array.descr);
            return Err(DataError::format(path, "uint8, float32 or float64 images", found));
        }
    };
    Ok(ArraySource { path: path.to_path_buf(), kind, count, shape, samples, classes: None, values })
}

/// Checks and maps float values to [0, 1]; also says in words what they were.
fn unit_range(mut values: Vec<f32>, shape: ImageShape, path: &Path) -> Result<(Vec<f32>, String), DataError> {
    let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
    for (i, &value) in values.iter().enumerate() {
        if !value.is_finite() {
            return Err(DataError::NotFinite { path: path.to_path_buf(), image: i / shape.len().max(1), value });
        }
        min = min.min(value);
        max = max.max(value);
    }
    if min < -1.0 - SLACK || max > 1.0 + SLACK {
        return Err(DataError::ValueRange { path: path.to_path_buf(), min, max });
    }
    let (declared, scale, offset) = if min < -SLACK { ("[-1, 1]", 0.5, 0.5) } else { ("[0, 1]", 1.0, 0.0) };
    for value in &mut values {
        *value = (*value * scale + offset).clamp(0.0, 1.0);
    }
    Ok((values, format!("float {min} to {max}, read as {declared}")))
}

fn channels_last<T: Copy>(values: Vec<T>, shape: ImageShape, layout: Layout) -> Vec<T> {
    if layout == Layout::ChannelsLast || shape.channels == 1 || shape.is_empty() {
        return values;
    }
    let area = shape.height * shape.width;
    let mut out = Vec::with_capacity(values.len());
    for image in values.chunks_exact(shape.len()) {
        for pixel in 0..area {
            out.extend((0..shape.channels).map(|c| image[c * area + pixel]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn array(shape: &[usize], values: Values) -> NpyArray {
        NpyArray { shape: shape.to_vec(), descr: "?".into(), values }
    }

    fn read(array: NpyArray, channels: ChannelPolicy) -> Result<ArraySource, DataError> {
        images(array, Path::new("x.npy"), "NumPy array", channels)
    }

    fn floats(values: &[f32]) -> Result<ArraySource, DataError> {
        let shape = [values.len(), 1, 1];
        read(array(&shape, Values::F32(values.to_vec())), ChannelPolicy::Auto)
    }

    #[test]
    fn layouts_are_told_apart() {
        use ChannelPolicy::{Auto, Exact};
        let cases: [(&[usize], ChannelPolicy, [usize; 3]); 8] = [
            (&[2, 5, 6], Auto, [1, 5, 6]),
            (&[2, 3, 5, 6], Auto, [3, 5, 6]),
            (&[2, 5, 6, 3], Auto, [3, 5, 6]),
            (&[2, 3, 6, 4], Auto, [3, 6, 4]),
            (&[2, 3, 6, 4], Exact(4), [4, 3, 6]),
            (&[2, 7, 6, 5], Exact(7), [7, 6, 5]),
            (&[2, 7, 6, 5], Exact(5), [5, 7, 6]),
            (&[2, 3, 6, 7], Exact(9), [3, 6, 7]),
        ];
        for (shape, policy, [channels, height, width]) in cases {
            let (count, found, _) = layout(shape, policy).unwrap();
            let expected = ImageShape { channels, height, width };
            assert_eq!((count, found), (2, expected), "{shape:?} {policy}");
        }
        for shape in [&[2, 5, 6, 7][..], &[4, 4], &[1, 1, 1, 1, 1], &[]] {
            assert!(layout(shape, Auto).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn both_layouts_give_the_same_samples() {
        let last: Vec<u8> = (0..2 * 2 * 2 * 3).collect();
        let first = [0u8, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11];
        let first = [first, first.map(|v| v + 12)].concat();
        // With two rows and two columns only the number of channels tells the layouts apart.
        let rgb = ChannelPolicy::Exact(3);
        let first = read(array(&[2, 3, 2, 2], Values::U8(first)), rgb).unwrap();
        assert_eq!(first.samples, Samples::U8(last.clone()));
        let same = read(array(&[2, 2, 2, 3], Values::U8(last.clone())), rgb);
        assert_eq!(same.unwrap().samples, Samples::U8(last));
    }

    #[test]
    fn float_ranges_are_detected_and_checked() {
        let unit = floats(&[0.0, 0.25, 1.0]).unwrap();
        assert_eq!(unit.samples, Samples::F32(vec![0.0, 0.25, 1.0]));
        let signed = floats(&[-1.0, 0.0, 0.5]).unwrap();
        assert_eq!(signed.samples, Samples::F32(vec![0.0, 0.5, 0.75]));
        assert!(signed.values.contains("[-1, 1]"), "{}", signed.values);
        let error = floats(&[0.0, 254.5]).unwrap_err();
        assert!(error.to_string().contains("254.5"), "{error}");
        assert!(error.hint().unwrap().contains("255"));
        for bad in [f32::NAN, f32::INFINITY] {
            let error = floats(&[0.0, bad]).unwrap_err();
            assert!(matches!(error, DataError::NotFinite { image: 1, .. }), "{error}");
        }
        let integers = read(array(&[1, 2, 2], Values::Int(vec![0; 4])), ChannelPolicy::Auto);
        assert!(integers.unwrap_err().to_string().contains("uint8"));
    }

    fn write_npz(path: &Path, arrays: &[(&str, &[usize], &[f32])]) {
        let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.npy");
        for (i, (name, shape, values)) in arrays.iter().enumerate() {
            super::super::npy::write_npy_f32(&file, shape, values).unwrap();
            let method = match i % 2 {
                0 => zip::CompressionMethod::Deflated,
                _ => zip::CompressionMethod::Stored,
            };
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            archive.start_file(format!("{name}.npy"), options).unwrap();
            archive.write_all(&std::fs::read(&file).unwrap()).unwrap();
        }
        archive.finish().unwrap();
    }

    #[test]
    fn archives_are_searched_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let image: (&[usize], &[f32]) = (&[1, 1, 2], &[0.5, 1.0]);
        for names in [&["only"][..], &["x_test", "x_train"], &["mask", "arr_0"]] {
            let arrays: Vec<_> = names.iter().map(|name| (*name, image.0, image.1)).collect();
            write_npz(&path, &arrays);
            let source = load_npz(&path, ChannelPolicy::Auto).unwrap();
            assert_eq!(source.samples, Samples::F32(vec![0.5, 1.0]), "{names:?}");
        }
        write_npz(&path, &[("a", image.0, image.1), ("b", image.0, image.1)]);
        let error = load_npz(&path, ChannelPolicy::Auto).unwrap_err();
        assert!(error.to_string().contains("x_train"), "{error}");
        std::fs::write(&path, b"PK\x03\x04 and nothing else").unwrap();
        let error = load_npz(&path, ChannelPolicy::Auto).unwrap_err();
        assert!(error.to_string().contains(".npz archive"), "{error}");
    }
}
