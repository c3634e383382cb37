//! The condition of each example: another image, sequence or volume that it goes with (the small version of a large picture, the outline of a shoe),
//! matched by name, or by index in arrays. Not here: how a network uses it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::error::shown;
use super::order::Mirror;
use super::policy::DataLayout;
use super::{Broken, DataConfig, DataError, Dataset, ImageShape, Opening};

/// Conditions of the examples of a dataset.
#[derive(Debug)]
pub(super) struct Conditions {
    data: Box<Dataset>,
    /// Index of the condition of example i.
    of_example: Vec<usize>,
}

/// An error in the data of the conditions, with the name that their range has in the configuration.
fn of_conditions(mut error: DataError) -> DataError {
    if let DataError::Setting { key: key @ "value_range", .. } = &mut error {
        *key = "condition_value_range";
    }
    DataError::OfConditions(Box::new(error))
}

impl Conditions {
    /// Opens `path` as conditions for a dataset that was opened with `config`: resized to the same size by the same rule, with their own number of
    /// channels.
    pub(super) fn open(
        path: &Path,
        examples: &Dataset,
        config: &DataConfig,
        opening: &Opening<'_>,
    ) -> Result<Self, DataError> {
        let images = examples.layout() == DataLayout::Images;
        let config = DataConfig {
            path: Some(path.to_path_buf()),
            image_size: images.then(|| examples.shape().size()),
            channels: config.condition_channels,
            layout: examples.layout(),
            value_range: config.condition_value_range,
            trained_range: config.trained_condition_range,
            ..config.clone().images_alone()
        };
        let data = Dataset::open_with(&config, opening).map_err(of_conditions)?;
        if data.shape().size() != examples.shape().size() || data.depth() != examples.depth() {
            let reason = format!(
                "they are {}, but the examples are {}",
                data.shape().size().full(),
                examples.shape().size().full()
            );
            return Err(DataError::Conditions { path: path.to_path_buf(), reason });
        }
        let of_example =
            matched(&data, examples).map_err(|reason| DataError::Conditions { path: path.to_path_buf(), reason })?;
        Ok(Self { data: Box::new(data), of_example })
    }

    pub(super) fn shape(&self) -> ImageShape {
        self.data.shape()
    }

    pub(super) fn trained_range(&self) -> Option<[f64; 2]> {
        self.data.trained_range()
    }

    pub(super) fn digest(&self) -> &str {
        self.data.digest()
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.data.is_in_memory()
    }

    pub(super) fn bytes_in_memory(&self) -> u64 {
        self.data.bytes_in_memory()
    }

    /// Writes the condition of an example as `[c, h, w]` in [0, 1].
    pub(super) fn write(&self, example: usize, mirror: Mirror, out: &mut [f32]) -> Result<(), DataError> {
        self.data.write_image(self.of_example[example], mirror, out)
    }
}

/// The index of each example's condition, or the reason, in words, why some example has none.
fn matched(conditions: &Dataset, examples: &Dataset) -> Result<Vec<usize>, String> {
    match (conditions.names(), examples.names()) {
        (Some(names), Some(examples)) => by_name(names, &conditions.summary().broken, examples),
        (None, None) if conditions.len() == examples.len() => Ok((0..examples.len()).collect()),
        (None, None) => Err(format!("{} for {} examples", conditions.len(), examples.len())),
        (None, Some(_)) => Err("the examples are files, which are matched by name, but this is an array".into()),
        (Some(_), None) => {
            Err("the examples are an array, whose entries are matched by index, but these are files".into())
        }
    }
}

/// Matches by the full name, else by the name without its extension, which must be unique.
fn by_name(conditions: &[PathBuf], broken: &[Broken], examples: &[PathBuf]) -> Result<Vec<usize>, String> {
    let whole: HashMap<&Path, usize> = conditions.iter().enumerate().map(|(i, path)| (path.as_path(), i)).collect();
    let mut stems: HashMap<PathBuf, Vec<usize>> = HashMap::new();
    for (i, path) in conditions.iter().enumerate() {
        stems.entry(path.with_extension("")).or_default().push(i);
    }
    let of = |path: &PathBuf| match (whole.get(path.as_path()), stems.get(&path.with_extension("")).map(|of| &of[..])) {
        (Some(&place), _) | (None, Some(&[place])) => Ok(place),
        (None, Some(&[one, other, ..])) => {
            let [one, other] = [one, other].map(|place| shown(&conditions[place]));
            Err(format!("{one} and {other} both match {}", shown(path)))
        }
        (None, _) => {
            let unusable = broken.iter().find(|broken| broken.path.with_extension("") == path.with_extension(""));
            Err(unusable.map_or_else(
                || format!("no file matches {}", shown(path)),
                |broken| format!("the file that matches {} is broken: {broken}", shown(path)),
            ))
        }
    };
    examples.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(conditions: &[&str], examples: &[&str]) -> Result<Vec<usize>, String> {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let broken = [Broken { path: "torn.png".into(), reason: "empty".into() }];
        by_name(&paths(conditions), &broken, &paths(examples))
    }

    #[test]
    fn names_are_matched_as_exactly_as_they_can_be() {
        assert_eq!(matches(&["a.bmp", "b.png"], &["b.jpg", "a.png"]), Ok(vec![1, 0]));
        assert_eq!(matches(&["a.jpg", "a.png"], &["a.png", "a.jpg"]), Ok(vec![1, 0]));
        let doubled = matches(&["a.jpg", "a.png"], &["a.bmp"]).unwrap_err();
        assert!(doubled.contains("a.jpg and a.png both match"), "{doubled}");
        assert_eq!(matches(&["a.jpg"], &["c.png"]).unwrap_err(), "no file matches c.png");
        assert_eq!(
            matches(&["a.jpg"], &["torn.jpg"]).unwrap_err(),
            "the file that matches torn.jpg is broken: torn.png: empty"
        );
    }
}
