//! A vector of numbers for each example, such as measurements or the embedding of a text, from a `.npy` file. Not here: how a network uses it.

use std::io::BufReader;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::DataError;
use super::npy::read_numbers;
use super::source::open_file;
use crate::digest::Digest;

/// What is subtracted from each component of a vector, and what it is then divided by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VectorScale {
    pub mean: Vec<f64>,
    pub deviation: Vec<f64>,
}

/// Vectors in the order of their examples, each component scaled to mean 0 and standard deviation 1.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorTable {
    dim: usize,
    values: Vec<f32>,
    scale: VectorScale,
    digest: String,
}

impl VectorTable {
    /// Reads numbers of any type: `[n, dim]`, or `[n]` for one number per example. They are scaled by their own mean and standard deviation (a
    /// component that is the same in all vectors is only shifted to 0), or by `scale`.
    ///
    /// # Errors
    /// There is no such array, its shape is another, a value is not finite (before or after scaling), or the vectors are not of the length of `scale`. With `scale`, `[dim]` is
    /// one vector.
    pub fn open(path: &Path, scale: Option<&VectorScale>) -> Result<Self, DataError> {
        let file = open_file(path)?;
        let (shape, values) = read_numbers(BufReader::new(file), path)?;
        let expected = scale.map(|scale| scale.mean.len());
        let (n, dim) = match (&shape[..], expected) {
            (&[n], Some(dim)) if n == dim => (1, dim),
            (&[n], _) => (n, 1),
            (&[n, dim], _) => (n, dim),
            _ => return Err(DataError::format(path, "vectors of shape [n, dim] or [n]", format!("shape {shape:?}"))),
        };
        if n * dim == 0 || expected.is_some_and(|expected| expected != dim) {
            let expected =
                expected.map_or("at least one number".to_string(), |dim| format!("vectors of {dim} numbers"));
            return Err(DataError::format(path, expected, format!("shape {shape:?}")));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let found = format!("{} in row {}", values[at], at / dim);
            return Err(DataError::format(path, "finite numbers", found));
        }
        let scale = scale.cloned().unwrap_or_else(|| VectorScale::of(&values, dim));
        let mut digest = Digest::new();
        digest.update((dim as u64).to_le_bytes());
        values.iter().for_each(|value| digest.update(value.to_le_bytes()));
        let scaled: Vec<f32> = values.chunks_exact(dim).flat_map(|row| scale.apply(row)).collect();
        if let Some(at) = scaled.iter().position(|value| !value.is_finite()) {
            let found = format!("{:e} in row {}, which is {} once it is scaled", values[at], at / dim, scaled[at]);
            return Err(DataError::format(path, "finite numbers", found));
        }
        Ok(Self { dim, values: scaled, scale, digest: digest.finish() })
    }

    /// Length of each vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of vectors; never 0.
    pub fn rows(&self) -> usize {
        self.values.len() / self.dim
    }

    pub fn scale(&self) -> &VectorScale {
        &self.scale
    }

    /// The components that are the same in all vectors and so carry no information.
    pub fn constant(&self) -> Vec<usize> {
        let rows = || self.values.chunks_exact(self.dim);
        (0..self.dim).filter(|&k| rows().all(|row| row[k] == self.values[k])).collect()
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// One vector, scaled. Panics past the end.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..][..self.dim]
    }

    /// The vectors with these numbers, concatenated; numbers past the last vector wrap around.
    pub fn in_turn(&self, numbers: Range<usize>) -> Vec<f32> {
        self.pick(numbers.map(|i| i % self.rows()))
    }

    /// The vectors at these indices, concatenated.
    pub fn pick(&self, places: impl IntoIterator<Item = usize>) -> Vec<f32> {
        places.into_iter().flat_map(|place| self.row(place)).copied().collect()
    }
}

impl VectorScale {
    fn of(values: &[f64], dim: usize) -> Self {
        let n = (values.len() / dim) as f64;
        let sums = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
            let mut sums = vec![0.0; dim];
            for row in values.chunks_exact(dim) {
                sums.iter_mut().enumerate().for_each(|(k, sum)| *sum += f(k, row[k]));
            }
            sums.iter().map(|sum| sum / n).collect()
        };
        // Squares of larger values, and their sums, would not be finite.
        let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let unit = if largest > 1e100 { largest } else { 1.0 };
        let mean = sums(&|_, value| value / unit);
        let variance = sums(&|k, value| (value / unit - mean[k]).powi(2));
        // For equal numbers, the rounding error of the mean must not count as a deviation.
        let of =
            |(variance, mean): (f64, &f64)| Some(variance.sqrt()).filter(|deviation| *deviation > 1e-12 * mean.abs());
        let deviation =
            variance.into_iter().zip(&mean).map(|pair| of(pair).map_or(1.0, |deviation| deviation * unit)).collect();
        let mean = mean.iter().map(|mean| mean * unit).collect();
        Self { mean, deviation }
    }

    fn apply<'a>(&'a self, row: &'a [f64]) -> impl Iterator<Item = f32> + 'a {
        row.iter().zip(&self.mean).zip(&self.deviation).map(|((x, mean), deviation)| ((x - mean) / deviation) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::npy::{write_npy_f32, write_npy_f64};

    fn table(shape: &[usize], values: &[f32], scale: Option<&VectorScale>) -> Result<VectorTable, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.npy");
        write_npy_f32(&path, shape, values).unwrap();
        VectorTable::open(&path, scale)
    }

    #[test]
    fn each_number_gets_mean_0_and_deviation_1_and_others_follow_the_same_scale() {
        let own = table(&[4, 2], &[1.0, 7.0, 3.0, 7.0, 1.0, 7.0, 3.0, 7.0], None).unwrap();
        assert_eq!((own.rows(), own.dim()), (4, 2));
        assert_eq!(own.pick([0, 1]), [-1.0, 0.0, 1.0, 0.0]);
        let scale = own.scale().clone();
        assert_eq!(scale, VectorScale { mean: vec![2.0, 7.0], deviation: vec![1.0, 1.0] });
        assert_eq!(table(&[1, 2], &[5.0, 8.0], Some(&scale)).unwrap().row(0), [3.0, 1.0]);
        let one = table(&[2], &[5.0, 8.0], Some(&scale)).unwrap();
        assert_eq!((one.rows(), one.dim()), (1, 2), "one vector needs no second axis");
        assert_eq!(table(&[3], &[1.0, 2.0, 3.0], None).unwrap().dim(), 1);
    }

    #[test]
    fn numbers_are_scaled_before_they_are_rounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.npy");
        let mut file = Vec::new();
        let rows = [[1.7e9, 5.0, 1e300], [1.7e9 + 2.0, 5.0, -1e300]];
        write_npy_f64(&mut file, &[2, 3], rows.as_flattened()).unwrap();
        std::fs::write(&path, file).unwrap();
        let table = VectorTable::open(&path, None).unwrap();
        assert_eq!(table.pick([0, 1]), [-1.0, 0.0, 1.0, 1.0, 0.0, -1.0]);
        assert_eq!(table.constant(), [1]);
    }

    #[test]
    fn what_are_no_vectors_is_refused() {
        let text = |shape: &[usize], values: &[f32], scale: Option<&VectorScale>| {
            table(shape, values, scale).unwrap_err().to_string()
        };
        assert!(text(&[1, 1, 1], &[0.0], None).contains("shape [1, 1, 1]"));
        assert!(text(&[0, 2], &[], None).contains("at least one number"));
        let nan = text(&[2, 2], &[0.0, 0.0, 1.0, f32::NAN], None);
        assert!(nan.contains("NaN in row 1"), "{nan}");
        let tiny = VectorScale { mean: vec![0.0; 2], deviation: vec![1.0, 1e-30] };
        let scaled = text(&[2, 2], &[0.0, 0.0, 1.0, 1e30], Some(&tiny));
        assert!(scaled.contains("e30 in row 1, which is inf once it is scaled"), "{scaled}");
        let scale = VectorScale { mean: vec![0.0; 3], deviation: vec![1.0; 3] };
        assert!(text(&[2, 2], &[0.0; 4], Some(&scale)).contains("vectors of 3 numbers"));
    }
}
