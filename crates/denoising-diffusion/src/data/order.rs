//! Deterministic order: which image comes when, which is mirrored, which are held out.
//!
//! Everything is a pure function of its arguments, so the order depends neither on the number of threads nor on the history of a run. The generator
//! is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), keyed by purpose, seed and counter. Not here: diffusion
//! noise.

use super::augment::{self, AugmentPlan, Drawn};
use crate::noise::{Purpose, Stream};

/// Keys that keep streams for different purposes apart.
const EPOCH: u64 = 0x6570_6f63_6800_0001;
const FLIP: u64 = 0x666c_6970_0000_0002;
const SPLIT: u64 = 0x7370_6c69_7400_0003;

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser: a bijection of 64 bits in which every input bit affects every output bit.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of 64-bit values, different for different keys.
struct SplitMix {
    state: u64,
}

impl SplitMix {
    fn new(words: &[u64]) -> Self {
        let state = words.iter().fold(0, |state, &word| mix(mix(state).wrapping_add(word).wrapping_add(GOLDEN_GAMMA)));
        Self { state }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// Uniform in `0..bound` without bias (Lemire 2019, "Fast random integer generation in an
    /// interval"). `bound` is at least 1.
    fn below(&mut self, bound: u64) -> u64 {
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }
}

/// Fisher-Yates shuffle of `0..n`.
fn permutation(mut generator: SplitMix, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, generator.below(i as u64 + 1) as usize);
    }
    order
}

/// The order in which epoch `epoch` visits `n` images.
pub(super) fn epoch_permutation(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    permutation(SplitMix::new(&[EPOCH, seed, epoch]), n)
}

/// The order whose first images are held out.
pub(super) fn split_permutation(seed: u64, n: usize) -> Vec<usize> {
    permutation(SplitMix::new(&[SPLIT, seed]), n)
}

/// Whether an image is used as it is or mirrored left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mirror {
    Keep,
    LeftRight,
}

/// A fair coin for image `index` of the dataset in epoch `epoch`.
pub(super) fn flip_coin(seed: u64, epoch: u64, index: usize) -> Mirror {
    if SplitMix::new(&[FLIP, seed, epoch, index as u64]).next() >> 63 == 0 { Mirror::Keep } else { Mirror::LeftRight }
}

/// How an image is seen: as it is, mirrored, or augmented.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum View {
    Plain(Mirror),
    Augmented(Drawn),
}

/// The augmentation of the training example at `position` of the endless sequence of epochs.
pub(super) fn augmentation(plan: &AugmentPlan, seed: u64, position: u64) -> Drawn {
    let mut stream = Stream::new(seed, Purpose::Augment, position, 0);
    let uniforms = std::array::from_fn(|_| stream.uniform());
    let mut normals = [0.0; augment::NORMALS];
    stream.fill_normal(&mut normals);
    plan.draw(uniforms, normals.map(f64::from))
}

/// Where position `position` in the endless sequence of epochs over `n` images lies: (epoch, position within the epoch).
pub(super) fn locate(position: u64, n: usize) -> (u64, usize) {
    let n = n as u64;
    (position / n, (position % n) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_visits_every_image_once(seed: u64, epoch: u64, n in 0usize..300) {
            let mut order = epoch_permutation(seed, epoch, n);
            order.sort_unstable();
            prop_assert_eq!(order, (0..n).collect::<Vec<_>>());
        }

        #[test]
        fn a_bounded_draw_stays_below_its_bound(seed: u64, bound in 1u64..) {
            let mut stream = SplitMix::new(&[seed]);
            for _ in 0..20 {
                prop_assert!(stream.below(bound) < bound);
            }
        }
    }

    /// Runs are resumed with later versions of this program, so the order must never change by accident. The expected values were made by the first
    /// version of this function.
    #[test]
    fn the_order_is_pinned() {
        assert_eq!(epoch_permutation(0, 0, 8), [7, 5, 1, 2, 3, 6, 4, 0]);
        assert_eq!(epoch_permutation(0, 1, 8), [7, 6, 5, 3, 0, 1, 4, 2]);
        assert_eq!(split_permutation(0, 8), [4, 6, 1, 2, 3, 5, 7, 0]);
        let coins: Vec<u8> = (0..8).map(|i| flip_coin(0, 0, i) as u8).collect();
        assert_eq!(coins, [0, 0, 1, 0, 1, 1, 1, 1]);
    }

    /// Chi-squared over the 24 orders of four images: 23 degrees of freedom, 99.99 % quantile 56.
    #[test]
    fn all_orders_are_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        let draws = 24_000;
        for epoch in 0..draws {
            *counts.entry(epoch_permutation(7, epoch, 4)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        let expected = draws as f64 / 24.0;
        let chi2: f64 = counts.values().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
        assert!(chi2 < 56.0, "chi-squared {chi2}");
    }

    #[test]
    fn the_coin_is_fair_and_fresh_in_every_epoch() {
        let coins = |epoch| -> Vec<bool> { (0..10_000).map(|i| flip_coin(3, epoch, i) == Mirror::LeftRight).collect() };
        let (first, second) = (coins(0), coins(1));
        let heads = first.iter().filter(|&&c| c).count();
        assert!((4800..5200).contains(&heads), "{heads} of 10000");
        let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
        assert!((4800..5200).contains(&same), "{same} of 10000");
    }
}
