//! The snapshots of a run's averages, and the average of any length that is made of them. Not here: which snapshots count how much (`post_hoc`).
//!
//! ```text
//! RUN/snapshots/step-00001000/ema-0.05.safetensors    complete in itself (see `model_file`)
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::trainer::PowerEmaState;
use crate::model_file::{ModelCard, ModelFile, ModelFileError, WeightsKind};
use crate::post_hoc::{Combination, Profile, ProfileError, Snapshot, combine};
use crate::weights::{HostTensor, StateDict};

const STEP: &str = "step-";

/// The folder of a run's snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: PathBuf,
}

/// An average that was made of snapshots.
#[derive(Clone, Debug)]
pub struct Averaged {
    /// Complete in itself.
    pub file: ModelFile,
    /// The number of snapshots.
    pub made_of: usize,
    /// See [`Combination::relative_error`].
    pub relative_error: f64,
}

/// Why snapshots give no average, or cannot be written.
#[derive(Debug, Error)]
pub enum SnapshotsError {
    #[error("there are no snapshots in {dir}")]
    None { dir: PathBuf },
    #[error("there is no snapshot of step {step} in {dir}; there are some of steps {first} to {last}")]
    NoSuchStep { dir: PathBuf, step: u64, first: u64, last: u64 },
    #[error("{path} holds no average that others can be made of")]
    NoSnapshot { path: PathBuf },
    #[error("{path} belongs to another network than the other snapshots do")]
    OtherNetwork { path: PathBuf },
    #[error("no sum of these snapshots comes near the average")]
    Unsolvable,
    #[error(transparent)]
    Length(#[from] ProfileError),
    #[error(transparent)]
    Model(#[from] ModelFileError),
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// The name of the file of an average.
pub(super) fn power_ema_name(sigma_rel: f64) -> String {
    format!("ema-{sigma_rel}.safetensors")
}

/// An average as a file; `card` is that of the run, `updates` what the weights were changed by.
pub(super) fn power_ema_file(card: &ModelCard, updates: u64, average: PowerEmaState) -> ModelFile {
    let PowerEmaState { sigma_rel, weights: state } = average;
    let ema_sigma_rel = Some(sigma_rel);
    let card =
        ModelCard { weights: WeightsKind::Ema, ema_decay: None, ema_sigma_rel, updates: Some(updates), ..card.clone() };
    ModelFile { card, state }
}

impl Snapshots {
    /// Those of the run in `run`.
    pub fn of_run(run: &Path) -> Self {
        Self { dir: run.join("snapshots") }
    }

    fn folder(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{STEP}{step:08}"))
    }

    /// Steps with a folder, in rising order.
    pub fn steps(&self) -> Result<Vec<u64>, SnapshotsError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => {
                entries.and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(io_error("read", &self.dir))?
            }
        };
        let step = |name: &str| name.strip_prefix(STEP)?.parse().ok();
        let mut steps: Vec<u64> = entries.iter().filter_map(|entry| step(entry.file_name().to_str()?)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes averages as they are after step `card.step`, of which `updates` changed something.
    pub(super) fn save(
        &self,
        card: &ModelCard,
        updates: u64,
        averages: Vec<PowerEmaState>,
    ) -> Result<(), SnapshotsError> {
        let folder = self.folder(card.step);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        for average in averages {
            let path = folder.join(power_ema_name(average.sigma_rel));
            power_ema_file(card, updates, average).write(&path).map_err(ModelFileError::File)?;
        }
        Ok(())
    }

    /// Removes the snapshots of later steps, which a run that goes on from `step` makes again.
    pub(super) fn cut_back(&self, step: u64) -> Result<(), SnapshotsError> {
        for later in self.steps()?.into_iter().filter(|&later| later > step) {
            let folder = self.folder(later);
            fs::remove_dir_all(&folder).map_err(io_error("remove", &folder))?;
        }
        Ok(())
    }

    /// The average of this length as it would be after step `at`, of which there must be a snapshot; by default the last.
    pub fn average(&self, sigma_rel: f64, at: Option<u64>) -> Result<Averaged, SnapshotsError> {
        let profile = Profile::new(sigma_rel)?;
        let steps = self.steps()?;
        let (Some(&first), Some(&last)) = (steps.first(), steps.last()) else {
            return Err(SnapshotsError::None { dir: self.dir.clone() });
        };
        let step = at.unwrap_or(last);
        if !steps.contains(&step) {
            return Err(SnapshotsError::NoSuchStep { dir: self.dir.clone(), step, first, last });
        }
        let stored = self.stored(&steps, step)?;
        let (Some(latest), snapshots) = (stored.last(), stored.iter().map(|(_, at)| *at).collect::<Vec<_>>()) else {
            return Err(SnapshotsError::None { dir: self.dir.clone() });
        };
        let wanted = Snapshot { profile, steps: latest.1.steps };
        let Some(Combination { coefficients, relative_error }) = combine(&snapshots, &wanted) else {
            return Err(SnapshotsError::Unsolvable);
        };
        let parts: Vec<(&Path, f64)> =
            stored.iter().zip(&coefficients).map(|((path, _), coefficient)| (path.as_path(), *coefficient)).collect();
        let mut file = add_up(&parts)?;
        file.card.ema_sigma_rel = Some(sigma_rel);
        file.card.updates = None;
        Ok(Averaged { file, made_of: stored.len(), relative_error })
    }

    /// The files of steps up to `last`, and what they hold; the latest at the end. Where no step between two snapshots changed anything, one of them.
    fn stored(&self, steps: &[u64], last: u64) -> Result<Vec<(PathBuf, Snapshot)>, SnapshotsError> {
        let mut stored: Vec<(PathBuf, Snapshot)> = Vec::new();
        for folder in steps.iter().filter(|&&step| step <= last).map(|&step| self.folder(step)) {
            let entries = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let mut paths: Vec<PathBuf> =
                entries.map_err(io_error("read", &folder))?.into_iter().map(|entry| entry.path()).collect();
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
            paths.sort();
            for path in paths {
                let card = ModelFile::read_card(&path)?;
                let (Some(sigma_rel), Some(steps)) = (card.ema_sigma_rel, card.updates) else {
                    return Err(SnapshotsError::NoSnapshot { path });
                };
                let at = Snapshot { profile: Profile::new(sigma_rel)?, steps };
                // Before the first step there is no average yet.
                if steps > 0 && stored.iter().all(|(_, other)| *other != at) {
                    stored.push((path, at));
                }
            }
        }
        Ok(stored)
    }
}

/// The weighted sum of files, the weights being 1 together; a card like that of the last.
fn add_up(parts: &[(&Path, f64)]) -> Result<ModelFile, SnapshotsError> {
    let Some(((last, _), others)) = parts.split_last() else { return Err(SnapshotsError::Unsolvable) };
    let mut sum = ModelFile::read(last)?;
    // Differences to the last one are added up: what never changed stays as it is, to the bit.
    let mut added: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (path, coefficient) in others {
        let part = ModelFile::read(path)?;
        let other_network = || SnapshotsError::OtherNetwork { path: path.to_path_buf() };
        for (name, base) in sum.state.iter() {
            let tensor = part.state.get(name).filter(|tensor| tensor.shape == base.shape).ok_or_else(other_network)?;
            let added = added.entry(name.to_string()).or_insert_with(|| vec![0.0; base.values.len()]);
            for ((added, value), base) in added.iter_mut().zip(&tensor.values).zip(&base.values) {
                *added += coefficient * (f64::from(*value) - f64::from(*base));
            }
        }
    }
    let mut state = StateDict::new();
    for (name, HostTensor { shape, values }) in sum.state.iter() {
        let changes = added.get(name).into_iter().flatten().copied().chain(std::iter::repeat(0.0));
        let values = values.iter().zip(changes).map(|(base, change)| (f64::from(*base) + change) as f32).collect();
        state.insert(name, HostTensor { shape: shape.clone(), values });
    }
    sum.state = state;
    Ok(sum)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotsError {
    let path = path.to_owned();
    move |source| SnapshotsError::Io { action, path, source }
}
