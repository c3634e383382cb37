//! Errors in tables that are to be compared.

use super::features::Features;

/// Tables of features that a metric cannot compare, or a parameter that does not suit them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Rows of different lengths.
    #[error("{second} features have {found} dimensions, but {first} features have {expected}")]
    Dims {
        /// Name of the table whose dimensions are expected.
        first: &'static str,
        /// Its dimensions.
        expected: usize,
        /// Name of the table whose dimensions differ.
        second: &'static str,
        /// Its dimensions.
        found: usize,
    },
    /// Too few rows.
    #[error("{found} {what} features; expected at least {needed}")]
    TooFew {
        /// Name of the table.
        what: &'static str,
        /// Number of rows needed.
        needed: usize,
        /// Number of rows present.
        found: usize,
    },
    /// Rows that do not consist of sequences with a spectrum.
    #[error("rows of {dims} values do not hold sequences of {length}; expected whole sequences of at least 2 values")]
    Sequences {
        /// Number of values in a row.
        dims: usize,
        /// Number of values in a sequence.
        length: usize,
    },
    /// Zero neighbours requested.
    #[error("k is 0; expected at least 1 neighbour")]
    NoNeighbours,
    /// Too few directions for a standard error.
    #[error("{found} directions; expected at least {needed}")]
    TooFewDirections {
        /// Number of directions needed.
        needed: usize,
        /// Number of directions given.
        found: usize,
    },
    /// Directions of another length than the features.
    #[error("{values} values are not a whole number of directions of {dims} dimensions")]
    PartialDirection {
        /// Number of values.
        values: usize,
        /// Dimensions of the features.
        dims: usize,
    },
    /// NaN or infinity in a direction.
    #[error("dimension {dim} of direction {direction} is {value}; expected a finite number")]
    DirectionNotFinite {
        /// First direction with such a value.
        direction: usize,
        /// Its position in the direction.
        dim: usize,
        /// The value, as text.
        value: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl TableError {
    /// Refuses two tables whose rows differ in length.
    pub(super) fn dims(first: &'static str, a: Features, second: &'static str, b: Features) -> Result<(), Self> {
        if a.dims() == b.dims() {
            return Ok(());
        }
        Err(Self::Dims { first, expected: a.dims(), second, found: b.dims() })
    }

    /// Refuses a table of fewer rows than needed.
    pub(super) fn rows(what: &'static str, table: Features, needed: usize) -> Result<(), Self> {
        Self::count(what, table.n(), needed)
    }

    /// Refuses fewer rows than needed.
    pub(super) fn count(what: &'static str, found: usize, needed: usize) -> Result<(), Self> {
        if found >= needed { Ok(()) } else { Err(Self::TooFew { what, needed, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_both_numbers() {
        let (a, b) = (Features::new(&[0.0; 6], 3).unwrap(), Features::new(&[0.0; 6], 2).unwrap());
        let error = TableError::dims("real", a, "generated", b).unwrap_err();
        assert_eq!(error.to_string(), "generated features have 2 dimensions, but real features have 3");
        let error = TableError::rows("real", a, 6).unwrap_err();
        assert_eq!(error.to_string(), "2 real features; expected at least 6");
        assert!(TableError::dims("real", a, "generated", a).is_ok() && TableError::rows("real", a, 2).is_ok());
    }
}
