//! Tells the configuration of the reference's networks from the shapes of their tensors, of its U-Net itself. Not here: other networks
//! (`uvit.rs`, `karras_unet.rs`), the formulation (`infer_diffusion.rs`), and finding the network in a file (`reference.rs`).

use std::collections::BTreeSet;

use super::error::InteropError;
use super::infer_diffusion::infer_diffusion;
use super::karras_unet::infer_karras_unet;
use super::layout::reference_layout;
use super::names::refuse_unknown;
use super::reference_weights::{ReferenceNetwork, ReferenceWeights};
use super::state_dict::StateDict;
use super::uvit::infer_uvit;
use crate::data::DataLayout;
use crate::diffusion::DiffusionConfig;
use crate::models::unet_config::{Downsampling, PerStage, UnetConfig};
use crate::models::{Extent, KarrasUnetConfig, NetworkConfig};
use crate::nn::Axes;

/// What the tensors of a reference checkpoint tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Inferred {
    /// Fits the tensors exactly: every parameter is there in its shape, and none is left over. Of a KarrasUnet the size of the data is still
    /// open, see [`network_for`](Self::network_for).
    pub network: NetworkConfig,
    /// `None` if nothing tells the formulation. See [`diffusion_with`](Self::diffusion_with).
    pub diffusion: Option<DiffusionConfig>,
    /// The stored noise schedule if no named one gives it; `diffusion.beta_schedule` and its parameters then mean nothing.
    pub betas: Option<Vec<f64>>,
    /// Configuration keys that no tensor tells; they hold the likeliest values. `diffusion` among them: the formulation itself, and so
    /// all of its options.
    pub assumed: Vec<&'static str>,
    /// What was inferred from what, and what remains open, in sentences.
    pub notes: Vec<String>,
}

impl Inferred {
    /// The same with another number of heads in the middle block, where no tensor tells it.
    ///
    /// # Errors
    /// The tensors tell it, or their features cannot be shared out to so many heads.
    pub fn with_mid_attn_heads(mut self, heads: usize) -> Result<Self, InteropError> {
        let told = || InteropError::Contradicted {
            key: "mid_attn_heads".to_string(),
            told: "the heads of every attention".to_string(),
            said: heads.to_string(),
        };
        let NetworkConfig::Unet(unet) = &mut self.network else { return Err(told()) };
        let (Some(assumed), Some(dim_head)) = (unet.mid_attn_heads, unet.mid_attn_dim_head) else {
            return Err(told());
        };
        let features = assumed * dim_head;
        if heads == 0 || !features.is_multiple_of(heads) {
            return Err(no_configuration(format!(
                "the middle block's attention has {features} features, which are no multiple of {heads} heads"
            )));
        }
        (unet.mid_attn_heads, unet.mid_attn_dim_head) = (Some(heads), Some(features / heads));
        Ok(self)
    }

    /// The U-Net, if it is one.
    pub fn unet(&self) -> Option<&UnetConfig> {
        match &self.network {
            NetworkConfig::Unet(unet) => Some(unet),
            _ => None,
        }
    }

    /// The network for data of a size, as a model card says it. Only of a KarrasUnet the size decides something: at which of its stages it
    /// attends.
    ///
    /// # Errors
    /// A KarrasUnet for volumes, whose depth nobody says.
    pub fn network_for(
        &self,
        weights: &ReferenceWeights,
        height: usize,
        width: usize,
    ) -> Result<NetworkConfig, InteropError> {
        match &self.network {
            NetworkConfig::Unet(unet) => Ok(NetworkConfig::of_unet(unet.clone())),
            NetworkConfig::KarrasUnet(config) => {
                let layout = config.extent.map_or(DataLayout::Images, |extent| extent.layout);
                if layout == DataLayout::Volumes {
                    let what = "a KarrasUnet for volumes: `interop::infer_karras_unet` takes their depth".to_string();
                    return Err(no_configuration(what));
                }
                let height = if layout == DataLayout::Sequences { 1 } else { height };
                let extent = Extent { layout, depth: 1, height, width };
                Ok(NetworkConfig::KarrasUnet(infer_karras_unet(&weights.state, extent)?))
            }
            other => Ok(other.clone()),
        }
    }
}

/// Sides above this are no layer's; the bound keeps products of sides within `usize`.
const WIDEST: usize = 1 << 20;

/// See [`ReferenceWeights::infer`].
pub(super) fn infer(weights: &ReferenceWeights) -> Result<Inferred, InteropError> {
    let (network, assumed, notes) = match weights.kind() {
        ReferenceNetwork::Unet => unet(&weights.state)?,
        ReferenceNetwork::Uvit => {
            let config = infer_uvit(&weights.state)?;
            let note = "no tensor tells vit_dropout (taken as the package's; it matters for training only) and image_transform (taken as none)";
            (NetworkConfig::Uvit(config), vec!["vit_dropout", "image_transform"], vec![note.to_string()])
        }
        ReferenceNetwork::KarrasUnet => {
            let note = "no tensor tells dropout, the shares mp_*_t and *_mp_add_t, and downsample_types: taken as the package's";
            let assumed =
                vec!["dropout", "mp_cat_t", "mp_add_emb_t", "attn_mp_add_t", "resnet_mp_add_t", "downsample_types"];
            (NetworkConfig::KarrasUnet(karras_unet(&weights.state)?), assumed, vec![note.to_string()])
        }
    };
    let mut inferred = Inferred { network, diffusion: None, betas: None, assumed, notes };
    infer_diffusion(weights, &mut inferred)?;
    Ok(inferred)
}

/// A network, the keys that no tensor of it tells, and notes.
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
        "no tensor tells {}: taken as {} (dropout matters for training only)",
        assumed.join(" and "),
        taken.join(" and "),
    ));
    Ok((NetworkConfig::Unet(config), assumed, notes))
}

/// For data of the smallest size that its stages allow: a kernel's rank tells what the network is for, nothing tells their size.
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
            "Fourier time embedding (time_mlp.0.weights): whether its frequencies were learned or random cannot be told; both \
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
                "stage {i} is {width} wide (`{conv}`), which is no multiple of the base width {}",
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

/// Of the reference's networks whose attention is wrapped twice: linear attention of 4 heads of 32 in every stage.
fn infer_old_stages(state: &StateDict, config: &mut UnetConfig, notes: &mut Vec<String>) -> Result<(), InteropError> {
    let stages = (0..).take_while(|i| state.contains(&format!("downs.{i}.0.block1.proj.weight"))).count();
    config.dim_mults = (0..stages)
        .map(|i| {
            let [width, ..] = kernel(state, &format!("downs.{i}.3.weight"), config.axes)?;
            if width.is_multiple_of(config.dim) {
                return Ok(width / config.dim);
            }
            Err(no_configuration(format!(
                "stage {i} is {width} wide, which is no multiple of the base width {}",
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

/// Only the numbers of channels going in and out are known; the likeliest options that give them are taken.
fn infer_channels(input: usize, output: usize, config: &mut UnetConfig, notes: &mut Vec<String>) {
    let note = if input == output {
        config.channels = input;
        let other = "; self_condition together with learned_variance on half as many would look the same";
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
            "channels {input} and out_dim {output}: taken from init_conv and final_conv; self_condition cannot be told"
        )
    };
    notes.push(note);
}

/// Inference looks at few tensors; this holds the result against all of them.
fn check_fit(state: &StateDict, config: &UnetConfig) -> Result<(), InteropError> {
    let layout = reference_layout(config)?;
    for parameter in &layout {
        state.require(&parameter.reference, &parameter.reference_shape)?;
    }
    let known: BTreeSet<&str> = layout.iter().map(|p| p.reference.as_str()).collect();
    let unknown: Vec<&str> = state.names().filter(|name| !known.contains(name)).collect();
    refuse_unknown(&unknown)
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
mod tests {
    use super::super::TensorData;
    use super::*;
    use crate::models::Unet1dConfig;

    fn state(config: &UnetConfig) -> StateDict {
        let layout = reference_layout(config).unwrap();
        let zeros = |shape: &[usize]| TensorData::new(shape, vec![0.0; shape.iter().product()]).unwrap();
        layout.into_iter().map(|p| (p.reference, zeros(&p.reference_shape))).collect()
    }

    fn alone(unet: StateDict) -> ReferenceWeights {
        ReferenceWeights { state: unet, ..ReferenceWeights::default() }
    }

    fn inferred(config: &UnetConfig) -> Inferred {
        alone(state(config)).infer().unwrap()
    }

    fn network_of(found: &Inferred) -> NetworkConfig {
        found.network_for(&ReferenceWeights::default(), 8, 8).unwrap()
    }

    fn small() -> UnetConfig {
        UnetConfig { dim: 4, dim_mults: vec![1, 3], channels: 2, ..UnetConfig::default() }
    }

    #[test]
    fn configurations_come_back_from_their_shapes() {
        for config in [
            UnetConfig { dim: 8, ..UnetConfig::default() },
            small(),
            UnetConfig { dim_mults: vec![2], init_dim: Some(6), ..small() },
            UnetConfig { self_condition: true, ..small() },
            UnetConfig { learned_variance: true, ..small() },
            UnetConfig { out_dim: Some(5), ..small() },
            UnetConfig { learned_sinusoidal_cond: true, learned_sinusoidal_dim: 6, ..small() },
            UnetConfig { full_attn: Some(PerStage::All(false)), ..small() },
            UnetConfig { full_attn: Some(PerStage::All(true)), ..small() },
            UnetConfig { full_attn: Some(PerStage::Each(vec![true, false])), ..small() },
            UnetConfig { attn_heads: PerStage::Each(vec![1, 4]), attn_dim_head: PerStage::Each(vec![4, 7]), ..small() },
        ] {
            let found = inferred(&config);
            assert_eq!(found.unet(), Some(&config));
            assert_eq!((found.diffusion, found.betas), (None, None));
        }
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let found = inferred(&UnetConfig { random_fourier_features: true, ..small() });
        assert!(found.unet().unwrap().learned_sinusoidal_cond);
        assert!(found.notes.iter().any(|note| note.contains("learned or random")));
        assert_eq!(found.assumed, ["dropout"]);
        assert_eq!(inferred(&small()).assumed, ["dropout", "sinusoidal_pos_emb_theta"]);
    }

    #[test]
    fn older_networks_come_back_from_their_shapes() {
        let sequences = Unet1dConfig { dim: 4, dim_mults: vec![1, 3], channels: 2, ..Unet1dConfig::default() };
        let found = inferred(&sequences.unet());
        assert_eq!(network_of(&found), NetworkConfig::Unet1d(sequences.clone()));
        let learned = Unet1dConfig { attn_heads: 2, learned_variance: true, ..sequences };
        assert_eq!(inferred(&learned.unet()).unet(), Some(&learned.unet()));
        let with_classes = UnetConfig { num_classes: 7, axes: Axes::Both, ..learned.unet() };
        let found = inferred(&with_classes);
        assert_eq!(network_of(&found), NetworkConfig::Unet(with_classes));
        assert!(found.notes.iter().any(|note| note.contains("7 classes")));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |change: &dyn Fn(&mut StateDict)| {
            let mut state = state(&small());
            change(&mut state);
            alone(state).infer().unwrap_err().to_string()
        };
        let zeros = |shape: &[usize]| TensorData::new(shape, vec![0.0; shape.iter().product()]).unwrap();
        let text = refused(&|state| drop(state.remove("time_mlp.3.weight")));
        assert!(text.contains("`time_mlp.3.weight` is missing"), "{text}");
        let text = refused(&|state| drop(state.insert("init_conv.weight", zeros(&[4, 2]))));
        assert!(text.contains("4 axes"), "{text}");
        let text = refused(&|state| drop(state.insert("ups.0.3.1.bias", zeros(&[5]))));
        assert!(text.contains("`ups.0.3.1.bias` must have shape [4], got [5]"), "{text}");
        let text = refused(&|state| drop(state.insert("extra", zeros(&[5]))));
        assert!(text.contains("extra"), "{text}");
        let text = refused(&|state| drop(state.insert("downs.0.2.mem_kv", zeros(&[2, 1 << 40, 0, 1]))));
        assert!(text.contains("expected 1 to"), "{text}");
    }
}
