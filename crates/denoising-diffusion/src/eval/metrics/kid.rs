//! KID: the squared maximum mean discrepancy between features of real and generated images under a polynomial kernel.
//!
//! k(x, y) = (x . y / dims + 1)^3, with the unbiased estimate of Binkowski et al. 2018, "Demystifying MMD GANs" (arXiv:1801.01401). Unlike that of
//! FID, its expectation does not depend on the number of images; its value may be below 0.

use super::draws::{Draw, subset};
use super::features::Features;
use super::kid_kernels::Kernels;

/// How KID is averaged over subsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KidOptions {
    /// Seed of the subsets.
    pub seed: u64,
    /// Number of subsets, at least 1.
    pub subsets: usize,
    /// Images per subset on each side, at least 2; fewer if a side has fewer.
    pub subset_size: usize,
}

impl Default for KidOptions {
    fn default() -> Self {
        Self { seed: 0, subsets: 100, subset_size: 1000 }
    }
}

/// A KID.
#[derive(Clone, Debug, PartialEq)]
pub struct Kid {
    /// Mean over subsets.
    pub value: f64,
    /// Standard deviation over subsets (divided by their number, as in torch-fidelity), 0 for a single subset. It says how much a KID of
    /// `subset_size` images varies, not how certain `value` is.
    pub standard_deviation: f64,
    /// Standard error of `value` over other images on both sides; `None` for fewer than 4 images or a single subset.
    pub standard_error: Option<f64>,
    /// Number of subsets; 1 if both sides have exactly `subset_size` images.
    pub subsets: usize,
    /// Images per subset on each side.
    pub subset_size: usize,
    /// Real images.
    pub n_real: usize,
    /// Generated images.
    pub n_generated: usize,
}

/// Why a KID cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KidError {
    /// Different dimensions.
    #[error("generated features have {generated} dimensions, real ones {real}")]
    Dims {
        /// Of the real features.
        real: usize,
        /// Of the generated features.
        generated: usize,
    },
    /// The unbiased estimate needs pairs.
    #[error("{real} real and {generated} generated images; KID needs at least 2 of each")]
    TooFewRows {
        /// Number of real images, in all or in a subset.
        real: usize,
        /// Number of generated images.
        generated: usize,
    },
    /// Options out of range.
    #[error("{subsets} subsets of {size} images; expected at least 1 of at least 2")]
    Subsets {
        /// Number of subsets.
        subsets: usize,
        /// Images in each.
        size: usize,
    },
    /// A subset with an index past the end.
    #[error("a subset names image {index} of {n}")]
    Index {
        /// The index.
        index: usize,
        /// Number of images on that side.
        n: usize,
    },
}

/// Images of both sides, by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KidSubset {
    /// Rows of the real features, at least 2.
    pub real: Vec<usize>,
    /// Rows of the generated features, at least 2.
    pub generated: Vec<usize>,
}

impl Kid {
    /// KID between `real` and `generated`.
    ///
    /// Subsets are drawn without repetition within each. If both sides have the same number of images, at most `subset_size`, one estimate over all
    /// of them takes the subsets' place.
    ///
    /// With s the standard deviation over S subsets of m out of n images (n being the smaller side), SE = s sqrt(1 / S + m / (n - m)). This covers
    /// the draw of the subsets, and, by the delete-d jackknife of Shao and Wu 1989, "A general theory for jackknife variance estimation", d = n - m,
    /// that of the images. If m exceeds n / 2, s and m come from a second set of subsets, of n / 2 images. The larger side is treated as if it had n
    /// images too, so the error is overestimated rather than underestimated.
    ///
    /// # Errors
    /// [`KidError`] if dimensions differ, a side has fewer than 2 images, or options are out of range.
    pub fn new(real: Features<'_>, generated: Features<'_>, options: &KidOptions) -> Result<Self, KidError> {
        let KidOptions { seed, subsets, subset_size } = *options;
        if subsets == 0 || subset_size < 2 {
            return Err(KidError::Subsets { subsets, size: subset_size });
        }
        let (n_real, n_generated) = (real.n(), generated.n());
        let n = n_real.min(n_generated);
        let m = subset_size.min(n);
        let count = if n_real == m && n_generated == m { 1 } else { subsets };
        let draw = |draws: [Draw; 2], count: usize, m: usize| {
            let subset = |number| KidSubset {
                real: subset(seed, draws[0], number as u32, n_real, m),
                generated: subset(seed, draws[1], number as u32, n_generated, m),
            };
            (0..count).map(subset).collect::<Vec<_>>()
        };
        let drawn = draw([Draw::KidReal, Draw::KidGenerated], count, m);
        let with_error = subsets > 1 && n >= 4;
        // For the error, if the subsets are too large.
        let halves = if with_error && m > n / 2 {
            draw([Draw::KidErrorReal, Draw::KidErrorGenerated], subsets, n / 2)
        } else {
            Vec::new()
        };
        check(real, generated, &drawn)?;
        let kernels = Kernels::new(real, generated, drawn.iter().chain(&halves));
        let (value, standard_deviation) = mean_and_deviation(&kernels.discrepancies(&drawn));
        let standard_error = with_error.then(|| {
            let (deviation, m) = match halves[..] {
                [] => (standard_deviation, m),
                _ => (mean_and_deviation(&kernels.discrepancies(&halves)).1, n / 2),
            };
            deviation * (1.0 / subsets as f64 + m as f64 / (n - m) as f64).sqrt()
        });
        Ok(Self { value, standard_deviation, standard_error, subsets: count, subset_size: m, n_real, n_generated })
    }
}

/// The unbiased squared maximum mean discrepancy of each subset: mean of k(x, x') over x != x' + mean of k(y, y') over y != y' - 2 mean of k(x, y).
/// The two sides may differ in number. All in f64, because the terms are far larger than their difference.
///
/// # Errors
/// [`KidError`] if dimensions differ, a side of a subset has fewer than 2 images, or an index is past the end.
pub fn kid_of_subsets(
    real: Features<'_>,
    generated: Features<'_>,
    subsets: &[KidSubset],
) -> Result<Vec<f64>, KidError> {
    check(real, generated, subsets)?;
    Ok(Kernels::new(real, generated, subsets.iter()).discrepancies(subsets))
}

fn check(real: Features<'_>, generated: Features<'_>, subsets: &[KidSubset]) -> Result<(), KidError> {
    if real.dims() != generated.dims() {
        return Err(KidError::Dims { real: real.dims(), generated: generated.dims() });
    }
    for KidSubset { real: x, generated: y } in subsets {
        if x.len() < 2 || y.len() < 2 {
            return Err(KidError::TooFewRows { real: x.len(), generated: y.len() });
        }
        for (side, n) in [(x, real.n()), (y, generated.n())] {
            if let Some(&index) = side.iter().find(|&&index| index >= n) {
                return Err(KidError::Index { index, n });
            }
        }
    }
    Ok(())
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::super::draws::normal;
    use super::super::kid_kernels::kernel;
    use super::*;

    fn features(values: &[f32], dims: usize) -> Features<'_> {
        Features::new(values, dims).unwrap()
    }

    /// The definition, pair by pair.
    fn by_definition(real: Features<'_>, generated: Features<'_>) -> f64 {
        let k = |x: &[f32], y: &[f32]| {
            kernel(x.iter().zip(y).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum(), real.dims())
        };
        let mean = |a: Features<'_>, b: Features<'_>, same: bool| {
            let pairs = (0..a.n()).flat_map(|i| (0..b.n()).map(move |j| (i, j))).filter(|(i, j)| !same || i != j);
            let values: Vec<f64> = pairs.map(|(i, j)| k(a.row(i), b.row(j))).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        mean(real, real, true) + mean(generated, generated, true) - 2.0 * mean(real, generated, false)
    }

    #[test]
    fn it_is_what_the_definition_says() {
        let (x, y) = (normal(1, 20 * 5), normal(2, 13 * 5));
        let (x, y) = (features(&x, 5), features(&y, 5));
        let all = KidSubset { real: (0..20).collect(), generated: (0..13).collect() };
        let got = kid_of_subsets(x, y, &[all]).unwrap()[0];
        assert!((got - by_definition(x, y)).abs() < 1e-13);
        let y = features(&y.values()[..60], 5);
        let x = features(&x.values()[..60], 5);
        let got = Kid::new(x, y, &KidOptions::default()).unwrap();
        assert!((got.value - by_definition(x, y)).abs() < 1e-13);
        assert_eq!((got.subsets, got.subset_size, got.standard_deviation), (1, 12, 0.0));
        assert!(got.standard_error.unwrap() > 0.0);
        let swapped = Kid::new(y, x, &KidOptions::default()).unwrap();
        assert!((got.value - swapped.value).abs() < 1e-13);
    }

    /// Both ways to the standard error: from the value's own subsets, and from halves if the value takes all images.
    #[test]
    fn it_is_unbiased_and_its_error_calibrated() {
        let (dims, n, sets) = (4, 120, 80);
        for subset_size in [40, 1000] {
            let kids: Vec<Kid> = (0..sets)
                .map(|set| {
                    let (x, y) = (normal(1000 + set, n * dims), normal(5000 + set, n * dims));
                    let y: Vec<f32> = y.iter().map(|v| v + 0.4).collect();
                    let options = KidOptions { seed: set, subsets: 50, subset_size };
                    Kid::new(features(&x, dims), features(&y, dims), &options).unwrap()
                })
                .collect();
            let mean = |f: &dyn Fn(&Kid) -> f64| kids.iter().map(f).sum::<f64>() / sets as f64;
            let value = mean(&|kid| kid.value);
            let scatter = mean(&|kid| (kid.value - value).powi(2)).sqrt();
            let error = mean(&|kid| kid.standard_error.unwrap().powi(2)).sqrt();
            // KID of N(0, I) and N(0.4, I): for independent x, y with means a, b, E (x . y / d + 1)^3 = (1 + a . b / d)^3 + 3 (1 + a . b / d) (d +
            // |a|^2 + |b|^2) / d^2 + 6 a . b / d^3.
            let d = dims as f64;
            let expected = |a: f64, b: f64| {
                let along = 1.0 + a * b;
                along.powi(3) + 3.0 * along * (1.0 + a * a + b * b) / d + 6.0 * a * b / (d * d)
            };
            let truth = expected(0.0, 0.0) + expected(0.4, 0.4) - 2.0 * expected(0.0, 0.4);
            let noise = scatter / (sets as f64).sqrt();
            assert!((value - truth).abs() < 3.0 * noise, "{value} is not {truth}, noise {noise}");
            assert!((0.7..1.4).contains(&(error / scatter)), "standard error {error}, scatter {scatter}");
        }
    }

    #[test]
    fn the_seed_alone_decides() {
        let (x, y) = (normal(3, 200 * 30), normal(4, 150 * 30));
        let on = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let options = KidOptions { seed, subsets: 7, subset_size: 100 };
            pool.install(|| Kid::new(features(&x, 30), features(&y, 30), &options).unwrap())
        };
        assert_eq!(on(1, 0), on(2, 0));
        assert_eq!(on(1, 0), on(5, 0));
        assert_ne!(on(1, 0).value, on(1, 1).value);
    }

    /// All images of a side smaller than a subset are used, against different images of the other side.
    #[test]
    fn sides_of_different_size_are_compared() {
        let (x, y) = (normal(5, 300 * 3), normal(6, 20 * 3));
        let options = KidOptions { seed: 0, subsets: 10, subset_size: 100 };
        let got = Kid::new(features(&x, 3), features(&y, 3), &options).unwrap();
        assert_eq!((got.subsets, got.subset_size, got.n_real, got.n_generated), (10, 20, 300, 20));
        assert!(got.standard_deviation > 0.0 && got.standard_error.unwrap() > 0.0);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let (x, y) = (normal(7, 12), normal(8, 12));
        let new = |x: &[f32], y: &[f32], options: KidOptions| Kid::new(features(x, 3), features(y, 3), &options);
        let options = KidOptions::default();
        assert_eq!(new(&x, &[], options).unwrap_err(), KidError::TooFewRows { real: 0, generated: 0 });
        assert_eq!(new(&x[..3], &y, options).unwrap_err(), KidError::TooFewRows { real: 1, generated: 1 });
        assert_eq!(new(&x[..9], &y[..9], options).unwrap().standard_error, None);
        for (subsets, subset_size) in [(0, 10), (10, 1)] {
            let error = new(&x, &y, KidOptions { subsets, subset_size, ..options }).unwrap_err();
            assert_eq!(error, KidError::Subsets { subsets, size: subset_size });
        }
        let error = Kid::new(features(&x, 3), features(&y, 4), &options).unwrap_err();
        assert_eq!(error, KidError::Dims { real: 3, generated: 4 });
        let subset = KidSubset { real: vec![0, 1], generated: vec![0, 4] };
        let error = kid_of_subsets(features(&x, 3), features(&y, 3), &[subset]).unwrap_err();
        assert_eq!(error, KidError::Index { index: 4, n: 4 });
    }
}
