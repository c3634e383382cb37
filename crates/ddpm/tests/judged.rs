//! `ddpm eval RUN DATA`: other data than the run's, and what of it fits the network.

mod common;

use common::{Place, TINY, stderr};
use image::{GrayImage, Luma};

/// A folder per class of pictures that differ by class and number.
fn folders(place: &Place, root: &str, classes: &[(&str, u32)]) {
    for &(name, count) in classes {
        let folder = place.path(root).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let shade = name.bytes().map(u32::from).sum::<u32>();
        for number in 0..count {
            let value = |x: u32, y: u32| ((x * (3 + number) + y * shade + 17 * number) % 256) as u8;
            GrayImage::from_fn(8, 8, |x, y| Luma([value(x, y)])).save(folder.join(format!("{number}.png"))).unwrap();
        }
    }
}

/// A tiny training with so many steps that classes make a difference.
fn train(place: &Place, args: &str) {
    place.ok(&format!("train {args} --steps 3 --lr 0.05 --held-out 0 {TINY}"));
}

fn loss(place: &Place, args: &str) -> f64 {
    place.json(&format!("eval {args} --metrics loss"))["loss"]["mean"].as_f64().unwrap()
}

#[test]
fn classes_of_other_data_are_known_by_their_names() {
    let place = Place::new();
    folders(&place, "all", &[("ant", 4), ("bee", 4), ("cat", 4)]);
    train(&place, "all --class-condition --out run");
    // The same images under the same names, without the first class: numbers begin at 0 again.
    folders(&place, "some", &[("bee", 4), ("cat", 4)]);
    folders(&place, "renamed", &[("bee", 4), ("cat", 4)]);
    std::fs::rename(place.path("renamed/bee"), place.path("renamed/ant")).unwrap();
    std::fs::rename(place.path("renamed/cat"), place.path("renamed/bee")).unwrap();
    assert_ne!(loss(&place, "run some"), loss(&place, "run renamed"), "the classes are told");
    // Classes that the network does not know: not used, and said.
    folders(&place, "others", &[("bee", 4), ("dog", 4), ("eel", 4), ("fox", 4), ("gnu", 4)]);
    let output = place.run("eval run others --metrics loss");
    let said = stderr(&output);
    assert!(
        output.status.success() && said.contains("not those that the network") && said.contains("ignores the classes"),
        "{said}"
    );
    std::fs::create_dir(place.path("flat")).unwrap();
    for (number, class) in ["bee", "cat"].into_iter().enumerate() {
        for image in 0..4 {
            let name = place.path(&format!("flat/{}.png", number * 4 + image));
            std::fs::copy(place.path(&format!("some/{class}/{image}.png")), name).unwrap();
        }
    }
    assert_ne!(loss(&place, "run some"), loss(&place, "run flat"), "of no class");
}

#[test]
fn a_network_with_conditions_is_not_judged_on_data_without() {
    let place = Place::new();
    folders(&place, "data", &[("ant", 6)]);
    train(&place, "data --condition data --out run");
    place.fails("eval run data --condition data -n 4 --steps 1 --metrics loss", 2, "takes a condition");
    let text = place.ok("eval run data --condition data -n 4 --steps 1 --metrics swd");
    assert!(text.contains("swd"), "{text}");
    let output = place
        .command("eval run data --condition data -n 4 --steps 1")
        .env("DDPM_INCEPTION_URL", "http://127.0.0.1:9/x")
        .output();
    let output = output.unwrap();
    let (text, said) = (String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output));
    assert!(output.status.success() && text.contains("swd") && said.contains("skipping loss and bpd"), "{text}{said}");
}

#[test]
fn a_neighbour_is_named_by_its_place_in_the_data() {
    let place = Place::new();
    place.ok(&format!("train digits --steps 1 --held-out 0.3 --out run {TINY}"));
    let found = place.json("eval run -n 6 --steps 1 --metrics neighbours --report page.html");
    let closest = found["neighbours"]["closest"].as_array().unwrap();
    place.ok("sample run -n 6 --steps 1 --out samples.npy");
    let (_, samples) = denoising_diffusion::data::npy::read_npy_f32(&place.path("samples.npy")).unwrap();
    let digits = denoising_diffusion::data::Dataset::open(&denoising_diffusion::data::DataConfig::default()).unwrap();
    assert!(!closest.is_empty());
    for pair in closest {
        let at = |key: &str| pair[key].as_u64().unwrap() as usize;
        let image = digits.get(at("training")).unwrap().pixels;
        // In 8 bits, as samples are measured.
        let sample =
            samples[at("generated") * image.len()..].iter().map(|v| (v.clamp(0.0, 1.0) * 255.0).round() / 255.0);
        let squares: f64 = sample.zip(&image).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let distance = (squares / image.len() as f64).sqrt();
        assert!((distance - pair["distance"].as_f64().unwrap()).abs() < 1e-4, "{pair}: {distance}");
    }
}

/// Divided anew, images that the run was trained on would be held out.
#[test]
fn a_run_is_not_judged_on_held_out_images_if_its_data_have_changed() {
    let place = Place::new();
    folders(&place, "all", &[("ant", 20), ("bee", 20)]);
    place.ok(&format!("train all --steps 2 --held-out 0.2 --out run {TINY}"));
    let on = || place.json("eval run --metrics loss")["loss"]["on"].clone();
    assert_eq!(on(), "held_out");
    folders(&place, "all/more", &[("cat", 10)]);
    let said = stderr(&place.run("eval run --metrics loss"));
    assert!(said.contains("the data have changed since the run was trained"), "{said}");
    assert_eq!(on(), "given");
}
