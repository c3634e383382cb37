//! What a file of the reference leaves open, said by flags: each option changes what is drawn, what means nothing is refused, and what nobody says
//! is named.

mod common;

use std::collections::BTreeSet;

use common::{Place, TINY, golden, stderr};
use denoising_diffusion::data::npy::{read_npy_f32, write_npy_f32};
use denoising_diffusion::interop::{Metadata, ReferenceCheckpoint, read_safetensors, write_safetensors};
use denoising_diffusion::weights::{HostTensor, StateDict, WeightsKind};

const DRAW: &str = "-n 1 --steps 3 --sampler ddim --force --out x.npy";

fn checkpoint(place: &Place, name: &str) {
    std::fs::copy(golden(&format!("formulation_{name}.pt")), place.path("model.pt")).unwrap();
}

fn write(place: &Place, name: &str, state: &StateDict) {
    write_safetensors(&place.path(name), state, &Metadata::new()).unwrap();
}

/// The state dict of a golden network, under `prefix`.
fn network(place: &Place, golden_name: &str, prefix: &str) {
    let (state, _) = read_safetensors(&golden(&format!("{golden_name}.safetensors"))).unwrap();
    write(place, "network.safetensors", &state.strip_prefix("state.").with_prefix(prefix));
}

/// What is drawn from a file of images of 8x8.
fn drawn(place: &Place, file: &str, flags: &str) -> Vec<u8> {
    place.ok(&format!("sample {file} --image-size 8 {DRAW} {flags}"));
    place.read("x.npy")
}

/// Each set of flags draws something else, and so does none.
fn all_differ(place: &Place, file: &str, flags: &[&str]) {
    let drawn: BTreeSet<Vec<u8>> = flags.iter().chain([&""]).map(|flags| drawn(place, file, flags)).collect();
    assert_eq!(drawn.len(), flags.len() + 1);
}

#[test]
fn options_of_a_formulation_that_is_taken_for_likely_are_said_without_its_name() {
    let place = Place::new();
    checkpoint(&place, "continuous_v");
    all_differ(
        &place,
        "model.pt",
        &["--noise-schedule cosine", "--objective pred_v", "--noise-schedule cosine --objective pred_v"],
    );
    let said = drawn(&place, "model.pt", "--noise-schedule cosine --objective pred_v");
    let named = "--diffusion continuous_time --noise-schedule cosine --objective pred_v";
    assert_eq!(said, drawn(&place, "model.pt", named));
    all_differ(
        &place,
        "model.pt",
        &[
            "--diffusion simple",
            "--diffusion simple --noise-d 32",
            "--diffusion simple --noise-d 32 --image-d 16",
            "--diffusion simple --noise-d-low 16 --noise-d-high 64",
        ],
    );
    let text = place.fails("sample model.pt --image-size 8 --sigma-data 0.3", 2, "`sigma_data` is not an option");
    assert!(text.contains("\"continuous_time\""), "{text}");
    place.fails("sample model.pt --image-size 8 --diffusion simple --noise-d-low 16", 2, "noise_d_high");
    checkpoint(&place, "elucidated");
    all_differ(&place, "model.pt", &["--sigma-data 0.3", "--sigma-min 0.1", "--sigma-max 20", "--rho 3"]);
    place.ok("convert model.pt --image-size 8 --sigma-data 0.3 --out ours.safetensors");
    assert_eq!(place.json("info ours.safetensors")["card"]["diffusion"]["sigma_data"], 0.3);
}

#[test]
fn what_nobody_says_is_named() {
    let place = Place::new();
    checkpoint(&place, "continuous_v");
    let notes = |flags: &str| {
        let text = stderr(&place.run(&format!("sample model.pt --image-size 8 {DRAW} {flags}")));
        let notes: Vec<&str> = text.lines().filter(|line| line.contains("does not contain these settings")).collect();
        assert!(notes.len() <= 1, "{text}");
        notes.join("")
    };
    let note = notes("");
    assert!(note.contains("noise_schedule linear, objective pred_noise, auto_normalize true"), "{note}");
    let note = notes("--diffusion continuous_time --noise-schedule cosine --objective pred_v");
    assert!(note.contains("(auto_normalize true)"), "{note}");
    let all = "--diffusion continuous_time --noise-schedule cosine --objective pred_v --auto-normalize";
    assert_eq!(notes(all), "");
    let note = notes("--diffusion elucidated --sigma-data 0.5");
    assert!(
        note.contains("sigma_max 80,") && !note.contains("sigma_data") && !note.contains("noise_schedule"),
        "{note}"
    );
}

#[test]
fn networks_alone_need_what_their_formulation_needs() {
    let place = Place::new();
    for name in ["weighted_objective", "learned_variance"] {
        checkpoint(&place, name);
        let whole = ReferenceCheckpoint::open(&golden(&format!("formulation_{name}.pt"))).unwrap();
        write(&place, "alone.safetensors", &whole.weights(WeightsKind::Model).unwrap().state);
        let told = &place.json("info model.pt")["diffusion"];
        let word = |key: &str| told[key].to_string().replace('"', "");
        let said = format!("--timesteps {} --beta-schedule {}", word("timesteps"), word("beta_schedule"));
        let alone = drawn(&place, "alone.safetensors", &format!("--diffusion {name} {said}"));
        assert_eq!(alone, drawn(&place, "model.pt", ""));
        let text =
            place.fails(&format!("sample alone.safetensors --image-size 8 --diffusion {name}"), 2, "--timesteps");
        assert!(text.contains("--timesteps, --beta-schedule\n"), "{text}");
    }
    network(&place, "uvit_base", "");
    let text =
        place.fails("sample network.safetensors --image-size 8 --diffusion continuous_time", 2, "--noise-schedule");
    assert!(text.contains("--noise-schedule, --objective\n"), "{text}");
}

/// The package's classes for sequences and for classes have other defaults than its main one.
#[test]
fn defaults_are_those_of_the_package_s_class_for_the_network() {
    let place = Place::new();
    for (name, defaults) in [
        ("unet1d_base", "--timesteps 1000 --beta-schedule cosine --objective pred_noise"),
        ("cfg_unet", "--timesteps 1000 --beta-schedule cosine --objective pred_noise"),
        ("unet_base", "--timesteps 1000 --beta-schedule sigmoid --objective pred_v"),
    ] {
        network(&place, name, "");
        let text = place.fails("sample network.safetensors --image-size 8", 2, "does not state its formulation");
        assert!(text.contains(defaults), "{text}");
    }
    network(&place, "karras_image", "");
    let text = place.fails("sample network.safetensors --image-size 8", 2, "give --diffusion");
    assert!(text.contains("--diffusion gaussian") && text.contains("--diffusion simple"), "{text}");
    drawn(&place, "network.safetensors", "--diffusion simple --objective pred_v");
    network(&place, "karras_image", "model.");
    assert_eq!(place.json("info network.safetensors")["diffusion"]["diffusion"], "simple");
}

/// A network and its class in half precision.
#[test]
fn state_dicts_in_half_precision_are_sampled_and_trained_as_what_they_are() {
    let place = Place::new();
    let half = |x: &f32| f32::from_bits((x.to_bits() + 0x8000) & 0xffff_0000);
    let whole = ReferenceCheckpoint::open(&golden("model-1.pt")).unwrap().weights(WeightsKind::Ema).unwrap();
    let mut state = whole.state.with_prefix("model.");
    state.merge(whole.tables);
    let halves: StateDict = state
        .into_iter()
        .map(|(name, tensor)| (name, HostTensor { values: tensor.values.iter().map(half).collect(), ..tensor }))
        .collect();
    write(&place, "half.safetensors", &halves);
    let told = &place.json("info half.safetensors")["diffusion"];
    assert_eq!((&told["objective"], &told["beta_schedule"]), (&"pred_noise".into(), &"cosine".into()), "{told}");
    place.ok("train digits --init-from half.safetensors --image-size 8 --batch-size 4 --dry-run");
    // A table that says something else is not passed over in silence.
    let mut strange = halves;
    strange.insert("loss_weight", HostTensor::new([50], vec![0.3; 50]).unwrap());
    write(&place, "strange.safetensors", &strange);
    let said = |flags: &str| {
        let output = place.run(&format!("sample strange.safetensors --image-size 8 {DRAW} {flags}"));
        assert!(output.status.success());
        stderr(&output)
    };
    let text = said("");
    assert!(text.contains("`loss_weight`: pred_v is a guess; --objective says another"), "{text}");
    assert!(!text.lines().any(|line| line.contains("does not contain") && line.contains("objective")), "{text}");
    assert!(!said("--objective pred_noise").contains("guess"));
}

#[test]
fn options_of_networks_that_no_tensor_tells_are_said() {
    let place = Place::new();
    network(&place, "karras_image_classes", "net.");
    all_differ(&place, "network.safetensors", &["--mp-cat-t 0.4", "--mp-add-emb-t 0.4", "--attn-res-mp-add-t 0.4"]);
    place.fails("sample network.safetensors --image-size 8 --mp-cat-t 1", 2, "`mp_cat_t`");
    place.fails(
        "sample network.safetensors --image-size 8 --image-transform haar",
        2,
        "--image-transform does not apply",
    );
    network(&place, "uvit_haar", "model.");
    let channels = |place: &Place| read_npy_f32(&place.path("x.npy")).unwrap().0[1];
    drawn(&place, "network.safetensors", "");
    let bare = channels(&place);
    drawn(&place, "network.safetensors", "--image-transform haar");
    assert_eq!(channels(&place) * 4, bare);
    std::fs::copy(golden("model-1.pt"), place.path("model.pt")).unwrap();
    all_differ(&place, "model.pt", &["--sinusoidal-pos-emb-theta 500"]);
    place.fails("sample model.pt --image-size 8 --mp-cat-t 0.4", 2, "--mp-cat-t does not apply");
}

#[test]
fn sequences_have_a_length_and_noise_of_it() {
    let place = Place::new();
    for (name, prefix, flags) in [
        ("karras_sequence", "net.", ""),
        ("unet1d_base", "", "--timesteps 10 --beta-schedule linear --objective pred_v"),
    ] {
        network(&place, name, prefix);
        let sample = format!("sample network.safetensors --steps 2 --sampler ddim --force {flags} --out");
        let text = place.fails(&format!("{sample} x.npy --image-size 8x8"), 2, "--image-size 8x8");
        assert!(text.contains("--image-size 8\n"), "{text}");
        place.ok(&format!("{sample} x.npy --image-size 8 -n 2"));
        place.ok(&format!("{sample} y.npy --image-size 1x8 -n 2"));
        assert_eq!(place.read("x.npy"), place.read("y.npy"));
        let (shape, values) = read_npy_f32(&place.path("x.npy")).unwrap();
        assert_eq!((shape.len(), shape[2]), (3, 8));
        let carried = [shape[0], shape[1], 1, shape[2]];
        write_npy_f32(&place.path("carried.npy"), &carried, &values).unwrap();
        for (noise, out) in [("x", "a"), ("carried", "b")] {
            place.ok(&format!("{sample} {out}.npy --image-size 8 --init-noise {noise}.npy"));
        }
        assert_eq!(place.read("a.npy"), place.read("b.npy"));
        write_npy_f32(&place.path("flat.npy"), &[shape[0]], &values[..shape[0]]).unwrap();
        place.fails(
            &format!("{sample} x.npy --image-size 8 --init-noise flat.npy"),
            2,
            "(sequences, channels, length)",
        );
    }
}

#[test]
fn info_does_not_invent_a_size() {
    let place = Place::new();
    network(&place, "karras_image_classes", "");
    let network = &place.json("info network.safetensors")["network"];
    assert!(network["attn_res"].is_null() && network["extent"].is_null(), "{network}");
    let shares = network["attn_shares"].as_array().unwrap();
    assert!(!shares.is_empty() && shares.iter().all(|share| share.as_str().unwrap().starts_with("1/")), "{network}");
    assert!(place.ok("info network.safetensors").contains("of the size of the data"));
}

#[test]
fn volumes_and_limits_without_effect_are_said() {
    let place = Place::new();
    network(&place, "karras_volume", "net.");
    place.fails("sample network.safetensors --image-size 4", 1, "KarrasUnet3D, for volumes");
    checkpoint(&place, "elucidated");
    for (flags, warned) in [
        ("--threshold static --auto-normalize=false", true),
        ("--threshold none --auto-normalize=false", false),
        ("--threshold static", false),
        ("--auto-normalize=false", false),
    ] {
        let output = place.run(&format!("sample model.pt --image-size 8 {DRAW} {flags}"));
        assert!(output.status.success());
        assert_eq!(stderr(&output).contains("--threshold has no effect"), warned, "{flags}");
    }
}

#[test]
fn flags_without_effect_are_told() {
    let place = Place::new();
    checkpoint(&place, "elucidated");
    for (flags, warning) in [
        ("--rescale-phi 0.5", "--rescale-phi has no effect without --guidance"),
        ("--s-noise 1.1", "--s-noise has no effect without --s-churn"),
        ("--karras-rho 5 --noise-levels trained", "--karras-rho has no effect without --noise-levels karras"),
        ("--weak model.pt", "--weak has no effect without --guidance"),
    ] {
        let output = place.run(&format!("sample model.pt --image-size 8 {} {flags}", DRAW.replace("ddim", "heun")));
        assert!(stderr(&output).contains(warning), "{flags}: {}", stderr(&output));
    }
    let output = place.run(&format!("train digits {TINY} --steps 1 --metrics swd --evaluate-samples 5 --out run"));
    let text = stderr(&output);
    for flag in ["--metrics", "--evaluate-samples"] {
        assert!(text.contains(&format!("{flag} has no effect without --evaluate-every")), "{text}");
    }
}
