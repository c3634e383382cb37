//! What cannot be measured is known before any work: asked for by name it is an error, else it is left out and told.

mod common;

use common::{Place, TINY, stderr};
use denoising_diffusion::data::npy::write_npy_f32;

/// Values in [0, 1] that differ from example to example, `[n, ...]`.
fn array(place: &Place, name: &str, shape: &[usize]) {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i * i % 97) as f32 / 96.0).collect();
    write_npy_f32(&place.path(name), shape, &values).unwrap();
}

/// What an evaluation measures, by name, and what it says beside.
fn evaluated(place: &Place, args: &str) -> (Vec<String>, String) {
    let output =
        place.command(&format!("eval {args} --steps 2 --json")).env("DDPM_INCEPTION_URL", NOWHERE).output().unwrap();
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut names: Vec<String> =
        result["measurements"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_string()).collect();
    names.extend(
        ["neighbours", "loss", "bits_per_dim"].into_iter().filter(|of| result[of].is_object()).map(String::from),
    );
    (names, told)
}

const NOWHERE: &str = "http://127.0.0.1:9/none.pth";

#[test]
fn sequences_are_not_shown_to_inception() {
    let place = Place::new();
    array(&place, "signals.npy", &[50, 1, 16]);
    let small = "--model unet1d --dim 4 --dim-mults 1 --attn-heads 1 --timesteps 8 --batch-size 4 --num-samples 2";
    place.ok(&format!("train signals.npy {small} --steps 1 --out run"));
    let (names, told) = evaluated(&place, "run -n 8");
    assert_eq!(names, ["swd", "spectrum", "neighbours", "loss", "bits_per_dim"]);
    assert!(
        told.contains("skipping fid, kid, is and prdc: Inception takes images, but the data are sequences"),
        "{told}"
    );
    assert!(!told.contains("downloading"), "{told}");
    place.fails("eval run --metrics swd,kid", 2, "kid: Inception takes images");
    let train = format!("train signals.npy {small} --evaluate-every 1 --dry-run");
    place.fails(&format!("{train} --metrics swd,fid"), 2, "fid: Inception takes images");
    place.ok(&format!("{train} --metrics swd,spectrum"));
}

/// `fid` and `stats` show Inception the same data as `eval` does, and say so before they look for it or draw anything.
#[test]
fn fid_and_stats_refuse_what_eval_does_not_show_to_inception() {
    let place = Place::new();
    let refused = |args: &str, why: &str| {
        let told = place.fails(&format!("{args} --inception missing.pth"), 2, why);
        assert!(!told.contains("drawing"), "{told}");
    };
    array(&place, "volumes.npy", &[4, 1, 8, 8, 8]);
    array(&place, "signals.npy", &[50, 1, 16]);
    for (data, kind) in [("volumes.npy", "the data are volumes"), ("signals.npy", "Inception takes images")] {
        refused(&format!("fid {data} digits"), kind);
        refused(&format!("fid digits {data}"), kind);
        refused(&format!("stats {data} -o out.npz"), kind);
    }
    let small = "--model unet1d --dim 4 --dim-mults 1 --attn-heads 1 --timesteps 8 --batch-size 4 --num-samples 2";
    place.ok(&format!("train signals.npy {small} --steps 1 --out run"));
    refused("fid digits run", "the data are sequences");
    refused("fid run digits", "the data are sequences");
}

#[test]
fn a_column_of_pixels_has_no_spectrum() {
    let place = Place::new();
    array(&place, "columns.npy", &[50, 1, 16, 1]);
    place.ok(&format!("train columns.npy --steps 1 --out run {TINY}"));
    let (names, told) = evaluated(&place, "run -n 8");
    assert_eq!(names, ["swd", "neighbours", "loss", "bits_per_dim"]);
    assert!(told.contains("skipping spectrum: ") && told.contains("16 high and 1 wide"), "{told}");
    place.fails("eval run -n 8 --metrics spectrum", 2, "spectrum: there is no spectrum along a width of 1");
}

#[test]
fn seven_channels_are_not_shown_to_inception() {
    let place = Place::new();
    array(&place, "seven.npy", &[50, 7, 8, 8]);
    let train = format!("train seven.npy --channels 7 --steps 1 {TINY}");
    place.ok(&format!("{train} --out run"));
    let (names, told) = evaluated(&place, "run -n 8");
    assert_eq!(names, ["swd", "spectrum", "neighbours", "loss", "bits_per_dim"]);
    assert!(told.contains("skipping fid, kid, is and prdc: images of 7 channels"), "{told}");
    place.fails("eval run --metrics fid", 2, "images of 7 channels");
    place.fails(&format!("{train} --evaluate-every 1 --metrics fid --dry-run"), 2, "images of 7 channels");
}

#[test]
fn too_few_images_are_told_before_samples_are_drawn() {
    let place = Place::new();
    place.ok(&format!("train digits --steps 1 --out run {TINY}"));
    place.fails("eval run -n 5 --metrics swd,prdc", 2, "prdc: at least 6 samples are needed, but there are 5");
    place.fails("eval run --num-real 5 --metrics prdc", 2, "at least 6 real images are needed");
    place.fails("eval run digits --metrics neighbours", 2, "neighbours: it is not known which images were trained on");
    place.image("one/a.png", 8, 8);
    let told = place.fails("eval run one", 2, "at least 2 real images are needed, but there are 1");
    assert!(!told.contains("drawing"), "{told}");
    let evaluating = format!("train digits --steps 1 --evaluate-every 1 --dry-run {TINY}");
    place.fails(&format!("{evaluating} --metrics prdc --evaluate-samples 4"), 2, "prdc needs at least 6");
    place.ok(&format!("{evaluating} --metrics swd --evaluate-samples 4"));
}

/// What a recipe measures by default was not asked for by name.
#[test]
fn a_run_without_held_out_images_is_evaluated_by_what_it_has() {
    let place = Place::new();
    for name in ["a", "b", "c", "d", "e"] {
        place.image(&format!("few/{name}.png"), 8, 8);
    }
    let train = format!("train few --steps 1 --evaluate-every 1 --evaluate-samples 4 {TINY}");
    let output = place.run(&format!("{train} --out run"));
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("skipping loss: at least 2 held-out images are needed, but there are 0"), "{told}");
    assert!(told.contains("step 1: swd "), "{told}");
    place.ok("train --resume run --steps 2");
    place.fails(&format!("{train} --metrics swd,bpd --out other"), 2, "--held-out");
}

/// Pictures of pairs are enlarged by what fits.
#[test]
fn long_sequences_have_a_page_in_a_folder_that_is_created() {
    let place = Place::new();
    array(&place, "signals.npy", &[48, 1, 512]);
    let small = "--model unet1d --dim 4 --dim-mults 1 --attn-heads 1 --timesteps 8 --batch-size 4 --num-samples 2";
    place.ok(&format!("train signals.npy {small} --steps 1 --out run"));
    let eval = "eval run -n 16 --metrics swd,neighbours --steps 2 --report";
    place.ok(&format!("{eval} new/page.html"));
    let page = String::from_utf8(place.read("new/page.html")).unwrap();
    assert_eq!(page.matches("data:image/png;base64,").count(), 2, "samples and pairs");
}
