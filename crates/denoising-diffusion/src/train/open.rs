//! How a run starts and resumes: what is checked, truncated and repaired before the first step.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::batches::open_loader;
use super::checkpoint::{CheckpointState, Checkpoints, Rejected, read_state};
use super::folder::{self, Lock, io_error};
use super::logged::Logged;
use super::run::{Run, RunError, RunSetup, Saved};
use super::snapshots::Snapshots;
use super::trainer::Trainer;
use crate::atomic_file::{remove_leftovers, write_atomically};
use crate::data::Loader;
use crate::models::Network;
use crate::nn::params::num_trainable;
use crate::report::ReportError;
use crate::report::log::{self, Record, RunLog, StartRecord};
use crate::report::tensorboard::EventFile;

/// Something in the folder of a resumed run that was not in order, and how it was handled.
#[derive(Debug)]
pub enum Repair {
    /// A damaged checkpoint was skipped and renamed.
    PassedOver { rejected: Rejected, now: PathBuf },
    /// The log was missing. A new one starts, without the entries up to the checkpoint.
    NoLog { log: PathBuf },
    /// Lines of the log could not be read. The others are kept, and the damaged log is kept in another file.
    DamagedLog { error: ReportError, now: PathBuf },
}

impl<M: Network> Run<M> {
    /// Starts a run in a folder that does not exist yet, or is empty.
    pub fn create(trainer: Trainer<M>, setup: RunSetup) -> Result<Self, RunError> {
        let dir = setup.dir.clone();
        if matches!(folder::is_free(&dir), Ok(false)) {
            return Err(RunError::Exists { path: dir });
        }
        let loader = open_loader(&trainer, &setup)?;
        let lock = folder::claim(&dir)?;
        Self::start(trainer, setup, loader, lock)
    }

    fn start(trainer: Trainer<M>, setup: RunSetup, loader: Loader, lock: Lock) -> Result<Self, RunError> {
        let config = setup.dir.join("config.toml");
        write_atomically(&config, |out| out.write_all(setup.config_toml.as_bytes()))
            .map_err(io_error("write", &config))?;
        let log = new_log(&trainer, &setup)?;
        let records = log::read(setup.dir.join("log.jsonl"))?;
        let events = event_file(&trainer, &setup, None, &records)?;
        Ok(Self {
            checkpoints: Checkpoints::new(setup.dir.join("checkpoints")),
            logged: Logged::of(&records),
            trainer,
            setup,
            loader,
            log,
            events,
            saved: None,
            data_statistics: None,
            lock,
        })
    }

    /// Resumes from the latest complete checkpoint; a run that ended before its first one starts over. `trainer` must be fresh, made from the run's
    /// own configuration. Also returns what had to be repaired.
    pub fn resume(mut trainer: Trainer<M>, setup: RunSetup) -> Result<(Self, Vec<Repair>), RunError> {
        if !setup.dir.is_dir() {
            return Err(RunError::NothingToResume { path: setup.dir });
        }
        let lock = folder::lock(&setup.dir)?;
        let checkpoints = Checkpoints::new(setup.dir.join("checkpoints"));
        checkpoints.tidy()?;
        for folder in [setup.dir.clone(), setup.dir.join("samples")].iter().filter(|folder| folder.is_dir()) {
            remove_leftovers(folder).map_err(io_error("clean up", folder))?;
        }
        let Some((info, path, rejected)) = checkpoints.latest()? else {
            return Self::start_over(trainer, setup, lock);
        };
        check_same(&trainer, &setup, &info)?;
        trainer.restore(&read_state(&path, &info)?)?;
        let loader = open_loader(&trainer, &setup)?;
        let renamed = checkpoints.put_aside(&rejected)?;
        let passed_over = |(rejected, now)| Repair::PassedOver { rejected, now };
        let mut repairs: Vec<Repair> = rejected.into_iter().zip(renamed).map(passed_over).collect();
        let log = reopen_log(&trainer, &setup, &mut repairs)?;
        let records = log::read(setup.dir.join("log.jsonl"))?;
        let events = event_file(&trainer, &setup, Some(info.step), &records)?;
        let run = Self {
            logged: Logged::of(&records),
            trainer,
            setup,
            loader,
            log,
            events,
            checkpoints,
            saved: Some(Saved::from(&info)),
            data_statistics: None,
            lock,
        };
        run.snapshots().cut_back(info.step)?;
        run.finish_saving()?;
        Ok((run, repairs))
    }

    /// Does what follows writing a checkpoint, in case a process was killed in between.
    fn finish_saving(&self) -> Result<(), RunError> {
        for kept in self.checkpoints.steps()?.into_iter().filter(|&step| self.is_kept(step)) {
            self.checkpoints.mark(kept)?;
        }
        self.mark_best()?;
        Ok(self.prune()?)
    }

    fn start_over(trainer: Trainer<M>, setup: RunSetup, lock: Lock) -> Result<(Self, Vec<Repair>), RunError> {
        if !setup.dir.join("config.toml").is_file() {
            return Err(RunError::NothingToResume { path: setup.dir });
        }
        let loader = open_loader(&trainer, &setup)?;
        let repair = remove_log(&setup.dir)?;
        Snapshots::of_run(&setup.dir).cut_back(0)?;
        Ok((Self::start(trainer, setup, loader, lock)?, repair.into_iter().collect()))
    }
}

/// Compares the setup of a resumed run with that of its checkpoint.
fn check_same<M>(trainer: &Trainer<M>, setup: &RunSetup, info: &CheckpointState) -> Result<(), RunError> {
    let (got, expected) = (setup.train.dataset().digest().to_string(), info.data_digest.clone());
    if got != expected {
        return Err(RunError::OtherData { expected, got });
    }
    let range = setup.card.value_range;
    if let Some(before) = info.value_range.filter(|before| range.is_some_and(|now| now != *before)) {
        let shown = |range: [f64; 2]| format!("{},{}", range[0], range[1]);
        let (expected, got) = (shown(before), range.map(shown).unwrap_or_default());
        return Err(RunError::OtherSetting { key: "value_range".to_string(), expected, got });
    }
    if trainer.config().seed != info.seed {
        return Err(RunError::OtherSeed { expected: info.seed, got: trainer.config().seed });
    }
    if trainer.sigma_rels() != info.post_hoc_sigma_rels {
        let shown = |sigma_rels: &[f64]| match sigma_rels {
            [] => "none".to_string(),
            all => all.iter().map(f64::to_string).collect::<Vec<_>>().join(","),
        };
        let (expected, got) = (shown(&info.post_hoc_sigma_rels), shown(&trainer.sigma_rels()));
        return Err(RunError::OtherSetting { key: "post_hoc_sigma_rels".to_string(), expected, got });
    }
    let (before, now) = (&info.settings, &setup.settings);
    // Another version may have other keys; an empty list of settings is not compared.
    let same_version = info.version == setup.card.version && !before.is_empty() && !now.is_empty();
    let is_other = |key: &&String| match (before.get(*key), now.get(*key)) {
        (Some(before), Some(now)) => before != now,
        _ => same_version,
    };
    if let Some(key) = before.keys().chain(now.keys()).find(is_other) {
        let shown = |value: Option<&String>| value.map_or("not set", String::as_str).to_string();
        let (expected, got) = (shown(before.get(key)), shown(now.get(key)));
        return Err(RunError::OtherSetting { key: key.clone(), expected, got });
    }
    Ok(())
}

fn new_log<M: Network>(trainer: &Trainer<M>, setup: &RunSetup) -> Result<RunLog, ReportError> {
    let mut log = RunLog::create(setup.dir.join("log.jsonl"))?;
    log.append(&Record::Start(StartRecord {
        step: 0,
        version: setup.card.version.clone(),
        seed: trainer.config().seed,
        parameters: num_trainable(trainer.model()) as u64,
        images: setup.train.len() as u64,
        device: setup.device_name.clone(),
    }))?;
    Ok(log)
}

/// The log for TensorBoard of a run that begins, or goes on after `step`, if it is wanted.
fn event_file<M>(
    trainer: &Trainer<M>,
    setup: &RunSetup,
    step: Option<u64>,
    records: &[Value],
) -> Result<Option<EventFile>, ReportError> {
    if !trainer.config().tensorboard {
        return Ok(None);
    }
    EventFile::create(&setup.dir, step, records).map(Some)
}

/// Reopens the log up to the trainer's step. A checkpoint is worth more than the log lines that led to it: a damaged log does not end a run.
fn reopen_log<M: Network>(
    trainer: &Trainer<M>,
    setup: &RunSetup,
    repairs: &mut Vec<Repair>,
) -> Result<RunLog, ReportError> {
    let (path, step) = (setup.dir.join("log.jsonl"), trainer.step_count());
    match RunLog::open_for_resume(&path, step) {
        Ok(log) => Ok(log),
        Err(ReportError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let log = new_log(trainer, setup)?;
            repairs.push(Repair::NoLog { log: path });
            Ok(log)
        }
        Err(error @ ReportError::LogLine { .. }) => {
            let (log, now) = RunLog::salvage(&path, step)?;
            repairs.push(Repair::DamagedLog { error, now });
            Ok(log)
        }
        Err(error) => Err(error),
    }
}

/// Removes the log of a run without checkpoints, unless it mentions one that existed.
fn remove_log(dir: &Path) -> Result<Option<Repair>, RunError> {
    let path = dir.join("log.jsonl");
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let records = log::readable(&path)?;
    let is_checkpoint = |record: &&Value| record["kind"] == "checkpoint";
    // If a process was killed while writing its first checkpoint, that line is the last one.
    if let Some(lost) = records[..records.len().saturating_sub(1)].iter().find(is_checkpoint) {
        let step = lost["step"].as_u64().unwrap_or_default();
        return Err(RunError::CheckpointsLost { log: path, step, checkpoints: dir.join("checkpoints") });
    }
    match log::read(&path) {
        Err(error @ ReportError::LogLine { .. }) => {
            let now = log::put_aside(&path)?;
            Ok(Some(Repair::DamagedLog { error, now }))
        }
        _ => {
            std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
            Ok(None)
        }
    }
}
