//! From what a user names (a run, a checkpoint, a file of ours or of the reference) to weights that can be used. Not here: reading
//! files and telling configurations from tensors, which the library does.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use denoising_diffusion::data::{DataLayout, ImageShape};
use denoising_diffusion::diffusion::DiffusionConfig;
use denoising_diffusion::interop::{Inferred, ReferenceCheckpoint, ReferenceWeights, Which};
use denoising_diffusion::model_file::{ModelCard, ModelFile, ModelFileError, NetworkConfig, WeightsKind};
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::train::{Checkpoints, RunError, weights_name};
use toml::Table;

use crate::failure::{Failure, FailureExt, Result, SMALL_LEVELS, chain};
use crate::output::note;
use crate::recipe_flags::{RecipeFlags, UntoldFlags, plain};
use crate::recipes;

/// Which weights are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightsArg {
    /// The moving average.
    Ema,
    /// The network in training.
    Model,
}

impl From<WeightsArg> for WeightsKind {
    fn from(arg: WeightsArg) -> Self {
        match arg {
            WeightsArg::Ema => Self::Ema,
            WeightsArg::Model => Self::Model,
        }
    }
}

/// Weights, found but not yet made use of.
#[derive(Debug)]
pub struct Found {
    /// The file that was read.
    pub path: PathBuf,
    pub source: Source,
    /// The recipe of the run that it belongs to, if a run was named.
    pub recipe: Option<Recipe>,
}

/// Whose file it is.
#[derive(Debug)]
pub enum Source {
    Ours(Box<ModelFile>),
    Reference(Box<Reference>),
}

/// A file of the reference, one set of its weights, and what they tell.
#[derive(Debug)]
pub struct Reference {
    pub checkpoint: ReferenceCheckpoint,
    pub weights: ReferenceWeights,
    pub inferred: Inferred,
    pub kind: WeightsKind,
}

impl Found {
    /// Finds the weights of a run folder, a checkpoint's folder or a file. Without `wanted` a file of ours gives what it has, and
    /// everything else the moving average.
    pub fn open(target: &Path, wanted: Option<WeightsArg>) -> Result<Self> {
        let kind = wanted.map_or(WeightsKind::Ema, WeightsKind::from);
        if let Some(best) = best_of(target) {
            let recipe = target.parent().map(recipes::of_run).transpose()?;
            return Ok(Self { recipe, ..Self::open_file(&best.join(weights_name(kind)), wanted)? });
        }
        if !target.exists() {
            return Err(Failure::failed(format!("no such file or folder: {}", target.display()))
                .hint("give a run folder, RUN/best, a checkpoint's folder, a .safetensors file or a .pt file of the reference"));
        }
        if !target.is_dir() {
            return Self::open_file(target, wanted);
        }
        if target.join(weights_name(kind)).is_file() {
            return Self::open_file(&target.join(weights_name(kind)), wanted);
        }
        let recipe = recipes::of_run(target)?;
        let checkpoints = Checkpoints::new(target.join("checkpoints"));
        let Some((_, folder, rejected)) = checkpoints.latest()? else {
            return Err(RunError::NothingToResume { path: target.to_path_buf() }.into()).map_err(|failure: Failure| {
                failure.hint("train until the first checkpoint is written (--save-every)")
            });
        };
        for passed_over in rejected {
            note(format!("warning: passed over {}: {}", passed_over.path.display(), chain(&passed_over.error)));
        }
        let found = Self::open_file(&folder.join(weights_name(kind)), wanted)?;
        Ok(Self { recipe: Some(recipe), ..found })
    }

    fn open_file(path: &Path, wanted: Option<WeightsArg>) -> Result<Self> {
        let found = |source| Self { path: path.to_path_buf(), source, recipe: None };
        if starts_like_safetensors(path)? {
            match ModelFile::read(path) {
                Err(ModelFileError::NoCard { .. }) => {}
                file => return Ok(found(Source::Ours(Box::new(of_kind(file?, path, wanted)?)))),
            }
        }
        let checkpoint = ReferenceCheckpoint::open(path)?;
        let which = match wanted {
            Some(WeightsArg::Model) => Which::Model,
            Some(WeightsArg::Ema) | None => Which::Ema,
        };
        let weights = checkpoint.weights(which)?;
        // A plain state dict has one set of weights, whatever was asked for.
        let averaged = which == Which::Ema && checkpoint.available().contains(&Which::Ema);
        let kind = if averaged { WeightsKind::Ema } else { WeightsKind::Model };
        let inferred = weights.infer().context(format!("cannot use the weights of {}", path.display()))?;
        Ok(found(Source::Reference(Box::new(Reference { checkpoint, weights, inferred, kind }))))
    }

    /// Card and tensors of ours. `untold` says what a file of the reference does not.
    pub fn into_model(self, untold: &UntoldFlags) -> Result<ModelFile> {
        match self.source {
            Source::Ours(file) => resized(*file, untold, &self.path),
            Source::Reference(reference) => reference.into_model(&untold.0, &self.path),
        }
    }
}

/// The best checkpoint's folder where the target is `RUN/best`.
pub fn best_of(target: &Path) -> Option<PathBuf> {
    if target.exists() || target.file_name()? != "best" {
        return None;
    }
    let checkpoints = Checkpoints::new(target.parent()?.join("checkpoints"));
    checkpoints.best().map(|step| checkpoints.path_of(step))
}

/// A file of ours holds one kind of weights.
fn of_kind(file: ModelFile, path: &Path, wanted: Option<WeightsArg>) -> Result<ModelFile> {
    let has = |kind| if kind == WeightsKind::Ema { "ema" } else { "model" };
    match wanted.map(WeightsKind::from) {
        Some(kind) if kind != file.card.weights => Err(Failure::usage(format!(
            "{} holds the weights `{}`, not `{}`",
            path.display(),
            has(file.card.weights),
            has(kind)
        ))
        .hint("give the checkpoint's folder, which holds both")),
        _ => Ok(file),
    }
}

/// Our files say everything; only the size of the images may be chosen anew.
fn resized(mut file: ModelFile, untold: &UntoldFlags, path: &Path) -> Result<ModelFile> {
    if let Some((flag, _)) = untold.0.iter().find(|(flag, _)| flag.key != "image_size") {
        return Err(Failure::usage(format!("{} says itself what {} would say", path.display(), flag.name())));
    }
    let recipe = untold.0.apply(&Recipe::default()).or_usage()?;
    if let Some(size) = recipe.data.image_size {
        (file.card.image.height, file.card.image.width) = (size.height, size.width);
    }
    Ok(file)
}

impl Reference {
    fn into_model(mut self, untold: &RecipeFlags, path: &Path) -> Result<ModelFile> {
        let told = untold.apply(&Recipe::default()).or_usage()?;
        if let Some(heads) = told.unet.mid_attn_heads {
            self.inferred = self.inferred.with_mid_attn_heads(heads).or_usage()?;
        }
        if let NetworkConfig::Unet(unet) = &mut self.inferred.network
            && untold.only("sinusoidal_pos_emb_theta").iter().next().is_some()
        {
            unet.sinusoidal_pos_emb_theta = told.unet.sinusoidal_pos_emb_theta;
        }
        let diffusion = diffusion(&self.inferred, untold, path)?;
        let Some(size) = told.data.image_size else {
            return Err(Failure::usage(format!("{} does not say the size of its images", path.display()))
                .hint("give it: --image-size 28, or height x width: --image-size 28x20"));
        };
        let network = self.inferred.network_for(&self.weights, size.height, size.width)?;
        // One number is the length of a sequence.
        let height = if network.layout() == DataLayout::Sequences { 1 } else { size.height };
        let image = ImageShape { channels: network.channels().unwrap_or(0), height, width: size.width };
        let step = self.checkpoint.step().unwrap_or(0);
        let card = ModelCard {
            version: env!("CARGO_PKG_VERSION").to_string(),
            image,
            value_range: None,
            condition_value_range: None,
            vectors: None,
            network,
            diffusion,
            betas: self.inferred.betas,
            weights: self.kind,
            step,
            // The file does not say: what the reference's defaults give at this step.
            ema_decay: None,
        };
        Ok(ModelFile { card, state: self.weights.to_ours()? })
    }
}

/// The formulation as the file tells it, completed by flags. A flag that contradicts the file is an error.
fn diffusion(inferred: &Inferred, untold: &RecipeFlags, path: &Path) -> Result<DiffusionConfig> {
    let Some(config) = &inferred.diffusion else {
        // A network that embeds levels of a small range has none of the schedules that are numbered.
        let needed: &[&str] =
            if inferred.network.fourier_time() { &["diffusion"] } else { &["timesteps", "beta_schedule", "objective"] };
        let missing: Vec<&str> =
            needed.iter().copied().filter(|key| untold.only(key).iter().next().is_none()).collect();
        if !missing.is_empty() {
            let flags = missing.iter().map(|key| format!("--{}", key.replace('_', "-"))).collect::<Vec<_>>();
            return Err(Failure::usage(format!("{} has no schedule: give {}", path.display(), flags.join(", "))).hint(
                if inferred.network.fourier_time() {
                    SMALL_LEVELS
                } else {
                    "the package's defaults are --timesteps 1000 --beta-schedule sigmoid --objective pred_v"
                },
            ));
        }
        return Ok(untold.apply(&Recipe::default()).or_usage()?.diffusion);
    };
    let mut recipe = Recipe { diffusion: config.clone(), ..Recipe::default() };
    for (flag, value) in untold.iter().filter(|(flag, _)| flag.sections == ["diffusion"]) {
        let changed = untold.only(flag.key).apply(&recipe).or_usage()?;
        if changed.diffusion != recipe.diffusion && !inferred.assumed.contains(&flag.key) {
            let table = Table::try_from(config).unwrap_or_default();
            let said = table.get(flag.key).map_or_else(|| "something else".to_string(), plain);
            return Err(Failure::usage(format!(
                "{} {} contradicts {}, whose tables say {said}",
                flag.name(),
                plain(value),
                path.display()
            )));
        }
        recipe = changed;
    }
    Ok(recipe.diffusion)
}

/// A safetensors file opens with the length of its header, then the header: JSON, so a brace. A `.pt` file is a zip archive.
fn starts_like_safetensors(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(9).read_to_end(&mut start))
        .context(format!("cannot read {}", path.display()))?;
    let named = path.extension().is_some_and(|extension| extension == "safetensors");
    Ok(named || (start.get(8) == Some(&b'{') && !start.starts_with(b"PK")))
}
