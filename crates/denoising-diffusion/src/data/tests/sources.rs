//! What can be opened, what is refused, and with which message.

use crate::data::npy::write_npy_f32;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use image::DynamicImage;

use super::super::*;
use super::{at, config, error, folder, format_of, numbered, rgb, save};

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

#[test]
fn missing_empty_and_unknown_sources() {
    let root = folder();
    let missing = error(&config(&root.path().join("nowhere")));
    assert!(matches!(missing, DataError::NotFound { .. }), "{missing}");
    assert!(missing.hint().unwrap().contains("digits"));
    let empty = error(&config(root.path()));
    assert!(matches!(empty, DataError::NoImages { other_files: 0, .. }));
    assert!(matches!(inspect(&config(root.path())), Err(DataError::NoImages { .. })));
    let array = root.path().join("train-images-idx3-ubyte.gz");
    std::fs::write(&array, "later").unwrap();
    let hint = error(&config(root.path())).hint().unwrap();
    assert!(hint.contains("train-images-idx3-ubyte.gz"), "{hint}");
    let unknown = error(&config(&array));
    assert!(matches!(unknown, DataError::UnknownFormat { .. }), "{unknown}");
    std::fs::write(&array, "").unwrap();
    assert!(matches!(error(&config(&array)), DataError::UnknownFormat { .. }));
}

/// Header of a PNG that claims `side` x `side` grey pixels, with the wrong amount of data.
fn png_header(side: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        let body = [name, data].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&body);
        bytes.extend(body);
        bytes.extend(crc.sum().to_be_bytes());
    };
    let side = side.to_be_bytes();
    chunk(b"IHDR", &[&side[..], &side[..], &[8, 0, 0, 0, 0]].concat());
    chunk(b"IDAT", &[0x78, 0x9c, 0x03, 0, 0, 0, 0, 1]);
    chunk(b"IEND", &[]);
    bytes
}

/// Every kind of file that cannot be used, with a part of the reason.
fn broken_files(root: &Path) -> Vec<(&'static str, &'static str)> {
    let whole = |name: &str| {
        let path = at(root, name);
        let mut noise = rgb(40, 40, 0).to_rgb8();
        for (x, y, pixel) in noise.enumerate_pixels_mut() {
            *pixel = image::Rgb([x, y, x * y].map(|v| (v * 7919 % 251) as u8));
        }
        noise.save_with_format(&path, format_of(name)).unwrap();
        std::fs::read(path).unwrap()
    };
    let cut = |name: &str| {
        let bytes = whole(name);
        std::fs::write(root.join(name), &bytes[..bytes.len() / 2]).unwrap();
    };
    std::fs::write(at(root, "zero.png"), "").unwrap();
    std::fs::write(at(root, "text.png"), "This is no image.\n").unwrap();
    std::fs::write(at(root, "huge.png"), png_header(30_000)).unwrap();
    std::fs::write(at(root, "short.png"), png_header(16)).unwrap();
    std::fs::write(at(root, "gif.png"), b"GIF89a\x01\x00\x01\x00\x00\x00\x00;").unwrap();
    let cut_files = ["cut.png", "cut.jpg", "cut.bmp", "cut.webp", "cut.tif"];
    cut_files.iter().for_each(|name| cut(name));
    let mut reasons = vec![
        ("zero.png", "0 bytes"),
        ("text.png", "not an image"),
        ("huge.png", "limit is 512 MiB"),
        ("short.png", ""),
        ("gif.png", "not supported"),
    ];
    reasons.extend(cut_files.map(|name| (name, "")));
    reasons
}

#[test]
fn broken_files_are_named_with_their_reason() {
    let root = numbered(1);
    let expected = broken_files(root.path());
    let summary = inspect(&config(root.path())).unwrap();
    assert_eq!(summary.images, 1);
    for (name, reason) in &expected {
        let found = summary.broken.iter().find(|b| b.path == Path::new(name));
        let found = found.unwrap_or_else(|| panic!("{name} passed as whole"));
        assert!(found.reason.contains(reason), "{found}");
        assert!(!found.reason.is_empty());
        assert!(summary.to_string().contains(name));
    }
    assert_eq!(summary.broken.len(), expected.len());
    let refused = error(&config(root.path()));
    let text = refused.to_string();
    assert!(text.contains("10 of 11") && text.contains("7 more"), "{text}");
    assert!(refused.hint().unwrap().contains("inspect"));
}

#[test]
fn one_broken_file_in_a_hundred_is_skipped_and_two_are_not() {
    let root = numbered(99);
    std::fs::write(root.path().join("bad.png"), "text").unwrap();
    let data = Dataset::open(&config(root.path())).unwrap();
    assert_eq!((data.len(), data.summary().broken.len()), (99, 1));
    std::fs::write(root.path().join("worse.png"), "").unwrap();
    let refused = error(&config(root.path()));
    assert!(matches!(refused, DataError::TooManyBroken { total: 101, .. }), "{refused}");
    let lenient = DataConfig { max_broken: 0.02, ..config(root.path()) };
    assert_eq!(Dataset::open(&lenient).unwrap().len(), 99);
}

#[test]
fn one_image_of_another_size_or_channels() {
    let root = numbered(3);
    save(root.path(), "odd.png", &rgb(6, 8, 1));
    let refused = error(&config(root.path()));
    let text = refused.to_string();
    assert!(text.contains("odd.png is 6x8") && text.contains("4x4"), "{text}");
    assert!(refused.hint().unwrap().contains("--image-size 4"));
    let summary = inspect(&config(root.path())).unwrap();
    assert_eq!((summary.shape, summary.sizes.len()), (None, 2));
    let sized = DataConfig { image_size: Some(ImageSize::square(4)), ..config(root.path()) };
    assert_eq!(Dataset::open(&sized).unwrap().len(), 4);
    save(root.path(), "odd.png", &DynamicImage::from(rgb(4, 4, 1).to_luma8()));
    let refused = error(&config(root.path()));
    assert!(refused.to_string().contains("odd.png has 1, most have 3"), "{refused}");
    assert!(refused.hint().unwrap().contains("--channels 3"));
    let grey = DataConfig { channels: ChannelPolicy::Exact(1), ..config(root.path()) };
    assert_eq!(Dataset::open(&grey).unwrap().shape().to_string(), "1x4x4");
    let five = DataConfig { channels: ChannelPolicy::Exact(5), ..config(root.path()) };
    assert!(matches!(error(&five), DataError::Channels { expected: 5, .. }));
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
