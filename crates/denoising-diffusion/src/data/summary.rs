//! The contents of a source, counted: for `ddpm inspect` and the lines printed before training.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};

use super::array::ArraySource;
use super::classes::Classes;
use super::error::{printable, shown};
use super::folder::{self, Scan};
use super::{Broken, DataLayout, ImageShape, ImageSize};

/// How many images share a property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tally<T> {
    /// The property.
    pub value: T,
    /// Number of images that have it.
    pub images: usize,
}

/// Sizes as `28x28`: one type for squares, which a recipe may also write as a number, and others.
fn in_full<S: Serializer>(sizes: &[Tally<ImageSize>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(sizes.iter().map(|size| Tally { value: size.value.full(), images: size.images }))
}

/// Counts and kinds of a source. Displayed as aligned lines.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Path, or `digits`.
    pub source: String,
    /// What it is, in words.
    pub kind: String,
    /// Number of usable images.
    pub images: usize,
    /// Shape used in training; `None` if images differ and the configuration names no size or channels.
    pub shape: Option<ImageShape>,
    /// How the shape is to be read: slices of volumes are stacked vertically.
    pub layout: DataLayout,
    /// Number of slices of a volume; 1 for other data.
    pub depth: usize,
    /// Number of images per class, in the order of the classes' numbers; empty without classes.
    pub classes: Vec<Tally<String>>,
    /// Why the labels that came with the images cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignored_labels: Option<String>,
    /// Number of images per stored size, most frequent first.
    #[serde(serialize_with = "in_full")]
    pub sizes: Vec<Tally<ImageSize>>,
    /// Number of images per stored number of channels, most frequent first.
    pub channels: Vec<Tally<usize>>,
    /// Number of images per stored number of bits per value, most frequent first.
    pub bits: Vec<Tally<u32>>,
    /// Range of an array's values and what it is mapped to.
    pub values: Option<String>,
    /// Files with the name of an image that are skipped.
    pub broken: Vec<Broken>,
    /// Number of other visible files in the folder.
    pub other_files: usize,
}

impl Summary {
    pub(super) fn of_folder(root: &Path, scan: &Scan, shape: Option<ImageShape>) -> Self {
        let shapes = || scan.files.iter().map(|file| file.probe.shape);
        Self {
            source: shown(root),
            kind: "image folder".into(),
            images: scan.files.len(),
            shape,
            layout: DataLayout::Images,
            depth: 1,
            classes: folder::classes(&scan.files).as_ref().map(per_class).unwrap_or_default(),
            ignored_labels: None,
            sizes: tally(shapes().map(|shape| shape.size())),
            channels: tally(shapes().map(|shape| shape.channels)),
            bits: tally(scan.files.iter().map(|file| file.probe.bits)),
            values: None,
            broken: scan.broken.clone(),
            other_files: scan.other_files,
        }
    }

    pub(super) fn of_array(source: &ArraySource, size: Option<ImageSize>) -> Self {
        let ImageSize { height, width } = size.unwrap_or(source.shape.size());
        let all = source.count;
        let shape = ImageShape { channels: source.shape.channels, height, width };
        Self {
            source: shown(&source.path),
            kind: source.kind.into(),
            images: all,
            shape: Some(shape).filter(|shape| all > 0 && !shape.is_empty()),
            layout: source.layout,
            depth: source.depth,
            classes: source.classes.as_ref().map(per_class).unwrap_or_default(),
            ignored_labels: source.ignored_labels.clone(),
            sizes: vec![Tally { value: source.shape.size(), images: all }],
            channels: vec![Tally { value: source.shape.channels, images: all }],
            bits: vec![Tally { value: source.samples.bits(), images: all }],
            values: Some(source.values.clone()),
            broken: Vec::new(),
            other_files: 0,
        }
    }
}

fn per_class(classes: &Classes) -> Vec<Tally<String>> {
    let mut counts = vec![0; classes.names.len()];
    for &class in &classes.of_image {
        counts[class as usize] += 1;
    }
    let names = classes.names.iter().cloned();
    names.zip(counts).map(|(value, images)| Tally { value, images }).collect()
}

/// Counts equal values; the most frequent first, then in the order of the values.
fn tally<T: Ord>(values: impl Iterator<Item = T>) -> Vec<Tally<T>> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0) += 1;
    }
    let mut tallies: Vec<_> = counts.into_iter().map(|(value, images)| Tally { value, images }).collect();
    tallies.sort_by_key(|tally| std::cmp::Reverse(tally.images));
    tallies
}

/// The largest number of entries of one kind that are shown.
const SHOWN: usize = 12;

/// `a 10, b 7, c 3`, or only `a` if every image has it.
fn list<T>(tallies: &[Tally<T>], show: impl Fn(&T) -> String) -> String {
    if let [only] = tallies {
        return show(&only.value);
    }
    let mut parts: Vec<String> =
        tallies.iter().take(SHOWN).map(|tally| format!("{} ({})", show(&tally.value), tally.images)).collect();
    if tallies.len() > SHOWN {
        parts.push(format!("and {} more", tallies.len() - SHOWN));
    }
    parts.join(", ")
}

fn channels_name(channels: &usize) -> String {
    match channels {
        1 => "1 grey".into(),
        2 => "2 grey-alpha".into(),
        3 => "3 RGB".into(),
        4 => "4 RGBA".into(),
        n => n.to_string(),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "source     {} ({})", self.source, self.kind)?;
        write!(f, "images     {}", self.images)?;
        if !self.broken.is_empty() {
            write!(f, " ({} broken files skipped)", self.broken.len())?;
        }
        if self.other_files > 0 {
            write!(f, " ({} other files ignored)", self.other_files)?;
        }
        writeln!(f)?;
        let stored = list(&self.sizes, ImageSize::full);
        writeln!(f, "size       {stored} (height x width)")?;
        match self.kind.as_str() {
            "image folder" => {
                writeln!(f, "channels   {}", list(&self.channels, channels_name))?;
            }
            _ => writeln!(f, "channels   {}", list(&self.channels, usize::to_string))?,
        }
        writeln!(f, "bit depth  {}", list(&self.bits, u32::to_string))?;
        if let Some(values) = &self.values {
            writeln!(f, "values     {values}")?;
        }
        match self.shape {
            Some(shape) => writeln!(f, "trained as {}", self.layout.shape_in_words(shape, self.depth))?,
            None if self.images == 0 => writeln!(f, "trained as nothing: there are no usable images")?,
            None => writeln!(f, "trained as (images differ: give --image-size or --channels)")?,
        }
        if self.classes.is_empty() {
            writeln!(f, "classes    none")?;
        } else {
            let names = list(&self.classes, |name| printable(name));
            writeln!(f, "classes    {}: {names}", self.classes.len())?;
        }
        if let Some(why) = &self.ignored_labels {
            writeln!(f, "labels     ignored: {why}")?;
        }
        for broken in &self.broken {
            writeln!(f, "broken     {broken}")?;
        }
        Ok(())
    }
}
