//! What an earlier scan found out about a large folder, kept in a file, so that the next scan need not decode every image again. An entry is only
//! valid while its file has the same length and modification time. Not here: scanning.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ImageShape;
use super::decode::{Probe, Unusable};
use super::folder::Listed;
use super::policy::Verify;
use crate::atomic_file::write_atomically;
use crate::digest::Digest;

/// Folders with fewer files are scanned anew each time.
pub(super) const LEAST_FILES: usize = 1000;
/// The version of the index file's format.
const VERSION: u32 = 2;

/// The index of one folder.
#[derive(Debug)]
pub(super) struct FolderIndex {
    path: PathBuf,
    /// As text; the name of the index file distinguishes what text cannot.
    root: String,
    entries: HashMap<PathBuf, Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    version: u32,
    root: String,
    entries: Vec<(PathBuf, Entry)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    modified: SystemTime,
    verify: Verify,
    /// Shape and bits, or why the file cannot be used.
    found: Result<(ImageShape, u32), String>,
}

impl FolderIndex {
    /// The index of `root` among those in `folder`; empty if there is none, or none that can be read.
    pub(super) fn load(folder: &Path, root: &Path) -> Self {
        let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
        let mut name = Digest::new();
        name.update(root.as_os_str().as_encoded_bytes());
        let root = root.to_string_lossy().into_owned();
        let path = folder.join(format!("{}.json", &name.finish()[..16]));
        let contents = File::open(&path).ok().and_then(|file| serde_json::from_reader(BufReader::new(file)).ok());
        let entries = match contents {
            Some(Contents { version: VERSION, root: of, entries }) if of == root => entries.into_iter().collect(),
            _ => HashMap::new(),
        };
        Self { path, root, entries }
    }

    /// What is known of a file from a scan at least as thorough as `verify`.
    pub(super) fn get(&self, file: &Listed, verify: Verify) -> Option<Result<Probe, Unusable>> {
        let entry = self.entries.get(&file.path)?;
        let same = entry.bytes == file.bytes && Some(entry.modified) == file.modified;
        let thorough = entry.verify == Verify::Full || verify == Verify::Header;
        let probe = |(shape, bits)| Probe { shape, bits };
        (same && thorough).then(|| entry.found.clone().map(probe).map_err(Unusable::Content))
    }

    /// Replaces the entries by those of a new scan and writes them. If `folder` cannot be written to, the next scan takes longer, and that is all.
    pub(super) fn save<'a>(self, looked: impl Iterator<Item = (&'a Listed, Result<Probe, Unusable>)>, verify: Verify) {
        let entry = |(file, found): (&Listed, Result<Probe, Unusable>)| {
            let found = match found {
                Ok(probe) => Ok((probe.shape, probe.bits)),
                Err(Unusable::Content(reason)) => Err(reason),
                // It may be readable another time.
                Err(Unusable::Unread(_)) => return None,
            };
            // JSON cannot hold other names and times; such a file is checked each time.
            let modified = file.modified.filter(|at| *at >= SystemTime::UNIX_EPOCH)?;
            file.path.to_str()?;
            // An entry from a more thorough scan remains one.
            let before = self.get(file, Verify::Full).is_some();
            let verify = if before { Verify::Full } else { verify };
            Some((file.path.clone(), Entry { bytes: file.bytes, modified, verify, found }))
        };
        let entries = looked.filter_map(entry).collect();
        let contents = Contents { version: VERSION, root: self.root.clone(), entries };
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let _ = std::fs::create_dir_all(folder).and_then(|()| {
            write_atomically(&self.path, |out| {
                serde_json::to_writer(BufWriter::new(out), &contents).map_err(std::io::Error::from)
            })
        });
    }
}
