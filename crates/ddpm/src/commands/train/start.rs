//! The weights that a run starts from where it does not draw them: another run's, or a file's. Not here: what the network takes over from
//! them (`models::start_from`).

use std::path::{Path, PathBuf};

use burn::module::Module;
use denoising_diffusion::models::{Transfer, start_from};
use denoising_diffusion::recipe::Recipe;
use denoising_diffusion::weights::StateDict;

use crate::failure::{Failure, FailureExt, Result};
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
}

impl Start {
    /// The weights of a run, a checkpoint or a file, and the recipe of a run that starts from them. Flags say what a file of the reference
    /// does not.
    pub(super) fn open(target: &Path, flags: &RecipeFlags) -> Result<(Self, Recipe)> {
        let found = Found::open(target, None)?;
        let untold = match &found.source {
            Source::Ours(_) => UntoldFlags::default(),
            Source::Reference(_) => flags.untold(),
        };
        let path = found.path.clone();
        let file = found.into_model(&untold)?;
        let recipe = Recipe::starting_from(&file.card).context(format!("cannot train from {}", path.display()));
        Ok((Self { path, state: file.state }, recipe.or_usage()?))
    }

    /// The weights alone, for a run whose recipe is known.
    pub(super) fn reopen(target: &Path) -> Result<Self> {
        let found = Found::open(target, None).context("the run has no checkpoint yet and must start over")?;
        let state = match found.source {
            Source::Ours(file) => file.state,
            Source::Reference(reference) => reference.weights.to_ours()?,
        };
        Ok(Self { path: found.path, state })
    }

    /// The network with these weights, as far as they fit, which must be mostly; the rest is told.
    pub(super) fn give_to<M: Module>(&self, network: M) -> Result<M> {
        let path = self.path.display();
        if let Some(name) = self.state.non_finite().first() {
            return Err(Failure::failed(format!("{path}: the tensor `{name}` holds values that are not finite"))
                .hint("give an earlier checkpoint"));
        }
        let (network, transfer) = start_from(network, &self.state);
        if transfer.share() < 0.5 {
            return Err(Failure::usage(format!(
                "{path} has only {:.1} % of the network's weights (not, or in another shape: {})",
                100.0 * transfer.share(),
                some_of(&transfer.fresh)
            ))
            .hint("leave out flags and keys of the recipe that make it another network"));
        }
        note(format!("starting from the weights of {path}"));
        tell_differences(&transfer);
        Ok(network)
    }
}

/// Says which tensors were not simply taken over.
fn tell_differences(transfer: &Transfer) {
    let Transfer { widened, fresh, unused, .. } = transfer;
    let rows = [
        (widened, "have more inputs than there, whose weights start at 0"),
        (fresh, "are not there, or in another shape, and start anew"),
        (unused, "are there only, and are not used"),
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
