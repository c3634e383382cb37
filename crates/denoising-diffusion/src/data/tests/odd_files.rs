//! Unusual files and folders: pipes, odd names and times, files that expand.

use super::super::*;
use super::{config, error, folder, numbered, rgb, save};

#[test]
fn channels_that_files_cannot_give_are_refused_before_any_is_decoded() {
    let root = folder();
    for i in 0..3 {
        save(root.path(), &format!("{i}.png"), &rgb(8, 6, i));
    }
    for image_size in [None, Some(ImageSize::square(4))] {
        let five = DataConfig { channels: ChannelPolicy::Exact(5), image_size, ..config(root.path()) };
        let looked = |_, _| panic!("looked at a file");
        let opening = Opening { progress: &looked, ..Opening::default() };
        let refused = Dataset::open_with(&five, &opening).unwrap_err();
        assert!(matches!(refused, DataError::Channels { expected: 5, files: true, .. }), "{refused}");
        let plain = DataConfig { image_size: Some(ImageSize::square(4)), ..config(root.path()) };
        let condition = Some(root.path().to_path_buf());
        let refused = error(&DataConfig { condition, condition_channels: ChannelPolicy::Exact(6), ..plain });
        assert!(refused.hint().unwrap().contains("--condition-channels 1"), "{refused}");
    }
}

#[test]
fn what_holds_no_usable_image_is_trained_as_nothing() {
    let root = folder();
    std::fs::write(root.path().join("a.png"), "text").unwrap();
    let summary = inspect(&config(root.path())).unwrap();
    assert_eq!(summary.shape, None);
    assert!(summary.to_string().contains("trained as nothing"), "{summary}");
    let empty = root.path().join("x.npy");
    npy::write_npy_f32(&empty, &[0, 8, 8], &[]).unwrap();
    let summary = inspect(&config(&empty)).unwrap();
    assert!(summary.shape.is_none() && summary.to_string().contains("trained as nothing"), "{summary}");
}

#[test]
fn a_broken_condition_is_said_to_be_broken() {
    let root = numbered(3);
    let conditions = numbered(3);
    std::fs::write(conditions.path().join("001.png"), "torn").unwrap();
    let condition = Some(conditions.path().to_path_buf());
    let refused = error(&DataConfig { condition, max_broken: 0.5, ..config(root.path()) }).to_string();
    assert!(refused.contains("matches 001.png is broken: 001.png: not an image"), "{refused}");
}

#[test]
fn pictures_of_one_name_are_their_own_conditions() {
    let root = folder();
    for name in ["a.png", "a.jpg", "b.png"] {
        save(root.path(), name, &rgb(4, 4, name.len() as u8));
    }
    let condition = Some(root.path().to_path_buf());
    Dataset::open(&DataConfig { condition, ..config(root.path()) }).unwrap();
}

#[cfg(unix)]
#[test]
fn a_pipe_is_named_instead_of_waited_for() {
    let root = numbered(2);
    let pipe = root.path().join("pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for config in [config(&pipe), DataConfig { vectors: Some(pipe.clone()), ..DataConfig::default() }] {
        let refused = error(&config);
        assert!(refused.to_string().contains("is a named pipe"), "{refused}");
    }
    let summary = inspect(&config(root.path())).unwrap();
    assert_eq!(summary.broken.len(), 1);
    assert!(summary.broken[0].reason.contains("a named pipe"), "{summary}");
}

#[cfg(target_os = "linux")]
#[test]
fn folders_keep_their_classes_apart_whatever_their_names() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let root = folder();
    for (i, name) in [&b"a\xff"[..], b"a\xfe", b"b\n"].into_iter().enumerate() {
        let path = root.path().join(OsStr::from_bytes(name)).join("1.png");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        rgb(4, 4, i as u8).save(path).unwrap();
    }
    let data = Dataset::open(&config(root.path())).unwrap();
    assert_eq!(data.class_names().unwrap(), ["a\\xfe", "a\\xff", "b\n"]);
    assert!(data.summary().to_string().contains("b\\n (1)"), "{}", data.summary());
    std::fs::write(root.path().join(OsStr::from_bytes(b"torn\x1b\xff.png")), "").unwrap();
    let summary = inspect(&config(root.path())).unwrap();
    assert!(summary.to_string().contains("torn\\u{1b}\u{fffd}.png"), "{summary}");
    assert!(serde_json::to_string(&summary).unwrap().contains("torn"));
}

#[cfg(target_os = "linux")]
#[test]
fn an_index_remembers_verdicts_on_contents_only() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, SystemTime};
    let (root, index) = (folder(), folder());
    for i in 0..1000 {
        save(root.path(), &format!("{i:04}.png"), &rgb(1, 1, (i % 200) as u8));
    }
    // What cannot be read now, and what JSON cannot represent.
    let pipe = root.path().join("0000-pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::write(root.path().join("0000-text.png"), "text").unwrap();
    let old = std::fs::File::options().write(true).open(root.path().join("0001.png")).unwrap();
    old.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(9)).unwrap();
    std::fs::rename(root.path().join("0002.png"), root.path().join(OsStr::from_bytes(b"\xff.png"))).unwrap();
    let looked = AtomicUsize::new(0);
    let open = || {
        looked.store(0, Ordering::Relaxed);
        let progress = |_, _| {
            looked.fetch_add(1, Ordering::Relaxed);
        };
        let opening = Opening { progress: &progress, index_folder: Some(index.path()) };
        let dataset = Dataset::open_with(&config(root.path()), &opening).unwrap();
        (dataset.len(), looked.load(Ordering::Relaxed))
    };
    assert_eq!(open(), (1000, 1002));
    assert_eq!(open(), (1000, 3), "the pipe, the old one and the odd one");
}
