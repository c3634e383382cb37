//! Data that are brought to samples, or samples to them, are prepared as in training, from whatever file the network comes.

mod common;

use common::{Place, TINY};
use denoising_diffusion::data::npy::read_npy_f32;

/// Trains on stretched images: eight wide and four high, at 4x4.
fn stretched(place: &Place) {
    for i in 0..50 {
        let picture = image::GrayImage::from_fn(8, 4, |x, y| image::Luma([(i * 5 + x * 30 * (y + 1) % 90) as u8]));
        let path = place.write(&format!("wide/{i:02}.png"), []);
        picture.save(path).unwrap();
    }
    place.ok(&format!("train wide --image-size 4 --resize stretch --held-out 0 {TINY} --steps 2 --out run"));
}

fn values(place: &Place, name: &str) -> Vec<f32> {
    read_npy_f32(&place.path(name)).unwrap().1
}

#[test]
fn a_checkpoint_knows_how_its_images_were_fitted() {
    let place = Place::new();
    stretched(&place);
    let checkpoint = "run/checkpoints/step-00000002";
    let swd = |what: &str| {
        let evaluation = place.json(&format!("eval {what} --metrics swd -n 4 --steps 2"));
        evaluation["measurements"][0]["value"].as_f64().unwrap()
    };
    let of_run = swd("run");
    assert_eq!(swd(&format!("{checkpoint} wide")), of_run);
    assert_eq!(swd(&format!("{checkpoint}/ema.safetensors wide")), of_run);
    for (from, out) in [("run", "a.npy"), (checkpoint, "b.npy")] {
        place.ok(&format!("vary {from} --images wide --strength 0.3 --steps 2 --out {out}"));
    }
    assert_eq!(values(&place, "a.npy"), values(&place, "b.npy"));
}

/// The left quarter of the mask is the left column of stretched images, and lies outside of cropped ones.
#[test]
fn masks_are_fitted_as_the_images() {
    let place = Place::new();
    stretched(&place);
    let mask = image::GrayImage::from_fn(8, 4, |x, _| image::Luma([if x < 2 { 0 } else { 255 }]));
    mask.save(place.path("mask.png")).unwrap();
    let draw = |what: &str, out: &str| {
        place.ok(&format!("{what} --steps 2 --sampler ddim --eta 0 --out {out}"));
        values(&place, out)
    };
    for from in ["run", "run/checkpoints/step-00000002"] {
        let filled =
            draw(&format!("inpaint {from} --images wide/07.png --mask mask.png --jump-n-sample 1"), "filled.npy");
        let white = draw(&format!("inpaint {from} --images wide/07.png --mask mask.png --seed 1"), "other.npy");
        let column = |x: usize| (0..4).map(move |y| 4 * y + x);
        assert!(column(0).all(|i| filled[i] != white[i]) && column(3).all(|i| filled[i] == white[i]), "{from}");
        for name in ["filled.npy", "other.npy"] {
            std::fs::remove_file(place.path(name)).unwrap();
        }
    }
}

/// What a run's images belonged to is that of its own data, and classifiers are told nothing of it.
#[test]
fn classifiers_of_other_data_need_nothing_that_the_run_was_told() {
    let place = Place::new();
    for i in 0..8 {
        for folder in ["plain", "other/cats", "other/dogs"] {
            place.image(&format!("{folder}/{i}.png"), 8, 8);
        }
    }
    place.ok(&format!("train plain --condition plain --condition-channels 1 {TINY} --steps 1 --out run"));
    place.ok("train-classifier other --like run --dim 4 --dim-mults 1 --steps 1 --batch-size 4 --out c.safetensors");
}
