//! Finding networks in files of all kinds, and reading damaged ones.

use super::super::{to_ours, to_reference, write_safetensors};
use super::*;
use crate::diffusion::{BetaSchedule, FormulationConfig, GaussianConfig, Objective, ScheduleConfig, SharedConfig};
use crate::models::{PerStage, UnetConfig};
use crate::weights::HostTensor;

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
    assert_eq!(file.available(), [WeightsKind::Ema, WeightsKind::Model]);
    assert_eq!((file.step(), file.version()), (Some(12), Some("2.3.4")));

    let [ema, model] = [WeightsKind::Ema, WeightsKind::Model].map(|which| file.weights(which).unwrap());
    assert!(ema.state.names().eq(model.state.names()));
    assert_ne!(ema.state, model.state);
    assert!(ema.state.non_finite().is_empty());
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
    assert_eq!(inferred.unet(), Some(&expected));
    let schedule = ScheduleConfig { timesteps: 50, beta_schedule: BetaSchedule::Cosine, ..ScheduleConfig::default() };
    let diffusion = inferred.diffusion.clone().unwrap();
    assert_eq!(
        diffusion.formulation,
        FormulationConfig::Gaussian(GaussianConfig { schedule, objective: Objective::PredNoise, ..Default::default() })
    );
    assert_eq!(diffusion.shared, SharedConfig { min_snr_loss_weight: Some(true), ..SharedConfig::default() });
    assert_eq!(inferred.betas, None);
    assert_eq!(to_reference(&to_ours(&ema.state).unwrap(), inferred.unet().unwrap()).unwrap(), ema.state);
}

#[test]
fn a_plain_state_dict() {
    let file = ReferenceCheckpoint::open(&golden("state_dict.pt")).unwrap();
    assert_eq!((file.kind(), file.available()), (ReferenceKind::Network, vec![WeightsKind::Model]));
    assert_eq!((file.step(), file.version()), (None, None));
    let weights = file.weights(WeightsKind::Ema).unwrap();
    assert_eq!(weights, file.weights(WeightsKind::Model).unwrap());
    assert!(weights.tables.is_empty());
    let inferred = weights.infer().unwrap();
    let unet = inferred.unet().unwrap();
    assert!(unet.self_condition && unet.init_dim == Some(6) && inferred.diffusion.is_none());
    assert_eq!(unet.attn_heads, PerStage::Each(vec![1, 2]));
    assert_eq!(unet.attn_dim_head, PerStage::Each(vec![8, 4]));
}

#[test]
fn the_same_as_safetensors_of_any_name() {
    let from_pt = ReferenceCheckpoint::open(&golden("model-1.pt")).unwrap().weights(WeightsKind::Ema).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut whole = from_pt.state.clone().with_prefix("model.");
    whole.merge(from_pt.tables.clone());
    for name in ["x.safetensors", "x.bin"] {
        let path = folder.path().join(name);
        write_safetensors(&path, &whole, &Metadata::from([("step".into(), "12".into())])).unwrap();
        let file = ReferenceCheckpoint::open(&path).unwrap();
        assert_eq!((file.kind(), file.step()), (ReferenceKind::Diffusion, Some(12)));
        assert_eq!(file.weights(WeightsKind::Ema).unwrap(), from_pt);
    }
    let path = folder.path().join("ema.safetensors");
    write_safetensors(&path, &whole.with_prefix("ema_model."), &Metadata::new()).unwrap();
    let file = ReferenceCheckpoint::open(&path).unwrap();
    assert_eq!(file.weights(WeightsKind::Ema).unwrap(), from_pt);
    let error = file.weights(WeightsKind::Model).unwrap_err().to_string();
    assert!(error.ends_with("has no model weights; it has ema"), "{error}");
}

/// As a Trainer would save the classes whose network is under `net`, or that have a learned schedule.
#[test]
fn trainer_checkpoints_of_other_classes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, wrapper, formulation, schedule) in [
        ("elucidated", Wrapper::Net, "elucidated", 0),
        ("continuous_learned", Wrapper::Model, "continuous_time", 6),
        ("learned_variance", Wrapper::Model, "learned_variance", 0),
    ] {
        let plain = ReferenceCheckpoint::open(&golden(&format!("formulation_{name}.pt"))).unwrap();
        assert_eq!((plain.kind(), plain.available()), (ReferenceKind::Diffusion, vec![WeightsKind::Model]), "{name}");
        let whole = plain.source.read(Some).unwrap();
        let doubled = whole.iter().map(|(name, tensor)| {
            let values = tensor.values.iter().map(|x| x * 2.0).collect();
            (name.to_string(), HostTensor::new(tensor.shape.clone(), values).unwrap())
        });
        let doubled: StateDict = doubled.collect();
        let mut saved = whole.clone().with_prefix("ema.ema_model.");
        saved.merge(doubled.clone().with_prefix("ema.online_model."));
        saved.merge(doubled.with_prefix("model."));
        let path = folder.path().join(format!("{name}.safetensors"));
        write_safetensors(&path, &saved, &Metadata::new()).unwrap();

        let file = ReferenceCheckpoint::open(&path).unwrap();
        assert_eq!(
            (file.kind(), file.available()),
            (ReferenceKind::Trainer, vec![WeightsKind::Ema, WeightsKind::Model])
        );
        let [ema, model] = [WeightsKind::Ema, WeightsKind::Model].map(|which| file.weights(which).unwrap());
        assert_eq!(ema, plain.weights(WeightsKind::Ema).unwrap(), "{name}");
        assert_eq!((ema.wrapper, ema.schedule.len()), (wrapper, schedule), "{name}");
        let bias = |weights: &ReferenceWeights| weights.state.get("init_conv.bias").unwrap().values[0];
        assert_eq!(bias(&model), 2.0 * bias(&ema));
        assert_eq!(ema.infer().unwrap().diffusion.unwrap().formulation.name(), formulation);
    }
}

/// `torch.compile` and `DataParallel` around the network, within the class that holds it.
#[test]
fn wrapped_networks_are_found_with_what_is_beside_them() {
    let plain = ReferenceCheckpoint::open(&golden("model-1.pt")).unwrap().weights(WeightsKind::Ema).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for prefix in ["model._orig_mod.", "model.module.", "_orig_mod.model.module._orig_mod.", "module.model."] {
        let outer = &prefix[..prefix.find("model.").unwrap()];
        let mut whole = plain.state.clone().with_prefix(prefix);
        whole.merge(plain.tables.clone().with_prefix(outer));
        write_safetensors(&path, &whole, &Metadata::new()).unwrap();
        let file = ReferenceCheckpoint::open(&path).unwrap();
        assert_eq!(file.kind(), ReferenceKind::Diffusion, "{prefix}");
        assert_eq!(file.weights(WeightsKind::Model).unwrap(), plain, "{prefix}");
    }
    write_safetensors(&path, &plain.state.clone().with_prefix("_orig_mod."), &Metadata::new()).unwrap();
    assert_eq!(ReferenceCheckpoint::open(&path).unwrap().kind(), ReferenceKind::Network);
}

/// The options with which the golden networks were made, as stated in their files.
#[test]
fn golden_networks_are_inferred() {
    for name in ["base", "fourier", "full_attn", "learned_fourier", "odd", "rect", "selfcond"] {
        let (golden, metadata) = read_safetensors(&golden(&format!("unet_{name}.safetensors"))).unwrap();
        let stated: serde_json::Value = serde_json::from_str(&metadata["config"]).unwrap();
        let stated: UnetConfig = serde_json::from_value(stated["unet"].clone()).unwrap();
        let state = golden.strip_prefix("state.");
        let weights = ReferenceWeights { state: state.clone(), ..ReferenceWeights::default() };
        let found = weights.infer().unwrap().unet().unwrap().clone();
        assert_eq!(found.stages().unwrap(), stated.stages().unwrap(), "{name}");
        let scalars = |c: &UnetConfig| {
            (c.first_dim(), c.channels, c.in_channels(), c.out_channels(), c.fourier_time(), c.learned_sinusoidal_dim)
        };
        assert_eq!(scalars(&found), scalars(&stated), "{name}");
        let ours = to_ours(&state).unwrap();
        assert_eq!(to_reference(&ours, &stated).unwrap(), state, "{name}");
    }
}

#[test]
fn a_file_without_unet_says_what_it_has() {
    let error = ReferenceCheckpoint::open(&testdata("other_network.pt")).unwrap_err().to_string();
    assert!(error.contains("it has `epoch`, `net`.") && error.contains("begin with `init_conv.weight`"), "{error}");
    let error = ReferenceCheckpoint::open(&golden("adam.safetensors")).unwrap_err();
    assert!(matches!(error, InteropError::NoNetwork { .. }), "{error}");
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("empty.pt", &b""[..]), ("text.pt", b"hello, world\n"), ("cut.safetensors", b"\x20\0\0")] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(ReferenceCheckpoint::open(&path).unwrap_err(), InteropError::Damaged { .. }), "{name}");
    }
    assert!(matches!(ReferenceCheckpoint::open(folder.path()).unwrap_err(), InteropError::Io { .. }));
}

/// Damage in a real checkpoint gives an error or a result, never a panic. Odd steps visit all kinds of places.
#[test]
fn damaged_checkpoints_never_panic() {
    let bytes = std::fs::read(golden("state_dict.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    let try_all = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let weights = ReferenceCheckpoint::open(&path).and_then(|file| file.weights(WeightsKind::Ema));
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
