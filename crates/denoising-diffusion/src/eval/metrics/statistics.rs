//! Mean and covariance of feature vectors, in one pass.
//!
//! [`Moments`] takes features as they come and gives a [`Gaussian`], the form in which Fréchet distances take a set of images.
//! Not here: distances, and files that hold statistics ([`Gaussian::new`] checks what came from one).

use faer::{Mat, MatRef};

use super::features::Features;
use super::linalg;

/// Rows that are centred and multiplied together. Large enough that the matrix product dominates, small enough to fit a cache.
pub(super) const BLOCK: usize = 1024;

/// Largest difference between sigma and its transpose that counts as rounding, relative to sigma's largest value.
const ASYMMETRY: f64 = 1e-6;

/// What cannot be a mean and a covariance, or cannot give one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StatisticsError {
    /// No dimensions.
    #[error("statistics over 0 dimensions; expected at least 1")]
    NoDims,
    /// A covariance needs two rows.
    #[error("{n} feature vectors; a covariance needs at least 2")]
    TooFewRows {
        /// Rows that came.
        n: usize,
    },
    /// Features of another length.
    #[error("features have {found} dimensions, expected {expected}")]
    Dims {
        /// Dimensions so far.
        expected: usize,
        /// Dimensions that came.
        found: usize,
    },
    /// Sigma is not `[dims, dims]`.
    #[error("sigma has {found} values, expected {dims} x {dims} for a mu of {dims}")]
    SigmaLength {
        /// Length of mu.
        dims: usize,
        /// Length of sigma.
        found: usize,
    },
    /// NaN or infinity.
    #[error("value {at} of {name} is {value}; expected a finite number")]
    NotFinite {
        /// `mu` or `sigma`.
        name: &'static str,
        /// Place of the first such value.
        at: usize,
        /// The value.
        value: f64,
    },
    /// Sigma differs from its transpose by more than rounding.
    #[error("sigma is not symmetric: [{row}, {column}] is {value}, [{column}, {row}] is {mirrored}")]
    Asymmetric {
        /// Row of the first such pair.
        row: usize,
        /// Its column.
        column: usize,
        /// The value there.
        value: f64,
        /// The value on the other side of the diagonal.
        mirrored: f64,
    },
    /// A variance below 0.
    #[error("the variance of dimension {dim} is {value}; expected at least 0")]
    NegativeVariance {
        /// The dimension.
        dim: usize,
        /// Its variance.
        value: f64,
    },
}

/// Mean and covariance of a set of feature vectors: all that a Fréchet distance knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    n: Option<usize>,
    mu: Vec<f64>,
    sigma: Vec<f64>,
}

impl Gaussian {
    /// `mu` `[dims]` and `sigma` `[dims, dims]`, for example from a file; `n` is the number of images behind them, where known.
    /// Sigma is made exactly symmetric.
    ///
    /// # Errors
    /// [`StatisticsError`] where lengths do not match, a value is not finite, a variance is negative, `n` is below 2, or sigma
    /// differs from its transpose by more than 1e-6 of its largest value.
    pub fn new(n: Option<usize>, mu: Vec<f64>, mut sigma: Vec<f64>) -> Result<Self, StatisticsError> {
        let dims = mu.len();
        if dims == 0 {
            return Err(StatisticsError::NoDims);
        }
        if let Some(n) = n.filter(|&n| n < 2) {
            return Err(StatisticsError::TooFewRows { n });
        }
        if dims.checked_mul(dims) != Some(sigma.len()) {
            return Err(StatisticsError::SigmaLength { dims, found: sigma.len() });
        }
        finite("mu", &mu)?;
        finite("sigma", &sigma)?;
        symmetrise(&mut sigma, dims)?;
        match (0..dims).find(|&dim| sigma[dim * dims + dim] < 0.0) {
            Some(dim) => Err(StatisticsError::NegativeVariance { dim, value: sigma[dim * dims + dim] }),
            None => Ok(Self { n, mu, sigma }),
        }
    }

    /// Mean and covariance of one table.
    ///
    /// # Errors
    /// As [`Moments::finish`].
    pub fn of(features: Features<'_>) -> Result<Self, StatisticsError> {
        let mut moments = Moments::new(features.dims())?;
        moments.push(features)?;
        moments.finish()
    }

    /// Number of vectors, where known.
    pub fn n(&self) -> Option<usize> {
        self.n
    }

    /// Dimensions.
    pub fn dims(&self) -> usize {
        self.mu.len()
    }

    /// Mean `[dims]`.
    pub fn mu(&self) -> &[f64] {
        &self.mu
    }

    /// Covariance `[dims, dims]`, symmetric.
    pub fn sigma(&self) -> &[f64] {
        &self.sigma
    }

    /// Sum of the variances.
    pub fn trace(&self) -> f64 {
        self.sigma.iter().step_by(self.dims() + 1).sum()
    }

    /// Largest rank that the covariance of so many vectors can have.
    pub(super) fn greatest_rank(&self) -> usize {
        self.n.map_or(self.dims(), |n| self.dims().min(n - 1))
    }

    pub(super) fn sigma_matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.sigma, self.dims(), self.dims())
    }
}

fn finite(name: &'static str, values: &[f64]) -> Result<(), StatisticsError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(StatisticsError::NotFinite { name, at, value: values[at] }),
        None => Ok(()),
    }
}

/// Replaces each pair across the diagonal by its mean.
fn symmetrise(sigma: &mut [f64], dims: usize) -> Result<(), StatisticsError> {
    let most = ASYMMETRY * sigma.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    for row in 0..dims {
        for column in 0..row {
            let (value, mirrored) = (sigma[row * dims + column], sigma[column * dims + row]);
            if (value - mirrored).abs() > most {
                return Err(StatisticsError::Asymmetric { row, column, value, mirrored });
            }
            // Halved before the sum, which could overflow.
            let mean = 0.5 * value + 0.5 * mirrored;
            sigma[row * dims + column] = mean;
            sigma[column * dims + row] = mean;
        }
    }
    Ok(())
}

/// Mean and covariance of features that come in pieces. Rows are gathered into blocks of a fixed size, so the result depends on the
/// rows and their order alone, not on the pieces.
///
/// Each block is centred on its own mean in f64, and blocks are merged by Chan, Golub and LeVeque 1979, "Updating formulae and a
/// pairwise algorithm for computing sample variances": E\[x^2\] - E\[x\]^2 would lose what the mean is larger than the deviation.
#[derive(Clone, Debug)]
pub struct Moments {
    sums: Sums,
    /// Rows of a block that is not full yet.
    pending: Vec<f64>,
}

impl Moments {
    /// Of no rows yet.
    ///
    /// # Errors
    /// [`StatisticsError::NoDims`] for 0 dimensions.
    pub fn new(dims: usize) -> Result<Self, StatisticsError> {
        if dims == 0 {
            return Err(StatisticsError::NoDims);
        }
        Ok(Self { sums: Sums::new(dims), pending: Vec::new() })
    }

    /// Adds rows, any number of them.
    ///
    /// # Errors
    /// [`StatisticsError::Dims`] for rows of another length; nothing was added then.
    pub fn push(&mut self, features: Features<'_>) -> Result<(), StatisticsError> {
        let dims = self.sums.dims();
        if features.dims() != dims {
            return Err(StatisticsError::Dims { expected: dims, found: features.dims() });
        }
        let mut left = features.values();
        while !left.is_empty() {
            let (now, later) = left.split_at(left.len().min(BLOCK * dims - self.pending.len()));
            self.pending.extend(now.iter().map(|&value| f64::from(value)));
            if self.pending.len() == BLOCK * dims {
                self.flush();
            }
            left = later;
        }
        Ok(())
    }

    /// Rows so far.
    pub fn n(&self) -> usize {
        self.sums.n + self.pending.len() / self.sums.dims()
    }

    /// The mean, and the unbiased covariance (divided by n - 1, as numpy.cov).
    ///
    /// # Errors
    /// [`StatisticsError::TooFewRows`] for fewer than two rows.
    pub fn finish(mut self) -> Result<Gaussian, StatisticsError> {
        let n = self.n();
        if n < 2 {
            return Err(StatisticsError::TooFewRows { n });
        }
        self.flush();
        let (dims, scale) = (self.sums.dims(), 1.0 / (n - 1) as f64);
        let mut sigma = vec![0.0; dims * dims];
        for column in 0..dims {
            for row in column..dims {
                let value = self.sums.scatter[(row, column)] * scale;
                sigma[row * dims + column] = value;
                sigma[column * dims + row] = value;
            }
        }
        Ok(Gaussian { n: Some(n), mu: self.sums.mean, sigma })
    }

    fn flush(&mut self) {
        self.sums.add(std::mem::take(&mut self.pending));
    }
}

/// Number, mean, and sum of outer products of the deviations from it.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    n: usize,
    mean: Vec<f64>,
    /// `[dims, dims]`, the lower triangle only.
    scatter: Mat<f64>,
}

impl Sums {
    pub(super) fn new(dims: usize) -> Self {
        Self { n: 0, mean: vec![0.0; dims], scatter: Mat::zeros(dims, dims) }
    }

    fn dims(&self) -> usize {
        self.mean.len()
    }

    /// Adds whole rows.
    pub(super) fn add(&mut self, mut rows: Vec<f64>) {
        let dims = self.dims();
        let added = rows.len() / dims;
        if added == 0 {
            return;
        }
        let mean = centre(&mut rows, dims);
        let (n, k) = (self.n as f64, added as f64);
        let between = (n * k / (n + k)).sqrt();
        // The term between the two means, n k / (n + k) d d^T, is one more row of the same product.
        for (total, block) in self.mean.iter_mut().zip(mean) {
            let difference = block - *total;
            rows.push(between * difference);
            *total += difference * (k / (n + k));
        }
        self.n += added;
        let rows = MatRef::from_row_major_slice(&rows, added + 1, dims);
        linalg::add_lower(self.scatter.as_mut(), rows.transpose(), rows);
    }

    /// The sums without some of the rows that were added; `part` are those rows' sums, and others remain.
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

    /// Lower triangle of the unbiased covariance, of at least two rows.
    pub(super) fn covariance(&self) -> Mat<f64> {
        &self.scatter * faer::Scale(1.0 / (self.n.max(2) - 1) as f64)
    }
}

/// Takes the mean of the rows away from them, and gives it.
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
