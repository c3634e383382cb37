//! The reference's U-ViT (`simple_diffusion.UViT`): its parameters' names and shapes beside ours, and its configuration, inferred from tensors. Not
//! here: files, and the U-Net (`names.rs`, `infer.rs`).

use super::error::InteropError;
use super::names::{is_index, our_attention, our_name, our_residual, refuse_unknown};
use super::reference_weights::ReferenceNetwork;
use crate::models::{PerStage, UvitConfig};
use crate::weights::{HostTensor, StateDict, StateDictError};

/// Renames a U-ViT's state dict from the reference's names to ours, and gives linear maps of pixels the shape of 1x1 convolutions. Needs no
/// configuration.
///
/// # Errors
/// Tensors that a U-ViT does not have (at most five are listed), or shapes that none of its layers has.
pub fn uvit_to_ours(reference: &StateDict) -> Result<StateDict, InteropError> {
    let patches = reference.contains("unpatchify.weight");
    let unknown: Vec<&str> = reference.names().filter(|name| uvit_name(name, patches).is_none()).collect();
    refuse_unknown(ReferenceNetwork::Uvit.name(), &unknown)?;
    let mut ours = StateDict::new();
    for (name, tensor) in reference.iter() {
        let Some(our_name) = uvit_name(name, patches) else { continue };
        let tensor = if is_pixelwise(&our_name) { as_conv(name, tensor)? } else { tensor.clone() };
        if ours.insert(our_name.as_str(), tensor).is_some() {
            return Err(InteropError::NoConfiguration(format!(
                "two tensors map to `{our_name}`, one of them `{name}`"
            )));
        }
    }
    Ok(ours)
}

/// Infers a U-ViT's configuration from its tensors, with the reference's names. No tensor reveals `vit_dropout`, which is assumed to be the
/// reference's default and matters for training only, nor `image_transform`, which is assumed to be none, because the reference is given functions.
///
/// # Errors
/// Tensors are missing or contradict each other.
pub fn infer_uvit(state: &StateDict) -> Result<UvitConfig, InteropError> {
    let [time_dim, _] = shape::<2>(state, "time_mlp.3.weight")?;
    let dim = ratio("the time embedding", time_dim, 4)?;
    let [final_dim, first_dim, ..] = shape::<4>(state, "final_conv.weight")?;
    let patch_size = match state.contains("unpatchify.weight") {
        true => shape::<4>(state, "unpatchify.weight")?[2],
        false => 1,
    };
    let area = product(&[patch_size, patch_size])?;
    let dual_patchnorm = state.contains("init_conv.2.weight");
    let channels = match dual_patchnorm {
        true => ratio("a patch", shape::<2>(state, "init_conv.2.weight")?[1], area)?,
        false => shape::<4>(state, "init_conv.weight")?[1],
    };
    let (mut dim_mults, mut factors) = (Vec::new(), Vec::new());
    while state.contains(&format!("downs.{}.3.1.weight", dim_mults.len())) {
        let i = dim_mults.len();
        let [dim_out, inputs, ..] = shape::<4>(state, &format!("downs.{i}.3.1.weight"))?;
        let [dim_in, ..] = shape::<4>(state, &format!("downs.{i}.0.block1.proj.weight"))?;
        let square = ratio("a stage's block of pixels", inputs, dim_in)?;
        let factor = square.isqrt();
        if factor * factor != square {
            return Err(contradiction(format!(
                "stage {i} takes blocks of {square} pixels, which is not a square number"
            )));
        }
        dim_mults.push(ratio("a stage", dim_out, dim)?);
        factors.push(factor);
    }
    let [dim_head] = shape::<1>(state, "vit.layers.0.0.q_scale")?;
    let [qkv, _] = shape::<2>(state, "vit.layers.0.0.to_qkv.weight")?;
    let [hidden, inner] = shape::<2>(state, "vit.layers.0.1.proj_in.0.weight")?;
    let vit_depth = (0..).take_while(|i| state.contains(&format!("vit.layers.{i}.0.q_scale"))).count();
    let [frequencies] = shape::<1>(state, "time_mlp.0.weights")?;
    let out_dim = ratio("the output", final_dim, area)?;
    let num_classes = match state.contains("classes_emb.weight") {
        true => shape::<2>(state, "classes_emb.weight")?[0],
        false => 0,
    };
    let config = UvitConfig {
        dim,
        init_dim: (first_dim != dim).then_some(first_dim),
        out_dim: (out_dim != channels).then_some(out_dim),
        dim_mults,
        downsample_factor: match factors.iter().all(|factor| *factor == factors[0]) && !factors.is_empty() {
            true => PerStage::All(factors[0]),
            false => PerStage::Each(factors),
        },
        channels,
        vit_depth,
        attn_dim_head: dim_head,
        attn_heads: ratio("the transformer's attention", qkv, product(&[3, dim_head])?)?,
        ff_mult: ratio("the transformer's hidden layer", hidden, inner)?,
        learned_sinusoidal_dim: product(&[2, frequencies])?,
        patch_size,
        dual_patchnorm,
        num_classes,
        ..UvitConfig::default()
    };
    config.validate().map_err(|error| contradiction(error.to_string()))?;
    Ok(config)
}

/// Our name for a reference name, if a U-ViT has it. `patches`: whether its first layer takes patches.
fn uvit_name(reference: &str, patches: bool) -> Option<String> {
    let parts: Vec<&str> = reference.split('.').collect();
    match parts[..] {
        ["init_conv", leaf @ ("weight" | "bias")] if patches => Some(format!("init_conv.conv.{leaf}")),
        ["init_conv", "1", leaf @ ("weight" | "bias")] if patches => Some(format!("init_conv.norm1.{leaf}")),
        ["init_conv", "2", leaf @ ("weight" | "bias")] if patches => Some(format!("init_conv.linear.{leaf}")),
        ["init_conv", "3", leaf @ ("weight" | "bias")] if patches => Some(format!("init_conv.norm2.{leaf}")),
        ["unpatchify", "weight" | "bias"] => Some(reference.to_string()),
        ["downs", i, "3", "1", leaf @ ("weight" | "bias")] if is_index(i) => {
            Some(format!("downs.{i}.downsample.conv.{leaf}"))
        }
        ["ups", i, "0", "net", "0", leaf @ ("weight" | "bias")] if is_index(i) => {
            Some(format!("ups.{i}.upsample.conv.{leaf}"))
        }
        ["downs", i, part, ref rest @ ..] if is_index(i) => Some(format!("downs.{i}.{}", stage_part(part, 0, rest)?)),
        ["ups", i, part, ref rest @ ..] if is_index(i) => Some(format!("ups.{i}.{}", stage_part(part, 1, rest)?)),
        ["vit", "layers", i, "0", ref rest @ ..] if is_index(i) => match rest {
            ["norm", "g"] | ["q_scale" | "k_scale"] | ["to_qkv" | "to_out", "weight"] => {
                Some(format!("vit.{i}.attn.{}", rest.join(".")))
            }
            _ => None,
        },
        ["vit", "layers", i, "1", ref rest @ ..] if is_index(i) => match rest {
            ["to_scale_shift", "1", leaf @ ("weight" | "bias")] => Some(format!("vit.{i}.ff.to_scale_shift.{leaf}")),
            ["proj_in", "0", "weight"] => Some(format!("vit.{i}.ff.proj_in.weight")),
            ["proj_out", "1", "weight"] => Some(format!("vit.{i}.ff.proj_out.weight")),
            _ => None,
        },
        ["init_conv" | "final_conv" | "time_mlp" | "final_res_block", ..]
        | ["classes_emb" | "null_classes_emb" | "classes_mlp", ..] => our_name(reference),
        _ => None,
    }
}

/// Maps a stage's blocks and its attention, the first of which is `first` in the reference's list.
fn stage_part(part: &str, first: usize, rest: &[&str]) -> Option<String> {
    match part.parse::<usize>().ok()?.checked_sub(first)? {
        0 => Some(format!("block1.{}", our_residual(rest)?)),
        1 => Some(format!("block2.{}", our_residual(rest)?)),
        2 if rest != ["mem_kv"] => Some(format!("attn.{}", our_attention(rest)?)),
        _ => None,
    }
}

/// Whether the parameter is a linear map of pixels: a 1x1 convolution here, a linear layer or a convolution of patches there.
fn is_pixelwise(ours: &str) -> bool {
    let transformer = ["attn.to_qkv.weight", "attn.to_out.weight", "ff.proj_in.weight", "ff.proj_out.weight"];
    (ours.starts_with("vit.") && transformer.iter().any(|name| ours.ends_with(name)))
        || matches!(ours, "init_conv.conv.weight" | "init_conv.linear.weight")
}

/// Reshapes `[o, i, ...]` to `[o, i ..., 1, 1]`.
fn as_conv(name: &str, tensor: &HostTensor) -> Result<HostTensor, InteropError> {
    match tensor.shape[..] {
        [out, _] | [out, _, _, _] if out > 0 => Ok(tensor.clone().reshaped([out, tensor.values.len() / out, 1, 1])?),
        _ => Err(contradiction(format!("`{name}` has shape {:?}", tensor.shape))),
    }
}

fn contradiction(what: String) -> InteropError {
    InteropError::NoConfiguration(what)
}

fn shape<const D: usize>(state: &StateDict, name: &str) -> Result<[usize; D], InteropError> {
    let tensor =
        state.get(name).ok_or_else(|| StateDictError::Missing { name: name.to_string(), expected: Vec::new() })?;
    let wrong = || contradiction(format!("`{name}` has shape {:?}, but {D} sides were expected", tensor.shape));
    tensor.shape.clone().try_into().map_err(|_| wrong())
}

/// `whole / part`, both greater than 0 and without remainder.
fn ratio(what: &str, whole: usize, part: usize) -> Result<usize, InteropError> {
    match whole.checked_div(part) {
        Some(times) if times > 0 && times * part == whole => Ok(times),
        _ => Err(contradiction(format!("{what} has width {whole}, which is not a multiple of {part}"))),
    }
}

fn product(factors: &[usize]) -> Result<usize, InteropError> {
    let product = factors.iter().try_fold(1_usize, |product, factor| product.checked_mul(*factor));
    product.ok_or_else(|| contradiction(format!("sides of {factors:?} are too large")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_names_by_hand() {
        for (reference, patches, ours) in [
            ("init_conv.weight", false, Some("init_conv.weight")),
            ("init_conv.weight", true, Some("init_conv.conv.weight")),
            ("init_conv.1.bias", true, Some("init_conv.norm1.bias")),
            ("init_conv.1.bias", false, None),
            ("downs.1.0.mlp.1.weight", false, Some("downs.1.block1.mlp.weight")),
            ("downs.0.2.to_out.1.g", false, Some("downs.0.attn.out_norm.g")),
            ("downs.0.2.mem_kv", false, None),
            ("downs.0.3.1.bias", false, Some("downs.0.downsample.conv.bias")),
            ("ups.0.0.net.0.weight", false, Some("ups.0.upsample.conv.weight")),
            ("ups.0.0.block1.norm.g", false, None),
            ("ups.0.1.block2.norm.g", false, Some("ups.0.block1.block2.norm.g")),
            ("ups.2.3.to_qkv.weight", false, Some("ups.2.attn.to_qkv.weight")),
            ("vit.layers.3.0.k_scale", false, Some("vit.3.attn.k_scale")),
            ("vit.layers.3.1.proj_out.1.weight", false, Some("vit.3.ff.proj_out.weight")),
            ("vit.layers.03.0.k_scale", false, None),
            ("mid_attn.to_qkv.weight", false, None),
        ] {
            assert_eq!(uvit_name(reference, patches).as_deref(), ours, "{reference}");
        }
    }

    #[test]
    fn an_empty_state_dict_is_no_network() {
        let error = infer_uvit(&StateDict::new()).unwrap_err().to_string();
        assert!(error.contains("time_mlp.3.weight"), "{error}");
    }
}
