//! The few dense operations that Fréchet distances need, in f64 on faer's matrices.
//!
//! Products are divided into tasks along rows and columns only, and each decomposition runs on one thread, so results have the same bits on any
//! number of threads. A decomposition on several threads would not, and would gain little. Callers that need many decompositions run them in
//! parallel, with [`Par::Seq`] for their products: the threads of a parallel product wait for each other, and would have to wait for complete
//! decompositions.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// An eigendecomposition that did not converge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the eigenvalues of a {dims} x {dims} matrix did not converge")]
pub struct NotConverged {
    /// Size of the matrix.
    pub dims: usize,
}

/// The threads of the current rayon pool.
pub(super) fn threads() -> Par {
    Par::rayon(0)
}

/// Adds the lower triangle of `left * right` to that of `sum`; the rest of `sum` is unchanged.
pub(super) fn add_lower(sum: MatMut<'_, f64>, left: MatRef<'_, f64>, right: MatRef<'_, f64>, par: Par) {
    let whole = BlockStructure::Rectangular;
    triangular::matmul(sum, BlockStructure::TriangularLower, Accum::Add, left, whole, right, whole, 1.0, par);
}

/// Eigenvalues, in ascending order, of the symmetric matrix with this lower triangle.
pub(super) fn eigenvalues(lower: MatRef<'_, f64>) -> Result<Vec<f64>, NotConverged> {
    decompose(lower, None)
}

/// Eigenvalues in ascending order, and eigenvectors as columns.
pub(super) fn eigen(lower: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), NotConverged> {
    let mut vectors = Mat::zeros(lower.nrows(), lower.nrows());
    let values = decompose(lower, Some(vectors.as_mut()))?;
    Ok((values, vectors))
}

/// L `[dims, dims]`, lower triangular with L L^T = sigma, for the symmetric matrix with this lower triangle. `None` if the matrix is not positive
/// definite, or if its pivots show that it is singular (a pivot is below the rounding error of the largest).
pub(super) fn cholesky(lower: MatRef<'_, f64>) -> Option<Mat<f64>> {
    let dims = lower.nrows();
    let mut root = lower.to_owned();
    let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f64>(dims, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut buffer);
    cholesky_in_place(root.as_mut(), Default::default(), Par::Seq, stack, Default::default()).ok()?;
    // The decomposition leaves other values above the diagonal.
    (1..dims).for_each(|column| root.as_mut().col_mut(column).subrows_mut(0, column).fill(0.0));
    let pivots = || (0..dims).map(|i| root[(i, i)] * root[(i, i)]);
    let least = negligible(dims, pivots().fold(0.0, f64::max));
    pivots().all(|pivot| pivot > least).then_some(root)
}

/// The size of rounding errors in a decomposition whose largest value is `largest`.
pub(super) fn negligible(dims: usize, largest: f64) -> f64 {
    dims as f64 * f64::EPSILON * largest
}

fn decompose(lower: MatRef<'_, f64>, vectors: Option<MatMut<'_, f64>>) -> Result<Vec<f64>, NotConverged> {
    let dims = lower.nrows();
    if dims == 0 {
        return Ok(Vec::new());
    }
    let kind = if vectors.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
    let mut values = Diag::<f64>::zeros(dims);
    let mut buffer = MemBuffer::new(self_adjoint_evd_scratch::<f64>(dims, kind, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut buffer);
    self_adjoint_evd(lower, values.as_mut(), vectors, Par::Seq, stack, Default::default())
        .map_err(|_| NotConverged { dims })?;
    Ok(values.column_vector().iter().copied().collect())
}
