//! The authoritative record of a run: `log.jsonl`, one JSON object per line, appended and never edited.
//!
//! Every record has a `kind` and a `step`; steps never decrease. A training run that is resumed at step s first cuts the log back to the records of
//! steps up to s, so that the log of a run that was killed and resumed equals that of an uninterrupted one, except for the field `images_per_s`,
//! which is measured. For this to hold, every record of step s must be written (and [synced](RunLog::sync)) before the checkpoint of step s appears.
//!
//! Numbers are written with enough digits to give the same `f64` back. JSON has no numbers that are not finite: the records here write them as the
//! strings `"NaN"`, `"inf"` and `"-inf"` (see [`number`]); record types of your own that do not use [`number`] get `null` from `serde_json`.
//!
//! Not here: drawing the log (`report::curve`).

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{ReportError, files};

mod record;
mod salvage;

use record::named_number;
pub use record::{
    CheckpointRecord, EvaluationRecord, HeldOutRecord, Record, SamplesRecord, SkipReason, SkipRecord, StartRecord,
    StepRecord, number,
};
pub use salvage::{put_aside, readable};

/// The log of a run, open for appending. One writer at a time.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
    /// Length in bytes of the complete lines.
    len: u64,
}

impl RunLog {
    /// Starts a log; parent folders are created.
    ///
    /// # Errors
    /// The file exists (a log is never overwritten), or it cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, ReportError> {
        let path = path.as_ref();
        files::create_parent(path)?;
        let file = File::create_new(path).map_err(ReportError::io("create", path))?;
        Ok(Self { path: path.to_owned(), file, len: 0 })
    }

    /// Opens the log of a run that continues after `step`: an incomplete last line and the records of later steps are removed.
    ///
    /// # Errors
    /// The file cannot be opened or truncated, or a line other than an incomplete last one is not a record; then the file is left unchanged.
    pub fn open_for_resume(path: impl AsRef<Path>, step: u64) -> Result<Self, ReportError> {
        let path = path.as_ref();
        let Parsed { records, torn, ends_in_newline } = Parsed::read(path)?;
        let kept = records.iter().position(|record| record.step > step).unwrap_or(records.len());
        let end = records[..kept].last().map_or(0, |record| record.end);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(ReportError::io("open", path))?;
        file.set_len(end).map_err(ReportError::io("shorten", path))?;
        let mut log = Self { path: path.to_owned(), file, len: end };
        if kept > 0 && kept == records.len() && !torn && !ends_in_newline {
            // The record is complete; only the end of its line is missing.
            log.write_line(b"\n")?;
        }
        Ok(log)
    }

    /// Appends `record` as one line and passes it to the operating system. A line is written completely or not at all.
    ///
    /// # Errors
    /// `record` is not a JSON object with an integer under `step`, or the file cannot be written.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), ReportError> {
        let described = |record: String| ReportError::LogRecord { record };
        let value = serde_json::to_value(record).map_err(|error| described(error.to_string()))?;
        if step_of(&value).is_none() {
            return Err(described(value.to_string()));
        }
        self.write_line(format!("{value}\n").as_bytes())
    }

    /// Waits until all lines are on the device.
    ///
    /// # Errors
    /// The file cannot be synced.
    pub fn sync(&self) -> Result<(), ReportError> {
        self.file.sync_data().map_err(ReportError::io("sync", &self.path))
    }

    fn write_line(&mut self, line: &[u8]) -> Result<(), ReportError> {
        let len = self.len;
        let written = self.file.seek(SeekFrom::Start(len)).and_then(|_| self.file.write_all(line));
        written.map_err(|source| {
            // Half a line (a full disk) must not become the beginning of the next one.
            let _ = self.file.set_len(len);
            ReportError::io("append to", &self.path)(source)
        })?;
        self.len += line.len() as u64;
        Ok(())
    }
}

/// All records of a log. An incomplete last line is ignored, so the log of a running process can be read.
///
/// # Errors
/// The file cannot be read, or a line other than an incomplete last one is not a record.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Value>, ReportError> {
    let parsed = Parsed::read(path.as_ref())?;
    Ok(parsed.records.into_iter().map(|record| record.value).collect())
}

/// The points (step, `field`) of all records of a `kind`, for a curve; `"NaN"`, `"inf"` and `"-inf"` are read as numbers.
///
/// ```
/// use denoising_diffusion::report::log;
///
/// let records = [serde_json::json!({"kind": "step", "step": 7, "loss": 0.25})];
/// assert_eq!(log::points(&records, "step", "loss"), [(7.0, 0.25)]);
/// ```
pub fn points(records: &[Value], kind: &str, field: &str) -> Vec<(f64, f64)> {
    let point = |record: &Value| {
        let value = record.get(field)?;
        let y = value.as_f64().or_else(|| value.as_str().and_then(named_number))?;
        Some((step_of(record)? as f64, y))
    };
    let of_kind = |record: &&Value| record.get("kind").and_then(Value::as_str) == Some(kind);
    records.iter().filter(of_kind).filter_map(point).collect()
}

fn step_of(record: &Value) -> Option<u64> {
    record.get("step").and_then(Value::as_u64)
}

struct ParsedRecord {
    step: u64,
    value: Value,
    /// Where the record's line ends, in bytes from the start of the file.
    end: u64,
}

struct Parsed {
    records: Vec<ParsedRecord>,
    torn: bool,
    ends_in_newline: bool,
}

impl Parsed {
    fn read(path: &Path) -> Result<Self, ReportError> {
        let bytes = std::fs::read(path).map_err(ReportError::io("read", path))?;
        let mut parsed = Self { records: Vec::new(), torn: false, ends_in_newline: bytes.ends_with(b"\n") };
        let mut end = 0;
        for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            end += line.len() as u64;
            match parse_line(line) {
                Ok((step, value)) => parsed.records.push(ParsedRecord { step, value, end }),
                // Only the last line can be incomplete.
                Err(_) if !line.ends_with(b"\n") => parsed.torn = true,
                Err(reason) => {
                    return Err(ReportError::LogLine { path: path.to_owned(), line: index + 1, reason });
                }
            }
        }
        Ok(parsed)
    }
}

fn parse_line(line: &[u8]) -> Result<(u64, Value), String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("not JSON: {error}"))?;
    let step = step_of(&value).ok_or("not an object with a whole number under \"step\"")?;
    Ok((step, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn step(step: u64) -> Record {
        let loss = 1.0 / (step as f64 + 3.0);
        Record::Step(StepRecord { step, loss, grad_norm: 0.1 + loss, lr: 8e-5, ema_decay: 0.995, images_per_s: 12.5 })
    }

    /// A log of `steps` steps with a held-out record every third step.
    fn write_log(path: &Path, steps: u64) {
        let mut log = RunLog::create(path).unwrap();
        continue_log(&mut log, 1..=steps);
    }

    fn continue_log(log: &mut RunLog, steps: std::ops::RangeInclusive<u64>) {
        for at in steps {
            log.append(&step(at)).unwrap();
            if at % 3 == 0 {
                log.append(&Record::HeldOut(HeldOutRecord {
                    step: at,
                    held_out_loss: 0.25,
                    held_out_loss_by_quarter: [0.1, 0.2, f64::NAN, f64::NEG_INFINITY],
                }))
                .unwrap();
            }
        }
    }

    #[test]
    fn lines_read_as_documented() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/log.jsonl");
        let records = [
            Record::Start(StartRecord {
                step: 0,
                version: "0.1.0".into(),
                seed: 7,
                parameters: 1000,
                images: 5620,
                device: "cpu".into(),
            }),
            Record::Step(StepRecord {
                step: 1,
                loss: f64::from(0.1_f32),
                grad_norm: f64::INFINITY,
                lr: 0.1 + 0.2,
                ema_decay: 0.0,
                images_per_s: 5e-324,
            }),
            Record::Skipped(SkipRecord {
                step: 2,
                skipped: 1,
                tensor: "downs.0.weight".into(),
                reason: SkipReason::NonFiniteGradient,
            }),
            Record::Samples(SamplesRecord {
                step: 2,
                count: 25,
                file: "samples/000002.png".into(),
                mean: vec![0.5],
                deviation: vec![0.25],
                data_mean: vec![0.4],
                data_deviation: vec![0.3],
            }),
            Record::Checkpoint(CheckpointRecord { step: 2, folder: "checkpoints/step-00000002".into() }),
        ];
        let mut log = RunLog::create(&path).unwrap();
        for record in &records {
            log.append(record).unwrap();
        }
        log.sync().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            r#"{"kind":"step","step":1,"loss":0.10000000149011612,"grad_norm":"inf","lr":0.30000000000000004,"ema_decay":0.0,"images_per_s":5e-324}"#
        );
        assert_eq!(
            lines[2],
            r#"{"kind":"skipped","step":2,"skipped":1,"tensor":"downs.0.weight","reason":"non_finite_gradient"}"#
        );
        let back: Vec<Record> =
            read(&path).unwrap().into_iter().map(|value| serde_json::from_value(value).unwrap()).collect();
        assert_eq!(back, records);
        assert!(matches!(RunLog::create(&path), Err(ReportError::Io { action: "create", .. })));
    }

    #[test]
    fn a_record_needs_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = RunLog::create(&path).unwrap();
        for wrong in [json!({"loss": 1.0}), json!({"step": -1}), json!(3), json!({"step": 1.5})] {
            assert!(matches!(log.append(&wrong), Err(ReportError::LogRecord { .. })));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named_and_nothing_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let text = "{\"step\":1}\n{\"ste\n{\"step\":3}\n";
        std::fs::write(&path, text).unwrap();
        assert!(matches!(read(&path), Err(ReportError::LogLine { line: 2, .. })));
        assert!(matches!(RunLog::open_for_resume(&path, 1), Err(ReportError::LogLine { line: 2, .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn resuming_beyond_the_log_keeps_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        write_log(&path, 4);
        let before = std::fs::read(&path).unwrap();
        RunLog::open_for_resume(&path, 9).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(read(&path).unwrap().iter().map(|record| &record["step"]).collect::<Vec<_>>(), [1, 2, 3, 3, 4]);
    }

    #[test]
    fn points_of_a_kind() {
        let records = [
            json!({"kind": "step", "step": 1, "loss": 0.5}),
            json!({"kind": "held_out", "step": 1, "loss": 9.0}),
            json!({"kind": "step", "step": 2, "loss": "inf"}),
            json!({"kind": "step", "step": 3}),
        ];
        assert_eq!(points(&records, "step", "loss"), [(1.0, 0.5), (2.0, f64::INFINITY)]);
    }

    proptest! {
        #[test]
        fn killed_anywhere_and_resumed_equals_uninterrupted(total in 1_u64..12, at in 0_u64..12, cut in 0_usize..4000) {
            let folder = tempfile::tempdir().unwrap();
            let (whole, resumed) = (folder.path().join("whole.jsonl"), folder.path().join("resumed.jsonl"));
            write_log(&whole, total);
            let expected = std::fs::read(&whole).unwrap();
            let at = at.min(total);
            // The checkpoint of step `at` exists, so its lines do too; the process died some bytes later.
            write_log(&resumed, at);
            let least = std::fs::read(&resumed).unwrap().len();
            let cut = least + cut % (expected.len() - least + 1);
            std::fs::write(&resumed, &expected[..cut]).unwrap();
            let mut log = RunLog::open_for_resume(&resumed, at).unwrap();
            let last = read(&resumed).unwrap().last().map(|record| record["step"].clone());
            prop_assert_eq!(last, (at > 0).then(|| json!(at)));
            continue_log(&mut log, at + 1..=total);
            prop_assert_eq!(std::fs::read(&resumed).unwrap(), expected);
        }

        #[test]
        fn a_lost_newline_loses_no_record(total in 1_u64..8) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log.jsonl");
            write_log(&path, total);
            let expected = std::fs::read(&path).unwrap();
            std::fs::write(&path, &expected[..expected.len() - 1]).unwrap();
            RunLog::open_for_resume(&path, total).unwrap();
            prop_assert_eq!(std::fs::read(&path).unwrap(), expected);
        }
    }
}
