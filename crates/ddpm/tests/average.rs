//! Averages that a run keeps, and those of other lengths that are made of them.

mod common;

use std::fs;

use common::{Place, TINY, assert_same, largest_difference};
use denoising_diffusion::interop::read_safetensors;
use denoising_diffusion::weights::StateDict;

const KEPT: &str = "--post-hoc-every 1 --lr 0.01 --save-every 3 --post-hoc-sigma-rels";

fn tensors(place: &Place, name: &str) -> StateDict {
    read_safetensors(&place.path(name)).unwrap().0
}

/// The largest difference of two values.
fn distance(a: &StateDict, b: &StateDict) -> f32 {
    let values = |state: &StateDict| state.iter().flat_map(|(_, tensor)| tensor.values.clone()).collect::<Vec<_>>();
    largest_difference(&values(a), &values(b))
}

#[test]
fn an_average_that_nobody_kept_is_made_of_those_that_somebody_did() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} {KEPT} 0.05,0.1 --steps 12 --out run"));
    place.ok(&format!("train digits {TINY} {KEPT} 0.07 --steps 12 --out other"));
    let made = place.json("average run --sigma-rel 0.07 --out made.safetensors");
    assert_eq!((made["step"].as_u64(), made["snapshots"].as_u64()), (Some(12), Some(24)));
    assert!(made["relative_error"].as_f64().unwrap() < 0.05, "{made}");
    let last = |run: &str, sigma_rel: &str| {
        tensors(&place, &format!("{run}/snapshots/step-00000012/ema-{sigma_rel}.safetensors"))
    };
    let (made, truth) = (tensors(&place, "made.safetensors"), last("other", "0.07"));
    let nearest = distance(&last("run", "0.05"), &truth).min(distance(&last("run", "0.1"), &truth));
    assert!(distance(&made, &truth) < 0.005 * nearest, "{} of {nearest}", distance(&made, &truth));

    // Of an earlier step; one that was kept.
    place.ok("average run --sigma-rel 0.1 --step 6 --out earlier.safetensors");
    let kept = tensors(&place, "run/snapshots/step-00000006/ema-0.1.safetensors");
    assert!(distance(&tensors(&place, "earlier.safetensors"), &kept) < 1e-6);

    // What comes out is a network like any other.
    let info = place.json("info made.safetensors");
    assert_eq!(info["card"]["ema_sigma_rel"], 0.07);
    place.ok("sample made.safetensors -n 1 --steps 1 --out made.png");
    place.ok("sample run/snapshots/step-00000003/ema-0.05.safetensors -n 1 --steps 1 --out kept.png");
}

#[test]
fn a_run_that_goes_on_keeps_the_same_averages() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} {KEPT} 0.05,0.1 --steps 6 --out whole"));
    place.ok(&format!("train digits {TINY} {KEPT} 0.05,0.1 --steps 6 --out resumed"));
    fs::remove_dir_all(place.path("resumed/checkpoints/step-00000006")).unwrap();
    // What was kept behind the checkpoint is not to be trusted, and a killed process leaves half of a folder.
    fs::write(place.path("resumed/snapshots/step-00000004/ema-0.05.safetensors"), "").unwrap();
    for folder in ["step-00000009", ".writing-step-00000006"] {
        fs::create_dir(place.path(&format!("resumed/snapshots/{folder}"))).unwrap();
    }
    let third = place.path("resumed/snapshots/step-00000003/ema-0.05.safetensors");
    let written = fs::metadata(&third).unwrap().modified().unwrap();
    place.ok("train --resume resumed");
    assert_same(&place.path("whole"), &place.path("resumed"));
    assert_eq!(fs::metadata(&third).unwrap().modified().unwrap(), written, "what was whole was written again");
    let info = place.ok("info resumed");
    assert!(info.contains("6 of steps 1 to 6"), "{info}");
}

#[test]
fn what_cannot_be_averaged_is_told() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 2 --save-every 1 --out without"));
    let text = place.fails("average without --sigma-rel 0.1 --out a.safetensors", 1, "there are no snapshots in");
    assert!(text.contains("--post-hoc-sigma-rels"), "{text}");
    place.fails("average nowhere --sigma-rel 0.1 --out a.safetensors", 1, "nowhere is not a run folder");
    place.ok(&format!("train digits {TINY} {KEPT} 0.05,0.1 --steps 2 --out run"));
    place.fails("average run --sigma-rel 0.3 --out a.safetensors", 2, "at most 0.2886, got 0.3");
    place.fails("average run --sigma-rel 0.1 --step 7 --out a.safetensors", 1, "the nearest one is of step 2");
    place.fails("average run --sigma-rel 0.1 --out a.png", 2, "must end in .safetensors");
    place.ok("average run --sigma-rel 0.1 --out a.safetensors");
    place.ok("average run --sigma-rel 0.1 --out new/folder/a.safetensors");
    place.fails("average run --sigma-rel 0.1 --out a.safetensors", 2, "exists");
    fs::copy(
        place.path("without/checkpoints/step-00000002/ema.safetensors"),
        place.path("run/snapshots/step-00000002/x.safetensors"),
    )
    .unwrap();
    place.fails("average run --sigma-rel 0.1 --out b.safetensors", 1, "x.safetensors is not a snapshot of step 2");
    fs::remove_file(place.path("run/snapshots/step-00000002/x.safetensors")).unwrap();
    fs::write(place.path("run/snapshots/step-00000001/ema-0.1.safetensors"), "half").unwrap();
    let text = place.fails("average run --sigma-rel 0.1 --out b.safetensors", 1, "step-00000001/ema-0.1.safetensors");
    assert!(text.contains("move the folder of this snapshot"), "{text}");
    fs::remove_dir_all(place.path("run/snapshots/step-00000001")).unwrap();
    place.ok("average run --sigma-rel 0.1 --out b.safetensors");
    fs::create_dir(place.path("run/snapshots/step-00000003")).unwrap();
    place.fails("average run --sigma-rel 0.1 --out c.safetensors", 1, "step-00000003 is not a snapshot of step 3");

    let train = |flags: &str| format!("train digits {TINY} --steps 2 --out refused {flags}");
    place.fails(
        &train("--post-hoc-sigma-rels 0.5"),
        2,
        "sigma_rel must be at least 0.0001 and at most 0.2886, got 0.5",
    );
    place.fails(&train("--post-hoc-sigma-rels 0.1,0.1"), 2, "contains 0.1 twice");
    place.fails(&train("--post-hoc-every 5"), 2, "`post_hoc_sigma_rels` is empty");
    place.fails("train --resume run --post-hoc-sigma-rels 0.2", 2, "cannot be given with --resume");
    let config = String::from_utf8(place.read("without/config.toml")).unwrap();
    place.write(
        "without/config.toml",
        config.replace("post_hoc_sigma_rels = []", "post_hoc_sigma_rels = [0.1]").as_bytes(),
    );
    place.fails(
        "train --resume without --steps 3",
        1,
        "`post_hoc_sigma_rels` is 0.1, but the checkpoint was made with",
    );
}
