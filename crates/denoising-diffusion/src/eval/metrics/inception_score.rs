//! The Inception Score of class predictions (Salimans et al. 2016, arXiv:1606.03498).
//!
//! IS = exp(mean over images of KL(p(y | x) || p(y))), p(y) the mean of p(y | x): between 1 (all images get the same prediction) and the
//! number of classes. It never looks at real images, and says little for data unlike that of the classifier.

use super::features::Features;

/// Largest distance of a row's sum from 1 that counts as rounding of f32 probabilities.
const SUM_TOLERANCE: f64 = 1e-3;

/// What a classifier says of each image, `[n, classes]`.
#[derive(Clone, Copy, Debug)]
pub enum Predictions<'a> {
    /// Before the softmax.
    Logits(Features<'a>),
    /// After it: at least 0, rows that sum to 1 up to rounding (they are divided by their sums).
    Probabilities(Features<'a>),
}

/// An Inception Score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InceptionScore {
    /// Mean over splits.
    pub mean: f64,
    /// Standard deviation over splits (divided by their number, as torch-fidelity).
    pub standard_deviation: f64,
    /// Number of splits.
    pub splits: usize,
    /// Images in all.
    pub n: usize,
}

/// A score that cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InceptionScoreError {
    /// No splits, or some without an image.
    #[error("{splits} splits of {n} images; expected at least 1 split and an image in each")]
    Splits {
        /// Number of splits.
        splits: usize,
        /// Number of images.
        n: usize,
    },
    /// Not an order of the images.
    #[error("the order is no permutation of 0..{n}: it has {len} entries{}", first_wrong.map_or(String::new(), |i| format!(", and {i} is repeated or too large")))]
    Order {
        /// Number of images.
        n: usize,
        /// Length of the order.
        len: usize,
        /// First entry that came before or is past the end.
        first_wrong: Option<usize>,
    },
    /// A row that is no distribution.
    #[error("row {row} is no distribution: smallest probability {smallest}, sum {sum}")]
    NotADistribution {
        /// The row.
        row: usize,
        /// Its smallest value.
        smallest: f64,
        /// Its sum.
        sum: f64,
    },
}

/// The Inception Score over `splits` parts (usually 10) of the images taken in `order`, a permutation of `0..n`: split i holds the entries
/// `i n / splits .. (i + 1) n / splits`. Images that come sorted by class must be shuffled, which is the order's purpose
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

/// Where split i starts. In 128 bits: i n may exceed 32 of them where that is all there is.
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

/// exp of the mean KL of one split. KL(p || q) = sum p (ln p - ln q), terms of p = 0 being 0.
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
    // The mean KL is the entropy of the mean less the mean entropy, and not below 0 but for rounding.
    Ok((negative_entropy / n - of_marginal).max(0.0).exp())
}

fn plogp(p: f64, log: f64) -> f64 {
    if p > 0.0 { p * log } else { 0.0 }
}

/// ln p(y | x) of one image, negative infinity where p is 0.
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
