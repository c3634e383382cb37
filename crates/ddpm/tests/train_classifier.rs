//! A classifier trained at the command line, like the network that it is to guide.

mod common;

use common::{Place, TINY};
use denoising_diffusion::classifier_file::ClassifierFile;
use denoising_diffusion::data::npy::write_npy_f32;

const FEW: &str = "--steps 4 --batch-size 8 --dim 4";

fn with_run() -> Place {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out run"));
    place
}

#[test]
fn a_classifier_is_trained_like_a_run_and_written_to_a_file() {
    let place = with_run();
    let result = place.json(&format!("train-classifier digits --like run --out models/a.safetensors {FEW}"));
    assert_eq!((&result["outcome"], &result["step"]), (&"finished".into(), &4.into()));
    assert_eq!((result["classes"].as_array().unwrap().len(), &result["classes"][9]), (10, &"9".into()));
    assert_eq!((&result["held_out_images"], result["accuracy_by_quarter"].as_array().unwrap().len()), (&90.into(), 4));
    let card = ClassifierFile::read(&place.path("models/a.safetensors")).unwrap().card;
    assert_eq!((card.step, card.image.to_string(), card.classifier.num_classes), (4, "1x8x8".into(), 10));
    assert_eq!(card.diffusion.timesteps(), Some(8));
    assert_eq!(card.held_out.unwrap().accuracy, result["accuracy"].as_f64().unwrap());

    // The run's own data, one thread: the same bytes.
    let text = place.ok(&format!("train-classifier --like run --out b.safetensors {FEW} --threads 1"));
    assert!(text.contains("by noise") && text.contains("4 of 4"), "{text}");
    assert!(place.read("models/a.safetensors") == place.read("b.safetensors"));
    place.fails(&format!("train-classifier --like run --out b.safetensors {FEW}"), 2, "--force");
    place.ok(&format!("train-classifier --like run --out b.safetensors {FEW} --seed 1 --dropout 0.1 --force"));
    assert!(place.read("models/a.safetensors") != place.read("b.safetensors"));
}

#[test]
fn networks_of_edm_can_be_guided_and_those_with_a_learned_schedule_cannot() {
    let place = Place::new();
    let tiny = TINY.replace("--timesteps 8", "--sampling-timesteps 2");
    place.ok(&format!("train digits {tiny} --diffusion elucidated --steps 1 --out run"));
    place.ok(&format!("train-classifier --like run --out a.safetensors {FEW}"));
    let learned = "--diffusion continuous_time --noise-schedule learned";
    place.ok(&format!("train digits {tiny} {learned} --steps 1 --out learned"));
    place.fails(&format!("train-classifier --like learned --out b.safetensors {FEW}"), 2, "is learned");
}

#[test]
fn what_gives_no_classifier_is_refused_before_training() {
    let place = with_run();
    let fails =
        |args: &str, code, part: &str| place.fails(&format!("train-classifier {args} --out c.safetensors"), code, part);
    let array = |name: &str, shape: &[usize]| {
        write_npy_f32(&place.path(name), shape, &vec![0.5; shape.iter().product()]).unwrap();
    };
    array("plain.npy", &[50, 1, 8, 8]);
    array("colour.npy", &[50, 3, 8, 8]);
    let text = fails("plain.npy --like run", 1, "plain.npy has no classes");
    assert!(text.contains("--labels"), "{text}");
    let text = fails("colour.npy --like run", 1, "as images of 1x8x8");
    assert!(text.contains("3"), "{text}");
    for i in 0..4 {
        place.image(&format!("one/a/{i}.png"), 8, 8);
    }
    fails("one --like run", 1, "only one class, `a`");
    fails("digits --like nowhere", 1, "nowhere");
    fails("digits --like run --dim-mults 1,2,4,8,16", 2, "multiples of 16");
    fails("digits --like run --dropout 1", 2, "`dropout`");
    fails("digits --like run --lr 0", 2, "`lr`");
    fails("digits --like run --steps 0", 2, "`steps`");
    fails("digits --like run --batch-size 5000", 1, "--batch-size");
    let latest = "run/checkpoints/step-00000001/ema.safetensors";
    fails(&format!("--like {latest}"), 2, "no DATA");
    place.ok(&format!("train-classifier digits --like {latest} --out c.safetensors {FEW}"));
    place.fails("sample c.safetensors", 1, "holds a classifier");
    let told = place.ok("info c.safetensors");
    assert!(told.contains("a classifier of noisy images") && told.contains("10: 0, 1, 2"), "{told}");
    assert_eq!(place.json("info c.safetensors")["card"]["classifier"]["num_classes"], 10);
}

#[cfg(unix)]
#[test]
fn ctrl_c_writes_the_classifier_as_it_is() {
    let place = with_run();
    let child =
        place.spawn("train-classifier --like run --out c.safetensors --steps 100000 --batch-size 4 --dim 4 --json");
    let said = || std::fs::read_to_string(place.path("stderr")).unwrap();
    common::wait_until("the first step", || said().contains("train 1/"));
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said());
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let step = result["step"].as_u64().unwrap();
    assert!(result["outcome"] == "interrupted" && step >= 1, "{result}");
    assert_eq!(ClassifierFile::read(&place.path("c.safetensors")).unwrap().card.step, step);
}
