//! Units of data: what a network is shown later is read by the range that it was trained with, not by a range of its own.

mod common;

use common::{Place, TINY, largest_difference};
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

/// A `.npy` array of bytes.
fn write_bytes(place: &Place, name: &str, shape: &str, values: &[u8]) {
    let mut header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    place.write(name, [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes(), values].concat());
}

#[test]
fn sequences_of_bytes_come_back_as_bytes() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..160).map(|i| (i * 37 % 251) as u8).collect();
    write_bytes(&place, "bytes.npy", "10, 1, 16", &bytes);
    write_npy_f32(&place.path("white.npy"), &[1, 1, 16], &[1.0; 16]).unwrap();
    let small = "--model unet1d --dim 4 --dim-mults 1 --timesteps 8 --batch-size 4 --num-samples 2 --steps 1";
    place.ok(&format!("train bytes.npy {small} --out run"));
    place.ok("inpaint run --images bytes.npy --mask white.npy --jump-n-sample 1 --steps 2 --out back.npy");
    let expected: Vec<f32> = bytes.iter().map(|&byte| byte.into()).collect();
    assert!(largest_difference(&values(&place, "back.npy"), &expected) < 1e-2);
    // As numbers of another type they are in the same units.
    write_npy_f32(&place.path("floats.npy"), &[10, 1, 16], &expected).unwrap();
    let swd = |data: &str| {
        place.json(&format!("eval run {data} --metrics swd -n 4 --steps 2"))["measurements"][0]["value"]
            .as_f64()
            .unwrap()
    };
    let [of_bytes, of_floats] = [swd("bytes.npy"), swd("floats.npy")];
    assert!((of_bytes / of_floats - 1.0).abs() < 1e-3, "{of_bytes} {of_floats}");
}

#[test]
fn a_run_does_not_go_on_with_the_same_numbers_in_other_units() {
    let place = Place::new();
    waves(&place, "data.npy", &[20, 1, 16], [-3.0, 7.0]);
    let small = "--model unet1d --dim 4 --dim-mults 1 --timesteps 8 --batch-size 4 --num-samples 2";
    place.ok(&format!("train data.npy {small} --steps 1 --out run"));
    waves(&place, "data.npy", &[20, 1, 16], [-12.0, 28.0]);
    place.fails("train --resume run --steps 2", 1, "-12,28");
}

#[test]
fn volumes_are_sized_by_their_slices() {
    let place = Place::new();
    waves(&place, "volumes.npy", &[6, 1, 4, 8, 8], [0.0, 1.0]);
    let small = "--model karras_unet --dim 8 --num-downsamples 1 --num-blocks-per-stage 1 --diffusion elucidated";
    place.ok(&format!("train volumes.npy {small} --steps 1 --batch-size 2 --num-samples 1 --out run"));
    place.ok("sample run --image-size 8 -n 1 --steps 1 --out same.npy");
    assert_eq!(read_npy_f32(&place.path("same.npy")).unwrap().0, [1, 1, 4, 8, 8]);
}
