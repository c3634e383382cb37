//! Order, batches, resuming, and the split into training and held-out images.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::*;
use super::{config, folder, numbered, rgb, save};

fn loader_config(batch_size: usize, workers: usize) -> LoaderConfig {
    LoaderConfig { batch_size, seed: 5, flip: Flip::Auto, augment: 0.0, workers }
}

fn open(root: &Path, cache: CachePolicy) -> Arc<Dataset> {
    let config = DataConfig { cache, ..config(root) };
    Arc::new(Dataset::open(&config).unwrap())
}

#[test]
fn batches_depend_on_neither_threads_nor_cache() {
    let root = numbered(10);
    let run = |workers, cache| -> Vec<Batch> {
        let mut loader = Loader::new(open(root.path(), cache), loader_config(4, workers)).unwrap();
        (0..12).map(|_| loader.next_batch().unwrap()).collect()
    };
    let first = run(1, CachePolicy::On);
    assert_eq!(first, run(3, CachePolicy::On));
    assert_eq!(first, run(4, CachePolicy::Off));
    // Both kinds occur: the bright pixel is left as stored, or on the right.
    let mirrored = |batch: &Batch| batch.images.data[3] == 1.0;
    assert!(first.iter().any(mirrored) && !first.iter().all(mirrored));
    for batch in &first {
        for (i, &index) in batch.indices.iter().enumerate() {
            assert_eq!(batch.images.data[i * 48 + 5], index as f32 / 255.0);
        }
    }
}

#[test]
fn a_loader_resumes_where_it_stopped() {
    let root = numbered(7);
    let data = open(root.path(), CachePolicy::On);
    let mut whole = Loader::new(data.clone(), loader_config(3, 2)).unwrap();
    let all: Vec<Batch> = (0..20).map(|_| whole.next_batch().unwrap()).collect();
    assert_eq!(whole.position(), 20);
    for first in [0, 1, 9, 19] {
        let mut resumed = Loader::start_at(data.clone(), loader_config(3, 1), first).unwrap();
        for expected in &all[first as usize..] {
            assert_eq!(&resumed.next_batch().unwrap(), expected);
        }
    }
}

#[test]
fn impossible_batches_are_refused() {
    let root = numbered(5);
    let data = open(root.path(), CachePolicy::On);
    let refused = Loader::new(data.clone(), loader_config(6, 1)).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains('6') && text.contains('5'), "{text}");
    assert!(refused.hint().unwrap().contains("--batch-size 5"));
    assert!(Loader::new(data.clone(), loader_config(0, 1)).is_err());
    assert!(Subset::from(data.clone()).batches(0).is_err());
    Loader::new(data, loader_config(5, 1)).unwrap();
}

#[test]
fn numbers_beyond_all_reason_are_refused() {
    let root = numbered(6);
    let data = open(root.path(), CachePolicy::On);
    for workers in [1025, usize::MAX] {
        let refused = Loader::new(data.clone(), loader_config(2, workers)).unwrap_err();
        assert!(matches!(refused, DataError::Setting { key: "workers", .. }), "{refused}");
        assert!(DataConfig { workers, ..config(root.path()) }.validate().is_err());
    }
    DataConfig { workers: 1024, ..config(root.path()) }.validate().unwrap();
    // Batches are numbered as long as their images are.
    let mut last = Loader::start_at(data.clone(), loader_config(2, 2), u64::MAX / 2 - 1).unwrap();
    assert_eq!(last.next_batch().unwrap().len(), 2);
    assert!(matches!(last.next_batch(), Err(DataError::OutOfBatches(_))));
    for first in [u64::MAX / 2, u64::MAX - 1, u64::MAX] {
        let mut beyond = Loader::start_at(data.clone(), loader_config(2, 2), first).unwrap();
        assert!(matches!(beyond.next_batch(), Err(DataError::OutOfBatches(_))), "{first}");
    }
}

#[test]
fn files_that_change_later_are_errors_and_no_hang() {
    let root = numbered(3);
    let data = open(root.path(), CachePolicy::Off);
    std::fs::write(root.path().join("001.png"), "overwritten").unwrap();
    save(root.path(), "002.png", &rgb(5, 4, 2));
    assert!(matches!(data.get(1), Err(DataError::Decode { .. })));
    assert!(matches!(data.get(2), Err(DataError::Changed { .. })));
    let mut loader = Loader::new(data, loader_config(1, 2)).unwrap();
    let failures = (0..6).filter(|_| loader.next_batch().is_err()).count();
    assert_eq!(failures, 4);
}

#[test]
fn held_out_images_are_apart_and_few_data_have_none() {
    let open = |count: usize| {
        let root = folder();
        let path = root.path().join("x.npy");
        npy::write_npy_f32(&path, &[count, 1, 1], &vec![0.5; count]).unwrap();
        Arc::new(Dataset::open(&config(&path)).unwrap())
    };
    for (count, fraction, expected) in
        [(39, 0.05, 0), (40, 0.05, 2), (40, 0.0, 0), (40, 0.99, 39), (30_000, 0.05, 1000)]
    {
        let data = open(count);
        let (training, held_out) = data.split_held_out(fraction, 1);
        assert_eq!(held_out.len(), expected, "{count} images, {fraction}");
        let mut all = [training.indices(), held_out.indices()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..count).collect::<Vec<_>>());
        assert_eq!(data.split_held_out(fraction, 1).1.indices(), held_out.indices());
    }
    let data = open(100);
    assert_ne!(data.split_held_out(0.2, 1).1.indices(), data.split_held_out(0.2, 2).1.indices());
}

#[test]
fn a_pass_visits_each_image_once_in_order() {
    let root = numbered(7);
    let subset = Subset::from(open(root.path(), CachePolicy::Off));
    let batches: Vec<Batch> = subset.batches(3).unwrap().map(Result::unwrap).collect();
    let sizes: Vec<usize> = batches.iter().map(|batch| batch.indices.len()).collect();
    assert_eq!(sizes, [3, 3, 1]);
    let indices: Vec<usize> = batches.iter().flat_map(|b| b.indices.clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5, 6]);
    assert!(batches.iter().all(|batch| batch.images.data[0] == 1.0), "mirrored");
    assert_eq!(subset.spread(2).batches(3).unwrap().count(), 1);
    assert_eq!(subset.spread(0).batches(3).unwrap().count(), 0);
}

/// A folder of eight images of 6x5, each black but for one pixel.
fn augmented(batch_size: usize, workers: usize, augment: f64) -> Loader {
    let root = numbered(8);
    let config = LoaderConfig { augment, flip: Flip::On, ..loader_config(batch_size, workers) };
    Loader::new(open(root.path(), CachePolicy::On), config).unwrap()
}

#[test]
fn augmentation_depends_on_the_place_in_the_sequence_alone() {
    let run = |batch_size, workers| {
        let mut loader = augmented(batch_size, workers, 0.15);
        let batches: Vec<Batch> = (0..24 / batch_size).map(|_| loader.next_batch().unwrap()).collect();
        let pixels: Vec<f32> = batches.iter().flat_map(|batch| batch.images.data.clone()).collect();
        let labels: Vec<f32> = batches.iter().flat_map(|batch| batch.augment_labels.clone().unwrap()).collect();
        (pixels, labels)
    };
    let (pixels, labels) = run(4, 1);
    assert_eq!((pixels.clone(), labels.clone()), run(8, 3));
    assert_eq!(labels.len(), 24 * augment::LABELS);
    // Images without a label are those of the data; the others are not.
    let mut plain = augmented(8, 1, 0.0);
    // Each image both ways.
    let plain: Vec<Batch> = (0..20).map(|_| plain.next_batch().unwrap()).collect();
    assert!(plain.iter().all(|batch| batch.augment_labels.is_none()));
    let size = pixels.len() / 24;
    let mut kinds = [0; 2];
    for (image, labels) in pixels.chunks(size).zip(labels.chunks(augment::LABELS)) {
        let stored = |batch: &Batch| batch.images.data.chunks(size).any(|other| other == image);
        let mirrored_only = labels[1..].iter().all(|&label| label == 0.0);
        assert_eq!(mirrored_only, plain.iter().any(stored), "{labels:?}");
        kinds[usize::from(mirrored_only)] += 1;
    }
    assert!(kinds.iter().all(|&count| count > 2), "{kinds:?}");
}

#[test]
fn augmentation_is_a_probability_and_of_images() {
    let root = folder();
    let path = root.path().join("x.npy");
    npy::write_npy_f32(&path, &[8, 1, 16], &[0.5; 128]).unwrap();
    let layout = DataLayout::Sequences;
    let data = Arc::new(Dataset::open(&DataConfig { layout, ..config(&path) }).unwrap());
    let refused = |augment| {
        let error = Loader::new(data.clone(), LoaderConfig { augment, ..loader_config(2, 1) }).unwrap_err();
        error.to_string()
    };
    assert!(refused(0.1).contains("only images"), "{}", refused(0.1));
    assert!(refused(1.5).contains("from 0 to 1") && refused(f64::NAN).contains("from 0 to 1"));
    assert!(DataConfig { augment: -0.1, ..DataConfig::default() }.validate().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the batch size, n consecutive batches show all images equally often, and the sequence of images is the same.
    #[test]
    fn batches_cut_one_endless_sequence(n in 1usize..40, batch in 1usize..40, seed: u64) {
        let batch = batch.min(n);
        let root = folder();
        let path = root.path().join("x.npy");
        npy::write_npy_f32(&path, &[n, 1, 1], &vec![0.5; n]).unwrap();
        let data = Arc::new(Dataset::open(&config(&path)).unwrap());
        let sequence = |batch_size: usize, batches: usize| -> Vec<usize> {
            let config = LoaderConfig { batch_size, seed, flip: Flip::Off, augment: 0.0, workers: 1 };
            let mut loader = Loader::new(data.clone(), config).unwrap();
            (0..batches).flat_map(|_| loader.next_batch().unwrap().indices).collect()
        };
        let images = sequence(batch, n);
        for epoch in images.chunks(n) {
            let mut seen = epoch.to_vec();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
        prop_assert_eq!(images, sequence(1, n * batch));
    }
}
