//! What a training run is told: the recipe, flags over it, the run folder, and the weights to start from. Not here: whether it makes sense
//! for the data (`plan`).

use std::path::{Path, PathBuf};

use denoising_diffusion::model_file::ModelFile;
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::train::{Checkpoints, RunError, is_free};
use denoising_diffusion::weights::WeightsKind;

use super::TrainArgs;
use super::start::{AsRead, Start};
use crate::failure::{Failure, FailureExt, Result};
use crate::plan;
use crate::recipes::{self, RecipeText};

/// A resolved command line.
pub(super) struct Settings {
    pub(super) recipe: Recipe,
    /// The run folder.
    pub(super) dir: PathBuf,
    /// The weights that the run starts from, if it does not draw them and has none of its own yet.
    pub(super) start: Option<Start>,
}

impl Settings {
    pub(super) fn of(args: &TrainArgs) -> Result<Self> {
        let (recipe, start) = match &args.resume {
            Some(run) => of_run(run, args)?,
            None => of_new_run(args)?,
        };
        let recipe = with_paths(recipe, args)?;
        let flags = args.recipe.without(start.as_ref().map_or(&[], |start| start.used));
        let mut recipe = flags.apply(&recipe).map_err(|error| Failure::usage(error.message().trim_end()))?;
        let read = match (&start, &args.resume) {
            (Some(start), _) => start.read.clone(),
            // The data may not be those that the first weights have seen.
            (None, Some(run)) if recipe.network.init_from.is_some() => as_read_by(run)?,
            _ => AsRead::default(),
        };
        read.apply(&mut recipe.data)?;
        let dir = match (&args.resume, &args.out) {
            (Some(run), _) => run.clone(),
            (None, Some(out)) => refuse_existing(out)?.to_path_buf(),
            (None, None) => plan::default_dir(recipe.data.path.as_deref()),
        };
        Ok(Self { recipe, dir, start })
    }
}

fn of_run(run: &Path, args: &TrainArgs) -> Result<(Recipe, Option<Start>)> {
    let recipe = recipes::of_run(run)?;
    if let Some(flag) = args.recipe.fixed() {
        return Err(Failure::usage(format!(
            "{} cannot be given with --resume: this setting is fixed for the life of a run",
            flag.name()
        ))
        .hint("start a new run without --resume"));
    }
    let begun = || Ok::<_, Failure>(!Checkpoints::new(run.join("checkpoints")).steps()?.is_empty());
    let start = match &recipe.network.init_from {
        Some(target) if !begun()? => Some(Start::reopen(target)?),
        _ => None,
    };
    Ok((recipe, start))
}

/// How a run that has checkpoints reads its data.
fn as_read_by(run: &Path) -> Result<AsRead> {
    match Checkpoints::new(run.join("checkpoints")).latest_weights(WeightsKind::default())? {
        Some((file, _)) => Ok(AsRead::of(&ModelFile::read_card(&file)?)),
        None => Ok(AsRead::default()),
    }
}

/// The recipe, over what the weights that the run starts from say.
fn of_new_run(args: &TrainArgs) -> Result<(Recipe, Option<Start>)> {
    let text = args.config.as_deref().map(RecipeText::load).transpose()?;
    let said = text.as_ref().map(RecipeText::parse).transpose()?;
    let in_recipe = said.as_ref().and_then(|recipe| recipe.network.init_from.as_ref());
    let Some(target) = args.init_from.as_ref().or(in_recipe) else {
        let by_default = || if args.data.is_none() { recipes::load(recipes::DEFAULT) } else { Ok(Recipe::default()) };
        return Ok((said.map_or_else(by_default, Ok)?, None));
    };
    let data = args.data.as_deref().or(said.as_ref().and_then(|recipe| recipe.data.path.as_deref()));
    let (start, base) = Start::open(target, &args.recipe, data)?;
    let mut recipe = text.map_or_else(|| Ok(base.clone()), |text| text.parse_over(&base))?;
    recipe.network.init_from = Some(target.clone());
    Ok((recipe, Some(start)))
}

/// With the paths that were given, all absolute: a run folder's configuration must mean the same from everywhere.
fn with_paths(mut recipe: Recipe, args: &TrainArgs) -> Result<Recipe> {
    let data = &mut recipe.data;
    let given = [&args.data, &args.labels, &args.condition, &args.vectors];
    for (key, path) in [&mut data.path, &mut data.labels, &mut data.condition, &mut data.vectors].into_iter().zip(given)
    {
        if path.is_some() {
            key.clone_from(path);
        }
    }
    let path = data.path.as_mut().filter(|path| path.as_os_str() != "digits");
    let others = [&mut data.labels, &mut data.condition, &mut data.vectors, &mut recipe.network.init_from];
    for path in path.into_iter().chain(others.into_iter().flatten()) {
        *path = std::path::absolute(&*path).context(format!("cannot resolve {}", path.display()))?;
        if path.to_str().is_none() {
            return Err(Failure::usage(format!("the path {} is not UTF-8", path.display()))
                .hint("rename the file or its folder; recipes are text, which holds only UTF-8 paths"));
        }
    }
    Ok(recipe)
}

/// Looks before the data are read, which can take long.
fn refuse_existing(dir: &Path) -> Result<&Path> {
    let taken = matches!(is_free(dir), Ok(false));
    if taken { Err(RunError::Exists { path: dir.to_path_buf() }.into()) } else { Ok(dir) }
}
