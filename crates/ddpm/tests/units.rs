//! Units of data: what a network is shown later is read by the range that it was trained with, not by a range of its own.

mod common;

use common::{Place, TINY};
use denoising_diffusion::data::npy::{read_npy_f32, write_npy_f32};

/// Waves of values from `low` to `high`.
fn waves(place: &Place, name: &str, shape: &[usize], [low, high]: [f32; 2]) {
    let value = |i: usize| low + (high - low) * (0.5 + 0.5 * (0.7 * i as f32).sin());
    let mut values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    (values[0], values[1]) = (low, high);
    write_npy_f32(&place.path(name), shape, &values).unwrap();
}

fn values(place: &Place, name: &str) -> Vec<f32> {
    read_npy_f32(&place.path(name)).unwrap().1
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn sequences_are_compared_and_changed_in_the_units_of_training() {
    let place = Place::new();
    waves(&place, "trained.npy", &[20, 1, 16], [-3.0, 7.0]);
    waves(&place, "narrow.npy", &[20, 1, 16], [1.0, 1.5]);
    waves(&place, "other.npy", &[20, 1, 16], [70.0, 170.0]);
    write_npy_f32(&place.path("white.npy"), &[1, 1, 16], &[1.0; 16]).unwrap();
    let small = "--model unet1d --dim 4 --dim-mults 1 --timesteps 8 --batch-size 4 --num-samples 2 --steps 1";
    for (run, range) in [("auto", ""), ("measured", "--value-range measured"), ("declared", "--value-range=-3,7")] {
        place.ok(&format!("train trained.npy {small} {range} --out {run}"));
        let swd = |data: &str| {
            let eval = format!("eval {run} {data} --metrics swd -n 4 --steps 2");
            place.json(&eval)["measurements"][0]["value"].as_f64().unwrap()
        };
        let (whole, narrow) = (swd("trained.npy"), swd("narrow.npy"));
        assert!((whole - narrow).abs() > 0.01 * whole, "{run}: each was read by its own range: {whole}, {narrow}");
        place.fails(&format!("eval {run} other.npy --metrics swd -n 4 --steps 2"), 1, "from 70 to 170");
        place.fails(&format!("vary {run} --images other.npy --out x.npy --steps 2"), 1, "from 70 to 170");
        let inpaint = format!("inpaint {run} --images narrow.npy --mask white.npy --jump-n-sample 1 --steps 2");
        place.ok(&format!("{inpaint} --out {run}.npy"));
        let (known, filled) = (values(&place, "narrow.npy"), values(&place, &format!("{run}.npy")));
        let apart = largest_difference(&known, &filled);
        assert!(apart < 1e-4, "{run}: known values come back {apart} apart");
    }
}

#[test]
fn conditions_have_a_range_of_their_own_that_is_kept() {
    let place = Place::new();
    waves(&place, "images.npy", &[10, 1, 8, 8], [0.0, 1.0]);
    waves(&place, "heights.npy", &[10, 1, 8, 8], [-40.0, 2000.0]);
    waves(&place, "flat.npy", &[10, 1, 8, 8], [100.0, 110.0]);
    waves(&place, "other.npy", &[10, 1, 8, 8], [-1e6, 1e6]);
    let train = format!("train images.npy --condition heights.npy {TINY} --steps 2 --held-out 0");
    let text = place.fails(&train, 1, "from -40 to 2000");
    assert!(text.contains("--condition-value-range"), "{text}");
    place.ok(&format!("{train} --condition-value-range measured --out run"));
    let sample = |condition: &str, name: &str| {
        place.ok(&format!("sample run --weights model --condition {condition} --steps 2 --out {name}"));
        values(&place, name)
    };
    let apart = largest_difference(&sample("heights.npy", "a.npy"), &sample("flat.npy", "b.npy"));
    assert!(apart > 1e-4, "each was read by its own range: {apart}");
    place.fails("sample run --condition other.npy --steps 2", 1, "the network was trained on values from -40 to 2000");
    place.ok("eval run --metrics swd -n 4 --steps 2");
}
