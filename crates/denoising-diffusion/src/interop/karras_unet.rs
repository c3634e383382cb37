//! The reference's KarrasUnet, KarrasUnet1D and KarrasUnet3D: their parameters' names and shapes beside ours, and their configuration, inferred from
//! tensors and the size of the data. Not here: files, and other networks.

use super::error::InteropError;
use super::names::{is_index, refuse_unknown};
use super::reference_weights::ReferenceNetwork;
use crate::models::{Extent, KarrasUnetConfig, PerStage, SpaceTimeAttention};
use crate::weights::{HostTensor, StateDict, StateDictError};

/// Renames a state dict from the reference's names to ours; kernels of any rank become kernels of volumes. Needs no configuration.
///
/// # Errors
/// Tensors that such a network does not have (at most five are listed), or shapes that none of its layers has.
pub fn karras_unet_to_ours(reference: &StateDict) -> Result<StateDict, InteropError> {
    let unknown: Vec<&str> = reference.names().filter(|name| our_name(name).is_none()).collect();
    refuse_unknown(ReferenceNetwork::KarrasUnet.name(), &unknown)?;
    let mut ours = StateDict::new();
    for (name, tensor) in reference.iter() {
        let Some(our_name) = our_name(name) else { continue };
        let is_linear = ["emb.weight", "time_emb.weight", "class_emb.weight"].iter().any(|end| our_name.ends_with(end));
        let tensor = match tensor.shape[..] {
            [] => tensor.clone().reshaped([1])?,
            [o, i, w] => tensor.clone().reshaped([o, i, 1, 1, w])?,
            [o, i, h, w] if !our_name.ends_with("mem_kv") => tensor.clone().reshaped([o, i, 1, h, w])?,
            [_, _] if !is_linear => return Err(contradiction(name, tensor)),
            _ => tensor.clone(),
        };
        ours.insert(our_name, tensor);
    }
    Ok(ours)
}

/// Infers the configuration from tensors with the reference's names and from the shape of the data, which no tensor reveals. `dropout`, the weights
/// `mp_*_t` and `*_mp_add_t`, and `downsample_types` are assumed to be the reference's defaults. The reference drops no classes (`class_drop_prob`).
///
/// # Errors
/// Tensors are missing or contradict each other.
pub fn infer_karras_unet(state: &StateDict, extent: Extent) -> Result<KarrasUnetConfig, InteropError> {
    let [dim, inputs] = first_sides(state, "input_block.weight")?;
    let [out, _] = first_sides(state, "output_block.0.weight")?;
    let fourier_dim = 2 * get(state, "to_time_emb.0.weights")?.values.len();
    let num_classes = match state.contains("to_class_emb.weight") {
        true => first_sides(state, "to_class_emb.weight")?[1],
        false => 0,
    };
    let is_down = |i: usize| state.contains(&format!("downs.{i}.downsample_conv.weight"));
    let attends = |block: &str| ["attn", "attn.0"].iter().any(|attn| state.contains(&format!("{block}.{attn}.mem_kv")));
    let own_size = if extent.height == 1 { extent.width } else { extent.height.min(extent.width) };
    let (mut counts, mut widest, mut attn_res, mut size) = (vec![0], dim, Vec::new(), own_size);
    for i in 0..counted(state, "downs") {
        match counts.last_mut() {
            Some(count) if !is_down(i) => *count += 1,
            _ => {
                counts.push(0);
                size /= 2;
            }
        }
        widest = first_sides(state, &format!("downs.{i}.block1.1.weight"))?[0];
        if attends(&format!("downs.{i}")) && attn_res.last() != Some(&size) {
            attn_res.push(size);
        }
    }
    // At the size of the data, the blocks on the way down never have attention. Only the block that returns to that size has it, before the last
    // blocks of the way up, and, if nothing is halved, the middle.
    let led_back = counted(state, "ups").checked_sub(counts[0] + 2).map(|last| format!("ups.{last}"));
    let unhalved = (counts.len() == 1).then(|| "mids.0".to_string());
    if led_back.into_iter().chain(unhalved).any(|block| attends(&block)) {
        attn_res.insert(0, own_size);
    }
    let memory = state.iter().find(|(name, _)| name.ends_with(".mem_kv")).map(|(_, memory)| memory);
    let factorized = state.names().any(|name| name.ends_with(".attn.1.mem_kv"));
    let default = KarrasUnetConfig::default();
    Ok(KarrasUnetConfig {
        dim,
        dim_max: widest,
        channels: out,
        num_downsamples: counts.len() - 1,
        num_blocks_per_stage: match counts.iter().all(|count| *count == counts[0]) {
            true => PerStage::All(counts[0]),
            false => PerStage::Each(counts),
        },
        attn_res,
        space_time_attn: match factorized {
            true => SpaceTimeAttention::FactorizedAtResizing,
            false => SpaceTimeAttention::Joint,
        },
        attn_dim_head: memory.and_then(|memory| memory.shape.last().copied()).unwrap_or(default.attn_dim_head),
        fourier_dim,
        self_condition: inputs == 2 * out + 1,
        num_classes,
        // Classes were never dropped; others, that training may add, can be.
        class_drop_prob: if num_classes > 0 { 0.0 } else { default.class_drop_prob },
        extent: Some(extent),
        ..default
    })
}

/// Number of blocks of one side.
fn counted(state: &StateDict, side: &str) -> usize {
    (0..).take_while(|i| state.contains(&format!("{side}.{i}.block1.1.weight"))).count()
}

/// Our name for a reference name, if such a network has it.
fn our_name(reference: &str) -> Option<String> {
    let parts: Vec<&str> = reference.split('.').collect();
    match parts[..] {
        ["input_block", "weight"] => Some("input.weight".to_string()),
        ["output_block", "0", "weight"] => Some("output.weight".to_string()),
        ["output_block", "1", "gain"] => Some("output_gain.gain".to_string()),
        ["to_time_emb", "0", "weights"] => Some("time_features.weights".to_string()),
        ["to_time_emb", "1", "weight"] => Some("time_emb.weight".to_string()),
        ["to_class_emb", "weight"] => Some("class_emb.weight".to_string()),
        ["downs", i, "downsample_conv", "weight"] if is_index(i) => Some(format!("downs.{i}.downsample_conv.weight")),
        [side @ ("mids" | "ups"), i, "res_conv", "weight"] if is_index(i) => {
            Some(format!("{side}.{i}.res_conv.weight"))
        }
        [side @ ("downs" | "mids" | "ups"), i, ref rest @ ..] if is_index(i) => {
            let within = match rest {
                ["to_emb", "0", "weight"] => "emb.weight",
                ["to_emb", "1", "gain"] => "emb_gain.gain",
                ["block1", "1", "weight"] => "conv1.weight",
                ["block2", "2", "weight"] => "conv2.weight",
                ["attn", "mem_kv"] => "attn.mem_kv",
                ["attn", "to_qkv", "weight"] => "attn.to_qkv.weight",
                ["attn", "to_out", "weight"] => "attn.to_out.weight",
                ["attn", "0", "mem_kv"] => "attn.mem_kv",
                ["attn", "0", "to_qkv", "weight"] => "attn.to_qkv.weight",
                ["attn", "0", "to_out", "weight"] => "attn.to_out.weight",
                ["attn", "1", "mem_kv"] => "time_attn.mem_kv",
                ["attn", "1", "to_qkv", "weight"] => "time_attn.to_qkv.weight",
                ["attn", "1", "to_out", "weight"] => "time_attn.to_out.weight",
                _ => return None,
            };
            Some(format!("{side}.{i}.block.{within}"))
        }
        _ => None,
    }
}

fn get<'a>(state: &'a StateDict, name: &str) -> Result<&'a HostTensor, InteropError> {
    state.get(name).ok_or_else(|| StateDictError::Missing { name: name.to_string(), expected: Vec::new() }.into())
}

fn first_sides(state: &StateDict, name: &str) -> Result<[usize; 2], InteropError> {
    let tensor = get(state, name)?;
    match tensor.shape[..] {
        [a, b, ..] => Ok([a, b]),
        _ => Err(contradiction(name, tensor)),
    }
}

fn contradiction(name: &str, tensor: &HostTensor) -> InteropError {
    InteropError::NoConfiguration(format!("`{name}` has shape {:?}", tensor.shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataLayout;

    #[test]
    fn a_few_names_by_hand() {
        for (reference, ours) in [
            ("output_block.1.gain", Some("output_gain.gain")),
            ("downs.3.block2.2.weight", Some("downs.3.block.conv2.weight")),
            ("ups.10.res_conv.weight", Some("ups.10.res_conv.weight")),
            ("downs.0.res_conv.weight", None),
            ("mids.1.attn.mem_kv", Some("mids.1.block.attn.mem_kv")),
            ("mids.01.attn.mem_kv", None),
            ("init_conv.weight", None),
        ] {
            assert_eq!(our_name(reference).as_deref(), ours, "{reference}");
        }
    }

    fn told(config: &KarrasUnetConfig, attends: &[&str], downs: usize) -> KarrasUnetConfig {
        let mut state = StateDict::new();
        let mut insert = |name: &str, shape: &[usize]| {
            let values = vec![0.0; shape.iter().product()];
            state.insert(name, HostTensor::new(shape, values).unwrap());
        };
        insert("input_block.weight", &[config.dim, config.channels + 1, 3, 3]);
        insert("output_block.0.weight", &[config.channels, config.dim, 3, 3]);
        insert("to_time_emb.0.weights", &[8]);
        if config.num_classes > 0 {
            insert("to_class_emb.weight", &[4 * config.dim, config.num_classes]);
        }
        for i in 0..downs {
            insert(&format!("downs.{i}.block1.1.weight"), &[config.dim, config.dim, 3, 3]);
        }
        for i in 0..config.num_downsamples {
            insert(&format!("downs.{}.downsample_conv.weight", i + 1), &[config.dim, config.dim, 1, 1]);
        }
        for i in 0..(downs + 1 + config.num_downsamples) {
            insert(&format!("ups.{i}.block1.1.weight"), &[config.dim, config.dim, 3, 3]);
        }
        for block in attends {
            insert(&format!("{block}.attn.mem_kv"), &[2, 2, 4, config.attn_dim_head]);
        }
        infer_karras_unet(&state, config.extent.unwrap()).unwrap()
    }

    /// At the size of the data, only the block that returns to that size has attention; if nothing is halved, the middle.
    #[test]
    fn attention_at_the_size_of_the_data_is_told() {
        let square = |side| Some(Extent { layout: DataLayout::Images, depth: 1, height: side, width: side });
        let config = |side, num_downsamples, attn_dim_head| KarrasUnetConfig {
            dim: 4,
            dim_max: 4,
            channels: 3,
            num_downsamples,
            num_blocks_per_stage: PerStage::All(1),
            attn_res: vec![side],
            attn_dim_head,
            extent: square(side),
            ..KarrasUnetConfig::default()
        };
        assert_eq!(told(&config(6, 1, 16), &["ups.2"], 3), config(6, 1, 16));
        assert_eq!(told(&config(4, 0, 8), &["mids.0", "mids.1"], 1), config(4, 0, 8));
        let none = KarrasUnetConfig { attn_res: Vec::new(), ..config(4, 0, 64) };
        assert_eq!(told(&config(4, 0, 64), &[], 1), none);
    }

    /// So that guidance away from a prediction that was never trained is warned of.
    #[test]
    fn the_reference_never_drops_classes() {
        let extent = Extent { layout: DataLayout::Images, depth: 1, height: 4, width: 4 };
        let config =
            KarrasUnetConfig { dim: 4, num_downsamples: 0, extent: Some(extent), ..KarrasUnetConfig::default() };
        assert_eq!(told(&config, &[], 1).class_drop_prob, config.class_drop_prob, "there are none");
        let config = KarrasUnetConfig { num_classes: 3, ..config };
        assert_eq!(told(&config, &[], 1).class_drop_prob, 0.0);
    }

    #[test]
    fn an_empty_state_dict_is_no_network() {
        let extent = Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 };
        let error = infer_karras_unet(&StateDict::new(), extent).unwrap_err().to_string();
        assert!(error.contains("input_block.weight"), "{error}");
    }
}
