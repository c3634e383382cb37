//! Power spectra: two sets of sequences (or of rows of images), compared frequency by frequency.
//!
//! The power of a set at frequency `k` of a channel is the mean of `|sum_t x_t exp(-2 pi i k t / l)|^2` over its sequences. The distance is the root
//! mean square difference between the levels of the powers, `10 log10 P(k)`, over channels and the frequencies 1 to `l / 2`: in decibels, 0 for equal
//! spectra, 10 if all powers differ by a factor of ten. The mean value (frequency 0) is ignored.
//!
//! Not here: phases, which a spectrum does not contain.

use std::ops::ControlFlow;
use std::sync::Arc;

use rayon::prelude::*;
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};

use super::OnShare;
use super::draws::{Draw, permutation};
use super::features::Features;
use super::table_error::TableError;

/// Number of values transformed at a time; bounds the memory for their powers.
const AT_ONCE: usize = 1 << 22;
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
/// [`TableError`] if the dimensions differ, a table has fewer than 2 rows, `length` is less than 2 or does not divide the dimensions, or `on_share`
/// asks to stop.
pub fn spectrum_distance(
    real: Features<'_>,
    generated: Features<'_>,
    length: usize,
    seed: u64,
    on_share: OnShare<'_>,
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
    let (mut done, total) = (0, real.n() + generated.n());
    let mut on_rows = |rows: usize| {
        done += rows;
        on_share(done as f64 / total as f64)
    };
    let transform = Transform::new(length);
    let mut of = |table, rows| transform.powers(table, rows, &mut on_rows).ok_or(TableError::Interrupted);
    let (of_first, of_second, of_generated) = (of(real, first)?, of(real, second)?, of(generated, &all)?);
    let share = first.len() as f64 / real.n() as f64;
    let whole: Vec<f64> = of_first.iter().zip(&of_second).map(|(a, b)| share * a + (1.0 - share) * b).collect();
    Ok(SpectrumDistance {
        distance: level_difference(&of_generated, &whole),
        floor: level_difference(&of_first, &of_second),
    })
}

/// The Fourier transform of sequences of one length.
struct Transform {
    plan: Arc<dyn Fft<f64>>,
    /// 1 to `length / 2`.
    frequencies: usize,
}

impl Transform {
    fn new(length: usize) -> Self {
        Self { plan: FftPlanner::new().plan_fft_forward(length), frequencies: length / 2 }
    }

    /// The mean power of some rows: for each sequence of a row, frequencies 1 to `length / 2`. `None` if `on_rows`, which is called with numbers of
    /// rows, asks to stop.
    fn powers(
        &self,
        table: Features<'_>,
        rows: &[usize],
        on_rows: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Option<Vec<f64>> {
        let mut mean = vec![0.0; table.dims() / self.plan.len() * self.frequencies];
        for some in rows.chunks((AT_ONCE / table.dims()).max(1)) {
            // Summed in the order of the rows, whatever the number of threads.
            for row in self.of_rows(table, some).chunks_exact(mean.len()) {
                mean.iter_mut().zip(row).for_each(|(sum, power)| *sum += power / rows.len() as f64);
            }
            if on_rows(some.len()).is_break() {
                return None;
            }
        }
        Some(mean)
    }

    /// The powers of each of these rows, one row after the other.
    fn of_rows(&self, table: Features<'_>, rows: &[usize]) -> Vec<f64> {
        let length = self.plan.len();
        let sequences: Vec<&[f32]> = rows.iter().flat_map(|&row| table.row(row).chunks_exact(length)).collect();
        let mut powers = vec![0.0; sequences.len() * self.frequencies];
        let scratch =
            || (vec![Complex::default(); length], vec![Complex::default(); self.plan.get_inplace_scratch_len()]);
        powers.par_chunks_exact_mut(self.frequencies).zip(sequences).for_each_init(
            scratch,
            |(values, scratch), (out, x)| {
                values.iter_mut().zip(x).for_each(|(value, &x)| *value = Complex::new(f64::from(x), 0.0));
                self.plan.process_with_scratch(values, scratch);
                out.iter_mut().zip(&values[1..]).for_each(|(power, value)| *power = value.norm_sqr());
            },
        );
        powers
    }
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
    use std::f64::consts::TAU;

    use super::super::draws::normal;
    use super::*;

    fn go_on(_: f64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

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
        spectrum_distance(table(real), table(generated), 8, 1, &mut go_on).unwrap()
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
            let refused = spectrum_distance(table, table, length, 1, &mut go_on).unwrap_err();
            assert_eq!(refused, TableError::Sequences { dims: 16, length });
        }
    }

    /// By the definition.
    fn direct(x: &[f32], k: usize) -> f64 {
        let angle = |t: usize| TAU * (k * t) as f64 / x.len() as f64;
        let sum = |of: &dyn Fn(f64) -> f64| -> f64 {
            x.iter().enumerate().map(|(t, &value)| f64::from(value) * of(angle(t))).sum()
        };
        sum(&f64::cos).powi(2) + sum(&f64::sin).powi(2)
    }

    #[test]
    fn powers_are_those_of_the_definition_at_any_length() {
        // numpy: abs(np.fft.fft([1, 2, 4, 0])) ** 2 = [49, 13, 9, 13]
        assert_eq!([1, 2].map(|k| direct(&[1.0, 2.0, 4.0, 0.0], k).round()), [13.0, 9.0]);
        for length in [2, 3, 4, 7, 30, 37, 64, 97, 256] {
            let values = normal(length as u64, 5 * 2 * length);
            let table = Features::new(&values, 2 * length).unwrap();
            let rows = [4, 0, 2];
            let found = Transform::new(length).powers(table, &rows, &mut |_| ControlFlow::Continue(())).unwrap();
            let of = |place: usize, k: usize| {
                rows.iter().map(|&row| direct(&table.row(row)[place * length..][..length], k) / 3.0).sum::<f64>()
            };
            let expected =
                (0..2).flat_map(|place| (1..=length / 2).map(move |k| (place, k))).map(|(place, k)| of(place, k));
            assert_eq!(found.len(), 2 * (length / 2));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9 * (1.0 + expected), "{length}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn long_sequences_take_no_time_and_every_row_is_transformed_once() {
        let values = normal(1, 12 * (1 << 16));
        let table = Features::new(&values, 1 << 16).unwrap();
        let mut shares = Vec::new();
        let mut told = |share| {
            shares.push(share);
            ControlFlow::Continue(())
        };
        spectrum_distance(table, table, 1 << 16, 1, &mut told).unwrap();
        assert_eq!(shares, [0.25, 0.5, 1.0]);
        let stopped = spectrum_distance(table, table, 1 << 16, 1, &mut |_| ControlFlow::Break(()));
        assert_eq!(stopped.unwrap_err(), TableError::Interrupted);
    }

    #[test]
    fn the_result_does_not_depend_on_threads() {
        let (real, generated) = (normal(1, 33 * 96), normal(2, 20 * 96));
        let table = |values| Features::new(values, 96).unwrap();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| spectrum_distance(table(&real), table(&generated), 32, 1, &mut go_on).unwrap())
        };
        assert_eq!(on(1), on(5));
    }
}
