//! Classes of images: how names of folders and stored labels become numbers, and labels in files of their own.
//!
//! Classes are numbered 0 to n - 1 in the order of their names (folders) or values (labels), without gaps, as a network's class embedding needs. A
//! class without images does not exist.

use std::io::BufReader;
use std::path::Path;

use super::npy::{NpyArray, read_npy};
use super::source::{first_bytes, open_file};
use super::{DataError, idx};

/// A class for every image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Classes {
    /// Below `names.len()`.
    pub(super) of_image: Vec<u32>,
    /// Names of folders, or values of labels.
    pub(super) names: Vec<String>,
}

impl Classes {
    /// Numbers the distinct values in ascending order and names each class by its value.
    pub(super) fn number<T: Ord + ToString>(values: &[T]) -> Self {
        Self::number_named(values, T::to_string)
    }

    /// Numbers the distinct values in ascending order, with names made by `name`.
    pub(super) fn number_named<T: Ord>(values: &[T], name: impl Fn(&T) -> String) -> Self {
        let mut distinct: Vec<&T> = values.iter().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let class = |value| distinct.partition_point(|known| *known < value) as u32;
        Self { of_image: values.iter().map(class).collect(), names: distinct.into_iter().map(name).collect() }
    }

    /// The same classes with the numbers that they have in `names`. `None` if one of them is not in it.
    pub(super) fn numbered_as(&self, names: &[String]) -> Option<Self> {
        let numbers: Vec<u32> = self
            .names
            .iter()
            .map(|name| names.iter().position(|known| known == name).map(|number| number as u32))
            .collect::<Option<_>>()?;
        let of_image = self.of_image.iter().map(|&class| numbers[class as usize]).collect();
        Some(Self { of_image, names: names.to_vec() })
    }

    /// True if each class is named by its number, as labels without gaps are.
    pub(super) fn named_by_number(&self) -> bool {
        self.names.iter().enumerate().all(|(class, name)| *name == class.to_string())
    }
}

/// Reads labels for `images` images from a file of their own, IDX or `.npy`.
///
/// # Errors
/// Another kind of file, values that are not labels, or another number of labels.
pub(super) fn load(path: &Path, images: usize) -> Result<Classes, DataError> {
    let first = first_bytes(path)?;
    if !first.starts_with(b"\x93NUM") {
        return idx::load_labels(path, images);
    }
    let file = open_file(path)?;
    demand(read_npy(BufReader::new(file), path)?, path, images)
}

/// Like [`of_array`], but an array that does not hold labels is an error.
///
/// # Errors
/// As [`of_array`]; also another type or shape.
pub(super) fn demand(array: NpyArray, path: &Path, images: usize) -> Result<Classes, DataError> {
    let found = format!("dtype `{}`, shape {:?}", array.descr, array.shape);
    of_array(array, path, images)?.ok_or_else(|| DataError::format(path, "integer labels of shape [n]", found))
}

/// Integer labels of shape `[n]` or `[n, 1]`; `None` for other arrays, which do not hold labels. `path` is only used in messages.
///
/// # Errors
/// Labels below 0 or beyond 32 bits, or a number of labels other than `images`.
pub(super) fn of_array(array: NpyArray, path: &Path, images: usize) -> Result<Option<Classes>, DataError> {
    let ([count] | [count, 1]) = array.shape[..] else { return Ok(None) };
    let Some(labels) = array.values.integers() else { return Ok(None) };
    let label = |label| {
        let found = || DataError::format(path, "labels from 0 to 4294967295", format!("label {label}"));
        u32::try_from(label).map_err(|_| found())
    };
    let labels: Vec<u32> = labels.map(label).collect::<Result<_, _>>()?;
    check_count(path, count, images)?;
    Ok(Some(Classes::number(&labels)))
}

/// Refuses a number of labels that is not that of the images.
pub(super) fn check_count(path: &Path, labels: usize, images: usize) -> Result<(), DataError> {
    if labels == images { Ok(()) } else { Err(DataError::LabelCount { path: path.to_path_buf(), labels, images }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::npy::Values;

    fn array(shape: &[usize], values: Values) -> NpyArray {
        NpyArray { shape: shape.to_vec(), descr: "?".into(), values }
    }

    #[test]
    fn values_are_numbered_without_gaps_in_their_order() {
        let classes = Classes::number(&[7_u32, 3, 10, 3]);
        assert_eq!(classes.of_image, [1, 0, 2, 0]);
        // By value, not as text.
        assert_eq!(classes.names, ["3", "7", "10"]);
        assert!(!classes.named_by_number());
        assert!(Classes::number(&[1_u32, 0, 2]).named_by_number());
        assert_eq!(Classes::number(&["dog", "cat", "dog"]).of_image, [1, 0, 1]);
        assert!(Classes::number::<u32>(&[]).names.is_empty());
    }

    #[test]
    fn classes_take_the_numbers_of_others_by_name() {
        let names = ["0", "1", "2"].map(String::from);
        let classes = Classes::number(&[2_u32, 1, 2]).numbered_as(&names).unwrap();
        assert_eq!((classes.of_image, &classes.names[..]), (vec![2, 1, 2], &names[..]));
        assert_eq!(Classes::number(&[2_u32, 3]).numbered_as(&names), None);
    }

    #[test]
    fn labels_are_integers_of_the_same_number() {
        let path = Path::new("x.npz/labels");
        let found = of_array(array(&[3, 1], Values::Int(vec![2, 0, 1])), path, 3).unwrap().unwrap();
        assert_eq!(found.of_image, [2, 0, 1]);
        assert_eq!(found.names, ["0", "1", "2"]);
        let wrong = of_array(array(&[2], Values::U8(vec![0, 1])), path, 3);
        assert!(matches!(wrong, Err(DataError::LabelCount { labels: 2, images: 3, .. })));
        let negative = of_array(array(&[1], Values::Int(vec![-1])), path, 1).unwrap_err();
        assert!(negative.to_string().contains("label -1"), "{negative}");
        assert!(of_array(array(&[1], Values::F32(vec![0.0])), path, 1).unwrap().is_none());
        assert!(of_array(array(&[1, 2], Values::U8(vec![0, 1])), path, 1).unwrap().is_none());
    }
}
