//! `ddpm train --augment`: training images are transformed, and the network is told how.

mod common;

use common::{Place, TINY, assert_same};

#[test]
fn an_augmented_run_resumes_and_is_used_as_any_other() {
    let place = Place::new();
    let steps = |run: &str, n: u32, threads: u32| {
        let flags = format!("--augment 0.5 --flip on --save-every 3 --steps {n} --threads {threads}");
        place.ok(&format!("train digits {TINY} {flags} --out {run}"))
    };
    steps("whole", 9, 2);
    steps("parts", 3, 1);
    place.ok("train --resume parts --steps 9 --threads 2");
    assert_same(&place.path("whole"), &place.path("parts"));

    let sample = |target: &str, out: &str| {
        place.ok(&format!("sample {target} -n 2 --steps 3 --out {out}"));
        place.read(out)
    };
    let direct = sample("whole", "direct.npy");
    // The reference knows nothing of augmentation, and without any its network is the same.
    place.ok("convert whole --to reference --out theirs.safetensors");
    let told = "--image-size 8 --timesteps 8 --objective pred_v --beta-schedule sigmoid";
    assert_eq!(direct, sample(&format!("theirs.safetensors {told}"), "theirs.npy"));
    assert_ne!(direct, {
        place.ok(&format!("train digits {TINY} --flip on --steps 9 --out plain"));
        sample("plain", "plain.npy")
    });
    place.ok("train digits --init-from plain --augment 0.1 --batch-size 4 --num-samples 2 --steps 1 --out tuned");
}

#[test]
fn what_cannot_be_augmented_is_refused() {
    let place = Place::new();
    place.fails("train digits --augment 2", 2, "`augment`");
    place.fails("train digits --augment 0.1 --model karras_unet --diffusion elucidated", 2, "karras_unet");
    place.write("r.toml", "[unet]\naugment_labels = true\n");
    place.fails("train digits --config r.toml", 2, "`augment`");
}
