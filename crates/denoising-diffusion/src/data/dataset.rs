//! A set of images of one shape, in whatever form they are stored.
//!
//! Opening a source reads and checks all of it, determines the shape of the images, and computes a digest by which a resumed run notices that the
//! data have changed. Not here: order, batches and mirroring.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::array::{ArraySource, Held};
use super::classes::Classes;
use super::condition::Conditions;
use super::config::DataConfig;
use super::folder::{self, Prepare, Scan};
use super::folder_shape::{common_shape, refuse_empty};
use super::order::{Mirror, split_permutation};
use super::policy::{CachePolicy, DataLayout, Flip, ResizePolicy};
use super::shape::{ChannelPolicy, ImageShape};
use super::source::Source;
use super::store::{self, Store};
use super::{DataError, Subset, Summary, VectorTable, digits, identity, resize};

/// The largest number of images that is ever held out.
const MAX_HELD_OUT: usize = 1000;

/// The smallest number of images for which some are held out.
const MIN_TO_SPLIT: usize = 40;

/// Called from any thread while files are checked, with the number of checked files and their total number.
pub type ScanProgress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// How a source is opened, besides its configuration.
#[derive(Clone, Copy)]
pub struct Opening<'a> {
    /// Called while files are checked.
    pub progress: ScanProgress<'a>,
    /// Folder for what is found out about large folders, so that they open quickly the next time.
    pub index_folder: Option<&'a Path>,
}

impl Default for Opening<'_> {
    fn default() -> Self {
        Self { progress: &|_, _| {}, index_folder: None }
    }
}

/// One image, as it is used in training.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// `[channels, height, width]`.
    pub shape: ImageShape,
    /// `[c, h, w]`, in [0, 1].
    pub pixels: Vec<f32>,
    /// Class, an index into [`Dataset::class_names`].
    pub class: Option<u32>,
}

/// A finite, indexed set of images of one shape.
#[derive(Debug)]
pub struct Dataset {
    shape: ImageShape,
    len: usize,
    store: Store,
    classes: Option<Classes>,
    conditions: Option<Conditions>,
    vectors: Option<VectorTable>,
    /// Of files: paths relative to their folder, without broken ones. `None` for arrays.
    names: Option<Vec<PathBuf>>,
    digest: String,
    cache_key: String,
    summary: Summary,
    natural_flip: Flip,
    resize: ResizePolicy,
    layout: DataLayout,
    depth: usize,
    /// Of arrays whose type does not determine it.
    value_range: Option<[f64; 2]>,
}

/// Describes a source without requiring that it can be trained on: mixed sizes and any number of broken files are reported, not refused.
///
/// # Errors
/// The source cannot be read at all.
pub fn inspect(config: &DataConfig) -> Result<Summary, DataError> {
    inspect_with(config, &Opening::default())
}

/// Like [`inspect`], with progress and an index.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_with(config: &DataConfig, opening: &Opening<'_>) -> Result<Summary, DataError> {
    let config = DataConfig { cache: CachePolicy::Off, ..config.clone() };
    Ok(match Source::read(&config, opening)? {
        Source::Folder(root, scan) => {
            refuse_empty(&root, &scan)?;
            let usable = !scan.files.is_empty();
            let shape = common_shape(&root, &scan, &config).ok().filter(|_| usable);
            Summary::of_folder(&root, &scan, shape)
        }
        Source::Array(source) => Summary::of_array(&source, config.image_size),
    })
}

/// The files of a folder in the order of the data, relative to it and without broken ones: as [`Dataset::names`], without requiring that they can be
/// trained on. `None` for arrays.
///
/// # Errors
/// As [`inspect`].
pub fn files(config: &DataConfig, opening: &Opening<'_>) -> Result<Option<Vec<PathBuf>>, DataError> {
    let config = DataConfig { cache: CachePolicy::Off, ..config.clone() };
    Ok(match Source::read(&config, opening)? {
        Source::Folder(root, scan) => {
            refuse_empty(&root, &scan)?;
            Some(scan.files.into_iter().map(|file| file.path).collect())
        }
        Source::Array(_) => None,
    })
}

impl Dataset {
    /// Opens and checks a source.
    ///
    /// # Errors
    /// The source does not exist, is empty, has too many broken files, has images of several sizes or channels although the configuration names none,
    /// or has values that cannot be images.
    pub fn open(config: &DataConfig) -> Result<Self, DataError> {
        Self::open_with(config, &Opening::default())
    }

    /// Like [`Dataset::open`], with progress and an index.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_with(config: &DataConfig, opening: &Opening<'_>) -> Result<Self, DataError> {
        Self::of_source(Source::read(config, opening)?, config, opening)
    }

    /// The dataset of a source that has been read, with its conditions and vectors.
    pub(super) fn of_source(source: Source, config: &DataConfig, opening: &Opening<'_>) -> Result<Self, DataError> {
        let mut dataset = match source {
            Source::Folder(root, scan) => Self::from_folder(root, scan, config),
            Source::Array(source) => Self::from_array(source, config),
        }?;
        if let Some(path) = &config.condition {
            let conditions = Conditions::open(path, &dataset, config, opening)?;
            dataset.digest = identity::together(&dataset.digest, conditions.digest());
            dataset.conditions = Some(conditions);
        }
        if let Some(path) = &config.vectors {
            let vectors = VectorTable::open(path, config.trained_vectors.as_ref())?;
            if vectors.rows() != dataset.len {
                let (rows, examples) = (vectors.rows(), dataset.len);
                return Err(DataError::Vectors { path: path.clone(), rows, examples });
            }
            dataset.digest = identity::together(&dataset.digest, vectors.digest());
            dataset.vectors = Some(vectors);
        }
        Ok(dataset)
    }

    fn from_folder(root: PathBuf, scan: Scan, config: &DataConfig) -> Result<Self, DataError> {
        refuse_empty(&root, &scan)?;
        let total = scan.files.len() + scan.broken.len();
        let allowed = config.max_broken * total as f64;
        if scan.files.is_empty() || scan.broken.len() as f64 > allowed + 1e-9 {
            return Err(DataError::TooManyBroken { broken: scan.broken, total, limit: config.max_broken });
        }
        let shape = common_shape(&root, &scan, config)?;
        let summary = Summary::of_folder(&root, &scan, Some(shape));
        let classes = folder::classes(&scan.files);
        let digest = identity::folder_digest(&scan.files);
        let cache_key = identity::folder_cache_key(&digest, &root, &scan.files);
        Ok(Self {
            shape,
            len: scan.files.len(),
            names: Some(scan.files.iter().map(|file| file.path.clone()).collect()),
            conditions: None,
            vectors: None,
            store: Store::Files {
                kept: store::kept(scan.decoded, &scan.files, shape, config),
                root,
                files: scan.files,
                prepare: Prepare::new(config),
            },
            classes,
            digest,
            cache_key,
            summary,
            natural_flip: Flip::On,
            resize: config.resize,
            layout: DataLayout::Images,
            depth: 1,
            value_range: None,
        })
    }

    fn from_array(source: ArraySource, config: &DataConfig) -> Result<Self, DataError> {
        if source.count == 0 || source.shape.is_empty() {
            let found = format!("{} of shape {}", source.count, source.shape);
            return Err(DataError::format(&source.path, "at least one image", found));
        }
        match config.channels {
            ChannelPolicy::Exact(expected) if expected != source.shape.channels => {
                return Err(DataError::Channels {
                    path: source.path,
                    expected,
                    found: source.shape.channels.to_string(),
                    files: false,
                });
            }
            _ => {}
        }
        let mirrored = source.layout == DataLayout::Images && source.path.as_os_str() != digits::NAME;
        let natural_flip = if mirrored { Flip::On } else { Flip::Off };
        let digest = identity::array_digest(&source)?;
        let summary = Summary::of_array(&source, config.image_size);
        let size = config.image_size.unwrap_or(source.shape.size());
        if source.layout != DataLayout::Images && size != source.shape.size() {
            return Err(DataError::Setting {
                key: "image_size",
                value: size.to_string(),
                expected: "no size, since sequences and volumes are not resized",
            });
        }
        let (store, shape) = match source.samples {
            Held::Memory(samples) => {
                let (samples, shape) = resize::fit_array(samples, source.shape, size, config.resize);
                (Store::Array(samples), shape)
            }
            Held::Paged(array) => {
                let shape = ImageShape { height: size.height, width: size.width, ..source.shape };
                (Store::Paged { array, shape: source.shape, size }, shape)
            }
        };
        Ok(Self {
            shape,
            len: source.count,
            names: None,
            conditions: None,
            vectors: None,
            store,
            classes: source.classes,
            cache_key: digest.clone(),
            digest,
            summary,
            natural_flip,
            resize: config.resize,
            layout: source.layout,
            depth: source.depth,
            value_range: source.range,
        })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: opening an empty source is an error.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shape of every image.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Class of each image, below [`num_classes`](Self::num_classes), if the source has classes.
    pub fn classes(&self) -> Option<&[u32]> {
        self.classes.as_ref().map(|classes| &classes.of_image[..])
    }

    /// Class of one image. `None` without classes and past the end.
    pub fn class_of(&self, index: usize) -> Option<usize> {
        self.classes()?.get(index).map(|&class| class as usize)
    }

    /// Number of classes; 0 if the source has none.
    pub fn num_classes(&self) -> usize {
        self.class_names().map_or(0, <[String]>::len)
    }

    /// Name of each class, if the source has classes: names of folders, or values of labels, in ascending order.
    pub fn class_names(&self) -> Option<&[String]> {
        self.classes.as_ref().map(|classes| &classes.names[..])
    }

    /// Gives each class the number that its name has in `names`, the classes of a network that was trained on other data. If one of them is not in
    /// it, returns false, and the dataset has no classes any more.
    pub fn number_classes_as(&mut self, names: &[String]) -> bool {
        let Some(classes) = self.classes.take() else { return true };
        self.classes = classes.numbered_as(names);
        self.classes.is_some()
    }

    /// Removes the classes.
    pub fn forget_classes(&mut self) {
        self.classes = None;
    }

    /// Shape of the condition of each image, if the data have conditions; its height and width are those of the images.
    pub fn condition_shape(&self) -> Option<ImageShape> {
        self.conditions.as_ref().map(Conditions::shape)
    }

    /// The vector of each example, if the data have vectors.
    pub fn vectors(&self) -> Option<&VectorTable> {
        self.vectors.as_ref()
    }

    /// Path of each image file, relative to its folder, in the order of the data: paths are compared folder by folder, so that `cat/1.png` comes
    /// before `cat-2/1.png`, and each name by its bytes. `None` for arrays.
    pub fn names(&self) -> Option<&[PathBuf]> {
        self.names.as_deref()
    }

    /// Counts and kinds, for display.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// SHA-256, in hexadecimal, that identifies the data: of the paths and lengths of a folder's usable files, or of an array's shape, values and
    /// labels. How the data are prepared (size, channels) is not part of it.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Key for caches of anything computed from the images: the [`digest`](Self::digest) and, for folders, where they are and the time when each file
    /// was last modified, as far as the file system knows it. A copied folder keeps its digest, but not this key; a file that is replaced by another
    /// of the same length changes the key.
    pub fn cache_key(&self) -> &str {
        &self.cache_key
    }

    /// What the examples are; never [`DataLayout::Auto`].
    pub fn layout(&self) -> DataLayout {
        self.layout
    }

    /// Number of slices of each volume, which are stored one below the other; 1 for other data.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// What 0 and 1 stand for in the units of the source: `[low, high]`. `[0, 1]` for image files and arrays of 8 or 16 bits.
    pub fn value_range(&self) -> [f64; 2] {
        self.value_range.unwrap_or([0.0, 1.0])
    }

    /// The range with which a network trained on these data must read other data. `None` if the type of the pixels determines it, as in image files
    /// and in images of 8 or 16 bits.
    pub fn trained_range(&self) -> Option<[f64; 2]> {
        let pixels = self.layout == DataLayout::Images && self.value_range.is_none();
        (!pixels).then(|| self.value_range())
    }

    /// The same for the conditions, if the data have conditions.
    pub fn trained_condition_range(&self) -> Option<[f64; 2]> {
        self.conditions.as_ref().and_then(Conditions::trained_range)
    }

    /// Whether images are mirrored under [`Flip::Auto`]: [`Flip::Off`] for the digits, sequences and volumes, else [`Flip::On`].
    pub fn natural_flip(&self) -> Flip {
        self.natural_flip
    }

    /// Whether all images are in memory by now, decoded and prepared.
    pub fn is_in_memory(&self) -> bool {
        let conditions = self.conditions.as_ref().is_none_or(Conditions::is_in_memory);
        conditions && self.store.is_in_memory()
    }

    /// Bytes of memory that the data take once all images have been read.
    pub fn bytes_in_memory(&self) -> u64 {
        let conditions = self.conditions.as_ref().map_or(0, Conditions::bytes_in_memory);
        conditions + self.store.bytes_in_memory(self.shape)
    }

    /// One image, never mirrored.
    ///
    /// # Errors
    /// The index is past the end, or a file has changed since the data were opened.
    pub fn get(&self, index: usize) -> Result<Image, DataError> {
        let mut pixels = vec![0.0; self.shape.len()];
        self.write_image(index, Mirror::Keep, &mut pixels)?;
        Ok(Image { shape: self.shape, pixels, class: self.classes().map(|classes| classes[index]) })
    }

    /// Writes one image as `[c, h, w]` in [0, 1].
    pub(super) fn write_image(&self, index: usize, mirror: Mirror, out: &mut [f32]) -> Result<(), DataError> {
        if index >= self.len {
            return Err(DataError::IndexOutOfRange { index, len: self.len });
        }
        self.store.write(index, self.shape, self.resize, mirror, out)
    }

    /// Writes the condition of one image as `[c, h, w]` in [0, 1]; does nothing if the data have no conditions.
    pub(super) fn write_condition(&self, index: usize, mirror: Mirror, out: &mut [f32]) -> Result<(), DataError> {
        match &self.conditions {
            Some(conditions) => conditions.write(index, mirror, out),
            None => Ok(()),
        }
    }

    /// The condition of one image, `[c, h, w]` in [0, 1], never mirrored.
    ///
    /// # Errors
    /// The index is past the end, or a file has changed since the data were opened.
    pub fn condition(&self, index: usize) -> Result<Option<Vec<f32>>, DataError> {
        let Some(shape) = self.condition_shape() else { return Ok(None) };
        if index >= self.len {
            return Err(DataError::IndexOutOfRange { index, len: self.len });
        }
        let mut out = vec![0.0; shape.len()];
        self.write_condition(index, Mirror::Keep, &mut out)?;
        Ok(Some(out))
    }

    /// How images of another size were resized.
    pub fn resize(&self) -> ResizePolicy {
        self.resize
    }

    /// Splits the images into (training, held out) by `seed`. `fraction` is in [0, 1); at most 1000 images are held out, and none if there are fewer
    /// than 40. Both parts keep the order of the data.
    pub fn split_held_out(self: &Arc<Self>, fraction: f64, seed: u64) -> (Subset, Subset) {
        let count = if self.len < MIN_TO_SPLIT {
            0
        } else {
            // A float outside the range saturates; the training part keeps at least one image.
            ((self.len as f64 * fraction).round() as usize).min(MAX_HELD_OUT).min(self.len - 1)
        };
        let mut order = split_permutation(seed, self.len);
        let mut training = order.split_off(count);
        training.sort_unstable();
        order.sort_unstable();
        (Subset::of(self.clone(), training), Subset::of(self.clone(), order))
    }
}
