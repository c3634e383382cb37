//! What is refused, and with which message.

use std::path::Path;

use image::DynamicImage;

use super::super::*;
use super::{at, config, error, folder, format_of, numbered, rgb, save};

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
