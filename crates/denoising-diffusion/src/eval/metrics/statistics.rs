//! Mean and covariance of feature vectors, in one pass.
//!
//! [`Moments`] takes features as they come and gives a [`Gaussian`], from which Fréchet distances are computed. Not here: distances, and files that
//! hold statistics ([`Gaussian::new`] checks what comes from one).

use faer::MatRef;

use super::features::Features;
use super::linalg;
use super::sums::{BLOCK, Sums};

/// Largest difference between sigma and its transpose that counts as rounding, relative to sigma's largest value.
const ASYMMETRY: f64 = 1e-6;

/// Why values are not a mean and a covariance, or do not have one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StatisticsError {
    /// No dimensions.
    #[error("statistics over 0 dimensions; expected at least 1")]
    NoDims,
    /// A covariance needs at least two rows.
    #[error("{n} feature vectors; a covariance needs at least 2")]
    TooFewRows {
        /// Number of rows.
        n: usize,
    },
    /// Features of another length.
    #[error("features have {found} dimensions, expected {expected}")]
    Dims {
        /// Dimensions so far.
        expected: usize,
        /// Dimensions of these features.
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
        /// Position of the first such value.
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

/// Mean and covariance of a set of feature vectors, which determine its Fréchet distances.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    n: Option<usize>,
    mu: Vec<f64>,
    sigma: Vec<f64>,
}

impl Gaussian {
    /// From `mu` `[dims]` and `sigma` `[dims, dims]`, for example from a file; `n` is the number of images behind them, if known. Sigma is made
    /// exactly symmetric.
    ///
    /// # Errors
    /// [`StatisticsError`] if lengths do not match, a value is not finite, a variance is negative, `n` is less than 2, or sigma differs from its
    /// transpose by more than 1e-6 of its largest value.
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

    /// Number of vectors, if known.
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

    /// The largest rank that a covariance of this number of vectors can have.
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

/// Replaces each pair of values across the diagonal by its mean.
fn symmetrise(sigma: &mut [f64], dims: usize) -> Result<(), StatisticsError> {
    let most = ASYMMETRY * sigma.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    for row in 0..dims {
        for column in 0..row {
            let (value, mirrored) = (sigma[row * dims + column], sigma[column * dims + row]);
            if (value - mirrored).abs() > most {
                return Err(StatisticsError::Asymmetric { row, column, value, mirrored });
            }
            // Halved before adding, because the sum could overflow.
            let mean = 0.5 * value + 0.5 * mirrored;
            sigma[row * dims + column] = mean;
            sigma[column * dims + row] = mean;
        }
    }
    Ok(())
}

/// Mean and covariance of features that come in pieces. Rows are collected into blocks of a fixed size, so the result depends only on the rows and
/// their order, not on the pieces.
#[derive(Clone, Debug)]
pub struct Moments {
    sums: Sums,
    /// Rows of the block that is not full yet.
    pending: Vec<f64>,
}

impl Moments {
    /// With no rows yet.
    ///
    /// # Errors
    /// [`StatisticsError::NoDims`] for 0 dimensions.
    pub fn new(dims: usize) -> Result<Self, StatisticsError> {
        if dims == 0 {
            return Err(StatisticsError::NoDims);
        }
        Ok(Self { sums: Sums::new(dims), pending: Vec::new() })
    }

    /// Adds any number of rows.
    ///
    /// # Errors
    /// [`StatisticsError::Dims`] for rows of another length; then nothing is added.
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

    /// Number of rows so far.
    pub fn n(&self) -> usize {
        self.sums.n() + self.pending.len() / self.sums.dims()
    }

    /// The mean, and the unbiased covariance (divided by n - 1, as in numpy.cov).
    ///
    /// # Errors
    /// [`StatisticsError::TooFewRows`] for fewer than two rows.
    pub fn finish(mut self) -> Result<Gaussian, StatisticsError> {
        let n = self.n();
        if n < 2 {
            return Err(StatisticsError::TooFewRows { n });
        }
        self.flush();
        let (dims, covariance) = (self.sums.dims(), self.sums.covariance());
        let mut sigma = vec![0.0; dims * dims];
        for column in 0..dims {
            for row in column..dims {
                let value = covariance[(row, column)];
                sigma[row * dims + column] = value;
                sigma[column * dims + row] = value;
            }
        }
        Ok(Gaussian { n: Some(n), mu: self.sums.into_mean(), sigma })
    }

    fn flush(&mut self) {
        self.sums.add(std::mem::take(&mut self.pending), linalg::threads());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::draws::normal;
    use super::*;

    /// In two passes, by definition.
    fn by_definition(features: Features<'_>) -> (Vec<f64>, Vec<f64>) {
        let (n, dims) = (features.n(), features.dims());
        let at = |i: usize, dim: usize| f64::from(features.row(i)[dim]);
        let mu: Vec<f64> = (0..dims).map(|dim| (0..n).map(|i| at(i, dim)).sum::<f64>() / n as f64).collect();
        let covariance =
            |a: usize, b: usize| (0..n).map(|i| (at(i, a) - mu[a]) * (at(i, b) - mu[b])).sum::<f64>() / (n - 1) as f64;
        let sigma = (0..dims * dims).map(|at| covariance(at / dims, at % dims)).collect();
        (mu, sigma)
    }

    fn assert_near(got: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= tolerance, "{got} is not {expected}");
        }
    }

    #[test]
    fn several_blocks_give_what_the_definition_says() {
        let values = normal(1, 2500 * 7);
        let features = Features::new(&values, 7).unwrap();
        let got = Gaussian::of(features).unwrap();
        let (mu, sigma) = by_definition(features);
        assert_near(got.mu(), &mu, 1e-14);
        assert_near(got.sigma(), &sigma, 1e-13);
        assert_eq!(got.n(), Some(2500));
    }

    /// E[x^2] - E[x]^2 would have no correct digit here: the squares are 2^40 and the variance 2^-20 or so.
    #[test]
    fn a_mean_far_from_zero_costs_no_digits() {
        let values: Vec<f32> = (0..3000).map(|i| 1_048_576.0 + (i % 2) as f32 * 0.125).collect();
        let got = Gaussian::of(Features::new(&values, 1).unwrap()).unwrap();
        assert_near(got.sigma(), &[0.125_f64.powi(2) / 4.0 * 3000.0 / 2999.0], 1e-15);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in prop::collection::vec(0_usize..1400, 0..6)) {
            let dims = 3;
            let values = normal(2, 1400 * dims);
            let whole = Gaussian::of(Features::new(&values, dims).unwrap()).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().chain([0, 1400]).collect();
            cuts.sort_unstable();
            let mut moments = Moments::new(dims).unwrap();
            for cut in cuts.windows(2) {
                moments.push(Features::new(&values[cut[0] * dims..cut[1] * dims], dims).unwrap()).unwrap();
                prop_assert_eq!(moments.n(), cut[1]);
            }
            prop_assert_eq!(moments.finish().unwrap(), whole);
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let values = normal(3, 1500 * 300);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Gaussian::of(Features::new(&values, 300).unwrap()).unwrap())
        };
        let one = on(1);
        assert_eq!(one, on(2));
        assert_eq!(one, on(5));
    }

    #[test]
    fn too_little_is_refused() {
        let empty = Moments::new(2).unwrap();
        assert_eq!(empty.finish().unwrap_err(), StatisticsError::TooFewRows { n: 0 });
        let one = Features::new(&[1.0, 2.0], 2).unwrap();
        assert_eq!(Gaussian::of(one).unwrap_err(), StatisticsError::TooFewRows { n: 1 });
        let mut moments = Moments::new(3).unwrap();
        assert_eq!(moments.push(one).unwrap_err(), StatisticsError::Dims { expected: 3, found: 2 });
        assert_eq!(Moments::new(0).unwrap_err(), StatisticsError::NoDims);
    }

    #[test]
    fn statistics_of_files_are_checked() {
        let new = |mu: &[f64], sigma: &[f64]| Gaussian::new(None, mu.to_vec(), sigma.to_vec());
        assert_eq!(new(&[], &[]).unwrap_err(), StatisticsError::NoDims);
        assert_eq!(new(&[0.0; 2], &[0.0; 3]).unwrap_err(), StatisticsError::SigmaLength { dims: 2, found: 3 });
        assert!(matches!(
            new(&[0.0, f64::NAN], &[0.0; 4]).unwrap_err(),
            StatisticsError::NotFinite { name: "mu", at: 1, .. }
        ));
        assert!(matches!(
            new(&[0.0], &[f64::INFINITY]).unwrap_err(),
            StatisticsError::NotFinite { name: "sigma", at: 0, .. }
        ));
        assert_eq!(
            new(&[0.0; 2], &[1.0, 0.5, 0.4, 1.0]).unwrap_err(),
            StatisticsError::Asymmetric { row: 1, column: 0, value: 0.4, mirrored: 0.5 }
        );
        assert_eq!(new(&[0.0], &[-1.0]).unwrap_err(), StatisticsError::NegativeVariance { dim: 0, value: -1.0 });
        let few = Gaussian::new(Some(1), vec![0.0], vec![0.0]);
        assert_eq!(few.unwrap_err(), StatisticsError::TooFewRows { n: 1 });
        let rounded = new(&[0.0; 2], &[1.0, 0.5, 0.500_000_2, 1.0]).unwrap();
        assert_near(rounded.sigma(), &[1.0, 0.500_000_1, 0.500_000_1, 1.0], 1e-15);
        assert_eq!(rounded.sigma()[1], rounded.sigma()[2]);
    }
}
