//! Classes at the command line: labels of data, and what is told of a network that takes classes.

mod common;

use common::{Place, TINY, stderr};
use denoising_diffusion::data::ImageShape;
use denoising_diffusion::diffusion::DiffusionConfig;
use denoising_diffusion::interop::reference_layout;
use denoising_diffusion::model_file::{ModelCard, ModelFile};
use denoising_diffusion::models::{NetworkConfig, UnetConfig};
use denoising_diffusion::weights::WeightsKind;
use denoising_diffusion::weights::{HostTensor, StateDict};

fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|side| side.to_be_bytes()));
    bytes.extend(values);
    bytes
}

#[test]
fn inspect_counts_labels_beside_the_images_or_given() {
    let place = Place::new();
    place.write("train-images-idx3-ubyte", idx(&[4, 1, 1], &[0; 4]));
    place.write("train-labels-idx1-ubyte", idx(&[4], &[9, 4, 9, 9]));
    place.write("others", idx(&[4], &[0, 1, 2, 2]));
    place.write("few", idx(&[3], &[0, 1, 2]));
    let lines = |args: &str| place.ok(&format!("inspect train-images-idx3-ubyte {args}"));
    assert!(lines("").contains("classes    2: 4 (1), 9 (3)\n"), "{}", lines(""));
    assert!(lines("--labels others").contains("classes    3: 0 (1), 1 (1), 2 (2)\n"));
    let json = place.json("inspect train-images-idx3-ubyte");
    assert_eq!((&json["classes"][1]["value"], &json["classes"][1]["images"]), (&"9".into(), &3.into()));
    place.fails("inspect train-images-idx3-ubyte --labels few", 1, "3 labels for 4 images");
    place.fails("inspect digits --labels few", 1, "labels of their own");
}

#[test]
fn a_run_remembers_where_its_labels_lie() {
    let place = Place::new();
    place.write("images", idx(&[6, 4, 4], &[7; 96]));
    place.write("labels", idx(&[6], &[1, 2, 1, 2, 1, 2]));
    let dry = place.ok(&format!("train images --labels labels --dry-run {TINY}"));
    assert!(dry.contains("2 classes"), "{dry}");
    place.ok(&format!("train images --labels labels --out run --steps 1 {TINY}"));
    place.write("elsewhere/x", "");
    let mut command = place.command("train --resume ../run --steps 2 --json");
    let output = command.current_dir(place.path("elsewhere")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    // Other labels are other data.
    place.write("labels", idx(&[6], &[1, 1, 1, 2, 2, 2]));
    place.fails("train --resume run --steps 3", 1, "data");
}

/// A file of ours with a network of zeros.
fn write_model(place: &Place, num_classes: usize) {
    let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, num_classes, ..UnetConfig::default() };
    let zeros = |shape: Vec<usize>| HostTensor::new(shape.clone(), vec![0.0; shape.iter().product()]).unwrap();
    let layout = reference_layout(&unet).unwrap();
    let state: StateDict = layout.into_iter().map(|p| (p.ours, zeros(p.our_shape))).collect();
    let card = ModelCard {
        weights: WeightsKind::Model,
        step: 1,
        ..ModelCard::new(
            NetworkConfig::Unet(unet),
            DiffusionConfig::default(),
            ImageShape { channels: 1, height: 4, width: 4 },
        )
    };
    ModelFile { card, state }.write(&place.path("model.safetensors")).unwrap();
}

#[test]
fn a_network_with_classes_says_so_and_has_no_place_in_the_reference() {
    let place = Place::new();
    write_model(&place, 10);
    let info = place.ok("info model.safetensors");
    assert!(info.contains("10, dropped with probability 0.5 in training"), "{info}");
    place.fails("convert model.safetensors --to reference --out r.safetensors", 1, "conditioned on 10");
    place.ok("convert model.safetensors --out ours.safetensors");
    write_model(&place, 0);
    assert!(!place.ok("info model.safetensors").contains("classes"));
    place.ok("convert model.safetensors --to reference --out r.safetensors");
    assert!(!String::from_utf8_lossy(&place.read("r.safetensors")).contains("class"));
}

#[test]
fn a_classifier_of_other_classes_does_not_guide() {
    let place = Place::new();
    for (root, names) in [("one", ["ant", "bee"]), ("other", ["cat", "dog"])] {
        for name in names {
            for i in 0..3 {
                place.image(&format!("{root}/{name}/{i}.png"), 8, 8);
            }
        }
    }
    place.ok(&format!("train one --class-condition --held-out 0 --steps 1 --out run {TINY}"));
    place.ok("train-classifier other --like run --dim 4 --dim-mults 1 --steps 1 --batch-size 2 --out c.safetensors");
    place.fails("sample run --classifier c.safetensors --classes 0 --steps 1 --out x.png", 2, "cat, dog");
}
