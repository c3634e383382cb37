//! Files that are either whole or absent: written under a temporary name in the same folder, then renamed.
//!
//! This guards against a process that dies or a disk that fills up. It does not sync to the device: a picture lost
//! to a power cut can be drawn again. Checkpoints need more and are not written here.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ReportError;

/// Writes `bytes` to `path`, replacing what was there, and creates the parent folders.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path names no file");
        return Err(ReportError::io("write", path)(source));
    };
    create_parent(path)?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let temporary = path.with_file_name(temporary_name);
    let written = fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // The first error is the one to tell; a temporary file that cannot be removed either is only litter.
        let _ = fs::remove_file(&temporary);
        ReportError::io("write", path)(source)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/file.bin");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_refused_rename_removes_the_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("occupied");
        fs::create_dir_all(occupied.join("inside")).unwrap();
        let error = write(&occupied, b"x").unwrap_err();
        assert!(matches!(error, ReportError::Io { action: "write", .. }));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
