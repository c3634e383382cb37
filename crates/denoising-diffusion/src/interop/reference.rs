//! Finds the reference's networks in a file: a checkpoint of its Trainer, or a state dict of one of its diffusion classes or of a Unet, as `.pt` or
//! as safetensors. Not here: what the weights mean (`reference_weights.rs` and the modules that it uses).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::error::{InteropError, NAMED};
use super::learned_schedule::REFERENCE as SCHEDULE;
use super::pt::PtFile;
use super::reference_weights::{ReferenceWeights, Wrapper};
use super::safetensors_file::{Metadata, is_safetensors, read_safetensors};
use super::stated::{size, stated};
use crate::data::ImageSize;
use crate::weights::{StateDict, WeightsKind};

/// What kind of file a reference checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceKind {
    /// It has EMA weights, like the Trainer's `model-N.pt`.
    Trainer,
    /// A diffusion class: one network with the tables of its schedule, or in continuous time.
    Diffusion,
    /// One network alone.
    Network,
}

/// A file with at least one network of the reference.
#[derive(Debug)]
pub struct ReferenceCheckpoint {
    path: PathBuf,
    source: Source,
    roots: Vec<Root>,
}

#[derive(Debug)]
enum Source {
    Pt(PtFile),
    Safetensors(StateDict, Metadata),
}

/// Where a network's names start: `init_conv.weight` is at `network` + `init_conv.weight`.
#[derive(Clone, Debug)]
struct Root {
    which: WeightsKind,
    network: String,
    wrapper: Wrapper,
    /// Prefix of the other tensors in the class that holds the network.
    outer: String,
}

/// The first layer: of most networks, of a UViT with normalised patches, of a KarrasUnet.
const LANDMARKS: [&str; 3] = ["init_conv.weight", "init_conv.2.weight", "input_block.weight"];
/// Fourier features of a time embedding, which the classes in continuous time require and those with tables refuse.
const FOURIER: &str = "time_mlp.0.weights";

impl ReferenceCheckpoint {
    /// Opens a `.pt` or safetensors file (recognised by its contents, not its name) and finds the networks in it.
    ///
    /// # Errors
    /// The file cannot be read as either, or holds no network of the reference; the error lists keys that it has.
    pub fn open(path: &Path) -> Result<Self, InteropError> {
        let source = Source::open(path)?;
        let names = source.tensor_names();
        let mut roots: Vec<Root> = names.iter().filter_map(|name| Root::of_landmark(name)).collect();
        // The Trainer saves the network in training twice, the second time within the EMA; the shorter name is that of the first.
        roots.sort_by_key(|root| (root.network.contains("online_model"), root.network.len()));
        if roots.is_empty() {
            let keys = source.keys();
            let count = keys.len();
            return Err(InteropError::NoNetwork {
                path: path.to_path_buf(),
                count,
                keys: keys.into_iter().take(NAMED).collect(),
            });
        }
        Ok(Self { path: path.to_path_buf(), source, roots })
    }

    pub fn kind(&self) -> ReferenceKind {
        let names: BTreeSet<&str> = self.source.tensor_names().into_iter().collect();
        let in_class = |root: &Root| {
            let signs = [format!("{}betas", root.outer), format!("{}{FOURIER}", root.network)];
            root.wrapper != Wrapper::None && signs.iter().any(|sign| names.contains(sign.as_str()))
        };
        if self.root(WeightsKind::Ema).is_some() {
            ReferenceKind::Trainer
        } else if self.roots.iter().any(in_class) {
            ReferenceKind::Diffusion
        } else {
            ReferenceKind::Network
        }
    }

    /// The kinds of weights that the file has.
    pub fn available(&self) -> Vec<WeightsKind> {
        [WeightsKind::Ema, WeightsKind::Model].into_iter().filter(|&which| self.root(which).is_some()).collect()
    }

    /// Number of training steps, if the file states it.
    pub fn step(&self) -> Option<u64> {
        match &self.source {
            Source::Pt(file) => file.int("step")?.try_into().ok(),
            Source::Safetensors(_, metadata) => metadata.get("step")?.parse().ok(),
        }
    }

    /// Version of the package that wrote the file, if the file states it.
    pub fn version(&self) -> Option<&str> {
        match &self.source {
            Source::Pt(file) => file.text("version"),
            Source::Safetensors(_, metadata) => metadata.get("version").map(String::as_str),
        }
    }

    /// The size of the data, if the file states it.
    pub fn image_size(&self) -> Option<ImageSize> {
        match &self.source {
            Source::Pt(_) => None,
            Source::Safetensors(_, metadata) => size(metadata),
        }
    }

    /// Reads one kind of weights. A file without EMA (a plain state dict) gives its only weights for [`WeightsKind::Ema`] too.
    ///
    /// # Errors
    /// The file has no such weights, or they are damaged.
    pub fn weights(&self, which: WeightsKind) -> Result<ReferenceWeights, InteropError> {
        let only = || self.root(WeightsKind::Model).filter(|_| which == WeightsKind::Ema);
        let Some(root) = self.root(which).or_else(only) else {
            let available: Vec<&str> = self.available().into_iter().map(WeightsKind::name).collect();
            return Err(InteropError::NoSuchWeights {
                path: self.path.clone(),
                wanted: which.name(),
                available: available.join(" and "),
            });
        };
        let state = self.source.read(|name| name.strip_prefix(root.network.as_str()))?;
        let mut weights = ReferenceWeights { state, wrapper: root.wrapper, ..ReferenceWeights::default() };
        if let Source::Safetensors(_, metadata) = &self.source {
            weights.stated = stated(metadata);
        }
        if root.wrapper != Wrapper::None {
            let outer = root.outer.as_str();
            weights.tables =
                self.source.read(|name| name.strip_prefix(outer).filter(|beside| !beside.contains('.')))?;
            weights.schedule =
                self.source.read(|name| name.strip_prefix(outer).filter(|beside| beside.starts_with(SCHEDULE)))?;
        }
        Ok(weights)
    }

    fn root(&self, which: WeightsKind) -> Option<&Root> {
        self.roots.iter().find(|root| root.which == which)
    }
}

impl Root {
    fn of_landmark(name: &str) -> Option<Self> {
        let network = LANDMARKS.iter().find_map(|landmark| name.strip_suffix(landmark))?;
        if !(network.is_empty() || network.ends_with('.')) {
            return None;
        }
        let which =
            if network.split('.').any(|part| part == "ema_model") { WeightsKind::Ema } else { WeightsKind::Model };
        let holder = without_torch_wrappers(network);
        let within =
            |attribute| holder.strip_suffix(attribute).filter(|outer| outer.is_empty() || outer.ends_with('.'));
        let (wrapper, outer) = [(Wrapper::Model, "model."), (Wrapper::Net, "net.")]
            .into_iter()
            .find_map(|(wrapper, attribute)| Some((wrapper, within(attribute)?)))
            .unwrap_or((Wrapper::None, network));
        Some(Self { which, network: network.to_string(), wrapper, outer: outer.to_string() })
    }
}

/// A network's prefix up to the attribute that holds it, without the parts that `torch.compile` and `DataParallel` add after that.
fn without_torch_wrappers(mut prefix: &str) -> &str {
    let part = |prefix: &'_ str| ["_orig_mod.", "module."].into_iter().find(|part| prefix.ends_with(part));
    while let Some(part) = part(prefix) {
        let outer = &prefix[..prefix.len() - part.len()];
        if !(outer.is_empty() || outer.ends_with('.')) {
            break;
        }
        prefix = outer;
    }
    prefix
}

impl Source {
    fn open(path: &Path) -> Result<Self, InteropError> {
        if is_safetensors(path)? {
            let (state, metadata) = read_safetensors(path)?;
            return Ok(Self::Safetensors(state, metadata));
        }
        Ok(Self::Pt(PtFile::open(path)?))
    }

    fn tensor_names(&self) -> Vec<&str> {
        match self {
            Self::Pt(file) => file.tensor_names(),
            Self::Safetensors(state, _) => state.names().collect(),
        }
    }

    /// Names to show to a user who gave another kind of file: top-level keys if there are nested ones.
    fn keys(&self) -> Vec<String> {
        let keys = match self {
            Self::Pt(file) => file.top_level_keys(),
            Self::Safetensors(state, _) => state.names().collect(),
        };
        keys.into_iter().map(|key| key.chars().take(80).collect()).collect()
    }

    fn read<'a>(&'a self, rename: impl Fn(&'a str) -> Option<&'a str>) -> Result<StateDict, InteropError> {
        match self {
            Self::Pt(file) => file.read(rename),
            Self::Safetensors(state, _) => Ok(state
                .iter()
                .filter_map(|(name, tensor)| Some((rename(name)?.to_string(), tensor.clone())))
                .collect()),
        }
    }
}

#[cfg(test)]
mod tests;
