//! Weights completed by flags: for a file of the reference everything that it leaves open, for a file of ours the size of the images. Not here:
//! finding weights (`weights.rs`), and what a file reveals (the library's `interop`).

use std::path::Path;

use denoising_diffusion::data::{DataLayout, ImageShape, ImageSize, ResizePolicy};
use denoising_diffusion::diffusion::DiffusionConfig;
use denoising_diffusion::interop::{Inferred, InteropError};
use denoising_diffusion::model_file::{ModelCard, ModelFile};
use denoising_diffusion::models::NetworkConfig;
use denoising_diffusion::recipe::{Recipe, plain};
use serde_json::{Map, Value};

use super::Reference;
use crate::failure::{Failure, FailureExt, Result, SMALL_LEVELS};
use crate::output::note;
use crate::recipe_flags::{RecipeFlags, is_untold};

/// Our files state everything; only the size of the images may be changed.
pub(super) fn resized(mut file: ModelFile, untold: &RecipeFlags, path: &Path) -> Result<ModelFile> {
    if let Some((flag, _)) = untold.iter().find(|(flag, _)| flag.key != "image_size") {
        return Err(Failure::usage(format!(
            "{} holds its own settings, so {} cannot be given",
            path.display(),
            flag.name()
        )));
    }
    if let Some(size) = size_for(file.card.network.layout(), untold)? {
        // The slices of a volume are stacked vertically.
        let depth = file.card.network.depth();
        (file.card.image.height, file.card.image.width) = (depth * size.height, size.width);
    }
    Ok(file)
}

/// The size given by a flag. A single number is the length of a sequence.
pub(super) fn size_for(layout: DataLayout, untold: &RecipeFlags) -> Result<Option<ImageSize>> {
    let said = untold.only("image_size");
    let Some(size) = said.apply(&Recipe::default()).or_usage()?.data.image_size else { return Ok(None) };
    if layout != DataLayout::Sequences {
        return Ok(Some(size));
    }
    let text = said.iter().map(|(_, value)| plain(value)).collect::<String>();
    if text.contains('x') && size.height != 1 {
        return Err(Failure::usage(format!("--image-size {text}: the network is for sequences, which have no height"))
            .hint(format!("give their length: --image-size {}", size.width)));
    }
    Ok(Some(ImageSize { height: 1, ..size }))
}

impl Reference {
    pub(super) fn into_model(self, untold: &RecipeFlags, path: &Path) -> Result<ModelFile> {
        let layout = self.inferred.layout();
        if layout == DataLayout::Volumes {
            return Err(InteropError::Volumes.into());
        }
        let Said { of_network, of_diffusion } = Said::by(untold);
        let inferred = match self.inferred.clone().with_network(&of_network) {
            Ok(inferred) => inferred,
            Err(error) => return Err(in_flags(error, &self.inferred, path)),
        };
        let diffusion = diffusion(&inferred, &of_diffusion, path)?;
        let Some(size) = size_for(layout, untold)?.or(self.checkpoint.image_size()) else {
            return Err(Failure::usage(format!("{} does not contain the size of its images", path.display()))
                .hint("give it: --image-size 28, or height x width: --image-size 28x20; for a command without this flag, convert the \
                       file first: `ddpm convert`"));
        };
        let diffusion = diffusion.for_size(size.height, size.width);
        let ambiguous = self.weights.tables.contains("loss_weight");
        tell_assumed(&inferred, &diffusion, untold, ambiguous, path);
        let network = inferred.network_for(&self.weights, size.height, size.width)?;
        let image = ImageShape { channels: network.channels().unwrap_or(0), height: size.height, width: size.width };
        let card = ModelCard {
            // The reference stretches images, whatever its options.
            resize: ResizePolicy::Stretch,
            betas: inferred.betas,
            weights: self.kind,
            // The file does not state the average's decay at this step.
            step: self.checkpoint.step().unwrap_or(0),
            ..ModelCard::new(network, diffusion, image)
        };
        Ok(ModelFile { card, state: self.weights.to_ours()? })
    }
}

/// The values given by flags, by key.
#[derive(Default)]
struct Said {
    of_network: Map<String, Value>,
    of_diffusion: Map<String, Value>,
}

impl Said {
    fn by(untold: &RecipeFlags) -> Self {
        let mut said = Self::default();
        for (flag, value) in untold.iter().filter(|(flag, _)| flag.key != "image_size") {
            let of = if flag.sections == ["diffusion"] { &mut said.of_diffusion } else { &mut said.of_network };
            of.extend(serde_json::to_value(value).ok().map(|value| (flag.key.to_string(), value)));
        }
        said
    }
}

/// The formulation that the file reveals, completed by flags.
fn diffusion(inferred: &Inferred, said: &Map<String, Value>, path: &Path) -> Result<DiffusionConfig> {
    // A network that embeds small levels, saved without its diffusion class, belongs to none of the formulations with schedule tables.
    if inferred.diffusion.is_none() && inferred.network.fourier_time() && !said.contains_key("diffusion") {
        let hint = match inferred.network {
            NetworkConfig::KarrasUnet(_) => OF_KARRAS_UNETS,
            _ => SMALL_LEVELS,
        };
        return Err(no_schedule(&["diffusion"], path).hint(hint));
    }
    inferred.diffusion_with(said).map_err(|error| in_flags(error, inferred, path))
}

/// The classes of the package that can hold a KarrasUnet, and what others train it with.
const OF_KARRAS_UNETS: &str = "the package trains a KarrasUnet with --diffusion gaussian (and --timesteps, --beta-schedule, --objective) or \
                               --diffusion simple (and --objective), other programs with elucidated, continuous_time or rectified_flow, too";

fn no_schedule(missing: &[&str], path: &Path) -> Failure {
    let flags = missing.iter().map(|key| flag_of(key)).collect::<Vec<_>>();
    Failure::usage(format!("{} does not state its formulation: give {}", path.display(), flags.join(", ")))
}

fn flag_of(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// Rewords a library error in terms of flags.
fn in_flags(error: InteropError, inferred: &Inferred, path: &Path) -> Failure {
    let path_shown = path.display();
    match error {
        InteropError::Untold { missing } => no_schedule(&missing, path).hint(format!(
            "the package's defaults for such a network are {}; in continuous time --noise-schedule linear --objective pred_noise",
            defaults_for(inferred)
        )),
        InteropError::Contradicted { key, said, told } => {
            Failure::usage(format!("{} {said} contradicts {path_shown}, whose tensors show {told}", flag_of(&key)))
                .hint("leave it out: the value in the file is used")
        }
        InteropError::NotOpen { key } => {
            Failure::usage(format!("{} does not apply to the network of {path_shown}", flag_of(&key)))
                .hint("`ddpm info` says which network it is")
        }
        error => Failure::from(error).into_usage(),
    }
}

/// The defaults of the package's class with tables for this network.
fn defaults_for(inferred: &Inferred) -> &'static str {
    if inferred.layout() == DataLayout::Sequences || inferred.network.num_classes() > 0 {
        "--timesteps 1000 --beta-schedule cosine --objective pred_noise"
    } else {
        "--timesteps 1000 --beta-schedule sigmoid --objective pred_v"
    }
}

/// Notes settings assumed because neither file nor flags give them. `ambiguous`: the file has a table that should tell the objective.
fn tell_assumed(inferred: &Inferred, diffusion: &DiffusionConfig, untold: &RecipeFlags, ambiguous: bool, path: &Path) {
    let (of_diffusion, of_network) = (Map::from(diffusion.clone()), network_options(&inferred.network));
    let assumed = inferred.assumed.iter().copied();
    // If the formulation is not the one that the file reveals, the file reveals none of its options.
    let told = inferred.diffusion.as_ref().map(|told| told.formulation.name());
    let open: Vec<&str> = match told == Some(diffusion.formulation.name()) {
        true => assumed.collect(),
        false => {
            let keys = of_diffusion.keys().map(String::as_str);
            assumed.filter(|key| of_network.contains_key(*key)).chain(keys).collect()
        }
    };
    let is_open = |key: &&str| is_untold(key) && untold.only(key).iter().next().is_none();
    let (guessed, open): (Vec<&str>, Vec<&str>) =
        open.into_iter().filter(is_open).partition(|key| ambiguous && *key == "objective");
    if let (Some(_), Some(Value::String(objective))) = (guessed.first(), of_diffusion.get("objective")) {
        note(format!(
            "warning: what the network of {} predicts does not follow from its table `loss_weight`: {objective} is a guess; --objective says \
             another",
            path.display()
        ));
    }
    let taken: Vec<String> = open
        .into_iter()
        .map(|key| match of_diffusion.get(key).or_else(|| of_network.get(key)) {
            None | Some(Value::Null) => format!("{key} none"),
            Some(Value::String(word)) => format!("{key} {word}"),
            Some(value) => {
                format!("{key} {}", value.as_f64().map_or_else(|| value.to_string(), |number| number.to_string()))
            }
        })
        .collect();
    if !taken.is_empty() {
        note(format!(
            "{} does not contain these settings, so the package's defaults are used ({}); flags of the same names change them",
            path.display(),
            taken.join(", ")
        ));
    }
}

fn network_options(network: &NetworkConfig) -> Map<String, Value> {
    match serde_json::to_value(network) {
        Ok(Value::Object(options)) => options,
        _ => Map::new(),
    }
}
