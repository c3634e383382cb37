//! Finds the reference's networks in a file: a checkpoint of its Trainer, a state dict of its GaussianDiffusion or Unet, as `.pt`
//! or as safetensors. Not here: what the weights mean (`infer.rs`, `names.rs`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::{InteropError, NAMED};
use super::infer::{Inferred, infer};
use super::pt::PtFile;
use super::safetensors_file::{Metadata, read_safetensors};
use super::state_dict::StateDict;

/// Which weights of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The moving average, which samples are drawn from.
    Ema,
    /// The network in training.
    Model,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Ema => "EMA",
            Self::Model => "model",
        }
    }
}

/// What kind of file a reference checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceKind {
    /// It has EMA weights, as the Trainer's `model-N.pt` has.
    Trainer,
    /// One network with its schedule tables.
    Diffusion,
    /// One network alone.
    Unet,
}

/// One network out of a checkpoint, under the reference's names without prefix.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceWeights {
    pub unet: StateDict,
    /// The schedule's tables (`betas`, `loss_weight`, ...) and other tensors beside the network; may be empty.
    pub tables: StateDict,
}

impl ReferenceWeights {
    /// See [`infer`].
    pub fn infer(&self) -> Result<Inferred, InteropError> {
        infer(&self.unet, &self.tables)
    }
}

/// A file with at least one network of the reference in it.
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
    which: Which,
    network: String,
    /// Prefix of the schedule's tables, if the network is within a GaussianDiffusion.
    tables: Option<String>,
}

const LANDMARK: &str = "init_conv.weight";

impl ReferenceCheckpoint {
    /// Opens a `.pt` or safetensors file (its contents decide, not its name) and finds the networks in it.
    ///
    /// # Errors
    /// A file that cannot be read as either, or that holds no network of the reference: the error names keys that it has.
    pub fn open(path: &Path) -> Result<Self, InteropError> {
        let source = Source::open(path)?;
        let names = source.tensor_names();
        let mut roots: Vec<Root> = names.iter().filter_map(|name| Root::of_landmark(name)).collect();
        // The Trainer saves the network in training twice, the second time within the EMA; the shorter name is the first.
        roots.sort_by_key(|root| (root.network.contains("online_model"), root.network.len()));
        if roots.is_empty() {
            let keys = source.keys();
            let count = keys.len();
            return Err(InteropError::NotUnet {
                path: path.to_path_buf(),
                count,
                keys: keys.into_iter().take(NAMED).collect(),
            });
        }
        Ok(Self { path: path.to_path_buf(), source, roots })
    }

    pub fn kind(&self) -> ReferenceKind {
        let tables = |root: &Root| {
            let betas = root.tables.as_ref().map(|prefix| format!("{prefix}betas"));
            betas.is_some_and(|betas| self.source.tensor_names().contains(&betas.as_str()))
        };
        if self.root(Which::Ema).is_some() {
            ReferenceKind::Trainer
        } else if self.roots.iter().any(tables) {
            ReferenceKind::Diffusion
        } else {
            ReferenceKind::Unet
        }
    }

    /// The weights that the file has.
    pub fn available(&self) -> Vec<Which> {
        [Which::Ema, Which::Model].into_iter().filter(|&which| self.root(which).is_some()).collect()
    }

    /// Training steps done, if the file says so.
    pub fn step(&self) -> Option<u64> {
        match &self.source {
            Source::Pt(file) => file.int("step")?.try_into().ok(),
            Source::Safetensors(_, metadata) => metadata.get("step")?.parse().ok(),
        }
    }

    /// Version of the package that wrote the file, if the file says so.
    pub fn version(&self) -> Option<&str> {
        match &self.source {
            Source::Pt(file) => file.text("version"),
            Source::Safetensors(_, metadata) => metadata.get("version").map(String::as_str),
        }
    }

    /// Reads one set of weights. A file without EMA (a plain state dict) gives its only set for [`Which::Ema`] too.
    ///
    /// # Errors
    /// The file has no such weights, or they are damaged.
    pub fn weights(&self, which: Which) -> Result<ReferenceWeights, InteropError> {
        let only = || self.root(Which::Model).filter(|_| which == Which::Ema);
        let Some(root) = self.root(which).or_else(only) else {
            let available: Vec<&str> = self.available().into_iter().map(Which::name).collect();
            return Err(InteropError::NoSuchWeights {
                path: self.path.clone(),
                wanted: which.name(),
                available: available.join(" and "),
            });
        };
        let unet = self.source.read(|name| name.strip_prefix(root.network.as_str()))?;
        let tables = match &root.tables {
            Some(prefix) => {
                self.source.read(|name| name.strip_prefix(prefix.as_str()).filter(|rest| !rest.contains('.')))?
            }
            None => StateDict::new(),
        };
        Ok(ReferenceWeights { unet, tables })
    }

    fn root(&self, which: Which) -> Option<&Root> {
        self.roots.iter().find(|root| root.which == which)
    }
}

impl Root {
    fn of_landmark(name: &str) -> Option<Self> {
        let network = name.strip_suffix(LANDMARK)?;
        if !(network.is_empty() || network.ends_with('.')) {
            return None;
        }
        let which = if network.split('.').any(|part| part == "ema_model") { Which::Ema } else { Which::Model };
        let outer = network.strip_suffix("model.").filter(|outer| outer.is_empty() || outer.ends_with('.'));
        Some(Self { which, network: network.to_string(), tables: outer.map(str::to_string) })
    }
}

impl Source {
    fn open(path: &Path) -> Result<Self, InteropError> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension == Some("safetensors") || starts_like_safetensors(path)? {
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

    /// Names to show to someone who gave a file of another kind: top-level keys where there are nested ones.
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

/// A safetensors file opens with the length of its header, then the header: JSON, so a brace.
fn starts_like_safetensors(path: &Path) -> Result<bool, InteropError> {
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(9).read_to_end(&mut start)).map_err(InteropError::io("read", path))?;
    Ok(start.get(8) == Some(&b'{') && !start.starts_with(b"PK"))
}

#[cfg(test)]
mod tests {
    use super::super::{to_ours, to_reference, write_safetensors};
    use super::*;
    use crate::diffusion::{BetaSchedule, FormulationConfig, GaussianConfig, Objective, ScheduleConfig, SharedConfig};
    use crate::models::unet_config::{PerStage, UnetConfig};

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    fn testdata(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/interop/testdata").join(name)
    }

    /// Written by the reference's Trainer.
    #[test]
    fn a_trainer_checkpoint() {
        let file = ReferenceCheckpoint::open(&golden("model-1.pt")).unwrap();
        assert_eq!(file.kind(), ReferenceKind::Trainer);
        assert_eq!(file.available(), [Which::Ema, Which::Model]);
        assert_eq!((file.step(), file.version()), (Some(12), Some("2.3.4")));

        let [ema, model] = [Which::Ema, Which::Model].map(|which| file.weights(which).unwrap());
        assert!(ema.unet.names().eq(model.unet.names()));
        assert_ne!(ema.unet, model.unet);
        assert!(ema.unet.non_finite().is_empty());
        assert_eq!(ema.tables.len(), 13);

        let inferred = ema.infer().unwrap();
        let expected = UnetConfig {
            dim: 4,
            dim_mults: vec![1, 2],
            channels: 1,
            attn_dim_head: PerStage::All(4),
            attn_heads: PerStage::All(2),
            ..UnetConfig::default()
        };
        assert_eq!(inferred.unet, expected);
        let schedule =
            ScheduleConfig { timesteps: 50, beta_schedule: BetaSchedule::Cosine, ..ScheduleConfig::default() };
        let diffusion = inferred.diffusion.unwrap();
        assert_eq!(
            diffusion.formulation,
            FormulationConfig::Gaussian(GaussianConfig { schedule, objective: Objective::PredNoise })
        );
        assert_eq!(diffusion.shared, SharedConfig { min_snr_loss_weight: Some(true), ..SharedConfig::default() });
        assert_eq!(inferred.betas, None);
        assert_eq!(to_reference(&to_ours(&ema.unet).unwrap(), &inferred.unet).unwrap(), ema.unet);
    }

    #[test]
    fn a_plain_state_dict() {
        let file = ReferenceCheckpoint::open(&golden("state_dict.pt")).unwrap();
        assert_eq!((file.kind(), file.available()), (ReferenceKind::Unet, vec![Which::Model]));
        assert_eq!((file.step(), file.version()), (None, None));
        let weights = file.weights(Which::Ema).unwrap();
        assert_eq!(weights, file.weights(Which::Model).unwrap());
        assert!(weights.tables.is_empty());
        let inferred = weights.infer().unwrap();
        assert!(inferred.unet.self_condition && inferred.unet.init_dim == Some(6) && inferred.diffusion.is_none());
        assert_eq!(inferred.unet.attn_heads, PerStage::Each(vec![1, 2]));
        assert_eq!(inferred.unet.attn_dim_head, PerStage::Each(vec![8, 4]));
    }

    #[test]
    fn the_same_as_safetensors_of_any_name() {
        let from_pt = ReferenceCheckpoint::open(&golden("model-1.pt")).unwrap().weights(Which::Ema).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut whole = from_pt.unet.clone().with_prefix("model.");
        whole.merge(from_pt.tables.clone());
        for name in ["x.safetensors", "x.bin"] {
            let path = folder.path().join(name);
            write_safetensors(&path, &whole, &Metadata::from([("step".into(), "12".into())])).unwrap();
            let file = ReferenceCheckpoint::open(&path).unwrap();
            assert_eq!((file.kind(), file.step()), (ReferenceKind::Diffusion, Some(12)));
            assert_eq!(file.weights(Which::Ema).unwrap(), from_pt);
        }
        let path = folder.path().join("ema.safetensors");
        write_safetensors(&path, &whole.with_prefix("ema_model."), &Metadata::new()).unwrap();
        let file = ReferenceCheckpoint::open(&path).unwrap();
        assert_eq!(file.weights(Which::Ema).unwrap(), from_pt);
        let error = file.weights(Which::Model).unwrap_err().to_string();
        assert!(error.ends_with("has no model weights; it has EMA"), "{error}");
    }

    /// The option sets that the golden networks were made with, as their files state them.
    #[test]
    fn golden_networks_are_inferred() {
        for name in ["base", "fourier", "full_attn", "learned_fourier", "odd", "rect", "selfcond"] {
            let (golden, metadata) = read_safetensors(&golden(&format!("unet_{name}.safetensors"))).unwrap();
            let stated: serde_json::Value = serde_json::from_str(&metadata["config"]).unwrap();
            let stated: UnetConfig = serde_json::from_value(stated["unet"].clone()).unwrap();
            let state = golden.strip_prefix("state.");
            let found = infer(&state, &StateDict::new()).unwrap().unet;
            assert_eq!(found.stages().unwrap(), stated.stages().unwrap(), "{name}");
            let scalars = |c: &UnetConfig| {
                (
                    c.first_dim(),
                    c.channels,
                    c.in_channels(),
                    c.out_channels(),
                    c.fourier_time(),
                    c.learned_sinusoidal_dim,
                )
            };
            assert_eq!(scalars(&found), scalars(&stated), "{name}");
            let ours = to_ours(&state).unwrap();
            assert_eq!(to_reference(&ours, &stated).unwrap(), state, "{name}");
        }
    }

    #[test]
    fn a_file_without_unet_says_what_it_has() {
        let error = ReferenceCheckpoint::open(&testdata("other_network.pt")).unwrap_err().to_string();
        assert!(error.contains("it has `epoch`, `net`.") && error.contains("Expected `init_conv.weight`"), "{error}");
        let error = ReferenceCheckpoint::open(&golden("adam.safetensors")).unwrap_err();
        assert!(matches!(error, InteropError::NotUnet { .. }), "{error}");
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("empty.pt", &b""[..]), ("text.pt", b"hello, world\n"), ("cut.safetensors", b"\x20\0\0")]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(ReferenceCheckpoint::open(&path).unwrap_err(), InteropError::Damaged { .. }), "{name}");
        }
        assert!(matches!(ReferenceCheckpoint::open(folder.path()).unwrap_err(), InteropError::Io { .. }));
    }

    /// Damage in a real checkpoint ends in an error or in a result, never in a panic. Odd steps visit all kinds of places.
    #[test]
    fn damaged_checkpoints_never_panic() {
        let bytes = std::fs::read(golden("state_dict.pt")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        let try_all = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let weights = ReferenceCheckpoint::open(&path).and_then(|file| file.weights(Which::Ema));
            weights.and_then(|weights| weights.infer()).is_ok()
        };
        assert!(try_all(&bytes));
        for len in (0..bytes.len()).step_by(4_621) {
            assert!(!try_all(&bytes[..len]), "cut at {len}");
        }
        for i in (0..bytes.len()).step_by(1_117) {
            let mut altered = bytes.clone();
            altered[i] = altered[i].wrapping_add(1 + (i % 251) as u8);
            try_all(&altered);
        }
    }
}
