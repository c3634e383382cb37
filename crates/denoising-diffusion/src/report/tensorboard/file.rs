//! The event files of a run folder. Each process that trains in it appends to one of its own: TensorBoard follows files by their length, so that none
//! may be rewritten, replaced or cut. Not here: the bytes of an event.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;

use super::{beginning, event, events, image_file};
use crate::report::ReportError;

/// TensorBoard takes files with the first part in their names as event files, in the order of their names.
const NAME: &str = "events.out.tfevents.";
const EXTENSION: &str = ".ddpm";

/// The event file of a process.
#[derive(Debug)]
pub struct EventFile {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    /// Length in bytes of the complete events.
    len: u64,
}

impl EventFile {
    /// A new event file in the folder of a run that goes on after `step` (`None`: it begins). The first one of a run starts with the `records` that its
    /// log has already.
    ///
    /// # Errors
    /// The folder cannot be read, or the file cannot be written.
    pub fn create(dir: &Path, step: Option<u64>, records: &[Value]) -> Result<Self, ReportError> {
        let last = last_number(dir).map_err(ReportError::io("read", dir))?;
        let path = dir.join(format!("{NAME}{:010}{EXTENSION}", last.map_or(0, |last| last + 1)));
        // Appending goes on at the end after half an event was cut off.
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.map_err(ReportError::io("create", &path))?;
        let mut events_file = Self { dir: dir.to_path_buf(), path, file, len: 0 };
        let first = step.map_or(0, |step| step + 1);
        let start = match last {
            None => events(records, now(), &mut |path| std::fs::read(dir.join(path)).ok()),
            Some(_) => beginning(first, now()),
        };
        events_file.write(&start)?;
        Ok(events_file)
    }

    /// Appends a record of the log, as of now. The picture that it names must be there.
    ///
    /// # Errors
    /// The record is no JSON value, or the file cannot be written.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), ReportError> {
        let described = |error: serde_json::Error| ReportError::LogRecord { record: error.to_string() };
        let record = serde_json::to_value(record).map_err(described)?;
        let png = image_file(&record).and_then(|path| std::fs::read(self.dir.join(path)).ok());
        self.write(&event(&record, now(), png.as_deref()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ReportError> {
        self.file.write_all(bytes).map_err(|source| {
            // Readers stop at half an event.
            let _ = self.file.set_len(self.len);
            ReportError::io("append to", &self.path)(source)
        })?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The largest number of an event file in a folder.
fn last_number(dir: &Path) -> std::io::Result<Option<u64>> {
    let number = |name: &str| name.strip_prefix(NAME)?.strip_suffix(EXTENSION)?.parse().ok();
    let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<std::io::Result<Vec<_>>>()?;
    Ok(names.iter().filter_map(|name| number(name.to_str()?)).max())
}
