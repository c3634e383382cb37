//! What can be opened, and what it becomes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::DynamicImage;

use crate::data::npy::write_npy_f32;

use super::super::*;
use super::{config, error, folder, numbered, rgb, save};

#[test]
fn every_format_in_any_case_and_depth() {
    let root = folder();
    let image = rgb(6, 5, 100);
    for name in ["a.PNG", "b.Jpg", "c.jpeg", "d.bmp", "e.webp", "f.TIF", "sub/g.tiff"] {
        save(root.path(), name, &image);
    }
    save(root.path(), "h.png", &DynamicImage::from(image.to_rgb16()));
    save(root.path(), "i.tiff", &DynamicImage::from(image.to_rgb16()));
    save(root.path(), ".hidden.png", &image);
    save(root.path(), ".thumbnails/x.png", &image);
    std::fs::write(root.path().join("notes.txt"), "not an image").unwrap();
    for cache in [CachePolicy::On, CachePolicy::Off] {
        let config = DataConfig { cache, ..config(root.path()) };
        let data = Dataset::open(&config).unwrap();
        assert_eq!(data.is_in_memory(), cache == CachePolicy::On);
        assert_eq!(data.len(), 9);
        assert_eq!(data.shape().to_string(), "3x6x5");
        for i in 0..9 {
            let got = data.get(i).unwrap();
            let last = got.pixels[got.pixels.len() - 1];
            assert!((last - 100.0 / 255.0).abs() < 0.02, "image {i}: {last}");
        }
        let summary = data.summary();
        assert_eq!(summary.other_files, 1);
        assert_eq!(summary.bits.len(), 2);
        // One image is in no class folder.
        assert!(data.classes().is_none());
        assert_eq!((data.num_classes(), data.class_of(0)), (0, None));
    }
}

/// A 9x1 PNG of 1-bit grey: white, black, white, ... Written by Pillow.
const ONE_BIT_PNG: &[u8] = &[
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 9, 0, 0, 0, 1, 1, 0, 0, 0, 0, 36, 185, 185,
    208, 0, 0, 0, 11, 73, 68, 65, 84, 120, 156, 99, 92, 117, 13, 0, 2, 48, 1, 130, 2, 57, 172, 127, 0, 0, 0, 0, 73, 69,
    78, 68, 174, 66, 96, 130,
];

/// A 3x1 PNG with a palette of 2-bit indices: red, green, blue. Written by Pillow.
const PALETTE_PNG: &[u8] = &[
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3, 0, 0, 0, 102, 142, 252,
    39, 0, 0, 0, 9, 80, 76, 84, 69, 255, 0, 0, 0, 255, 0, 0, 0, 255, 45, 74, 205, 138, 0, 0, 0, 10, 73, 68, 65, 84,
    120, 156, 99, 144, 0, 0, 0, 26, 0, 25, 45, 136, 244, 54, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
];

#[test]
fn palettes_and_single_bits_are_expanded() {
    let cases: [(&[u8], &[f32]); 2] = [
        (ONE_BIT_PNG, &[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
        (PALETTE_PNG, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
    ];
    for (bytes, expected) in cases {
        let root = folder();
        std::fs::write(root.path().join("a.png"), bytes).unwrap();
        let data = Dataset::open(&config(root.path())).unwrap();
        assert_eq!(data.get(0).unwrap().pixels, expected);
    }
}

#[test]
fn classes_are_the_innermost_folders() {
    let root = folder();
    for name in ["cat/1.png", "dog/2.png", "more/cat/3.png"] {
        save(root.path(), name, &rgb(4, 4, 9));
    }
    let data = Dataset::open(&config(root.path())).unwrap();
    assert_eq!(data.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(data.classes().unwrap(), [0, 1, 0]);
    assert_eq!((data.num_classes(), data.class_of(2), data.class_of(3)), (2, Some(0), None));
    assert_eq!(data.get(1).unwrap().class, Some(1));
    let text = data.summary().to_string();
    assert!(text.contains("cat (2), dog (1)"), "{text}");
}

#[test]
fn sixteen_bits_keep_their_depth() {
    let root = folder();
    let image = image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(2, 2, image::Luma([1234]));
    save(root.path(), "a.png", &DynamicImage::from(image));
    let data = Dataset::open(&config(root.path())).unwrap();
    assert_eq!(data.get(0).unwrap().pixels, [1234.0 / 65_535.0; 4]);
}

#[test]
fn transparency_goes_onto_white() {
    let root = folder();
    let image = image::RgbaImage::from_pixel(2, 2, image::Rgba([0, 0, 0, 51]));
    save(root.path(), "a.png", &image.into());
    assert_eq!(Dataset::open(&config(root.path())).unwrap().shape().channels, 4);
    let config = DataConfig { channels: ChannelPolicy::Exact(3), ..config(root.path()) };
    let pixels = Dataset::open(&config).unwrap().get(0).unwrap().pixels;
    assert_eq!(pixels, [204.0 / 255.0; 12]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let root = numbered(2);
    symlink(root.path(), root.path().join("again")).unwrap();
    symlink(root.path().join("gone.png"), root.path().join("dangling.png")).unwrap();
    symlink(root.path().join("000.png"), root.path().join("link.png")).unwrap();
    let summary = inspect(&config(root.path())).unwrap();
    assert_eq!((summary.images, summary.broken.len()), (3, 1));
}

#[test]
fn files_are_ordered_folder_by_folder() {
    let root = folder();
    let names = ["cat/10.png", "cat/9.png", "cat-2/1.png", "cat.png"];
    names.iter().rev().for_each(|name| save(root.path(), name, &rgb(4, 4, 1)));
    std::fs::write(root.path().join("cat/95.png"), "torn").unwrap();
    let sorted = files(&config(root.path()), &Opening::default()).unwrap().unwrap();
    assert_eq!(sorted, names.map(PathBuf::from), "as Python's pathlib sorts");
    let data = Dataset::open(&DataConfig { max_broken: 0.5, ..config(root.path()) }).unwrap();
    assert_eq!(data.names().unwrap(), sorted);
    assert_eq!(files(&DataConfig::default(), &Opening::default()).unwrap(), None);
}

#[test]
fn images_have_no_other_layout() {
    let root = numbered(3);
    let idx = root.path().join("train-images-idx3-ubyte");
    std::fs::write(&idx, [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 50, 60]).unwrap();
    let image = root.path().join("000.png");
    for path in [root.path(), &image, &idx, Path::new("digits")] {
        for layout in [DataLayout::Sequences, DataLayout::Volumes] {
            let refused = Dataset::open(&DataConfig { layout, ..config(path) }).unwrap_err();
            let text = refused.to_string();
            assert!(matches!(refused, DataError::Layout { .. }) && text.contains(&layout.to_string()), "{text}");
        }
        Dataset::open(&DataConfig { layout: DataLayout::Images, ..config(path) }).unwrap();
    }
    // Conditions take the layout of their examples.
    let sequences = root.path().join("x.npy");
    npy::write_npy_f32(&sequences, &[3, 1, 4], &[0.5; 12]).unwrap();
    let condition = Some(root.path().to_path_buf());
    let config = DataConfig { layout: DataLayout::Sequences, condition, ..config(&sequences) };
    assert!(
        matches!(Dataset::open(&config), Err(DataError::OfConditions(of)) if matches!(*of, DataError::Layout { .. }))
    );
}

#[test]
fn arrays_are_opened_resized_and_checked() {
    let root = folder();
    let path = root.path().join("x.npy");
    npy::write_npy_f32(&path, &[3, 2, 4, 4], &[0.25; 96]).unwrap();
    let sized = DataConfig { image_size: Some("3x2".parse().unwrap()), ..config(&path) };
    let data = Dataset::open(&sized).unwrap();
    assert_eq!((data.len(), data.shape().to_string().as_str()), (3, "2x3x2"));
    let pixels = data.get(2).unwrap().pixels;
    assert!(pixels.iter().all(|v| (v - 0.25).abs() < 1e-6) && pixels.len() == 12);
    assert!(matches!(data.get(3), Err(DataError::IndexOutOfRange { index: 3, len: 3 })));
    let wrong = DataConfig { channels: ChannelPolicy::Exact(3), ..config(&path) };
    assert!(matches!(error(&wrong), DataError::Channels { expected: 3, .. }));
    npy::write_npy_f32(&path, &[0, 4, 4], &[]).unwrap();
    assert!(error(&config(&path)).to_string().contains("at least one image"));
}

#[test]
fn digits_come_without_a_path_and_are_not_mirrored() {
    for path in [None, Some(PathBuf::from("digits"))] {
        let config = DataConfig { path, ..DataConfig::default() };
        let data = Dataset::open(&config).unwrap();
        assert_eq!((data.len(), data.shape().to_string().as_str()), (1797, "1x8x8"));
        assert_eq!(data.natural_flip(), Flip::Off);
        assert_eq!((data.num_classes(), data.class_of(1796)), (10, Some(8)));
    }
}

#[test]
fn vectors_follow_their_examples_into_batches() {
    let root = folder();
    let [images, vectors] = ["images.npy", "vectors.npy"].map(|name| root.path().join(name));
    write_npy_f32(&images, &[6, 1, 2, 2], &[0.5; 24]).unwrap();
    write_npy_f32(&vectors, &[6, 1], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let plain = config(&images);
    let config = DataConfig { vectors: Some(vectors.clone()), ..plain.clone() };
    let dataset = Arc::new(Dataset::open(&config).unwrap());
    assert_ne!(dataset.digest(), Dataset::open(&plain).unwrap().digest(), "a run must not go on with other vectors");
    let table = dataset.vectors().unwrap().clone();
    let loader = LoaderConfig { batch_size: 4, seed: 1, flip: Flip::Off, augment: 0.0, workers: 2 };
    let batch = Loader::new(dataset, loader).unwrap().next_batch().unwrap();
    assert_eq!(batch.vectors, Some(table.pick(batch.indices)));
    write_npy_f32(&vectors, &[5, 1], &[0.0; 5]).unwrap();
    let error = Dataset::open(&config).unwrap_err();
    assert!(error.to_string().contains("5 vectors for 6 examples"), "{error}");
}

#[test]
fn conditions_are_found_by_name_and_mirrored_with_their_images() {
    let root = folder();
    for i in 0..6_u8 {
        save(root.path(), &format!("images/{i}.png"), &rgb(4, 4, 10 * i));
        // Listed in another order, of another format and size.
        let mut grey = image::GrayImage::from_pixel(2, 2, image::Luma([40 * i]));
        grey.put_pixel(0, 0, image::Luma([0]));
        save(root.path(), &format!("conditions/{i}.bmp"), &grey.into());
        save(root.path(), &format!("conditions/unused-{i}.png"), &rgb(4, 4, 0));
    }
    let condition = Some(root.path().join("conditions"));
    let plain = config(&root.path().join("images"));
    let config = DataConfig { condition, condition_channels: ChannelPolicy::Exact(1), ..plain.clone() };
    let dataset = Arc::new(Dataset::open(&config).unwrap());
    assert_eq!(dataset.condition_shape(), Some(ImageShape { channels: 1, height: 4, width: 4 }));
    let condition = dataset.condition(3).unwrap().unwrap();
    assert!((condition[15] - 120.0 / 255.0).abs() < 1e-6 && condition[0] < condition[15], "{condition:?}");
    assert_ne!(dataset.digest(), Dataset::open(&plain).unwrap().digest(), "a run must not go on with other conditions");
    assert!(matches!(dataset.condition(6), Err(DataError::IndexOutOfRange { .. })));

    // The bright corner of an image and the dark one of its condition are on the same side.
    let loader = LoaderConfig { batch_size: 6, seed: 1, flip: Flip::On, augment: 0.0, workers: 2 };
    let batch = Loader::new(dataset, loader).unwrap().next_batch().unwrap();
    let conditions = batch.conditions.unwrap();
    let mut mirrored = 0;
    for (i, &index) in batch.indices.iter().enumerate().filter(|(_, index)| **index > 0) {
        let (image, condition) = (&batch.images.data[48 * i..][..48], &conditions.data[16 * i..][..16]);
        let is_mirrored = image[3] > image[0];
        mirrored += usize::from(is_mirrored);
        assert_eq!(is_mirrored, condition[3] < condition[0], "image {index}");
    }
    assert!((1..5).contains(&mirrored), "{mirrored}");
}

/// Whoever trains within the folder of the images has a run folder there.
#[test]
fn pictures_of_a_run_within_the_data_are_no_data() {
    let root = numbered(4);
    let open = |root: &Path| Dataset::open(&config(root)).unwrap();
    let before = open(root.path()).digest().to_string();
    for name in ["runs/one/samples/step-1.png", "runs/one/loss.png", "runs/notes/5.png"] {
        save(root.path(), name, &rgb(4, 4, 9));
    }
    for name in ["config.toml", "log.jsonl"] {
        std::fs::write(root.path().join("runs/one").join(name), "").unwrap();
    }
    assert_eq!(open(root.path()).len(), 5, "a folder of another kind is data");
    std::fs::remove_dir_all(root.path().join("runs/notes")).unwrap();
    assert_eq!(open(root.path()).digest(), before);
    // The run's own grids may be looked at.
    assert_eq!(open(&root.path().join("runs/one/samples")).len(), 1);
}
