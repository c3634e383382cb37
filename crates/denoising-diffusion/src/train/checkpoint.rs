//! Checkpoints: one folder per step, written under a temporary name and renamed, with a checksum for every file.
//!
//! ```text
//! checkpoints/step-00001000/
//!   ema.safetensors    the averaged weights, self-contained (see `model_file`)
//!   model.safetensors  the weights in training, likewise
//!   ema-0.05.safetensors  post-hoc averages, if any, likewise
//!   adam.safetensors   both moments of every parameter
//!   state.json         counters, seed, settings, and the digest of the data
//!   checksums.json     SHA-256 and size of the files above
//! ```
//!
//! At any time there is a complete checkpoint of each step that had one and was not deleted: under its own name, or under a temporary one, where
//! [`Checkpoints::tidy`] finds it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::step_folders::{STEP, StepFolders, WRITING};
use super::trainer::TrainerState;
use crate::interop::InteropError;
use crate::model_file::{ModelCard, ModelFileError};
use crate::weights::WeightsKind;

mod files;
#[cfg(test)]
mod tests;

pub(super) use files::read_state;
pub use files::weights_name;
use files::{create_empty, info, sync_dir, verify, verify_file};

/// Prefix of a checkpoint being replaced.
const REPLACED: &str = ".replaced-step-";
/// Prefix of a checkpoint being deleted.
const DELETING: &str = ".deleting-step-";
/// Prefix of a checkpoint found damaged.
const DAMAGED: &str = "damaged-step-";
/// A checkpoint that contains a file of this name is never deleted.
const KEEP: &str = "keep";
/// The best checkpoint contains a file of this name, and is not deleted while it is the best.
const BEST: &str = "best";

/// The counters of a run, and what identifies it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    pub version: String,
    pub step: u64,
    pub skipped: u64,
    pub skipped_in_a_row: u64,
    pub adam_steps: u64,
    pub ema_calls: u64,
    pub seed: u64,
    /// Identifies the training data.
    pub data_digest: String,
    /// Settings that must not change on resume ([`RunSetup::settings`](super::RunSetup::settings)); absent in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "with_values")]
    pub settings: BTreeMap<String, String>,
    /// The values of 0 and 1 in the units of the data, if measured or declared: not part of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_range: Option<[f64; 2]>,
    /// Lengths of the stored post-hoc averages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post_hoc_sigma_rels: Vec<f64>,
}

impl CheckpointState {
    /// The state of the checkpoint that a file of weights lies in; `None` if it lies in none, or the state cannot be read.
    pub fn beside(weights: &Path) -> Option<Self> {
        info(weights.parent()?).ok()
    }
}

/// Settings that have a value, by their current names: earlier checkpoints also list those without a value, and use an older name.
fn with_values<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    let settings = BTreeMap::<String, Option<String>>::deserialize(input)?;
    let renamed = |key: String| match key.as_str() {
        "dit.class_dropout_prob" => "dit.class_drop_prob".to_string(),
        _ => key,
    };
    Ok(settings.into_iter().filter_map(|(key, value)| Some((renamed(key), value?))).collect())
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
    #[error("no checkpoint in {path} is intact")]
    NoneWhole { path: String, rejected: Vec<Rejected> },
}

impl CheckpointError {
    /// Whether the checkpoint itself is at fault: a file is missing or has been changed. That a file cannot be read at the moment (a network file
    /// system that does not answer, too many open files) says nothing about what it holds.
    fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// What a check found: `None` for damage. If the files cannot be read, that is the error.
fn undamaged<T>(verified: Result<T, CheckpointError>) -> Result<Option<T>, CheckpointError> {
    match verified {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A checkpoint that was skipped, and why.
#[derive(Debug)]
pub struct Rejected {
    pub path: PathBuf,
    pub error: CheckpointError,
}

/// The folder that holds all checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folders: StepFolders,
}

impl Checkpoints {
    /// The checkpoints in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { folders: StepFolders::new(dir.into()) }
    }

    /// The folder of a step.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.named(STEP, step)
    }

    fn named(&self, prefix: &str, step: u64) -> PathBuf {
        self.folders.named(prefix, step)
    }

    fn dir(&self) -> &Path {
        self.folders.dir()
    }

    /// Steps that have a folder, complete or not, in increasing order.
    ///
    /// # Errors
    /// The folder of all checkpoints cannot be read. It is no error if it does not exist yet.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        self.steps_named(STEP)
    }

    fn steps_named(&self, prefix: &str) -> Result<Vec<u64>, CheckpointError> {
        self.folders.steps(prefix).map_err(io_error("read", self.dir()))
    }

    /// Writes a checkpoint, marked to be kept if `keep` is set or an existing checkpoint of the same step is marked. If writing fails, nothing of it
    /// remains, and what was there is untouched.
    pub fn save(
        &self,
        state: &TrainerState,
        info: &CheckpointState,
        card: &ModelCard,
        keep: bool,
    ) -> Result<PathBuf, CheckpointError> {
        let (aside, target) = (self.named(WRITING, info.step), self.path_of(info.step));
        let keep = keep || target.join(KEEP).exists();
        let written = files::write(&aside, state, info, card, keep).and_then(|()| self.put_in_place(&aside, info.step));
        match written {
            Ok(()) => Ok(target),
            Err(source) => {
                let _ = fs::remove_dir_all(&aside);
                let previous = match self.steps().unwrap_or_default().last() {
                    Some(step) => format!("the previous one, {}, is intact", self.path_of(*step).display()),
                    None => "there is no previous one".to_string(),
                };
                Err(CheckpointError::NotWritten { step: info.step, previous, source: Box::new(source) })
            }
        }
    }

    /// Renames a complete checkpoint to its final name. An existing one of that name stays until then, and is deleted afterwards.
    fn put_in_place(&self, aside: &Path, step: u64) -> Result<(), CheckpointError> {
        let (target, replaced) = (self.path_of(step), self.named(REPLACED, step));
        if target.exists() {
            self.delete_aside(&replaced)?;
            rename(&target, &replaced)?;
        }
        if let Err(error) = rename(aside, &target) {
            if replaced.exists() {
                let _ = fs::rename(&replaced, &target);
            }
            return Err(error);
        }
        sync_dir(self.dir())?;
        self.delete_aside(&replaced)
    }

    fn delete_aside(&self, path: &Path) -> Result<(), CheckpointError> {
        if path.exists() { fs::remove_dir_all(path).map_err(io_error("remove", path)) } else { Ok(()) }
    }

    /// Cleans up after a killed process: a complete checkpoint under a temporary name gets its final name if there is no complete one there, and all
    /// other temporary folders are removed. No other process may be writing there.
    ///
    /// # Errors
    /// A file cannot be read, renamed or removed. What could not be read is left where it is.
    pub fn tidy(&self) -> Result<(), CheckpointError> {
        // The newer one of a step first.
        for prefix in [WRITING, REPLACED] {
            for step in self.steps_named(prefix)? {
                let (aside, target) = (self.named(prefix, step), self.path_of(step));
                if undamaged(verify(&target))?.is_none() && undamaged(verify(&aside))?.is_some() {
                    if target.exists() {
                        self.call_damaged(step)?;
                    }
                    rename(&aside, &target)?;
                    sync_dir(self.dir())?;
                }
                self.delete_aside(&aside)?;
            }
        }
        self.steps_named(DELETING)?.into_iter().try_for_each(|step| self.delete_aside(&self.named(DELETING, step)))
    }

    /// Renames checkpoints that were skipped, so that they no longer count, and returns the new paths.
    pub(super) fn put_aside(&self, rejected: &[Rejected]) -> Result<Vec<PathBuf>, CheckpointError> {
        let steps = self.steps()?;
        let step = |rejected: &Rejected| steps.iter().copied().find(|step| self.path_of(*step) == rejected.path);
        rejected.iter().filter_map(step).map(|step| self.call_damaged(step)).collect()
    }

    fn call_damaged(&self, step: u64) -> Result<PathBuf, CheckpointError> {
        let first = self.named(DAMAGED, step);
        let others = (2..).map(|number| self.dir().join(format!("{DAMAGED}{step:08}-{number}")));
        let free = std::iter::once(first).chain(others).find(|path| path.symlink_metadata().is_err());
        let free = free.expect("numbers do not end");
        rename(&self.path_of(step), &free)?;
        sync_dir(self.dir())?;
        Ok(free)
    }

    /// Marks a checkpoint so that it is never deleted.
    pub fn mark(&self, step: u64) -> Result<(), CheckpointError> {
        let path = self.path_of(step).join(KEEP);
        if path.exists() { Ok(()) } else { create_empty(&path) }
    }

    /// Marks this checkpoint, and no other, as the best; `None` removes the mark.
    pub fn mark_best(&self, step: Option<u64>) -> Result<(), CheckpointError> {
        // The new mark first: there is a best checkpoint at any time.
        if let Some(path) = step.map(|step| self.path_of(step).join(BEST)).filter(|path| !path.exists()) {
            create_empty(&path)?;
        }
        for other in self.steps()?.into_iter().filter(|other| Some(*other) != step) {
            let path = self.path_of(other).join(BEST);
            if path.exists() {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The step of the checkpoint that is marked as the best.
    pub fn best(&self) -> Result<Option<u64>, CheckpointError> {
        Ok(self.steps()?.into_iter().rev().find(|step| self.path_of(*step).join(BEST).exists()))
    }

    /// Deletes all but the latest `keep` checkpoints, the marked ones, the best, and that of the step just `saved`.
    pub fn prune(&self, keep: usize, saved: u64) -> Result<(), CheckpointError> {
        let best = self.best()?;
        for step in self.steps()?.into_iter().rev().skip(keep) {
            let path = self.path_of(step);
            if !path.join(KEEP).exists() && Some(step) != best && step != saved {
                // Renamed first: a half-deleted folder must not be taken for a checkpoint.
                let deleting = self.named(DELETING, step);
                self.delete_aside(&deleting)?;
                rename(&path, &deleting)?;
                self.delete_aside(&deleting)?;
            }
        }
        Ok(())
    }

    /// The latest complete checkpoint, and the incomplete or damaged ones after it. `None` if there is no checkpoint at all.
    ///
    /// # Errors
    /// No checkpoint is complete, or one that may be cannot be read.
    pub fn latest(&self) -> Result<Option<(CheckpointState, PathBuf, Vec<Rejected>)>, CheckpointError> {
        self.latest_by(verify)
    }

    /// The file of the latest checkpoint whose weights of this kind are undamaged, and the checkpoints after it. Other files, which are several times as
    /// large, are not read.
    ///
    /// # Errors
    /// As [`latest`](Self::latest).
    pub fn latest_weights(&self, weights: WeightsKind) -> Result<Option<(PathBuf, Vec<Rejected>)>, CheckpointError> {
        let name = weights_name(weights);
        let found = self.latest_by(|path| verify_file(path, name))?;
        Ok(found.map(|((), path, rejected)| (path.join(name), rejected)))
    }

    fn latest_by<T>(
        &self,
        verify: impl Fn(&Path) -> Result<T, CheckpointError>,
    ) -> Result<Option<(T, PathBuf, Vec<Rejected>)>, CheckpointError> {
        let mut rejected = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.path_of(step);
            match verify(&path) {
                Ok(found) => return Ok(Some((found, path, rejected))),
                Err(error) if error.is_damage() => rejected.push(Rejected { path, error }),
                Err(error) => return Err(error),
            }
        }
        if rejected.is_empty() {
            return Ok(None);
        }
        Err(CheckpointError::NoneWhole { path: self.dir().display().to_string(), rejected })
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    fs::rename(from, to).map_err(io_error("rename", from))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.display().to_string();
    move |source| CheckpointError::Io { action, path, source }
}
