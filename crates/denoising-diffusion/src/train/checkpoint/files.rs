//! The files of one checkpoint: writing, reading, and verifying their checksums. Not here: which checkpoints there are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CheckpointError, CheckpointState, KEEP, io_error};
use crate::atomic_file::sync_folder;
use crate::digest::{self, FileDigest};
use crate::interop::{self, Metadata};
use crate::model_file::{ModelCard, ModelFile, ModelFileError};
use crate::train::snapshots::{self, power_ema_name};
use crate::train::trainer::{PowerEmaState, TrainerState};
use crate::weights::WeightsKind;
use crate::weights_file::{self, Of};

const CHECKSUMS: &str = "checksums.json";
const STATE: &str = "state.json";
const ADAM: &str = "adam.safetensors";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Checksum {
    sha256: String,
    bytes: u64,
}

/// The file name of weights in a checkpoint's folder.
pub fn weights_name(weights: WeightsKind) -> &'static str {
    match weights {
        WeightsKind::Ema => "ema.safetensors",
        WeightsKind::Model => "model.safetensors",
    }
}

/// Writes a complete checkpoint into a new folder. The checksums come last: they make the folder [complete](verify).
pub(super) fn write(
    folder: &Path,
    state: &TrainerState,
    info: &CheckpointState,
    card: &ModelCard,
    keep: bool,
) -> Result<(), CheckpointError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(io_error("remove", folder))?;
    }
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    for (weights, tensors) in [(WeightsKind::Ema, &state.ema), (WeightsKind::Model, &state.model)] {
        let card = ModelCard { weights, ..card.clone() };
        weights_file::write(&folder.join(weights_name(weights)), Of::Model, &card, tensors)?;
    }
    let mut names = vec![weights_name(WeightsKind::Ema).to_string(), weights_name(WeightsKind::Model).to_string()];
    for average in &state.power_emas {
        names.push(snapshots::write(folder, card, state.adam_steps, average)?);
    }
    names.extend([ADAM, STATE].map(str::to_string));
    interop::write_safetensors(&folder.join(ADAM), &state.adam, &Metadata::new())?;
    write_json(&folder.join(STATE), info)?;
    if keep {
        create_empty(&folder.join(KEEP))?;
    }
    let mut checksums = BTreeMap::new();
    for name in names {
        let sum = checksum(&folder.join(&name))?;
        checksums.insert(name, sum);
    }
    write_json(&folder.join(CHECKSUMS), &checksums)?;
    sync_dir(folder)
}

/// Checks every file of a checkpoint against its checksum.
pub(super) fn verify(path: &Path) -> Result<CheckpointState, CheckpointError> {
    for (name, expected) in &checksums(path)? {
        compare(&path.join(name), expected)?;
    }
    info(path)
}

/// The counters of a checkpoint, and what identifies its run.
pub(super) fn info(path: &Path) -> Result<CheckpointState, CheckpointError> {
    read_json(&path.join(STATE))
}

/// Checks one file of a checkpoint against its checksum.
pub(super) fn verify_file(path: &Path, name: &str) -> Result<(), CheckpointError> {
    match checksums(path)?.get(name) {
        Some(expected) => compare(&path.join(name), expected),
        None => {
            let problem = format!("does not mention {name}");
            Err(CheckpointError::Damaged { path: path.join(CHECKSUMS).display().to_string(), problem })
        }
    }
}

fn checksums(path: &Path) -> Result<BTreeMap<String, Checksum>, CheckpointError> {
    read_json(&path.join(CHECKSUMS))
}

fn compare(file: &Path, expected: &Checksum) -> Result<(), CheckpointError> {
    let got = checksum(file)?;
    let problem = if got.bytes != expected.bytes {
        format!("has {} bytes, but {} were written: it was cut off or changed", got.bytes, expected.bytes)
    } else if got.sha256 != expected.sha256 {
        format!("was changed: its SHA-256 is {}, but was {} when it was written", got.sha256, expected.sha256)
    } else {
        return Ok(());
    };
    Err(CheckpointError::Damaged { path: file.display().to_string(), problem })
}

/// Reads the training state from a checkpoint folder that [`verify`] accepted.
pub(crate) fn read_state(path: &Path, info: &CheckpointState) -> Result<TrainerState, CheckpointError> {
    let weights = |kind| ModelFile::read(&path.join(weights_name(kind))).map(|file| file.state);
    let average = |&sigma_rel: &f64| {
        let file = ModelFile::read(&path.join(power_ema_name(sigma_rel)))?;
        Ok(PowerEmaState { sigma_rel, weights: file.state })
    };
    Ok(TrainerState {
        step: info.step,
        skipped: info.skipped,
        skipped_in_a_row: info.skipped_in_a_row,
        adam_steps: info.adam_steps,
        ema_calls: info.ema_calls,
        model: weights(WeightsKind::Model)?,
        ema: weights(WeightsKind::Ema)?,
        power_emas: info.post_hoc_sigma_rels.iter().map(average).collect::<Result<_, ModelFileError>>()?,
        adam: interop::read_safetensors(&path.join(ADAM))?.0,
    })
}

pub(super) fn create_empty(path: &Path) -> Result<(), CheckpointError> {
    File::create(path).map(drop).map_err(io_error("create", path))
}

/// Makes a rename durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), CheckpointError> {
    sync_folder(path).map_err(io_error("sync", path))
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
