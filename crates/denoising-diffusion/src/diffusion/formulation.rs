//! What a formulation is: where noise levels come from, what the network predicts at each, and how the loss is weighted. Plain numbers only;
//! [`Diffusion`](super::Diffusion) makes losses and denoisers of them, [`FormulationConfig`](super::FormulationConfig) lists the built-in ones that
//! options can name. Pass your own to [`Diffusion::of`](super::Diffusion::of), see `examples/custom_formulation.rs`.

use std::fmt::Debug;

use burn::tensor::Device;

use super::denoiser::NoiseLevel;
use super::error::DiffusionConfigError;
use super::learned_variance::LearnedVariance;
use super::prediction::Prediction;
use super::schedule::{Tables, variance_preserving};
use super::weighted_objective::ObjectiveWeights;
use crate::models::{LearnedSchedule, LearnedScheduleOptions, ScheduleWeights};
use crate::nn::Init;

/// The parts of a network's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Output {
    /// The prediction, as many channels as the data.
    Prediction,
    /// The prediction and a variance, twice the channels of the data.
    WithVariance(LearnedVariance),
    /// Noise, clean data and their two weights: twice the channels of the data and two.
    Weighted(ObjectiveWeights),
}

impl Output {
    /// Channels of the network's output for data of `channels`.
    pub fn channels(self, channels: usize) -> usize {
        match self {
            Self::Prediction => channels,
            Self::WithVariance(_) => 2 * channels,
            Self::Weighted(_) => 2 * channels + 2,
        }
    }

    /// Whether an output of `other` is read in the same way. Weights of the loss make no difference.
    pub(super) fn reads_the_same_as(self, other: Self) -> bool {
        match (self, other) {
            (Self::Prediction, Self::Prediction) | (Self::Weighted(_), Self::Weighted(_)) => true,
            (Self::WithVariance(one), Self::WithVariance(other)) => one.variance_reading == other.variance_reading,
            _ => false,
        }
    }
}

/// A formulation. Each has its own notion of time: t in 0..T of a table, a real number in [0, 1], or sigma.
pub trait Formulation: Debug + Send + Sync {
    /// The time below which a share `u` (in (0, 1)) of the training examples lies. Training draws u uniformly; measurements space it evenly.
    fn time(&self, u: f64) -> f64;

    /// The noise level at a time.
    fn level(&self, time: f64) -> NoiseLevel;

    /// The level with this [`log_snr`](NoiseLevel::log_snr).
    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel;

    /// What the network predicts; of outputs of more than one part, what the first one is. With [`Output::Weighted`] it is noise.
    fn prediction(&self) -> Prediction;

    /// The weight of the squared error of the prediction, without min-SNR.
    fn loss_weight(&self, level: &NoiseLevel) -> f64;

    /// The formulation's own `steps` noise levels from the noisiest down, then clean data.
    fn levels(&self, steps: usize) -> Vec<NoiseLevel>;

    /// The noisiest and the cleanest level that networks are trained on.
    fn range(&self) -> [NoiseLevel; 2];

    /// The parts of the output.
    fn output(&self) -> Output {
        Output::Prediction
    }

    /// The standard deviation of x_T.
    fn init_deviation(&self) -> f64 {
        1.0
    }

    /// T, if the number of noise levels is finite.
    fn timesteps(&self) -> Option<usize> {
        None
    }

    /// Default number of steps of ancestral sampling.
    fn default_steps(&self) -> usize;

    /// Default number of steps of Heun's method, if it differs from that of other solvers.
    fn default_heun_steps(&self) -> Option<usize> {
        None
    }

    /// The tables of a formulation in discrete time; a [learned variance](Output::WithVariance) needs them.
    fn tables(&self) -> Option<&Tables> {
        None
    }

    /// Whether the network's time input can be as large as 1000, which Fourier features of random frequency cannot resolve.
    fn tells_large_times(&self) -> bool {
        true
    }

    /// Options of the learned schedule, if the schedule is learned with the network. Such a formulation predicts noise, clean data or v, and nothing
    /// else; its levels have alpha^2 + sigma^2 = 1 and the log-SNR as their time, and its loss weight is the SNR for clean data, else 1.
    fn learned_schedule(&self) -> Option<LearnedScheduleOptions> {
        None
    }

    /// The same formulation with a trained schedule; required with a [learned schedule](Self::learned_schedule).
    fn with_schedule(&self, _weights: ScheduleWeights) -> Option<Box<dyn Formulation>> {
        None
    }
}

/// Refuses a formulation that would train, but not as it says.
pub(super) fn check_consistent(formulation: &dyn Formulation) -> Result<(), DiffusionConfigError> {
    let refused = |why| Err(DiffusionConfigError::Formulation(why));
    let prediction = formulation.prediction();
    match formulation.output() {
        Output::WithVariance(_) if formulation.tables().is_none() => {
            return refused("its output has a variance, but there are no tables for the bound that trains it");
        }
        Output::Weighted(_) if !matches!(prediction, Prediction::Noise) => {
            return refused("the first part of a weighted output is noise, but its prediction is another");
        }
        _ => {}
    }
    let Some(options) = formulation.learned_schedule() else { return Ok(()) };
    if formulation.output() != Output::Prediction {
        return refused("its schedule is learned, but its output has more than one part");
    }
    if !matches!(prediction, Prediction::Noise | Prediction::XStart | Prediction::V) {
        return refused("its schedule is learned, but it predicts neither noise nor x_start nor v");
    }
    let options = LearnedScheduleOptions { hidden_dim: 1, ..options };
    let schedule = LearnedSchedule::new(&mut Init::new(0, &Device::flex()), options);
    let Some(trained) = formulation.with_schedule(schedule.weights()) else {
        return refused("its schedule is learned, but `with_schedule` gives no formulation with it");
    };
    check_learned(formulation)?;
    check_learned(&*trained)
}

/// Refuses a formulation with other levels or weights than the loss gives to a learned schedule, whose gradient needs them as functions of log-SNR.
fn check_learned(formulation: &dyn Formulation) -> Result<(), DiffusionConfigError> {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * (1.0 + b.abs());
    for log_snr in [-8.0_f64, -2.0, 0.0, 2.0, 8.0] {
        let level = formulation.level_at_log_snr(log_snr);
        let NoiseLevel { alpha, sigma, .. } = variance_preserving(log_snr);
        if !(close(level.alpha, alpha) && close(level.sigma, sigma) && close(level.time, log_snr)) {
            return Err(DiffusionConfigError::Formulation(
                "its schedule is learned, but its levels are not those with alpha^2 + sigma^2 = 1 whose time is the log-SNR",
            ));
        }
        let weight = if matches!(formulation.prediction(), Prediction::XStart) { log_snr.exp() } else { 1.0 };
        if !close(formulation.loss_weight(&level), weight) {
            return Err(DiffusionConfigError::Formulation(
                "its schedule is learned, but its loss weight is not that of the loss: the SNR for x_start, else 1",
            ));
        }
    }
    Ok(())
}
