//! What becomes of a run folder that was begun, used or damaged in ways that a run by itself does not bring about. Processes that are killed or
//! interrupted: `durability`.
#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use common::{Place, TINY, assert_same, stderr, wait_until};

/// A run with checkpoints of steps 2, 4 and 6.
fn run_of_three(place: &Place) {
    place.ok(&format!("train digits {TINY} --steps 6 --save-every 2 --out run"));
}

fn checkpoints(place: &Place, run: &str) -> Vec<String> {
    let entries = fs::read_dir(place.path(&format!("{run}/checkpoints"))).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn text(place: &Place, name: &str) -> String {
    String::from_utf8(place.read(name)).unwrap()
}

/// Runs the program, which must succeed; what it said.
fn said(place: &Place, args: &str) -> String {
    let output = place.run(args);
    assert!(output.status.success(), "ddpm {args}\n{}", stderr(&output));
    stderr(&output)
}

#[test]
fn checkpoints_that_cannot_be_read_are_not_taken_for_none() {
    let place = Place::new();
    run_of_three(&place);
    let log = place.read("run/log.jsonl");
    fs::rename(place.path("run/checkpoints"), place.path("elsewhere")).unwrap();
    symlink(place.path("not-mounted"), place.path("run/checkpoints")).unwrap();
    place.fails("train --resume run --steps 8", 1, "cannot read");
    assert!(log == place.read("run/log.jsonl"));

    // The place is there, and empty.
    fs::create_dir(place.path("not-mounted")).unwrap();
    let text = place.fails("train --resume run --steps 8", 1, "a checkpoint of step 2");
    assert!(text.contains("restore the checkpoints"), "{text}");
    assert!(log == place.read("run/log.jsonl"));
    fs::remove_file(place.path("run/checkpoints")).unwrap();
    fs::rename(place.path("elsewhere"), place.path("run/checkpoints")).unwrap();
    assert_eq!(place.json("train --resume run --steps 8")["step"], 8);
}

#[test]
fn a_run_killed_before_its_first_checkpoint_was_there_starts_over() {
    let place = Place::new();
    run_of_three(&place);
    place.ok(&format!("train digits {TINY} --steps 6 --save-every 2 --out killed"));
    let log = text(&place, "killed/log.jsonl");
    let end = log.find("{\"kind\":\"checkpoint\"").unwrap()
        + log[log.find("{\"kind\":\"checkpoint\"").unwrap()..].find('\n').unwrap()
        + 1;
    place.write("killed/log.jsonl", &log[..end]);
    fs::remove_dir_all(place.path("killed/checkpoints")).unwrap();
    place.ok("train --resume killed");
    assert_same(&place.path("run"), &place.path("killed"));
}

#[test]
fn damaged_checkpoints_are_told_and_do_not_count() {
    let place = Place::new();
    run_of_three(&place);
    for step in [4, 6] {
        fs::write(place.path(&format!("run/checkpoints/step-0000000{step}/adam.safetensors")), "").unwrap();
    }
    let said = said(&place, "train --resume run --steps 3 --save-every 1 --keep 1");
    assert!(said.contains("step-00000006, renamed to run/checkpoints/damaged-step-00000006"), "{said}");
    assert_eq!(checkpoints(&place, "run"), ["damaged-step-00000004", "damaged-step-00000006", "step-00000003"]);
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let place = Place::new();
    let mut first = place.spawn(&format!("train digits {TINY} --steps 1000000 --save-every 2 --out run"));
    wait_until("a checkpoint", || place.path("run/checkpoints/step-00000002").is_dir());
    let text = place.fails("train --resume run", 1, "another process trains in run");
    assert!(text.contains("hint:"), "{text}");
    place.fails(&format!("train digits {TINY} --steps 1 --out run"), 1, "exists already");
    first.kill().unwrap();
    first.wait().unwrap();
    let steps = place.json("info run")["card"]["step"].as_u64().unwrap();
    assert!(steps >= 2);
    assert_eq!(place.json(&format!("train --resume run --steps {steps}"))["step"], steps);
}

#[test]
fn a_log_with_lines_that_cannot_be_read_ends_no_run() {
    let place = Place::new();
    run_of_three(&place);
    let log = text(&place, "run/log.jsonl");
    let damaged = log.replacen("{\"kind\":\"step\",\"step\":3", "{\"kind\":\"st{\"kind\":\"step\",\"step\":3", 1);
    place.write("run/log.jsonl", &damaged);
    let said = said(&place, "train --resume run --steps 8");
    assert!(said.contains("not JSON") && said.contains("the original log is now run/log-damaged.jsonl"), "{said}");
    assert_eq!(text(&place, "run/log-damaged.jsonl"), damaged);
    let kept = log.lines().filter(|line| !line.contains("\"kind\":\"step\",\"step\":3"));
    assert!(text(&place, "run/log.jsonl").starts_with(&kept.map(|line| line.to_owned() + "\n").collect::<String>()));
}

#[test]
fn a_run_goes_on_without_its_log() {
    let place = Place::new();
    run_of_three(&place);
    fs::remove_file(place.path("run/log.jsonl")).unwrap();
    let said = said(&place, "train --resume run --steps 7");
    assert!(said.contains("run/log.jsonl was missing") && said.contains("continuing from step 6"), "{said}");
    let log = text(&place, "run/log.jsonl");
    assert!(log.starts_with("{\"kind\":\"start\"") && log.contains("\"step\":7"), "{log}");
}

#[test]
fn runs_that_start_at_once_have_a_folder_each() {
    let place = Place::new();
    let start = |lr: &str| {
        let mut command = place.command(&format!("train digits {TINY} --steps 1 --lr {lr} --json"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let rates = ["0.001", "0.002", "0.003", "0.004"];
    for (process, lr) in rates.map(start).into_iter().zip(rates) {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let config = text(&place, &format!("{}/config.toml", result["run"].as_str().unwrap()));
        assert!(config.contains(&format!("\nlr = {lr}\n")), "{config}");
    }
    assert_eq!(fs::read_dir(place.path("runs")).unwrap().count(), rates.len());
}

#[test]
fn a_folder_that_no_run_came_to_begin_in_is_free() {
    let place = Place::new();
    place.write("run/.config.toml.12-0.ddpm-tmp", "[trai");
    place.ok(&format!("train digits {TINY} --steps 1 --out run"));
    assert!(!place.path("run/.config.toml.12-0.ddpm-tmp").exists());
    // What cannot begin leaves no folder.
    place.fails("train digits --evaluate-every 1 --metrics loss --held-out 0", 2, "--held-out");
    assert!(!place.path("runs/digits-001").exists());
}

#[test]
fn marks_to_keep_are_not_lost() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 6 --save-every 2 --keep 1 --keep-every 4 --out run"));
    assert_eq!(checkpoints(&place, "run"), ["step-00000004", "step-00000006"]);
    // As if killed before the mark was made.
    let mark = place.path("run/checkpoints/step-00000004/keep");
    fs::remove_file(&mark).unwrap();
    place.write("run/checkpoints/step-00000006/keep", "mine");
    place.ok("train --resume run --steps 10");
    assert!(mark.exists());
    assert_eq!(checkpoints(&place, "run"), ["step-00000004", "step-00000006", "step-00000008", "step-00000010"]);
    assert_eq!(place.read("run/checkpoints/step-00000006/keep"), b"mine");
}

#[test]
fn what_was_trained_before_an_error_is_saved() {
    let place = Place::new();
    for i in 0..8 {
        place.image(&format!("data/{i}.png"), 8, 8);
    }
    let flags = format!("{TINY} --cache off --held-out 0 --steps 1000000 --save-every 1000000");
    let child = place.spawn(&format!("train data {flags} --out run"));
    let log = || fs::read_to_string(place.path("run/log.jsonl")).unwrap_or_default();
    wait_until("some steps", || log().contains("\"step\":3,"));
    fs::rename(place.path("data/5.png"), place.path("away.png")).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
    let said = text(&place, "stderr");
    assert!(said.contains("5.png") && said.contains("continue with"), "{said}");
    let saved = checkpoints(&place, "run");
    assert!(saved.len() == 1 && saved[0].as_str() >= "step-00000003", "{saved:?}");
    fs::rename(place.path("away.png"), place.path("data/5.png")).unwrap();
    let steps = place.json("info run")["card"]["step"].as_u64().unwrap();
    place.ok(&format!("train --resume run --steps {}", steps + 1));
}

#[test]
fn restarts_of_a_run_that_diverged_leave_its_checkpoints() {
    let place = Place::new();
    // Steps 2 to 4 are skipped.
    let flags = "--save-every 1 --sample-every 500 --held-out-every 500 --lr 1e30 --keep 1 --max-skipped 3";
    place.fails(&format!("train digits {TINY} {flags} --steps 400 --out run"), 1, "steps in a row");
    let saved = checkpoints(&place, "run");
    assert_eq!(saved, ["step-00000001", "step-00000002", "step-00000003"]);
    for _ in 0..2 {
        place.fails("train --resume run", 1, "steps in a row");
        assert_eq!(checkpoints(&place, "run"), saved);
    }
}

#[test]
fn a_run_goes_on_as_precisely_as_it_began() {
    let place = Place::new();
    let flags =
        "--dim 8 --dim-mults 1,2 --image-size 16 --batch-size 4 --num-samples 1 --sampling-timesteps 2 --log-every 1";
    let train = |steps: u32, out: &str, more: &str| {
        place.ok(&format!("train digits {flags} --precise --steps {steps} --out {out} {more}"));
    };
    train(4, "whole", "--save-every 2");
    train(2, "parts", "--save-every 2");
    place.fails("train --resume parts --steps 4 --precise=false", 2, "--precise cannot be given with --resume");
    place.ok("train --resume parts --steps 4");
    assert_same(&place.path("whole"), &place.path("parts"));
    assert!(text(&place, "parts/config.toml").contains("precise = true"));
}

#[test]
fn settings_that_were_changed_by_hand_are_refused() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 2 --out run"));
    let config = text(&place, "run/config.toml");
    for (from, to, key) in [
        ("batch_size = 4", "batch_size = 8", "`train.batch_size` is 8, but the checkpoint was made with 4"),
        ("accumulate = 1", "accumulate = 2", "`train.accumulate`"),
        ("objective = \"pred_v\"", "objective = \"pred_noise\"", "`diffusion.objective`"),
        ("held_out = 0.05", "held_out = 0.5", "`data.held_out`"),
        ("ema_decay = 0.995", "ema_decay = 0.5", "`ema.ema_decay`"),
    ] {
        assert!(config.contains(from), "{from}: {config}");
        place.write("run/config.toml", config.replace(from, to));
        let said = place.fails("train --resume run --steps 3", 1, key);
        assert!(said.contains("config.toml"), "{said}");
    }
    place.write("run/config.toml", config.replace("steps = 2", "steps = 3"));
    assert_eq!(place.json("train --resume run")["step"], 3);
}

#[test]
fn a_path_that_is_no_text_is_an_error() {
    let place = Place::new();
    let name = std::ffi::OsStr::from_bytes(b"d\xff");
    fs::create_dir(place.path("").join(name)).unwrap();
    place.image("image.png", 8, 8);
    fs::rename(place.path("image.png"), place.path("").join(name).join("image.png")).unwrap();
    for flag in [None, Some("--labels"), Some("--condition"), Some("--vectors")] {
        let mut command = place.command("train");
        let command = match flag {
            None => command.arg(name),
            Some(flag) => command.args(["digits", flag]).arg(name),
        };
        let output = command.args(TINY.split(' ')).args(["--steps", "1", "--dry-run"]).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{flag:?}: {said}");
        assert!(said.contains("is not UTF-8") && said.contains("hint:"), "{flag:?}: {said}");
    }
    // A run folder need not be text.
    let mut command = place.command(&format!("train digits {TINY} --steps 1 --json --out"));
    let output = command.arg(std::ffi::OsStr::from_bytes(b"r\xff")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// The evaluation of a stop's checkpoint is the best, its line is in the log, and the process died there.
#[test]
fn a_checkpoint_that_was_found_the_best_is_logged_whenever_the_process_died() {
    let place = Place::new();
    let flags = "--steps 4 --save-every 100 --evaluate-every 2 --metrics loss --evaluate-samples 8";
    place.ok(&format!("train digits {TINY} {flags} --out whole"));
    place.ok(&format!("train digits {TINY} {flags} --out parts"));
    let log = text(&place, "parts/log.jsonl");
    let end = log.find("{\"kind\":\"checkpoint\"").unwrap();
    assert!(log[..end].lines().last().unwrap().contains("\"kind\":\"evaluation\",\"step\":2"), "{log}");
    place.write("parts/log.jsonl", &log[..end]);
    fs::remove_dir_all(place.path("parts/checkpoints/step-00000004")).unwrap();
    let _ = fs::remove_file(place.path("parts/checkpoints/step-00000002/best"));
    place.ok("train --resume parts");
    assert_same(&place.path("whole"), &place.path("parts"));
}

#[test]
fn tensorboard_has_a_file_per_process() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 2 --tensorboard --out run"));
    let file = |n: u32| format!("run/events.out.tfevents.{n:010}.ddpm");
    let text = String::from_utf8_lossy(&place.read(&file(0))).into_owned();
    for part in ["brain.Event:2", "train/loss", "held_out/loss_quarter_4", "samples/mean_1", "PNG"] {
        assert!(text.contains(part), "{part}");
    }
    place.ok("train --resume run --steps 3");
    assert!(String::from_utf8_lossy(&place.read(&file(1))).contains("train/grad_norm"));
    place.ok("train --resume run --steps 4 --tensorboard=false");
    assert!(!place.path(&file(2)).exists());
}

#[test]
fn a_page_has_the_history_of_a_run_with_a_damaged_log_and_of_its_best_checkpoint() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 4 --save-every 2 --evaluate-every 2 --metrics loss --out run"));
    let log = text(&place, "run/log.jsonl");
    place.write("run/log.jsonl", log.replacen('\n', "\n{\"kind\":\n", 1));
    for target in ["run", "run/best"] {
        place.ok(&format!("eval {target} --metrics loss --report page.html --force"));
        assert!(text(&place, "page.html").contains("Metrics over training"), "{target}");
    }
}

/// The page shows the command, whatever bytes are in it.
#[test]
fn a_page_can_have_a_name_that_is_no_text() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out run"));
    let name = std::ffi::OsStr::from_bytes(b"page-\xff.html");
    let output = place.command("eval run --metrics loss --report").arg(name).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(place.path("").join(name).is_file());
}
