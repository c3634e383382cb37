//! Infers the configuration of the reference's networks from the shapes of their tensors; for the U-Net in this file. Not here: other networks
//! (`uvit.rs`, `karras_unet.rs`), the formulation (`infer_diffusion.rs`), and finding the network in a file (`reference.rs`).

use std::collections::BTreeSet;

use super::error::InteropError;
use super::infer_diffusion::infer_diffusion;
use super::inferred::Inferred;
use super::karras_unet::{infer_karras_unet, karras_unet_to_ours};
use super::layout::reference_layout;
use super::names::{U_NET, refuse_unknown};
use super::reference_weights::{ReferenceNetwork, ReferenceWeights};
use super::stated::{complete_diffusion, complete_network};
use super::uvit::{infer_uvit, uvit_to_ours};
use crate::data::DataLayout;
use crate::models::{Downsampling, PerStage, UnetConfig};
use crate::models::{Extent, KarrasUnetConfig, NetworkConfig};
use crate::nn::Axes;
use crate::weights::StateDict;

/// No layer has larger sides; the bound keeps products of sides within `usize`.
const WIDEST: usize = 1 << 20;

/// See [`ReferenceWeights::infer`].
pub(super) fn infer(weights: &ReferenceWeights) -> Result<Inferred, InteropError> {
    let (network, assumed, notes) = match weights.kind() {
        ReferenceNetwork::Unet => unet(&weights.state)?,
        ReferenceNetwork::Uvit => {
            let network = NetworkConfig::Uvit(infer_uvit(&weights.state)?);
            check_all(&uvit_to_ours(&weights.state)?, &network, ReferenceNetwork::Uvit.name())?;
            let note = "no tensor reveals vit_dropout (the package's default is taken; it matters for training only) and \
                        image_transform (taken as none)";
            (network, vec!["vit_dropout", "image_transform"], vec![note.to_string()])
        }
        ReferenceNetwork::KarrasUnet => {
            let config = karras_unet(&weights.state)?;
            let assumed = open_in_karras_unet(&config);
            let note = format!(
                "no tensor reveals {}: the package's defaults are taken (dropout matters for training only)",
                assumed.join(", ")
            );
            let network = NetworkConfig::KarrasUnet(config);
            check_all(&karras_unet_to_ours(&weights.state)?, &network, ReferenceNetwork::KarrasUnet.name())?;
            (network, assumed, vec![note])
        }
    };
    let mut inferred = Inferred { network, diffusion: None, betas: None, assumed, notes };
    complete_network(&weights.stated, &mut inferred);
    // Tables are what a class computes with, whatever a file states.
    if !(weights.tables.is_empty() && complete_diffusion(&weights.stated, &mut inferred)) {
        infer_diffusion(weights, &mut inferred)?;
    }
    Ok(inferred)
}

/// A network, the keys that none of its tensors reveals, and notes.
type Told = (NetworkConfig, Vec<&'static str>, Vec<String>);

fn unet(state: &StateDict) -> Result<Told, InteropError> {
    let mut notes = Vec::new();
    let mut assumed = vec!["dropout"];
    let config = infer_unet(state, &mut notes)?;
    if !config.fourier_time() {
        assumed.push("sinusoidal_pos_emb_theta");
    }
    if config.mid_attn_heads.is_some() {
        assumed.push("mid_attn_heads");
    }
    let mut taken = vec!["0".to_string()];
    taken.extend((!config.fourier_time()).then(|| config.sinusoidal_pos_emb_theta.to_string()));
    taken.extend(config.mid_attn_heads.map(|heads| heads.to_string()));
    notes.push(format!(
        "no tensor reveals {}: taken as {} (dropout matters for training only)",
        assumed.join(" and "),
        taken.join(" and "),
    ));
    Ok((NetworkConfig::Unet(config), assumed, notes))
}

/// For data of the smallest size that its stages allow: the rank of a kernel reveals the kind of data, but nothing reveals their size.
fn karras_unet(state: &StateDict) -> Result<KarrasUnetConfig, InteropError> {
    let rank = state.get("input_block.weight").map_or(0, |kernel| kernel.shape.len());
    let downs = (0..).take_while(|i| state.contains(&format!("downs.{i}.block1.1.weight")));
    let halved = downs.filter(|i| state.contains(&format!("downs.{i}.downsample_conv.weight"))).count();
    let side = 1_usize.checked_shl(halved as u32).ok_or_else(|| no_configuration(format!("{halved} stages")))?;
    let (layout, depth, height) = match rank {
        3 => (DataLayout::Sequences, 1, 1),
        4 => (DataLayout::Images, 1, side),
        5 => (DataLayout::Volumes, side, side),
        _ => return Err(no_configuration(format!("a first kernel of {rank} axes"))),
    };
    infer_karras_unet(state, Extent { layout, depth, height, width: side })
}

/// The keys that no tensor reveals and that matter. `resnet_mp_add_t` is not among them: the package accepts it, but uses its default.
fn open_in_karras_unet(config: &KarrasUnetConfig) -> Vec<&'static str> {
    let volumes = config.extent.is_some_and(|extent| extent.layout == DataLayout::Volumes);
    [
        ("dropout", true),
        ("mp_cat_t", true),
        ("mp_add_emb_t", config.num_classes > 0),
        ("attn_res_mp_add_t", !config.attn_res.is_empty()),
        ("downsample_types", volumes),
    ]
    .into_iter()
    .filter_map(|(key, means)| means.then_some(key))
    .collect()
}

fn infer_unet(state: &StateDict, notes: &mut Vec<String>) -> Result<UnetConfig, InteropError> {
    let axes = match state.get("init_conv.weight").map(|tensor| tensor.shape.len()) {
        Some(3) => Axes::Width,
        _ => Axes::Both,
    };
    let [first, in_channels, ..] = kernel(state, "init_conv.weight", axes)?;
    let [out_channels, ..] = kernel(state, "final_conv.weight", axes)?;
    let [time_dim, _] = shape::<2>(state, "time_mlp.3.weight")?;
    let dim = time_dim / 4;
    if dim == 0 || !time_dim.is_multiple_of(4) {
        return Err(no_configuration(format!(
            "the time embedding is {time_dim} wide, which is not 4 times a base width"
        )));
    }
    let mut config = UnetConfig { dim, init_dim: (first != dim).then_some(first), axes, ..UnetConfig::default() };
    notes.push(format!("dim {dim}: a quarter of the time embedding's width (time_mlp.3.weight)"));
    infer_time(state, &mut config, notes)?;
    if state.contains("classes_emb.weight") {
        [config.num_classes, _] = shape(state, "classes_emb.weight")?;
        notes.push(format!("{} classes (classes_emb.weight)", config.num_classes));
    }
    if state.contains("mid_attn.fn.norm.g") {
        if axes == Axes::Both && config.num_classes == 0 {
            return Err(InteropError::Guided);
        }
        infer_old_stages(state, &mut config, notes)?;
    } else {
        infer_stages(state, &mut config)?;
    }
    infer_channels(in_channels, out_channels, &mut config, notes);
    check_fit(state, &config)?;
    Ok(config)
}

fn infer_time(state: &StateDict, config: &mut UnetConfig, notes: &mut Vec<String>) -> Result<(), InteropError> {
    if state.contains("time_mlp.0.weights") {
        let [frequencies] = shape::<1>(state, "time_mlp.0.weights")?;
        config.learned_sinusoidal_cond = true;
        config.learned_sinusoidal_dim = frequencies * 2;
        notes.push(
            "Fourier time embedding (time_mlp.0.weights): whether its frequencies were learned or random cannot be determined; both \
             compute the same, and learned_sinusoidal_cond is assumed"
                .to_string(),
        );
    }
    Ok(())
}

/// Widths and attention of the stages, outermost first.
fn infer_stages(state: &StateDict, config: &mut UnetConfig) -> Result<(), InteropError> {
    let stages = (0..).take_while(|i| state.contains(&format!("downs.{i}.0.block1.proj.weight"))).count();
    let (mut mults, mut full, mut heads, mut dim_heads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for i in 0..stages {
        let conv = if i + 1 == stages { format!("downs.{i}.3.weight") } else { format!("downs.{i}.3.1.weight") };
        let [width, ..] = shape::<4>(state, &conv)?;
        if !width.is_multiple_of(config.dim) {
            return Err(no_configuration(format!(
                "stage {i} is {width} wide (`{conv}`), which is not a multiple of the base width {}",
                config.dim
            )));
        }
        mults.push(width / config.dim);
        let is_full = state.contains(&format!("downs.{i}.2.to_out.weight"));
        let [_, head_count, a, b] = shape::<4>(state, &format!("downs.{i}.2.mem_kv"))?;
        full.push(is_full);
        heads.push(head_count);
        // [2, heads, memory, dim_head] in softmax attention, [2, heads, dim_head, memory] in linear attention.
        dim_heads.push(if is_full { b } else { a });
    }
    let innermost_only = full.iter().enumerate().all(|(i, &is_full)| is_full == (i + 1 == stages));
    config.dim_mults = mults;
    config.full_attn = (!innermost_only).then(|| one_or_each(full));
    config.attn_heads = one_or_each(heads);
    config.attn_dim_head = one_or_each(dim_heads);
    Ok(())
}

/// For the reference's networks whose attention is wrapped twice: linear attention with 4 heads of 32 channels in every stage.
fn infer_old_stages(state: &StateDict, config: &mut UnetConfig, notes: &mut Vec<String>) -> Result<(), InteropError> {
    let stages = (0..).take_while(|i| state.contains(&format!("downs.{i}.0.block1.proj.weight"))).count();
    config.dim_mults = (0..stages)
        .map(|i| {
            let [width, ..] = kernel(state, &format!("downs.{i}.3.weight"), config.axes)?;
            if width.is_multiple_of(config.dim) {
                return Ok(width / config.dim);
            }
            Err(no_configuration(format!(
                "stage {i} is {width} wide, which is not a multiple of the base width {}",
                config.dim
            )))
        })
        .collect::<Result<_, _>>()?;
    let [three_hidden, ..] = kernel(state, "mid_attn.fn.fn.to_qkv.weight", config.axes)?;
    let hidden = three_hidden / 3;
    let dim_head = if hidden.is_multiple_of(32) { 32 } else { hidden };
    notes.push(format!(
        "the middle block's attention has {hidden} features in all: taken as heads of {dim_head}, {} in number (mid_attn_heads)",
        hidden / dim_head
    ));
    config.full_attn = Some(PerStage::All(false));
    config.num_mem_kv = 0;
    config.downsample = Downsampling::Strided;
    (config.mid_attn_heads, config.mid_attn_dim_head) = (Some(hidden / dim_head), Some(dim_head));
    Ok(())
}

fn one_or_each<T: Clone + PartialEq>(values: Vec<T>) -> PerStage<T> {
    match &values[..] {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => PerStage::All(first.clone()),
        _ => PerStage::Each(values),
    }
}

/// Only the numbers of input and output channels are known, so the likeliest options that give them are chosen.
fn infer_channels(input: usize, output: usize, config: &mut UnetConfig, notes: &mut Vec<String>) {
    let note = if input == output {
        config.channels = input;
        let other = "; self_condition together with learned_variance on half as many channels would look the same";
        format!("channels {input}, in and out{}", if input.is_multiple_of(2) { other } else { "" })
    } else if input == output * 2 {
        config.channels = output;
        config.self_condition = true;
        format!("self_condition: {input} channels in, {output} out")
    } else if output == input * 2 {
        config.channels = input;
        config.learned_variance = true;
        format!("learned_variance: {input} channels in, {output} out; out_dim {output} would look the same")
    } else {
        config.channels = input;
        config.out_dim = Some(output);
        format!(
            "channels {input} and out_dim {output}: taken from init_conv and final_conv; self_condition cannot be determined"
        )
    };
    notes.push(note);
}

/// Inference uses few tensors; this checks the result against all of them, which have our names already.
fn check_all(ours: &StateDict, network: &NetworkConfig, name: &'static str) -> Result<(), InteropError> {
    let tensors = network.tensors()?;
    for (name, shape) in &tensors {
        ours.require(name, shape)?;
    }
    let unknown: Vec<&str> = ours.names().filter(|name| !tensors.contains_key(*name)).collect();
    refuse_unknown(name, &unknown)
}

/// The same for a U-Net, with the reference's names.
fn check_fit(state: &StateDict, config: &UnetConfig) -> Result<(), InteropError> {
    let layout = reference_layout(config)?;
    for parameter in &layout {
        state.require(&parameter.reference, &parameter.reference_shape)?;
    }
    let known: BTreeSet<&str> = layout.iter().map(|p| p.reference.as_str()).collect();
    let unknown: Vec<&str> = state.names().filter(|name| !known.contains(name)).collect();
    refuse_unknown(U_NET, &unknown)
}

/// `[c_out, c_in, height, width]` of a convolution's weight.
fn kernel(state: &StateDict, name: &str, axes: Axes) -> Result<[usize; 4], InteropError> {
    match axes {
        Axes::Both => shape(state, name),
        Axes::Width => shape::<3>(state, name).map(|[o, i, k]| [o, i, 1, k]),
    }
}

/// The shape of a tensor that must have `N` axes of plausible size.
fn shape<const N: usize>(state: &StateDict, name: &str) -> Result<[usize; N], InteropError> {
    let tensor = state.get(name).ok_or_else(|| no_configuration(format!("tensor `{name}` is missing")))?;
    let axes: [usize; N] = tensor.shape.as_slice().try_into().map_err(|_| {
        no_configuration(format!("tensor `{name}` has shape {:?}; a U-Net has {N} axes there", tensor.shape))
    })?;
    match axes.iter().find(|&&side| side == 0 || side > WIDEST) {
        Some(side) => Err(no_configuration(format!("tensor `{name}` has a side of {side}; expected 1 to {WIDEST}"))),
        None => Ok(axes),
    }
}

fn no_configuration(what: String) -> InteropError {
    InteropError::NoConfiguration(what)
}

#[cfg(test)]
mod tests;
