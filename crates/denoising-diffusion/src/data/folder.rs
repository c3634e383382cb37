//! Folders of image files: which files there are, and which of them can be used.
//!
//! Nothing about training is decided here: sizes and channels may differ. Not here: decoding (`decode`).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use super::classes::Classes;
use super::config::DataConfig;
use super::dataset::{Opening, ScanProgress};
use super::decode::{self, Probe, Unusable};
use super::folder_index::{self, FolderIndex};
use super::policy::Verify;
use super::raster::Raster;
use super::shape::ChannelPolicy;
use super::{Broken, DataError, ImageSize, ResizePolicy, resize};

const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "bmp", "webp", "tif", "tiff"];

/// A usable image file.
#[derive(Clone, Debug)]
pub(super) struct ImageFile {
    /// Relative to the folder.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) modified: Option<SystemTime>,
    pub(super) probe: Probe,
}

/// Everything that is known about a folder after all its files have been checked.
#[derive(Debug)]
pub(super) struct Scan {
    /// Sorted by path.
    pub(super) files: Vec<ImageFile>,
    /// Sorted by path.
    pub(super) broken: Vec<Broken>,
    pub(super) other_files: usize,
    /// Largest IDX or NumPy file in the folder, for a hint.
    pub(super) array: Option<PathBuf>,
    /// Prepared images in the order of `files`, as far as they were decoded and fit into the cache.
    pub(super) decoded: Vec<Option<Raster>>,
}

/// How a decoded image is prepared for training.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepare {
    pub(super) channels: ChannelPolicy,
    pub(super) size: Option<ImageSize>,
    pub(super) resize: ResizePolicy,
}

impl Prepare {
    pub(super) fn new(config: &DataConfig) -> Self {
        Self { channels: config.channels, size: config.image_size, resize: config.resize }
    }

    /// Converts channels, then fits the size.
    pub(super) fn apply(&self, raster: Raster) -> Raster {
        let raster = match self.channels {
            ChannelPolicy::Auto => raster,
            ChannelPolicy::Exact(channels) => raster.with_channels(channels),
        };
        match self.size {
            None => raster,
            Some(size) => resize::fit(raster, size, self.resize),
        }
    }
}

/// A file with the name of an image that has not been opened yet. Ordered by path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    /// Relative to the folder.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) modified: Option<SystemTime>,
}

#[derive(Default)]
struct Listing {
    images: Vec<Listed>,
    other_files: usize,
    /// Length in bytes and path of the largest array file.
    array: Option<(u64, PathBuf)>,
}

/// Finds every image file under `root` and checks it.
///
/// # Errors
/// The folder cannot be read. A failure of a single file is not an error but an entry in `broken`.
pub(super) fn scan(root: &Path, config: &DataConfig, opening: &Opening<'_>) -> Result<Scan, DataError> {
    let mut listing = Listing::default();
    list(root, Path::new(""), &mut HashSet::new(), &mut listing)?;
    listing.images.sort();
    Ok(scan_listed(root, listing, config, opening))
}

/// Like [`scan`], for a single image file, as if it were alone in its folder.
///
/// # Errors
/// The file cannot be looked up.
pub(super) fn scan_file(path: &Path, config: &DataConfig, opening: &Opening<'_>) -> Result<Scan, DataError> {
    let meta = std::fs::metadata(path).map_err(|e| DataError::io("read", path, e))?;
    let (root, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
    let only = Listed { path: name.into(), bytes: meta.len(), modified: meta.modified().ok() };
    Ok(scan_listed(root, Listing { images: vec![only], ..Listing::default() }, config, opening))
}

fn scan_listed(root: &Path, listing: Listing, config: &DataConfig, opening: &Opening<'_>) -> Scan {
    let large = listing.images.len() >= folder_index::LEAST_FILES;
    let index = opening.index_folder.filter(|_| large).map(|folder| FolderIndex::load(folder, root));
    let known = |file: &Listed| index.as_ref().and_then(|index| index.get(file, config.verify));
    let (mut checked, mut unknown) = (Vec::new(), Vec::new());
    for file in &listing.images {
        let known = known(file);
        if known.is_none() {
            unknown.push(file);
        }
        checked.push(known.map(|found| found.map(|probe| (probe, None))));
    }
    let mut looked = check(root, &unknown, config, opening.progress).into_iter();
    let checked: Vec<Checked> = checked.into_iter().filter_map(|known| known.or_else(|| looked.next())).collect();
    if let Some(index) = index.filter(|_| !unknown.is_empty()) {
        let found = |checked: &Checked| checked.as_ref().map(|(probe, _)| *probe).map_err(Clone::clone);
        index.save(listing.images.iter().zip(checked.iter().map(found)), config.verify);
    }
    let (mut files, mut broken, mut decoded) = (Vec::new(), Vec::new(), Vec::new());
    for (Listed { path, bytes, modified }, result) in listing.images.into_iter().zip(checked) {
        match result {
            Ok((probe, raster)) => {
                files.push(ImageFile { path, bytes, modified, probe });
                decoded.push(raster);
            }
            Err(reason) => broken.push(Broken { path, reason: reason.to_string() }),
        }
    }
    Scan { files, broken, other_files: listing.other_files, array: listing.array.map(|(_, path)| path), decoded }
}

/// Whether a folder is that of a training run.
fn is_run(folder: &Path) -> bool {
    ["config.toml", "log.jsonl"].iter().all(|name| folder.join(name).is_file())
}

/// Lists `root/below` and its subfolders. Links are followed; `above` holds the folders on the way down, so that a link to one of them is not.
fn list(root: &Path, below: &Path, above: &mut HashSet<PathBuf>, listing: &mut Listing) -> Result<(), DataError> {
    let folder = root.join(below);
    let canonical = folder.canonicalize().map_err(|e| DataError::io("read", &folder, e))?;
    if !above.insert(canonical.clone()) {
        return Ok(());
    }
    let entries = std::fs::read_dir(&folder).map_err(|e| DataError::io("read", &folder, e))?;
    for entry in entries {
        let name = entry.map_err(|e| DataError::io("read", &folder, e))?.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let relative = below.join(&name);
        let path = root.join(&relative);
        let is_image = is_image_name(&relative);
        match std::fs::metadata(&path) {
            // Grids and curves of a run that lies within its data are no data.
            Ok(meta) if meta.is_dir() && is_run(&path) => listing.other_files += 1,
            Ok(meta) if meta.is_dir() => list(root, &relative, above, listing)?,
            Ok(meta) if is_image => {
                let (bytes, modified) = (meta.len(), meta.modified().ok());
                listing.images.push(Listed { path: relative, bytes, modified });
            }
            // A dangling link with an image's name: reported as broken when it is opened.
            Err(_) if is_image => listing.images.push(Listed { path: relative, bytes: 0, modified: None }),
            meta => {
                listing.other_files += 1;
                if is_array_name(&relative) {
                    let found = (meta.map_or(0, |meta| meta.len()), path);
                    listing.array = listing.array.take().max(Some(found));
                }
            }
        }
    }
    above.remove(&canonical);
    Ok(())
}

pub(super) fn is_image_name(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

fn is_array_name(path: &Path) -> bool {
    let name = path.to_string_lossy().to_ascii_lowercase();
    name.ends_with(".npy") || name.ends_with(".npz") || name.contains("images-idx3")
}

type Checked = Result<(Probe, Option<Raster>), Unusable>;

/// Checks all files, on several threads; results are in the order of `files`.
fn check(root: &Path, files: &[&Listed], config: &DataConfig, progress: ScanProgress<'_>) -> Vec<Checked> {
    let checker = Checker::new(root, config);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(files.len()));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(&Listed { path, .. }) = files.get(i) else {
                return;
            };
            let result = checker.check(path);
            let mut results = results.lock().unwrap_or_else(|e| e.into_inner());
            results.push((i, result));
            progress(results.len(), files.len());
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..config.worker_count().min(files.len()) {
            // This thread works too, so if a thread cannot be started, only time is lost.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Checks single files and keeps decoded images while there is room in the cache.
struct Checker<'a> {
    root: &'a Path,
    verify: Verify,
    prepare: Prepare,
    /// The size of the cache in bytes; `None` keeps nothing.
    limit: Option<u64>,
    kept: AtomicU64,
    full: AtomicBool,
}

impl<'a> Checker<'a> {
    fn new(root: &'a Path, config: &DataConfig) -> Self {
        Self {
            root,
            verify: config.verify,
            prepare: Prepare::new(config),
            limit: Some(config.memory_limit()).filter(|&limit| limit > 0),
            kept: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }
    }

    fn check(&self, file: &Path) -> Checked {
        let path = self.root.join(file);
        let probe = decode::probe(&path)?;
        if self.verify == Verify::Header {
            return Ok((probe, None));
        }
        let raster = decode::decode(&path)?;
        let Some(limit) = self.limit else {
            return Ok((probe, None));
        };
        if self.full.load(Ordering::Relaxed) {
            return Ok((probe, None));
        }
        let raster = self.prepare.apply(raster);
        let bytes = raster.samples.bytes() as u64;
        if self.kept.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > limit {
            self.full.store(true, Ordering::Relaxed);
            return Ok((probe, None));
        }
        Ok((probe, Some(raster)))
    }
}

/// Class of each file: the name of the folder that it lies in. `None` if a file lies in the root, or if there are no files.
pub(super) fn classes(files: &[ImageFile]) -> Option<Classes> {
    let parents = files.iter().map(|file| file.path.parent()?.file_name()).collect::<Option<Vec<_>>>()?;
    (!parents.is_empty()).then(|| Classes::number_named(&parents, |name| lossless(name)))
}

/// A name as text: bytes that are not text are written in hexadecimal, so that different names stay different.
fn lossless(name: &OsStr) -> String {
    let chunks = name.as_encoded_bytes().utf8_chunks();
    chunks.map(|chunk| chunk.valid().to_string() + &hex(chunk.invalid())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}
