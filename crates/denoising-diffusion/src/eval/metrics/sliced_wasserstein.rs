//! Sliced 2-Wasserstein distance: two sets of points, compared by their projections onto random lines.
//!
//! On a line, the best way to move one set of points onto another keeps their order, so `W2^2 = integral_0^1 (F_a^-1(q) - F_b^-1(q))^2 dq`, with the
//! two quantile functions, exactly and also for unequal numbers of points. Over directions `u` of unit length, drawn uniformly,
//!
//! ```text
//! SW2(a, b) = sqrt(mean over u of W2^2(a u, b u))
//! ```
//!
//! (Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures", J. Math. Imaging Vis. 51; the same as
//! `ot.sliced_wasserstein_distance` of the package POT.) It is in the unit of the features, needs no trained network, and is a metric on
//! distributions. It shrinks with the number of dimensions: two points that are `v` apart in `d` dimensions have `SW2 = |v| / sqrt(d)`.
//!
//! Two finite samples of one distribution have a positive distance, called the floor, which [`sliced_wasserstein_with_floor`] measures.
//!
//! Not here: the Wasserstein distance in all dimensions at once, and other exponents.

use std::ops::ControlFlow;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use serde::Serialize;

use super::OnShare;
use super::distances::widen;
use super::estimate::Estimate;
use super::features::Features;
use super::table_error::TableError;
use crate::noise::{Purpose, Stream};

/// The usual number of directions, with which the standard error over directions is of the order of 3 % of the distance or less.
pub const DIRECTIONS: usize = 512;

/// The smallest number of directions for which there is a standard error.
const FEWEST: usize = 2;
/// Number of directions handled at a time; bounds the memory for them and for projections.
const AT_ONCE: usize = 64;
/// Number of rows that a thread projects at a time.
const ROWS: usize = 128;
/// Number of dimensions multiplied at a time.
const DEPTH: usize = 1024;

/// Part of the streams for directions; index: the direction.
const DIRECTION_PART: u32 = 0x5357_0000;
/// Part of the stream that divides the real rows into halves.
const HALVES_PART: u32 = 0x5357_0001;

/// A distance and the floor to compare it with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SlicedWasserstein {
    /// Between the real and the generated rows.
    pub distance: Estimate,
    /// Between two random halves of the real rows, along the same directions.
    ///
    /// Even a perfect generator has a distance of this size: a `distance` near the floor only says that there are too few samples to see a
    /// difference. The squared distance of two samples of one distribution, of `n` and `m` rows, falls about as `1/n + 1/m`. Each half has only half
    /// of the real rows, so with as many generated as real rows, a perfect generator lies below the floor, near `floor / sqrt(2)`.
    pub floor: Estimate,
    /// Number of directions.
    pub directions: usize,
}

/// The distance of two tables along `directions` random directions, drawn with `seed`. The standard error covers the draw of the directions, not that
/// of the rows.
///
/// # Errors
/// [`TableError`] if the dimensions differ, a table has no rows, or there are fewer than 2 directions.
pub fn sliced_wasserstein(a: Features, b: Features, directions: usize, seed: u64) -> Result<Estimate, TableError> {
    check("first", a, "second", b, directions)?;
    Ok(root_mean(&along_all(a, b, None, &drawn(seed, a.dims()), directions, &mut unwatched)?.distance))
}

/// The distance of two tables along given directions, `[directions, dims]` row by row, which are used as they are (of unit length or not).
/// Evaluations draw their directions ([`sliced_wasserstein_with_floor`]); tests use given ones to compare the distance with another program's.
///
/// # Errors
/// As [`sliced_wasserstein`]; also if `directions` has an incomplete direction or a value that is not finite.
pub fn sliced_wasserstein_along(a: Features, b: Features, directions: &[f64]) -> Result<Estimate, TableError> {
    let dims = a.dims();
    if !directions.len().is_multiple_of(dims) {
        return Err(TableError::PartialDirection { values: directions.len(), dims });
    }
    if let Some(at) = directions.iter().position(|v| !v.is_finite()) {
        let value = directions[at].to_string();
        return Err(TableError::DirectionNotFinite { direction: at / dims, dim: at % dims, value });
    }
    let count = directions.len() / dims;
    check("first", a, "second", b, count)?;
    let given = |number: usize, out: &mut [f64]| out.copy_from_slice(&directions[number * dims..(number + 1) * dims]);
    Ok(root_mean(&along_all(a, b, None, &given, count, &mut unwatched)?.distance))
}

/// The distance of generated from real rows, and that of two random halves of the real rows, both along the same directions.
///
/// # Errors
/// As [`sliced_wasserstein`]; also if there are fewer than 2 real rows, and if `on_share` asks to stop.
pub fn sliced_wasserstein_with_floor(
    real: Features,
    generated: Features,
    directions: usize,
    seed: u64,
    on_share: OnShare<'_>,
) -> Result<SlicedWasserstein, TableError> {
    check("real", real, "generated", generated, directions)?;
    TableError::rows("real", real, 2)?;
    let order = shuffled(real.n(), seed);
    let squared = along_all(real, generated, Some(&order), &drawn(seed, real.dims()), directions, on_share)?;
    Ok(SlicedWasserstein { distance: root_mean(&squared.distance), floor: root_mean(&squared.floor), directions })
}

fn check(
    name_a: &'static str,
    a: Features,
    name_b: &'static str,
    b: Features,
    directions: usize,
) -> Result<(), TableError> {
    TableError::dims(name_a, a, name_b, b)?;
    TableError::rows(name_a, a, 1)?;
    TableError::rows(name_b, b, 1)?;
    if directions < FEWEST {
        return Err(TableError::TooFewDirections { needed: FEWEST, found: directions });
    }
    Ok(())
}

fn root_mean(squared: &[f64]) -> Estimate {
    Estimate::mean(squared).sqrt()
}

/// Random directions of unit length: normal numbers, divided by their norm.
fn drawn(seed: u64, dims: usize) -> impl Fn(usize, &mut [f64]) + Sync {
    move |number, out| {
        let mut normal = vec![0.0_f32; dims];
        Stream::new(seed, Purpose::Evaluation, number as u64, DIRECTION_PART).fill_normal(&mut normal);
        // Cannot be 0, because no normal number of the stream is.
        let norm = normal.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        for (out, v) in out.iter_mut().zip(normal) {
            *out = f64::from(v) / norm;
        }
    }
}

/// The numbers 0..n in random order (Fisher-Yates).
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut stream = Stream::new(seed, Purpose::Evaluation, 0, HALVES_PART);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, stream.below(last + 1));
    }
    order
}

/// Squared distances on the lines, one per direction.
#[derive(Default)]
struct Squared {
    distance: Vec<f64>,
    /// Between the first and the second half of `a` in the given order; empty if no order is given.
    floor: Vec<f64>,
}

fn along_all(
    a: Features,
    b: Features,
    halves: Option<&[usize]>,
    direction: &(impl Fn(usize, &mut [f64]) + Sync),
    count: usize,
    on_share: OnShare<'_>,
) -> Result<Squared, TableError> {
    let mut found = Squared::default();
    for from in (0..count).step_by(AT_ONCE) {
        let width = AT_ONCE.min(count - from);
        let mut directions = vec![0.0; width * a.dims()];
        directions.par_chunks_mut(a.dims()).enumerate().for_each(|(i, out)| direction(from + i, out));
        let (on_a, on_b) = (project(a, &directions, width), project(b, &directions, width));
        let squared: Vec<(f64, Option<f64>)> = (0..width)
            .into_par_iter()
            .map(|i| {
                let a: Vec<f64> = on_a.iter().skip(i).step_by(width).copied().collect();
                let b: Vec<f64> = on_b.iter().skip(i).step_by(width).copied().collect();
                let floor = halves.map(|order| {
                    let (first, second) = order.split_at(order.len() / 2);
                    let pick = |rows: &[usize]| sorted(rows.iter().map(|&row| a[row]).collect());
                    squared_on_line(&pick(first), &pick(second))
                });
                (squared_on_line(&sorted(a), &sorted(b)), floor)
            })
            .collect();
        found.distance.extend(squared.iter().map(|(distance, _)| distance));
        found.floor.extend(squared.iter().filter_map(|(_, floor)| *floor));
        if on_share((from + width) as f64 / count as f64).is_break() {
            return Err(TableError::Interrupted);
        }
    }
    Ok(found)
}

fn unwatched(_: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Projects the rows of a table onto `count` directions, `[n, count]`.
fn project(table: Features, directions: &[f64], count: usize) -> Vec<f64> {
    let dims = table.dims();
    let mut out = vec![0.0; table.n() * count];
    out.par_chunks_mut(ROWS * count).enumerate().for_each(|(block, out)| {
        let rows = block * ROWS..((block + 1) * ROWS).min(table.n());
        let (n, mut values) = (rows.len(), Vec::new());
        for from in (0..dims).step_by(DEPTH) {
            let depth = DEPTH.min(dims - from);
            widen(table, rows.clone(), from..from + depth, &mut values);
            let values = MatRef::from_row_major_slice(&values, n, depth);
            let directions = MatRef::from_row_major_slice(directions, count, dims).subcols(from, depth);
            let out = MatMut::from_row_major_slice_mut(&mut *out, n, count);
            matmul(out, Accum::Add, values, directions.transpose(), 1.0, Par::Seq);
        }
    });
    out
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// `W2^2` of two sorted lists: the integral over the steps of both quantile functions. Positions are counted in units of `1 / (n m)`, so that equal
/// positions of steps are exactly equal.
fn squared_on_line(a: &[f64], b: &[f64]) -> f64 {
    let (n, m) = (a.len() as u64, b.len() as u64);
    let (mut i, mut j, mut at, mut sum) = (0, 0, 0, 0.0);
    while at < n * m {
        let (end_a, end_b) = ((i + 1) * m, (j + 1) * n);
        let end = end_a.min(end_b);
        sum += (end - at) as f64 * (a[i as usize] - b[j as usize]).powi(2);
        i += u64::from(end == end_a);
        j += u64::from(end == end_b);
        at = end;
    }
    sum / (n as f64 * m as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(n: usize, dims: usize, index: u64) -> Vec<f32> {
        let mut values = vec![0.0; n * dims];
        Stream::new(11, Purpose::Evaluation, index, 0).fill_normal(&mut values);
        values
    }

    #[test]
    fn unequal_numbers_by_hand() {
        // Quantiles: [0, 1/3): 0 and 0; [1/3, 1/2): 0 and 1; [1/2, 2/3): 2 and 1; [2/3, 1): 2 and 4.
        let expected = 1.0 / 6.0 + 1.0 / 6.0 + 4.0 / 3.0;
        assert!((squared_on_line(&[0.0, 2.0], &[0.0, 1.0, 4.0]) - expected).abs() < 1e-15);
        assert_eq!(squared_on_line(&[1.0], &[4.0]), 9.0);
    }

    #[test]
    fn directions_are_unit_and_isotropic() {
        let dims = 3;
        let mut mean_square = vec![0.0; dims];
        let draw = drawn(0, dims);
        for number in 0..4000 {
            let mut u = vec![0.0; dims];
            draw(number, &mut u);
            assert!((u.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-12);
            mean_square.iter_mut().zip(&u).for_each(|(sum, v)| *sum += v * v / 4000.0);
        }
        assert!(mean_square.iter().all(|v| (v - 1.0 / 3.0).abs() < 0.02), "{mean_square:?}");
    }

    #[test]
    fn a_shift_in_many_dimensions() {
        // Every projection is shifted by u.v, and E (u.v)^2 = |v|^2 / d.
        let (dims, shift) = (16, 3.0_f32);
        let a = normal(300, dims, 0);
        let b: Vec<f32> = a.iter().enumerate().map(|(i, v)| v + shift * f32::from(i % dims == 5)).collect();
        let (a, b) = (Features::new(&a, dims).unwrap(), Features::new(&b, dims).unwrap());
        let found = sliced_wasserstein(a, b, 2000, 4).unwrap();
        assert!((found.value - 0.75).abs() < 4.0 * found.standard_error, "{found:?}");
        assert!(found.standard_error < 0.02, "{found:?}");
    }

    #[test]
    fn blocks_and_threads_leave_no_trace() {
        // More rows, dimensions and directions than one block holds.
        let dims = DEPTH + 30;
        let (a, b) = (normal(ROWS + 11, dims, 0), normal(ROWS - 7, dims, 1));
        let (a, b) = (Features::new(&a, dims).unwrap(), Features::new(&b, dims).unwrap());
        let count = AT_ONCE + 3;
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sliced_wasserstein(a, b, count, 8).unwrap())
        };
        assert_eq!(with(1), with(3));

        let draw = drawn(8, dims);
        let dot = |row: &[f32], u: &[f64]| row.iter().zip(u).map(|(&x, u)| f64::from(x) * u).sum::<f64>();
        let one = |number| {
            let mut u = vec![0.0; dims];
            draw(number, &mut u);
            let project = |table: Features| sorted((0..table.n()).map(|i| dot(table.row(i), &u)).collect());
            squared_on_line(&project(a), &project(b))
        };
        let expected = root_mean(&(0..count).map(one).collect::<Vec<f64>>());
        assert!((with(1).value - expected.value).abs() < 1e-12 * expected.value);
        assert!((with(1).standard_error - expected.standard_error).abs() < 1e-12);
    }

    #[test]
    fn a_second_sample_lies_near_the_floor_and_another_distribution_above() {
        let (real, same) = (normal(1000, 8, 0), normal(1000, 8, 1));
        let other: Vec<f32> = same.iter().map(|v| v * 1.5).collect();
        let compare = |generated: &[f32]| {
            let generated = Features::new(generated, 8).unwrap();
            sliced_wasserstein_with_floor(Features::new(&real, 8).unwrap(), generated, 256, 0, &mut unwatched).unwrap()
        };
        let found = compare(&same);
        let ratio = found.distance.value / found.floor.value;
        assert!((0.5..1.0).contains(&ratio), "{found:?}");
        let found = compare(&other);
        assert!(found.distance.value > 4.0 * found.floor.value, "{found:?}");
        // The distance is the one without a floor.
        let (real, other) = (Features::new(&real, 8).unwrap(), Features::new(&other, 8).unwrap());
        assert_eq!(found.distance, sliced_wasserstein(real, other, 256, 0).unwrap());
    }

    #[test]
    fn halves_are_disjoint_and_random() {
        let mut order = shuffled(101, 3);
        assert_ne!(order, shuffled(101, 4));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..101));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let one = Features::new(&[1.0, 2.0], 2).unwrap();
        let none = Features::new(&[], 2).unwrap();
        let narrow = Features::new(&[1.0], 1).unwrap();
        assert!(matches!(sliced_wasserstein(one, narrow, 8, 0), Err(TableError::Dims { expected: 2, found: 1, .. })));
        assert!(matches!(sliced_wasserstein(one, none, 8, 0), Err(TableError::TooFew { needed: 1, found: 0, .. })));
        assert_eq!(
            sliced_wasserstein(one, one, 1, 0).unwrap_err(),
            TableError::TooFewDirections { needed: 2, found: 1 }
        );
        assert!(matches!(
            sliced_wasserstein_with_floor(one, one, 8, 0, &mut unwatched),
            Err(TableError::TooFew { what: "real", needed: 2, found: 1 })
        ));
        assert_eq!(
            sliced_wasserstein_along(one, one, &[1.0; 5]).unwrap_err(),
            TableError::PartialDirection { values: 5, dims: 2 }
        );
        assert!(matches!(
            sliced_wasserstein_along(one, one, &[0.0, 1.0, 0.0, f64::NAN]),
            Err(TableError::DirectionNotFinite { direction: 1, dim: 1, .. })
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_metric(n in 1_usize..60, m in 1_usize..60, dims in 1_usize..5, seed in 0_u64..1000) {
            let (a, b) = (normal(n, dims, seed), normal(m, dims, seed + 1000));
            let reversed: Vec<f32> = a.chunks(dims).rev().flatten().copied().collect();
            let table = |values| Features::new(values, dims).unwrap();
            let between = |a, b| sliced_wasserstein(table(a), table(b), 16, seed).unwrap().value;
            prop_assert_eq!(between(&a, &a), 0.0);
            // The product may round a row differently at another position in a block.
            prop_assert!(between(&a, &reversed) < 1e-12);
            prop_assert!((between(&a, &b) - between(&b, &a)).abs() < 1e-12);
            prop_assert!((between(&a, &b) - between(&reversed, &b)).abs() < 1e-12);
        }

        #[test]
        fn a_shift_on_a_line_is_its_length(n in 1_usize..60, quarters in -40_i8..40, seed in 0_u64..1000) {
            let shift = f32::from(quarters) / 4.0;
            // Multiples of 2^-10, so that the shift does not round.
            let a: Vec<f32> = normal(n, 1, seed).iter().map(|v| (v * 1024.0).round() / 1024.0).collect();
            let b: Vec<f32> = a.iter().map(|v| v + shift).collect();
            let found = sliced_wasserstein(Features::new(&a, 1).unwrap(), Features::new(&b, 1).unwrap(), 8, seed).unwrap();
            prop_assert!((found.value - f64::from(shift.abs())).abs() < 1e-12);
            prop_assert!(found.standard_error < 1e-12);
        }
    }
}
