//! Files that survive a crash: written under a temporary name in the same folder, synced to the device, then renamed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The suffix of an unfinished file.
const SUFFIX: &str = ".ddpm-tmp";

/// Writes a file so that `path` always holds either its previous contents or everything that `fill` wrote, whatever happens in between. The folder
/// must exist. On an error (a full disk, say) the old file is untouched and nothing is left behind.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    put_in_place(path, |file| fill_and_sync(file, fill))?;
    sync_folder(folder_of(path))
}

/// The same for one of many files that can be made again: without waiting for the device, which takes longer than writing a small file does. If the
/// machine, and not just the process, fails within seconds, the file can be lost or incomplete.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put_in_place(path, |mut file| file.write_all(bytes))
}

fn put_in_place(path: &Path, write: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let file = File::create_new(&temporary)?;
    write(file).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        // The first error is the one to report; a temporary file that cannot be removed either does no harm.
        let _ = fs::remove_file(&temporary);
    })
}

/// Removes the files that interrupted writers left in `folder`. Nobody may be writing there.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_leftover(&entry.file_name()) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a name is that of an unfinished file.
pub fn is_leftover(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(SUFFIX))
}

/// A name that nobody else has: random, because processes in different containers or on different machines can have the same number.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path has no file name"))?;
    let random = RandomState::new().hash_one(std::process::id());
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{random:016x}{SUFFIX}"));
    Ok(path.with_file_name(temporary))
}

fn fill_and_sync(file: File, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// A rename is durable once its folder has been synced, which only Unix allows, and there not every file system: where it is not possible, the rename
/// must do.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for text in [&b"first, and longer"[..], b"second"] {
            write_atomically(&path, |out| out.write_all(text)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), text);
        }
        write_whole(&path, b"third").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let full = |out: &mut dyn Write| {
            out.write_all(b"new")?;
            Err(io::Error::new(ErrorKind::StorageFull, "no space left"))
        };
        let error = write_atomically(&path, full).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let own = temporary_beside(&folder.path().join("file")).unwrap();
        let own = own.file_name().unwrap().to_str().unwrap();
        for name in [own, ".file.12-0.ddpm-tmp", ".hidden", "kept.ddpm-tmp"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        remove_leftovers(folder.path()).unwrap();
        assert!(!folder.path().join(own).exists() && !folder.path().join(".file.12-0.ddpm-tmp").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    /// A process in another container can have the same number, and have counted as far.
    #[test]
    fn files_of_a_process_of_the_same_number_are_not_in_the_way_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let others: Vec<PathBuf> =
            (0..500).map(|count| folder.path().join(format!(".file.{}-{count}{SUFFIX}", std::process::id()))).collect();
        others.iter().for_each(|other| fs::write(other, "half").unwrap());
        write_atomically(&folder.path().join("file"), |out| out.write_all(b"whole")).unwrap();
        assert!(others.iter().all(|other| other.exists()));
        let [a, b] = [0, 1].map(|_| temporary_beside(&folder.path().join("file")).unwrap());
        assert_ne!(a, b);
    }

    /// The process file system cannot sync folders.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_cannot_be_synced_is_no_error() {
        sync_folder(Path::new("/proc")).unwrap();
        assert_eq!(sync_folder(Path::new("/nowhere/at/all")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_refused_rename_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("occupied");
        fs::create_dir_all(occupied.join("inside")).unwrap();
        assert!(write_atomically(&occupied, |out| out.write_all(b"x")).is_err());
        assert!(write_whole(&occupied, b"x").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_atomically(Path::new("/nowhere/at/all/file"), |_| Ok(())).is_err());
        assert!(write_atomically(Path::new("/"), |_| Ok(())).is_err());
    }
}
