//! Power spectra: two sets of sequences (or of rows of images), compared frequency by frequency.
//!
//! The power of a set at frequency `k` of a channel is the mean of `|sum_t x_t exp(-2 pi i k t / l)|^2` over its sequences. The distance is the root
//! mean square difference between the levels of the powers, `10 log10 P(k)`, over channels and the frequencies 1 to `l / 2`: in decibels, 0 for equal
//! spectra, 10 if all powers differ by a factor of ten. The mean value (frequency 0) is ignored.
//!
//! Not here: phases, which a spectrum does not contain.

use std::f64::consts::TAU;

use rayon::prelude::*;

use super::draws::{Draw, permutation};
use super::features::Features;
use super::table_error::TableError;

/// Number of rows transformed at a time; bounds the memory.
const AT_ONCE: usize = 256;
/// Powers below this fraction of the largest count as none: 120 dB.
const FLOOR: f64 = 1e-12;

/// A distance of spectra and the floor to compare it with, in decibels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpectrumDistance {
    pub distance: f64,
    /// Between two random halves of the real rows: even a perfect generator has a distance of this size.
    pub floor: f64,
}

/// Compares rows that hold sequences of `length` values each, one after the other (channels, or the rows of images).
///
/// # Errors
/// [`TableError`] if the dimensions differ, a table has fewer than 2 rows, or `length` is less than 2 or does not divide the dimensions.
pub fn spectrum_distance(
    real: Features<'_>,
    generated: Features<'_>,
    length: usize,
    seed: u64,
) -> Result<SpectrumDistance, TableError> {
    if length < 2 || !real.dims().is_multiple_of(length) {
        return Err(TableError::Sequences { dims: real.dims(), length });
    }
    TableError::dims("real", real, "generated", generated)?;
    TableError::rows("real", real, 2)?;
    TableError::rows("generated", generated, 1)?;
    let all: Vec<usize> = (0..generated.n()).collect();
    let halves = permutation(seed, Draw::SpectrumHalves, 0, real.n());
    let (first, second) = halves.split_at(real.n() / 2);
    let of = |rows: &[usize]| powers(real, rows, length);
    let (first, second, whole) = (of(first), of(second), of(&(0..real.n()).collect::<Vec<_>>()));
    Ok(SpectrumDistance {
        distance: level_difference(&powers(generated, &all, length), &whole),
        floor: level_difference(&first, &second),
    })
}

/// The mean power of some rows: for each sequence of a row, frequencies 1 to `length / 2`.
fn powers(table: Features<'_>, rows: &[usize], length: usize) -> Vec<f64> {
    let turns: Vec<(f64, f64)> = (0..length).map(|t| (TAU * t as f64 / length as f64).sin_cos()).collect();
    let frequencies = length / 2;
    let of_row = |row: &[f32]| -> Vec<f64> {
        let sequences = row.chunks_exact(length);
        sequences.flat_map(|x| (1..=frequencies).map(|k| power(x, k, &turns)).collect::<Vec<_>>()).collect()
    };
    let mut mean = vec![0.0; table.dims() / length * frequencies];
    for some in rows.chunks(AT_ONCE) {
        // Summed in the order of the rows, whatever the number of threads.
        let each: Vec<Vec<f64>> = some.par_iter().map(|&row| of_row(table.row(row))).collect();
        for row in &each {
            mean.iter_mut().zip(row).for_each(|(sum, power)| *sum += power / rows.len() as f64);
        }
    }
    mean
}

fn power(x: &[f32], k: usize, turns: &[(f64, f64)]) -> f64 {
    let (mut real, mut imaginary, mut at) = (0.0, 0.0, 0);
    for &value in x {
        let (sin, cos) = turns[at];
        real += f64::from(value) * cos;
        imaginary -= f64::from(value) * sin;
        at = (at + k) % turns.len();
    }
    real * real + imaginary * imaginary
}

fn level_difference(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().chain(b).fold(0.0_f64, |most, power| most.max(*power));
    if largest == 0.0 {
        return 0.0;
    }
    let level = |power: f64| 10.0 * power.max(FLOOR * largest).log10();
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (level(*a) - level(*b)).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two channels of eight values: one wave each.
    fn waves(n: usize, sizes: [f32; 2], frequency: f32) -> Vec<f32> {
        let wave = |i: usize, size: f32| {
            (0..8).map(move |t| {
                3.0 + size * (std::f32::consts::TAU * (frequency * t as f32 / 8.0 + i as f32 * 0.37)).cos()
            })
        };
        (0..n).flat_map(|i| sizes.map(|size| wave(i, size).collect::<Vec<_>>()).concat()).collect()
    }

    fn distance(real: &[f32], generated: &[f32]) -> SpectrumDistance {
        let table = |values| Features::new(values, 16).unwrap();
        spectrum_distance(table(real), table(generated), 8, 1).unwrap()
    }

    #[test]
    fn the_distance_is_the_difference_of_levels_where_there_is_power() {
        let (real, same) = (waves(6, [1.0, 1.0], 2.0), waves(9, [1.0, 1.0], 2.0));
        assert!(distance(&real, &same).distance < 1e-3);
        assert!(distance(&real, &same).floor < 1e-3);
        // A tenth of the amplitude is 20 dB less, at one of four frequencies in one of two channels; the others are at rounding level.
        let quieter = distance(&real, &waves(6, [1.0, 0.1], 2.0)).distance;
        assert!((quieter - (20.0_f64.powi(2) / 8.0).sqrt()).abs() < 0.05, "{quieter}");
        assert!(distance(&real, &waves(6, [1.0, 1.0], 3.0)).distance > 30.0);
    }

    #[test]
    fn rows_that_are_no_sequences_are_refused() {
        let values = [0.5; 32];
        let table = Features::new(&values, 16).unwrap();
        for length in [0, 1, 3] {
            let refused = spectrum_distance(table, table, length, 1).unwrap_err();
            assert_eq!(refused, TableError::Sequences { dims: 16, length });
        }
    }

    #[test]
    fn one_frequency_by_hand() {
        let turns: Vec<(f64, f64)> = (0..4).map(|t| (TAU * t as f64 / 4.0).sin_cos()).collect();
        // numpy: abs(np.fft.fft([1, 2, 4, 0])) ** 2 = [49, 13, 9, 13]
        for (k, expected) in [(1, 13.0), (2, 9.0)] {
            assert!((power(&[1.0, 2.0, 4.0, 0.0], k, &turns) - expected).abs() < 1e-9);
        }
    }
}
