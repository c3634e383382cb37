//! KID's kernel between the images of subsets: computed once for all pairs of images if the subsets overlap so much that this is less work, otherwise
//! for each subset. Not here: which subsets.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::features::Features;
use super::kid::KidSubset;
use super::linalg;

/// Maximum number of pairs whose products are kept, 600 MB: those of 5,000 images on each side.
const MOST_PAIRS: usize = 3 * 5000 * 5000;

/// Features of both sides, with their products if these are worth keeping.
pub(super) struct Kernels<'a> {
    real: Features<'a>,
    generated: Features<'a>,
    all: Option<Products>,
}

/// Scalar products of the features of pairs of images.
struct Products {
    /// The lower triangle.
    real: Mat<f64>,
    /// The lower triangle.
    generated: Mat<f64>,
    /// `[real, generated]`
    between: Mat<f64>,
}

impl<'a> Kernels<'a> {
    /// For these subsets. The caller must have checked that the dimensions are equal.
    pub(super) fn new<'s>(
        real: Features<'a>,
        generated: Features<'a>,
        subsets: impl Iterator<Item = &'s KidSubset>,
    ) -> Self {
        let pairs = |n: usize, m: usize| n * n + m * m + n * m;
        let of_subsets: usize = subsets.map(|subset| pairs(subset.real.len(), subset.generated.len())).sum();
        let of_all = pairs(real.n(), generated.n());
        let all = (of_all <= MOST_PAIRS.min(of_subsets)).then(|| Products::of_all(real, generated));
        Self { real, generated, all }
    }

    /// The unbiased squared maximum mean discrepancy of each subset, whose indices the caller must have checked.
    pub(super) fn discrepancies(&self, subsets: &[KidSubset]) -> Vec<f64> {
        subsets.par_iter().map(|subset| self.discrepancy(subset)).collect()
    }

    fn discrepancy(&self, KidSubset { real, generated }: &KidSubset) -> f64 {
        let dims = self.real.dims();
        if let Some(all) = &self.all {
            let lower = |of: &Mat<f64>, i: usize, j: usize| of[(i.max(j), i.min(j))];
            return within(real.len(), dims, |i, j| lower(&all.real, real[i], real[j]))
                + within(generated.len(), dims, |i, j| lower(&all.generated, generated[i], generated[j]))
                - 2.0 * between([real, generated].map(Vec::len), dims, |i, j| all.between[(real[i], generated[j])]);
        }
        let (x, y) = (columns(self.real, real), columns(self.generated, generated));
        let (x_x, y_y) = (of_one(x.as_ref(), Par::Seq), of_one(y.as_ref(), Par::Seq));
        let x_y = of_both(x.as_ref(), y.as_ref(), Par::Seq);
        within(real.len(), dims, |i, j| x_x[(i, j)]) + within(generated.len(), dims, |i, j| y_y[(i, j)])
            - 2.0 * between([real, generated].map(Vec::len), dims, |i, j| x_y[(i, j)])
    }
}

impl Products {
    fn of_all(real: Features<'_>, generated: Features<'_>) -> Self {
        let all = |features: Features<'_>| columns(features, &(0..features.n()).collect::<Vec<_>>());
        let (x, y) = (all(real), all(generated));
        let threads = linalg::threads();
        Self {
            real: of_one(x.as_ref(), threads),
            generated: of_one(y.as_ref(), threads),
            between: of_both(x.as_ref(), y.as_ref(), threads),
        }
    }
}

/// The chosen rows, as columns of a matrix.
fn columns(features: Features<'_>, chosen: &[usize]) -> Mat<f64> {
    Mat::from_fn(features.dims(), chosen.len(), |dim, i| f64::from(features.row(chosen[i])[dim]))
}

/// The lower triangle of the products of columns.
fn of_one(x: MatRef<'_, f64>, par: Par) -> Mat<f64> {
    let mut products = Mat::zeros(x.ncols(), x.ncols());
    linalg::add_lower(products.as_mut(), x.transpose(), x, par);
    products
}

fn of_both(x: MatRef<'_, f64>, y: MatRef<'_, f64>, par: Par) -> Mat<f64> {
    let mut products = Mat::zeros(x.ncols(), y.ncols());
    matmul(products.as_mut(), Accum::Replace, x.transpose(), y, 1.0, par);
    products
}

/// `(x . y / dims + 1)^3`, of the product of x and y.
pub(super) fn kernel(product: f64, dims: usize) -> f64 {
    (product / dims as f64 + 1.0).powi(3)
}

/// Mean of the kernel over pairs of different images; `product` is asked for i > j.
fn within(n: usize, dims: usize, product: impl Fn(usize, usize) -> f64) -> f64 {
    let column = |j: usize| -> f64 { (j + 1..n).map(|i| kernel(product(i, j), dims)).sum() };
    2.0 * (0..n).map(column).sum::<f64>() / (n as f64 * (n - 1) as f64)
}

/// Mean of the kernel over all pairs.
fn between([n, m]: [usize; 2], dims: usize, product: impl Fn(usize, usize) -> f64) -> f64 {
    let column = |j: usize| -> f64 { (0..n).map(|i| kernel(product(i, j), dims)).sum() };
    (0..m).map(column).sum::<f64>() / (n as f64 * m as f64)
}

#[cfg(test)]
mod tests {
    use super::super::draws::normal;
    use super::*;

    #[test]
    fn products_of_all_pairs_give_what_those_of_each_subset_give() {
        let (x, y) = (normal(1, 50 * 7), normal(2, 40 * 7));
        let (x, y) = (Features::new(&x, 7).unwrap(), Features::new(&y, 7).unwrap());
        let subset = |k: usize| KidSubset {
            real: (0..20).map(|i| (i * 7 + k) % 50).collect(),
            generated: (0..15).map(|i| (i * 11 + 3 * k) % 40).collect(),
        };
        let subsets: Vec<KidSubset> = (0..9).map(subset).collect();
        // Nine subsets have more pairs than there are in all, two have fewer.
        let (all, each) = (Kernels::new(x, y, subsets.iter()), Kernels::new(x, y, subsets[..2].iter()));
        assert!(all.all.is_some() && each.all.is_none());
        for (all, each) in all.discrepancies(&subsets).into_iter().zip(each.discrepancies(&subsets)) {
            assert!((all - each).abs() < 1e-12, "{all}, not {each}");
        }
    }
}
