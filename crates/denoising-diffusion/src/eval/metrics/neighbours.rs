//! Memorisation: does a model reproduce its training images?
//!
//! Every generated image has a nearest training image. Which distance is suspiciously small depends on the data, so the distances are compared with
//! those of real images that the model has not seen: if the model has learned the distribution, generated images are as far from the training set as
//! held-out images are; if it copies, they are nearer.
//!
//! Images are compared as rows of [`Features`], either pixels or features of a network. The two detect different copies (in pixels, a shift by one
//! pixel is a large distance). Not here: pictures of the pairs, and a threshold below which something counts as a copy.

use serde::Serialize;

use super::distances::{self, Among};
use super::features::Features;
use super::table_error::TableError;

/// Number of pairs in [`Memorisation::closest`].
const CLOSEST: usize = 10;

/// Fraction of held-out images that are nearer to the training set than the threshold of [`Memorisation::near`].
const NEAR_QUANTILE: f64 = 0.05;

/// The training image nearest to an image; ties go to the smallest index.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// Row of the training table.
    pub index: usize,
    /// Euclidean distance, in the unit of the features.
    pub distance: f64,
}

/// Quantiles of distances, with linear interpolation, as `numpy.quantile` does by default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// The smallest.
    pub min: f64,
    /// 5 %.
    pub p05: f64,
    /// 25 %.
    pub p25: f64,
    /// 50 %.
    pub median: f64,
    /// 75 %.
    pub p75: f64,
    /// 95 %.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

/// Distances of a set of images from the training images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DistanceToTraining {
    /// The nearest training image of each image, in the order of the images.
    pub nearest: Vec<Neighbour>,
    /// The distribution of those distances.
    pub quantiles: Quantiles,
    /// Number of images that equal a training image in every value (distance 0).
    pub exact_copies: usize,
}

/// A generated image with its nearest training image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClosestPair {
    /// Row of the generated table.
    pub generated: usize,
    /// Row of the training table.
    pub training: usize,
    /// Euclidean distance.
    pub distance: f64,
}

/// Generated and held-out images, compared by their distances from the training images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memorisation {
    /// Generated images.
    pub generated: DistanceToTraining,
    /// Images that were not used for training.
    pub held_out: DistanceToTraining,
    /// Fraction of generated images that are nearer to the training set than the 5 % quantile of the held-out distances, in 0..=1. About 0.05 without
    /// copying.
    pub near: f64,
    /// [`mann_whitney_z`] of generated against held-out distances: the global form of the test of Meehan et al. 2020 (arXiv:2004.05675, section 3.1,
    /// there Z_U). About standard normal without copying. Far below 0 (-3, say), generated images are nearer to the training images than held-out
    /// ones are: the model copies. Far above 0, they are farther: it underfits. If a few images among many are copies, it does not show here, but in
    /// `near` and `closest`.
    pub z: Option<f64>,
    /// The closest pairs of a generated image and its nearest training image, closest first, at most ten. Each training image appears only once, with
    /// the generated image closest to it, so that one popular image does not fill the list.
    pub closest: Vec<ClosestPair>,
}

/// The nearest training image of each image, for training images that come in blocks. Time is proportional to the product of both tables' numbers of
/// rows and dims; memory beyond the tables, to the rows of `images`.
#[derive(Clone, Debug)]
pub struct NearestTraining<'a> {
    images: Features<'a>,
    /// Nearest of the training images so far; empty before the first.
    found: Vec<Neighbour>,
    seen: usize,
}

impl<'a> NearestTraining<'a> {
    /// Before any training image was seen.
    pub fn of(images: Features<'a>) -> Self {
        Self { images, found: Vec::new(), seen: 0 }
    }

    /// Takes in the next rows of the training table.
    ///
    /// # Errors
    /// [`TableError`] if the dimensions differ.
    pub fn see(&mut self, block: Features<'_>) -> Result<(), TableError> {
        TableError::dims("training", block, "image", self.images)?;
        if block.n() == 0 {
            return Ok(());
        }
        let nearest = distances::nearest(self.images, block, 1, Among::All).into_iter();
        let nearest = nearest.map(|near| Neighbour { index: self.seen + near.index, distance: near.squared.sqrt() });
        if self.seen == 0 {
            self.found = nearest.collect();
        } else {
            // Ties go to the smaller index, which came first.
            for (found, near) in
                self.found.iter_mut().zip(nearest).filter(|(found, near)| near.distance < found.distance)
            {
                *found = near;
            }
        }
        self.seen += block.n();
        Ok(())
    }

    /// Number of training images seen so far.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// The nearest training image of each image, in order.
    ///
    /// # Errors
    /// [`TableError`] if there was no training image.
    pub fn finish(self) -> Result<Vec<Neighbour>, TableError> {
        TableError::count("training", self.seen, 1)?;
        Ok(self.found)
    }
}

/// Compares generated and held-out images by the [nearest](NearestTraining) training image of each.
///
/// # Errors
/// [`TableError`] if either is empty.
pub fn memorisation(generated: Vec<Neighbour>, held_out: Vec<Neighbour>) -> Result<Memorisation, TableError> {
    TableError::count("generated", generated.len(), 1)?;
    TableError::count("held-out", held_out.len(), 1)?;
    let (generated, held_out) = (DistanceToTraining::new(generated), DistanceToTraining::new(held_out));
    let (from_generated, from_held_out) = (generated.sorted(), held_out.sorted());
    let threshold = quantile(&from_held_out, NEAR_QUANTILE);
    let near = from_generated.partition_point(|&distance| distance < threshold);
    Ok(Memorisation {
        near: near as f64 / from_generated.len() as f64,
        z: mann_whitney_z(&from_generated, &from_held_out),
        closest: closest(&generated.nearest),
        generated,
        held_out,
    })
}

impl DistanceToTraining {
    /// For at least one image.
    fn new(nearest: Vec<Neighbour>) -> Self {
        let exact_copies = nearest.iter().filter(|neighbour| neighbour.distance == 0.0).count();
        let mut found = Self { nearest, quantiles: Quantiles::of(&[0.0]), exact_copies };
        found.quantiles = Quantiles::of(&found.sorted());
        found
    }

    fn sorted(&self) -> Vec<f64> {
        let mut distances: Vec<f64> = self.nearest.iter().map(|neighbour| neighbour.distance).collect();
        distances.sort_unstable_by(f64::total_cmp);
        distances
    }
}

impl Quantiles {
    fn of(sorted: &[f64]) -> Self {
        let at = |q| quantile(sorted, q);
        let (min, max) = (at(0.0), at(1.0));
        Self { min, p05: at(0.05), p25: at(0.25), median: at(0.5), p75: at(0.75), p95: at(0.95), max }
    }
}

/// The `q`-quantile of at least one sorted value.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len() - 1;
    let at = q * last as f64;
    let below = (at as usize).min(last);
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    low + (at - below as f64) * (high - low)
}

/// The z-score of the Mann-Whitney statistic: negative if values of `a` tend to be smaller than those of `b`.
///
/// `U` counts the pairs with `a_i > b_j`, equal ones as half. With `n` and `m` values, `N = n + m` and groups of `t` equal values,
///
/// ```text
/// z = (U - n m / 2) / sqrt(n m / 12 ((N + 1) - sum (t^3 - t) / (N (N - 1))))
/// ```
///
/// without continuity correction, as `scipy.stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=False)`. `None` if `a` or `b` is empty or
/// all values are equal, because then there is no order.
pub fn mann_whitney_z(a: &[f64], b: &[f64]) -> Option<f64> {
    let (n, m) = (a.len() as f64, b.len() as f64);
    let mut all: Vec<(f64, bool)> = a.iter().map(|&v| (v, true)).chain(b.iter().map(|&v| (v, false))).collect();
    all.sort_unstable_by(|x, y| x.0.total_cmp(&y.0));
    let (mut u, mut ties, mut smaller_b) = (0.0, 0.0, 0.0);
    for group in all.chunk_by(|x, y| x.0 == y.0) {
        let of_a = group.iter().filter(|(_, is_a)| *is_a).count() as f64;
        let t = group.len() as f64;
        u += of_a * (smaller_b + (t - of_a) / 2.0);
        smaller_b += t - of_a;
        ties += t * t * t - t;
    }
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    (variance > 0.0).then(|| (u - n * m / 2.0) / variance.sqrt())
}

fn closest(nearest: &[Neighbour]) -> Vec<ClosestPair> {
    let pair = |(generated, near): (usize, &Neighbour)| ClosestPair {
        generated,
        training: near.index,
        distance: near.distance,
    };
    let mut pairs: Vec<ClosestPair> = nearest.iter().enumerate().map(pair).collect();
    // A stable sort: ties go to the first generated image.
    pairs.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    let mut taken: Vec<ClosestPair> = Vec::with_capacity(CLOSEST);
    for pair in pairs {
        if taken.len() == CLOSEST {
            break;
        }
        if taken.iter().all(|other| other.training != pair.training) {
            taken.push(pair);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::{Purpose, Stream};

    fn normal(n: usize, dims: usize, index: u64) -> Vec<f32> {
        let mut values = vec![0.0; n * dims];
        Stream::new(13, Purpose::Evaluation, index, 0).fill_normal(&mut values);
        values
    }

    fn table(values: &[f32], dims: usize) -> Features<'_> {
        Features::new(values, dims).unwrap()
    }

    fn nearest(images: Features<'_>, training: Features<'_>) -> Result<Vec<Neighbour>, TableError> {
        let mut nearest = NearestTraining::of(images);
        nearest.see(training)?;
        nearest.finish()
    }

    fn memorisation(generated: Features, held_out: Features, training: Features) -> Result<Memorisation, TableError> {
        super::memorisation(nearest(generated, training)?, nearest(held_out, training)?)
    }

    #[test]
    fn by_hand_on_a_line() {
        let training = [0.0, 10.0, 20.0, 20.0];
        let generated = [1.0, 20.0, -2.0, 12.0];
        let held_out = [3.0, 14.0];
        let found = memorisation(table(&generated, 1), table(&held_out, 1), table(&training, 1)).unwrap();
        let near = |index, distance| Neighbour { index, distance };
        assert_eq!(found.generated.nearest, [near(0, 1.0), near(2, 0.0), near(0, 2.0), near(1, 2.0)]);
        assert_eq!(found.held_out.nearest, [near(0, 3.0), near(1, 4.0)]);
        assert_eq!((found.generated.exact_copies, found.held_out.exact_copies), (1, 0));
        assert_eq!(found.near, 1.0);
        assert_eq!((found.generated.quantiles.median, found.held_out.quantiles.p25), (1.5, 3.25));
        // U = 0: no generated distance exceeds a held-out one; the two 2.0 are one group of ties.
        let variance = 8.0 / 12.0 * (7.0 - 6.0 / 30.0);
        assert!((found.z.unwrap() + 4.0 / f64::sqrt(variance)).abs() < 1e-12);
        // The first training image is taken by the generated image at 1.
        let pair = |generated, training, distance| ClosestPair { generated, training, distance };
        assert_eq!(found.closest, [pair(1, 2, 0.0), pair(0, 0, 1.0), pair(3, 1, 2.0)]);
    }

    #[test]
    fn copies_are_seen_and_fresh_samples_are_not() {
        let (training, held_out, fresh) = (normal(500, 6, 0), normal(400, 6, 1), normal(300, 6, 2));
        let noise = normal(500, 6, 3);
        let copies: Vec<f32> = training.iter().zip(&noise).map(|(v, e)| v + 0.05 * e).collect();
        let judge =
            |generated: &[f32]| memorisation(table(generated, 6), table(&held_out, 6), table(&training, 6)).unwrap();
        let found = judge(&fresh);
        assert!(found.z.unwrap().abs() < 3.0 && (0.01..0.12).contains(&found.near), "{:?} {}", found.z, found.near);
        let found = judge(&copies);
        assert!(found.z.unwrap() < -20.0 && found.near > 0.99, "{:?} {}", found.z, found.near);
        assert!(found.closest.iter().all(|pair| pair.generated == pair.training));
        assert_eq!((found.closest.len(), found.generated.exact_copies), (10, 0));
        assert_eq!(judge(&training).generated.exact_copies, 500);
        // Farther from the training set than held-out images.
        let far: Vec<f32> = fresh.iter().map(|v| v + 3.0).collect();
        assert!(judge(&far).z.unwrap() > 10.0);
    }

    #[test]
    fn without_an_order_there_is_no_z() {
        assert_eq!(mann_whitney_z(&[], &[1.0]), None);
        assert_eq!(mann_whitney_z(&[], &[]), None);
        assert_eq!(mann_whitney_z(&[2.0; 3], &[2.0; 4]), None);
        assert_eq!(mann_whitney_z(&[1.0, 2.0], &[1.0, 2.0]), Some(0.0));
        let same = [0.5; 8];
        let found = memorisation(table(&same, 2), table(&same[..2], 2), table(&same, 2)).unwrap();
        assert_eq!((found.z, found.near, found.closest.len()), (None, 0.0, 1));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let (one, wide, none) = (table(&[1.0], 1), table(&[1.0, 2.0], 2), table(&[], 1));
        assert!(memorisation(one, one, one).is_ok());
        assert!(matches!(memorisation(one, one, none), Err(TableError::TooFew { what: "training", .. })));
        assert!(matches!(memorisation(none, one, one), Err(TableError::TooFew { what: "generated", .. })));
        assert!(matches!(memorisation(one, none, one), Err(TableError::TooFew { what: "held-out", .. })));
        assert!(matches!(memorisation(one, wide, one), Err(TableError::Dims { second: "image", found: 2, .. })));
        assert_eq!(nearest(none, one).unwrap(), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Few distinct values, so that ties are common.
        #[test]
        fn z_changes_sign_with_the_sides(
            a in prop::collection::vec(0_u8..8, 1..40), b in prop::collection::vec(0_u8..8, 1..40),
        ) {
            let number = |values: &[u8]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let (a, b) = (number(&a), number(&b));
            match (mann_whitney_z(&a, &b), mann_whitney_z(&b, &a)) {
                (Some(z), Some(other)) => prop_assert!((z + other).abs() < 1e-9),
                (z, other) => prop_assert_eq!(z, other),
            }
        }

        /// Values repeat, so that equally near images are common.
        #[test]
        fn blocks_come_to_what_the_whole_comes_to(
            images in prop::collection::vec(0_u8..6, 1..20), training in prop::collection::vec(0_u8..6, 1..40), block in 1_usize..8,
        ) {
            let number = |values: &[u8]| values.iter().map(|&v| f32::from(v)).collect::<Vec<_>>();
            let (images, training) = (number(&images), number(&training));
            let mut in_blocks = NearestTraining::of(table(&images, 1));
            for block in training.chunks(block) {
                in_blocks.see(table(block, 1)).unwrap();
            }
            prop_assert_eq!(in_blocks.seen(), training.len());
            prop_assert_eq!(in_blocks.finish().unwrap(), nearest(table(&images, 1), table(&training, 1)).unwrap());
        }

        #[test]
        fn the_order_of_rows_does_not_matter(seed in 0_u64..1000, n in 1_usize..60, m in 1_usize..60) {
            let (generated, held_out, training) = (normal(n, 3, seed), normal(m, 3, seed + 1000), normal(50, 3, seed + 2000));
            let reverse = |values: &[f32]| values.chunks(3).rev().flatten().copied().collect::<Vec<f32>>();
            let once = memorisation(table(&generated, 3), table(&held_out, 3), table(&training, 3)).unwrap();
            let (generated, held_out, training) = (reverse(&generated), reverse(&held_out), reverse(&training));
            let again = memorisation(table(&generated, 3), table(&held_out, 3), table(&training, 3)).unwrap();
            prop_assert_eq!((once.near, once.z), (again.near, again.z));
            prop_assert_eq!(once.generated.quantiles, again.generated.quantiles);
            let turned: Vec<ClosestPair> = again.closest.iter()
                .map(|pair| ClosestPair { generated: n - 1 - pair.generated, training: 49 - pair.training, ..*pair })
                .collect();
            prop_assert_eq!(once.closest, turned);
        }
    }
}
