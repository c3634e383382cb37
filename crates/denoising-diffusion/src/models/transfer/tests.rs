//! What networks take over from others: everything that means the same in both.

use burn::tensor::{Device, Int, TensorData};

use super::*;
use crate::data::DataLayout;
use crate::models::{
    DitConfig, Extent, ImageNetwork, ImageTransform, KarrasUnetConfig, Network, NetworkConfig, NetworkInput, Unet,
    Unet1dConfig, UnetConfig, UvitConfig,
};
use crate::nn::params::{host_values, to_state_dict};
use crate::nn::{EvalMode, Init, Vectors};
use crate::testing::largest_difference;

fn unet(config: UnetConfig, seed: u64) -> Unet {
    let config = UnetConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..config };
    Unet::new(&config, &mut Init::new(seed, &Device::flex().autodiff())).unwrap()
}

fn ramp(channels: usize) -> Tensor<4> {
    let values: Vec<f32> = (0..channels * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, [1, channels, 8, 8]), &Device::flex())
}

fn uvit_config() -> UvitConfig {
    UvitConfig {
        dim: 8,
        dim_mults: vec![1, 2],
        vit_depth: 1,
        attn_heads: 2,
        attn_dim_head: 8,
        channels: 1,
        ..UvitConfig::default()
    }
}

fn dit_config() -> DitConfig {
    DitConfig { hidden_size: Some(8), depth: Some(1), num_heads: Some(1), channels: 1, ..DitConfig::default() }
}

fn karras_config() -> KarrasUnetConfig {
    KarrasUnetConfig {
        dim: 8,
        num_downsamples: 1,
        extent: Some(Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 }),
        channels: 1,
        ..KarrasUnetConfig::default()
    }
}

/// A network in whose tensors no value is as it was drawn, so that there are no layers of zeros.
fn trained(config: &NetworkConfig) -> ImageNetwork {
    struct Waves;
    impl MapTensor for Waves {
        fn map<const D: usize>(&mut self, _: &str, _: Role, tensor: Tensor<D>) -> Tensor<D> {
            let values = host_values(tensor.clone()).into_iter().enumerate();
            let values = values.map(|(i, value)| value + 0.1 * (i as f32 * 0.7 + 0.3).sin()).collect();
            from_host(values, tensor.dims(), &tensor.device())
        }
    }
    map(config.build(&mut Init::new(1, &Device::flex().autodiff())).unwrap(), &mut Waves)
}

/// A trained network, and a new one that starts from it.
fn start(theirs: NetworkConfig, own: NetworkConfig) -> (ImageNetwork, ImageNetwork, Transfer) {
    let (from, to) = (trained(&theirs), own.build(&mut Init::new(2, &Device::flex().autodiff())).unwrap());
    let origin = Origin { networks: Some([&own, &theirs]), classes: None };
    let (to, transfer) = start_from(to, &to_state_dict(&from), &origin);
    (from, to, transfer)
}

fn assert_same_output(what: &str, from: &ImageNetwork, before: NetworkInput, to: &ImageNetwork, now: NetworkInput) {
    let [before, after] = [host_values(from.eval().forward(before)), host_values(to.eval().forward(now))];
    assert!(before.iter().any(|value| value.abs() > 1e-3), "{what}");
    // Sums over more inputs round otherwise.
    assert!(largest_difference(&before, &after) < 1e-4, "{what}: {before:?}\n{after:?}");
}

#[test]
fn equal_networks_become_the_same() {
    let from = unet(UnetConfig::default(), 1);
    let (to, transfer) = start_from(unet(UnetConfig::default(), 2), &to_state_dict(&from), &Origin::default());
    assert_eq!(to_state_dict(&to), to_state_dict(&from));
    assert_eq!((transfer.share(), transfer.fresh.len(), transfer.unused.len()), (1.0, 0, 0));
    assert!(to.init_conv.weight.val().is_require_grad(), "it can be trained");
}

#[test]
fn a_new_condition_and_new_classes_change_nothing_at_first() {
    let unet = |condition_channels, num_classes| {
        let unet = UnetConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
        NetworkConfig::Unet(UnetConfig { condition_channels, num_classes, ..unet })
    };
    let uvit = |patch_size, image_transform, condition_channels, num_classes| {
        NetworkConfig::Uvit(UvitConfig {
            patch_size,
            image_transform,
            condition_channels,
            num_classes,
            ..uvit_config()
        })
    };
    let dit = |condition_channels| NetworkConfig::Dit(DitConfig { condition_channels, ..dit_config() });
    let (plain, haar) = (ImageTransform::None, ImageTransform::Haar);
    for (theirs, own, layer) in [
        (unet(0, 0), unet(3, 5), "init_conv.weight"),
        (uvit(1, plain, 0, 0), uvit(1, plain, 3, 5), "init_conv.weight"),
        (uvit(2, plain, 0, 0), uvit(2, plain, 3, 5), "init_conv.conv.weight"),
        (uvit(1, haar, 0, 0), uvit(1, haar, 3, 5), "init_conv.weight"),
        (dit(0), dit(3), "x_embedder.weight"),
    ] {
        let what = format!("{own:?}");
        let num_classes = own.num_classes();
        let (from, to, transfer) = start(theirs, own);
        assert!(transfer.widened.contains(&layer.to_string()), "{:?}", transfer.widened);
        assert!(transfer.fresh.iter().all(|name| name.contains("classes")), "{:?}", transfer.fresh);
        assert!(transfer.share() < 1.0 && transfer.share() > 0.5, "{what}: {}", transfer.share());
        let plain = NetworkInput::new(ramp(1), Tensor::from_floats([0.3], &Device::flex()));
        let classes = (num_classes > 0).then(|| Tensor::<1, Int>::from_ints([2], &Device::flex()));
        let told = NetworkInput { classes, condition: Some(ramp(3)), ..plain.clone() };
        assert_same_output(&what, &from, plain, &to, told);
    }
}

/// The estimate comes before the data; zeros stand for none.
#[test]
fn new_self_conditioning_changes_nothing_at_first() {
    let unet = |self_condition, condition_channels| {
        let unet = UnetConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
        NetworkConfig::Unet(UnetConfig { self_condition, condition_channels, ..unet })
    };
    let sequences = |self_condition| {
        let sequences = Unet1dConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..Unet1dConfig::default() };
        NetworkConfig::Unet1d(Unet1dConfig { self_condition, ..sequences })
    };
    for (theirs, own) in [
        (unet(false, 0), unet(true, 0)),
        (unet(false, 1), unet(true, 1)),
        (unet(true, 0), unet(true, 1)),
        (unet(false, 0), unet(true, 1)),
        (sequences(false), sequences(true)),
    ] {
        let what = format!("{theirs:?} {own:?}");
        let sides = if matches!(own, NetworkConfig::Unet1d(_)) { [1, 64] } else { [8, 8] };
        let data = |channels: usize| (channels > 0).then(|| ramp(channels).reshape([1, channels, sides[0], sides[1]]));
        let condition = |config: &NetworkConfig| data(config.condition_channels());
        let conditions = [&theirs, &own].map(condition);
        let (from, to, transfer) = start(theirs, own);
        assert_eq!((transfer.widened, transfer.fresh), (vec!["init_conv.weight".to_string()], vec![]), "{what}");
        let plain = NetworkInput::new(data(1).unwrap() * 0.5, Tensor::from_floats([7.0], &Device::flex()));
        let [before, now] = conditions.map(|condition| NetworkInput { condition, ..plain.clone() });
        let now = NetworkInput { x_self_cond: Some(plain.x.zeros_like()), ..now };
        assert_same_output(&what, &from, before, &to, now);
    }
}

/// The norm of all of its weights keeps this network from giving the same, but each weight belongs to what it belonged to: a constant, then the data.
#[test]
fn the_inputs_of_a_magnitude_preserving_network_stay_what_they_were() {
    let config = |self_condition, condition_channels| {
        NetworkConfig::KarrasUnet(KarrasUnetConfig { self_condition, condition_channels, ..karras_config() })
    };
    let (from, to, transfer) = start(config(false, 0), config(true, 1));
    assert_eq!((transfer.widened, transfer.fresh.len()), (vec!["input.weight".to_string()], 0));
    let [from, to] = [from, to].map(|network| to_state_dict(&network).get("input.weight").unwrap().values.clone());
    for (from, to) in from.chunks(2 * 9).zip(to.chunks(4 * 9)) {
        let zeros = [0.0; 9];
        assert_eq!(to, [&from[..9], &zeros, &from[9..], &zeros].concat());
    }
}

/// Such weights would read something else than they have learned to read.
#[test]
fn layers_whose_inputs_differ_otherwise_start_fresh() {
    let unet = |channels, self_condition, condition_channels| {
        let unet = UnetConfig { dim: 4, dim_mults: vec![1, 2], out_dim: Some(1), ..UnetConfig::default() };
        NetworkConfig::Unet(UnetConfig { channels, self_condition, condition_channels, ..unet })
    };
    let dit = |patch_size| NetworkConfig::Dit(DitConfig { patch_size, ..dit_config() });
    let uvit = NetworkConfig::Uvit;
    let haar = UvitConfig { image_transform: ImageTransform::Haar, ..uvit_config() };
    let fourier = UvitConfig { learned_sinusoidal_dim: 32, ..uvit_config() };
    for (theirs, own, layers) in [
        (dit(2), dit(4), &["x_embedder.weight", "final_linear.weight"][..]),
        (uvit(uvit_config()), uvit(haar), &["init_conv.weight", "final_conv.weight"]),
        (uvit(uvit_config()), uvit(fourier), &["time_mlp.embed.weights", "time_mlp.linear1.weight"]),
        (unet(1, false, 1), unet(3, false, 3), &["init_conv.weight"]),
        (unet(1, false, 1), unet(1, false, 3), &["init_conv.weight"]),
        // These have as many inputs as before.
        (unet(1, false, 1), unet(1, true, 0), &["init_conv.weight"]),
        (unet(1, false, 2), unet(3, false, 0), &["init_conv.weight"]),
    ] {
        let what = format!("{theirs:?} {own:?}");
        let (_, to, transfer) = start(theirs, own);
        assert!(transfer.widened.is_empty(), "{what}: {:?}", transfer.widened);
        let state = to_state_dict(&to);
        let weights: Vec<&str> =
            transfer.fresh.iter().map(String::as_str).filter(|name| !name.ends_with("bias")).collect();
        assert_eq!(weights, layers, "{what}");
        let values = |name: &str| state.get(name).unwrap().values.len();
        let fresh: usize = transfer.fresh.iter().map(|name| values(name)).sum();
        let all: usize = state.names().map(values).sum();
        assert!((transfer.share() - (1.0 - fresh as f64 / all as f64)).abs() < 1e-9, "{what}");
    }
}

/// The norm over data and condition together gives something else from the start, but nothing that was learned is lost.
#[test]
fn normalised_patches_keep_what_was_learned_of_the_data() {
    let config = |condition_channels| {
        NetworkConfig::Uvit(UvitConfig { patch_size: 2, dual_patchnorm: true, condition_channels, ..uvit_config() })
    };
    let (from, to, transfer) = start(config(0), config(1));
    assert_eq!(transfer.widened, ["init_conv.norm1.weight", "init_conv.norm1.bias", "init_conv.linear.weight"]);
    assert_eq!(transfer.fresh.len(), 0);
    let [from, to] = [from, to].map(|network| to_state_dict(&network));
    let values = |state: &StateDict, name: &str| state.get(&format!("init_conv.{name}")).unwrap().values.clone();
    assert_eq!(values(&to, "norm1.weight"), [values(&from, "norm1.weight"), vec![1.0; 4]].concat());
    assert_eq!(values(&to, "norm1.bias"), [values(&from, "norm1.bias"), vec![0.0; 4]].concat());
    let [from, to] = [from, to].map(|state| values(&state, "linear.weight"));
    for (from, to) in from.chunks(4).zip(to.chunks(8)) {
        assert_eq!(to, [from, &[0.0; 4]].concat());
    }
}

#[test]
fn new_vectors_change_nothing_at_first() {
    let unet = |vector_dim| {
        let unet = UnetConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
        NetworkConfig::Unet(UnetConfig { vector_dim, ..unet })
    };
    let uvit = |vector_dim| NetworkConfig::Uvit(UvitConfig { vector_dim, ..uvit_config() });
    for (theirs, own) in [(unet(0), unet(3)), (uvit(0), uvit(3))] {
        let what = format!("{own:?}");
        let (from, to, _) = start(theirs, own);
        let plain = NetworkInput::new(ramp(1), Tensor::from_floats([0.3], &Device::flex()));
        let vectors = Vectors::of_rows(vec![1.0, -2.0, 0.5], 3, |_| true, &Device::flex());
        let told = NetworkInput { vectors: Some(vectors), ..plain.clone() };
        assert_same_output(&what, &from, plain, &to, told);
    }
    // Vectors of another length are new, too.
    for vector_dim in [2, 4] {
        let (_, other, transfer) = start(unet(3), unet(vector_dim));
        assert_eq!((transfer.widened.len(), transfer.fresh.len()), (0, 5), "{transfer:?}");
        let last = to_state_dict(&other).get("vector_emb.linear2.weight").unwrap().values.clone();
        assert!(last.iter().all(|v| *v == 0.0));
    }
}

/// Classes 0, 1, 2 of the new network are class 2, a new one and class 0 of the other, which has five.
#[test]
fn classes_are_taken_over_by_their_numbers_in_the_other_network() {
    let (device, classes) = (Device::flex().autodiff(), [Some(2), None, Some(0)]);
    let networks = |num_classes| {
        let unet = UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
        [
            NetworkConfig::Unet(UnetConfig { num_classes, ..unet }),
            NetworkConfig::Uvit(UvitConfig { num_classes, ..uvit_config() }),
            NetworkConfig::Dit(DitConfig { num_classes, ..dit_config() }),
            NetworkConfig::KarrasUnet(KarrasUnetConfig { num_classes, ..karras_config() }),
        ]
    };
    // One row per class.
    let rows = |state: &StateDict, (table, dim): (&str, usize)| {
        let host = state.get(table).unwrap();
        let (n, others) = (host.shape[dim], host.shape[1 - dim]);
        let at = |class: usize, k: usize| if dim == 0 { class * others + k } else { k * n + class };
        let row = |class| (0..others).map(|k| host.values[at(class, k)]).collect::<Vec<f32>>();
        (0..n).map(row).collect::<Vec<_>>()
    };
    let tables = [OF_CLASSES[0], OF_CLASSES[0], OF_CLASSES[1], OF_CLASSES[2]];
    for ((five, three), table) in networks(5).into_iter().zip(networks(3)).zip(tables) {
        let from = to_state_dict(&five.build(&mut Init::new(1, &device)).unwrap());
        let own = three.build(&mut Init::new(2, &device)).unwrap();
        let before = rows(&to_state_dict(&own), table);
        let all: usize = to_state_dict(&own).iter().map(|(_, tensor)| tensor.values.len()).sum();
        let origin = Origin { networks: Some([&three, &five]), classes: Some(&classes) };
        let (to, transfer) = start_from(own, &from, &origin);
        assert_eq!(transfer.renumbered, [table.0], "{three:?}");
        let new = before[1].len() as f64 / all as f64;
        assert!((transfer.share() - (1.0 - new)).abs() < 1e-9, "{three:?}: the new class is not taken over");
        let (from, to) = (rows(&from, table), rows(&to_state_dict(&to), table));
        assert_eq!([&to[0], &to[1], &to[2]], [&from[2], &before[1], &from[0]]);
        assert_eq!(to.get(3), (to.len() == 4).then(|| from.last().unwrap()), "no class");
    }
}

#[test]
fn other_shapes_stay_fresh_and_what_is_not_used_is_named() {
    let from = unet(UnetConfig { num_classes: 5, ..UnetConfig::default() }, 1);
    let own = unet(UnetConfig { num_classes: 3, ..UnetConfig::default() }, 2);
    let before = to_state_dict(&own);
    let (to, transfer) = start_from(own, &to_state_dict(&from), &Origin::default());
    assert_eq!(transfer.fresh, ["classes_emb.weight"]);
    assert_eq!(transfer.unused, ["classes_emb.weight"]);
    assert_eq!(to_state_dict(&to).get("classes_emb.weight"), before.get("classes_emb.weight"));
    assert!(transfer.share() < 1.0 && transfer.share() > 0.9);
}

#[test]
fn a_network_beside_a_learned_schedule_is_the_same_network() {
    let from = to_state_dict(&unet(UnetConfig::default(), 1));
    for state in [from.clone().with_prefix(BESIDE_SCHEDULE), from.clone()] {
        let (to, transfer) = start_from(unet(UnetConfig::default(), 2), &state, &Origin::default());
        assert_eq!((to_state_dict(&to), transfer.unused), (from.clone(), vec![]));
    }
}
