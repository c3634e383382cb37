//! Errors between a file and a network's weights.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::diffusion::DiffusionConfigError;
use crate::models::NetworkConfigError;
use crate::models::UnetConfigError;
use crate::weights::StateDictError;

/// Why weights could not be read, written or interpreted. Each variant says what was expected and what was found; [`hint`](Self::hint) says what to
/// do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InteropError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The file violates its format: it is truncated, altered, or of another kind.
    #[error("{} cannot be read as a {format} file: {what}", path.display())]
    Damaged { path: PathBuf, format: &'static str, what: String },
    #[error("tensor `{name}` in {} has element type {found}; expected one of {expected}", path.display())]
    ElementType { path: PathBuf, name: String, found: String, expected: &'static str },
    /// An integer that `f32` cannot represent.
    #[error("tensor `{name}` in {} holds the integer {value}, which 32-bit floats cannot hold exactly", path.display())]
    Integer { path: PathBuf, name: String, value: i128 },
    /// Small files can declare huge tensors (an expanded view repeats its elements).
    #[error(
        "the tensors of {} declare {bytes} bytes, more than the {limit} that a file of its size can hold",
        path.display()
    )]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error(transparent)]
    Tensor(#[from] StateDictError),
    /// Tensors that a network (or a learned schedule) does not have; at most five are listed.
    #[error("{count} {} to no part of a {network}: {}", belong(*count), names.join(", "))]
    Unknown { network: &'static str, count: usize, names: Vec<String> },
    #[error("the reference has no network{}", conditioned(*num_classes, *condition_channels, *vector_dim))]
    NotThere { num_classes: usize, condition_channels: usize, vector_dim: usize },
    #[error("the name `{0}` is reserved in safetensors files")]
    ReservedName(String),
    /// Nothing in the file looks like a network of the reference; at most five of its keys are listed.
    #[error(
        "{} holds no Unet, Unet1D, KarrasUnet or UViT of denoising-diffusion-pytorch: {} Expected the tensors of one at the top (a Unet's \
         begin with `init_conv.weight`), under `model.` or `net.`, or in the `model` and `ema` of a Trainer checkpoint",
        path.display(), found(*count, keys)
    )]
    NoNetwork { path: PathBuf, count: usize, keys: Vec<String> },
    #[error("{} has no {wanted} weights; it has {available}", path.display())]
    NoSuchWeights { path: PathBuf, wanted: &'static str, available: String },
    /// Tensors that contradict each other or do not match any configuration.
    #[error("the tensors and options describe no network: {0}")]
    NoConfiguration(String),
    #[error("the tensors describe an invalid U-Net")]
    Unet(#[from] UnetConfigError),
    #[error("the tensors and options describe an invalid network")]
    Network(#[from] NetworkConfigError),
    #[error(
        "the network is a KarrasUnet3D, for volumes, whose depth no tensor reveals; only the library can read it (`interop::infer_karras_unet`)"
    )]
    Volumes,
    #[error("the tensors and options describe an invalid formulation")]
    Diffusion(#[from] DiffusionConfigError),
    /// A network of the package that is none of ours.
    #[error(
        "this is the Unet of the package's guided_diffusion, or of an old version (attention within two wrappers, no classes); it is not \
         supported, because its norms scale by the width of the image"
    )]
    Guided,
    /// A level of the stored schedule from which no step can be made.
    #[error("level {t} of the stored noise schedule is no noisier than the one before: its beta is {beta}")]
    Level { t: usize, beta: f64 },
    /// A given value contradicts the tensors.
    #[error("`{key} = {said}` contradicts the file, whose tensors show {told}")]
    Contradicted { key: String, said: String, told: String },
    /// A value was given for something that the tensors determine or that the network does not have.
    #[error("`{key}` follows from the tensors, or does not apply to their network")]
    NotOpen { key: String },
    /// No value was given for something that the tensors do not determine.
    #[error("the file does not state the formulation: {} must be given", missing.join(", "))]
    Untold { missing: Vec<&'static str> },
}

/// The largest number of names in an error.
pub(super) const NAMED: usize = 5;

impl InteropError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn damaged(path: &Path, format: &'static str, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), format, what: shortened(what.into()) }
    }

    /// What a user can do about it, if anything.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Io { action: "write", .. } => "check that the folder exists, is writable and has space left",
            Self::Io { .. } => "check the path and its permissions",
            Self::Damaged { .. } => {
                "the copy or download may have been cut off: copy or download the file again, or use an earlier one"
            }
            Self::ElementType { .. } => "convert the tensors to float32 before saving them",
            Self::TooLarge { .. } => "save contiguous copies of the tensors, not expanded views",
            Self::NoNetwork { .. } => {
                "give a checkpoint of the package's Trainer, or a state dict of one of its diffusion classes or networks"
            }
            Self::NoSuchWeights { .. } => "choose other weights with --weights",
            Self::Tensor(StateDictError::Missing { .. } | StateDictError::Shape { .. })
            | Self::Unknown { .. }
            | Self::NoConfiguration(_)
            | Self::Unet(_) => "the network may come from another package, an old version, or changed code",
            Self::NotThere { .. } => {
                "write it in our format; the reference takes classes as its only condition, and then needs linear attention in every \
                 stage, no learned keys (num_mem_kv = 0) and strided downsampling"
            }
            Self::Contradicted { .. } | Self::NotOpen { .. } => "leave it out: the value in the file is used",
            Self::Untold { .. } => {
                "the package's defaults are timesteps 1000, beta_schedule sigmoid, objective pred_v; for sequences and classes beta_schedule \
                 cosine, objective pred_noise; in continuous time noise_schedule linear, objective pred_noise"
            }
            Self::Level { .. } => {
                "such a schedule comes from extreme parameters (a small tau, say), and no sampler here can use it: the package itself can"
            }
            Self::Volumes => "`ddpm` can sample volumes only from networks that it trained itself",
            Self::Guided => "the package's `Unet` and `classifier_free_guidance.Unet` are supported",
            Self::Diffusion(_)
            | Self::Network(_)
            | Self::Integer { .. }
            | Self::Tensor(StateDictError::ValueCount { .. })
            | Self::ReservedName(_) => return None,
        })
    }
}

fn conditioned(num_classes: usize, condition_channels: usize, vector_dim: usize) -> String {
    match (num_classes, condition_channels, vector_dim) {
        (0, 0, 0) => String::new(),
        (classes, 0, 0) => format!(" like this one, which is conditioned on {classes} classes"),
        (_, 0, dim) => format!(" like this one, which is conditioned on vectors of {dim} numbers"),
        (_, 1, _) => " like this one, with 1 condition channel beside the input".to_string(),
        (_, channels, _) => format!(" like this one, with {channels} condition channels beside the input"),
    }
}

fn belong(count: usize) -> &'static str {
    if count == 1 { "tensor belongs" } else { "tensors belong" }
}

fn found(count: usize, keys: &[String]) -> String {
    if keys.is_empty() {
        return "it is empty.".to_string();
    }
    let named: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    let more = count.saturating_sub(keys.len());
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("it has {}{rest}.", named.join(", "))
}

/// Parsers quote the file in their messages; for a hostile file, such a message can be as long as the file.
fn shortened(text: String) -> String {
    const LONGEST: usize = 300;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_what_came_and_what_was_expected() {
        let error = InteropError::NoNetwork {
            path: "a.pt".into(),
            count: 7,
            keys: vec!["epoch".into(), "state_dict.conv1.weight".into()],
        };
        let text = error.to_string();
        assert!(text.contains("`epoch`, `state_dict.conv1.weight` and 5 more"), "{text}");
        assert!(text.contains("`init_conv.weight`"), "{text}");
        assert!(error.hint().unwrap().contains("Trainer"));

        let error = InteropError::Unknown { network: "UViT", count: 1, names: vec!["a.b".into()] };
        assert_eq!(error.to_string(), "1 tensor belongs to no part of a UViT: a.b");
    }

    #[test]
    fn long_parser_messages_are_cut_between_characters() {
        let error = InteropError::damaged(Path::new("x"), "safetensors", "\u{e9}".repeat(1000));
        assert!(error.to_string().chars().count() < 400);
        assert!(error.to_string().ends_with(" ..."));
    }
}
