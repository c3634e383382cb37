//! Sums down the columns of many rows, in f32 for a few rows at a time and in f64 over those.
//!
//! A sum of n terms of either sign has a magnitude of about sqrt(n) terms, and adding them one at a time rounds n times, with a total error of about
//! sqrt(n) units in the last place. Over a thousand rows that is five bits, and more where large terms leave a small gradient.

use std::ops::Range;

/// Number of rows that are summed in f32.
const ROWS: usize = 32;

/// Replaces `sums` (zeros at first) by what `add(range of values, sums)` adds for all `len` values, which are rows of `c`.
///
/// `add` is called for consecutive ranges of at most [`ROWS`] whole rows, each time with sums of zero.
pub(super) fn sum_rows(len: usize, c: usize, sums: &mut [f32], mut add: impl FnMut(Range<usize>, &mut [f32])) {
    let step = ROWS * c;
    sums.fill(0.0);
    if len <= step {
        return add(0..len, sums);
    }
    let mut totals = vec![0.0f64; sums.len()];
    for first in (0..len).step_by(step) {
        add(first..len.min(first + step), sums);
        for (total, sum) in totals.iter_mut().zip(&mut *sums) {
            *total += f64::from(std::mem::take(sum));
        }
    }
    sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum = total as f32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn long_sums_lose_little() {
        let (rows, c) = (4100, 5);
        let values = random(rows * c, 1);
        let add = |range: Range<usize>, sums: &mut [f32]| {
            for row in values[range].chunks_exact(c) {
                sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value);
            }
        };
        let error = |sums: &[f32]| {
            let of = |k: usize| f64::from(sums[k]) - values[k..].iter().step_by(c).map(|&v| f64::from(v)).sum::<f64>();
            (0..c).map(|k| of(k).abs()).fold(0.0, f64::max)
        };
        let (mut ours, mut plain) = (vec![7.0; c], vec![0.0; c]);
        sum_rows(values.len(), c, &mut ours, add);
        add(0..values.len(), &mut plain);
        assert!(4.0 * error(&ours) < error(&plain), "{:e} and {:e}", error(&ours), error(&plain));
    }
}
