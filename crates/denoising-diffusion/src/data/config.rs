//! The configuration of data: its keys and their defaults. Not here: the types of their values (`shape.rs`, `policy.rs`), and whether the settings
//! fit a particular source, which is checked when the source is opened.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::DataError;
use super::policy::{CachePolicy, DataLayout, Flip, ResizePolicy, ValueRange, Verify};
use super::prefetch::{check_workers, usual_workers};
use super::shape::{ChannelPolicy, ImageSize};
use super::vector_table::VectorScale;

/// Everything that decides which images are trained on and how they are prepared.
///
/// Field names are the keys of a recipe's data table and, in kebab-case, the flags of the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder, IDX, `.npy` or `.npz` file. None or `digits`: the embedded digits; a folder of that name is given as `./digits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// IDX or `.npy` file with the labels of an array of images. None: the labels in the `.npz` file or beside the IDX file, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// Folder or array with a condition for each example, matched by name (by index in arrays) and resized to the same size by the same rule; the
    /// network is given it beside the noisy example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<PathBuf>,
    /// `.npy` file `[n, dim]` with a vector for each example, in the order of the array or of the files ([`Dataset::names`](super::Dataset::names));
    /// scaled to mean 0 and standard deviation 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vectors: Option<PathBuf>,
    /// Number of channels of the condition.
    pub condition_channels: ChannelPolicy,
    /// Training size. None: the size of the data, if all images have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<ImageSize>,
    /// Number of channels.
    pub channels: ChannelPolicy,
    /// How images of another size are resized.
    pub resize: ResizePolicy,
    /// What an array holds.
    pub layout: DataLayout,
    /// Range of an array's values. None: 0 to 255 for uint8, 0 to 65535 for uint16, [0, 1] or [-1, 1] for floats; measured for other values of
    /// sequences and volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_range: Option<ValueRange>,
    /// The same for `condition`. None: as for arrays of examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition_value_range: Option<ValueRange>,
    /// What 0 and 1 stood for when the network that is to be given these data was trained. Used in place of a newly measured range, and in place of a
    /// type's range, unless that is a type of pixels. Not a key of a recipe.
    #[serde(skip)]
    pub trained_range: Option<[f64; 2]>,
    /// The same for `condition`.
    #[serde(skip)]
    pub trained_condition_range: Option<[f64; 2]>,
    /// How `vectors` were scaled when that network was trained, used in place of their own mean and deviation.
    #[serde(skip)]
    pub trained_vectors: Option<VectorScale>,
    /// Tell the network the class of each image.
    pub class_condition: bool,
    /// Horizontal mirroring of training images.
    pub flip: Flip,
    /// Probability of each of the transformations of [`augment`](super::augment) of a training image, in [0, 1]; 0: none. Images only.
    #[serde(skip_serializing_if = "is_zero")]
    pub augment: f64,
    /// Fraction of the images held out for evaluation, in [0, 1); at most 1000 images, and none if there are fewer than 40.
    pub held_out: f64,
    /// Whether decoded files, and arrays, are kept in memory.
    pub cache: CachePolicy,
    /// Limit of [`CachePolicy::Auto`], MiB.
    pub cache_mib: usize,
    /// Number of threads that read and decode, at most 1024; 0: chosen automatically.
    pub workers: usize,
    /// Largest fraction of broken files, in [0, 1], that is skipped; more is an error.
    pub max_broken: f64,
    /// How files are checked before training.
    pub verify: Verify,
}

/// For serde: what need not be written.
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: None,
            labels: None,
            condition: None,
            vectors: None,
            condition_channels: ChannelPolicy::Auto,
            image_size: None,
            channels: ChannelPolicy::Auto,
            resize: ResizePolicy::Crop,
            layout: DataLayout::Auto,
            value_range: None,
            condition_value_range: None,
            trained_range: None,
            trained_condition_range: None,
            trained_vectors: None,
            class_condition: false,
            flip: Flip::Auto,
            augment: 0.0,
            held_out: 0.05,
            cache: CachePolicy::Auto,
            cache_mib: 1024,
            workers: 0,
            max_broken: 0.01,
            verify: Verify::Full,
        }
    }
}

impl DataConfig {
    /// The same data without what they belong to: no classes, conditions or vectors.
    pub fn images_alone(self) -> Self {
        Self {
            labels: None,
            class_condition: false,
            condition: None,
            condition_channels: ChannelPolicy::Auto,
            condition_value_range: None,
            trained_condition_range: None,
            vectors: None,
            trained_vectors: None,
            ..self
        }
    }

    /// Checks whatever can be checked without the data.
    ///
    /// # Errors
    /// [`DataError::Setting`] naming the key.
    pub fn validate(&self) -> Result<(), DataError> {
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(DataError::Setting {
                key: "held_out",
                value: self.held_out.to_string(),
                expected: "a fraction of at least 0 and less than 1",
            });
        }
        for (key, range) in [("value_range", self.value_range), ("condition_value_range", self.condition_value_range)] {
            if let Some(ValueRange::Declared([low, high])) = range
                && !(low.is_finite() && high.is_finite() && low < high)
            {
                let expected = "two finite numbers, the lower one first";
                return Err(DataError::Setting { key, value: format!("{low},{high}"), expected });
            }
        }
        if !(0.0..=1.0).contains(&self.augment) {
            return Err(DataError::Setting {
                key: "augment",
                value: self.augment.to_string(),
                expected: "a probability from 0 to 1",
            });
        }
        if !(0.0..=1.0).contains(&self.max_broken) {
            return Err(DataError::Setting {
                key: "max_broken",
                value: self.max_broken.to_string(),
                expected: "a fraction from 0 to 1",
            });
        }
        check_workers(self.workers)
    }

    /// Bytes of data that may be kept in memory.
    pub(super) fn memory_limit(&self) -> u64 {
        match self.cache {
            CachePolicy::Off => 0,
            CachePolicy::On => u64::MAX,
            CachePolicy::Auto => (self.cache_mib as u64).saturating_mul(1 << 20),
        }
    }

    /// Number of threads that read and decode files.
    pub(super) fn worker_count(&self) -> usize {
        match self.workers {
            0 => usual_workers(),
            n => n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_reads_integers_and_text_and_survives_a_round_trip() {
        let read = |json: &str| serde_json::from_str::<DataConfig>(json);
        let config =
            read(r#"{"image_size": "28x20", "channels": 3, "resize": "pad", "flip": "off", "cache": "on"}"#).unwrap();
        assert_eq!(config.image_size.unwrap().width, 20);
        assert_eq!(config.channels, ChannelPolicy::Exact(3));
        assert_eq!(config.resize, ResizePolicy::Pad);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(read(&text).unwrap(), config);
        assert_eq!(read(r#"{"image_size": 28}"#).unwrap().image_size, Some(ImageSize::square(28)));
        assert_eq!(read("{}").unwrap(), DataConfig::default());
    }

    #[test]
    fn images_alone_belong_to_nothing_and_are_prepared_as_before() {
        let images = DataConfig {
            path: Some("images".into()),
            channels: ChannelPolicy::Exact(3),
            resize: ResizePolicy::Pad,
            value_range: Some(ValueRange::Declared([0.0, 2.0])),
            trained_range: Some([0.0, 1.0]),
            ..DataConfig::default()
        };
        let with_all = DataConfig {
            labels: Some("labels".into()),
            class_condition: true,
            condition: Some("conditions".into()),
            condition_channels: ChannelPolicy::Exact(1),
            condition_value_range: Some(ValueRange::Declared([0.0, 2.0])),
            trained_condition_range: Some([0.0, 1.0]),
            vectors: Some("vectors".into()),
            trained_vectors: Some(VectorScale { mean: vec![0.0], deviation: vec![1.0] }),
            ..images.clone()
        };
        assert_eq!(with_all.images_alone(), images);
    }

    #[test]
    fn a_wrong_recipe_says_what_is_accepted() {
        for (json, expected) in [
            (r#"{"image_sizes": 28}"#, "image_sizes"),
            (r#"{"image_size": 0}"#, "28x20"),
            (r#"{"image_size": 1.5}"#, "28x20"),
            (r#"{"channels": "two"}"#, "auto"),
            (r#"{"channels": -1}"#, "auto"),
            (r#"{"flip": "yes"}"#, "off"),
            (r#"{"resize": "zoom"}"#, "stretch"),
        ] {
            let error = serde_json::from_str::<DataConfig>(json).unwrap_err();
            let text = error.to_string().to_lowercase();
            assert!(text.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn fractions_are_checked() {
        for held_out in [-0.1, 1.0, f64::NAN] {
            let config = DataConfig { held_out, ..DataConfig::default() };
            assert!(config.validate().unwrap_err().to_string().contains("held_out"));
        }
        let config = DataConfig { max_broken: 1.5, ..DataConfig::default() };
        assert!(config.validate().unwrap_err().to_string().contains("max_broken"));
        DataConfig::default().validate().unwrap();
    }
}
