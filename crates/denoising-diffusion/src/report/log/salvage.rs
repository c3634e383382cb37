//! Recovers a log with damaged lines: the readable records are kept, and the original file is renamed.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ReportError, RunLog, parse_line};
use crate::atomic_file::write_atomically;

impl RunLog {
    /// Opens a log that [`open_for_resume`](Self::open_for_resume) refuses because of damaged lines: without these, and with the records of steps up
    /// to `step`. Also returns the new path of the original.
    ///
    /// # Errors
    /// A file cannot be read, renamed or written.
    pub fn salvage(path: impl AsRef<Path>, step: u64) -> Result<(Self, PathBuf), ReportError> {
        let path = path.as_ref();
        let lines = lines_with_records(path)?;
        let copy = free_name(path);
        std::fs::copy(path, &copy).map_err(ReportError::io("copy", path))?;
        let kept = lines.iter().filter(|(of, ..)| *of <= step).map(|(.., line)| line.as_slice());
        let kept: Vec<u8> = kept.flat_map(|line| [line, b"\n".as_slice()]).flatten().copied().collect();
        write_atomically(path, |out| out.write_all(&kept)).map_err(ReportError::io("write", path))?;
        Ok((Self::open_for_resume(path, step)?, copy))
    }
}

/// The readable records of a log.
///
/// # Errors
/// The file cannot be read.
pub fn readable(path: impl AsRef<Path>) -> Result<Vec<Value>, ReportError> {
    Ok(lines_with_records(path.as_ref())?.into_iter().map(|(_, value, _)| value).collect())
}

/// Renames a damaged log and returns its new path.
///
/// # Errors
/// The file cannot be renamed.
pub fn put_aside(path: impl AsRef<Path>) -> Result<PathBuf, ReportError> {
    let path = path.as_ref();
    let free = free_name(path);
    std::fs::rename(path, &free).map_err(ReportError::io("rename", path))?;
    Ok(free)
}

fn lines_with_records(path: &Path) -> Result<Vec<(u64, Value, Vec<u8>)>, ReportError> {
    let bytes = std::fs::read(path).map_err(ReportError::io("read", path))?;
    let record = |line: &[u8]| {
        let (step, value) = parse_line(line).ok()?;
        Some((step, value, line.to_vec()))
    };
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(record).collect())
}

/// `log-damaged.jsonl` beside the log, or the next number.
fn free_name(path: &Path) -> PathBuf {
    let name = |number: u32| match number {
        1 => path.with_file_name("log-damaged.jsonl"),
        number => path.with_file_name(format!("log-damaged-{number}.jsonl")),
    };
    (1..).map(name).find(|path| path.symlink_metadata().is_err()).expect("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_kept_and_the_rest_is_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let damaged = "{\"step\":0}\n{\"st{\"step\":1}\n\0\0\0\n{\"step\":2}\n{\"step\":5}\n{\"step\":3}";
        for copy in ["log-damaged.jsonl", "log-damaged-2.jsonl"] {
            std::fs::write(&path, damaged).unwrap();
            let (mut log, now) = RunLog::salvage(&path, 3).unwrap();
            assert_eq!(now, folder.path().join(copy));
            assert_eq!(std::fs::read_to_string(&now).unwrap(), damaged);
            log.append(&serde_json::json!({"step": 4})).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, "{\"step\":0}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4}\n");
        }
        assert_eq!(readable(folder.path().join("log-damaged.jsonl")).unwrap().len(), 4);
        assert_eq!(put_aside(&path).unwrap(), folder.path().join("log-damaged-3.jsonl"));
        assert!(!path.exists());
    }
}
