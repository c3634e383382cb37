//! Reading recipes, their defaults, and which recipes are refused.

use super::*;
use crate::sampler::SamplerKind;

fn images(shape: ImageShape, num_classes: usize) -> DataFacts {
    DataFacts { shape, layout: DataLayout::Images, depth: 1, num_classes, condition_channels: 0, vector_dim: 0 }
}

#[test]
fn toml_round_trip_keeps_everything() {
    let mut recipe = Recipe::default();
    recipe.data.image_size = Some("28x20".parse().unwrap());
    recipe.unet.dim_mults = vec![1, 2];
    recipe.train.max_grad_norm = f64::INFINITY;
    recipe.sample.sampling_timesteps = Some(7);
    recipe.guidance.guidance_interval = Some([0.2, 5.0]);
    assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
}

#[test]
fn what_toml_cannot_hold_is_an_error() {
    let mut recipe = Recipe::default();
    recipe.train.seed = u64::MAX;
    assert!(matches!(recipe.to_toml(), Err(RecipeError::Write(_))));
    recipe.train.seed = i64::MAX as u64;
    assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        recipe.data.path = Some(std::ffi::OsStr::from_bytes(b"photos-\xff").into());
        assert!(matches!(recipe.to_toml(), Err(RecipeError::Write(_))));
    }
}

#[test]
fn a_formulation_has_its_usual_sampler_unless_one_is_named() {
    let sampler = |text| Recipe::from_toml(text).unwrap().sample.sampler;
    assert_eq!(sampler(""), SamplerKind::DpmppSde2m);
    assert_eq!(sampler("[diffusion]\ndiffusion = 'rectified_flow'"), SamplerKind::Euler);
    assert_eq!(sampler("[diffusion]\ndiffusion = 'elucidated'\n[sample]\nsampler = 'heun'"), SamplerKind::Heun);
}

#[test]
fn a_network_has_its_usual_learning_rate_unless_one_is_named() {
    let lr = |text| Recipe::from_toml(text).unwrap().train.lr;
    assert_eq!((lr(""), lr("[network]\nmodel = 'dit'")), (1e-4, 1e-4));
    assert_eq!(lr("[network]\nmodel = 'karras_unet'"), 1e-2);
    assert_eq!(lr("[network]\nmodel = 'karras_unet'\n[train]\nlr = 1e-4"), 1e-4);
    let recipe = Recipe::from_toml("[network]\nmodel = 'karras_unet'\n[train]\nlr = 1e-4").unwrap();
    assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
}

#[test]
fn fourier_features_are_told_small_times_by_rectified_flow() {
    for model in ["uvit", "karras_unet"] {
        let text = format!("[network]\nmodel = '{model}'\n[diffusion]\ndiffusion = 'rectified_flow'\n");
        let begun = Recipe::from_toml(&text).unwrap().resolved();
        begun.validate().unwrap();
        assert_eq!(Recipe::from_toml(&begun.to_toml().unwrap()).unwrap(), begun);
        let large = Recipe::from_toml(&format!("{text}time_scale = 1000.0")).unwrap().resolved();
        assert!(matches!(large.validate(), Err(RecipeError::FourierTime { .. })));
    }
}

#[test]
fn unknown_keys_are_named() {
    for (text, key) in
        [("[train]\nstepz = 1", "stepz"), ("[trian]\nsteps = 1", "trian"), ("[train]\nlr = \"fast\"", "lr")]
    {
        let error = Recipe::from_toml(text).unwrap_err();
        let RecipeError::Toml(cause) = error else { panic!("{error}") };
        assert!(cause.to_string().contains(key), "{cause}");
    }
    assert!(matches!(Recipe::from_toml("[unet]\nchannels = 3"), Err(RecipeError::Channels { section: "unet" })));
}

#[test]
fn no_two_sections_share_a_key_but_those_of_networks() {
    let serde_json::Value::Object(sections) = serde_json::to_value(Recipe::default()).unwrap() else { panic!() };
    let is_network = |section: &str| Model::ALL.iter().any(|model| model.name() == section);
    let mut seen = std::collections::HashSet::new();
    for (section, keys) in &sections {
        for key in keys.as_object().unwrap().keys().filter(|key| section == "data" || *key != "channels") {
            let new = seen.insert((key.clone(), is_network(section)));
            assert!(!seen.contains(&(key.clone(), !is_network(section))), "{key} stands in two sections");
            assert!(new || is_network(section), "{key} stands in two sections");
        }
    }
}

#[test]
fn a_network_has_its_own_section_only() {
    let text = "[network]\nmodel = 'dit'\n[dit]\ndepth = 2\npatch_size = 4";
    let recipe = Recipe::from_toml(text).unwrap();
    recipe.validate().unwrap();
    assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
    let shape = |side| images(ImageShape { channels: 1, height: side, width: side }, 0);
    let NetworkConfig::Dit(dit) = recipe.network_for(shape(28)).unwrap() else { panic!() };
    assert_eq!((dit.channels, dit.out_channels(), dit.depth()), (1, 1, 2));
    assert!(recipe.network_for(shape(30)).unwrap_err().to_string().contains("28x28"));
    let both = Recipe::from_toml(&format!("{text}\n[unet]\ndim = 8")).unwrap();
    assert!(matches!(both.validate(), Err(RecipeError::OtherModel { section: "unet", model: "dit" })));
}

#[test]
fn combinations_without_sense_are_refused() {
    let mut recipe = Recipe::default();
    recipe.unet.random_fourier_features = true;
    assert!(matches!(recipe.validate(), Err(RecipeError::FourierTime { .. })));
    let mut recipe = Recipe::default();
    recipe.unet.learned_variance = true;
    let shape = ImageShape { channels: 3, height: 32, width: 32 };
    assert!(matches!(
        recipe.network_for(images(shape, 0)),
        Err(RecipeError::OutChannels { key: "learned_variance", .. })
    ));
}
