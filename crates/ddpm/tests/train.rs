//! `ddpm train` and `ddpm inspect`: plan, run folder, result, resume.

mod common;

use common::{Place, TINY, assert_same, stderr};

#[test]
fn a_run_leaves_all_that_was_promised() {
    let place = Place::new();
    let result = place.json(&format!("train digits {TINY} --steps 6 --save-every 3"));
    assert_eq!(result["outcome"], "finished");
    assert_eq!((&result["step"], &result["run"]), (&6.into(), &"runs/digits-001".into()));
    assert!(result["loss"].as_f64().unwrap().is_finite() && result["held_out_loss"].as_f64().unwrap() > 0.0);
    assert_eq!(result["held_out_loss_by_quarter"].as_array().unwrap().len(), 4);
    for key in ["grid", "checkpoint"] {
        assert!(place.path(result[key].as_str().unwrap()).exists(), "{key}");
    }
    for name in ["config.toml", "log.jsonl", "loss.svg", "loss.png", "samples/step-00000003.png"] {
        assert!(place.path("runs/digits-001").join(name).is_file(), "{name}");
    }
    let config = String::from_utf8(place.read("runs/digits-001/config.toml")).unwrap();
    assert!(config.contains("steps = 6") && config.contains("path = \"digits\""), "{config}");
    let text = place.ok(&format!("train digits {TINY} --steps 1"));
    assert!(text.contains("runs/digits-002") && text.contains("checkpoint"), "{text}");
}

#[test]
fn grids_and_held_out_losses_can_be_omitted() {
    let place = Place::new();
    let result = place.json(&format!("train digits {TINY} --steps 2 --sample-every 0 --held-out-every 0 --out run"));
    assert!(result["grid"].is_null() && result["held_out_loss"].is_null(), "{result}");
    assert!(!place.path("run/samples").exists());
    assert!(place.path(result["checkpoint"].as_str().unwrap()).exists());
}

#[test]
fn what_cannot_be_recorded_is_said_once() {
    let place = Place::new();
    let output = place.run(&format!("train digits {TINY} --steps 3 --device cpu --device-graph"));
    let words = stderr(&output);
    assert!(output.status.success(), "{words}");
    assert_eq!(
        words.matches("warning: --device-graph has no effect on steps: only GPUs can record").count(),
        1,
        "{words}"
    );
}

#[test]
fn a_resumed_run_equals_one_in_one_go_with_any_number_of_threads() {
    let place = Place::new();
    let steps = |run: &str, n: u32, threads: u32| {
        place.ok(&format!(
            "train digits {TINY} --accumulate 2 --save-every 3 --steps {n} --threads {threads} --out {run}"
        ))
    };
    steps("whole", 9, 2);
    steps("parts", 3, 1);
    let result = place.json("train --resume parts --steps 6 --threads 1");
    assert_eq!((&result["step"], &result["outcome"]), (&6.into(), &"finished".into()));
    place.ok("train --resume parts --steps 9 --threads 2");
    assert_same(&place.path("whole"), &place.path("parts"));
}

#[test]
fn a_finished_run_has_nothing_to_add_and_keeps_its_configuration() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 2 --out run"));
    let before = common::contents(&place.path("run"));
    let result = place.json("train --resume run");
    assert_eq!((&result["step"], &result["grid"]), (&2.into(), &serde_json::Value::Null));
    assert!(before == common::contents(&place.path("run")));
    place.fails("train --resume run --lr 0.1 --steps 3", 2, "--lr");
    assert!(before == common::contents(&place.path("run")));
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let place = Place::new();
    let plan = place.ok("train --dry-run");
    for row in ["parameters", "images", "memory", "device", "run folder", "runs/digits-001", "epochs"] {
        assert!(plan.contains(row), "{row}: {plan}");
    }
    let plan = place.json(&format!("train digits --dry-run {TINY} --steps 427 --held-out 0 --threads 1"));
    assert_eq!(plan["recipe"]["train"]["steps"], 427);
    assert_eq!(plan["data"]["train"], 1797);
    assert_eq!(plan["threads"], 1);
    assert!(plan["memory_mib"].as_u64().unwrap() > 10 && plan["parameters"].as_u64().unwrap() > 1000);
    assert!((plan["epochs"].as_f64().unwrap() - 427.0 * 4.0 / 1797.0).abs() < 1e-9);
    assert_eq!(std::fs::read_dir(place.path("")).unwrap().count(), 0);
}

#[test]
fn flags_win_over_the_recipe_and_the_recipe_over_the_defaults() {
    let place = Place::new();
    place.write("r.toml", "[train]\nsteps = 7\nlr = 1e-3\n[unet]\ndim = 16\ndim_mults = [1, 2]\n");
    let plan = place.json("train digits --dry-run --config r.toml --lr 0.5 --self-condition --full-attn false");
    let recipe = &plan["recipe"];
    assert_eq!((&recipe["train"]["steps"], &recipe["train"]["lr"]), (&7.into(), &0.5.into()));
    assert_eq!((&recipe["train"]["batch_size"], &recipe["unet"]["dim"]), (&16.into(), &16.into()));
    assert_eq!((&recipe["unet"]["self_condition"], &recipe["unet"]["full_attn"]), (&true.into(), &false.into()));
}

#[test]
fn a_folder_of_classes_trains_and_is_inspected() {
    let place = Place::new();
    for i in 0..4 {
        place.image(&format!("data/a/{i}.png"), 8, 8);
        place.image(&format!("data/b/{i}.PNG"), 8, 8);
    }
    let summary = place.json("inspect data");
    assert_eq!((&summary["images"], &summary["shape"]["channels"]), (&8.into(), &1.into()));
    assert_eq!(summary["classes"][1]["images"], 4);
    assert!(place.ok("inspect data").contains("classes    2"));
    place.image("data/a-2/0.png", 8, 8);
    place.write("data/a/torn.png", "torn");
    // Folder by folder, unlike strings.
    let files = "a/0.png a/1.png a/2.png a/3.png a-2/0.png b/0.PNG b/1.PNG b/2.PNG b/3.PNG";
    assert_eq!(place.ok("inspect data --files").split_whitespace().collect::<Vec<_>>().join(" "), files);
    assert_eq!(place.json("inspect data --files"), serde_json::json!(files.split(' ').collect::<Vec<_>>()));
    place.fails("inspect digits --files", 2, "no folder");
    for gone in ["data/a-2", "data/a/torn.png"].map(|gone| place.path(gone)) {
        if gone.is_dir() { std::fs::remove_dir_all(gone) } else { std::fs::remove_file(gone) }.unwrap();
    }
    let result = place.json(&format!("train data {TINY} --steps 1"));
    assert_eq!(result["run"], "runs/data-001");
    // The run is found again from elsewhere, data and all.
    place.write("elsewhere/x", "");
    let mut command = place.command("train --resume ../runs/data-001 --steps 2");
    let output = command.current_dir(place.path("elsewhere")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn help_names_sections_and_defaults() {
    let place = Place::new();
    let help = place.ok("train --help");
    for part in ["U-Net [unet]:", "--dim-mults", "[default: 1,2,4,8]", "Moving average [ema]:", "[default: 0.995]"] {
        assert!(help.contains(part), "{part}");
    }
    assert!(place.ok("--version").starts_with("ddpm "));
    assert!(place.ok("completions bash").contains("--dim-mults"));
}

#[test]
fn a_run_has_something_to_guide_towards() {
    let place = Place::new();
    let text = place.fails(&format!("train digits {TINY} --guidance 2 --steps 1"), 2, "nothing to guide towards");
    assert!(text.contains("--class-condition"), "{text}");
    let output = place.run(&format!(
        "train digits {TINY} --class-condition --class-drop-prob 0 --guidance 2 --warmup-steps 5 --steps 1 --out run"
    ));
    let words = stderr(&output);
    assert!(output.status.success() && words.contains("--class-drop-prob 0"), "{words}");
    assert!(words.contains("the learning rate is never reached"), "{words}");
    let output = place.run("sample run -n 2 --steps 2");
    assert!(stderr(&output).contains("without ever dropping its classes"), "{}", stderr(&output));
}

#[test]
fn a_resumed_run_goes_forward() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --lr-schedule cosine --steps 3 --out run"));
    place.fails("train --resume run --steps 2", 2, "already made 3 steps");
    assert!(String::from_utf8(place.read("run/config.toml")).unwrap().contains("steps = 3"));
    let output = place.run("train --resume run --steps 5");
    assert!(stderr(&output).contains("the learning rate jumps"), "{}", stderr(&output));
    let output = place.run("train --resume run --steps 5");
    assert!(!stderr(&output).contains("jumps"), "{}", stderr(&output));
    let many = TINY.replace("--num-samples 2", "--num-samples 100000000000000");
    place.fails(&format!("train digits {many} --steps 1"), 2, "memory");
}
