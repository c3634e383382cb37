//! Which options of a U-ViT are refused, and sizes.

use super::*;

#[test]
fn options_are_read_from_a_file() {
    let config: UvitConfig =
        serde_json::from_str(r#"{"dim": 8, "downsample_factor": [2, 1, 4, 2], "image_transform": "haar"}"#).unwrap();
    assert_eq!((config.vit_depth, config.vit_dropout, config.size_factor().unwrap()), (6, 0.2, 32));
    let again: UvitConfig = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(serde_json::from_str::<UvitConfig>(r#"{"full_attn": true}"#).is_err());
}

#[test]
fn size_error_names_neighbours() {
    let config = UvitConfig { patch_size: 2, dim_mults: vec![1, 2], ..UvitConfig::default() };
    let error = config.check_size(20, 16).unwrap_err().to_string();
    assert!(error.contains("16x16 and 24x16") && error.contains("by 8"), "{error}");
    assert!(config.check_size(24, 8).is_ok());
    assert!(config.check_size(0, 8).is_err());
}

#[test]
fn wrong_options_are_named() {
    let bad = |config: UvitConfig| config.validate().unwrap_err().to_string();
    let ok = UvitConfig::default;
    for (key, config) in [
        ("dim", UvitConfig { dim: 0, ..ok() }),
        ("init_dim", UvitConfig { init_dim: Some(0), ..ok() }),
        ("out_dim", UvitConfig { out_dim: Some(0), ..ok() }),
        ("dim_mults", UvitConfig { dim_mults: vec![], ..ok() }),
        ("dim_mults", UvitConfig { dim_mults: vec![1, 0], ..ok() }),
        ("downsample_factor", UvitConfig { downsample_factor: PerStage::Each(vec![2, 2]), ..ok() }),
        ("downsample_factor", UvitConfig { downsample_factor: PerStage::All(0), ..ok() }),
        ("downsample_factor", UvitConfig { downsample_factor: PerStage::All(1 << 20), ..ok() }),
        ("vit_depth", UvitConfig { vit_depth: 0, ..ok() }),
        ("vit_dropout", UvitConfig { vit_dropout: 1.0, ..ok() }),
        ("learned_sinusoidal_dim", UvitConfig { learned_sinusoidal_dim: 5, ..ok() }),
        ("dual_patchnorm", UvitConfig { dual_patchnorm: true, ..ok() }),
        ("class_drop_prob", UvitConfig { class_drop_prob: f64::NAN, ..ok() }),
    ] {
        let error = bad(config);
        assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
    }
}

#[test]
fn invalid_options_are_refused_wherever_they_are_used() {
    let config = UvitConfig { patch_size: 0, ..UvitConfig::default() };
    let shape = ImageShape { channels: 3, height: 32, width: 32 };
    assert_eq!(config.kept(shape, false), Err(UvitConfigError::Zero { key: "patch_size" }.into()));
    assert_eq!(config.check_size(32, 32), Err(UvitConfigError::Zero { key: "patch_size" }));
    let wide = UvitConfig { dim: usize::MAX, ..UvitConfig::default() };
    assert!(wide.in_words().starts_with("U-ViT"));
}
