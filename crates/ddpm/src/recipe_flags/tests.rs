//! The table against the recipe, and values against their kinds.

use std::collections::BTreeSet;

use denoising_diffusion::data::ChannelPolicy;
use denoising_diffusion::diffusion::NoiseLevels;
use denoising_diffusion::eval::metric::{Metric, better};
use denoising_diffusion::eval::result::Better;
use denoising_diffusion::train::TrainConfig;

use super::table::Kind::{Word, WordPerStage, Words};
use super::*;

fn parse(args: &[&str]) -> Result<RecipeFlags, clap::Error> {
    let command = RecipeFlags::augment_args(Command::new("t").no_binary_name(true));
    RecipeFlags::from_arg_matches(&command.try_get_matches_from(args)?)
}

#[test]
fn the_table_covers_the_recipe_exactly() {
    let serde_json::Value::Object(sections) = serde_json::to_value(Recipe::default()).unwrap() else { panic!() };
    let mut keys: BTreeSet<(String, String)> = sections
        .iter()
        .flat_map(|(section, keys)| keys.as_object().unwrap().keys().map(|key| (section.clone(), key.clone())))
        .collect();
    // Absent from a default recipe; the others below are no flags.
    keys.insert(("data".into(), "augment".into()));
    keys.insert(("sample".into(), "noise_levels".into()));
    keys.insert(("guidance".into(), "guidance_norm_threshold".into()));
    keys.insert(("data".into(), "image_size".into()));
    keys.insert(("data".into(), "value_range".into()));
    keys.insert(("data".into(), "condition_value_range".into()));
    // Every formulation's own, and those without a default.
    for formulation in FormulationConfig::all() {
        let serde_json::Value::Object(own) = serde_json::to_value(&formulation).unwrap() else { panic!() };
        keys.extend(own.keys().map(|key| ("diffusion".to_string(), key.clone())));
    }
    keys.insert(("diffusion".into(), "min_snr_loss_weight".into()));
    keys.insert(("diffusion".into(), "stratified_times".into()));
    keys.remove(&("data".into(), "path".into()));
    for model in Model::ALL {
        keys.remove(&(model.name().into(), "channels".into()));
    }
    let pairs = || FLAGS.iter().flat_map(|f| f.sections.iter().map(|section| (section.to_string(), f.key.to_string())));
    assert_eq!(pairs().collect::<BTreeSet<_>>(), keys);
    assert_eq!(pairs().count(), keys.len());
}

#[test]
fn every_section_has_its_heading() {
    for flag in FLAGS {
        let names_it = |section: &&str| flag.heading().ends_with(&format!("[{section}]"));
        assert_eq!(flag.sections.iter().any(names_it), flag.sections.len() == 1, "{}", flag.name());
    }
}

#[test]
fn every_flag_takes_its_own_default_and_the_help_shows_it() {
    let defaults = Table::try_from(Recipe::default()).unwrap();
    for flag in FLAGS {
        let help = flag.help(&defaults);
        let first = flag.sections[0];
        match defaults[first].get(flag.key).filter(|_| !flag.help.contains("[default: ")) {
            Some(value) => {
                let text = plain(value);
                let shown = format!("[default: {text}]");
                // Networks that share a key may differ in its default: then the help names those of all.
                let alike = flag.sections.iter().all(|section| defaults[*section].get(flag.key) == Some(value));
                let (all, first) = (help.ends_with(&shown), help.contains(&format!("[default: {text}")));
                assert!(if alike { all } else { first }, "{help}");
                let given = parse(&[&format!("{}={text}", flag.name())]).unwrap();
                assert_eq!(given.apply(&Recipe::default()).unwrap(), Recipe::default(), "{}", flag.key);
            }
            None => assert!(help.contains("[default: ") || flag.key == "keep_every", "{} {help}", flag.key),
        }
    }
}

#[test]
fn every_switch_can_be_set() {
    for flag in FLAGS.iter().filter(|flag| matches!(flag.kind, Switch)) {
        for value in ["true", "false"] {
            let given = parse(&[&format!("{}={value}", flag.name())]).unwrap();
            let takes = |formulation: FormulationConfig| {
                given.apply(&Recipe { diffusion: formulation.into(), ..Recipe::default() }).is_ok()
            };
            let mut formulations = FormulationConfig::all().into_iter();
            assert!(formulations.any(takes), "{}={value}", flag.name());
        }
    }
}

#[test]
fn words_are_those_that_the_library_takes() {
    for flag in FLAGS {
        let (Word(words) | Words(words) | WordPerStage(words)) = flag.kind else { continue };
        for word in words {
            let given = parse(&[&format!("{}={word}", flag.name())]).unwrap();
            let takes = |formulation: FormulationConfig| {
                let recipe = Recipe { diffusion: formulation.into(), ..Recipe::default() };
                given.apply(&recipe).is_ok()
            };
            assert!(FormulationConfig::all().into_iter().any(takes), "{} {word}", flag.key);
        }
    }
}

#[test]
fn words_are_all_that_the_library_has() {
    let words = |key: &str| match FLAGS.iter().find(|flag| flag.key == key).unwrap().kind {
        Word(words) | Words(words) => words,
        kind => panic!("{key}: {kind:?}"),
    };
    assert_eq!(words("diffusion"), FormulationConfig::all().map(|formulation| formulation.name()));
    assert_eq!(words("sampler"), SamplerKind::ALL.map(SamplerKind::name));
    assert_eq!(words("noise_levels"), NoiseLevels::ALL.map(NoiseLevels::name));
    assert_eq!(words("metrics"), Metric::ALL.map(Metric::name));
    assert_eq!(words("model"), Model::ALL.map(Model::name));
    let numbers = Metric::ALL.into_iter().flat_map(|metric| metric.numbers().iter().copied());
    let with_a_better_side: Vec<&str> = numbers.filter(|number| better(number) != Better::Neither).collect();
    assert_eq!(words("best_metric"), with_a_better_side);
}

#[test]
fn values_are_read_by_kind() {
    let given = parse(&[
        "--dim-mults",
        "1,3",
        "--image-size",
        "28x20",
        "--channels",
        "3",
        "--lr",
        "1",
        "--max-grad-norm",
        "inf",
        "--self-condition",
        "--auto-normalize=false",
        "--attn-heads",
        "2,4",
        "--attn-dim-head",
        "8",
        "--full-attn",
        "false",
        "--sigmoid-start",
        "-2.5",
    ])
    .unwrap();
    let recipe = given.apply(&Recipe::default()).unwrap();
    assert_eq!(recipe.unet.dim_mults, [1, 3]);
    assert_eq!(recipe.data.image_size.unwrap().width, 20);
    assert_eq!(recipe.data.channels, ChannelPolicy::Exact(3));
    assert_eq!((recipe.train.lr, recipe.train.max_grad_norm), (1.0, f64::INFINITY));
    assert!(recipe.unet.self_condition && !recipe.diffusion.shared.auto_normalize);
    assert_eq!(recipe.unet.attn_heads.resolve(2).unwrap(), [2, 4]);
    assert_eq!(recipe.unet.full_attn.unwrap().resolve(3).unwrap(), [false; 3]);
    assert_eq!(recipe.diffusion.formulation.schedule().unwrap().sigmoid_start, Some(-2.5));
}

#[test]
fn a_wrong_value_names_the_flag_and_what_was_expected() {
    for (args, flag, expected) in [
        (["--lr", "fast"], "--lr", "a number"),
        (["--steps", "-1"], "--steps", "a whole number"),
        (["--steps", "1.5"], "--steps", "a whole number"),
        (["--dim-mults", "1,x"], "--dim-mults", "1,2,4"),
        (["--objective", "eps2"], "--objective", "pred_noise, pred_x0, pred_v"),
        (["--image-size", "0"], "--image-size", "28x20"),
        (["--channels", "grey"], "--channels", "auto"),
        (["--full-attn", "1"], "--full-attn", "false,true"),
    ] {
        let text = parse(&args).unwrap_err().to_string();
        assert!(text.contains(flag) && text.contains(expected), "{text}");
    }
}

#[test]
fn a_flag_of_several_networks_goes_to_the_chosen_one() {
    let recipe = parse(&["--model", "uvit", "--dim", "8", "--vit-depth", "2"]).unwrap();
    let recipe = recipe.apply(&Recipe::default()).unwrap();
    assert_eq!((recipe.uvit.dim, recipe.uvit.vit_depth, recipe.unet.dim), (8, 2, 64));
    let wider = parse(&["--dim", "16"]).unwrap().apply(&recipe).unwrap();
    assert_eq!((wider.uvit.dim, wider.unet.dim), (16, 64));
    // The other network's option is found by validation.
    let wrong = parse(&["--model", "dit", "--dim", "16"]).unwrap().apply(&Recipe::default()).unwrap();
    assert!(wrong.validate().unwrap_err().to_string().contains("[unet]"));
    let defaults = Table::try_from(Recipe::default()).unwrap();
    let help = |key: &str| FLAGS.iter().find(|flag| flag.key == key).unwrap().help(&defaults);
    assert!(help("patch_size").ends_with("(dit, uvit) [default: 2; uvit: 1]"), "{}", help("patch_size"));
}

#[test]
fn another_formulation_starts_from_its_own_defaults_and_shared_options_stay() {
    let base = parse(&["--timesteps", "50", "--immiscible", "--stratified-times", "--min-snr-loss-weight"])
        .unwrap()
        .apply(&Recipe::default())
        .unwrap();
    let recipe = parse(&["--diffusion", "elucidated", "--sigma-max", "40"]).unwrap().apply(&base).unwrap();
    let FormulationConfig::Elucidated(config) = &recipe.diffusion.formulation else { panic!("{recipe:?}") };
    assert!(config.sigma_max == 40.0);
    assert_eq!(recipe.diffusion.shared, base.diffusion.shared);
    assert_eq!(recipe.sample.sampler, SamplerKind::Dpmpp2m);
    let same = parse(&["--diffusion", "gaussian"]).unwrap().apply(&base).unwrap();
    assert_eq!(same, base);
    let error = parse(&["--sigma-max", "40"]).unwrap().apply(&base).unwrap_err().to_string();
    assert!(
        error.contains("`sigma_max` is not an option of `diffusion = \"gaussian\"` (but of elucidated)"),
        "{error}"
    );
}

#[test]
fn cfg_plus_plus_goes_with_a_sampler_that_can() {
    let apply = |args: &[&str]| parse(args).unwrap().apply(&Recipe::default()).unwrap();
    let sampler = |args: &[&str]| apply(args).sample.sampler;
    assert_eq!(sampler(&["--cfg-plus-plus"]), SamplerKind::Ddim);
    assert_eq!(sampler(&["--cfg-plus-plus", "--diffusion", "rectified_flow"]), SamplerKind::Euler);
    let refused = apply(&["--cfg-plus-plus", "--sampler", "unipc"]).validate().unwrap_err().to_string();
    assert!(refused.contains("cannot be used") && refused.contains("unipc"), "{refused}");
}

#[test]
fn another_network_has_its_own_learning_rate_unless_one_is_named() {
    let lr = |args: &[&str], of: &Recipe| parse(args).unwrap().apply(of).unwrap().train.lr;
    let digits = Recipe { train: TrainConfig { lr: 1.5e-3, ..TrainConfig::default() }, ..Recipe::default() };
    let karras = parse(&["--model", "karras_unet"]).unwrap().apply(&Recipe::default()).unwrap();
    assert_eq!(karras.train.lr, 1e-2);
    assert_eq!(lr(&["--model", "unet"], &karras), 1e-4);
    assert_eq!(lr(&["--model", "dit"], &Recipe::default()), 1e-4);
    assert_eq!(lr(&["--model", "karras_unet", "--lr", "0.0001"], &Recipe::default()), 1e-4);
    assert_eq!(lr(&["--model", "karras_unet"], &digits), 1.5e-3, "the recipe's");
    assert_eq!(lr(&["--dim", "8"], &karras), 1e-2);
}

#[test]
fn what_a_resumed_run_may_not_change_is_found() {
    assert_eq!(parse(&["--steps", "9", "--lr", "1"]).unwrap().fixed().unwrap().name(), "--lr");
    assert!(parse(&["--steps", "9", "--sampler", "ddpm"]).unwrap().fixed().is_none());
}

#[test]
fn numbers_that_no_recipe_can_hold_are_refused_in_words() {
    let told = |args: [&str; 2]| parse(&args).unwrap_err().to_string();
    for number in ["9223372036854775808", "18446744073709551615", "99999999999999999999999999999999999999999999"] {
        assert!(told(["--seed", number]).contains("the number is too large"), "{}", told(["--seed", number]));
    }
    for no_number in ["-1", "1.5", "one", ""] {
        let told = told(["--seed", no_number]);
        assert!(
            told.contains("expected a whole number of at least 0") || told.contains("a value is required"),
            "{told}"
        );
    }
    for args in [["--min-snr-gamma", "nan"], ["--lr", "NaN"]] {
        assert!(told(args).contains("expected a number"), "{}", told(args));
    }
    assert!(told(["--guidance-interval", "0,nan"]).contains("expected two numbers"));
    assert!(told(["--min-snr-gamma", "inf"]).contains("expected a finite number"));
    parse(&["--s-tmax", "inf"]).unwrap();
}
