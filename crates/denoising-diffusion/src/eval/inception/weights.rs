//! The weights of Inception: a file, its digest, and what can be wrong with it. Not here: fetching the file.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use thiserror::Error;

use super::InceptionV3;
use super::blocks::Read;
use crate::digest;
use crate::interop::{InteropError, PtFile, read_safetensors};
use crate::weights::{HostTensor, StateDict};

/// The first digits of the published file's SHA-256, as given in its name, `pt_inception-2015-12-05-6726825d.pth`.
pub const OFFICIAL_DIGEST: &str = "6726825d";

/// Weights read from a file.
#[derive(Clone, Debug)]
pub struct InceptionWeights {
    /// The tensors, with torchvision's names.
    pub state: StateDict,
    /// SHA-256 of the file, in hexadecimal digits.
    pub digest: String,
}

/// Why a file cannot be used as Inception's weights.
#[derive(Debug, Error)]
pub enum WeightsError {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{} is not the published file: its SHA-256 is {digest}, expected one that begins with {OFFICIAL_DIGEST}",
        path.display()
    )]
    Digest { path: PathBuf, digest: String },
    #[error(transparent)]
    File(InteropError),
    #[error("the tensors are not those of Inception-v3 as FID uses it")]
    Network(#[from] InteropError),
    #[error("the tensors are not those of Inception-v3 as FID uses it: {count} do not belong to it, such as `{first}`")]
    Unknown { count: usize, first: String },
    #[error("tensor `{name}` of the Inception weights holds a NaN or an infinity")]
    NotFinite { name: String },
}

impl WeightsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Digest { .. } => Some(
                "download it again, or accept it with --unverified-inception (the results are then not comparable with published ones)",
            ),
            Self::Network(_) | Self::Unknown { .. } | Self::NotFinite { .. } => Some(
                "it must be the network of pytorch-fid (pt_inception-2015-12-05-6726825d.pth), not torchvision's own Inception",
            ),
            Self::Io { .. } | Self::File(_) => None,
        }
    }
}

/// Whether a file must be the published one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Its digest must be that of the published file.
    Published,
    /// Any file with the network's tensors is accepted.
    Any,
}

impl InceptionWeights {
    /// Reads a `.pth` file or, by its extension, a safetensors file.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or must be the published one and is not.
    pub fn read(path: &Path, verification: Verification) -> Result<Self, WeightsError> {
        let read = digest::of_file(path).map_err(|source| WeightsError::Io { path: path.to_path_buf(), source });
        let digest = read?.sha256;
        if verification == Verification::Published && !digest.starts_with(OFFICIAL_DIGEST) {
            return Err(WeightsError::Digest { path: path.to_path_buf(), digest });
        }
        let state = if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) {
            read_safetensors(path).map(|(state, _)| state)
        } else {
            PtFile::open(path).and_then(|file| file.read(Some))
        };
        Ok(Self { state: state.map_err(WeightsError::File)?, digest })
    }

    /// The network on a device.
    ///
    /// # Errors
    /// As [`InceptionV3::new`].
    pub fn network(&self, device: &Device) -> Result<InceptionV3, WeightsError> {
        InceptionV3::new(&self.state, device)
    }
}

/// Weights from a formula, for tests and timing: the network in form and size, but untrained. `tools/parity` has the same formula.
pub fn drawn_weights() -> StateDict {
    let mut state = StateDict::new();
    let mut source = |name: &str, shape: &[usize]| {
        let values = drawn(name, shape);
        state.insert(name, HostTensor { shape: shape.to_vec(), values: values.clone() });
        Ok(values)
    };
    let device = Device::flex();
    InceptionV3::read(&mut Read::new(&mut source, &device), &device).expect("the source refuses nothing");
    state
}

fn drawn(name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in = shape.iter().skip(1).product::<usize>();
    // He et al. 2015: keeps the magnitude of activations through rectifiers.
    let scale = (6.0 / fan_in as f64).sqrt();
    // FNV-1a, 32 bits.
    let tensor = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let value = |u: f64| match name.rsplit('.').next() {
        Some("running_var") => 0.75 + 0.5 * u,
        Some("weight") if shape.len() == 1 => 0.9 + 0.2 * u,
        Some("weight") => (2.0 * u - 1.0) * scale,
        _ => 0.2 * u - 0.1,
    };
    (0..shape.iter().product::<usize>() as u64).map(|i| value(unit(tensor.into(), i)) as f32).collect()
}

/// In [0, 1): SplitMix64's output function of the numbers of the tensor and the value (Steele et al. 2014, "Fast splittable pseudorandom number
/// generators").
fn unit(tensor: u64, index: u64) -> f64 {
    let mut z = (tensor << 32 | index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}
