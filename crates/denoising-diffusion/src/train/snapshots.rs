//! The snapshots of a run's averages, and the average of any length made from them. Not here: the weight of each snapshot (`post_hoc`).
//!
//! ```text
//! RUN/snapshots/step-00001000/ema-0.05.safetensors    complete in itself (see `model_file`)
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::step_folders::{STEP, StepFolders, WRITING};
use super::trainer::PowerEmaState;
use crate::atomic_file::sync_folder;
use crate::interop::InteropError;
use crate::model_file::{ModelCard, ModelFile, ModelFileError};
use crate::post_hoc::{Combination, Profile, ProfileError, Snapshot, combine};
use crate::weights::WeightsKind;
use crate::weights::{HostTensor, StateDict};
use crate::weights_file::{self, Of};

/// The folder of a run's snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    folders: StepFolders,
}

/// An average made from snapshots.
#[derive(Clone, Debug)]
pub struct Averaged {
    /// Complete in itself.
    pub file: ModelFile,
    /// The number of snapshots it is made from.
    pub made_of: usize,
    /// See [`Combination::relative_error`].
    pub relative_error: f64,
}

/// Why an average could not be made from snapshots, or why they could not be written.
#[derive(Debug, Error)]
pub enum SnapshotsError {
    #[error("there are no snapshots in {dir}")]
    None { dir: PathBuf },
    #[error("there is no snapshot of step {step} in {dir}; the nearest one is of step {nearest}")]
    NoSuchStep { dir: PathBuf, step: u64, nearest: u64 },
    #[error("{path} is not a snapshot of step {step}")]
    NoSnapshot { path: PathBuf, step: u64 },
    #[error("{path} belongs to another network than the other snapshots")]
    OtherNetwork { path: PathBuf },
    #[error("no step up to {step} changed the weights, so there is nothing to average")]
    NothingChanged { step: u64 },
    #[error("no combination of these snapshots approximates the average")]
    Unsolvable,
    #[error(transparent)]
    Length(#[from] ProfileError),
    #[error(transparent)]
    Model(#[from] ModelFileError),
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// The file name of an average.
pub(super) fn power_ema_name(sigma_rel: f64) -> String {
    format!("ema-{sigma_rel}.safetensors")
}

/// Writes an average into a folder and returns the file name. `card` is that of the run; `updates` steps changed the weights.
pub(super) fn write(
    folder: &Path,
    card: &ModelCard,
    updates: u64,
    average: &PowerEmaState,
) -> Result<String, InteropError> {
    let (name, ema_sigma_rel) = (power_ema_name(average.sigma_rel), Some(average.sigma_rel));
    let card =
        ModelCard { weights: WeightsKind::Ema, ema_decay: None, ema_sigma_rel, updates: Some(updates), ..card.clone() };
    weights_file::write(&folder.join(&name), Of::Model, &card, &average.weights)?;
    Ok(name)
}

/// A file and its snapshot.
#[derive(Clone, Debug)]
struct Stored {
    path: PathBuf,
    at: Snapshot,
}

impl Snapshots {
    /// The snapshots of the run in `run`.
    pub fn of_run(run: &Path) -> Self {
        Self { folders: StepFolders::new(run.join("snapshots")) }
    }

    /// Steps with snapshots, in increasing order.
    pub fn steps(&self) -> Result<Vec<u64>, SnapshotsError> {
        self.steps_named(STEP)
    }

    fn steps_named(&self, prefix: &str) -> Result<Vec<u64>, SnapshotsError> {
        self.folders.steps(prefix).map_err(io_error("read", self.folders.dir()))
    }

    /// Writes the averages after step `card.step`, `updates` of whose steps changed something; all of them or, if they exist already, none.
    pub(super) fn save(
        &self,
        card: &ModelCard,
        updates: u64,
        averages: impl Iterator<Item = PowerEmaState>,
    ) -> Result<(), SnapshotsError> {
        let (aside, target) = (self.folders.named(WRITING, card.step), self.folders.named(STEP, card.step));
        if target.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&aside).map_err(io_error("create", &aside))?;
        for average in averages {
            write(&aside, card, updates, &average).map_err(ModelFileError::File)?;
        }
        fs::rename(&aside, &target).map_err(io_error("rename", &aside))?;
        sync_folder(self.folders.dir()).map_err(io_error("sync", self.folders.dir()))
    }

    /// Removes incomplete snapshots, and those of later steps, which a run resumed from `step` makes again.
    pub(super) fn cut_back(&self, step: u64) -> Result<(), SnapshotsError> {
        let later = self.steps_named(STEP)?.into_iter().filter(|&later| later > step).map(|later| (STEP, later));
        let half = self.steps_named(WRITING)?.into_iter().map(|step| (WRITING, step));
        for folder in later.chain(half).map(|(prefix, step)| self.folders.named(prefix, step)) {
            fs::remove_dir_all(&folder).map_err(io_error("remove", &folder))?;
        }
        Ok(())
    }

    /// The average of this length after step `at`, which must have a snapshot; by default the last. `progress` gets the number of files read and the
    /// total.
    pub fn average(
        &self,
        sigma_rel: f64,
        at: Option<u64>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Averaged, SnapshotsError> {
        let profile = Profile::new(sigma_rel)?;
        let steps = self.steps()?;
        let dir = || self.folders.dir().to_path_buf();
        let Some(&last) = steps.last() else { return Err(SnapshotsError::None { dir: dir() }) };
        let step = at.unwrap_or(last);
        if !steps.contains(&step) {
            let nearest = steps.into_iter().min_by_key(|other| other.abs_diff(step)).unwrap_or(last);
            return Err(SnapshotsError::NoSuchStep { dir: dir(), step, nearest });
        }
        let stored = self.stored(&steps, step)?;
        let Some(latest) = stored.last() else { return Err(SnapshotsError::NothingChanged { step }) };
        let wanted = Snapshot { profile, steps: latest.at.steps };
        let snapshots: Vec<Snapshot> = stored.iter().map(|stored| stored.at).collect();
        let Combination { coefficients, relative_error } =
            combine(&snapshots, &wanted).ok_or(SnapshotsError::Unsolvable)?;
        let mut file = add_up(&stored, &coefficients, progress)?;
        file.card = ModelCard { step, ema_sigma_rel: Some(sigma_rel), updates: None, ..file.card };
        Ok(Averaged { file, made_of: stored.len(), relative_error })
    }

    /// The snapshots of steps up to `last`, in order. If no step between two of them changed anything, only one of the two is included.
    fn stored(&self, steps: &[u64], last: u64) -> Result<Vec<Stored>, SnapshotsError> {
        let mut all: Vec<Stored> = Vec::new();
        for &step in steps.iter().filter(|&&step| step <= last) {
            for stored in self.stored_at(step)? {
                // Before the first effective step there is no average.
                if stored.at.steps > 0 && all.iter().all(|other| other.at != stored.at) {
                    all.push(stored);
                }
            }
        }
        Ok(all)
    }

    fn stored_at(&self, step: u64) -> Result<Vec<Stored>, SnapshotsError> {
        let folder = self.folders.named(STEP, step);
        let entries = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let paths = entries.map_err(io_error("read", &folder))?.into_iter().map(|entry| entry.path());
        let mut paths: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect();
        paths.sort();
        if paths.is_empty() {
            return Err(SnapshotsError::NoSnapshot { path: folder, step });
        }
        let stored = |path: PathBuf| {
            let card = ModelFile::read_card(&path)?;
            match (card.ema_sigma_rel, card.updates) {
                (Some(sigma_rel), Some(steps)) if card.step == step => {
                    Ok(Stored { at: Snapshot { profile: Profile::new(sigma_rel)?, steps }, path })
                }
                _ => Err(SnapshotsError::NoSnapshot { path, step }),
            }
        };
        paths.into_iter().map(stored).collect()
    }
}

/// The weighted sum of files, with weights that add up to 1; its card is like that of the last file.
fn add_up(
    stored: &[Stored],
    coefficients: &[f64],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<ModelFile, SnapshotsError> {
    let Some((last, others)) = stored.split_last() else { return Err(SnapshotsError::Unsolvable) };
    let base = ModelFile::read(&last.path)?;
    progress(1, stored.len());
    // Differences to the last file are added up, so that tensors that never changed stay the same to the bit.
    let mut added: BTreeMap<String, Vec<f64>> =
        base.state.iter().map(|(name, tensor)| (name.to_string(), vec![0.0; tensor.values.len()])).collect();
    for (i, (Stored { path, .. }, coefficient)) in others.iter().zip(coefficients).enumerate() {
        let part = ModelFile::read(path)?;
        let other_network = || SnapshotsError::OtherNetwork { path: path.clone() };
        if part.card.network != base.card.network || part.card.diffusion != base.card.diffusion {
            return Err(other_network());
        }
        for (name, added) in &mut added {
            let base = base.state.get(name).ok_or_else(other_network)?;
            let tensor = part.state.get(name).filter(|tensor| tensor.shape == base.shape).ok_or_else(other_network)?;
            for ((added, value), base) in added.iter_mut().zip(&tensor.values).zip(&base.values) {
                *added += coefficient * (f64::from(*value) - f64::from(*base));
            }
        }
        progress(i + 2, stored.len());
    }
    let mut state = StateDict::new();
    for (name, HostTensor { shape, values }) in base.state.iter() {
        let sums = values.iter().zip(&added[name]).map(|(base, added)| (f64::from(*base) + added) as f32);
        state.insert(name, HostTensor { shape: shape.clone(), values: sums.collect() });
    }
    Ok(ModelFile { card: base.card, state })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotsError {
    let path = path.to_owned();
    move |source| SnapshotsError::Io { action, path, source }
}
