//! A table of feature vectors, one row per image.
//!
//! All metrics take features in this form, and they are checked here and nowhere else: a [`Features`] always has complete rows of finite numbers. Not
//! here: where features come from, and how many rows a metric needs.

/// Feature vectors `[n, dims]`, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    values: &'a [f32],
    dims: usize,
}

impl<'a> Features<'a> {
    /// A table whose rows are `dims` values each. It may have no rows: each metric says how many it needs.
    ///
    /// # Errors
    /// [`FeatureError`] if `values` does not consist of complete rows, `dims` is 0, or a value is not finite.
    pub fn new(values: &'a [f32], dims: usize) -> Result<Self, FeatureError> {
        if dims == 0 {
            return Err(FeatureError::NoDims);
        }
        if !values.len().is_multiple_of(dims) {
            return Err(FeatureError::PartialRow { values: values.len(), dims });
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(FeatureError::NotFinite { row: at / dims, dim: at % dims, value: values[at] }),
            None => Ok(Self { values, dims }),
        }
    }

    /// Number of rows.
    pub fn n(&self) -> usize {
        self.values.len() / self.dims
    }

    /// Values per row, at least 1.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// All values, `n * dims` of them.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i` is not less than [`n`](Self::n), as when indexing a slice.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.dims..(i + 1) * self.dims]
    }
}

/// Why values are not a table of features.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FeatureError {
    /// Rows without values.
    #[error("features have 0 dimensions; expected at least 1")]
    NoDims,
    /// The last row is incomplete.
    #[error("{values} values are not a whole number of rows of {dims}")]
    PartialRow {
        /// Number of values.
        values: usize,
        /// Number of values per row.
        dims: usize,
    },
    /// NaN or infinity.
    #[error("dimension {dim} of feature vector {row} is {value}; expected a finite number")]
    NotFinite {
        /// First row with such a value.
        row: usize,
        /// Its position in the row.
        dim: usize,
        /// The value.
        value: f32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let features = Features::new(&values, 3).unwrap();
        assert_eq!((features.n(), features.dims()), (2, 3));
        assert_eq!(features.row(0), [1.0, 2.0, 3.0]);
        assert_eq!(features.row(1), [4.0, 5.0, 6.0]);
        assert_eq!(features.values(), values);
    }

    #[test]
    fn no_rows_are_a_table() {
        assert_eq!(Features::new(&[], 4).unwrap().n(), 0);
    }

    #[test]
    fn what_is_no_table_is_refused_with_numbers() {
        assert_eq!(Features::new(&[1.0], 0).unwrap_err(), FeatureError::NoDims);
        let error = Features::new(&[1.0; 5], 3).unwrap_err();
        assert_eq!(error, FeatureError::PartialRow { values: 5, dims: 3 });
        assert_eq!(error.to_string(), "5 values are not a whole number of rows of 3");
        let error = Features::new(&[0.0, 0.0, 0.0, f32::INFINITY], 2).unwrap_err();
        assert_eq!(error, FeatureError::NotFinite { row: 1, dim: 1, value: f32::INFINITY });
        assert!(matches!(Features::new(&[f32::NAN], 1), Err(FeatureError::NotFinite { row: 0, dim: 0, .. })));
    }
}
