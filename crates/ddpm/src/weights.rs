//! From what a user names (a run, a checkpoint, a file of ours or of the reference) to usable weights. Not here: reading files and inferring
//! configurations from tensors, which the library does, and values given by flags (`completed.rs`).

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use denoising_diffusion::data::DataLayout;
use denoising_diffusion::interop::{Inferred, ReferenceCheckpoint, ReferenceWeights, is_safetensors};
use denoising_diffusion::model_file::{ModelFile, ModelFileError};
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::train::{Checkpoints, RunError, weights_name};
use denoising_diffusion::weights::WeightsKind;

use crate::failure::{Failure, FailureExt, Result, chain};
use crate::output::note;
use crate::recipe_flags::{RecipeFlags, UntoldFlags};
use crate::recipes;

mod completed;

/// For clap: the kind of weights.
pub fn weights_kind() -> impl TypedValueParser<Value = WeightsKind> {
    let words = WeightsKind::ALL.map(|kind| PossibleValue::new(kind.name()).help(kind.about()));
    let named = |word: String| WeightsKind::ALL.into_iter().find(|kind| kind.name() == word);
    PossibleValuesParser::new(words).try_map(move |word| named(word).ok_or("no such weights"))
}

/// Weights that were found but not yet used.
#[derive(Debug)]
pub struct Found {
    /// The file that was read.
    pub path: PathBuf,
    pub source: Source,
    /// The recipe of the run that they belong to, if a run was named.
    pub recipe: Option<Recipe>,
}

/// Which program wrote the file.
#[derive(Debug)]
pub enum Source {
    Ours(Box<ModelFile>),
    Reference(Box<Reference>),
}

/// A file of the reference, one set of its weights, and what they reveal.
#[derive(Debug)]
pub struct Reference {
    pub checkpoint: ReferenceCheckpoint,
    pub weights: ReferenceWeights,
    pub inferred: Inferred,
    pub kind: WeightsKind,
}

impl Found {
    /// Finds the weights of a run folder, a checkpoint folder or a file. Without `wanted`, a file of ours gives the weights that it has, and
    /// everything else the moving average.
    pub fn open(target: &Path, wanted: Option<WeightsKind>) -> Result<Self> {
        let kind = wanted.unwrap_or_default();
        if let Some(best) = best_of(target)? {
            let recipe = target.parent().map(recipes::of_run).transpose()?;
            return Ok(Self { recipe, ..Self::open_file(&best.join(weights_name(kind)), wanted)? });
        }
        if target.ends_with("best")
            && !target.exists()
            && target.parent().is_some_and(|run| run.join("checkpoints").is_dir())
        {
            return Err(Failure::failed(format!("{}: the run has no best checkpoint", target.display()))
                .hint("train with --evaluate-every to have one, or give the run folder to use its latest checkpoint"));
        }
        if !target.exists() {
            return Err(Failure::failed(format!("no such file or folder: {}", target.display())).hint(
                "give a run folder, RUN/best, a checkpoint folder, a .safetensors file or a .pt file of the reference",
            ));
        }
        if !target.is_dir() {
            return Self::open_file(target, wanted);
        }
        if target.join(weights_name(kind)).is_file() {
            return Self::open_file(&target.join(weights_name(kind)), wanted);
        }
        let recipe = recipes::of_run(target)?;
        let checkpoints = Checkpoints::new(target.join("checkpoints"));
        let Some((file, rejected)) = checkpoints.latest_weights(kind)? else {
            return Err(RunError::NothingToResume { path: target.to_path_buf() }.into()).map_err(|failure: Failure| {
                failure.hint("train until the first checkpoint is written (--save-every)")
            });
        };
        for passed_over in rejected {
            note(format!(
                "warning: skipped the damaged checkpoint {}: {}",
                passed_over.path.display(),
                chain(&passed_over.error)
            ));
        }
        let found = Self::open_file(&file, wanted)?;
        Ok(Self { recipe: Some(recipe), ..found })
    }

    fn open_file(path: &Path, wanted: Option<WeightsKind>) -> Result<Self> {
        let found = |source| Self { path: path.to_path_buf(), source, recipe: None };
        if is_safetensors(path)? {
            match ModelFile::read(path) {
                Err(ModelFileError::NoCard { .. }) => {}
                file => return Ok(found(Source::Ours(Box::new(of_kind(file?, path, wanted)?)))),
            }
        }
        let checkpoint = ReferenceCheckpoint::open(path)?;
        let asked_for = wanted.unwrap_or_default();
        let weights = checkpoint.weights(asked_for)?;
        // A plain state dict has one set of weights, whichever was requested.
        let averaged = asked_for == WeightsKind::Ema && checkpoint.available().contains(&WeightsKind::Ema);
        let kind = if averaged { WeightsKind::Ema } else { WeightsKind::Model };
        let inferred = weights.infer().context(format!("cannot use the weights of {}", path.display()))?;
        Ok(found(Source::Reference(Box::new(Reference { checkpoint, weights, inferred, kind }))))
    }

    /// The length of sequences that a flag gives.
    pub fn said_length(flags: &RecipeFlags) -> Result<Option<usize>> {
        Ok(completed::size_for(DataLayout::Sequences, flags)?.map(|size| size.width))
    }

    /// Card and tensors in our form. `untold` provides what a file of the reference does not state.
    pub fn into_model(self, untold: &UntoldFlags) -> Result<ModelFile> {
        match self.source {
            Source::Ours(file) => completed::resized(*file, &untold.0, &self.path),
            Source::Reference(reference) => reference.into_model(&untold.0, &self.path),
        }
    }
}

/// The folder of the best checkpoint, if the target is `RUN/best`.
pub fn best_of(target: &Path) -> Result<Option<PathBuf>> {
    let Some(run) = target.parent().filter(|_| target.ends_with("best") && !target.exists()) else { return Ok(None) };
    let checkpoints = Checkpoints::new(run.join("checkpoints"));
    Ok(checkpoints.best()?.map(|step| checkpoints.path_of(step)))
}

/// Checks the kind of weights: a file of ours holds only one.
fn of_kind(file: ModelFile, path: &Path, wanted: Option<WeightsKind>) -> Result<ModelFile> {
    match wanted {
        Some(kind) if kind != file.card.weights => Err(Failure::usage(format!(
            "{} holds the weights `{}`, not `{}`",
            path.display(),
            file.card.weights.name(),
            kind.name()
        ))
        .hint("give the checkpoint folder, which holds both")),
        _ => Ok(file),
    }
}
