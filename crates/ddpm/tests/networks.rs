//! Networks other than the U-Net at the command line: planned, trained, resumed, sampled, measured, told about.

mod common;

use common::Place;

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
    place.fails("train digits --model dit --dim 8 --dry-run", 2, "the section [unet] says something");
    place.fails("train digits --patch-size 3 --dry-run", 2, "`model = \"unet\"`");
    place.fails("train digits --model dit --patch-size 3 --dry-run", 2, "patches of 3x3 do not tile");
    let plan = place.ok("train digits --model dit --dit-size b --dry-run");
    assert!(plan.contains("DiT, 12 blocks of width 768 with 12 heads"), "{plan}");
}
