//! The Inception Score of class predictions (Salimans et al. 2016, arXiv:1606.03498).
//!
//! IS = exp(mean over images of KL(p(y | x) || p(y))), where p(y) is the mean of p(y | x). It lies between 1 (all images get the same prediction) and
//! the number of classes. It ignores real images, and says little about data unlike those of the classifier.

use super::features::Features;

/// Largest deviation of a row's sum from 1 that counts as rounding of f32 probabilities.
const SUM_TOLERANCE: f64 = 1e-3;

/// A classifier's predictions for each image, `[n, classes]`.
#[derive(Clone, Copy, Debug)]
pub enum Predictions<'a> {
    /// Before the softmax.
    Logits(Features<'a>),
    /// After the softmax: at least 0, with rows that add up to 1 up to rounding (they are divided by their sums).
    Probabilities(Features<'a>),
}

/// An Inception Score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InceptionScore {
    /// Mean over splits.
    pub mean: f64,
    /// Standard deviation over splits (divided by their number, as in torch-fidelity).
    pub standard_deviation: f64,
    /// Number of splits.
    pub splits: usize,
    /// Total number of images.
    pub n: usize,
}

/// Why a score cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InceptionScoreError {
    /// There are no splits, or some would have no image.
    #[error("{splits} splits of {n} images; expected at least 1 split and an image in each")]
    Splits {
        /// Number of splits.
        splits: usize,
        /// Number of images.
        n: usize,
    },
    /// The order is not a permutation of the images.
    #[error("the order is not a permutation of 0..{n}: it has {len} entries{}", wrong_entry(first_wrong))]
    Order {
        /// Number of images.
        n: usize,
        /// Length of the order.
        len: usize,
        /// First entry that is repeated or past the end.
        first_wrong: Option<usize>,
    },
    /// A row is not a distribution.
    #[error("row {row} is not a distribution: smallest probability {smallest}, sum {sum}")]
    NotADistribution {
        /// The row.
        row: usize,
        /// Its smallest value.
        smallest: f64,
        /// Its sum.
        sum: f64,
    },
}

fn wrong_entry(entry: &Option<usize>) -> String {
    entry.map_or(String::new(), |entry| format!(", of which {entry} is repeated or too large"))
}

/// The Inception Score over `splits` parts (usually 10) of the images in `order`, a permutation of `0..n`: split i has the entries
/// `i n / splits .. (i + 1) n / splits`. Images that are sorted by class must be shuffled, which is what the order is for
/// ([`draws::permutation`](super::draws::permutation)). The score grows with the number of images per split.
///
/// # Errors
/// [`InceptionScoreError`].
pub fn inception_score(
    predictions: Predictions<'_>,
    splits: usize,
    order: &[usize],
) -> Result<InceptionScore, InceptionScoreError> {
    let (Predictions::Logits(table) | Predictions::Probabilities(table)) = predictions;
    let n = table.n();
    if splits == 0 || splits > n {
        return Err(InceptionScoreError::Splits { splits, n });
    }
    check_order(order, n)?;
    let scores = (0..splits)
        .map(|i| score(predictions, &order[part(i, splits, n)..part(i + 1, splits, n)]))
        .collect::<Result<Vec<f64>, _>>()?;
    let count = splits as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / count;
    Ok(InceptionScore { mean, standard_deviation: variance.sqrt(), splits, n })
}

/// Where split i starts. Computed in 128 bits, because i n may overflow a `usize` of 32.
fn part(i: usize, splits: usize, n: usize) -> usize {
    (i as u128 * n as u128 / splits as u128) as usize
}

fn check_order(order: &[usize], n: usize) -> Result<(), InceptionScoreError> {
    let mut seen = vec![false; n];
    let wrong = |&&i: &&usize| i >= n || std::mem::replace(&mut seen[i], true);
    let first_wrong = order.iter().find(wrong).copied();
    if order.len() != n || first_wrong.is_some() {
        return Err(InceptionScoreError::Order { n, len: order.len(), first_wrong });
    }
    Ok(())
}

/// exp of the mean KL of one split. KL(p || q) = sum p (ln p - ln q); terms with p = 0 are 0.
fn score(predictions: Predictions<'_>, rows: &[usize]) -> Result<f64, InceptionScoreError> {
    let logarithms = rows.iter().map(|&row| log_probabilities(predictions, row)).collect::<Result<Vec<_>, _>>()?;
    let mut marginal = vec![0.0; logarithms[0].len()];
    let mut negative_entropy = 0.0;
    for row in &logarithms {
        for (sum, &log) in marginal.iter_mut().zip(row) {
            let p = log.exp();
            *sum += p;
            negative_entropy += plogp(p, log);
        }
    }
    let n = rows.len() as f64;
    let of_marginal: f64 = marginal.iter().map(|sum| plogp(sum / n, (sum / n).ln())).sum();
    // The mean KL is the entropy of the mean minus the mean entropy, which is at least 0 except for rounding.
    Ok((negative_entropy / n - of_marginal).max(0.0).exp())
}

fn plogp(p: f64, log: f64) -> f64 {
    if p > 0.0 { p * log } else { 0.0 }
}

/// ln p(y | x) of one image, negative infinity if p is 0.
fn log_probabilities(predictions: Predictions<'_>, row: usize) -> Result<Vec<f64>, InceptionScoreError> {
    match predictions {
        Predictions::Logits(table) => {
            let logits = table.row(row);
            let most = logits.iter().fold(f64::NEG_INFINITY, |most, &logit| most.max(f64::from(logit)));
            let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
            Ok(logits.iter().map(|&logit| f64::from(logit) - most - sum.ln()).collect())
        }
        Predictions::Probabilities(table) => {
            let p = table.row(row);
            let sum: f64 = p.iter().map(|&p| f64::from(p)).sum();
            let smallest = p.iter().fold(f64::INFINITY, |least, &p| least.min(f64::from(p)));
            if smallest < 0.0 || (sum - 1.0).abs() > SUM_TOLERANCE {
                return Err(InceptionScoreError::NotADistribution { row, smallest, sum });
            }
            Ok(p.iter().map(|&p| (f64::from(p) / sum).ln()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::draws::normal;
    use super::*;

    fn of(values: &[f32], classes: usize, splits: usize) -> Result<InceptionScore, InceptionScoreError> {
        let table = Features::new(values, classes).unwrap();
        inception_score(Predictions::Probabilities(table), splits, &(0..table.n()).collect::<Vec<_>>())
    }

    #[test]
    fn certain_and_even_predictions_score_the_number_of_classes() {
        let certain: Vec<f32> = (0..40).flat_map(|i| (0..4).map(move |c| f32::from(u8::from(i % 4 == c)))).collect();
        let score = of(&certain, 4, 5).unwrap();
        assert!((score.mean - 4.0).abs() < 1e-12 && score.standard_deviation < 1e-12);
        assert_eq!((score.splits, score.n), (5, 40));
    }

    #[test]
    fn equal_predictions_score_one() {
        assert!((of(&[0.25; 80], 4, 10).unwrap().mean - 1.0).abs() < 1e-12);
    }

    /// Logits so far apart that probabilities underflow.
    #[test]
    fn extreme_logits_are_certain() {
        let values = [f32::MAX, f32::MIN, f32::MIN, f32::MAX];
        let table = Predictions::Logits(Features::new(&values, 2).unwrap());
        assert!((inception_score(table, 1, &[0, 1]).unwrap().mean - 2.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn it_lies_between_one_and_the_classes(n in 1_usize..40, classes in 1_usize..8, splits in 1_usize..12, seed: u64) {
            let logits: Vec<f32> = normal(seed, n * classes).iter().map(|v| 30.0 * v).collect();
            let table = Features::new(&logits, classes).unwrap();
            let order: Vec<usize> = (0..n).rev().collect();
            match inception_score(Predictions::Logits(table), splits, &order) {
                Ok(score) => {
                    prop_assert!((1.0..=classes as f64 + 1e-9).contains(&score.mean), "{score:?}");
                    prop_assert!(score.standard_deviation >= 0.0);
                }
                Err(error) => {
                    prop_assert!(splits > n);
                    prop_assert_eq!(error, InceptionScoreError::Splits { splits, n });
                }
            }
        }

        #[test]
        fn probabilities_and_logits_agree(seed: u64) {
            let (n, classes) = (30, 5);
            let logits = normal(seed, n * classes);
            let probabilities: Vec<f32> = logits
                .chunks(classes)
                .flat_map(|row| {
                    let sum: f32 = row.iter().map(|v| v.exp()).sum();
                    row.iter().map(move |v| v.exp() / sum)
                })
                .collect();
            let order: Vec<usize> = (0..n).collect();
            let of_logits = Predictions::Logits(Features::new(&logits, classes).unwrap());
            let expected = inception_score(of_logits, 3, &order).unwrap();
            let got = of(&probabilities, classes, 3).unwrap();
            prop_assert!((got.mean - expected.mean).abs() < 1e-5);
            prop_assert!((got.standard_deviation - expected.standard_deviation).abs() < 1e-5);
        }
    }

    #[test]
    fn what_is_no_prediction_is_refused() {
        let error = of(&[0.5, 0.5, 1.5, -0.5], 2, 1).unwrap_err();
        assert_eq!(error, InceptionScoreError::NotADistribution { row: 1, smallest: -0.5, sum: 1.0 });
        assert!(matches!(of(&[0.0; 4], 2, 1), Err(InceptionScoreError::NotADistribution { row: 0, .. })));
        assert_eq!(of(&[0.5; 4], 2, 0).unwrap_err(), InceptionScoreError::Splits { splits: 0, n: 2 });
        assert_eq!(of(&[], 2, 1).unwrap_err(), InceptionScoreError::Splits { splits: 1, n: 0 });
    }

    #[test]
    fn an_order_names_each_image_once() {
        let table = Predictions::Probabilities(Features::new(&[0.5; 6], 2).unwrap());
        let refused = |order: &[usize], first_wrong| {
            let error = inception_score(table, 1, order).unwrap_err();
            assert_eq!(error, InceptionScoreError::Order { n: 3, len: order.len(), first_wrong });
        };
        refused(&[0, 1], None);
        refused(&[0, 1, 1], Some(1));
        refused(&[0, 1, 3], Some(3));
    }
}
