//! Fréchet distances of many subsets of one set of features from one reference.
//!
//! With A = W W^T, the eigenvalues that a distance needs are those of the covariance of the rows X W. X W is computed once; each subset then takes a
//! covariance and its eigenvalues, but no product with W. Memory: n x rank f64.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::features::Features;
use super::frechet::{FrechetError, Reference, trace_of_root};
use super::linalg;
use super::statistics::StatisticsError;
use super::sums::{BLOCK, Sums, centre};

pub(super) struct Projection<'a> {
    reference: &'a Reference,
    features: Features<'a>,
    /// X W `[n, rank]`.
    rows: Vec<f64>,
}

impl<'a> Projection<'a> {
    pub(super) fn new(reference: &'a Reference, features: Features<'a>) -> Result<Self, FrechetError> {
        reference.check_dims(features.dims())?;
        let (dims, rank) = (features.dims(), reference.rank());
        let mut rows = vec![0.0; features.n() * rank];
        if rank > 0 {
            for (block, projected) in features.values().chunks(BLOCK * dims).zip(rows.chunks_mut(BLOCK * rank)) {
                let block: Vec<f64> = block.iter().map(|&value| f64::from(value)).collect();
                let k = block.len() / dims;
                matmul(
                    MatMut::from_row_major_slice_mut(projected, k, rank),
                    Accum::Replace,
                    MatRef::from_row_major_slice(&block, k, dims),
                    reference.root().as_ref(),
                    1.0,
                    linalg::threads(),
                );
            }
        }
        Ok(Self { reference, features, rows })
    }

    /// The distance of the rows `chosen`; `par` says how its products are parallelised.
    pub(super) fn distance(&self, chosen: &[usize], par: Par) -> Result<f64, FrechetError> {
        let n = self.check(chosen.len())?;
        let rank = self.reference.rank();
        // At n = rank + 1 both matrices have the same eigenvalues; below that, the n x n matrix is the smaller one.
        let overlap = if n <= rank {
            trace_of_root(self.gram(chosen, par), n - 1)?
        } else {
            trace_of_root(self.sums(chosen, par).covariance(), rank)?
        };
        self.assemble(chosen, overlap)
    }

    /// For each group, the distance of all rows outside it. The groups together are `all`; each row is in one of them.
    pub(super) fn distances_without(&self, all: &[usize], groups: &[&[usize]]) -> Result<Vec<f64>, FrechetError> {
        let rank = self.reference.rank();
        let total =
            groups.iter().all(|group| all.len() - group.len() > rank).then(|| self.sums(all, linalg::threads()));
        let without = |group: &&[usize]| {
            let out: std::collections::HashSet<usize> = group.iter().copied().collect();
            let rest: Vec<usize> = all.iter().copied().filter(|row| !out.contains(row)).collect();
            match &total {
                // The sums of a group are cheaper than those of the remaining rows.
                Some(total) => {
                    self.check(rest.len())?;
                    let overlap = trace_of_root(total.without(&self.sums(group, Par::Seq)).covariance(), rank)?;
                    self.assemble(&rest, overlap)
                }
                None => self.distance(&rest, Par::Seq),
            }
        };
        groups.par_iter().map(without).collect()
    }

    fn check(&self, n: usize) -> Result<usize, FrechetError> {
        if n < 2 { Err(StatisticsError::TooFewRows { n }.into()) } else { Ok(n) }
    }

    fn gather(&self, chosen: &[usize]) -> Vec<f64> {
        let rank = self.reference.rank();
        chosen.iter().flat_map(|&row| &self.rows[row * rank..(row + 1) * rank]).copied().collect()
    }

    fn sums(&self, chosen: &[usize], par: Par) -> Sums {
        let mut sums = Sums::new(self.reference.rank());
        if self.reference.rank() > 0 {
            chosen.chunks(BLOCK).for_each(|block| sums.add(self.gather(block), par));
        }
        sums
    }

    /// Lower triangle of Y Y^T / (n - 1) for the centred projected rows Y.
    fn gram(&self, chosen: &[usize], par: Par) -> Mat<f64> {
        let (n, rank) = (chosen.len(), self.reference.rank());
        let mut rows = self.gather(chosen);
        centre(&mut rows, rank);
        let scale = 1.0 / ((n - 1) as f64).sqrt();
        rows.iter_mut().for_each(|value| *value *= scale);
        let rows = MatRef::from_row_major_slice(&rows, n, rank);
        let mut gram = Mat::zeros(n, n);
        linalg::add_lower(gram.as_mut(), rows, rows.transpose(), par);
        gram
    }

    /// Mean and trace are computed from the features themselves, because the projection loses what the reference does not span.
    fn assemble(&self, chosen: &[usize], overlap: f64) -> Result<f64, FrechetError> {
        let n = chosen.len() as f64;
        let mut mu = vec![0.0; self.features.dims()];
        for &row in chosen {
            for (sum, &value) in mu.iter_mut().zip(self.features.row(row)) {
                *sum += f64::from(value);
            }
        }
        mu.iter_mut().for_each(|sum| *sum /= n);
        let square = |row: &usize| -> f64 {
            self.features.row(*row).iter().zip(&mu).map(|(&value, mean)| (f64::from(value) - mean).powi(2)).sum()
        };
        let trace = chosen.iter().map(square).sum::<f64>() / (n - 1.0);
        self.reference.assemble(&mu, trace, overlap)
    }
}
