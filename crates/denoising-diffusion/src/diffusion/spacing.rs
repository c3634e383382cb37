//! Which noise levels a solver visits. A formulation has levels of its own; the others are functions of its range.

use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;
use super::formulation::Formulation;

/// A way to choose noise levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseLevels {
    /// The formulation's own: in discrete time all T, or evenly spaced ones as in the reference's DDIM; elucidated: Karras; the others: evenly
    /// spaced in their time.
    #[default]
    Trained,
    /// `(sigma / alpha)^(1 / rho)` evenly spaced (Karras et al. 2022, eq. 5).
    Karras,
    /// `ln(alpha^2 / sigma^2)` evenly spaced (Lu et al. 2022, arXiv:2206.00927).
    LogSnr,
    /// In discrete time: evenly spaced from T downwards, so that the first level is the noisiest one (Lin et al. 2023,
    /// arXiv:2305.08891, table 2).
    Trailing,
}

impl NoiseLevels {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Trained, Self::Karras, Self::LogSnr, Self::Trailing];

    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::Karras => "karras",
            Self::LogSnr => "log_snr",
            Self::Trailing => "trailing",
        }
    }

    /// One-line description for the user.
    pub fn about(self) -> &'static str {
        match self {
            Self::Trained => "the formulation's own; in discrete time evenly spaced t, as in the reference",
            Self::Karras => "evenly spaced sigma / alpha to the power 1 / rho",
            Self::LogSnr => "evenly spaced log-SNR",
            Self::Trailing => "evenly spaced t from the noisiest level down, for zero terminal SNR",
        }
    }

    /// `steps` levels from the noisiest down, then clean data. `steps` is at least 1, and at most T in discrete time for
    /// [`Trained`](Self::Trained) and [`Trailing`](Self::Trailing).
    pub fn of(self, formulation: &dyn Formulation, steps: usize, karras_rho: f64) -> Vec<NoiseLevel> {
        match self {
            Self::Trained => formulation.levels(steps),
            Self::Trailing => trailing(formulation, steps),
            Self::Karras => between(formulation, steps, formulation.range()[1].log_snr(), |[a, b], n| {
                let deviation = |log_snr: f64| (-0.5 * log_snr).exp();
                let sigmas = karras_sigmas(deviation(b), deviation(a), karras_rho, n);
                sigmas.into_iter().map(|sigma| -2.0 * sigma.ln()).collect()
            }),
            Self::LogSnr => even_in_log_snr(formulation, steps, formulation.range()[1].log_snr()),
        }
    }
}

/// n sigmas from the largest down to the smallest; if n is 1, the largest.
pub(super) fn karras_sigmas(sigma_min: f64, sigma_max: f64, rho: f64, n: usize) -> Vec<f64> {
    let [low, high] = [sigma_min, sigma_max].map(|sigma| sigma.powf(1.0 / rho));
    (0..n).map(|k| (high + (low - high) * k as f64 / (n.max(2) - 1) as f64).powf(rho)).collect()
}

/// `steps` levels from the noisiest to the one with log-SNR `cleanest`, then clean data.
pub(crate) fn even_in_log_snr(formulation: &dyn Formulation, steps: usize, cleanest: f64) -> Vec<NoiseLevel> {
    between(formulation, steps, cleanest, |[a, b], n| {
        (0..n).map(|k| a + (b - a) * k as f64 / (n.max(2) - 1) as f64).collect()
    })
}

/// Least distance in log-SNR over which the levels after pure noise are spread.
const LEAST_RANGE: f64 = 1.0;

/// Levels at log-SNRs between the noisiest and `cleanest`. Pure noise has log-SNR -inf (or nearly so), which cannot be divided; spacing then starts
/// at the first of the formulation's own levels that contains signal.
fn between(
    formulation: &dyn Formulation,
    steps: usize,
    cleanest: f64,
    log_snrs: impl Fn([f64; 2], usize) -> Vec<f64>,
) -> Vec<NoiseLevel> {
    let [noisiest, _] = formulation.range();
    let mut levels = Vec::with_capacity(steps + 1);
    let (mut first, mut n) = (noisiest.log_snr(), steps);
    if noisiest.is_pure_noise() {
        levels.push(noisiest);
        n -= 1;
        let own = formulation.levels(steps).into_iter().find(|level| !level.is_pure_noise());
        first = own.map_or(cleanest, |level| level.log_snr()).min(cleanest - if n > 1 { LEAST_RANGE } else { 0.0 });
    }
    levels.extend(log_snrs([first, cleanest], n).into_iter().map(|at| formulation.level_at_log_snr(at)));
    levels.push(NoiseLevel::CLEAN);
    levels
}

fn trailing(formulation: &dyn Formulation, steps: usize) -> Vec<NoiseLevel> {
    let Some(timesteps) = formulation.timesteps() else { return formulation.levels(steps) };
    let stride = timesteps as f64 / steps as f64;
    // Halves are rounded to even, as in numpy.
    let t = |k: usize| (timesteps as f64 - k as f64 * stride).round_ties_even() - 1.0;
    (0..steps).map(|k| formulation.level(t(k).max(0.0))).chain([NoiseLevel::CLEAN]).collect()
}
