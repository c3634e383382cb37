//! `ddpm train --init-from`: runs that start from weights.

mod common;

use common::{Place, TINY, assert_same, golden, stderr};
use denoising_diffusion::data::npy::write_npy_f32;
use denoising_diffusion::interop::{Metadata, read_safetensors, write_safetensors};
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
    assert!(words.contains("with more inputs than there") && words.contains("mlp"), "{words}");
    assert!(words.contains("which start anew: ") && words.contains("classes_emb.weight"), "{words}");
    let words =
        words_of(&place, &format!("train digits --init-from classes --class-condition=false {STILL} --out back"));
    assert!(words.contains("which are not used: classes_emb.weight"), "{words}");
}

/// The estimate is what the first layer reads first.
#[test]
fn self_conditioning_is_added_without_a_mistake_about_the_data() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --ema-update-every 1 --out plain"));
    let words = words_of(&place, &format!("train digits --init-from plain --self-condition {STILL} --out on"));
    assert!(words.contains("1 tensor with more inputs than there") && words.contains("init_conv.weight"), "{words}");
    let average = ModelFile::read(&place.path("plain/checkpoints/step-00000001/ema.safetensors")).unwrap().state;
    let kernels = |state: &StateDict| state.get("init_conv.weight").unwrap().values.clone();
    for (before, after) in kernels(&average).chunks(49).zip(kernels(&trained(&place, "on", 1)).chunks(2 * 49)) {
        let (of_estimate, of_data) = after.split_at(49);
        assert!(of_estimate.iter().all(|value| value.abs() < 1e-20), "{of_estimate:?}");
        assert_eq!(of_data, before);
    }
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

/// What numbers mean to a network does not change with the data that it is trained on next.
#[test]
fn vectors_and_conditions_are_read_as_the_weights_have_seen_them() {
    let place = Place::new();
    let array = |name: &str, shape: &[usize], value: &dyn Fn(usize) -> f32| {
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        write_npy_f32(&place.path(name), shape, &values).unwrap();
    };
    array("x.npy", &[8, 1, 16], &|i| (i as f32 * 0.7).sin());
    array("first.npy", &[8, 2], &|i| i as f32);
    array("other.npy", &[8, 2], &|i| 100.0 - i as f32);
    array("longer.npy", &[8, 3], &|i| i as f32);
    array("wide.npy", &[8, 1, 16], &|i| (i as f32 * 0.3).cos() * 7.0);
    array("narrow.npy", &[8, 1, 16], &|i| (i as f32 * 0.3).cos());
    let flags =
        "--model unet1d --dim 4 --dim-mults 1 --timesteps 8 --sampling-timesteps 2 --num-samples 2 --held-out 0";
    let train = |args: &str| place.ok(&format!("train x.npy {args} --batch-size 4"));
    train(&format!("--vectors first.npy --condition wide.npy {flags} --steps 1 --out first"));
    let card = |run: &str, step: u32| {
        let card =
            ModelFile::read(&place.path(&format!("{run}/checkpoints/step-{step:08}/ema.safetensors"))).unwrap().card;
        (card.vectors.unwrap(), card.condition_value_range.unwrap())
    };
    train("--vectors other.npy --condition narrow.npy --init-from first --steps 1 --out second");
    assert_eq!(card("second", 1), card("first", 1));
    place.ok("train --resume second --steps 2");
    assert_eq!(card("second", 2), card("first", 1));
    // Another number of values is new to the weights.
    train("--vectors longer.npy --condition narrow.npy --init-from first --steps 1 --out third");
    assert_eq!(card("third", 1).0.mean.len(), 3);
    let said =
        place.fails("sample first --weak third --guidance 2 --vectors first.npy --condition narrow.npy", 2, "--weak");
    assert!(said.contains("vectors that were scaled by other factors"), "{said}");
}

#[test]
fn classes_are_taken_over_by_name() {
    let place = Place::new();
    for (folder, names) in [("all", ["ant", "bee", "cat"]), ("others", ["bee", "dog", "ant"])] {
        for name in names {
            std::fs::create_dir_all(place.path(&format!("{folder}/{name}"))).unwrap();
            for number in 0..2 {
                place.image(&format!("{folder}/{name}/{number}.png"), 8, 8);
            }
        }
    }
    place.ok(&format!("train all --class-condition {TINY} --held-out 0 --steps 1 --out first"));
    let words = words_of(&place, &format!("train others --init-from first {STILL} --held-out 0 --out second"));
    assert!(words.contains("2 of 3 classes are known to the weights; new: dog"), "{words}");
    let average = ModelFile::read(&place.path("first/checkpoints/step-00000001/ema.safetensors")).unwrap().state;
    let rows = |state: &StateDict| {
        let table = state.get("classes_emb.weight").unwrap();
        table.values.chunks(table.shape[1]).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    // ant, bee, cat; ant, bee, dog.
    let (before, after) = (rows(&average), rows(&trained(&place, "second", 1)));
    assert_eq!(before[..2], after[..2]);
    assert_ne!(before[2], after[2]);
}

/// Sequences have a length, which is not among the tensors.
#[test]
fn sequences_of_the_reference_have_the_length_of_the_data() {
    let place = Place::new();
    let values: Vec<f32> = (0..8 * 16).map(|i| (i as f32 * 0.7).sin()).collect();
    write_npy_f32(&place.path("x.npy"), &[8, 1, 16], &values).unwrap();
    let network = "--model unet1d --dim 4 --dim-mults 1 --timesteps 8 --sampling-timesteps 2 --held-out 0";
    place.ok(&format!("train x.npy {network} {STILL} --out run"));
    place.ok("convert run --to reference --out reference.safetensors");
    // The file says what it is.
    let start = format!("train x.npy --init-from reference.safetensors {STILL}");
    place.ok(&format!("{start} --out stated"));
    assert_eq!(trained(&place, "run", 1), trained(&place, "stated", 1));
    let config = String::from_utf8(place.read("stated/config.toml")).unwrap();
    assert!(config.contains("timesteps = 8"), "{config}");
    // As others write it.
    let bare = read_safetensors(&place.path("reference.safetensors")).unwrap().0;
    write_safetensors(&place.path("bare.safetensors"), &bare, &Metadata::new()).unwrap();
    let formulation = "--timesteps 8 --beta-schedule sigmoid --objective pred_v";
    let start = format!("train x.npy --init-from bare.safetensors {formulation} {STILL}");
    let words = words_of(&place, &format!("{start} --out on"));
    assert!(words.contains("starting from the weights of bare.safetensors"), "{words}");
    assert_eq!(trained(&place, "run", 1), trained(&place, "on", 1));
    // What the other commands ask for, and what the note offers.
    place.ok(&format!("{start} --image-size 16 --mid-attn-heads 2 --out told"));
    let config = String::from_utf8(place.read("told/config.toml")).unwrap();
    assert!(config.contains("attn_heads = 2") && config.contains("attn_dim_head = 64"), "{config}");
    let said = place.fails(&format!("{start} --image-size 32 --out other"), 2, "have length 16");
    assert!(said.contains("--image-size 32"), "{said}");
}

#[test]
fn sequences_are_read_with_the_range_of_the_weights() {
    let place = Place::new();
    for (name, scale) in [("x.npy", 1.0), ("larger.npy", 5.0)] {
        let values: Vec<f32> = (0..8 * 16).map(|i| scale * (i % 16) as f32 / 15.0).collect();
        write_npy_f32(&place.path(name), &[8, 1, 16], &values).unwrap();
    }
    let network = "--model unet1d --dim 4 --dim-mults 1 --timesteps 8 --sampling-timesteps 2 --held-out 0";
    place.ok(&format!("train x.npy {network} {STILL} --out first"));
    let said = place.fails(
        &format!("train larger.npy --init-from first {STILL}"),
        1,
        "values range from 0 to 5; expected [0, 1]",
    );
    assert!(said.contains("--value-range"), "{said}");
    place.ok(&format!("train larger.npy --init-from first {STILL} --value-range 0,5 --out second"));
    place.ok("train --resume second --steps 2");
}
