//! By what data are recognised: digests and keys of the cache; and what is kept in it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::super::*;
use super::{config, folder, numbered, rgb, save};

#[test]
fn small_sets_are_cached_and_large_ones_are_not() {
    let root = numbered(5);
    assert!(Dataset::open(&config(root.path())).unwrap().is_in_memory());
    let tight = DataConfig { cache_mib: 0, ..config(root.path()) };
    assert!(!Dataset::open(&tight).unwrap().is_in_memory());
    let checked = AtomicUsize::new(0);
    let headers = DataConfig { verify: Verify::Header, ..config(root.path()) };
    let count = |_, total| {
        assert_eq!(total, 5);
        checked.fetch_add(1, Ordering::SeqCst);
    };
    let data = Dataset::open_with(&headers, &Opening { progress: &count, ..Opening::default() }).unwrap();
    assert_eq!(checked.load(Ordering::SeqCst), 5);
    assert!(!data.is_in_memory());
}

#[test]
fn the_digest_follows_the_content() {
    let digest = |config: &DataConfig| Dataset::open(config).unwrap().digest().to_owned();
    let root = numbered(3);
    let first = digest(&config(root.path()));
    assert_eq!(first.len(), 64);
    let prepared =
        DataConfig { image_size: Some(ImageSize::square(2)), cache: CachePolicy::Off, ..config(root.path()) };
    assert_eq!(digest(&prepared), first);
    save(root.path(), "003.png", &rgb(4, 4, 3));
    assert_ne!(digest(&config(root.path())), first);
    let path = root.path().join("x.npy");
    npy::write_npy_f32(&path, &[2, 1, 1], &[0.0, 0.5]).unwrap();
    let first = digest(&config(&path));
    npy::write_npy_f32(&path, &[2, 1, 1], &[0.5, 0.0]).unwrap();
    assert_ne!(digest(&config(&path)), first);
}

#[test]
fn the_digest_of_an_array_is_that_of_its_bytes() {
    let root = folder();
    let path = root.path().join("x.npy");
    let values: Vec<f32> = (0..9000).map(|i| i as f32 / 9000.0).collect();
    npy::write_npy_f32(&path, &[9, 10, 100], &values).unwrap();
    let sides = [9_u64, 1, 10, 100].map(u64::to_le_bytes).concat();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let expected = crate::digest::of_bytes([b"array", &sides[..], &bytes].concat());
    for cache in [CachePolicy::On, CachePolicy::Off] {
        let data = Dataset::open(&DataConfig { cache, ..config(&path) }).unwrap();
        assert_eq!(data.digest(), expected);
    }
}

#[test]
fn the_cache_key_sees_a_file_written_anew_and_the_digest_a_copied_folder() {
    let open = |root: &Path| Dataset::open(&config(root)).unwrap();
    let root = numbered(3);
    let first = open(root.path());
    assert_eq!(open(root.path()).cache_key(), first.cache_key());

    // The same length at another time.
    let path = root.path().join("001.png");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(path.metadata().unwrap().modified().unwrap() + Duration::from_secs(1)).unwrap();
    let anew = open(root.path());
    assert_ne!(anew.cache_key(), first.cache_key());
    assert_eq!(anew.digest(), first.digest(), "a run that was trained on a copy goes on");
    file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).unwrap();
    assert_ne!(open(root.path()).cache_key(), anew.cache_key());

    // Another folder, whose files have the same names, lengths and times.
    let (one, other) = (folder(), folder());
    for (root, level) in [(&one, 0), (&other, 200)] {
        save(root.path(), "a.bmp", &rgb(4, 4, level));
        let file = File::options().write(true).open(root.path().join("a.bmp")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let (one, other) = (open(one.path()), open(other.path()));
    assert_eq!(one.digest(), other.digest());
    assert_ne!(one.cache_key(), other.cache_key());
    assert_eq!(open(root.path()).cache_key(), open(&root.path().join(".")).cache_key(), "however it is named");

    let path = root.path().join("x.npy");
    npy::write_npy_f32(&path, &[2, 1, 1], &[0.0, 0.5]).unwrap();
    let array = open(&path);
    assert_eq!(array.cache_key(), array.digest(), "whose contents are part of it");
}
