//! Renames a U-Net's parameters from the reference's names to ours and back. Not here: which parameters there are (`layout.rs`), files, and inferring
//! a configuration from tensors (`infer.rs`).
//!
//! All layouts are PyTorch's, except that RMSNorm's gain `g` is `[c]` here and `[1, c, 1, 1]` there, and that kernels of sequences are `[o, i, 1, k]`
//! here and `[o, i, k]` there.
//!
//! Three networks of the reference are this U-Net with different options: `Unet`, `classifier_free_guidance.Unet` (classes, no learned keys, halving
//! by strided convolutions, linear attention in every stage) and `Unet1D` (the same without classes, for sequences). The latter two wrap their
//! attention twice, which shows in its names (`fn`).

use std::collections::BTreeSet;

use super::error::{InteropError, NAMED};
use super::layout::reference_layout;
use super::learned_schedule;
use crate::models::{Downsampling, PerStage, UnetConfig};
use crate::nn::Axes;
use crate::weights::{HostTensor, StateDict, StateDictError};

/// Renames a U-Net's state dict from the reference's names to ours. Needs no configuration, because each name can be translated by itself.
///
/// # Errors
/// Tensors that a U-Net does not have (at most five are listed), or gains with a shape other than `[1, c, 1, 1]`.
pub fn to_ours(reference: &StateDict) -> Result<StateDict, InteropError> {
    let unknown: Vec<&str> = reference.names().filter(|name| our_name(name).is_none()).collect();
    refuse_unknown(U_NET, &unknown)?;
    let mut ours = StateDict::new();
    for (name, tensor) in reference.iter() {
        let Some(our_name) = our_name(name) else { continue };
        let tensor = if our_name.ends_with(".g") { flat_gain(name, tensor)? } else { as_image_kernel(tensor)? };
        if ours.insert(our_name.as_str(), tensor).is_some() {
            return Err(InteropError::NoConfiguration(format!(
                "two tensors map to `{our_name}`, one of them `{name}`"
            )));
        }
    }
    Ok(ours)
}

/// Renames the parameters of the configured U-Net from our names to those that `load_state_dict` of the reference's Unet expects. A network with a
/// learned schedule beside it gets those of ContinuousTimeGaussianDiffusion.
///
/// # Errors
/// The reference has no such network, a parameter is missing or has another shape, there are tensors that the network does not have, or the
/// configuration is not valid.
pub fn to_reference(ours: &StateDict, config: &UnetConfig) -> Result<StateDict, InteropError> {
    if let Some([network, schedule]) = learned_schedule::apart(ours) {
        let mut both = unet_to_reference(&network, config)?.with_prefix("model.");
        both.merge(learned_schedule::to_reference(&schedule)?);
        return Ok(both);
    }
    unet_to_reference(ours, config)
}

fn unet_to_reference(ours: &StateDict, config: &UnetConfig) -> Result<StateDict, InteropError> {
    // Without augmentation, which is how networks are used, its embedding adds nothing.
    let ours: &StateDict = &ours
        .iter()
        .filter(|(name, _)| !name.starts_with("augment_emb."))
        .map(|(name, tensor)| (name.to_string(), tensor.clone()))
        .collect();
    let config = &UnetConfig { augment_labels: false, ..config.clone() };
    let layout = reference_layout(config)?;
    if !exists_there(config) {
        let UnetConfig { num_classes, condition_channels, vector_dim, .. } = *config;
        return Err(InteropError::NotThere { num_classes, condition_channels, vector_dim });
    }
    let known: BTreeSet<&str> = layout.iter().map(|p| p.ours.as_str()).collect();
    let unknown: Vec<&str> = ours.names().filter(|name| !known.contains(name)).collect();
    refuse_unknown(U_NET, &unknown)?;
    layout
        .into_iter()
        .map(|p| Ok((p.reference, ours.require(&p.ours, &p.our_shape)?.clone().reshaped(p.reference_shape)?)))
        .collect()
}

/// Whether the reference has a network with this configuration.
fn exists_there(config: &UnetConfig) -> bool {
    let (heads, dim_head) = (&config.attn_heads, &config.attn_dim_head);
    let linear =
        config.full_attn == Some(PerStage::All(false)) && (heads, dim_head) == (&PerStage::All(4), &PerStage::All(32));
    let old = config.downsample == Downsampling::Strided && config.num_mem_kv == 0 && linear;
    match (config.axes, config.num_classes) {
        _ if config.condition_channels > 0 || config.vector_dim > 0 => false,
        (Axes::Width, 0) => old,
        (Axes::Both, 0) => {
            let own_middle = config.mid_attn_heads.is_some() || config.mid_attn_dim_head.is_some();
            config.downsample == Downsampling::Unshuffle && config.num_mem_kv == 4 && !own_middle
        }
        (Axes::Both, _) => old && !config.self_condition,
        (Axes::Width, _) => false,
    }
}

/// What messages call this network.
pub(super) const U_NET: &str = "U-Net";

/// Refuses tensors that a network, which `network` names, does not have.
pub(super) fn refuse_unknown(network: &'static str, unknown: &[&str]) -> Result<(), InteropError> {
    if unknown.is_empty() {
        return Ok(());
    }
    let names = unknown.iter().take(NAMED).map(|name| name.to_string()).collect();
    Err(InteropError::Unknown { network, count: unknown.len(), names })
}

fn flat_gain(name: &str, tensor: &HostTensor) -> Result<HostTensor, StateDictError> {
    match tensor.shape[..] {
        [1, c, 1, 1] | [1, c, 1] => tensor.clone().reshaped([c]),
        _ => Err(StateDictError::Shape {
            name: name.to_string(),
            expected: vec![1, tensor.values.len(), 1, 1],
            got: tensor.shape.clone(),
        }),
    }
}

/// Reshapes kernels of sequences to kernels of images of height 1.
fn as_image_kernel(tensor: &HostTensor) -> Result<HostTensor, StateDictError> {
    match tensor.shape[..] {
        [o, i, k] => tensor.clone().reshaped([o, i, 1, k]),
        _ => Ok(tensor.clone()),
    }
}

/// Our name for a reference name, if a U-Net has it.
pub(super) fn our_name(reference: &str) -> Option<String> {
    let parts: Vec<&str> = reference.split('.').collect();
    match parts[..] {
        ["init_conv" | "final_conv", "weight" | "bias"] => Some(reference.to_string()),
        ["time_mlp", "0", "weights"] => Some("time_mlp.embed.weights".to_string()),
        ["time_mlp", "1", leaf @ ("weight" | "bias")] => Some(format!("time_mlp.linear1.{leaf}")),
        ["time_mlp", "3", leaf @ ("weight" | "bias")] => Some(format!("time_mlp.linear2.{leaf}")),
        ["classes_emb", "weight"] | ["null_classes_emb"] => Some(reference.to_string()),
        ["classes_mlp", "0", leaf @ ("weight" | "bias")] => Some(format!("classes_mlp.linear1.{leaf}")),
        ["classes_mlp", "2", leaf @ ("weight" | "bias")] => Some(format!("classes_mlp.linear2.{leaf}")),
        [block @ ("mid_block1" | "mid_block2" | "final_res_block"), ref rest @ ..] => {
            Some(format!("{block}.{}", our_residual(rest)?))
        }
        ["mid_attn", ref rest @ ..] => Some(format!("mid_attn.{}", our_attention(rest)?)),
        [side @ ("downs" | "ups"), index, part, ref rest @ ..] if is_index(index) => {
            Some(format!("{side}.{index}.{}", our_stage_part(part, rest)?))
        }
        _ => None,
    }
}

/// Only digits and no leading zero, so that no stage has two spellings.
pub(super) fn is_index(text: &str) -> bool {
    text.parse::<usize>().is_ok_and(|index| index.to_string() == text)
}

fn our_stage_part(part: &str, rest: &[&str]) -> Option<String> {
    match (part, rest) {
        ("0", rest) => Some(format!("block1.{}", our_residual(rest)?)),
        ("1", rest) => Some(format!("block2.{}", our_residual(rest)?)),
        ("2", rest) => Some(format!("attn.{}", our_attention(rest)?)),
        // After a rearrangement or an upsampling where the size changes; alone in the last stage.
        ("3", ["1", leaf @ ("weight" | "bias")] | [leaf @ ("weight" | "bias")]) => {
            Some(format!("resample.conv.{leaf}"))
        }
        _ => None,
    }
}

pub(super) fn our_residual(rest: &[&str]) -> Option<String> {
    match rest {
        ["mlp", "1", leaf @ ("weight" | "bias")] => Some(format!("mlp.{leaf}")),
        ["block1" | "block2", "proj", "weight" | "bias"]
        | ["block1" | "block2", "norm", "g"]
        | ["res_conv", "weight" | "bias"] => Some(rest.join(".")),
        _ => None,
    }
}

pub(super) fn our_attention(rest: &[&str]) -> Option<String> {
    match rest {
        ["fn", "norm", "g"] => Some("norm.g".to_string()),
        ["fn", "fn", rest @ ..] if !matches!(rest, ["norm" | "mem_kv" | "fn", ..]) => our_attention(rest),
        ["norm", "g"] | ["mem_kv"] | ["to_qkv", "weight"] | ["to_out", "weight" | "bias"] => Some(rest.join(".")),
        ["to_out", "0", leaf @ ("weight" | "bias")] => Some(format!("to_out.{leaf}")),
        ["to_out", "1", "g"] => Some("out_norm.g".to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Unet1dConfig;

    fn configs() -> Vec<UnetConfig> {
        let small = UnetConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
        vec![
            UnetConfig { dim: 8, ..UnetConfig::default() },
            UnetConfig { dim_mults: vec![1], ..small.clone() },
            UnetConfig { random_fourier_features: true, learned_variance: true, ..small.clone() },
            UnetConfig { init_dim: Some(6), out_dim: Some(5), self_condition: true, ..small.clone() },
            UnetConfig { full_attn: Some(PerStage::Each(vec![true, false])), ..small.clone() },
            UnetConfig { attn_heads: PerStage::Each(vec![1, 3]), attn_dim_head: PerStage::All(5), ..small },
            sequences().unet(),
            UnetConfig { num_classes: 3, axes: Axes::Both, ..sequences().unet() },
        ]
    }

    fn sequences() -> Unet1dConfig {
        Unet1dConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, attn_heads: 2, ..Unet1dConfig::default() }
    }

    fn with_classes() -> UnetConfig {
        UnetConfig { num_classes: 3, ..configs()[1].clone() }
    }

    /// Every value occurs only once, so that swapped tensors are noticed.
    fn reference_state(config: &UnetConfig) -> StateDict {
        let mut next = 0u16;
        let mut tensor = |shape: &[usize]| {
            let values = (0..shape.iter().product()).map(|_| {
                next = next.wrapping_add(1);
                f32::from(next)
            });
            HostTensor::new(shape, values.collect()).unwrap()
        };
        let layout = reference_layout(config).unwrap();
        layout.into_iter().map(|p| (p.reference, tensor(&p.reference_shape))).collect()
    }

    #[test]
    fn there_and_back_changes_nothing() {
        for config in configs() {
            let reference = reference_state(&config);
            let ours = to_ours(&reference).unwrap();
            assert_eq!(ours.len(), reference.len());
            assert_eq!(to_reference(&ours, &config).unwrap(), reference, "{config:?}");
        }
    }

    #[test]
    fn both_directions_agree_on_names_and_shapes() {
        for config in configs().into_iter().chain([with_classes()]) {
            let ours = to_ours(&reference_state(&config)).unwrap();
            let layout = reference_layout(&config).unwrap();
            assert_eq!(layout.len(), ours.len());
            for p in layout {
                assert_eq!(our_name(&p.reference).as_deref(), Some(p.ours.as_str()));
                ours.require(&p.ours, &p.our_shape).unwrap();
            }
        }
    }

    #[test]
    fn classes_beside_learned_keys_have_names_but_no_network_of_the_reference() {
        let config = with_classes();
        let ours = to_ours(&reference_state(&config)).unwrap();
        let shape = |name: &str| ours.get(name).unwrap().shape.clone();
        assert_eq!((shape("classes_emb.weight"), shape("null_classes_emb")), (vec![3, 4], vec![4]));
        assert_eq!(shape("classes_mlp.linear2.weight"), [16, 16]);
        assert_eq!(shape("mid_block1.mlp.weight"), [8, 32]);
        let refused = to_reference(&ours, &config).unwrap_err();
        assert!(matches!(refused, InteropError::NotThere { num_classes: 3, .. }), "{refused}");
        assert!(refused.hint().unwrap().contains("our format"));
    }

    #[test]
    fn conditions_beside_the_input_are_no_network_of_the_reference() {
        let plain = &configs()[1];
        for (config, words) in [
            (UnetConfig { condition_channels: 1, ..plain.clone() }, "1 condition channel beside"),
            (UnetConfig { vector_dim: 7, ..plain.clone() }, "vectors of 7 numbers"),
        ] {
            let ours = to_ours(&reference_state(&config)).unwrap();
            let refused = to_reference(&ours, &config).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
            assert!(refused.hint().unwrap().contains("our format"));
        }
    }

    #[test]
    fn a_few_names_by_hand() {
        for (reference, ours) in [
            ("time_mlp.0.weights", Some("time_mlp.embed.weights")),
            ("time_mlp.3.bias", Some("time_mlp.linear2.bias")),
            ("downs.0.0.mlp.1.weight", Some("downs.0.block1.mlp.weight")),
            ("null_classes_emb", Some("null_classes_emb")),
            ("classes_mlp.2.bias", Some("classes_mlp.linear2.bias")),
            ("classes_mlp.1.bias", None),
            ("downs.1.1.block2.norm.g", Some("downs.1.block2.block2.norm.g")),
            ("downs.0.2.to_out.1.g", Some("downs.0.attn.out_norm.g")),
            ("downs.0.2.to_out.0.bias", Some("downs.0.attn.to_out.bias")),
            ("ups.0.3.1.weight", Some("ups.0.resample.conv.weight")),
            ("ups.12.3.weight", Some("ups.12.resample.conv.weight")),
            ("mid_attn.to_out.weight", Some("mid_attn.to_out.weight")),
            ("ups.0.3.2.weight", None),
            ("ups.00.3.weight", None),
            ("downs.0.4.weight", None),
            ("downs.0.0.block1.norm.weight", None),
            ("model.init_conv.weight", None),
            ("downs.0.2.fn.norm.g", Some("downs.0.attn.norm.g")),
            ("downs.0.2.fn.fn.to_out.1.g", Some("downs.0.attn.out_norm.g")),
            ("mid_attn.fn.fn.to_out.weight", Some("mid_attn.to_out.weight")),
            ("mid_attn.fn.fn.norm.g", None),
        ] {
            assert_eq!(our_name(reference).as_deref(), ours, "{reference}");
        }
    }

    #[test]
    fn unknown_tensors_are_named_up_to_five() {
        let mut state = reference_state(&configs()[1]);
        for i in 0..7 {
            state.insert(format!("conv{i}.weight"), HostTensor::new([1], vec![0.0]).unwrap());
        }
        let text = to_ours(&state).unwrap_err().to_string();
        assert!(text.starts_with("7 tensors belong"), "{text}");
        assert!(text.contains("conv0.weight, conv1.weight, conv2.weight, conv3.weight, conv4.weight"), "{text}");
        assert!(!text.contains("conv5"), "{text}");
    }

    #[test]
    fn another_configuration_is_refused() {
        let [wide, single, ..] = &configs()[..] else { unreachable!() };
        let ours = to_ours(&reference_state(single)).unwrap();
        assert!(to_reference(&ours, wide).is_err());
        let wider = UnetConfig { dim: 6, ..single.clone() };
        assert!(matches!(to_reference(&ours, &wider).unwrap_err(), InteropError::Tensor(StateDictError::Shape { .. })));
        let mut doubled = reference_state(single);
        doubled.insert("downs.0.3.1.weight", HostTensor::new([1], vec![0.0]).unwrap());
        assert!(matches!(to_ours(&doubled).unwrap_err(), InteropError::NoConfiguration(_)));
    }
}
