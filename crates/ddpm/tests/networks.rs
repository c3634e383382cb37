//! Networks other than the U-Net at the command line: planned, trained, resumed, sampled, measured, told about.

mod common;

use common::{Place, stderr};
use denoising_diffusion::data::npy::{read_npy_f32, write_npy_f32};
use denoising_diffusion::interop::{Metadata, read_safetensors, write_safetensors};

const DIT: &str = "--model dit --hidden-size 8 --depth 1 --num-heads 2 --patch-size 4 --batch-size 4 --num-samples 2 --sampling-timesteps 2";

#[test]
fn a_transformer_goes_all_the_way() {
    let place = Place::new();
    place.ok(&format!("train digits {DIT} --class-condition --steps 4 --out whole"));
    place.ok(&format!("train digits {DIT} --class-condition --steps 2 --out parts"));
    place.ok("train --resume parts --steps 4");
    let weights = |run: &str| place.read(&format!("{run}/checkpoints/step-00000004/model.safetensors"));
    assert!(weights("whole") == weights("parts"), "a resumed run differs");

    place.ok("sample whole -n 2 --steps 2 --classes 3 --guidance 2 --out x.png");
    let told = place.ok("info whole");
    assert!(told.contains("DiT, 1 blocks of width 8 with 2 heads, patches of 4x4"), "{told}");
    assert!(told.contains("10, dropped with probability 0.1"), "{told}");
    let measured = place.ok("eval whole --metrics swd -n 4 --num-real 8 --steps 2");
    assert!(measured.contains("swd"), "{measured}");
}

#[test]
fn options_of_another_network_are_refused() {
    let place = Place::new();
    place.fails("train digits --model dit --dim 8 --dry-run", 2, "the section [unet] has settings");
    place.fails("train digits --patch-size 3 --dry-run", 2, "`model = \"unet\"`");
    place.fails("train digits --model dit --patch-size 3 --dry-run", 2, "patches of 3x3 do not tile");
    let plan = place.ok("train digits --model dit --dit-size b --dry-run");
    assert!(plan.contains("DiT, 12 blocks of width 768 with 12 heads"), "{plan}");
}

/// Values of a wave that differs from example to example, `[n, ...]` with `size` values each.
fn waves(place: &Place, name: &str, shape: &[usize]) {
    let (n, size) = (shape[0], shape[1..].iter().product::<usize>());
    let value = |i: usize, t: usize| 5.0 * (0.4 * t as f32 + 0.9 * i as f32).sin() + 2.0;
    let values: Vec<f32> = (0..n).flat_map(|i| (0..size).map(move |t| value(i, t))).collect();
    write_npy_f32(&place.path(name), shape, &values).unwrap();
}

#[test]
fn sequences_from_an_array_to_curves_and_back_in_its_units() {
    let place = Place::new();
    waves(&place, "signals.npy", &[20, 3, 16]);
    let small = "--model unet1d --dim 4 --dim-mults 1,2 --attn-heads 1 --timesteps 8 --batch-size 4 --num-samples 2";
    let plan = place.ok(&format!("train signals.npy {small} --steps 4 --dry-run"));
    assert!(plan.contains("U-Net for sequences, stages 4, 8"), "{plan}");
    place.ok(&format!("train signals.npy {small} --steps 4 --out whole"));
    place.ok(&format!("train signals.npy {small} --steps 2 --out parts"));
    place.ok("train --resume parts --steps 4");
    let weights = |run: &str| place.read(&format!("{run}/checkpoints/step-00000004/model.safetensors"));
    assert!(weights("whole") == weights("parts"), "a resumed run differs");
    assert!(String::from_utf8_lossy(&place.read("whole/samples/step-00000004.svg")).contains("16 positions"));

    place.ok("sample whole -n 5 --steps 4 --out x.npy");
    let (shape, values) = read_npy_f32(&place.path("x.npy")).unwrap();
    assert_eq!(shape, [5, 3, 16]);
    // In [0, 1] nothing would lie outside.
    assert!(values.iter().all(|v| (-3.1..=7.1).contains(v)) && values.iter().any(|v| !(-0.5..=1.5).contains(v)));
    place.ok("sample whole -n 2 --steps 4 --real --out x.svg");
    let drawn = String::from_utf8(place.read("x.svg")).unwrap();
    assert!(drawn.contains("the data") && drawn.contains("2 samples"), "{drawn}");
    place.ok("sample whole -n 2 --steps 4 --out new/x.svg");
    assert!(place.path("new/x.svg").is_file());
    place.fails("sample whole -n 101 --out many.svg", 2, "at most 100 sequences are drawn as curves, not 101");
    place.fails("sample whole --out x.png", 2, ".svg for curves");
    let measured = place.ok("eval whole --metrics swd,spectrum -n 4 --num-real 8 --steps 2");
    assert!(measured.contains("spectrum"), "{measured}");

    place.fails("train signals.npy --model unet1d --layout images --dry-run", 2, "`layout = \"images\"`");
    place.fails("train digits --model unet1d --dry-run", 2, "only .npy and .npz arrays hold sequences");
    let volumes = "--model karras_unet --diffusion elucidated --layout volumes";
    place.fails(&format!("train digits {volumes} --dry-run"), 2, "digits holds images");
    waves(&place, "odd.npy", &[8, 1, 15]);
    place.fails(&format!("train odd.npy {small} --dry-run"), 2, "14 and 16");
    place.fails(&format!("train signals.npy {small} --value-range 0,5 --dry-run"), 1, "expected [0, 5]");
}

#[test]
fn volumes_through_the_magnitude_preserving_network() {
    let place = Place::new();
    waves(&place, "volumes.npy", &[12, 1, 2, 4, 4]);
    let small = "--model karras_unet --dim 4 --dim-max 8 --num-downsamples 1 --num-blocks-per-stage 1 --attn-res 2 \
                 --attn-dim-head 4 --diffusion elucidated --batch-size 4 --num-samples 2 --sampling-timesteps 2";
    place.ok(&format!("train volumes.npy {small} --steps 4 --out whole"));
    place.ok(&format!("train volumes.npy {small} --steps 2 --out parts"));
    place.ok("train --resume parts --steps 4");
    let weights = |run: &str| place.read(&format!("{run}/checkpoints/step-00000004/model.safetensors"));
    assert!(weights("whole") == weights("parts"), "a resumed run differs");
    assert!(place.ok("info whole").contains("magnitude-preserving U-Net for volumes, stages 4, 8"));
    place.ok("sample whole -n 3 --steps 2 --out x.npy");
    assert_eq!(read_npy_f32(&place.path("x.npy")).unwrap().0, [3, 1, 2, 4, 4]);
    place.ok("sample whole -n 3 --steps 2 --out x.png");
    place.fails("train volumes.npy --dry-run", 1, "shape [12, 1, 2, 4, 4]");
    place.fails("train digits --model karras_unet --dry-run", 2, "made for noise levels");
    place.fails("train digits --model uvit --dry-run", 2, "--diffusion elucidated");
}

#[test]
fn a_transformer_in_a_u_net() {
    let place = Place::new();
    let small = "--model uvit --dim 4 --dim-mults 1,2 --vit-depth 1 --attn-heads 1 --attn-dim-head 4 --class-condition";
    place.ok(&format!(
        "train digits {small} --diffusion simple --steps 2 --batch-size 4 --num-samples 2 --sampling-timesteps 2 --out run"
    ));
    assert!(place.ok("info run").contains("U-ViT, stages 4, 8, 1 blocks with 1 heads"));
    place.ok("sample run -n 20 --steps 2 --guidance 2 --out x.png");
}

/// A folder of `count` colour images of 8x8 whose left half is a level of its own, and one of their levels in grey, at half the size.
fn pictures_and_levels(place: &Place, count: u8) {
    for i in 0..count {
        let level = 25 * i;
        let picture =
            image::RgbImage::from_fn(8, 8, |x, _| image::Rgb(if x < 4 { [level; 3] } else { [255 - level; 3] }));
        let small = image::GrayImage::from_pixel(4, 4, image::Luma([level]));
        for (folder, image) in [("pictures", image::DynamicImage::from(picture)), ("small", small.into())] {
            std::fs::create_dir_all(place.path(folder)).unwrap();
            image.save(place.path(&format!("{folder}/{i}.png"))).unwrap();
        }
    }
}

#[test]
fn every_network_of_images_draws_what_belongs_to_other_images() {
    let place = Place::new();
    pictures_and_levels(&place, 10);
    let common = "train pictures --condition small --timesteps 8 --batch-size 4 --num-samples 3 --sampling-timesteps 2 --held-out 0";
    let networks = [
        ("unet", "--dim 4 --dim-mults 1 --self-condition"),
        ("dit", "--hidden-size 8 --depth 1 --num-heads 2 --patch-size 4"),
        ("uvit", "--dim 8 --dim-mults 1 --vit-depth 1 --attn-heads 1 --diffusion continuous_time"),
        ("karras_unet", "--dim 8 --num-downsamples 1 --num-blocks-per-stage 1 --diffusion continuous_time"),
    ];
    for (model, options) in networks {
        let train =
            |steps: u64, run: &str| format!("{common} --model {model} {options} --steps {steps} --out {model}{run}");
        let train = |steps: u64, run: &str| match model {
            "uvit" | "karras_unet" => train(steps, run).replace(" --timesteps 8", ""),
            _ => train(steps, run),
        };
        place.ok(&train(4, "-whole"));
        place.ok(&train(2, "-parts"));
        place.ok(&format!("train --resume {model}-parts --steps 4"));
        let weights = |run: &str| place.read(&format!("{model}-{run}/checkpoints/step-00000004/model.safetensors"));
        assert!(weights("whole") == weights("parts"), "{model}: a resumed run differs");
        // A picture behind each small one.
        place.image(&format!("{model}-whole/samples/step-00000004.png"), 8 * 4 + 2 * 5, 8 * 2 + 2 * 3);
        place.ok(&format!("sample {model}-whole --condition small --steps 2 --out {model}.npy"));
        let (shape, all) = read_npy_f32(&place.path(&format!("{model}.npy"))).unwrap();
        assert_eq!(shape, [10, 3, 8, 8], "one for each condition");
        // Another condition, another picture, though noise and network are the same.
        place.ok(&format!("sample {model}-whole --condition small/9.png -n 1 --steps 2 --out one.npy --force"));
        let (_, one) = read_npy_f32(&place.path("one.npy")).unwrap();
        assert_ne!(one, all[..one.len()], "{model}");
        place.fails(&format!("sample {model}-whole"), 2, "--condition DATA");
    }
    let told = place.ok("info unet-whole");
    assert!(told.contains("condition") && told.contains("1x8x8 (channels x height x width)"), "{told}");
    let measured = place.ok("eval unet-whole --metrics swd,loss,bpd -n 4 --steps 2");
    assert!(measured.contains("swd") && measured.contains("bits"), "{measured}");
    place.ok("vary unet-whole --images pictures --condition small --variants 2 --steps 2 --out varied/");
    let between = "interpolate unet-whole --from pictures/0.png --to pictures/9.png --frames 3 --steps 2";
    place.ok(&format!("{between} --condition small/0.png --out between.png"));
    place.ok("inpaint unet-whole --images pictures --mask small/9.png --condition small --steps 2 --out filled/");
    place.fails("vary unet-whole --images pictures --steps 2 --out other/", 2, "--condition DATA");
}

#[test]
fn every_network_draws_what_belongs_to_vectors() {
    let place = Place::new();
    let values = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
    write_npy_f32(&place.path("images.npy"), &[10, 1, 8, 8], &values(640).iter().map(|v| v.abs()).collect::<Vec<_>>())
        .unwrap();
    write_npy_f32(&place.path("signals.npy"), &[10, 1, 8], &values(80)).unwrap();
    write_npy_f32(&place.path("vectors.npy"), &[10, 3], &values(30)).unwrap();
    write_npy_f32(&place.path("one.npy"), &[3], &[9.0, -9.0, 0.0]).unwrap();
    let networks = [
        ("unet", "images.npy --timesteps 8 --dim 4 --dim-mults 1 --self-condition"),
        ("unet1d", "signals.npy --timesteps 8 --dim 4 --dim-mults 1"),
        ("dit", "images.npy --timesteps 8 --hidden-size 8 --depth 1 --num-heads 2 --patch-size 4"),
        ("uvit", "images.npy --dim 8 --dim-mults 1 --vit-depth 1 --attn-heads 1 --diffusion continuous_time"),
        ("karras_unet", "images.npy --dim 8 --num-downsamples 1 --num-blocks-per-stage 1 --diffusion elucidated"),
    ];
    for (model, options) in networks {
        let train = |steps: u64, run: &str| {
            let common = "--vectors vectors.npy --batch-size 4 --num-samples 3 --sampling-timesteps 2 --held-out 0";
            place.ok(&format!("train {options} --model {model} {common} --steps {steps} --out {model}-{run}"));
        };
        train(4, "whole");
        train(2, "parts");
        place.ok(&format!("train --resume {model}-parts --steps 4"));
        let weights = |run: &str| place.read(&format!("{model}-{run}/checkpoints/step-00000004/model.safetensors"));
        assert!(weights("whole") == weights("parts"), "{model}: a resumed run differs");
        // The average is still what was drawn, of which a DiT gives zeros whatever it is told.
        let sample = format!("sample {model}-whole --weights model --guidance 2 --steps 2");
        place.ok(&format!("{sample} --vectors vectors.npy --out {model}.npy"));
        let (shape, all) = read_npy_f32(&place.path(&format!("{model}.npy"))).unwrap();
        assert_eq!(shape[0], 10, "one for each vector");
        place.ok(&format!("{sample} --vectors one.npy -n 1 --out x.npy --force"));
        let (_, one) = read_npy_f32(&place.path("x.npy")).unwrap();
        assert_ne!(one, all[..one.len()], "{model}: another vector, another sample");
        place.fails(&format!("sample {model}-whole"), 2, "--vectors FILE");
    }
    assert!(place.ok("info unet-whole").contains("of 3 numbers"));
    let measured = place.ok("eval unet-whole --metrics swd,loss,bpd -n 4 --steps 2");
    assert!(measured.contains("swd") && measured.contains("bits"), "{measured}");
    place.fails("sample unet-whole --vectors images.npy", 1, "found shape [10, 1, 8, 8]");
    write_npy_f32(&place.path("two.npy"), &[4, 2], &values(8)).unwrap();
    place.fails("sample unet-whole --vectors two.npy", 1, "vectors of 3 numbers");
    place.fails("train images.npy --vectors one.npy --dry-run", 1, "3 vectors for 10 examples");
    place.ok("vary unet-whole --images images.npy --vectors vectors.npy --steps 2 --out varied/");
}

#[test]
fn conditions_must_belong_to_the_images() {
    let place = Place::new();
    pictures_and_levels(&place, 5);
    let train = "train pictures --dim 4 --dim-mults 1 --batch-size 2 --steps 1 --num-samples 1 --sampling-timesteps 1";
    std::fs::remove_file(place.path("small/3.png")).unwrap();
    place.fails(&format!("{train} --condition small --dry-run"), 1, "no file matches 3.png");
    write_npy_f32(&place.path("levels.npy"), &[5, 1, 4, 4], &[0.5; 80]).unwrap();
    place.fails(&format!("{train} --condition levels.npy --dry-run"), 1, "this is an array");
    place.fails("train levels.npy --condition pictures --dry-run", 1, "these are files");
    write_npy_f32(&place.path("four.npy"), &[4, 1, 4, 4], &[0.5; 64]).unwrap();
    place.fails("train levels.npy --condition four.npy --dry-run", 1, "4 for 5 examples");
    place.ok(&format!("{train} --out plain"));
    place.fails("sample plain --condition small", 2, "was trained without");
}

/// A state dict of the reference out of a golden file.
fn state_dict(place: &Place, golden_name: &str, prefix: &str) -> String {
    let (golden, _) = read_safetensors(&common::golden(golden_name)).unwrap();
    let state = golden.strip_prefix("state.").with_prefix(prefix);
    let name = golden_name.replace("golden/", "");
    write_safetensors(&place.path(&name), &state, &Metadata::new()).unwrap();
    name
}

#[test]
fn other_networks_of_the_reference_are_found_in_their_files() {
    let place = Place::new();
    for (golden, channels, size, layout) in [
        ("karras_image_classes.safetensors", 2, "8", "png"),
        ("karras_sequence.safetensors", 2, "8", "svg"),
        ("uvit_classes.safetensors", 2, "8", "png"),
    ] {
        let file = state_dict(&place, golden, "");
        let told = place.ok(&format!("info {file}"));
        assert!(
            told.contains("a state dict of a network") && told.contains("not in the file (give --diffusion)"),
            "{told}"
        );
        assert!(told.contains(&format!("{channels} channels")), "{told}");
        place.fails(&format!("sample {file} --image-size {size}"), 2, "--diffusion");
        let sample = format!("sample {file} --image-size {size} --diffusion elucidated --steps 2 -n 2");
        place.ok(&format!("{sample} --guidance 2 --out x.{layout} --force"));
    }
    // The reference never drops the classes of its KarrasUnet.
    let karras = "karras_image_classes.safetensors --image-size 8 --diffusion elucidated --steps 2 -n 2 --guidance 2";
    let output = place.run(&format!("sample {karras} --out again.png"));
    assert!(stderr(&output).contains("without ever dropping its classes"), "{}", stderr(&output));
    let whole = state_dict(&place, "uvit_classes.safetensors", "model.");
    let told = place.ok(&format!("info {whole}"));
    assert!(told.contains("a UViT under `model.`") && told.contains("U-ViT"), "{told}");
    let volume = state_dict(&place, "karras_volume.safetensors", "");
    place.fails(&format!("sample {volume} --image-size 4 --diffusion elucidated"), 1, "infer_karras_unet");
}
