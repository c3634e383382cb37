//! Checkpoints that replace others, and what killed processes leave behind.

use std::fs;

use super::*;
use crate::data::ImageShape;
use crate::diffusion::DiffusionConfig;
use crate::models::{NetworkConfig, UnetConfig};
use crate::weights::{StateDict, WeightsKind};

struct Place {
    _folder: tempfile::TempDir,
    checkpoints: Checkpoints,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path().join("checkpoints"));
        Self { _folder: folder, checkpoints }
    }

    /// With complete checkpoints of these steps; `skipped` distinguishes checkpoints of the same step.
    fn with(steps: &[u64]) -> Self {
        let place = Self::new();
        steps.iter().for_each(|&step| place.save(step, 0, false).unwrap());
        place
    }

    fn save(&self, step: u64, skipped: u64, keep: bool) -> Result<(), CheckpointError> {
        let empty = StateDict::new;
        let state = TrainerState {
            step,
            skipped,
            skipped_in_a_row: 0,
            adam_steps: 0,
            ema_calls: 0,
            model: empty(),
            ema: empty(),
            power_emas: Vec::new(),
            adam: empty(),
        };
        let info = CheckpointState {
            version: "1".into(),
            step,
            skipped,
            skipped_in_a_row: 0,
            adam_steps: 0,
            ema_calls: 0,
            seed: 0,
            data_digest: "d".into(),
            settings: BTreeMap::new(),
            value_range: None,
            post_hoc_sigma_rels: Vec::new(),
        };
        let card = ModelCard {
            step,
            ..ModelCard::new(
                NetworkConfig::Unet(UnetConfig::default()),
                DiffusionConfig::default(),
                ImageShape { channels: 1, height: 8, width: 8 },
            )
        };
        self.checkpoints.save(&state, &info, &card, keep).map(drop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.checkpoints.dir().join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.checkpoints.folders.entries().unwrap().iter().map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn skipped(&self, step: u64) -> u64 {
        verify(&self.checkpoints.path_of(step)).unwrap().skipped
    }

    fn damage(&self, name: &str) {
        fs::write(self.path(name).join("adam.safetensors"), "").unwrap();
    }

    fn copy(&self, from: &str, to: &str) {
        fs::create_dir(self.path(to)).unwrap();
        for entry in fs::read_dir(self.path(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.path(to).join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn replacing_keeps_the_mark_and_leaves_nothing_aside() {
    let place = Place::with(&[3]);
    place.checkpoints.mark(3).unwrap();
    place.save(3, 7, false).unwrap();
    assert_eq!((place.skipped(3), place.names()), (7, vec!["step-00000003".to_string()]));
    assert!(place.path("step-00000003/keep").exists());
    place.save(4, 0, true).unwrap();
    assert!(place.path("step-00000004/keep").exists());
    place.checkpoints.prune(1, 4).unwrap();
    assert_eq!(place.checkpoints.steps().unwrap(), [3, 4]);
}

#[test]
fn a_checkpoint_that_lies_whole_aside_gets_its_place() {
    // Killed between the last file and the first rename, without and with an older one of the step; between the two renames; and after
    // the second.
    for (begin, in_place, skipped) in [
        (&[".writing-step-00000003"][..], false, 5),
        (&[".writing-step-00000003"], true, 0),
        (&[".writing-step-00000003", ".replaced-step-00000003"], false, 5),
        (&[".replaced-step-00000003"], true, 0),
        (&[".replaced-step-00000003"], false, 5),
    ] {
        let place = Place::with(&[2]);
        place.save(3, 5, false).unwrap();
        begin.iter().for_each(|name| place.copy("step-00000003", name));
        fs::remove_dir_all(place.path("step-00000003")).unwrap();
        if in_place {
            place.save(3, 0, false).unwrap();
        }
        begin.iter().filter(|name| !place.path(name).exists()).for_each(|name| place.copy("step-00000003", name));
        place.checkpoints.tidy().unwrap();
        assert_eq!(place.names(), ["step-00000002", "step-00000003"], "{begin:?}");
        assert_eq!(place.skipped(3), skipped, "{begin:?}");
    }
}

#[test]
fn half_of_a_checkpoint_is_removed_and_a_damaged_one_gives_way() {
    let place = Place::with(&[2, 3]);
    place.copy("step-00000003", ".writing-step-00000003");
    place.copy("step-00000003", ".deleting-step-00000001");
    place.damage(".writing-step-00000003");
    place.checkpoints.tidy().unwrap();
    assert_eq!(place.names(), ["step-00000002", "step-00000003"]);

    place.copy("step-00000003", ".writing-step-00000003");
    place.damage("step-00000003");
    place.checkpoints.tidy().unwrap();
    assert_eq!(place.names(), ["damaged-step-00000003", "step-00000002", "step-00000003"]);
    assert_eq!(place.skipped(3), 0);
}

#[test]
fn damaged_ones_that_were_passed_over_count_no_longer() {
    let place = Place::with(&[2, 4, 6]);
    place.damage("step-00000004");
    place.damage("step-00000006");
    let (state, _, rejected) = place.checkpoints.latest().unwrap().unwrap();
    assert_eq!((state.step, rejected.len()), (2, 2));
    let now = place.checkpoints.put_aside(&rejected).unwrap();
    assert_eq!(now, [place.path("damaged-step-00000006"), place.path("damaged-step-00000004")]);
    assert_eq!(place.checkpoints.steps().unwrap(), [2]);

    // The same step may be damaged again.
    place.save(6, 0, false).unwrap();
    place.damage("step-00000006");
    let (.., rejected) = place.checkpoints.latest().unwrap().unwrap();
    assert_eq!(place.checkpoints.put_aside(&rejected).unwrap(), [place.path("damaged-step-00000006-2")]);
    place.save(3, 0, false).unwrap();
    place.checkpoints.prune(1, 3).unwrap();
    assert_eq!(place.checkpoints.steps().unwrap(), [3]);
}

/// A folder in the place of a file stands for any file that exists but cannot be read: one on a network file system that does not answer, say.
#[test]
fn what_cannot_be_read_is_not_damaged() {
    let place = Place::with(&[2, 4]);
    place.copy("step-00000004", ".writing-step-00000004");
    let [target, aside] =
        ["step-00000004", ".writing-step-00000004"].map(|name| place.path(name).join("adam.safetensors"));
    let whole = fs::read(&target).unwrap();
    // The other one is damaged, so that the unreadable one decides.
    for [unreadable, damaged] in [[&target, &aside], [&aside, &target]] {
        fs::remove_file(unreadable).unwrap();
        fs::create_dir(unreadable).unwrap();
        fs::write(damaged, "").unwrap();
        let before = place.names();
        assert!(matches!(place.checkpoints.tidy(), Err(CheckpointError::Io { action: "read", .. })));
        assert_eq!(place.names(), before);
        fs::remove_dir(unreadable).unwrap();
        [unreadable, damaged].iter().for_each(|path| fs::write(path, &whole).unwrap());
    }
    let file = place.path("step-00000004").join(weights_name(WeightsKind::Ema));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(place.checkpoints.latest(), Err(CheckpointError::Io { action: "read", .. })));
    assert!(matches!(place.checkpoints.latest_weights(WeightsKind::Ema), Err(CheckpointError::Io { .. })));
    assert!(place.checkpoints.latest_weights(WeightsKind::Model).unwrap().unwrap().1.is_empty());
    // A file that is not there is damage.
    fs::remove_dir(&file).unwrap();
    assert_eq!(place.checkpoints.latest().unwrap().unwrap().0.step, 2);
}

#[test]
fn weights_are_found_whatever_the_state_of_other_files() {
    let place = Place::with(&[2, 4]);
    let [ema, model] = [WeightsKind::Ema, WeightsKind::Model].map(weights_name);
    fs::write(place.path("step-00000004").join(model), "x").unwrap();
    let (path, rejected) = place.checkpoints.latest_weights(WeightsKind::Ema).unwrap().unwrap();
    assert_eq!((path, rejected.len()), (place.path("step-00000004").join(ema), 0));
    let (path, rejected) = place.checkpoints.latest_weights(WeightsKind::Model).unwrap().unwrap();
    assert_eq!((path, rejected.len()), (place.path("step-00000002").join(model), 1));
    let (state, ..) = place.checkpoints.latest().unwrap().unwrap();
    assert_eq!(state.step, 2);
}

#[test]
fn the_checkpoint_just_saved_is_not_pruned() {
    let place = Place::with(&[2, 4, 6]);
    place.checkpoints.prune(1, 4).unwrap();
    assert_eq!(place.names(), ["step-00000004", "step-00000006"]);
}

#[test]
fn no_folder_is_no_checkpoint_and_a_folder_that_cannot_be_read_is_an_error() {
    let place = Place::new();
    assert!(place.checkpoints.latest().unwrap().is_none());
    fs::write(place.checkpoints.dir(), "").unwrap();
    assert!(matches!(place.checkpoints.latest(), Err(CheckpointError::Io { action: "read", .. })));
}

#[cfg(unix)]
#[test]
fn a_link_to_nowhere_is_an_error() {
    let place = Place::new();
    std::os::unix::fs::symlink("nowhere/at/all", place.checkpoints.dir()).unwrap();
    assert!(matches!(place.checkpoints.latest(), Err(CheckpointError::Io { action: "read", .. })));
}

#[test]
fn other_names_are_no_steps() {
    let place = Place::with(&[2]);
    for name in ["step-3", "step-+0000003", "step-00000003.bak", "damaged-step-00000003"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    assert_eq!(place.checkpoints.steps().unwrap(), [2]);
}

/// Checkpoints of earlier versions list settings without a value, and one under an older name.
#[test]
fn settings_of_earlier_versions_are_read() {
    let text = r#"{"version":"1","step":1,"skipped":0,"skipped_in_a_row":0,"adam_steps":1,"ema_calls":1,"seed":0,"data_digest":"d",
        "settings":{"data.image_size":null,"train.lr":"0.5","dit.class_dropout_prob":"0.1"}}"#;
    let state: CheckpointState = serde_json::from_str(text).unwrap();
    let expected = [("dit.class_drop_prob", "0.1"), ("train.lr", "0.5")].map(|(a, b)| (a.to_string(), b.to_string()));
    assert_eq!(state.settings, BTreeMap::from(expected));
}
