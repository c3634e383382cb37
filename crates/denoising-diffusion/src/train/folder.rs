//! The folder of a run as a location: whether it is free, and which process uses it. Not here: its contents.

use std::fs::{File, OpenOptions, TryLockError, create_dir_all};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::run::RunError;
use crate::atomic_file::{is_leftover, remove_leftovers};

/// The lock file. It is never removed: a process that removed it could remove another one's lock.
const LOCK: &str = ".lock";

/// Lets one process at a time work in a run folder. The system releases the lock when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Whether this is still the lock of a folder. A folder that was moved or removed may be another run's by now, whose lock is another file. (Windows
    /// keeps a folder with an open file where it is.)
    #[cfg(unix)]
    pub(super) fn is_of(&self, dir: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let place = |file: io::Result<std::fs::Metadata>| file.map(|file| (file.dev(), file.ino()));
        match (place(self.file.metadata()), place(std::fs::metadata(dir.join(LOCK)))) {
            (Ok(own), Ok(there)) => own == there,
            (_, Err(error)) => error.kind() != ErrorKind::NotFound,
            // That it cannot be asked at the moment says nothing.
            (Err(_), _) => true,
        }
    }

    #[cfg(not(unix))]
    pub(super) fn is_of(&self, _: &Path) -> bool {
        self.file.metadata().is_ok()
    }
}

/// Whether a run may begin in a folder: it does not exist, or holds at most leftovers of a process that was killed before its run began.
pub fn is_free(dir: &Path) -> io::Result<bool> {
    let entries = match dir.read_dir() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(_) if dir.is_file() => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if name != LOCK && !is_leftover(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Claims a folder for a new run. If two processes try at once, one succeeds.
pub(super) fn claim(dir: &Path) -> Result<Lock, RunError> {
    let exists = || RunError::Exists { path: dir.to_owned() };
    let check = || match is_free(dir) {
        Ok(true) => Ok(()),
        Ok(false) => Err(exists()),
        Err(error) => Err(io_error("read", dir)(error)),
    };
    create_dir_all(dir).map_err(io_error("create", dir))?;
    // Checked before anything is written into a folder that may be in use, and again when no other process can begin.
    check()?;
    let lock = lock(dir)?;
    check()?;
    remove_leftovers(dir).map_err(io_error("clean up", dir))?;
    Ok(lock)
}

/// Keeps other processes out of a run folder.
pub(super) fn lock(dir: &Path) -> Result<Lock, RunError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(RunError::InUse { path: dir.to_owned() }),
        // Some file systems do not support locks.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
    }
    Ok(Lock { file })
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunError {
    let path = path.to_owned();
    move |source| RunError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_free_until_something_of_a_run_is_in_it() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("deep/run");
        assert!(is_free(&dir).unwrap());
        drop(claim(&dir).unwrap());
        std::fs::write(dir.join(".config.toml.12-0.ddpm-tmp"), "half").unwrap();
        assert!(is_free(&dir).unwrap(), "a process was killed while it wrote the configuration");
        drop(claim(&dir).unwrap());
        assert!(!dir.join(".config.toml.12-0.ddpm-tmp").exists());
        std::fs::write(dir.join("notes.txt"), "mine").unwrap();
        assert!(matches!(claim(&dir), Err(RunError::Exists { .. })));
        assert!(!is_free(&dir.join("notes.txt")).unwrap());
    }

    #[test]
    fn nothing_is_written_into_a_folder_that_is_taken() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("notes.txt"), "mine").unwrap();
        assert!(matches!(claim(place.path()), Err(RunError::Exists { .. })));
        assert_eq!(place.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn one_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let first = claim(place.path()).unwrap();
        assert!(matches!(lock(place.path()), Err(RunError::InUse { .. })));
        assert!(matches!(claim(place.path()), Err(RunError::InUse { .. })));
        drop(first);
        assert!(lock(place.path()).is_ok());
    }
}
