//! What happens to a run when it is interrupted, killed, damaged or out of space.
#![cfg(unix)]

mod common;

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Place, TINY, assert_same, stderr, wait_until};

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

#[test]
fn ctrl_c_writes_a_checkpoint_and_says_how_to_go_on() {
    let place = Place::new();
    let child = place.spawn(&format!("train digits {TINY} --steps 100000 --out run --json"));
    wait_until("the first step", || std::fs::read_to_string(place.path("stderr")).unwrap().contains("train 1/"));
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let said = std::fs::read_to_string(place.path("stderr")).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("ddpm train --resume run") && !said.contains("error:"), "{said}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["outcome"], "interrupted");
    let step = result["step"].as_u64().unwrap();
    assert!(step >= 1);
    let resumed = place.json(&format!("train --resume run --steps {}", step + 1));
    assert_eq!(resumed["step"], step + 1);
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let place = Place::new();
    // One step of this takes minutes.
    let mut child = place.spawn("train digits --dim 32 --dim-mults 1,2 --batch-size 64 --accumulate 1000 --out run");
    wait_until("the log", || place.path("run/log.jsonl").is_file());
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "-INT");
    signal(&child, "-INT"); // as one with the first
    std::thread::sleep(Duration::from_millis(600));
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!place.path("run/checkpoints").exists());
}

#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let place = Place::new();
    // What `nohup` does, without its redirections.
    let script = format!("trap '' HUP; exec {} train digits {TINY} --steps 300 --out run", env!("CARGO_BIN_EXE_ddpm"));
    let file = std::fs::File::create(place.path("stderr")).unwrap();
    let mut child = Command::new("sh").args(["-c", &script]).current_dir(place.path("")).stderr(file).spawn().unwrap();
    let said = || std::fs::read_to_string(place.path("stderr")).unwrap();
    wait_until("the first step", || said().contains("train 1/"));
    signal(&child, "-HUP");
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", said());
    assert!(!said().contains("press Ctrl-C again"), "{}", said());
    assert!(place.path("run/checkpoints/step-00000300").is_dir());
}

#[test]
fn an_interrupted_run_equals_one_in_one_go() {
    let place = Place::new();
    let flags = format!("{TINY} --save-every 20");
    let child = place.spawn(&format!("train digits {flags} --steps 2000 --out parts --json"));
    wait_until("the first step", || std::fs::read_to_string(place.path("stderr")).unwrap().contains("train 1/"));
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = (result["step"].as_u64().unwrap() / 20 + 1) * 20;
    place.ok(&format!("train --resume parts --steps {steps} --keep 1"));
    place.ok(&format!("train digits {flags} --steps {steps} --keep 1 --out whole"));
    assert_same(&place.path("whole"), &place.path("parts"));
}

#[test]
fn ctrl_c_while_samples_are_drawn_leaves_them_to_the_resumed_run() {
    let place = Place::new();
    let many = TINY.replace("--num-samples 2", "--num-samples 150 --sample-batch-size 1");
    let flags = format!("train digits {many} --steps 5 --save-every 3");
    let child = place.spawn(&format!("{flags} --out parts"));
    // The held-out loss is noted just before the grid of the same step.
    wait_until("the grid", || std::fs::read_to_string(place.path("stderr")).unwrap().contains("held-out loss"));
    signal(&child, "-INT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert!(place.path("parts/checkpoints/step-00000003").is_dir());
    assert!(!place.path("parts/samples/step-00000003.png").exists());
    place.ok("train --resume parts");
    assert!(place.path("parts/samples/step-00000003.png").exists());
    place.ok(&format!("{flags} --out whole"));
    assert_same(&place.path("whole"), &place.path("parts"));
}

#[test]
fn a_run_killed_at_any_moment_goes_on_to_the_same_end() {
    let place = Place::new();
    let flags = format!("train digits {TINY} --steps 40 --save-every 7 --sample-every 9 --held-out-every 11");
    place.ok(&format!("{flags} --out whole"));
    let mut args = format!("{flags} --out parts");
    for _ in 0..6 {
        let mut child = place.spawn(&args);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        wait_until("the run folder", || place.path("parts/config.toml").is_file());
        std::thread::sleep(Duration::from_millis(u64::from(clock / 1000 % 400)));
        child.kill().unwrap();
        child.wait().unwrap();
        args = "train --resume parts".to_string();
    }
    place.ok("train --resume parts");
    assert_same(&place.path("whole"), &place.path("parts"));
}

/// A run with checkpoints of steps 2, 4 and 6.
fn run_of_three(place: &Place) {
    place.ok(&format!("train digits {TINY} --steps 6 --save-every 2 --out run"));
}

fn change_a_byte(path: &Path, at: u64) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let place = Place::new();
    run_of_three(&place);
    let cut = place.path("run/checkpoints/step-00000006/adam.safetensors");
    let half = cut.metadata().unwrap().len() / 2;
    OpenOptions::new().write(true).open(&cut).unwrap().set_len(half).unwrap();
    let altered = place.path("run/checkpoints/step-00000004/ema.safetensors");
    change_a_byte(&altered, altered.metadata().unwrap().len() - 5);

    let step_of_samples = || place.json("sample run -n 1")["step"].as_u64().unwrap();
    assert_eq!(step_of_samples(), 6, "its average is whole");
    let average = place.path("run/checkpoints/step-00000006/ema.safetensors");
    change_a_byte(&average, average.metadata().unwrap().len() - 5);
    assert_eq!(step_of_samples(), 2);
    place.fails("sample run/checkpoints/step-00000004 --out x.png", 1, "changed after");

    let output = place.run("train --resume run");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    for (step, problem) in [("step-00000006", "cut off"), ("step-00000004", "was changed")] {
        assert!(said.contains(step) && said.contains(problem), "{said}");
    }
    assert!(said.contains("continuing from step 2"), "{said}");
}

#[test]
fn without_a_whole_checkpoint_every_damaged_one_is_named() {
    let place = Place::new();
    run_of_three(&place);
    for step in [2, 4, 6] {
        std::fs::write(place.path(&format!("run/checkpoints/step-0000000{step}/state.json")), "{").unwrap();
    }
    let text = place.fails("train --resume run", 1, "no checkpoint");
    assert_eq!(text.matches("damaged:").count(), 3, "{text}");
}

#[test]
fn a_full_disk_leaves_the_previous_checkpoint_whole() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 2 --out run"));
    let before = common::contents(&place.path("run/checkpoints"));
    let limit = place.path("run/checkpoints/step-00000002/ema.safetensors").metadata().unwrap().len() / 512;
    // Writing beyond the limit fails as on a full disk, with another code.
    let program = env!("CARGO_BIN_EXE_ddpm");
    let script = format!("trap '' XFSZ; ulimit -f {}; exec {} train --resume run --steps 4", limit / 2, program);
    let output = Command::new("sh").args(["-c", &script]).current_dir(place.path("")).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
    assert!(said.contains("step 4 could not be written") && said.contains("step-00000002, is intact"), "{said}");
    assert!(said.contains("hint:") && said.contains("--resume run"), "{said}");
    assert!(before == common::contents(&place.path("run/checkpoints")));
    assert_eq!(place.json("train --resume run --steps 4")["step"], 4);
}

#[test]
fn ctrl_c_during_an_evaluation_leaves_it_to_the_resumed_run() {
    let place = Place::new();
    let tiny = format!("{TINY} --sample-batch-size 1");
    let flags = format!(
        "train digits {tiny} --steps 5 --save-every 3 --evaluate-every 3 --metrics swd,loss --evaluate-samples 150"
    );
    let child = place.spawn(&format!("{flags} --out parts"));
    // The expected time is told just before.
    wait_until("the evaluation", || std::fs::read_to_string(place.path("stderr")).unwrap().contains("evaluation: 150"));
    signal(&child, "-INT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert!(place.path("parts/checkpoints/step-00000003").is_dir());
    let evaluations = |run: &str| {
        let log = String::from_utf8(place.read(&format!("{run}/log.jsonl"))).unwrap();
        log.lines().filter(|line| line.contains("\"kind\":\"evaluation\"")).count()
    };
    assert_eq!(evaluations("parts"), 0);
    place.ok("train --resume parts");
    assert_eq!(evaluations("parts"), 2, "at step 3 and at the last");
    place.ok(&format!("{flags} --out whole"));
    assert_same(&place.path("whole"), &place.path("parts"));
    let best = |run: &str| [3, 5].map(|step| place.path(&format!("{run}/checkpoints/step-{step:08}/best")).exists());
    assert_eq!(best("parts"), best("whole"));
}

#[test]
fn a_curve_that_cannot_be_drawn_ends_nothing() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 2 --out run"));
    std::fs::remove_file(place.path("run/loss.svg")).unwrap();
    std::fs::create_dir_all(place.path("run/loss.svg/in")).unwrap();
    let output = place.run("train --resume run --steps 4");
    let words = stderr(&output);
    assert!(output.status.success() && words.contains("warning: the loss curve could not be drawn"), "{words}");
    assert!(place.path("run/checkpoints/step-00000004").is_dir());
}
