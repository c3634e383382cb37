//! Classes from a source through subsets and batches.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::super::*;
use super::{config, error, folder, rgb, save};

fn write_images(path: &Path, count: usize) {
    npy::write_npy_f32(path, &[count, 1, 1], &vec![0.5; count]).unwrap();
}

/// A `.npy` file of little-endian int64 values.
fn npy_i64(values: &[i64]) -> Vec<u8> {
    let header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}\n", values.len());
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// An IDX file of bytes, `[n]`.
fn idx_labels(values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 1];
    bytes.extend((values.len() as u32).to_be_bytes());
    bytes.extend(values);
    bytes
}

fn write_npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in arrays {
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn labels_in_an_archive_are_numbered_without_gaps() {
    let root = folder();
    let (images, path) = (root.path().join("x.npy"), root.path().join("a.npz"));
    write_images(&images, 4);
    let images = std::fs::read(&images).unwrap();
    for (image_name, label_name) in [("images", "labels"), ("x", "y")] {
        write_npz(&path, &[(image_name, images.clone()), (label_name, npy_i64(&[7, 3, 7, 7]))]);
        let data = Dataset::open(&config(&path)).unwrap();
        assert_eq!(data.classes().unwrap(), [1, 0, 1, 1]);
        assert_eq!(data.class_names().unwrap(), ["3", "7"]);
        assert_eq!((data.num_classes(), data.class_of(1), data.class_of(4)), (2, Some(0), None));
        assert!(data.summary().to_string().contains("classes    2: 3 (1), 7 (3)"), "{}", data.summary());
    }
    let digest = |labels: &[i64]| {
        write_npz(&path, &[("images", images.clone()), ("labels", npy_i64(labels))]);
        Dataset::open(&config(&path)).unwrap().digest().to_owned()
    };
    let digests = [digest(&[0, 1, 1, 1]), digest(&[3, 7, 7, 7]), digest(&[3, 8, 8, 8]), digest(&[0, 0, 1, 1])];
    for (i, one) in digests.iter().enumerate() {
        assert!(!digests[..i].contains(one), "{i}");
    }
    write_npz(&path, &[("images", images), ("labels", npy_i64(&[0, 1, 2]))]);
    let refused = error(&DataConfig { class_condition: true, ..config(&path) });
    assert!(refused.to_string().ends_with("labels has 3 labels for 4 images"), "{refused}");
    assert!(refused.hint().unwrap().contains("one label per image"));
}

#[test]
fn labels_that_are_none_are_in_the_way_of_classes_only() {
    let root = folder();
    let at = |name: &str| root.path().join(name);
    write_images(&at("x.npy"), 3);
    std::fs::write(at("y.npy"), npy_i64(&[4, 9, 4])).unwrap();
    let images = std::fs::read(at("x.npy")).unwrap();
    let header = "{'descr': '<U1', 'fortran_order': False, 'shape': (3,)}";
    let text = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &[0; 12]].concat();
    for (labels, why) in [
        (npy_i64(&[0, -1, 0]), "label -1"),
        (npy_i64(&[0, 1]), "2 labels for 3 images"),
        (text, "dtype `<U1`"),
        (images.clone(), "integer labels of shape [n]"),
    ] {
        write_npz(&at("a.npz"), &[("images", images.clone()), ("labels", labels)]);
        let plain = config(&at("a.npz"));
        let data = Dataset::open(&plain).unwrap();
        assert!(data.classes().is_none());
        let summary = data.summary().to_string();
        assert!(summary.contains("labels     ignored: ") && summary.contains(why), "{why}: {summary}");
        let refused = error(&DataConfig { class_condition: true, ..plain.clone() }).to_string();
        assert!(refused.contains(why), "{why}: {refused}");
        let others = DataConfig { labels: Some(at("y.npy")), class_condition: true, ..plain };
        assert_eq!(Dataset::open(&others).unwrap().class_names().unwrap(), ["4", "9"]);
    }
}

#[test]
fn labels_may_lie_in_a_file_of_their_own() {
    let root = folder();
    let at = |name: &str| root.path().join(name);
    write_images(&at("x.npy"), 3);
    std::fs::write(at("y.npy"), npy_i64(&[5, 0, 5])).unwrap();
    std::fs::write(at("y.idx"), idx_labels(&[5, 0, 5])).unwrap();
    assert_eq!(Dataset::open(&config(&at("x.npy"))).unwrap().num_classes(), 0);
    let with = |labels: &str| DataConfig { labels: Some(at(labels)), ..config(&at("x.npy")) };
    for labels in ["y.npy", "y.idx"] {
        assert_eq!(Dataset::open(&with(labels)).unwrap().classes().unwrap(), [1, 0, 1], "{labels}");
        assert_eq!(inspect(&with(labels)).unwrap().classes.len(), 2);
    }
    std::fs::write(at("short"), idx_labels(&[1])).unwrap();
    write_images(&at("floats.npy"), 3);
    std::fs::write(at("negative.npy"), npy_i64(&[0, -1, 0])).unwrap();
    for (labels, expected) in [
        ("short", "1 labels for 3 images"),
        ("floats.npy", "integer labels of shape [n], found dtype `<f4`"),
        ("negative.npy", "label -1"),
        ("nowhere", "nowhere"),
        ("x.npy", "found dtype"),
    ] {
        let refused = error(&with(labels)).to_string();
        assert!(refused.contains(expected), "{labels}: {refused}");
    }
}

#[test]
fn a_source_with_classes_of_its_own_takes_no_file_of_labels() {
    let root = folder();
    save(root.path(), "a/1.png", &rgb(4, 4, 1));
    let labels = Some(root.path().join("y.npy"));
    for path in [None, Some("digits".into()), Some(root.path().to_path_buf())] {
        let refused = error(&DataConfig { path, labels: labels.clone(), ..DataConfig::default() });
        assert!(matches!(refused, DataError::Setting { key: "labels", .. }), "{refused}");
    }
}

#[test]
fn pixels_take_no_range_of_values() {
    let root = folder();
    save(root.path(), "a/1.png", &rgb(4, 4, 1));
    let range = Some(ValueRange::Measured);
    let pixels = [None, Some(root.path().to_path_buf()), Some(root.path().join("a/1.png"))];
    for path in pixels {
        let refused = error(&DataConfig { path: path.clone(), value_range: range, ..DataConfig::default() });
        assert!(matches!(refused, DataError::Setting { key: "value_range", .. }), "{refused}");
        let conditions =
            DataConfig { condition: path.clone(), condition_value_range: range, path, ..DataConfig::default() };
        if conditions.condition.is_some() {
            assert!(error(&conditions).to_string().contains("condition_value_range"));
        }
        // What a network was trained on says how its data are read, whatever they are.
        let of_network = DataConfig { trained_range: Some([0.0, 1.0]), ..conditions };
        Dataset::open(&DataConfig { value_range: range, condition: None, ..of_network }).unwrap();
    }
}

#[test]
fn every_batch_has_the_classes_of_its_images() {
    let data = Arc::new(Dataset::open(&DataConfig::default()).unwrap());
    let (training, held_out) = data.split_held_out(0.05, 3);
    let config = LoaderConfig { batch_size: 50, seed: 1, flip: Flip::Off, augment: 0.0, workers: 2 };
    let mut loader = Loader::new(training, config).unwrap();
    let shuffled = (0..3).map(|_| loader.next_batch().unwrap());
    for batch in shuffled.chain(held_out.batches(32).unwrap().map(Result::unwrap)) {
        let classes = batch.classes.unwrap();
        assert_eq!(classes.len(), batch.indices.len());
        let expected = batch.indices.iter().map(|&image| data.class_of(image).unwrap() as u32);
        assert!(classes.iter().copied().eq(expected));
    }
    let root = folder();
    write_images(&root.path().join("x.npy"), 2);
    let unlabelled = Arc::new(Dataset::open(&super::config(&root.path().join("x.npy"))).unwrap());
    assert!(Subset::from(unlabelled).batches(2).unwrap().all(|batch| batch.unwrap().classes.is_none()));
}

/// A part of the data without images of some class numbers the other classes as the whole does.
#[test]
fn parts_number_classes_as_the_whole() {
    let root = folder();
    for name in ["cat/1.png", "dog/1.png", "dog/2.png"] {
        save(root.path(), name, &rgb(4, 4, 9));
    }
    let data = Arc::new(Dataset::open(&config(root.path())).unwrap());
    let dogs = Subset::of(data.clone(), vec![2, 1]);
    assert_eq!((dogs.num_classes(), dogs.class_of(0), dogs.class_of(2)), (2, Some(1), None));
    assert_eq!(dogs.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(dogs.spread(1).class_of(0), data.class_of(2));
}
