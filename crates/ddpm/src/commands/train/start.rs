//! The weights that a run starts from where it does not draw them: another run's, or a file's. Not here: what the network takes over from
//! them (`models::start_from`).

use std::path::{Path, PathBuf};

use burn::module::Module;
use denoising_diffusion::data::{DataConfig, DataLayout, VectorScale, VectorTable};
use denoising_diffusion::model_file::{ModelCard, ModelFile};
use denoising_diffusion::models::{NetworkConfig, Origin, Transfer, start_from};
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::weights::StateDict;

use crate::failure::{Failure, FailureExt, Result};
use crate::opening::open_data;
use crate::output::{counted, note};
use crate::recipe_flags::{RecipeFlags, UntoldFlags};
use crate::weights::{Found, Source};

/// Names shown of a list of tensors.
const SHOWN: usize = 4;

/// Weights to start from.
pub(super) struct Start {
    /// The file that was read.
    path: PathBuf,
    state: StateDict,
    /// The network that they belong to.
    network: NetworkConfig,
    /// The classes that the weights know, by their numbers, if their names are known.
    class_names: Option<Vec<String>>,
    /// Keys of flags that the weights needed and that say nothing new to the recipe.
    pub(super) used: &'static [&'static str],
    /// How what belongs to images was read when the weights were trained.
    pub(super) read: AsRead,
}

/// How what belongs to images is read, so that numbers mean to the weights what they have meant.
#[derive(Clone, Debug, Default)]
pub(super) struct AsRead {
    condition_range: Option<[f64; 2]>,
    vectors: Option<VectorScale>,
}

impl AsRead {
    /// As in the training of these weights.
    pub(super) fn of(card: &ModelCard) -> Self {
        Self { condition_range: card.condition_value_range, vectors: card.vectors.clone() }
    }

    /// Reads the data so, except for a range that is given, and for vectors of another length, which are new to the weights.
    pub(super) fn apply(self, data: &mut DataConfig) -> Result {
        if data.condition.is_some() && data.condition_value_range.is_none() {
            data.trained_condition_range = self.condition_range;
        }
        if let (Some(path), Some(scale)) = (&data.vectors, self.vectors)
            && VectorTable::open(path, None)?.dim() == scale.mean.len()
        {
            data.trained_vectors = Some(scale);
        }
        Ok(())
    }
}

const NONE: &[&str] = &[];
/// The length is that of the data, and the heads of a Unet1D's middle block are its `attn_heads`.
const SAID_OF_SEQUENCES: &[&str] = &["image_size", "mid_attn_heads"];

/// What flags say of a network for sequences, and the length of these data: sequences are never resized.
fn with_length(flags: &RecipeFlags, path: &Path) -> Result<UntoldFlags> {
    let (layout, path) = (DataLayout::Sequences, path.to_path_buf());
    let shown = path.display().to_string();
    let length = open_data(&DataConfig { path: Some(path), layout, ..DataConfig::default() })?.shape().width;
    match Found::said_length(flags)? {
        Some(said) if said != length => {
            Err(Failure::usage(format!("--image-size {said}, but the sequences of {shown} have length {length}"))
                .hint("leave it out: sequences are not resized"))
        }
        _ => Ok(UntoldFlags(flags.untold().0.without(&["image_size"])).with_image_size(1, length)),
    }
}

impl Start {
    /// The weights of a run, a checkpoint or a file, and the recipe of a run that starts from them. Flags and `data` say what a file of the reference
    /// does not.
    pub(super) fn open(target: &Path, flags: &RecipeFlags, data: Option<&Path>) -> Result<(Self, Recipe)> {
        let found = Found::open(target, None)?;
        let (untold, used) = match &found.source {
            Source::Ours(_) => (UntoldFlags::default(), NONE),
            Source::Reference(reference) => match (reference.inferred.layout(), data) {
                (DataLayout::Sequences, Some(path)) => (with_length(flags, path)?, SAID_OF_SEQUENCES),
                _ => (flags.untold(), NONE),
            },
        };
        let path = found.path.clone();
        let file = found.into_model(&untold)?;
        let recipe = Recipe::starting_from(&file.card).context(format!("cannot train from {}", path.display()));
        Ok((Self { used, ..Self::of_file(path, file) }, recipe.or_usage()?))
    }

    /// The weights alone, for a run whose recipe is known.
    pub(super) fn reopen(target: &Path) -> Result<Self> {
        let found = Found::open(target, None).context("the run has no checkpoint yet and must start over")?;
        let path = found.path;
        Ok(match found.source {
            Source::Ours(file) => Self::of_file(path, *file),
            Source::Reference(reference) => Self {
                path,
                state: reference.weights.to_ours()?,
                network: reference.inferred.network,
                class_names: None,
                used: NONE,
                read: AsRead::default(),
            },
        })
    }

    fn of_file(path: PathBuf, file: ModelFile) -> Self {
        let ModelFile { card, state } = file;
        let read = AsRead::of(&card);
        Self { path, state, network: card.network, class_names: card.class_names, used: NONE, read }
    }

    /// The network of this configuration with these weights, as far as they fit, which must be mostly; the rest is told. `classes` are those of its
    /// data, by their numbers.
    pub(super) fn give_to<M: Module>(
        &self,
        network: M,
        config: &NetworkConfig,
        classes: Option<&[String]>,
    ) -> Result<M> {
        let path = self.path.display();
        if let Some(name) = self.state.non_finite().first() {
            return Err(Failure::failed(format!("{path}: the tensor `{name}` holds values that are not finite"))
                .hint("give an earlier checkpoint"));
        }
        let numbers = classes.zip(self.class_names.as_deref()).map(|(own, theirs)| {
            own.iter().map(|name| theirs.iter().position(|other| other == name)).collect::<Vec<_>>()
        });
        let origin = Origin { networks: Some([config, &self.network]), classes: numbers.as_deref() };
        let (network, transfer) = start_from(network, &self.state, &origin);
        if transfer.share() < 0.5 {
            return Err(Failure::usage(format!(
                "{path} has only {:.1} % of the network's weights (not, or in another shape: {})",
                100.0 * transfer.share(),
                some_of(&transfer.fresh)
            ))
            .hint("leave out flags and keys of the recipe that make it another network"));
        }
        note(format!("starting from the weights of {path}"));
        if let (Some(numbers), Some(own), false) = (numbers, classes, transfer.renumbered.is_empty()) {
            tell_new_classes(&numbers, own);
        }
        tell_differences(&transfer);
        Ok(network)
    }
}

/// Says which classes the weights do not know.
fn tell_new_classes(numbers: &[Option<usize>], names: &[String]) {
    let new: Vec<String> =
        numbers.iter().zip(names).filter(|(number, _)| number.is_none()).map(|(_, name)| name.clone()).collect();
    if !new.is_empty() {
        let known = names.len() - new.len();
        note(format!("note: {known} of {} classes are known to the weights; new: {}", names.len(), some_of(&new)));
    }
}

/// Says which tensors were not simply taken over.
fn tell_differences(transfer: &Transfer) {
    let Transfer { widened, fresh, unused, .. } = transfer;
    let rows = [
        (widened, "with more inputs than there, which keep their weights for the others"),
        (fresh, "not there, or in another shape, which start anew"),
        (unused, "only there, which are not used"),
    ];
    for (names, what) in rows.iter().filter(|(names, _)| !names.is_empty()) {
        note(format!("note: {} {what}: {}", counted(names.len(), "tensor"), some_of(names)));
    }
}

/// `a, b and 7 more`.
fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
