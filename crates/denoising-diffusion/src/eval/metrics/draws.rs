//! Random permutations and subsets for metrics, from counter-based streams: they are determined by the seed alone.

use crate::noise::{Purpose, Stream};

/// The purpose of a draw. Draws for different purposes never share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Draw {
    /// The random assignment of images to the groups of FID's jackknife.
    FidGroups = 1,
    /// Subsets for FID's extrapolation.
    FidSubset = 2,
    /// KID's subsets of the real images.
    KidReal = 3,
    /// KID's subsets of the generated images.
    KidGenerated = 4,
    /// Smaller subsets of the real images, for KID's standard error.
    KidErrorReal = 5,
    /// The same of the generated images.
    KidErrorGenerated = 6,
    /// The order of images before the Inception Score splits them.
    InceptionScore = 7,
    /// The halves of the real rows whose spectra are compared.
    SpectrumHalves = 8,
}

/// A uniform permutation of 0..n.
pub fn permutation(seed: u64, draw: Draw, number: u32, n: usize) -> Vec<usize> {
    subset(seed, draw, number, n, n)
}

/// `size` of 0..n in random order, without repetition (all of them if `size` exceeds `n`). `number` counts the draws for one purpose.
pub fn subset(seed: u64, draw: Draw, number: u32, n: usize, size: usize) -> Vec<usize> {
    let mut stream = Stream::new(seed, Purpose::Evaluation, draw as u64, number);
    let mut all: Vec<usize> = (0..n).collect();
    let size = size.min(n);
    // Fisher-Yates, stopped when enough are drawn.
    for i in 0..size {
        all.swap(i, i + stream.below(n - i));
    }
    all.truncate(size);
    all
}

/// Standard normal numbers for tests.
#[cfg(test)]
pub(super) fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Stream::new(seed, Purpose::Evaluation, 0, 0).fill_normal(&mut values);
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn subsets_have_no_repetition(seed: u64, n in 0_usize..300, size in 0_usize..400) {
            let drawn = subset(seed, Draw::FidSubset, 3, n, size);
            prop_assert_eq!(drawn.len(), size.min(n));
            let distinct: std::collections::BTreeSet<usize> = drawn.iter().copied().collect();
            prop_assert_eq!(distinct.len(), drawn.len());
            prop_assert!(drawn.iter().all(|&i| i < n));
        }
    }

    #[test]
    fn every_permutation_is_as_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..6000 {
            *counts.entry(permutation(5, Draw::KidReal, number, 3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn draws_of_other_kinds_differ() {
        let drawn = |draw| permutation(1, draw, 0, 50);
        assert_ne!(drawn(Draw::KidReal), drawn(Draw::KidGenerated));
        assert_eq!(drawn(Draw::KidReal), drawn(Draw::KidReal));
    }
}
