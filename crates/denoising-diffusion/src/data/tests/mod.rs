//! Sources, loader and errors together, on files written for the purpose; and shared helpers.

mod classes;
mod identity;
mod large;
mod loading;
mod odd_files;
mod refused;
mod sources;

use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat};
use tempfile::TempDir;

use super::{DataConfig, DataError, Dataset};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A path below `root`, whose parent exists.
fn at(root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

/// An RGB image whose every pixel is `level`, with a brighter top-left pixel.
fn rgb(height: u32, width: u32, level: u8) -> DynamicImage {
    let mut image = image::RgbImage::from_pixel(width, height, image::Rgb([level; 3]));
    image.put_pixel(0, 0, image::Rgb([255; 3]));
    image.into()
}

fn save(root: &Path, name: &str, image: &DynamicImage) {
    image.save_with_format(at(root, name), format_of(name)).unwrap();
}

fn format_of(name: &str) -> ImageFormat {
    ImageFormat::from_path(name.to_ascii_lowercase()).unwrap()
}

fn config(path: &Path) -> DataConfig {
    DataConfig { path: Some(path.to_path_buf()), workers: 2, ..DataConfig::default() }
}

/// `count` RGB images of 4x4, image `i` of level `i`.
fn numbered(count: usize) -> TempDir {
    let root = folder();
    for i in 0..count {
        save(root.path(), &format!("{i:03}.png"), &rgb(4, 4, i as u8));
    }
    root
}

fn error(config: &DataConfig) -> DataError {
    Dataset::open(config).unwrap_err()
}
