//! A measured number and its standard error.

use serde::Serialize;

/// A value with its standard error. Each metric says what randomness the error covers: the draw of samples, or of random directions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error, in the same unit.
    pub standard_error: f64,
}

impl Estimate {
    /// The fraction `hits / n` with its binomial standard error `sqrt(p (1 - p) / n)`. `n` is at least 1.
    pub(super) fn share(hits: usize, n: usize) -> Self {
        let p = hits as f64 / n as f64;
        Self { value: p, standard_error: (p * (1.0 - p) / n as f64).sqrt() }
    }

    /// The mean of at least two values with its standard error `s / sqrt(n)`, where `s` has n - 1 in its denominator.
    pub(super) fn mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Self { value: mean, standard_error: (variance / n).sqrt() }
    }

    /// The square root of this estimate, by the first-order rule `se(sqrt(s)) = se(s) / (2 sqrt(s))`; 0 +- 0 at 0, where all values were 0.
    pub(super) fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        let standard_error = if value > 0.0 { self.standard_error / (2.0 * value) } else { 0.0 };
        Self { value, standard_error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_errors_by_hand() {
        assert_eq!(Estimate::share(1, 4), Estimate { value: 0.25, standard_error: (0.1875_f64 / 4.0).sqrt() });
        assert_eq!(Estimate::share(4, 4).standard_error, 0.0);
        let mean = Estimate::mean(&[1.0, 2.0, 6.0]);
        assert_eq!(mean, Estimate { value: 3.0, standard_error: (7.0_f64 / 3.0).sqrt() });
        let root = Estimate { value: 4.0, standard_error: 0.2 }.sqrt();
        assert_eq!(root, Estimate { value: 2.0, standard_error: 0.05 });
        assert_eq!(Estimate { value: 0.0, standard_error: 0.0 }.sqrt(), Estimate { value: 0.0, standard_error: 0.0 });
    }
}
