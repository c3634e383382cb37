//! The Fréchet distance between Gaussians.
//!
//! d^2 = |mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2) (Dowson and Landau 1982; as a score of images, FID: Heusel et al. 2017,
//! arXiv:1706.08500). The eigenvalues of A B are those of the symmetric W^T B W, where A = W W^T, so the trace of the square root needs
//! symmetric eigenvalues only: no general matrix square root, no complex numbers, no term added to the diagonal.
//!
//! Not here: what the number is worth at a given number of images, which is [`fid`](super::fid)'s part.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat};

use super::features::Features;
use super::linalg::{self, NotConverged};
use super::projection::Projection;
use super::statistics::{Gaussian, StatisticsError};

/// Most negative eigenvalue, relative to the largest, that still counts as rounding: files may hold f32 statistics.
const NEGATIVE: f64 = 1e-4;

/// A distance that cannot be taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrechetError {
    /// Different dimensions.
    #[error("features have {found} dimensions, the reference statistics {expected}")]
    Dims {
        /// Dimensions of the reference.
        expected: usize,
        /// Dimensions that came.
        found: usize,
    },
    /// A symmetric matrix that is no covariance.
    #[error("sigma is no covariance: its eigenvalues range from {smallest:e} to {largest:e}; expected none below 0")]
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
    /// Features that have no covariance.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// The Fréchet distance between two Gaussians, at least 0. Two eigendecompositions; [`Reference`] keeps the first of them.
///
/// Covariances of any rank will do. A covariance of known `n` has rank n - 1 at most, and eigenvalues past that are rounding and
/// left out.
///
/// # Errors
/// [`FrechetError`] where dimensions differ, `a`'s sigma has clearly negative eigenvalues, or products overflow.
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
    /// Decomposes the covariance.
    ///
    /// # Errors
    /// [`FrechetError::NotACovariance`], [`FrechetError::NotConverged`].
    pub fn new(gaussian: Gaussian) -> Result<Self, FrechetError> {
        let (values, vectors) = linalg::eigen(gaussian.sigma_matrix())?;
        let dims = gaussian.dims();
        let (smallest, largest) = (values[0], values[dims - 1]);
        if smallest < -NEGATIVE * largest.abs() {
            return Err(FrechetError::NotACovariance { smallest, largest });
        }
        // What is below is rounding of the decomposition; its root would be far above rounding.
        let least = dims as f64 * f64::EPSILON * largest;
        let first = values.partition_point(|&value| value <= least).max(dims - gaussian.greatest_rank());
        let root = Mat::from_fn(dims, dims - first, |row, column| {
            vectors[(row, first + column)] * values[first + column].sqrt()
        });
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

    /// The distance to `other`, at least 0.
    ///
    /// # Errors
    /// [`FrechetError`].
    pub fn distance(&self, other: &Gaussian) -> Result<f64, FrechetError> {
        self.check_dims(other.dims())?;
        let (dims, rank) = (self.dims(), self.rank());
        let mut spread = Mat::zeros(dims, rank);
        matmul(spread.as_mut(), Accum::Replace, other.sigma_matrix(), self.root.as_ref(), 1.0, linalg::threads());
        let mut inner = Mat::zeros(rank, rank);
        linalg::add_lower(inner.as_mut(), self.root.transpose(), spread.as_ref());
        let overlap = trace_of_root(inner, other.greatest_rank())?;
        self.assemble(other.mu(), other.trace(), overlap)
    }

    /// The distance to the statistics of `features`, at least 0. With fewer images than dimensions this takes the
    /// eigenvalues of an n x n matrix only; with more it does what [`distance`](Self::distance) does.
    ///
    /// # Errors
    /// [`FrechetError`].
    pub fn distance_to(&self, features: Features<'_>) -> Result<f64, FrechetError> {
        self.check_dims(features.dims())?;
        if features.n() > self.rank() {
            return self.distance(&Gaussian::of(features)?);
        }
        let all: Vec<usize> = (0..features.n()).collect();
        Projection::new(self, features)?.distance(&all)
    }

    pub(super) fn root(&self) -> &Mat<f64> {
        &self.root
    }

    pub(super) fn check_dims(&self, found: usize) -> Result<(), FrechetError> {
        if found == self.dims() { Ok(()) } else { Err(FrechetError::Dims { expected: self.dims(), found }) }
    }

    /// The distance from its parts: the other's mean, the trace of its covariance, and tr (A B)^(1/2).
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

/// Sum of the roots of the `rank` largest eigenvalues of a symmetric matrix without negative ones, given its lower triangle.
/// Eigenvalues below 0 are rounding and count as 0.
///
/// A matrix that overflowed gives infinity, which `assemble` refuses.
pub(super) fn trace_of_root(lower: Mat<f64>, rank: usize) -> Result<f64, NotConverged> {
    let finite = (0..lower.ncols()).all(|column| (column..lower.nrows()).all(|row| lower[(row, column)].is_finite()));
    if !finite {
        return Ok(f64::INFINITY);
    }
    let values = linalg::eigenvalues(lower.as_ref())?;
    Ok(values.iter().rev().take(rank).map(|value| value.max(0.0).sqrt()).sum())
}
