//! Reading options, their defaults, and which options are refused.

use std::collections::BTreeSet;

use super::*;

fn read(text: &str) -> Result<DiffusionConfig, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| error.to_string())
}

#[test]
fn every_formulation_reads_what_it_writes() {
    for formulation in FormulationConfig::all() {
        let config = DiffusionConfig::from(formulation);
        assert_eq!(config.validate(), Ok(()));
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains(&format!("diffusion = \"{}\"", config.formulation.name())), "{text}");
        assert_eq!(read(&text).unwrap(), config);
        assert_eq!(config.formulation.build(None).unwrap().output().channels(3), config.out_channels(3));
    }
    assert_eq!(read("").unwrap(), DiffusionConfig::default());
    assert_eq!(read("sigma_max = 40\ndiffusion = \"elucidated\"").unwrap().formulation.name(), "elucidated");
}

#[test]
fn keys_of_other_formulations_are_refused_with_their_owner() {
    let error = read("sigma_data = 0.5").unwrap_err();
    assert!(
        error.contains("`sigma_data` is not an option of `diffusion = \"gaussian\"` (but of elucidated)"),
        "{error}"
    );
    let error = read("diffusion = \"edm\"").unwrap_err();
    assert!(error.contains("unknown formulation \"edm\"") && error.contains("rectified_flow"), "{error}");
    let error = read("objective = \"pred_x\"").unwrap_err();
    assert!(error.contains("pred_x0"), "{error}");
    assert!(read("immiscible = 3").is_err());
}

#[test]
fn combinations_without_meaning_are_refused_with_the_reason() {
    for (text, reason) in [
        ("diffusion = \"learned_variance\"\noffset_noise_strength = 0.1", "white noise"),
        ("diffusion = \"weighted_objective\"\nmin_snr_loss_weight = true", "no single weight"),
        ("immiscible = true\nxm_candidates = 2", "by its distance"),
        ("zero_terminal_snr = true\nobjective = \"pred_noise\"", "says nothing about the data"),
        ("diffusion = \"simple\"\nnoise_d_low = 32", "`noise_d_high` unset"),
        (
            "diffusion = \"continuous_time\"\nlearned_schedule_hidden_dim = 8",
            "belongs to `noise_schedule = \"learned\"`",
        ),
        (
            "diffusion = \"continuous_time\"\nnoise_schedule = \"learned\"\nlearned_schedule_hidden_dim = 1000001",
            "at most 1000000",
        ),
        ("diffusion = \"rectified_flow\"\nmode_scale = 1.0", "another distribution"),
        ("diffusion = \"elucidated\"\nsigma_max = 0.001", "above `sigma_min`"),
        ("loss_weight = \"uniform\"\nmin_snr_loss_weight = true", "both set the weights of the loss"),
        ("diffusion = \"rectified_flow\"\ntime_scale = -1.0", "above 0"),
        ("xm_candidates = 0", "1 to 1000"),
        ("timesteps = 1000000000000", "at most 1000000"),
        ("sigmoid_tau = 0.05", "beta of noise level"),
        ("sigmoid_end = 40.0", "beta of noise level"),
        ("sigmoid_start = -40.0", "beta of noise level 0 is 0,"),
    ] {
        let error = read(text).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// If the last level is pure noise, a weight of 0 would leave it untrained.
#[test]
fn zero_terminal_snr_weighs_all_levels_alike() {
    let zero = "zero_terminal_snr = true";
    let weights = |text: &str| {
        let config = read(text).unwrap();
        config.validate().unwrap();
        let diffusion = crate::diffusion::Diffusion::new(&config).unwrap();
        [0.0, 500.0, 999.0].map(|t| diffusion.loss_weight(&diffusion.level(t)))
    };
    assert_eq!(weights(zero), [1.0; 3]);
    assert_eq!(weights(&format!("{zero}\nobjective = \"pred_x0\"")), [1.0; 3]);
    assert_eq!(weights(&format!("{zero}\nloss_weight = \"noise\""))[2], 0.0);
    assert!(weights(&format!("{zero}\nmin_snr_loss_weight = true"))[0] < 1.0);
    assert!(weights("")[2] < 1.0);
}

#[test]
fn every_formulation_takes_all_shared_keys() {
    let shared = SharedConfig {
        auto_normalize: false,
        offset_noise_strength: 0.1,
        min_snr_loss_weight: Some(true),
        min_snr_gamma: 3.0,
        immiscible: true,
        xm_candidates: 2,
        stratified_times: true,
    };
    let Ok(Value::Object(keys)) = serde_json::to_value(&shared) else { panic!() };
    assert_eq!(keys.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(SharedConfig::KEYS));
    for formulation in FormulationConfig::all() {
        let config = DiffusionConfig { formulation, shared: shared.clone() };
        let table = Map::from(config.clone());
        assert!(SharedConfig::KEYS.iter().all(|key| table.contains_key(*key)));
        assert_eq!(DiffusionConfig::try_from(table).unwrap(), config);
    }
}
