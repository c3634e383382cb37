//! Dropout (Srivastava et al. 2014) whose mask is a function of a key and of a value's position: it is not kept for the backward pass but
//! recomputed, and it is the same on any number of threads and on every device that implements the same function.
//!
//! Value `i` of a draw is dropped if word `i % 4` of Philox for the counter `[i / 4, draw]` (two words each) is below `prob 2^32`; the other values
//! are divided by `1 - prob`.

use crate::par::{ELEMENTS_PER_TASK, Shared, for_each_task, task_range};
use crate::random::{COUNTERS, WORDS, philox, philox4x32_10};
use crate::simd::{Isa, simd_fn};

/// Number of values per call of [`philox`].
const BLOCK: usize = WORDS * COUNTERS;

/// Determines which values are dropped, and the factor of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// The key of Philox.
    pub key: [u32; 2],
    /// The number of the draw with this key.
    pub draw: u64,
    /// A value whose word is below this is dropped.
    pub threshold: u32,
    /// The factor of the other values.
    pub scale: f32,
}

impl Mask {
    /// The mask of the `draw`-th draw with this key, which drops a fraction `prob`, in [0, 1), of the values.
    pub fn new(key: [u32; 2], draw: u64, prob: f64) -> Self {
        Self { key, draw, threshold: (prob * 4_294_967_296.0) as u32, scale: (1.0 / (1.0 - prob)) as f32 }
    }

    /// The factor of value `i`.
    pub fn factor(&self, i: u64) -> f32 {
        let words = philox4x32_10(self.counter(i / WORDS as u64), self.key);
        self.of(words[i as usize % WORDS])
    }

    #[inline(always)]
    fn of(&self, word: u32) -> f32 {
        if word < self.threshold { 0.0 } else { self.scale }
    }

    #[inline(always)]
    fn counter(&self, number: u64) -> [u32; WORDS] {
        [number as u32, (number >> 32) as u32, self.draw as u32, (self.draw >> 32) as u32]
    }
}

/// y = x times the mask, of the same length; values that are not finite stay so. The gradient is the same function of `dy`.
pub fn dropout(mask: &Mask, x: &[f32], y: &mut [f32]) {
    dropout_with(Isa::detect(), mask, x, y);
}

fn dropout_with(isa: Isa, mask: &Mask, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    const { assert!(ELEMENTS_PER_TASK.is_multiple_of(BLOCK)) };
    let out = Shared::new(y);
    for_each_task(x.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, x.len());
        // SAFETY: ranges of different tasks are disjoint; both slices have the range's length.
        unsafe { dropout_part(isa, *mask, range.start, &x[range.clone()], out.part(range)) }
    });
}

simd_fn! {
    /// `first`: the index of the first value, a multiple of [`BLOCK`].
    unsafe fn dropout_part<S>(mask: Mask, first: usize, x: &[f32], y: &mut [f32]) {
        for (n, (x, y)) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)).enumerate() {
            let counter = mask.counter(((first + n * BLOCK) / WORDS) as u64);
            // 16 counters from a multiple of 16 on do not carry into the second word.
            let mut counters = counter.map(|word| [word; COUNTERS]);
            for (i, word) in counters[0].iter_mut().enumerate() {
                *word += i as u32;
            }
            let words = philox(counters, mask.key);
            let mut factors = [0.0f32; BLOCK];
            for i in 0..COUNTERS {
                for k in 0..WORDS {
                    factors[i * WORDS + k] = mask.of(words[k][i]);
                }
            }
            for ((y, &x), &factor) in y.iter_mut().zip(x).zip(&factors) {
                *y = x * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{one_and_two_threads_agree, random};

    #[test]
    fn every_value_has_its_factor_on_every_instruction_set() {
        for len in [0, 1, 63, 64, 65, ELEMENTS_PER_TASK + 130] {
            let (mask, x) = (Mask::new([3, 4], 1 << 33 | 5, 0.3), random(len, 1));
            let expected: Vec<f32> = x.iter().zip(0..).map(|(x, i)| x * mask.factor(i)).collect();
            for isa in Isa::all() {
                let mut y = vec![7.0; len];
                dropout_with(isa, &mask, &x, &mut y);
                assert_eq!(y, expected, "{isa:?} {len}");
            }
        }
    }

    #[test]
    fn the_part_that_is_dropped_is_the_one_asked_for() {
        let (x, mut y) = (vec![1.0; 1 << 18], vec![7.0; 1 << 18]);
        for prob in [0.0, 0.1, 0.5, 0.99] {
            dropout(&Mask::new([1, 2], 0, prob), &x, &mut y);
            let kept: Vec<f32> = y.iter().copied().filter(|y| *y != 0.0).collect();
            let part = 1.0 - kept.len() as f64 / x.len() as f64;
            // Within five standard deviations.
            assert!((part - prob).abs() <= 5.0 * (prob * (1.0 - prob) / x.len() as f64).sqrt(), "{part} of {prob}");
            assert!(kept.iter().all(|y| *y == (1.0 / (1.0 - prob)) as f32));
        }
    }

    #[test]
    fn draws_and_keys_differ() {
        let dropped = |key, draw| (0..256).map(|i| Mask::new(key, draw, 0.5).factor(i) == 0.0).collect::<Vec<_>>();
        let first = dropped([0, 0], 0);
        for other in [dropped([0, 0], 1), dropped([0, 0], 1 << 32), dropped([1, 0], 0), dropped([0, 1], 0)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((88..=168).contains(&same), "{same} of 256");
        }
    }

    #[test]
    fn bad_values_stay_bad() {
        let (x, mut y) = ([f32::NAN, f32::INFINITY].repeat(64), vec![0.0; 128]);
        dropout(&Mask::new([1, 2], 0, 0.5), &x, &mut y);
        assert!(y.iter().all(|y| !y.is_finite()));
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let x = random(100_003, 1);
        one_and_two_threads_agree(|| {
            let mut y = x.clone();
            dropout(&Mask::new([1, 2], 3, 0.2), &x, &mut y);
            y
        });
    }
}
