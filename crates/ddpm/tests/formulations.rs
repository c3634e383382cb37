//! Formulations, samplers, guidance and editing at the command line. What they compute is tested in the library.

mod common;

use common::{Place, TINY, golden, stderr};
use denoising_diffusion::data::npy::{read_npy_f32, write_npy_f32};

const SMALL: &str =
    "--dim 4 --dim-mults 1 --attn-heads 1 --attn-dim-head 4 --batch-size 4 --num-samples 2 --sampling-timesteps 3";

/// Every formulation trains, goes on, says what it is, and can be sampled from.
#[test]
fn every_formulation_from_training_to_samples() {
    let place = Place::new();
    let listed = place.json("list");
    let names: Vec<&str> =
        listed["formulations"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 7);
    for name in names.into_iter().chain(["continuous_time --noise-schedule learned --learned-schedule-hidden-dim 4"]) {
        let run = name.split(' ').next_back().unwrap();
        place.ok(&format!("train digits {SMALL} --diffusion {name} --steps 2 --out {run}"));
        place.ok(&format!("train --resume {run} --steps 3"));
        let info = place.ok(&format!("info {run}"));
        assert!(info.contains(&format!("diffusion   {}", name.split(' ').next().unwrap())), "{info}");
        let sampled = place.json(&format!("sample {run} -n 2 --sampler heun --steps 3 --out {run}.npy"));
        // The first step alone has one slope where it begins in what is nothing but noise, or nearly so.
        let evaluations = if name == "elucidated" { 5 } else { 4 };
        assert_eq!((&sampled["steps"], &sampled["evaluations"]), (&3.into(), &evaluations.into()));
        let (_, values) = read_npy_f32(&place.path(&format!("{run}.npy"))).unwrap();
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)), "{name}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_training_with_the_reason() {
    let place = Place::new();
    for (flags, reason) in [
        ("--diffusion elucidated --timesteps 8", "`timesteps` is not an option of `diffusion = \"elucidated\"`"),
        ("--diffusion weighted_objective --min-snr-loss-weight", "no single weight"),
        ("--diffusion learned_variance --offset-noise-strength 0.1", "white noise"),
        ("--random-fourier-features", "up to 1000"),
        ("--diffusion rectified_flow --time-scale 1000 --random-fourier-features", "up to 1000"),
        ("--posterior-variance learned --sampler ddpm", "needs `diffusion = \"learned_variance\"`"),
        ("--sampler unipc --s-churn 10", "`s_churn` belongs to"),
        ("--sampler lms --eta 0.5", "`eta` belongs to"),
        ("--rescale-phi 2", "in [0, 1]"),
        ("--guidance-interval 3,1", "below the second"),
    ] {
        place.fails(&format!("train digits {SMALL} {flags} --steps 1 --out run"), 2, reason);
        assert!(!place.path("run").exists());
    }
}

#[test]
fn classes_and_guidance() {
    let place = Place::new();
    place.ok(&format!("train digits {SMALL} --class-condition --steps 2 --out run"));
    assert!(place.ok("info run").contains("classes     10"));
    let sampled = place.json("sample run --classes 3,5-6 -n 4 --guidance 2 --rescale-phi 0.5 --out a.npy");
    assert_eq!(sampled["classes"], serde_json::json!([3, 5, 6, 3]));
    // A scale of 1 is the conditional network, whatever the other options.
    place.ok("sample run --classes 3 -n 2 --guidance 1 --keep-parallel 0 --rescale-phi 1 --out b.npy");
    place.ok("sample run --classes 3 -n 2 --out c.npy");
    assert_eq!(place.read("b.npy"), place.read("c.npy"));
    // A scale of 0 does not depend on the class.
    place.ok("sample run --classes 3 -n 2 --guidance 0 --out d.npy");
    place.ok("sample run --classes 7 -n 2 --guidance 0 --out e.npy");
    assert_eq!(place.read("d.npy"), place.read("e.npy"));
    place.ok(
        "sample run --classes 3 -n 2 --guidance 2 --weak run/checkpoints/step-00000002 --weights model --out f.npy",
    );
    place.ok("sample run --classes 3 -n 2 --guidance 2 --cfg-plus-plus --out g.npy"); // by a sampler that can
    place.fails("sample run --classes 10", 2, "there is no class 10");
    place.fails("sample run --classes three", 2, "0-9");
    place.fails("sample run --cfg-plus-plus --sampler unipc", 2, "cannot be used with `sampler = \"unipc\"`");
    place.ok(&format!("train digits {SMALL} --steps 1 --out plain"));
    place.fails("sample plain --classes 3", 2, "without classes");
    place.fails("sample plain --guidance 3", 2, "nothing to guide towards");
}

#[test]
fn a_classifier_guides_a_network_that_knows_no_classes_in_any_sampler() {
    let place = Place::new();
    place.ok(&format!("train digits {SMALL} --timesteps 8 --steps 2 --out run"));
    place.ok("train-classifier digits --like run --dim 4 --dim-mults 1 --steps 3 --batch-size 8 --out c.safetensors");
    for sampler in ["ddim", "ddpm", "dpmpp_2m"] {
        let draw = |flags: &str, out: &str| {
            place.ok(&format!(
                "sample run -n 2 --sampler {sampler} --classifier c.safetensors {flags} --out {out} --force"
            ));
            place.read(out)
        };
        let (three, seven) =
            (draw("--classes 3 --classifier-scale 5", "3.npy"), draw("--classes 7 --classifier-scale 5", "7.npy"));
        assert_ne!(three, seven, "{sampler}");
        // A scale of 0 pushes nowhere.
        assert_eq!(
            draw("--classes 3 --classifier-scale 0", "a.npy"),
            draw("--classes 7 --classifier-scale 0", "b.npy")
        );
    }
    place.fails("sample run --classifier c.safetensors --classes 11 --out x.png", 2, "there is no class 11");
    place.fails("sample run --classifier nothing --out x.png", 1, "nothing");
    place.fails("sample run --classifier-scale 2 --out x.png", 2, "--classifier");
}

#[test]
fn images_are_filled_in_varied_and_joined() {
    let place = Place::new();
    place.ok(&format!("train digits {SMALL} --timesteps 8 --steps 2 --out run"));
    place.image("a.png", 8, 8);
    place.image("pair/a.png", 8, 8);
    place.image("pair/b.png", 9, 9);
    // The left half is known.
    let mask: Vec<f32> = (0..64).map(|i| f32::from(u8::from(i % 8 < 4))).collect();
    write_npy_f32(&place.path("mask.npy"), &[1, 1, 8, 8], &mask).unwrap();
    for flags in ["--sampler ddpm --jump-n-sample 2", "--sampler ddim --eta 0.5 --jump-n-sample 1", "--variants 3"] {
        place.ok(&format!("inpaint run --images a.png --mask mask.npy --jump-length 2 --out in.npy --force {flags}"));
        let (shape, values) = read_npy_f32(&place.path("in.npy")).unwrap();
        assert_eq!(shape[1..], [1, 8, 8]);
        for (at, value) in values.iter().enumerate().filter(|(at, _)| at % 8 < 4) {
            let (x, y) = (at % 8, at / 8 % 8);
            assert_eq!(*value, ((x * 7 + y * 13) as u8) as f32 / 255.0, "{flags}, pixel {at}");
        }
    }
    place.fails("inpaint run --images a.png --mask mask.npy --sampler heun --out x.png", 2, "ddpm or ddim");
    place.fails("inpaint run --images a.png --mask pair --out x.png", 2, "2 masks for 1 images");
    write_npy_f32(&place.path("signed.npy"), &[1, 1, 8, 8], &mask.iter().map(|m| m * 4.0 - 3.0).collect::<Vec<_>>())
        .unwrap();
    place.fails("inpaint run --images a.png --mask signed.npy --out x.png", 2, "its values range from -3 to 1");
    // Before anything is opened.
    for (flags, key) in [
        ("--jump-length 1 --jump-n-sample 1000000000", "`jump_n_sample`"),
        ("--jump-n-sample 0", "`jump_n_sample`"),
        ("--jump-length 0", "`jump_length`"),
    ] {
        place.fails(&format!("inpaint nothing --images a.png --mask mask.npy --out x.png {flags}"), 2, key);
    }
    // Ones of 255 are all but black.
    let bits = |one: u8| (0..64).map(|i| one * u8::from(i % 8 < 4)).collect::<Vec<u8>>();
    for (name, one) in [("ones.png", 1), ("white.png", 255)] {
        image::GrayImage::from_raw(8, 8, bits(one)).unwrap().save(place.path(name)).unwrap();
    }
    place.ok("inpaint run --images a.png --mask white.png --jump-n-sample 1 --out white.npy");
    place.fails("inpaint run --images a.png --mask ones.png --out x.png", 2, "8-bit mask");

    let varied = place.json("vary run --images pair --strength 0.5 --variants 3 --out vary.png");
    assert_eq!(varied["images"], 6);
    // Half of the noise levels, whatever the sampler; at least one step.
    for (flags, steps) in [("--sampler ddpm", 4), ("--sampler ddim --steps 4", 2), ("--steps 1", 1)] {
        let details = |command: &str| place.json(&format!("{command} --strength 0.5 {flags} --out v.png --force"));
        for command in ["vary run --images pair", "interpolate run --images pair"] {
            assert_eq!(details(command)["details"]["steps"], steps, "{command} {flags}");
        }
    }
    place.fails("vary run --images a.png --strength 0 --out x.png", 2, "above 0");
    place.fails("vary run --images nothing --out x.png", 1, "nothing");

    // One class for all variants, by default none.
    place.ok(&format!("train digits {SMALL} --timesteps 8 --class-condition --steps 2 --out told"));
    let vary = |flags: &str| {
        place.ok(&format!("vary told --images pair --strength 1 --variants 2 --out v.npy --force {flags}"));
        read_npy_f32(&place.path("v.npy")).unwrap().1
    };
    let (none, zero_one, zero) = (vary(""), vary("--classes 0,1"), vary("--classes 0"));
    assert_eq!(zero_one[..128], zero[..128], "the first image's variants are of the first class");
    assert!(zero_one[128..] != zero[128..] && none != zero);
    place.ok("train-classifier digits --like told --dim 4 --dim-mults 1 --steps 2 --batch-size 8 --out c.safetensors");
    let between = "interpolate told --images pair --frames 3 --classifier c.safetensors --out guided.npy";
    place.ok(&format!("{between} --classes 3"));
    place.fails(&format!("{between} --force"), 2, "but none is given");

    place.ok("interpolate run --images pair --frames 5 --out between.npy");
    // One image of each file.
    let threes: Vec<f32> = (0..192).map(|i| (i / 64) as f32 / 4.0).collect();
    write_npy_f32(&place.path("three.npy"), &[3, 1, 8, 8], &threes).unwrap();
    let between = |to: &str| {
        place.ok(&format!("interpolate run --from three.npy --to {to} --frames 2 --strength 0.1 --out to.npy --force"));
        read_npy_f32(&place.path("to.npy")).unwrap().1
    };
    assert_ne!(between("a.png"), between("pair/b.png"));
    // What a run draws its samples with does not spoil the ends.
    place.ok(&format!("train digits {SMALL} --timesteps 8 --steps 2 --sampler euler --s-churn 20 --out churned"));
    let ends = |flags: &str| {
        let interpolate = format!("interpolate churned --images pair --frames 2 --threshold none {flags}");
        let output = place.run(&format!("{interpolate} --out ends.npy --force"));
        assert!(output.status.success(), "{}", stderr(&output));
        (read_npy_f32(&place.path("ends.npy")).unwrap().1, stderr(&output).contains("draws noise"))
    };
    let (own, said) = ends("");
    assert!(!said);
    assert_eq!((own.clone(), false), ends("--s-churn 0"));
    let (churned, said) = ends("--s-churn 20");
    assert!(said && churned != own);
    assert_eq!(read_npy_f32(&place.path("between.npy")).unwrap().0, [5, 1, 8, 8]);
    place.ok("interpolate run --from a.png --to pair/b.png --strength 0.5 --sampler ddpm --out between.png");
    place.fails("interpolate run --images a.png --out x.png", 2, "two images");
    assert!(!stderr(&place.run("interpolate run --from a.png --out x.png")).is_empty());

    let inpaint = "inpaint run --images a.png --mask mask.npy";
    let interpolate = "interpolate run --images pair";
    let none = [(inpaint, "--variants 0"), ("vary run --images a.png", "--variants 0"), (interpolate, "--frames 1")];
    for (command, count) in none {
        place.fails(&format!("{command} {count} --out x.png"), 2, count.split_once(' ').unwrap().0);
    }
    // Before any is drawn.
    let many = [inpaint, "vary run --images a.png"].map(|command| format!("{command} --variants 3000000"));
    for command in many.iter().map(String::as_str).chain(["interpolate run --images pair --frames 3000000"]) {
        let told = place.fails(&format!("{command} --steps 1 --out x.png"), 2, "is too large");
        assert!(!told.contains("drawing"), "{told}");
    }
    assert!(!place.path("x.png").exists());
}

#[test]
fn the_list_is_one_line_each() {
    let place = Place::new();
    let text = place.ok("list");
    for word in ["formulations", "rectified_flow", "samplers", "dpmpp_sde_2m", "karras", "unet", "fashion-mnist"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
}

#[test]
fn a_checkpoint_of_the_reference_samples_with_every_solver() {
    let place = Place::new();
    let model = golden("model-1.pt");
    let solvers = place.json("list")["samplers"].as_array().unwrap().len();
    assert_eq!(solvers, 11);
    for solver in place.json("list")["samplers"].as_array().unwrap() {
        let name = solver["name"].as_str().unwrap();
        place
            .ok(&format!("sample {} --image-size 8 -n 1 --sampler {name} --steps 4 --out {name}.npy", model.display()));
    }
}

/// RePaint's own step is ancestral; a sampler that was asked for is taken as it is.
#[test]
fn inpainting_replaces_a_sampler_by_ancestral_steps_and_leaves_those_that_are_named() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out run"));
    place.image("a.png", 8, 8);
    place.image("m.png", 8, 8);
    let eta = |flags: &str, name: &str| {
        let flags = format!("inpaint run --images a.png --mask m.png --steps 2 --out {name}.png {flags}");
        place.json(&flags)["details"]["repaint"]["step"].to_string()
    };
    assert!(eta("", "a1").contains("1.0"), "{}", eta("", "a2"));
    assert!(eta("--sampler ddim", "b1").contains("0.0"), "{}", eta("--sampler ddim", "b2"));
    assert!(eta("--eta 0.5", "c1").contains("0.5"), "{}", eta("--eta 0.5", "c2"));
}
