//! Averages of weights whose length is chosen after training (Karras et al. 2024, arXiv:2312.02696, section 3): the linear combination of stored
//! averages that is closest to an average that was not stored. Not here: averaging during training (`train::power_ema`), and files
//! (`train::snapshots`).
//!
//! After t steps, an average with exponent gamma gives the weights of step tau the weight p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), so its
//! length grows with the training. It is named by the standard deviation of p as a fraction of t, sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2
//! (gamma + 3))).

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use thiserror::Error;

/// Nearly the plain mean of all steps, whose sigma_rel is 1 / sqrt(12). A longer average would give the beginning the largest weight.
pub const LONGEST: f64 = 0.2886;
/// An average this short covers a ten-thousandth of the training: a step of ten thousand, a hundred steps of a million.
pub const SHORTEST: f64 = 1e-4;

/// How an average weights the past.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    sigma_rel: f64,
    exponent: f64,
}

/// A relative deviation that no average can have.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("sigma_rel must be at least {SHORTEST} and at most {LONGEST}, got {got}")]
pub struct ProfileError {
    pub got: f64,
}

impl Profile {
    /// The profile with this relative standard deviation, from [`SHORTEST`] to [`LONGEST`].
    pub fn new(sigma_rel: f64) -> Result<Self, ProfileError> {
        if !(SHORTEST..=LONGEST).contains(&sigma_rel) {
            return Err(ProfileError { got: sigma_rel });
        }
        // The deviation falls as the exponent rises. It is at most 1 / gamma, which gives the upper end of the search.
        let (mut low, mut high) = (0.0, 1.0 / sigma_rel);
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if relative_deviation(middle) > sigma_rel { low = middle } else { high = middle }
        }
        Ok(Self { sigma_rel, exponent: 0.5 * (low + high) })
    }

    pub fn sigma_rel(self) -> f64 {
        self.sigma_rel
    }

    /// gamma.
    pub fn exponent(self) -> f64 {
        self.exponent
    }

    /// The fraction of the weights after step `step` (1-based) that goes into the average: 1 - (1 - 1 / step)^(gamma + 1), which is 1 in the first
    /// step.
    pub fn share_at(self, step: u64) -> f64 {
        // In logarithms: late in training the fraction is the small difference of two numbers near 1.
        -((self.exponent + 1.0) * (-1.0 / step as f64).ln_1p()).exp_m1()
    }
}

fn relative_deviation(exponent: f64) -> f64 {
    ((exponent + 1.0) / (exponent + 3.0)).sqrt() / (exponent + 2.0)
}

/// An average after a given number of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    pub profile: Profile,
    pub steps: u64,
}

impl Snapshot {
    /// The integral of the product of the two weightings of the past.
    fn overlap(&self, other: &Self) -> f64 {
        let (early, late) = if self.steps <= other.steps { (self, other) } else { (other, self) };
        let (a, b) = (early.profile.exponent, late.profile.exponent);
        let (from, to) = (early.steps as f64, late.steps as f64);
        (a + 1.0) * (b + 1.0) / (a + b + 1.0) * (from / to).powf(b) / to
    }
}

/// A sum of stored averages in place of one that was not stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// The factor of each stored average; they add up to 1.
    pub coefficients: Vec<f64>,
    /// The norm of the difference from the desired weighting of the past, relative to the norm of that weighting; values below 1e-7 are rounding.
    pub relative_error: f64,
}

/// The combination of `stored` averages whose weighting of the past is closest to that of `wanted`, in least squares. `None` if nothing is stored or
/// two of the stored averages are the same.
pub fn combine(stored: &[Snapshot], wanted: &Snapshot) -> Option<Combination> {
    let twice = |i: usize| stored[..i].contains(&stored[i]);
    if stored.is_empty() || (0..stored.len()).any(twice) {
        return None;
    }
    let among = Mat::from_fn(stored.len(), stored.len(), |i, j| stored[i].overlap(&stored[j]));
    let with_wanted = Mat::from_fn(stored.len(), 1, |i, _| stored[i].overlap(wanted));
    // Averages of neighbouring steps are nearly the same: the matrix is positive definite, except for rounding.
    let solved = among.lblt(Side::Lower).solve(&with_wanted);
    let sum: f64 = (0..stored.len()).map(|i| solved[(i, 0)]).sum();
    let coefficients: Vec<f64> = (0..stored.len()).map(|i| solved[(i, 0)] / sum).collect();
    if !coefficients.iter().all(|c| c.is_finite()) {
        return None;
    }
    let overlap =
        |at: &Snapshot| -> f64 { coefficients.iter().zip(stored).map(|(c, other)| c * other.overlap(at)).sum() };
    let squares: f64 = coefficients.iter().zip(stored).map(|(c, at)| c * overlap(at)).sum();
    let norm = wanted.overlap(wanted);
    let relative_error = ((squares - 2.0 * overlap(wanted) + norm) / norm).max(0.0).sqrt();
    Some(Combination { coefficients, relative_error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Purpose, Stream};

    fn profile(sigma_rel: f64) -> Profile {
        Profile::new(sigma_rel).unwrap()
    }

    #[test]
    fn exponents_are_those_of_the_paper() {
        // Karras et al. 2024, section 3.1.
        assert!((profile(0.05).exponent() - 16.97).abs() < 5e-3);
        assert!((profile(0.10).exponent() - 6.94).abs() < 5e-3);
        assert!((0.0..2e-3).contains(&profile(LONGEST).exponent()));
        for sigma_rel in [f64::NAN, -0.1, 0.0, 0.2887, f64::INFINITY] {
            assert!(Profile::new(sigma_rel).is_err(), "{sigma_rel}");
        }
        for sigma_rel in [SHORTEST, 0.01, 0.2, LONGEST] {
            assert!((relative_deviation(profile(sigma_rel).exponent()) / sigma_rel - 1.0).abs() < 1e-12);
        }
    }

    /// The average with `profile` after each step, computed step by step, of `values`, the first of which is that of step 1.
    fn averages(profile: Profile, values: &[f64]) -> Vec<f64> {
        let mut average = 0.0;
        let after = values.iter().zip(1..).map(|(value, step)| {
            average += profile.share_at(step) * (value - average);
            average
        });
        after.collect()
    }

    #[test]
    fn shares_add_up_to_the_profile() {
        let steps = 50;
        for profile in [profile(0.05), profile(0.1), profile(LONGEST)] {
            for at in 1..=steps {
                let only: Vec<f64> = (1..=steps).map(|step| f64::from(u8::from(step == at))).collect();
                let integral = |tau: usize| (tau as f64 / steps as f64).powf(profile.exponent() + 1.0);
                let (expected, got) = (integral(at) - integral(at - 1), averages(profile, &only)[steps - 1]);
                assert!((got - expected).abs() < 1e-14, "step {at}: {got}, {expected}");
            }
        }
    }

    #[test]
    fn an_average_that_is_stored_is_itself() {
        let stored: Vec<Snapshot> = [0.05, 0.1]
            .into_iter()
            .flat_map(|s| [100, 200, 300].map(|steps| Snapshot { profile: profile(s), steps }))
            .collect();
        for (i, wanted) in stored.iter().enumerate() {
            let Combination { coefficients, relative_error } = combine(&stored, wanted).unwrap();
            for (j, coefficient) in coefficients.into_iter().enumerate() {
                assert!((coefficient - f64::from(u8::from(i == j))).abs() < 1e-9);
            }
            assert!(relative_error < 1e-6, "{relative_error}");
        }
        assert_eq!(combine(&[], &stored[0]), None);
        assert_eq!(combine(&[stored[0], stored[1], stored[0]], &stored[2]), None);
    }

    /// A random walk of weights: what training looks like to an average.
    fn random_walk(steps: usize) -> Vec<f64> {
        let mut stream = Stream::new(0, Purpose::Evaluation, 0, 0);
        let walk = (0..steps).scan(0.0, |at, _| {
            *at += stream.uniform() - 0.5;
            Some(*at)
        });
        walk.collect()
    }

    #[test]
    fn averages_of_other_lengths_come_out_as_if_they_had_been_kept() {
        let values = random_walk(4000);
        let kept = [0.05, 0.1].map(|s| (profile(s), averages(profile(s), &values)));
        for (wanted, steps) in [(0.07, 4000), (0.15, 4000), (0.2, 4000), (0.28, 4000), (0.07, 2000)] {
            let truth = averages(profile(wanted), &values)[steps - 1];
            let snapshots = (1..=steps / 200).map(|i| 200 * i);
            let (mut stored, mut stored_values) = (Vec::new(), Vec::new());
            for at in snapshots {
                for (profile, averages) in &kept {
                    stored.push(Snapshot { profile: *profile, steps: at as u64 });
                    stored_values.push(averages[at - 1]);
                }
            }
            let wanted_at = Snapshot { profile: profile(wanted), steps: steps as u64 };
            let Combination { coefficients, relative_error } = combine(&stored, &wanted_at).unwrap();
            let got: f64 = coefficients.iter().zip(&stored_values).map(|(c, value)| c * value).sum();
            let others = kept.iter().map(|(_, averages)| (averages[steps - 1] - truth).abs());
            let nearest = others.fold(f64::INFINITY, f64::min);
            assert!((got - truth).abs() < 4.0 * relative_error * nearest, "{wanted}: {got}, {truth}; {nearest}");
        }
    }
}
