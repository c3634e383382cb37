//! Configurations of U-Nets, inferred from shapes.

use super::*;
use crate::models::Unet1dConfig;
use crate::weights::HostTensor;

fn state(config: &UnetConfig) -> StateDict {
    let layout = reference_layout(config).unwrap();
    let zeros = |shape: &[usize]| HostTensor::new(shape, vec![0.0; shape.iter().product()]).unwrap();
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
        UnetConfig { learned_sinusoidal_cond: true, dim: 5, ..small() },
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
    assert_eq!(found.layout(), network_of(&found).layout());
    let learned = Unet1dConfig { attn_heads: 2, learned_variance: true, ..sequences };
    assert_eq!(inferred(&learned.unet()).unet(), Some(&learned.unet()));
    let with_classes = UnetConfig { num_classes: 7, axes: Axes::Both, ..learned.unet() };
    let found = inferred(&with_classes);
    assert_eq!(network_of(&found), NetworkConfig::Unet(with_classes));
    assert!(found.notes.iter().any(|note| note.contains("7 classes")));
}

/// Its tensors are those of `classifier_free_guidance.Unet` without classes, or, with several stages, nearly so; what it computes is not.
#[test]
fn the_unet_of_guided_diffusion_is_named() {
    for dim_mults in [vec![1], vec![1, 3]] {
        let unet = Unet1dConfig { dim: 4, dim_mults, channels: 2, ..Unet1dConfig::default() }.unet();
        let mut state = state(&UnetConfig { axes: Axes::Both, ..unet });
        if let Some(weight) = state.remove("downs.0.3.weight") {
            state.insert("downs.0.3.1.weight", weight);
        }
        let error = alone(state).infer().unwrap_err();
        assert!(matches!(error, InteropError::Guided), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let refused = |change: &dyn Fn(&mut StateDict)| {
        let mut state = state(&small());
        change(&mut state);
        alone(state).infer().unwrap_err().to_string()
    };
    let zeros = |shape: &[usize]| HostTensor::new(shape, vec![0.0; shape.iter().product()]).unwrap();
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
