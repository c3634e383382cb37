//! Data in the memory of the program. Not here: arrays in files, which are read by the same rules.

use std::path::Path;

use super::DataError;
use super::array::examples;
use super::classes::Classes;
use super::config::DataConfig;
use super::dataset::{Dataset, Opening};
use super::npy::{NpyArray, Values};
use super::source::Source;

/// What messages show in place of a file.
const NAME: &str = "the array in memory";

/// Values of an array, in C order.
#[derive(Clone, Debug, PartialEq)]
pub enum ArrayValues {
    /// 0 to 255.
    U8(Vec<u8>),
    /// In [0, 1] or [-1, 1], or in the configuration's `value_range`.
    F32(Vec<f32>),
}

impl Dataset {
    /// An array in memory, read like a `.npy` file that holds it: images `[n, c, h, w]`, `[n, h, w, c]` or `[n, h, w]`, sequences `[n, c, l]` or
    /// `[n, l]`, volumes `[n, c, d, h, w]` or `[n, d, h, w]` ([`DataConfig::layout`] says which). `labels` holds one class per example. The
    /// configuration's `path` and `labels` are ignored.
    ///
    /// ```
    /// use denoising_diffusion::data::{ArrayValues, DataConfig, DataLayout, Dataset};
    ///
    /// let waves = (0..32 * 64).map(|i| (i as f32 / 9.0).sin()).collect();
    /// let config = DataConfig { layout: DataLayout::Sequences, ..DataConfig::default() };
    /// let data = Dataset::in_memory(&[32, 1, 64], ArrayValues::F32(waves), None, &config)?;
    /// assert_eq!((data.len(), data.shape().width), (32, 64));
    /// # Ok::<(), denoising_diffusion::data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// The shape is of another kind, the number of values or labels is wrong, or values are not finite or out of their range.
    pub fn in_memory(
        shape: &[usize],
        values: ArrayValues,
        labels: Option<&[u32]>,
        config: &DataConfig,
    ) -> Result<Self, DataError> {
        config.validate()?;
        let path = Path::new(NAME);
        let (descr, got, values) = match values {
            ArrayValues::U8(values) => ("|u1", values.len(), Values::U8(values)),
            ArrayValues::F32(values) => ("<f4", values.len(), Values::F32(values)),
        };
        let expected = shape.iter().try_fold(1_usize, |all, side| all.checked_mul(*side));
        if expected != Some(got) {
            return Err(DataError::format(path, format!("as many values as the shape {shape:?} has"), got.to_string()));
        }
        let array = NpyArray { shape: shape.to_vec(), descr: descr.to_string(), values };
        let mut source = examples(array, path, "array in memory", config)?;
        if let Some(labels) = labels {
            if labels.len() != source.count {
                let expected = format!("{} labels", source.count);
                return Err(DataError::format(path, expected, labels.len().to_string()));
            }
            source.classes = Some(Classes::number(labels));
        }
        Self::of_source(Source::Array(source), config, &Opening::default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::npy::write_npy_f32;
    use super::super::{DataLayout, ImageShape};
    use super::*;

    #[test]
    fn arrays_in_memory_are_those_in_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let values: Vec<f32> = (0..6 * 3 * 4 * 5).map(|i| (i * i % 101) as f32 / 50.0 - 1.0).collect();
        for (shape, layout) in [
            (&[6, 3, 4, 5][..], DataLayout::Auto),
            (&[6, 4, 5, 3], DataLayout::Images),
            (&[6, 3, 20], DataLayout::Sequences),
            (&[6, 1, 3, 4, 5], DataLayout::Volumes),
        ] {
            write_npy_f32(&path, shape, &values).unwrap();
            let config = DataConfig { layout, ..DataConfig::default() };
            let here = Dataset::in_memory(shape, ArrayValues::F32(values.clone()), None, &config).unwrap();
            let there = Dataset::open(&DataConfig { path: Some(path.clone()), ..config }).unwrap();
            assert_eq!((here.digest(), here.shape(), here.layout()), (there.digest(), there.shape(), there.layout()));
            assert_eq!((here.value_range(), here.get(5).unwrap()), (there.value_range(), there.get(5).unwrap()));
        }
    }

    #[test]
    fn classes_are_those_of_the_labels() {
        let config = DataConfig::default();
        let open = |labels: &[u32]| Dataset::in_memory(&[3, 2, 2], ArrayValues::U8(vec![9; 12]), Some(labels), &config);
        let data = open(&[7, 2, 7]).unwrap();
        assert_eq!(
            (data.classes().unwrap(), data.class_names().unwrap()),
            (&[1, 0, 1][..], &["2", "7"].map(String::from)[..])
        );
        assert_eq!(data.shape(), ImageShape { channels: 1, height: 2, width: 2 });
        assert!(open(&[7, 2]).unwrap_err().to_string().contains("3 labels"));
    }

    #[test]
    fn what_is_no_array_of_examples_is_refused() {
        let refused = |shape: &[usize], values: Vec<f32>| {
            Dataset::in_memory(shape, ArrayValues::F32(values), None, &DataConfig::default()).unwrap_err().to_string()
        };
        assert!(refused(&[2, 1, 2, 2], vec![0.5; 7]).contains("[2, 1, 2, 2]"));
        assert!(refused(&[usize::MAX, 2, 2], vec![0.5; 8]).contains("the array in memory"));
        assert!(refused(&[8], vec![0.5; 8]).contains("[n, c, h, w]"));
        assert!(refused(&[0, 2, 2], vec![]).contains("at least one image"));
        assert!(refused(&[1, 2, 2], vec![0.5, f32::NAN, 0.0, 0.0]).contains("the array in memory"));
    }
}
