//! Sums over rows, for means and covariances, in blocks that can be merged and separated again.
//!
//! Each block is centred on its own mean in f64, and blocks are merged by Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm
//! for computing sample variances". E\[x^2\] - E\[x\]^2 would lose as many digits as the mean exceeds the deviation by.

use faer::{Mat, MatRef, Par};

use super::linalg;

/// Number of rows that are centred and multiplied together: enough for the matrix product to dominate, and few enough to fit into a cache.
pub(super) const BLOCK: usize = 1024;

/// Number of rows, their mean, and the sum of outer products of the deviations from it.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    n: usize,
    mean: Vec<f64>,
    /// `[dims, dims]`, only the lower triangle.
    scatter: Mat<f64>,
}

impl Sums {
    pub(super) fn new(dims: usize) -> Self {
        Self { n: 0, mean: vec![0.0; dims], scatter: Mat::zeros(dims, dims) }
    }

    pub(super) fn n(&self) -> usize {
        self.n
    }

    pub(super) fn dims(&self) -> usize {
        self.mean.len()
    }

    pub(super) fn into_mean(self) -> Vec<f64> {
        self.mean
    }

    /// Adds complete rows.
    pub(super) fn add(&mut self, mut rows: Vec<f64>, par: Par) {
        let dims = self.dims();
        let added = rows.len() / dims;
        if added == 0 {
            return;
        }
        let mean = centre(&mut rows, dims);
        let (n, k) = (self.n as f64, added as f64);
        let between = (n * k / (n + k)).sqrt();
        // The term for the difference of the two means, n k / (n + k) d d^T, is one more row of the same product.
        for (total, block) in self.mean.iter_mut().zip(mean) {
            let difference = block - *total;
            rows.push(between * difference);
            *total += difference * (k / (n + k));
        }
        self.n += added;
        let rows = MatRef::from_row_major_slice(&rows, added + 1, dims);
        linalg::add_lower(self.scatter.as_mut(), rows.transpose(), rows, par);
    }

    /// The sums without some of the rows; `part` are the sums of those rows, and others must remain.
    pub(super) fn without(&self, part: &Self) -> Self {
        let (n, k) = (self.n as f64, part.n as f64);
        let mean: Vec<f64> = self.mean.iter().zip(&part.mean).map(|(all, out)| (n * all - k * out) / (n - k)).collect();
        let between = k * (n - k) / n;
        let mut scatter = &self.scatter - &part.scatter;
        for column in 0..self.dims() {
            let along = between * (part.mean[column] - mean[column]);
            for row in column..self.dims() {
                scatter[(row, column)] -= along * (part.mean[row] - mean[row]);
            }
        }
        Self { n: self.n - part.n, mean, scatter }
    }

    /// Lower triangle of the unbiased covariance, for at least two rows.
    pub(super) fn covariance(&self) -> Mat<f64> {
        &self.scatter * faer::Scale(1.0 / (self.n.max(2) - 1) as f64)
    }
}

/// Subtracts the mean of the rows from them, and returns it.
pub(super) fn centre(rows: &mut [f64], dims: usize) -> Vec<f64> {
    let mut mean = vec![0.0; dims];
    for row in rows.chunks_exact(dims) {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += value;
        }
    }
    let n = (rows.len() / dims) as f64;
    mean.iter_mut().for_each(|sum| *sum /= n);
    for row in rows.chunks_exact_mut(dims) {
        for (value, mean) in row.iter_mut().zip(&mean) {
            *value -= mean;
        }
    }
    mean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::draws::normal;
    use super::*;

    proptest! {
        #[test]
        fn a_part_can_be_taken_out(n in 4_usize..40, taken in 1_usize..10, seed: u64) {
            let (dims, taken) = (4, taken.min(n - 2));
            let values: Vec<f64> = normal(seed, n * dims).iter().map(|&v| 5.0 + f64::from(v)).collect();
            let sums = |rows: &[f64]| {
                let mut sums = Sums::new(dims);
                sums.add(rows.to_vec(), Par::Seq);
                sums
            };
            let (part, rest) = values.split_at(taken * dims);
            let (got, expected) = (sums(&values).without(&sums(part)), sums(rest));
            prop_assert_eq!(got.n, expected.n);
            for (got, expected) in got.mean.iter().zip(&expected.mean) {
                prop_assert!((got - expected).abs() < 1e-12);
            }
            let (got, expected) = (got.covariance(), expected.covariance());
            for column in 0..dims {
                for row in column..dims {
                    prop_assert!((got[(row, column)] - expected[(row, column)]).abs() < 1e-11);
                }
            }
        }
    }
}
