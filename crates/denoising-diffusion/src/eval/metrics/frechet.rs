//! The Fréchet distance between Gaussians.
//!
//! d^2 = |mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2) (Dowson and Landau 1982; as a score of images, FID: Heusel et al. 2017, arXiv:1706.08500).
//! The eigenvalues of A B are those of the symmetric W^T B W, where A = W W^T, so the trace of the square root only needs symmetric eigenvalues: no
//! general matrix square root, no complex numbers, no term added to the diagonal.
//!
//! Not here: how far the number can be trusted for a given number of images ([`fid`](super::fid)).

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat};

use super::features::Features;
use super::linalg::{self, NotConverged};
use super::projection::Projection;
use super::statistics::{Gaussian, StatisticsError};

/// Most negative eigenvalue, relative to the largest, that still counts as rounding: files may hold statistics in f32.
const NEGATIVE: f64 = 1e-4;

/// Why a distance cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrechetError {
    /// Different dimensions.
    #[error("features have {found} dimensions, the reference statistics {expected}")]
    Dims {
        /// Dimensions of the reference.
        expected: usize,
        /// Dimensions of the other.
        found: usize,
    },
    /// A symmetric matrix that is not a covariance.
    #[error("sigma is not a covariance: its eigenvalues range from {smallest:e} to {largest:e}; expected none below 0")]
    NotACovariance {
        /// Smallest eigenvalue.
        smallest: f64,
        /// Largest eigenvalue.
        largest: f64,
    },
    /// Values so large that their products overflow.
    #[error(
        "the distance is not a finite number: means or covariances are too large (traces {reference:e} and {other:e})"
    )]
    Overflow {
        /// Trace of the reference's covariance.
        reference: f64,
        /// Trace of the other.
        other: f64,
    },
    /// The eigendecomposition failed.
    #[error(transparent)]
    NotConverged(#[from] NotConverged),
    /// Features without a covariance.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// The Fréchet distance between two Gaussians, at least 0. [`Reference`] keeps what depends on the first of them alone.
///
/// Covariances may have any rank. A covariance of `n` rows, if `n` is known, has rank n - 1 at most; further eigenvalues are rounding and are
/// omitted.
///
/// # Errors
/// [`FrechetError`] if dimensions differ, `a`'s sigma has clearly negative eigenvalues, or products overflow.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64, FrechetError> {
    Reference::new(a.clone())?.distance(b)
}

/// Statistics (usually of the real images) that are compared with several others.
#[derive(Clone, Debug)]
pub struct Reference {
    gaussian: Gaussian,
    /// W `[dims, rank]` with W W^T = sigma.
    root: Mat<f64>,
}

impl Reference {
    /// Decomposes the covariance: by Cholesky, or by eigenvalues if it is singular.
    ///
    /// # Errors
    /// [`FrechetError::NotACovariance`], [`FrechetError::NotConverged`].
    pub fn new(gaussian: Gaussian) -> Result<Self, FrechetError> {
        let root = root(&gaussian)?;
        Ok(Self { gaussian, root })
    }

    /// The statistics.
    pub fn gaussian(&self) -> &Gaussian {
        &self.gaussian
    }

    /// Dimensions.
    pub fn dims(&self) -> usize {
        self.gaussian.dims()
    }

    /// Rank of the covariance.
    pub fn rank(&self) -> usize {
        self.root.ncols()
    }

    /// The distance to `other`, at least 0: two products and the eigenvalues of a rank x rank matrix.
    ///
    /// # Errors
    /// [`FrechetError`].
    pub fn distance(&self, other: &Gaussian) -> Result<f64, FrechetError> {
        self.check_dims(other.dims())?;
        let overlap = trace_of_root(self.inner(other), other.greatest_rank())?;
        self.assemble(other.mu(), other.trace(), overlap)
    }

    /// The lower triangle of W^T B W, where B is the other's covariance.
    fn inner(&self, other: &Gaussian) -> Mat<f64> {
        let (dims, rank) = (self.dims(), self.rank());
        let mut spread = Mat::zeros(dims, rank);
        matmul(spread.as_mut(), Accum::Replace, other.sigma_matrix(), self.root.as_ref(), 1.0, linalg::threads());
        let mut inner = Mat::zeros(rank, rank);
        linalg::add_lower(inner.as_mut(), self.root.transpose(), spread.as_ref(), linalg::threads());
        inner
    }

    /// The distance to the statistics of `features`, at least 0. With fewer images than dimensions, this takes only the eigenvalues of an n x n
    /// matrix; with more, it does the same as [`distance`](Self::distance). Evaluations use [`Fid`](super::fid::Fid), which also needs the distances
    /// of parts; this is for users of the library, and is what tests compare with the reference.
    ///
    /// # Errors
    /// [`FrechetError`].
    pub fn distance_to(&self, features: Features<'_>) -> Result<f64, FrechetError> {
        self.check_dims(features.dims())?;
        if features.n() > self.rank() {
            return self.distance(&Gaussian::of(features)?);
        }
        let all: Vec<usize> = (0..features.n()).collect();
        Projection::new(self, features)?.distance(&all, linalg::threads())
    }

    pub(super) fn root(&self) -> &Mat<f64> {
        &self.root
    }

    pub(super) fn check_dims(&self, found: usize) -> Result<(), FrechetError> {
        if found == self.dims() { Ok(()) } else { Err(FrechetError::Dims { expected: self.dims(), found }) }
    }

    /// Assembles the distance from the other's mean, the trace of its covariance, and tr (A B)^(1/2).
    pub(super) fn assemble(&self, mu: &[f64], trace: f64, overlap: f64) -> Result<f64, FrechetError> {
        let between: f64 = self.gaussian.mu().iter().zip(mu).map(|(a, b)| (a - b).powi(2)).sum();
        let own = self.gaussian.trace();
        let distance = between + (own + trace - 2.0 * overlap);
        if !distance.is_finite() {
            return Err(FrechetError::Overflow { reference: own, other: trace });
        }
        Ok(distance.max(0.0))
    }
}

/// W with W W^T = sigma. Any such W will do; if sigma is positive definite, Cholesky's takes a tenth of the time.
fn root(gaussian: &Gaussian) -> Result<Mat<f64>, FrechetError> {
    let (sigma, dims, rank) = (gaussian.sigma_matrix(), gaussian.dims(), gaussian.greatest_rank());
    if rank == dims
        && let Some(root) = linalg::cholesky(sigma)
    {
        return Ok(root);
    }
    let (values, vectors) = linalg::eigen(sigma)?;
    let (smallest, largest) = (values[0], values[dims - 1]);
    if smallest < -NEGATIVE * largest.abs() {
        return Err(FrechetError::NotACovariance { smallest, largest });
    }
    // The root of a rounding error would be far above rounding.
    let least = linalg::negligible(dims, largest);
    let first = values.partition_point(|&value| value <= least).max(dims - rank);
    Ok(Mat::from_fn(dims, dims - first, |row, column| vectors[(row, first + column)] * values[first + column].sqrt()))
}

/// Sum of the roots of the `rank` largest eigenvalues of a symmetric matrix without negative eigenvalues, given its lower triangle. Eigenvalues below
/// 0 are rounding and count as 0.
///
/// If the matrix overflowed, the result is infinity, which `assemble` refuses.
pub(super) fn trace_of_root(lower: Mat<f64>, rank: usize) -> Result<f64, NotConverged> {
    let finite = (0..lower.ncols()).all(|column| (column..lower.nrows()).all(|row| lower[(row, column)].is_finite()));
    if !finite {
        return Ok(f64::INFINITY);
    }
    let values = linalg::eigenvalues(lower.as_ref())?;
    Ok(values.iter().rev().take(rank).map(|value| value.max(0.0).sqrt()).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use faer::Par;

    use super::super::draws::normal;
    use super::*;

    /// How large rounding can be, beyond 1e-12: each eigenvalue has the rounding error of the largest, and the root of one near 0 magnifies it.
    fn magnified(a: &Gaussian, b: &Gaussian) -> f64 {
        let values = linalg::eigenvalues(Reference::new(a.clone()).unwrap().inner(b).as_ref()).unwrap();
        let Some(&largest) = values.last().filter(|&&largest| largest > 0.0) else { return 0.0 };
        let kept = values.iter().rev().take(b.greatest_rank());
        let least = kept.fold(largest, |least, &value| least.min(value)).max(f64::EPSILON * largest);
        100.0 * f64::EPSILON * largest / least.sqrt()
    }

    fn gaussian(values: &[f32], dims: usize) -> Gaussian {
        Gaussian::of(Features::new(values, dims).unwrap()).unwrap()
    }

    fn diagonal(mu: &[f64], deviations: &[f64]) -> Gaussian {
        let dims = mu.len();
        let mut sigma = vec![0.0; dims * dims];
        deviations.iter().enumerate().for_each(|(i, deviation)| sigma[i * (dims + 1)] = deviation * deviation);
        Gaussian::new(None, mu.to_vec(), sigma).unwrap()
    }

    /// Arbitrary tables: with many or few rows, and repeated or constant columns.
    fn tables() -> impl Strategy<Value = (Vec<f32>, Vec<f32>, usize)> {
        (1_usize..12, 2_usize..20, 2_usize..20, any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
            |(dims, n_a, n_b, seed, repeated, constant)| {
                let table = |seed, n: usize| {
                    let mut values = normal(seed, n * dims);
                    for row in values.chunks_mut(dims) {
                        if repeated {
                            row[dims - 1] = row[0];
                        }
                        if constant {
                            row[dims / 2] = 3.0;
                        }
                    }
                    values
                };
                (table(seed, n_a), table(seed ^ 1, n_b), dims)
            },
        )
    }

    proptest! {
        #[test]
        fn it_is_a_distance((a, b, dims) in tables()) {
            let (a, b) = (gaussian(&a, dims), gaussian(&b, dims));
            let distance = frechet_distance(&a, &b).unwrap();
            let scale = 1.0 + a.trace() + b.trace();
            prop_assert!(distance >= 0.0);
            let other_way = frechet_distance(&b, &a).unwrap();
            prop_assert!((distance - other_way).abs() < 1e-12 * scale + magnified(&a, &b) + magnified(&b, &a));
            prop_assert!(frechet_distance(&a, &a).unwrap() < 1e-12 * scale + magnified(&a, &a));
        }

        /// All ways to compute the same number: from statistics, from features of any number, from projected rows.
        #[test]
        fn features_give_what_their_statistics_give((a, b, dims) in tables()) {
            let reference = Reference::new(gaussian(&a, dims)).unwrap();
            let b_statistics = gaussian(&b, dims);
            let expected = reference.distance(&b_statistics).unwrap();
            let features = Features::new(&b, dims).unwrap();
            let tolerance = 1e-12 * (1.0 + expected) + magnified(reference.gaussian(), &b_statistics);
            prop_assert!((reference.distance_to(features).unwrap() - expected).abs() < tolerance);
            let projection = Projection::new(&reference, features).unwrap();
            let backwards: Vec<usize> = (0..features.n()).rev().collect();
            prop_assert!((projection.distance(&backwards, Par::Seq).unwrap() - expected).abs() < tolerance);
        }

        /// N(mu, S) against N(mu + t, c^2 S): |t|^2 + (c - 1)^2 tr S, whatever the rank of S.
        #[test]
        fn scaling_and_shift_have_a_closed_form((a, _, dims) in tables(), c in 0.0_f64..3.0, t in -2.0_f64..2.0) {
            let a = gaussian(&a, dims);
            let mu = a.mu().iter().map(|mu| mu + t).collect();
            let sigma = a.sigma().iter().map(|s| s * c * c).collect();
            let b = Gaussian::new(a.n(), mu, sigma).unwrap();
            let expected = t * t * dims as f64 + (c - 1.0).powi(2) * a.trace();
            let tolerance = 1e-12 * (1.0 + a.trace() + b.trace()) + magnified(&a, &b);
            prop_assert!((frechet_distance(&a, &b).unwrap() - expected).abs() < tolerance);
        }
    }

    #[test]
    fn independent_dimensions_add_up() {
        let a = diagonal(&[1.0, 2.0, 3.0], &[1.0, 2.0, 0.0]);
        let b = diagonal(&[1.5, 2.0, 1.0], &[3.0, 0.5, 0.25]);
        let expected = (0.25 + 4.0) + (0.0 + 2.25) + (4.0 + 0.0625);
        assert!((frechet_distance(&a, &b).unwrap() - expected).abs() < 1e-13);
    }

    #[test]
    fn nothing_shared_leaves_both_traces() {
        let (a, b) = (diagonal(&[0.0; 2], &[2.0, 0.0]), diagonal(&[0.0; 2], &[0.0, 3.0]));
        assert_eq!(frechet_distance(&a, &b).unwrap(), 13.0);
    }

    #[test]
    fn constant_features_have_distances() {
        let (a, b) = (gaussian(&[1.0; 8], 2), gaussian(&[2.0; 6], 2));
        assert_eq!(frechet_distance(&a, &b).unwrap(), 2.0);
        let reference = Reference::new(a).unwrap();
        assert_eq!(reference.rank(), 0);
        assert_eq!(reference.distance_to(Features::new(&[2.0; 6], 2).unwrap()).unwrap(), 2.0);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let a = Reference::new(diagonal(&[0.0; 2], &[1.0; 2])).unwrap();
        let other = FrechetError::Dims { expected: 2, found: 3 };
        assert_eq!(a.distance(&diagonal(&[0.0; 3], &[1.0; 3])).unwrap_err(), other);
        assert_eq!(a.distance_to(Features::new(&[0.0; 6], 3).unwrap()).unwrap_err(), other);
        for n in [0, 1] {
            let values = vec![0.0; 2 * n];
            let error = a.distance_to(Features::new(&values, 2).unwrap()).unwrap_err();
            assert_eq!(error, StatisticsError::TooFewRows { n }.into());
        }
        let indefinite = Gaussian::new(None, vec![0.0; 2], vec![1.0, 2.0, 2.0, 1.0]).unwrap();
        let error = Reference::new(indefinite).unwrap_err();
        assert!(
            matches!(error, FrechetError::NotACovariance { smallest, largest } if smallest < -0.9 && largest > 2.9)
        );
    }

    #[test]
    fn overflow_is_an_error() {
        let huge = diagonal(&[0.0; 2], &[1e154; 2]);
        let error = frechet_distance(&huge, &huge).unwrap_err();
        assert!(matches!(error, FrechetError::Overflow { .. }), "{error}");
        let far = diagonal(&[1e200; 2], &[1.0; 2]);
        assert!(matches!(frechet_distance(&far, &diagonal(&[0.0; 2], &[1.0; 2])), Err(FrechetError::Overflow { .. })));
    }
}
