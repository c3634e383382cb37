//! Precision, recall, density and coverage: do generated images look real, and is everything that is real also generated?
//!
//! Each table of features spans a region: the union of balls around its rows, each with a radius equal to the distance of the row's `k`-th nearest
//! neighbour in the same table. With `r_k(x)` that radius, real rows `x_1 .. x_n` and generated rows `y_1 .. y_m`:
//!
//! ```text
//! precision = 1/m  sum_j 1[some i: |x_i - y_j| < r_k(x_i)]     the share of generated rows in the region of the real ones
//! recall    = 1/n  sum_i 1[some j: |x_i - y_j| < r_k(y_j)]     the share of real rows in the region of the generated ones
//! density   = 1/(k m)  sum_j sum_i 1[|x_i - y_j| < r_k(x_i)]   in how many real balls a generated row lies, over k
//! coverage  = 1/n  sum_i 1[some j: |x_i - y_j| < r_k(x_i)]     the share of real balls that hold a generated row
//! ```
//!
//! Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991; density and coverage: Naeem et al. 2020, arXiv:2002.09797. The comparisons are
//! strict, as in the authors' package `prdc`. Density may exceed 1; the others lie in 0..=1. All four depend on n, m and k, so they can only be
//! compared if these are equal.
//!
//! Not here: features, which the papers take from a network that was trained to classify images.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::distances::{Among, Pair, nearest};
use super::estimate::Estimate;
use super::features::Features;
use super::table_error::TableError;

/// The usual number of neighbours (Naeem et al. 2020, section 5).
pub const PRDC_NEIGHBOURS: usize = 5;

/// The four numbers. Their standard errors cover the draw of the rows that are counted, for fixed regions; they do not include how the regions vary
/// with the draw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prdc {
    /// The number of the neighbour that sets the radii.
    pub k: usize,
    /// In 0..=1; standard error `sqrt(p (1 - p) / m)`, m generated rows.
    pub precision: Estimate,
    /// In 0..=1; standard error `sqrt(p (1 - p) / n)`, n real rows.
    pub recall: Estimate,
    /// At least 0, about 1 for equal distributions; standard error `s / sqrt(m)`, s the standard deviation over generated rows of
    /// (real balls around the row) / k.
    pub density: Estimate,
    /// In 0..=1; standard error `sqrt(p (1 - p) / n)`, n real rows.
    pub coverage: Estimate,
}

/// Compares generated features with real ones. Time is proportional to (n + m)^2 dims, memory beyond the tables to n + m.
///
/// # Errors
/// [`TableError`] if the dimensions differ, `k` is 0, or a table has fewer than `k` + 1 rows.
pub fn prdc(real: Features, generated: Features, k: usize) -> Result<Prdc, TableError> {
    TableError::dims("real", real, "generated", generated)?;
    if k == 0 {
        return Err(TableError::NoNeighbours);
    }
    let needed = k.saturating_add(1);
    TableError::rows("real", real, needed)?;
    TableError::rows("generated", generated, needed)?;

    let Overlap { balls, recalled, covered } = overlap(real, generated, k);
    let per_row = Estimate::mean(&balls.iter().map(|&count| f64::from(count)).collect::<Vec<f64>>());
    let share = |marks: &[AtomicBool]| {
        Estimate::share(marks.iter().filter(|mark| mark.load(Ordering::Relaxed)).count(), marks.len())
    };
    Ok(Prdc {
        k,
        precision: Estimate::share(balls.iter().filter(|&&count| count > 0).count(), balls.len()),
        recall: share(&recalled),
        density: Estimate { value: per_row.value / k as f64, standard_error: per_row.standard_error / k as f64 },
        coverage: share(&covered),
    })
}

/// How the two regions overlap.
struct Overlap {
    /// For each generated row, the number of real balls that it lies in.
    balls: Vec<u32>,
    /// For each real row, whether it lies in a generated ball.
    recalled: Vec<AtomicBool>,
    /// For each real row, whether its ball holds a generated row.
    covered: Vec<AtomicBool>,
}

fn overlap(real: Features, generated: Features, k: usize) -> Overlap {
    let (real_radii, generated_radii) = (squared_radii(real, k), squared_radii(generated, k));
    // Marks are only ever set, so it does not matter in which order blocks set them.
    let unmarked = || (0..real.n()).map(|_| AtomicBool::new(false)).collect::<Vec<_>>();
    let (recalled, covered) = (unmarked(), unmarked());
    let balls = Pair::new(generated, real).visit(
        |rows| vec![0_u32; rows.len()],
        |balls, tile| {
            for (i, balls) in tile.rows.clone().zip(balls) {
                for j in tile.columns.clone() {
                    let bounds = tile.bounds(i, j);
                    if tile.is_below(i, j, bounds, real_radii[j]) {
                        *balls += 1;
                        covered[j].store(true, Ordering::Relaxed);
                    }
                    if tile.is_below(i, j, bounds, generated_radii[i]) {
                        recalled[j].store(true, Ordering::Relaxed);
                    }
                }
            }
        },
    );
    Overlap { balls: balls.into_iter().flatten().collect(), recalled, covered }
}

/// Squared distance of each row to its `k`-th nearest other row.
fn squared_radii(table: Features, k: usize) -> Vec<f64> {
    nearest(table, table, k, Among::Others).chunks_exact(k).map(|near| near[k - 1].squared).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::{Purpose, Stream};

    fn normal(n: usize, dims: usize, index: u64, mean: f32) -> Vec<f32> {
        let mut values = vec![0.0; n * dims];
        Stream::new(9, Purpose::Evaluation, index, 0).fill_normal(&mut values);
        values.iter_mut().for_each(|v| *v += mean);
        values
    }

    fn values(found: &Prdc) -> [f64; 4] {
        [found.precision, found.recall, found.density, found.coverage].map(|estimate| estimate.value)
    }

    #[test]
    fn by_hand_on_a_line() {
        // Real radii for k = 1: 1, 1, 2, generated: 0.5, 0.5, 9.
        let (real, generated) = ([0.0, 1.0, 3.0], [0.5, 1.0, 10.0]);
        let found = prdc(Features::new(&real, 1).unwrap(), Features::new(&generated, 1).unwrap(), 1).unwrap();
        // 0.5 lies in the balls of 0 and 1; 1 only in that of 1, because its distances from 0 and 3 equal their radii; 10 in none. 0 is no nearer to
        // 0.5 than 0.5; 1 is in the ball of 1; 3 is 7 from 10. The ball of 3 contains nothing (2 < 2 is false).
        let third = 1.0 / 3.0;
        assert_eq!(values(&found), [2.0 * third, 2.0 * third, 1.0, 2.0 * third]);
        assert_eq!(found.density.standard_error, (1.0_f64 / 3.0).sqrt());
        assert_eq!(found.precision.standard_error, (2.0_f64 / 3.0 * (1.0 - 2.0 / 3.0) / 3.0).sqrt());
    }

    #[test]
    fn a_set_against_itself_is_all_ones() {
        let real = normal(400, 6, 0, 0.0);
        let real = Features::new(&real, 6).unwrap();
        // Each ball contains its centre and the k - 1 nearest rows; the k-th lies on its edge.
        assert_eq!(values(&prdc(real, real, 5).unwrap()), [1.0; 4]);
    }

    #[test]
    fn sets_far_apart_share_nothing() {
        let (real, generated) = (normal(50, 4, 0, 0.0), normal(60, 4, 1, 1000.0));
        let found = prdc(Features::new(&real, 4).unwrap(), Features::new(&generated, 4).unwrap(), 5).unwrap();
        assert_eq!(values(&found), [0.0; 4]);
        assert_eq!(found.density.standard_error, 0.0);
    }

    #[test]
    fn equal_distributions_cover_as_the_theory_says() {
        // Naeem et al. 2020, lemma 1: E coverage = 1 - prod_{i<=k} (n - i) / (n + m - i), here with n - 1 other rows.
        let (real, generated) = (normal(1000, 3, 2, 0.0), normal(1000, 3, 3, 0.0));
        let found = prdc(Features::new(&real, 3).unwrap(), Features::new(&generated, 3).unwrap(), 5).unwrap();
        assert!((found.coverage.value - 0.969).abs() < 0.02, "{found:?}");
        assert!((found.density.value - 1.0).abs() < 4.0 * found.density.standard_error, "{found:?}");
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let (six, four) = ([0.0; 6], [0.0; 4]);
        let (six, four) = (Features::new(&six, 1).unwrap(), Features::new(&four, 1).unwrap());
        let wide = Features::new(&[0.0; 12], 2).unwrap();
        assert_eq!(
            prdc(six, wide, 1).unwrap_err(),
            TableError::Dims { first: "real", expected: 1, second: "generated", found: 2 }
        );
        assert_eq!(prdc(six, six, 0).unwrap_err(), TableError::NoNeighbours);
        let too_few = |what, needed, found| TableError::TooFew { what, needed, found };
        assert_eq!(prdc(six, four, 5).unwrap_err(), too_few("generated", 6, 4));
        assert_eq!(prdc(four, six, 4).unwrap_err(), too_few("real", 5, 4));
        assert!(matches!(prdc(six, six, usize::MAX), Err(TableError::TooFew { .. })));
        // Constant features: every radius is 0, and no distance is less.
        assert_eq!(values(&prdc(six, four, 3).unwrap()), [0.0; 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_order_of_rows_does_not_matter(seed in 0_u64..1000, n in 8_usize..200, m in 8_usize..200) {
            let (real, generated) = (normal(n, 3, seed, 0.0), normal(m, 3, seed + 1000, 0.3));
            let reverse = |values: &[f32]| values.chunks(3).rev().flatten().copied().collect::<Vec<f32>>();
            let compare = |real: &[f32], generated: &[f32]| {
                values(&prdc(Features::new(real, 3).unwrap(), Features::new(generated, 3).unwrap(), 5).unwrap())
            };
            let (once, again) = (compare(&real, &generated), compare(&reverse(&real), &reverse(&generated)));
            for (a, b) in once.iter().zip(again) {
                prop_assert!((a - b).abs() < 1e-12, "{once:?} {again:?}");
            }
            // With the tables swapped, precision and recall are swapped.
            let swapped = compare(&generated, &real);
            prop_assert_eq!([once[0], once[1]], [swapped[1], swapped[0]]);
        }
    }
}
