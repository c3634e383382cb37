//! `ddpm sample`, `info` and `convert`, on our own weights and on those of the reference.

mod common;

use std::path::Path;

use common::{Place, TINY, golden, largest_difference, stderr};

/// Shape and values of a float32 `.npy` file.
fn npy(path: &Path) -> (Vec<usize>, Vec<f32>) {
    denoising_diffusion::data::npy::read_npy_f32(path).unwrap()
}

fn trained(place: &Place) {
    place.ok(&format!("train digits {TINY} --steps 2 --out run"));
}

#[test]
fn the_same_seed_gives_the_same_images() {
    let place = Place::new();
    trained(&place);
    let sample = |flags: &str, out: &str| {
        place.ok(&format!("sample run --out {out} {flags}"));
        npy(&place.path(out))
    };
    let (shape, values) = sample("--seed 3 -n 5", "a.npy");
    assert_eq!(shape, [5, 1, 8, 8]);
    assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
    sample("--seed 3 --threads 1 -n 5", "b.npy");
    assert_eq!(place.read("a.npy"), place.read("b.npy"));
    let (_, batches) = sample("--seed 3 --batch-size 2 -n 5", "c.npy");
    assert!(largest_difference(&values, &batches) < 1e-4);
    let (_, other) = sample("--seed 4 -n 5", "d.npy");
    assert!(largest_difference(&values, &other) > 1e-2);
    let (_, fewer) = sample("--seed 3 -n 2", "e.npy");
    assert!(largest_difference(&values[..fewer.len()], &fewer) < 1e-4);
}

#[test]
fn a_network_that_cannot_be_recorded_is_launched_and_that_is_said() {
    let place = Place::new();
    trained(&place);
    place.ok("sample run -n 2 --steps 4 --device cpu --out launched.npy");
    let output = place.run("sample run -n 2 --steps 4 --device cpu --device-graph --out recorded.npy");
    let words = stderr(&output);
    assert!(output.status.success(), "{words}");
    assert_eq!(words.matches("warning: --device-graph has no effect: only GPUs can record").count(), 1, "{words}");
    assert_eq!(place.read("launched.npy"), place.read("recorded.npy"));
}

#[test]
fn samplers_and_outputs() {
    let place = Place::new();
    trained(&place);
    let grid = place.json("sample run -n 3 --sampler ddpm --variance large --trajectory t.gif");
    assert_eq!((&grid["out"], &grid["steps"], &grid["shape"][0]), (&"samples.png".into(), &8.into(), &1.into()));
    assert!(place.read("samples.png").starts_with(b"\x89PNG") && place.read("t.gif").starts_with(b"GIF89a"));
    place.ok("sample run -n 3"); // the default name is replaced
    place.ok("sample run -n 3 --steps 4 --eta 0.5 --out images/");
    assert_eq!(std::fs::read_dir(place.path("images")).unwrap().count(), 3);
    place.ok("sample run/checkpoints/step-00000002 -n 1 --weights model --out model.png");
    place.ok("sample run/checkpoints/step-00000002/ema.safetensors -n 1 --image-size 6x4 --out odd.npy");
    assert_eq!(npy(&place.path("odd.npy")).0, [1, 1, 6, 4]);
    place.fails("sample run --out images/", 2, "--force");
    place.write("images/notes.png", "mine");
    place.ok("sample run -n 1 --out images/ --force");
    let mut left: Vec<_> = std::fs::read_dir(place.path("images")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["000000.png", "notes.png"], "images of earlier samples are gone");
    place.fails("sample run --out model.png", 2, "exists already");
    place.ok("sample run -n 1 --out model.png --force");
}

#[test]
fn another_sampler_keeps_the_spacing_of_levels_and_not_the_steps() {
    let place = Place::new();
    place.ok(&format!(
        "train digits {TINY} --steps 1 --sampler ddpm --noise-levels trailing --sampling-timesteps 3 --out run"
    ));
    let own = place.json("sample run -n 1");
    assert_eq!((&own["noise_levels"], &own["steps"]), (&"trailing".into(), &3.into()));
    let other = place.json("sample run -n 1 --sampler ddim");
    assert_eq!((&other["noise_levels"], &other["steps"]), (&"trailing".into(), &8.into()));
}

/// Large sets in parts: at other times, or on other machines.
#[test]
fn images_of_a_seed_are_numbered() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --class-condition --steps 1 --out run"));
    let draw = |args: &str| place.ok(&format!("sample run --steps 2 --sample-batch-size 2 {args}"));
    draw("-n 7 --out whole/");
    draw("-n 3 --out parts/");
    draw("-n 4 --first 3 --out parts/");
    common::assert_same(&place.path("whole"), &place.path("parts"));
    let text = place.fails("sample run -n 3 --first 6 --out parts/", 2, "000006.png exists already");
    assert!(text.contains("--force"), "{text}");
    place.fails("sample run -n 2 --first 18446744073709551615 --out more/", 2, "too large to number");
    draw("-n 7 --out whole.npy");
    draw("-n 4 --first 3 --out part.npy");
    let [whole, part] = ["whole.npy", "part.npy"].map(|name| npy(&place.path(name)).1);
    assert!(largest_difference(&whole[3 * 64..], &part) < 1e-5);
}

/// A folder is in the way of the third image: those before it are there.
#[test]
fn images_are_written_as_they_are_drawn() {
    let place = Place::new();
    trained(&place);
    place.write("images/000006.png/in the way", []);
    let text =
        place.fails("sample run -n 6 --steps 2 --sample-batch-size 2 --first 4 --force --out images/", 1, "000006.png");
    assert!(text.contains("the first 2 of 6 images are written") && text.contains("--first 6 -n 4"), "{text}");
    assert!(place.path("images/000005.png").exists() && !place.path("images/000008.png").exists());
}

#[test]
fn initial_noise_from_a_file() {
    let place = Place::new();
    trained(&place);
    let noise: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 0.37).sin() * 1.5).collect();
    let write = |name: &str, shape: &[usize]| {
        denoising_diffusion::data::npy::write_npy_f32(&place.path(name), shape, &noise).unwrap();
    };
    write("x.npy", &[3, 1, 8, 8]);
    place.ok("sample run --sampler ddim --init-noise x.npy --seed 1 --out a.npy");
    place.ok("sample run --sampler ddim --init-noise x.npy --seed 2 --out b.npy");
    assert_eq!(npy(&place.path("a.npy")).0, [3, 1, 8, 8]);
    assert_eq!(place.read("a.npy"), place.read("b.npy")); // ddim with eta 0 draws no noise
    place.ok("sample run --sampler ddim --seed 1 -n 3 --out c.npy");
    assert_ne!(place.read("a.npy"), place.read("c.npy"));
    write("wrong.npy", &[3, 8, 8, 1]);
    let text = place.fails("sample run --init-noise wrong.npy", 2, "--init-noise");
    assert!(text.contains("[n, 1, 8, 8]") && text.contains("[3, 8, 8, 1]"), "{text}");
    place.fails("sample run --init-noise x.npy -n 4", 2, "[4, 1, 8, 8]");
}

#[test]
fn a_checkpoint_of_the_reference_works_where_ours_do() {
    let place = Place::new();
    std::fs::copy(golden("model-1.pt"), place.path("model-1.pt")).unwrap();
    let info = place.json("info model-1.pt");
    assert_eq!((&info["network"]["dim"], &info["diffusion"]["timesteps"]), (&4.into(), &50.into()));
    assert_eq!((&info["diffusion"]["objective"], &info["step"]), (&"pred_noise".into(), &12.into()));
    assert!(place.ok("info model-1.pt").contains("min-SNR"));

    place.fails("sample model-1.pt", 2, "--image-size");
    place.fails("sample model-1.pt --image-size 8 --timesteps 20", 2, "50");
    let sample = |target: &str, out: &str| {
        place.ok(&format!("sample {target} -n 2 --steps 5 --seed 7 --out {out}"));
        place.read(out)
    };
    let direct = sample("model-1.pt --image-size 8", "direct.npy");
    assert_ne!(direct, sample("model-1.pt --image-size 8 --weights model", "model.npy"));

    place.ok("convert model-1.pt --image-size 8 --out ours.safetensors");
    assert_eq!(direct, sample("ours.safetensors", "ours.npy"));
    assert_eq!(place.json("info ours.safetensors")["card"]["image"]["height"], 8);

    place.ok("convert ours.safetensors --to reference --out theirs.safetensors");
    let told = "--image-size 8 --timesteps 50 --objective pred_noise --beta-schedule cosine";
    assert_eq!(direct, sample(&format!("theirs.safetensors {told}"), "theirs.npy"));
    assert_eq!(direct, sample("theirs.safetensors", "stated.npy"));
    place.fails("sample theirs.safetensors --objective pred_v", 2, "contradicts");

    place.fails("convert model-1.pt --image-size 8 --out ours.safetensors", 2, "exists already");
    place.fails("convert model-1.pt --image-size 8 --out ours.bin", 2, ".safetensors");
    place.fails("sample ours.safetensors --objective pred_v", 2, "--objective");
    place.fails("sample ours.safetensors --weights model", 2, "`ema`");
}

/// The arguments that a converted file names for the reference's diffusion class.
fn arguments(place: &Place, run: &str) -> serde_json::Value {
    place.ok(&format!("convert {run} --to reference --out {run}.safetensors"));
    let metadata = denoising_diffusion::interop::read_metadata(&place.path(&format!("{run}.safetensors"))).unwrap();
    serde_json::from_str(&metadata["diffusion"]).unwrap()
}

#[test]
fn schedules_that_the_reference_has_no_name_for_are_written_as_betas() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --beta-schedule linear --out plain"));
    let plain = arguments(&place, "plain");
    assert_eq!((&plain["beta_schedule"], &plain["betas"]), (&"linear".into(), &serde_json::Value::Null));
    assert_eq!(plain["image_size"], serde_json::json!([8, 8]));
    place.ok(&format!(
        "train digits {TINY} --steps 1 --beta-schedule linear --zero-terminal-snr --objective pred_v --out zero"
    ));
    let zero = arguments(&place, "zero");
    assert_eq!(zero["beta_schedule"], serde_json::Value::Null);
    let betas = zero["betas"].as_array().unwrap();
    assert_eq!((betas.len(), &betas[7]), (8, &1.0.into()));
    assert_eq!(place.json("info zero.safetensors")["betas"], zero["betas"]);

    let small = "--dim 4 --dim-mults 1 --timesteps 8 --sampling-timesteps 2 --batch-size 2 --num-samples 1";
    let classes = "--class-condition --downsample strided --num-mem-kv 0 --full-attn false";
    place.ok(&format!("train digits {small} {classes} --steps 1 --beta-schedule cosine --out classes"));
    let of_classes = arguments(&place, "classes");
    assert_eq!((&of_classes["image_size"], &of_classes["beta_schedule"]), (&8.into(), &"cosine".into()));
    assert!(of_classes.get("auto_normalize").is_none() && of_classes.get("immiscible").is_none(), "{of_classes}");
    let metadata = denoising_diffusion::interop::read_metadata(&place.path("classes.safetensors")).unwrap();
    let network: serde_json::Value = serde_json::from_str(&metadata["unet"]).unwrap();
    assert_eq!((&network["attn_heads"], &network["attn_dim_head"]), (&4.into(), &32.into()));

    denoising_diffusion::data::npy::write_npy_f32(&place.path("signals.npy"), &[8, 1, 16], &[0.5; 128]).unwrap();
    for (schedule, named) in [("cosine", true), ("sigmoid", false)] {
        place.ok(&format!(
            "train signals.npy --model unet1d --beta-schedule {schedule} {TINY} --steps 1 --out {schedule}"
        ));
        let of_sequences = arguments(&place, schedule);
        assert_eq!((&of_sequences["seq_length"], &of_sequences["image_size"]), (&16.into(), &serde_json::Value::Null));
        assert_eq!(of_sequences["beta_schedule"].is_string(), named);
        assert_eq!(of_sequences["betas"].is_array(), !named);
        let told = place.json(&format!("info {schedule}.safetensors"));
        assert_eq!((&told["diffusion"]["beta_schedule"], &told["betas"]), (&schedule.into(), &serde_json::Value::Null));
    }
}

#[test]
fn a_network_in_training_converts_and_comes_back() {
    let place = Place::new();
    trained(&place);
    place.ok("convert run --weights model --to reference --out r.safetensors");
    let info = place.json("info r.safetensors");
    assert_eq!((&info["format"], &info["network"]["dim"]), (&"denoising-diffusion-pytorch".into(), &4.into()));
    assert_eq!(info["parameters"], place.json("info run")["parameters"]);
}

#[test]
fn a_grid_that_is_too_large_is_refused_before_images_are_drawn() {
    let place = Place::new();
    trained(&place);
    for args in ["--out x.png", "--out x.npy --trajectory x.gif"] {
        let told = place.fails(&format!("sample run -n 3000000 --steps 1 {args}"), 2, "is too large");
        assert!(!told.contains("drawing"), "{told}");
    }
    assert!(!place.path("x.npy").exists());
}

#[test]
fn what_cannot_be_written_is_said_before_anything_is_drawn() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out run"));
    place.write("file", "x");
    for command in ["sample run --out file/x.npy", "convert run --out file/x.safetensors"] {
        let text = place.fails(command, 1, "cannot write file/x");
        assert!(!text.contains("drawing"), "{text}");
    }
    place.fails("sample run --out file/", 1, "cannot write into file/");
    place.fails("sample run --trajectory t.png", 2, "FILE.gif");
    place.ok("sample run -n 3 --steps 3 --out new/folder/x.npy --trajectory t.gif");
    assert!(place.read("t.gif").starts_with(b"GIF89a"));
    std::fs::create_dir(place.path("taken.safetensors")).unwrap();
    for command in ["convert run --out", "train-classifier --like run --force --out"] {
        place.fails(&format!("{command} taken.safetensors"), 2, "taken.safetensors is a folder");
    }
}

#[test]
fn the_folder_of_a_result_is_created() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out run"));
    for (command, file) in [
        ("sample run -n 2 --steps 1 --out", "array/x.npy"),
        ("sample run -n 2 --steps 1 --out", "grid/x.png"),
        ("eval run -n 4 --steps 1 --metrics swd --report", "page/x.html"),
        ("convert run --out", "ours/x.safetensors"),
        ("convert run --to reference --out", "theirs/x.safetensors"),
    ] {
        place.ok(&format!("{command} new/{file}"));
        assert!(place.path(&format!("new/{file}")).is_file(), "{file}");
    }
}

#[test]
fn a_weaker_network_can_be_a_file_of_the_reference() {
    let place = Place::new();
    std::fs::copy(golden("model-1.pt"), place.path("model.pt")).unwrap();
    place.ok("sample model.pt --image-size 8 --weak model.pt --guidance 2 -n 2 --steps 2 --out x.npy");
}
