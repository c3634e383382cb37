//! The metrics by name, and each as a [`Measurement`] with the notes that a reader needs. Not here: the mathematics ([`super::metrics`]), and the
//! sequence of work ([`super::evaluate`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::extract::Extracted;
use super::metrics::OnShare;
use super::metrics::draws::{Draw, permutation};
use super::metrics::estimate::Estimate;
use super::metrics::features::{FeatureError, Features};
use super::metrics::fid::FidError;
use super::metrics::frechet::FrechetError;
use super::metrics::inception_score::{InceptionScoreError, Predictions, inception_score};
use super::metrics::kid::{Kid, KidError, KidOptions};
use super::metrics::neighbours::{Neighbour, Quantiles, memorisation};
use super::metrics::prdc::{PRDC_NEIGHBOURS, prdc};
use super::metrics::sliced_wasserstein::{DIRECTIONS, sliced_wasserstein_with_floor};
use super::metrics::spectrum::{SpectrumDistance, spectrum_distance};
use super::metrics::statistics::StatisticsError;
use super::metrics::table_error::TableError;
use super::result::{Better, Measurement, Neighbours, Pair};

mod fid;

pub use fid::{FidInput, fid};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Fréchet inception distance.
    Fid,
    /// Kernel inception distance.
    Kid,
    /// Inception Score.
    Is,
    /// Precision, recall, density and coverage.
    Prdc,
    /// Sliced Wasserstein distance of pixels.
    Swd,
    /// Difference of power spectra along the width.
    Spectrum,
    /// Distances to the nearest training images.
    Neighbours,
    /// Held-out loss by quarter of t.
    Loss,
    /// Variational bound in bits per dimension.
    Bpd,
    /// Negative log-likelihood by the probability-flow ODE, in bits per dimension.
    Nll,
}

impl Metric {
    /// All metrics, in the order of reports.
    pub const ALL: [Self; 10] = [
        Self::Fid,
        Self::Kid,
        Self::Is,
        Self::Prdc,
        Self::Swd,
        Self::Spectrum,
        Self::Neighbours,
        Self::Loss,
        Self::Bpd,
        Self::Nll,
    ];

    /// The name in files and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fid => "fid",
            Self::Kid => "kid",
            Self::Is => "is",
            Self::Prdc => "prdc",
            Self::Swd => "swd",
            Self::Spectrum => "spectrum",
            Self::Neighbours => "neighbours",
            Self::Loss => "loss",
            Self::Bpd => "bpd",
            Self::Nll => "nll",
        }
    }

    /// The names of its measurements, the main one first.
    pub fn numbers(self) -> &'static [&'static str] {
        match self {
            Self::Prdc => &["precision", "recall", "density", "coverage"],
            Self::Fid => &["fid"],
            Self::Kid => &["kid"],
            Self::Is => &["is"],
            Self::Swd => &["swd"],
            Self::Spectrum => &["spectrum"],
            Self::Neighbours => &["neighbours"],
            Self::Loss => &["loss"],
            Self::Bpd => &["bpd"],
            Self::Nll => &["nll"],
        }
    }

    /// The metric that has a number of this name.
    pub fn with_number(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.numbers().contains(&name))
    }

    /// Whether it is based on Inception's features.
    pub fn needs_inception(self) -> bool {
        matches!(self, Self::Fid | Self::Kid | Self::Is | Self::Prdc)
    }

    /// Whether it is measured if none is named: the likelihood by the probability flow can take as long as all others together.
    pub fn is_usual(self) -> bool {
        self != Self::Nll
    }

    /// Whether it needs samples.
    pub fn needs_samples(self) -> bool {
        !matches!(self, Self::Loss | Self::Bpd | Self::Nll)
    }
}

/// In which direction the number of this name is better. The z of the nearest neighbours is better neither when low (the samples are copies) nor
/// when high (they are unlike the data); the same goes for unknown names.
pub fn better(number: &str) -> Better {
    match number {
        "fid" | "kid" | "swd" | "spectrum" | "loss" | "bpd" | "nll" => Better::Lower,
        "is" | "precision" | "recall" | "density" | "coverage" => Better::Higher,
        _ => Better::Neither,
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An unknown metric name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown metric `{0}`; expected one of {names}", names = Metric::ALL.map(Metric::name).join(", "))]
pub struct UnknownMetric(String);

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|metric| metric.name() == text).ok_or_else(|| UnknownMetric(text.to_string()))
    }
}

/// Why a metric could not be computed.
#[derive(Debug, Error)]
pub enum MetricError {
    #[error("the features cannot be used")]
    Features(#[from] FeatureError),
    #[error("cannot compute mean and covariance")]
    Statistics(#[from] StatisticsError),
    #[error("cannot compute the FID")]
    Fid(#[from] FidError),
    #[error("cannot compute the Fréchet distance")]
    Frechet(#[from] FrechetError),
    #[error("cannot compute the KID")]
    Kid(#[from] KidError),
    #[error("cannot compute the Inception Score")]
    InceptionScore(#[from] InceptionScoreError),
    #[error("cannot compare the two sets")]
    Table(#[from] TableError),
}

fn measurement(name: &str, estimate: Estimate, n_generated: usize, n_real: usize) -> Measurement {
    Measurement {
        name: name.to_string(),
        value: estimate.value,
        standard_error: Some(estimate.standard_error),
        better: better(name),
        n_generated: Some(n_generated),
        n_real: Some(n_real),
        notes: Vec::new(),
    }
}

impl Extracted {
    /// The features as a table.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn table(&self) -> Result<Features<'_>, FeatureError> {
        Features::new(&self.features, self.dims)
    }
}

/// KID, in its own units (not times 1000).
///
/// # Errors
/// [`MetricError`].
pub fn kid(real: &Extracted, generated: &Extracted, seed: u64) -> Result<Measurement, MetricError> {
    let kid = Kid::new(real.table()?, generated.table()?, &KidOptions { seed, ..KidOptions::default() })?;
    Ok(Measurement {
        name: Metric::Kid.name().to_string(),
        value: kid.value,
        standard_error: kid.standard_error,
        better: better(Metric::Kid.name()),
        n_generated: Some(kid.n_generated),
        n_real: Some(kid.n_real),
        notes: Vec::new(),
    })
}

/// Inception Score over ten parts, or fewer for fewer images; its standard error is that of the mean over parts.
///
/// # Errors
/// [`MetricError`]; also if there are no logits, that is, with features of another block.
pub fn is(generated: &Extracted, seed: u64) -> Result<Measurement, MetricError> {
    let n = generated.n;
    let splits = 10.min(n);
    let logits = generated.logits.as_deref().unwrap_or_default();
    let table = Features::new(logits, super::inception::CLASSES)?;
    let score =
        inception_score(Predictions::Logits(table), splits, &permutation(seed, Draw::InceptionScore, 0, table.n()))?;
    let standard_error = (splits > 1).then(|| score.standard_deviation / ((splits - 1) as f64).sqrt());
    let notes = if n / splits < 1000 {
        vec![format!("parts of {} images, which lowers the score; published scores use parts of 5000", n / splits)]
    } else {
        Vec::new()
    };
    Ok(Measurement {
        name: Metric::Is.name().to_string(),
        value: score.mean,
        standard_error,
        better: better(Metric::Is.name()),
        n_generated: Some(n),
        n_real: None,
        notes,
    })
}

/// Precision, recall, density and coverage.
///
/// # Errors
/// [`MetricError`].
pub fn prdc_all(real: &Extracted, generated: &Extracted) -> Result<Vec<Measurement>, MetricError> {
    let result = prdc(real.table()?, generated.table()?, PRDC_NEIGHBOURS)?;
    let each = |name, estimate| measurement(name, estimate, generated.n, real.n);
    Ok(vec![
        each("precision", result.precision),
        each("recall", result.recall),
        each("density", result.density),
        each("coverage", result.coverage),
    ])
}

/// Sliced Wasserstein distance of pixels in [0, 1], with the distance between two halves of the real images as a note.
///
/// # Errors
/// [`MetricError`].
pub fn swd(
    real: Features<'_>,
    generated: Features<'_>,
    seed: u64,
    on_share: OnShare<'_>,
) -> Result<Measurement, MetricError> {
    let result = sliced_wasserstein_with_floor(real, generated, DIRECTIONS, seed, on_share)?;
    let mut swd = measurement(Metric::Swd.name(), result.distance, generated.n(), real.n());
    swd.notes.push(format!("two halves of the real images: {:.4}", result.floor.value));
    Ok(swd)
}

/// Difference of the power spectra of sequences of `length` values, in decibels, with that between two halves of the real ones as a note.
///
/// # Errors
/// [`MetricError`].
pub fn spectrum(
    real: Features<'_>,
    generated: Features<'_>,
    length: usize,
    seed: u64,
    on_share: OnShare<'_>,
) -> Result<Measurement, MetricError> {
    let SpectrumDistance { distance, floor } = spectrum_distance(real, generated, length, seed, on_share)?;
    Ok(Measurement {
        name: Metric::Spectrum.name().to_string(),
        value: distance,
        standard_error: None,
        better: better(Metric::Spectrum.name()),
        n_generated: Some(generated.n()),
        n_real: Some(real.n()),
        notes: vec![format!("dB; two halves of the real ones: {floor:.2}")],
    })
}

/// Distances of generated and held-out images, of `dims` pixels each, to the nearest of `n_training` training images, as root mean square
/// differences of pixels in [0, 1].
///
/// # Errors
/// [`MetricError`].
pub fn neighbours(
    generated: Vec<Neighbour>,
    held_out: Vec<Neighbour>,
    n_training: usize,
    dims: usize,
) -> Result<Neighbours, MetricError> {
    let found = memorisation(generated, held_out)?;
    let rms = |distance: f64| distance / (dims as f64).sqrt();
    let all = |q: &Quantiles| [q.min, q.p05, q.p25, q.median, q.p75, q.p95, q.max].map(rms);
    let pair = |p: &super::metrics::neighbours::ClosestPair| Pair {
        generated: p.generated,
        training: p.training,
        distance: rms(p.distance),
    };
    Ok(Neighbours {
        n_generated: found.generated.nearest.len(),
        n_training,
        n_held_out: found.held_out.nearest.len(),
        generated_quantiles: all(&found.generated.quantiles),
        held_out_quantiles: all(&found.held_out.quantiles),
        share_below_held_out: found.near,
        z: found.z.unwrap_or(0.0),
        exact_copies: found.generated.exact_copies,
        closest: found.closest.iter().map(pair).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_metric_and_all_but_neighbours_a_better_side() {
        for metric in Metric::ALL {
            for &name in metric.numbers() {
                assert_eq!(Metric::with_number(name), Some(metric));
                assert_eq!(better(name) == Better::Neither, metric == Metric::Neighbours, "{name}");
            }
        }
        assert_eq!(Metric::with_number("prdc"), None, "a metric, not a number");
    }
}
