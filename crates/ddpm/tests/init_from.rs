//! `ddpm train --init-from`: runs that start from weights.

mod common;

use common::{Place, TINY, assert_same, golden, stderr};
use denoising_diffusion::model_file::ModelFile;
use denoising_diffusion::weights::StateDict;

/// A step that changes nothing.
const STILL: &str = "--lr 1e-30 --batch-size 4 --num-samples 2 --log-every 1 --steps 1";

/// The weights in training of a run's last step.
fn trained(place: &Place, run: &str, step: u32) -> StateDict {
    ModelFile::read(&place.path(&format!("{run}/checkpoints/step-{step:08}/model.safetensors"))).unwrap().state
}

fn words_of(place: &Place, args: &str) -> String {
    let output = place.run(args);
    assert!(output.status.success(), "ddpm {args}\n{}", stderr(&output));
    stderr(&output)
}

#[test]
fn a_run_starts_as_the_average_of_the_run_it_starts_from() {
    let place = Place::new();
    let flags = TINY.replace("--timesteps 8", "--diffusion rectified_flow");
    place.ok(&format!("train digits {flags} --self-condition --steps 3 --ema-update-every 1 --out first"));
    let words = words_of(&place, &format!("train digits --init-from first {STILL} --out second"));
    assert!(words.contains("init from") && words.contains("starting from the weights of first/"), "{words}");
    assert!(!words.contains("note: "), "{words}");
    let average = ModelFile::read(&place.path("first/checkpoints/step-00000003/ema.safetensors")).unwrap();
    assert_eq!(average.state, trained(&place, "second", 1));
    let config = String::from_utf8(place.read("second/config.toml")).unwrap();
    let parts = ["init_from", "dim = 4", "self_condition = true", "diffusion = \"rectified_flow\"", "image_size = 8"];
    for part in parts {
        assert!(config.contains(part), "{part}: {config}");
    }
    // The run has all that it needs.
    std::fs::remove_dir_all(place.path("first")).unwrap();
    place.ok("train --resume second --steps 2");
}

#[test]
fn a_recipe_and_flags_have_the_last_word() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out first"));
    place.write(
        "r.toml",
        "[network]\ninit_from = \"first\"\n[diffusion]\nobjective = \"pred_noise\"\n[train]\nlr = 1e-3\n",
    );
    let plan = place.json("train digits --config r.toml --dry-run --min-snr-loss-weight");
    let recipe = &plan["recipe"];
    assert_eq!((&recipe["unet"]["dim"], &recipe["train"]["lr"]), (&4.into(), &1e-3.into()));
    assert_eq!(
        (&recipe["diffusion"]["timesteps"], &recipe["diffusion"]["objective"]),
        (&1000.into(), &"pred_noise".into())
    );
    assert_eq!(recipe["diffusion"]["min_snr_loss_weight"], true);
    let text = place.fails("train digits --init-from first --dim 8 --steps 1", 2, "of the network's weights");
    assert!(text.contains("init_conv.weight"), "{text}");
    place.fails("train digits --init-from nothing", 1, "no such file or folder: nothing");
    place.fails("train --resume first --init-from first", 2, "--init-from");
    assert!(!place.path("runs").exists() || std::fs::read_dir(place.path("runs")).unwrap().count() == 0);
}

#[test]
fn classes_are_added_and_what_is_new_is_told() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out plain"));
    let words = words_of(&place, &format!("train digits --init-from plain --class-condition {STILL} --out classes"));
    assert!(words.contains("have more inputs than there") && words.contains("mlp"), "{words}");
    assert!(words.contains("start anew: ") && words.contains("classes_emb.weight"), "{words}");
    let words =
        words_of(&place, &format!("train digits --init-from classes --class-condition=false {STILL} --out back"));
    assert!(words.contains("are not used: classes_emb.weight"), "{words}");
}

#[test]
fn training_goes_on_from_a_checkpoint_of_the_reference() {
    let place = Place::new();
    std::fs::copy(golden("model-1.pt"), place.path("model-1.pt")).unwrap();
    place.fails("train digits --init-from model-1.pt", 2, "--image-size");
    place.ok(&format!("train digits --init-from model-1.pt --image-size 8 {STILL} --out run"));
    place.ok("convert model-1.pt --image-size 8 --out converted.safetensors");
    let converted = ModelFile::read(&place.path("converted.safetensors")).unwrap();
    assert_eq!(converted.state, trained(&place, "run", 1));
    let config = String::from_utf8(place.read("run/config.toml")).unwrap();
    assert!(config.contains("timesteps = 50") && config.contains("objective = \"pred_noise\""), "{config}");
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_from_the_same_weights_again() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 3 --out first"));
    let flags = "train digits --init-from first --batch-size 4 --num-samples 2 --log-every 1 --steps 400";
    let mut child = place.spawn(&format!("{flags} --out parts"));
    common::wait_until("a step", || {
        std::fs::read_to_string(place.path("parts/log.jsonl")).is_ok_and(|log| log.contains("\"kind\":\"step\""))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path("parts/checkpoints").exists());
    place.ok("train --resume parts");
    place.ok(&format!("{flags} --out whole"));
    assert_same(&place.path("whole"), &place.path("parts"));
}
