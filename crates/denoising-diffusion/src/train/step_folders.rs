//! Folders named after steps, within one parent folder. Not here: their contents.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

/// Prefix of the names of complete folders.
pub(super) const STEP: &str = "step-";
/// Prefix while they are being written.
pub(super) const WRITING: &str = ".writing-step-";

/// The step folders within a parent folder, which need not exist yet.
#[derive(Clone, Debug)]
pub(super) struct StepFolders {
    dir: PathBuf,
}

impl StepFolders {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn named(&self, prefix: &str, step: u64) -> PathBuf {
        self.dir.join(format!("{prefix}{step:08}"))
    }

    /// Steps that have a folder with this prefix, in increasing order.
    pub(super) fn steps(&self, prefix: &str) -> io::Result<Vec<u64>> {
        let step = |entry: &DirEntry| {
            let step = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            (entry.path() == self.named(prefix, step) && entry.path().is_dir()).then_some(step)
        };
        let mut steps: Vec<u64> = self.entries()?.iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    pub(super) fn entries(&self) -> io::Result<Vec<DirEntry>> {
        let entries = fs::read_dir(&self.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match entries {
            // A dangling link means that the target is missing, not that there are no steps.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.dir.symlink_metadata().is_err() => {
                Ok(Vec::new())
            }
            entries => entries,
        }
    }
}
