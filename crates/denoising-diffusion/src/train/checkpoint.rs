//! Checkpoints: a folder per step, written aside and renamed, with a checksum for every file in it.
//!
//! ```text
//! checkpoints/step-00001000/
//!   ema.safetensors    the averaged weights, complete in itself (see `model_file`)
//!   model.safetensors  the weights in training, likewise
//!   adam.safetensors   both moments of every parameter
//!   state.json         counters, seed, and what the data was
//!   checksums.json     SHA-256 and size of the files above
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::trainer::TrainerState;
use crate::digest::{self, FileDigest};
use crate::interop::{self, InteropError, Metadata};
use crate::model_file::{ModelCard, ModelFile, ModelFileError, WeightsKind};

const CHECKSUMS: &str = "checksums.json";
const STATE: &str = "state.json";
/// How the name of an unfinished checkpoint begins.
const WRITING: &str = ".writing-step-";
/// A checkpoint with a file of this name is never deleted.
const KEEP: &str = "keep";
/// The best checkpoint has a file of this name, and is not deleted while it is the best.
const BEST: &str = "best";

/// The counters of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    pub version: String,
    pub step: u64,
    pub skipped: u64,
    pub skipped_in_a_row: u64,
    pub adam_steps: u64,
    pub ema_calls: u64,
    pub seed: u64,
    /// Identifies the data that was trained on.
    pub data_digest: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Checksum {
    sha256: String,
    bytes: u64,
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: String, source: io::Error },
    #[error("{path} {problem}")]
    Damaged { path: String, problem: String },
    #[error(transparent)]
    Weights(#[from] InteropError),
    #[error(transparent)]
    Model(#[from] ModelFileError),
    #[error("the checkpoint of step {step} could not be written; {previous}")]
    NotWritten { step: u64, previous: String, source: Box<CheckpointError> },
    #[error("no checkpoint in {path} is whole")]
    NoneWhole { path: String, rejected: Vec<Rejected> },
}

/// A checkpoint that was passed over, and why.
#[derive(Debug)]
pub struct Rejected {
    pub path: PathBuf,
    pub error: CheckpointError,
}

/// The folder of all checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Those in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder of a step.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// Steps with a folder, whole or not, in rising order.
    pub fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut steps: Vec<u64> =
            entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// Writes a checkpoint; if that fails nothing of it remains, and those before it are untouched.
    pub fn save(
        &self,
        state: &TrainerState,
        info: &CheckpointState,
        card: &ModelCard,
    ) -> Result<PathBuf, CheckpointError> {
        let aside = self.dir.join(format!("{WRITING}{:08}", info.step));
        let target = self.path_of(info.step);
        let written = self.write_aside(&aside, state, info, card).and_then(|()| {
            if target.exists() {
                fs::remove_dir_all(&target).map_err(io_error("replace", &target))?;
            }
            fs::rename(&aside, &target).map_err(io_error("rename", &aside))?;
            sync_dir(&self.dir)
        });
        match written {
            Ok(()) => Ok(target),
            Err(source) => {
                let _ = fs::remove_dir_all(&aside);
                let previous = match self.steps().last() {
                    Some(step) => format!("the one before it, {}, is whole", self.path_of(*step).display()),
                    None => "there is none before it".to_string(),
                };
                Err(CheckpointError::NotWritten { step: info.step, previous, source: Box::new(source) })
            }
        }
    }

    fn write_aside(
        &self,
        aside: &Path,
        state: &TrainerState,
        info: &CheckpointState,
        card: &ModelCard,
    ) -> Result<(), CheckpointError> {
        if aside.exists() {
            fs::remove_dir_all(aside).map_err(io_error("remove", aside))?;
        }
        fs::create_dir_all(aside).map_err(io_error("create", aside))?;
        for (weights, tensors) in [(WeightsKind::Ema, &state.ema), (WeightsKind::Model, &state.model)] {
            let card = ModelCard { weights, ..card.clone() };
            ModelFile { card, state: tensors.clone() }.write(&aside.join(weights_name(weights)))?;
        }
        interop::write_safetensors(&aside.join("adam.safetensors"), &state.adam, &Metadata::new())?;
        write_json(&aside.join(STATE), info)?;
        let mut checksums = BTreeMap::new();
        for name in ["ema.safetensors", "model.safetensors", "adam.safetensors", STATE] {
            checksums.insert(name, checksum(&aside.join(name))?);
        }
        write_json(&aside.join(CHECKSUMS), &checksums)?;
        sync_dir(aside)
    }

    /// Removes what a process that was killed while saving has left.
    pub fn remove_leftovers(&self) -> Result<(), CheckpointError> {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(WRITING)) {
                fs::remove_dir_all(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Marks a checkpoint so that it is never deleted.
    pub fn mark(&self, step: u64) -> Result<(), CheckpointError> {
        let path = self.path_of(step).join(KEEP);
        File::create(&path).map(drop).map_err(io_error("create", &path))
    }

    /// Marks a checkpoint as the best, and no other; `None` marks none.
    pub fn mark_best(&self, step: Option<u64>) -> Result<(), CheckpointError> {
        // The new mark first: there is a best checkpoint at every moment.
        if let Some(path) = step.map(|step| self.path_of(step).join(BEST)).filter(|path| !path.exists()) {
            File::create(&path).map(drop).map_err(io_error("create", &path))?;
        }
        for other in self.steps().into_iter().filter(|other| Some(*other) != step) {
            let path = self.path_of(other).join(BEST);
            if path.exists() {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The step of the checkpoint that is marked as the best.
    pub fn best(&self) -> Option<u64> {
        self.steps().into_iter().rev().find(|step| self.path_of(*step).join(BEST).exists())
    }

    /// Deletes all but the latest `keep` checkpoints, the marked ones and the best.
    pub fn prune(&self, keep: usize) -> Result<(), CheckpointError> {
        let best = self.best();
        for step in self.steps().into_iter().rev().skip(keep) {
            let path = self.path_of(step);
            if !path.join(KEEP).exists() && Some(step) != best {
                fs::remove_dir_all(&path).map_err(io_error("delete", &path))?;
            }
        }
        Ok(())
    }

    /// The latest checkpoint that is whole, and those after it that are not. `None` if there is no checkpoint at all.
    pub fn latest(&self) -> Result<Option<(CheckpointState, PathBuf, Vec<Rejected>)>, CheckpointError> {
        let mut rejected = Vec::new();
        for step in self.steps().into_iter().rev() {
            let path = self.path_of(step);
            match verify(&path) {
                Ok(state) => return Ok(Some((state, path, rejected))),
                Err(error) => rejected.push(Rejected { path, error }),
            }
        }
        if rejected.is_empty() {
            return Ok(None);
        }
        Err(CheckpointError::NoneWhole { path: self.dir.display().to_string(), rejected })
    }
}

/// The file of some weights in a checkpoint's folder.
pub fn weights_name(weights: WeightsKind) -> &'static str {
    match weights {
        WeightsKind::Ema => "ema.safetensors",
        WeightsKind::Model => "model.safetensors",
    }
}

/// Reads the state of training from a checkpoint's folder that [`Checkpoints::latest`] found whole.
pub fn read_state(path: &Path, info: &CheckpointState) -> Result<TrainerState, CheckpointError> {
    let weights = |kind| ModelFile::read(&path.join(weights_name(kind))).map(|file| file.state);
    Ok(TrainerState {
        step: info.step,
        skipped: info.skipped,
        skipped_in_a_row: info.skipped_in_a_row,
        adam_steps: info.adam_steps,
        ema_calls: info.ema_calls,
        model: weights(WeightsKind::Model)?,
        ema: weights(WeightsKind::Ema)?,
        adam: interop::read_safetensors(&path.join("adam.safetensors"))?.0,
    })
}

/// Checks every file of a checkpoint against its checksum.
fn verify(path: &Path) -> Result<CheckpointState, CheckpointError> {
    let checksums: BTreeMap<String, Checksum> = read_json(&path.join(CHECKSUMS))?;
    for (name, expected) in &checksums {
        let file = path.join(name);
        let got = checksum(&file)?;
        let problem = if got.bytes != expected.bytes {
            format!("has {} bytes, {} were written: it was cut off or changed", got.bytes, expected.bytes)
        } else if got.sha256 != expected.sha256 {
            format!("was changed: its SHA-256 is {}, {} was written", got.sha256, expected.sha256)
        } else {
            continue;
        };
        return Err(CheckpointError::Damaged { path: file.display().to_string(), problem });
    }
    read_json(&path.join(STATE))
}

fn checksum(path: &Path) -> Result<Checksum, CheckpointError> {
    let FileDigest { sha256, bytes } = digest::of_file(path).map_err(io_error("read", path))?;
    Ok(Checksum { sha256, bytes })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), CheckpointError> {
    let json = serde_json::to_vec_pretty(value).expect("counters and strings serialise");
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(&json)?;
        file.sync_all()
    };
    write().map_err(io_error("write", path))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let text = fs::read(path).map_err(io_error("read", path))?;
    serde_json::from_slice(&text).map_err(|error| CheckpointError::Damaged {
        path: path.display().to_string(),
        problem: format!("cannot be read: {error}"),
    })
}

/// Makes a rename durable; only Unix lets a folder be opened for that.
fn sync_dir(path: &Path) -> Result<(), CheckpointError> {
    if cfg!(unix) { File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path)) } else { Ok(()) }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.display().to_string();
    move |source| CheckpointError::Io { action, path, source }
}
