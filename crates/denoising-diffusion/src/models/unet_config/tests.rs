//! Stages, sizes and which options of a U-Net are refused.

use super::*;

#[test]
fn default_has_softmax_attention_innermost_only() {
    let stages = UnetConfig::default().stages().unwrap();
    assert_eq!(stages.iter().map(|s| s.full_attn).collect::<Vec<_>>(), [false, false, false, true]);
    assert_eq!(
        stages.iter().map(|s| (s.dim_in, s.dim_out)).collect::<Vec<_>>(),
        [(64, 64), (64, 128), (128, 256), (256, 512)]
    );
}

#[test]
fn full_attn_false_means_none() {
    let config = UnetConfig { full_attn: Some(PerStage::All(false)), ..Default::default() };
    assert!(config.stages().unwrap().iter().all(|s| !s.full_attn));
}

#[test]
fn size_error_names_neighbours() {
    let error = UnetConfig::default().check_size(30, 32).unwrap_err().to_string();
    assert!(error.contains("24x32") && error.contains("32x32") && error.contains("multiples of 8"), "{error}");
    assert!(UnetConfig::default().check_size(24, 40).is_ok());
    assert!(UnetConfig::default().check_size(0, 8).is_err());
}

#[test]
fn options_from_before_there_were_classes_are_read() {
    let old: UnetConfig = serde_json::from_str(r#"{"dim": 8, "dim_mults": [1, 2], "full_attn": null}"#).unwrap();
    assert_eq!((old.num_classes, old.class_drop_prob, old.cond_dim()), (0, 0.5, 32));
    assert!(serde_json::to_value(&old).unwrap().get("num_classes").is_none());
    let new = UnetConfig { num_classes: 3, class_drop_prob: 1.0, ..old };
    let again: UnetConfig = serde_json::from_value(serde_json::to_value(&new).unwrap()).unwrap();
    assert_eq!(again, new);
    assert_eq!(new.cond_dim(), 64);
    new.stages().unwrap();
}

#[test]
fn stages_have_a_largest_number() {
    let of = |n| UnetConfig { dim_mults: vec![1; n], ..UnetConfig::default() };
    assert_eq!(of(16).check_size(1 << 15, 1 << 16), Ok(()));
    for n in [17, 65, 100_000] {
        assert_eq!(of(n).check_size(64, 64), Err(UnetConfigError::TooManyStages { got: n }));
    }
    assert_eq!(of(0).check_size(64, 64), Err(UnetConfigError::NoStages));
    let error = of(65).stages().unwrap_err().to_string();
    assert_eq!(error, "`dim_mults` names 65 stages; at most 16 are allowed");
}

#[test]
fn wrong_options_are_named() {
    let bad = |config: UnetConfig| config.stages().unwrap_err().to_string();
    assert!(bad(UnetConfig { dim: 0, ..Default::default() }).contains("`dim`"));
    assert!(bad(UnetConfig { dropout: 1.0, ..Default::default() }).contains("`dropout`"));
    for class_drop_prob in [-0.1, 1.1, f64::NAN] {
        assert!(bad(UnetConfig { class_drop_prob, ..Default::default() }).contains("`class_drop_prob`"));
    }
    assert!(bad(UnetConfig { attn_heads: PerStage::Each(vec![1, 2]), ..Default::default() }).contains("`attn_heads`"));
    assert!(bad(UnetConfig { dim_mults: vec![], ..Default::default() }).contains("`dim_mults`"));
}
