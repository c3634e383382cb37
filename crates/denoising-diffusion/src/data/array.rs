//! Data in one array: what all such sources share, and NumPy files.
//!
//! A four-dimensional NumPy array of images is `[n, c, h, w]` or `[n, h, w, c]`; the axis with 1 to 4 entries (or with the requested number of
//! channels) is that of the channels. If both could be, the array is read as `[n, c, h, w]`. Three dimensions are grey, `[n, h, w]`. Sequences and
//! volumes have their channels first. Not here: how values are mapped to [0, 1] (`value_map`).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use super::classes::{self, Classes};
use super::npy::{NpyArray, read_npy};
use super::paged::PagedArray;
use super::raster::Samples;
use super::shape::ChannelPolicy;
use super::value_map::{self, Mapped};
use super::{DataConfig, DataError, DataLayout, ImageShape};

/// Names of the image array in a `.npz`, in order of preference.
const IMAGE_NAMES: [&str; 7] = ["images", "train_images", "x_train", "x", "data", "samples", "arr_0"];
/// Names of the labels in a `.npz`.
const LABEL_NAMES: [&str; 6] = ["labels", "train_labels", "y_train", "y", "label", "arr_1"];

/// All images of a source as they were stored, except for their layout.
#[derive(Debug)]
pub(super) struct ArraySource {
    pub(super) path: PathBuf,
    pub(super) kind: &'static str,
    pub(super) count: usize,
    pub(super) shape: ImageShape,
    pub(super) samples: Held,
    pub(super) classes: Option<Classes>,
    /// Why the labels that came with the images cannot be used.
    pub(super) ignored_labels: Option<String>,
    /// The range of the values and what it is mapped to, in words.
    pub(super) values: String,
    /// What 0 and 1 stand for; `None` if the type alone determines it, as with 8 and 16 bits.
    pub(super) range: Option<[f64; 2]>,
    /// Never [`DataLayout::Auto`].
    pub(super) layout: DataLayout,
    /// Number of slices of a volume; 1 for other data.
    pub(super) depth: usize,
}

impl ArraySource {
    /// Takes labels that came with the images. Unusable ones are an error only if classes were requested.
    pub(super) fn take_labels(
        &mut self,
        labels: Result<Classes, DataError>,
        config: &DataConfig,
    ) -> Result<(), DataError> {
        match labels {
            Ok(classes) => self.classes = Some(classes),
            Err(error) if config.class_condition => return Err(error),
            Err(error) => self.ignored_labels = Some(error.to_string()),
        }
        Ok(())
    }
}

/// Where the values of an array are held.
#[derive(Debug)]
pub(super) enum Held {
    /// `[n, h, w, c]`.
    Memory(Samples),
    /// In their file; each example is read when it is needed.
    Paged(Box<PagedArray>),
}

impl Held {
    /// Bits of each value.
    pub(super) fn bits(&self) -> u32 {
        match self {
            Self::Memory(Samples::U8(_)) => 8,
            Self::Memory(Samples::U16(_)) => 16,
            Self::Memory(Samples::F32(_)) => 32,
            Self::Paged(array) => array.rule().bits(),
        }
    }
}

/// Reads a `.npy` file, or, if its values are too large for the memory limit, opens it for reading its examples one by one.
pub(super) fn load_npy(path: &Path, config: &DataConfig) -> Result<ArraySource, DataError> {
    if let Some(source) = PagedArray::open(path, config)? {
        return Ok(source);
    }
    let file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let array = read_npy(BufReader::new(file), path)?;
    examples(array, path, "NumPy array", config)
}

/// Reads the images of a `.npz` file, and its labels if it has any.
pub(super) fn load_npz(path: &Path, config: &DataConfig) -> Result<ArraySource, DataError> {
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
    let mut source = examples(read(image_name)?, &path.join(image_name), "NumPy archive", config)?;
    if let Some(name) = choose(&LABEL_NAMES).filter(|_| config.labels.is_none()) {
        let labels = read(name).and_then(|labels| classes::demand(labels, &path.join(name), source.count));
        source.take_labels(labels, config)?;
    }
    source.path = path.to_path_buf();
    Ok(source)
}

/// Which axis of an array is that of the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channels {
    First,
    Last,
}

/// How the axes of an array are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axes {
    pub(super) count: usize,
    pub(super) shape: ImageShape,
    pub(super) channels: Channels,
    pub(super) layout: DataLayout,
    pub(super) depth: usize,
}

impl Axes {
    /// How the axes of an array of this shape are read.
    ///
    /// # Errors
    /// The shape is none of those expected.
    pub(super) fn read(shape: &[usize], path: &Path, config: &DataConfig) -> Result<Self, DataError> {
        let expected = Self::expected(config.layout);
        Self::of(shape, config).map_err(|found| DataError::Shape { path: path.to_path_buf(), expected, found })
    }

    fn of(shape: &[usize], config: &DataConfig) -> Result<Self, String> {
        let carried = |layout, count, channels, depth, height, width| {
            let shape = ImageShape { channels, height: depth * height, width };
            Ok(Self { count, shape, channels: Channels::First, layout, depth })
        };
        match (config.layout, shape) {
            (DataLayout::Sequences, &[n, l]) => carried(DataLayout::Sequences, n, 1, 1, 1, l),
            (DataLayout::Sequences, &[n, c, l]) => carried(DataLayout::Sequences, n, c, 1, 1, l),
            (DataLayout::Volumes, &[n, d, h, w]) => carried(DataLayout::Volumes, n, 1, d, h, w),
            (DataLayout::Volumes | DataLayout::Auto, &[n, c, d, h, w]) => carried(DataLayout::Volumes, n, c, d, h, w),
            (DataLayout::Auto | DataLayout::Images, _) => Self::of_images(shape, config.channels),
            _ => Err(format!("shape {shape:?}")),
        }
    }

    fn of_images(shape: &[usize], channels: ChannelPolicy) -> Result<Self, String> {
        let with = |count, channels, height, width, at| {
            let shape = ImageShape { channels, height, width };
            Ok(Self { count, shape, channels: at, layout: DataLayout::Images, depth: 1 })
        };
        let [n, first, middle, last] = match *shape {
            [n, h, w] => return with(n, 1, h, w, Channels::Last),
            [n, a, b, c] => [n, a, b, c],
            _ => return Err(format!("shape {shape:?}")),
        };
        let asked_for = |side| channels == ChannelPolicy::Exact(side);
        let usual = |side| (1..=4).contains(&side);
        if asked_for(first) || (!asked_for(last) && usual(first)) {
            with(n, first, middle, last, Channels::First)
        } else if asked_for(last) || usual(last) {
            with(n, last, first, middle, Channels::Last)
        } else {
            Err(format!("shape {shape:?}, where neither axis has 1 to 4 channels"))
        }
    }

    /// The shapes that are accepted.
    fn expected(layout: DataLayout) -> &'static str {
        match layout {
            DataLayout::Images => "images [n, c, h, w], [n, h, w, c] or [n, h, w]",
            DataLayout::Sequences => "sequences [n, c, l] or [n, l]",
            DataLayout::Volumes => "volumes [n, c, d, h, w] or [n, d, h, w]",
            DataLayout::Auto => "images [n, c, h, w], [n, h, w, c] or [n, h, w], or volumes [n, c, d, h, w]",
        }
    }
}

/// The examples of an array; `path` is only used in messages.
pub(super) fn examples(
    array: NpyArray,
    path: &Path,
    kind: &'static str,
    config: &DataConfig,
) -> Result<ArraySource, DataError> {
    let Axes { count, shape, channels, layout, depth } = Axes::read(&array.shape, path, config)?;
    let size = shape.len().max(1);
    let Mapped { samples, words, range } = value_map::map(array, path, size, layout, config)?;
    let samples = Held::Memory(samples_last(samples, shape, channels));
    Ok(ArraySource {
        path: path.to_path_buf(),
        kind,
        count,
        shape,
        samples,
        classes: None,
        ignored_labels: None,
        values: words,
        range,
        layout,
        depth,
    })
}

/// Samples with their channels last.
pub(super) fn samples_last(samples: Samples, shape: ImageShape, channels: Channels) -> Samples {
    match samples {
        Samples::U8(v) => Samples::U8(channels_last(v, shape, channels)),
        Samples::U16(v) => Samples::U16(channels_last(v, shape, channels)),
        Samples::F32(v) => Samples::F32(channels_last(v, shape, channels)),
    }
}

fn channels_last<T: Copy>(values: Vec<T>, shape: ImageShape, channels: Channels) -> Vec<T> {
    if channels == Channels::Last || shape.channels == 1 || shape.is_empty() {
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
    use crate::data::npy::Values;
    use std::io::Write;

    fn array(shape: &[usize], values: Values) -> NpyArray {
        let descr = match values {
            Values::U8(_) => "|u1",
            Values::F32(_) => "<f4",
            _ => "<i4",
        };
        NpyArray { shape: shape.to_vec(), descr: descr.into(), values }
    }

    fn read(array: NpyArray, channels: ChannelPolicy) -> Result<ArraySource, DataError> {
        examples(array, Path::new("x.npy"), "NumPy array", &DataConfig { channels, ..DataConfig::default() })
    }

    fn assert_samples(source: &ArraySource, expected: Samples) {
        assert!(matches!(&source.samples, Held::Memory(samples) if *samples == expected), "{source:?}");
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
            let axes = Axes::of(shape, &DataConfig { channels: policy, ..DataConfig::default() }).unwrap();
            let expected = ImageShape { channels, height, width };
            assert_eq!((axes.count, axes.shape), (2, expected), "{shape:?} {policy}");
        }
        for shape in [&[2, 5, 6, 7][..], &[4, 4], &[1, 1, 1, 1, 1, 1], &[]] {
            assert!(Axes::of(shape, &DataConfig::default()).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn sequences_and_volumes_are_carried_as_images() {
        use DataLayout::{Auto, Images, Sequences, Volumes};
        let of = |layout, shape: &[usize]| Axes::of(shape, &DataConfig { layout, ..DataConfig::default() });
        for (layout, shape, carried, depth) in [
            (Sequences, &[5, 7][..], [1, 1, 7], 1),
            (Sequences, &[5, 12, 7], [12, 1, 7], 1),
            (Volumes, &[5, 2, 3, 4], [1, 6, 4], 2),
            (Auto, &[5, 9, 2, 3, 4], [9, 6, 4], 2),
        ] {
            let axes = of(layout, shape).unwrap();
            let ImageShape { channels, height, width } = axes.shape;
            assert_eq!((axes.count, [channels, height, width], axes.depth), (5, carried, depth), "{layout} {shape:?}");
        }
        assert!(of(Sequences, &[5, 1, 1, 7]).is_err() && of(Images, &[5, 1, 2, 3, 4]).is_err());
    }

    #[test]
    fn both_layouts_give_the_same_samples() {
        let last: Vec<u8> = (0..2 * 2 * 2 * 3).collect();
        let first = [0u8, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11];
        let first = [first, first.map(|v| v + 12)].concat();
        // With two rows and two columns, only the number of channels distinguishes the layouts.
        let rgb = ChannelPolicy::Exact(3);
        let first = read(array(&[2, 3, 2, 2], Values::U8(first)), rgb).unwrap();
        assert_samples(&first, Samples::U8(last.clone()));
        let same = read(array(&[2, 2, 2, 3], Values::U8(last.clone())), rgb);
        assert_samples(&same.unwrap(), Samples::U8(last));
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
            let source = load_npz(&path, &DataConfig::default()).unwrap();
            assert_samples(&source, Samples::F32(vec![0.5, 1.0]));
        }
        write_npz(&path, &[("a", image.0, image.1), ("b", image.0, image.1)]);
        let error = load_npz(&path, &DataConfig::default()).unwrap_err();
        assert!(error.to_string().contains("x_train"), "{error}");
        std::fs::write(&path, b"PK\x03\x04 and nothing else").unwrap();
        let error = load_npz(&path, &DataConfig::default()).unwrap_err();
        assert!(error.to_string().contains(".npz archive"), "{error}");
    }
}
