//! `fid`, `stats`, `eval`, and evaluation during training, by the program itself. The weights of Inception are drawn from a formula: the
//! published ones are not needed for anything here.

mod common;

use std::path::PathBuf;
use std::sync::OnceLock;

use common::{Place, TINY};
use denoising_diffusion::eval::inception::drawn_weights;
use denoising_diffusion::interop::{Metadata, write_safetensors};
use image::{GrayImage, Luma};

/// A file of drawn weights, written once for all tests.
fn weights() -> &'static str {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let path = FILE.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("drawn-inception.safetensors");
        write_safetensors(&path, &drawn_weights(), &Metadata::new()).unwrap();
        path
    });
    path.to_str().unwrap()
}

/// Writes a folder of small grey pictures.
fn pictures(place: &Place, name: &str, count: u32, side: u32, twist: u32) {
    std::fs::create_dir_all(place.path(name)).unwrap();
    for number in 0..count {
        let value = |x: u32, y: u32| ((x * (3 + number % 5) + y * (2 + twist) + 17 * number) % 256) as u8;
        let image = GrayImage::from_fn(side, side, |x, y| Luma([value(x, y)]));
        image.save(place.path(name).join(format!("{number:03}.png"))).unwrap();
    }
}

fn with_weights(args: &str) -> String {
    format!("{args} --inception {} --unverified-inception", weights())
}

#[test]
fn fid_of_folders_statistics_and_a_cache() {
    let place = Place::new();
    pictures(&place, "a", 6, 12, 0);
    pictures(&place, "b", 6, 20, 5);
    let command = |args: &str| {
        let mut command = place.command(&with_weights(args));
        command.env("DDPM_CACHE_DIR", place.path("cache"));
        command
    };
    let json = |args: &str| -> serde_json::Value {
        let output = command(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let first = json("fid a b --dims 64 --json");
    let fid = first["fid"].as_f64().unwrap();
    assert!(fid > 0.0 && fid.is_finite());
    assert_eq!(std::fs::read_dir(place.path("cache/features")).unwrap().count(), 2);
    assert_eq!(json("fid a b --dims 64 --json")["fid"], first["fid"], "from the cache");
    assert!(json("fid a a --dims 64 --json")["fid"].as_f64().unwrap() < 1e-6 * fid);

    json("stats a -o new/a.npz --dims 64 --json");
    let of_statistics = json("fid new/a.npz b --dims 64 --json");
    assert!((of_statistics["fid"].as_f64().unwrap() - fid).abs() < 1e-6 * fid);
    assert_eq!(of_statistics["n_real"], 6);

    let text = String::from_utf8(command("fid a b --dims 64").output().unwrap().stdout).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("; n < 10000: bias") && text.contains("fewer than 64 dimensions"), "{text}");
}

/// Getting Inception ready can be a download.
#[test]
fn data_that_are_not_there_are_told_before_inception_is_looked_for() {
    let place = Place::new();
    let said = |args: &str| {
        let output = place.command(&format!("{args} --inception missing.pth")).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said("fid nowhere digits").contains("no data at nowhere"));
    assert!(said("fid digits nowhere").contains("no data at nowhere"));
    assert!(said("fid digits digits").contains("missing.pth"));
}

/// Features that cannot be kept are no error, and the warning says why they cannot.
#[test]
fn a_cache_that_cannot_be_written_is_told_with_its_cause() {
    let place = Place::new();
    pictures(&place, "a", 4, 12, 0);
    place.write("file", b"");
    let mut command = place.command(&with_weights("stats a -o a.npz --dims 64"));
    let output = command.env("DDPM_CACHE_DIR", place.path("file")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && place.path("a.npz").is_file(), "{said}");
    let warning = said.lines().find(|line| line.starts_with("warning: cannot store the features for later use: "));
    assert!(warning.is_some_and(|line| line.contains("file/features: ")), "{said}");
}

/// A file with other contents of the same length is no longer what the cache knows.
#[test]
fn a_file_written_anew_is_not_taken_from_the_cache() {
    let place = Place::new();
    std::fs::create_dir(place.path("a")).unwrap();
    let bitmap = place.path("a/0.bmp");
    let write = |level: u8| GrayImage::from_fn(12, 12, |x, y| Luma([level ^ (x * y) as u8])).save(&bitmap).unwrap();
    write(10);
    std::fs::copy(&bitmap, place.path("a/1.bmp")).unwrap();
    let statistics = |out: &str| {
        let args = with_weights(&format!("stats a -o {out} --dims 64"));
        let output = place.command(&args).env("DDPM_CACHE_DIR", place.path("cache")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        place.read(out)
    };
    let before = statistics("before.npz");
    assert!(before == statistics("again.npz"), "from the cache");
    let of_before = bitmap.metadata().unwrap();
    write(200);
    let file = std::fs::File::options().write(true).open(&bitmap).unwrap();
    file.set_modified(of_before.modified().unwrap() + std::time::Duration::from_secs(1)).unwrap();
    assert_eq!(bitmap.metadata().unwrap().len(), of_before.len());
    assert!(before != statistics("after.npz"), "of what is no longer there");
}

#[test]
fn bad_input_is_told_in_one_line() {
    let place = Place::new();
    pictures(&place, "a", 4, 12, 0);
    pictures(&place, "one", 1, 12, 0);
    pictures(&place, "mixed", 2, 12, 0);
    pictures(&place, "large", 1, 30, 0);
    std::fs::copy(place.path("large/000.png"), place.path("mixed/big.png")).unwrap();
    let fails = |args: &str, code: i32, part: &str| place.fails(&with_weights(args), code, part);

    fails("fid a one --no-cache --dims 64", 1, "1 image; FID needs at least 2");
    fails("stats one -o one.npz --no-cache --dims 64", 1, "one has 1 image; statistics need at least 2");
    fails("fid a mixed --no-cache --dims 64", 1, "size");
    fails("fid a nowhere --no-cache --dims 64", 1, "nowhere");
    fails("stats a -o a.txt --no-cache", 2, ".npz");
    place.ok(&with_weights("stats a -o s64.npz --dims 64 --no-cache"));
    fails("fid s64.npz a --no-cache", 2, "s64.npz has statistics of 64 features");
    fails("stats a -o s64.npz --dims 64 --no-cache", 2, "exists already");
    place.write("empty.npz", b"");
    fails("fid empty.npz a --no-cache --dims 64", 1, "empty.npz");

    // Weights: another digest, another network, cut off, none at all.
    place.fails(&format!("fid a a --inception {}", weights()), 1, "its SHA-256 is");
    place.ok(&format!("train digits --steps 1 --out run {TINY}"));
    let unet = "run/checkpoints/step-00000001/ema.safetensors";
    place.fails(&format!("fid a a --inception {unet} --unverified-inception"), 1, "Inception");
    let cut: Vec<u8> = std::fs::read(weights()).unwrap().into_iter().take(1 << 20).collect();
    place.write("cut.safetensors", &cut);
    place.fails("fid a a --inception cut.safetensors --unverified-inception", 1, "cut.safetensors");
    place.write("cut.pth", &cut);
    place.fails("fid a a --inception cut.pth --unverified-inception", 1, "cut.pth");
    let output = place
        .command("fid a a")
        .env("DDPM_CACHE_DIR", place.path("cache"))
        .env("DDPM_INCEPTION_URL", "http://127.0.0.1:9/none.pth")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("cannot download") && text.contains("put it at"), "{text}");
}

#[test]
fn an_evaluation_of_a_run_has_all_its_numbers_and_a_page() {
    let place = Place::new();
    place
        .ok(&format!("train digits --steps 4 --save-every 2 --evaluate-every 2 --evaluate-samples 8 --out run {TINY}"));
    let args = "eval run -n 8 --num-real 12 --no-cache --steps 2 --report page.html";
    let result = place.json(&with_weights(args));
    let names: Vec<&str> =
        result["measurements"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["fid", "kid", "is", "precision", "recall", "density", "coverage", "swd", "spectrum"]);
    for measurement in result["measurements"].as_array().unwrap() {
        assert!(measurement["value"].as_f64().unwrap().is_finite(), "{measurement}");
    }
    let terms = &result["bits_per_dim"];
    let sum: f64 = ["prior", "diffusion", "reconstruction"].iter().map(|k| terms[k].as_f64().unwrap()).sum();
    assert!((sum - terms["total"].as_f64().unwrap()).abs() < 1e-9);
    assert!(result["loss"]["mean"].as_f64().unwrap() > 0.0);
    assert!(result["neighbours"]["closest"].as_array().unwrap().len() > 1);
    let provenance = &result["provenance"];
    assert_eq!(provenance["sampling"]["weights"], "ema");
    assert_eq!(provenance["sampling"]["step"], 4);
    assert!(provenance["extractor"]["digest"].as_str().unwrap().len() == 64);

    let page = String::from_utf8(place.read("page.html")).unwrap();
    assert!(
        page.contains("data:image/png;base64,") && page.contains("<svg") && !page.contains("http://"),
        "no pictures"
    );
    place.fails(&with_weights(args), 2, "exists already");
    let heun = place.json("eval run -n 2 --steps 3 --sampler heun --metrics swd");
    let sampling = &heun["provenance"]["sampling"];
    assert_eq!((&sampling["steps"], &sampling["evaluations"]), (&3.into(), &4.into()));

    // Without Inception: what can be had, and a warning.
    let output = place
        .command("eval run -n 8 --steps 2 --metrics swd,loss")
        .env("DDPM_INCEPTION_URL", "http://127.0.0.1:9/none.pth")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("swd"), "{text}");
    place.fails("eval run --metrics swd,fud", 2, "unknown metric `fud`");
    place.fails("eval run/checkpoints/step-00000004/ema.safetensors", 2, "does not say which data it was trained on");
}

/// Evaluating changes nothing of training: the same weights with and without, and after an interruption.
#[test]
fn evaluation_leaves_training_alone() {
    let place = Place::new();
    let train =
        |out: &str, more: &str| place.ok(&format!("train digits --steps 6 --save-every 3 --out {out} {TINY} {more}"));
    train("without", "");
    let metrics = "swd,neighbours,loss,bpd,nll";
    train("with", &format!("--evaluate-every 2 --evaluate-samples 8 --metrics {metrics} --evaluate-budget-s 60"));
    for name in ["ema.safetensors", "model.safetensors", "adam.safetensors"] {
        let of = |run: &str| place.read(&format!("{run}/checkpoints/step-00000006/{name}"));
        assert!(of("without") == of("with"), "{name} differs");
    }
    let log = String::from_utf8(place.read("with/log.jsonl")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("\"kind\":\"evaluation\"")).count(), 3);
    let best: Vec<u64> =
        (1..=6).filter(|step| place.path(&format!("with/checkpoints/step-{step:08}/best")).exists()).collect();
    assert_eq!(best.len(), 1, "one best checkpoint");
    place.ok("sample with/best -n 1 --steps 1 --out best.png");
    place.ok(&with_weights("fid with/best with/best -n 2 --steps 1 --dims 64 --no-cache"));
    place.fails("fid with/best digits -n 1", 2, "at least 2");
    place.fails(
        "train digits --steps 2 --out x --evaluate-every 1 --metrics loss --best-metric fid",
        2,
        "`best_metric`",
    );
    place.fails("train digits --steps 2 --out x --evaluate-every 1 --metrics loss --held-out 0", 2, "--held-out");
}

/// The evaluations in a run's log.
fn evaluations(place: &Place, run: &str) -> Vec<serde_json::Value> {
    let log = String::from_utf8(place.read(&format!("{run}/log.jsonl"))).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    records.filter(|record| record["kind"] == "evaluation").collect()
}

/// The step with the lowest loss, and the steps that are marked as the best.
fn best_by_loss(place: &Place, run: &str) -> (u64, Vec<u64>) {
    let of =
        |record: &serde_json::Value| (record["step"].as_u64().unwrap(), record["values"]["loss"].as_f64().unwrap());
    let all = evaluations(place, run).iter().map(of).collect::<Vec<_>>();
    let best = all.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let marked = |step: &u64| place.path(&format!("{run}/checkpoints/step-{step:08}/best")).exists();
    (best, (1..20).filter(marked).collect())
}

/// A process that dies after writing a checkpoint and before marking it leaves no wrong mark for good.
#[test]
fn the_best_checkpoint_is_told_from_the_log() {
    let place = Place::new();
    place.ok(&format!(
        "train digits --steps 6 --save-every 2 --out run {TINY} --evaluate-every 2 --metrics neighbours,loss \
         --evaluate-samples 8"
    ));
    let (best, marked) = best_by_loss(&place, "run");
    assert_eq!(marked, [best]);
    let wrong = if best == 2 { 4 } else { 2 };
    let mark = |step: u64| place.path(&format!("run/checkpoints/step-{step:08}/best"));
    std::fs::rename(mark(best), mark(wrong)).unwrap();
    place.ok("train --resume run");
    assert_eq!(best_by_loss(&place, "run"), (best, vec![best]), "at once, with nothing left to do");

    std::fs::remove_file(mark(best)).unwrap();
    place.ok("train --resume run --steps 10 --keep 1");
    let (best, marked) = best_by_loss(&place, "run");
    assert_eq!(marked, [best]);
    let folders = std::fs::read_dir(place.path("run/checkpoints")).unwrap().count();
    assert_eq!(folders, if best == 10 { 1 } else { 2 }, "the best is not pruned");

    // A run that is evaluated from its last checkpoint on.
    place.ok(&format!("train digits --steps 2 --out late {TINY}"));
    place.ok("train --resume late --evaluate-every 2 --metrics loss");
    assert_eq!(best_by_loss(&place, "late"), (2, vec![2]));
}

/// Another number of samples, or another budget, on resume is what the run goes on with.
#[test]
fn a_resumed_run_draws_the_samples_that_are_asked_for_now() {
    let place = Place::new();
    place
        .ok(&format!("train digits --steps 1 --evaluate-every 1 --metrics swd --evaluate-samples 18 --out run {TINY}"));
    place.ok("train --resume run --steps 2");
    place.ok("train --resume run --steps 3 --evaluate-samples 20");
    place.ok("train --resume run --steps 4 --evaluate-budget-s 1e-9");
    let samples: Vec<u64> =
        evaluations(&place, "run").iter().map(|record| record["samples"].as_u64().unwrap()).collect();
    assert_eq!(samples, [18, 18, 20, 16], "16 are drawn whatever the budget");
}

/// Copies of the training images have the lowest z: it must not choose the checkpoint.
#[test]
fn neighbours_choose_no_checkpoint() {
    let place = Place::new();
    place.ok(&format!(
        "train digits --steps 2 --save-every 1 --out run {TINY} --evaluate-every 1 --metrics neighbours \
         --evaluate-samples 8"
    ));
    assert_eq!(evaluations(&place, "run").len(), 2);
    assert!([1, 2].iter().all(|step| !place.path(&format!("run/checkpoints/step-{step:08}/best")).exists()));
    let best = "--evaluate-every 1 --metrics neighbours,loss --best-metric neighbours";
    place.fails(&format!("train digits --steps 2 --out x {best}"), 2, "--best-metric");
    place.write("wrong.toml", "[evaluate]\nmetrics = [\"neighbours\", \"loss\"]\nbest_metric = \"neighbours\"\n");
    place.fails("train --config wrong.toml --out x", 2, "neither lower nor higher is better");
}

/// Loss and bound say what they were measured on: a number on training images is no held-out loss.
#[test]
fn what_a_network_is_judged_on_is_said() {
    let place = Place::new();
    pictures(&place, "few", 6, 8, 0);
    let train = |out: &str, more: &str| place.ok(&format!("train {more} --steps 1 --out {out} {TINY}"));
    train("few-run", "few");
    train("digits-run", "digits");
    let eval = |what: &str| format!("eval {what} --metrics loss,bpd");
    let on = |what: &str| {
        let result = place.json(&eval(what));
        let on = |of: &str| (result[of]["on"].clone(), result[of]["n"].clone());
        assert_eq!(on("loss"), on("bits_per_dim"));
        on("loss")
    };
    assert_eq!(on("few-run"), ("training".into(), 6.into()));
    assert_eq!(on("digits-run few"), ("given".into(), 6.into()));
    assert_eq!(on("digits-run").0, "held_out");
    let text = place.ok(&format!("{} --report page.html", eval("few-run")));
    assert!(text.starts_with("loss on training images ") && !text.contains("held-out"), "{text}");
    assert!(text.contains("bits per dimension (6 training images)"), "{text}");
    let page = String::from_utf8(place.read("page.html")).unwrap();
    assert!(page.contains("Loss on training images</h2>") && !page.contains("eld-out loss"), "{page}");
    place.fails("eval few-run --metrics neighbours", 2, "neighbours");

    let nll = &place.json("eval few-run --metrics nll")["nll"];
    assert_eq!((&nll["on"], &nll["n"]), (&"training".into(), &6.into()));
    let parts: f64 = ["prior", "volume", "interval"].iter().map(|part| nll[part].as_f64().unwrap()).sum();
    assert!((parts - nll["total"].as_f64().unwrap()).abs() < 1e-9 && parts.is_finite(), "{nll}");
    let text = place.ok("eval few-run --metrics nll --report nll.html");
    assert!(text.starts_with("negative log-likelihood ") && text.contains("(6 training images)"), "{text}");
    let page = String::from_utf8(place.read("nll.html")).unwrap();
    assert!(page.contains("Negative log-likelihood</h2>"), "{page}");
}

/// An evaluation that fails is told, and training goes on.
#[test]
fn a_failed_evaluation_stops_no_run() {
    let place = Place::new();
    let mut drawn = drawn_weights();
    let scales: Vec<String> = drawn.names().filter(|name| name.ends_with("bn.weight")).map(String::from).collect();
    for name in scales {
        if let Some(mut scale) = drawn.remove(&name) {
            scale.values.iter_mut().for_each(|value| *value *= 1e30);
            drawn.insert(name, scale);
        }
    }
    write_safetensors(&place.path("huge.safetensors"), &drawn, &Metadata::new()).unwrap();
    let output = place.run(&format!(
        "train digits --steps 2 --out run {TINY} --evaluate-every 1 --metrics fid,loss --evaluate-samples 4 \
         --evaluate-real 4 --inception huge.safetensors --unverified-inception --no-cache"
    ));
    let told = common::stderr(&output);
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("is not evaluated: ").count(), 2, "{told}");
    assert!(told.contains("features that are not finite"), "{told}");
    assert!(evaluations(&place, "run").is_empty());
    place.ok("sample run -n 1 --steps 1");
}
