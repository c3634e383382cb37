//! Pictures on disk: parent folders are created, and each file is either complete or absent.

use std::fs;
use std::path::Path;

use super::ReportError;
use crate::atomic_file::write_atomically;

/// Writes `bytes` to `path`, replacing what was there, and creates the parent folders.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    create_parent(path)?;
    write_atomically(path, |out| out.write_all(bytes)).map_err(ReportError::io("write", path))
}

/// Creates the folders above `path`.
pub(super) fn create_parent(path: &Path) -> Result<(), ReportError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            fs::create_dir_all(parent).map_err(ReportError::io("create folder", parent))
        }
        _ => Ok(()),
    }
}
