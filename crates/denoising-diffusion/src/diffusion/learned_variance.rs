//! Learned variance (Nichol and Dhariwal 2021, arXiv:2102.09672): beside its prediction the network gives the variance of the step from t
//! to t - 1, trained by the variational bound of that step. Output: `[prediction, variance]` along the channels.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::error::{DiffusionConfigError, check};
use super::formulation::Output;
use super::gaussian::{GaussianDiffusion, refuse_noise_at_zero_snr};
use super::loss::{Parts, per_example, per_example_mean};
use super::prediction::Objective;
use super::schedule::{ScheduleConfig, Tables};

/// How the second half of the output says the variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceReading {
    /// A place between the logarithms of the posterior's variance (-1) and of beta (1), eq. 15.
    #[default]
    Range,
    /// The logarithm itself.
    Direct,
}

/// Options; `Default` is the reference's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LearnedVarianceConfig {
    #[serde(flatten)]
    pub schedule: ScheduleConfig,
    pub objective: Objective,
    #[serde(flatten)]
    pub variance: LearnedVariance,
}

/// What is special about this formulation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LearnedVariance {
    pub variance_reading: VarianceReading,
    /// lambda: weight of the bound, in bits per dimension, beside the squared error (eq. 16). The bound is a sum over all T steps, of which
    /// an example draws one: its term counts T times.
    pub vb_loss_weight: f64,
}

impl Default for LearnedVariance {
    fn default() -> Self {
        Self { variance_reading: VarianceReading::Range, vb_loss_weight: 0.001 }
    }
}

impl Default for LearnedVarianceConfig {
    fn default() -> Self {
        Self {
            schedule: ScheduleConfig::default(),
            objective: Objective::PredNoise,
            variance: LearnedVariance::default(),
        }
    }
}

impl LearnedVarianceConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        self.schedule.validate()?;
        refuse_noise_at_zero_snr(&self.schedule, self.objective)?;
        let weight = self.variance.vb_loss_weight;
        check(weight.is_finite() && weight >= 0.0, "vb_loss_weight", "a number of at least 0", weight)
    }

    pub(super) fn build(&self, tables: Tables) -> GaussianDiffusion {
        GaussianDiffusion {
            output: Output::WithVariance(self.variance),
            ..GaussianDiffusion::with_tables(tables, self.objective)
        }
    }
}

/// log of the least and of the largest variance of the step from each time to the one before, per example. The least is 0 at t = 0, which
/// has no logarithm: that of t = 1 stands in for it, as in the paper's code.
fn log_bounds(tables: &Tables, times: &[f64]) -> [Vec<f64>; 2] {
    let least = times.iter().map(|&t| tables.posterior_log_variance_clipped[(t as usize).max(1)]).collect();
    let largest = times.iter().map(|&t| tables.betas[t as usize].ln()).collect();
    [least, largest]
}

impl LearnedVariance {
    /// Where the variance lies between the least (0) and the largest (1), on a logarithmic scale, for the times that the network was
    /// trained on; a solver that takes longer steps uses the same place between their bounds.
    pub(super) fn place<const D: usize>(self, half: Tensor<D>, tables: &Tables, times: &[f64]) -> Tensor<D> {
        match self.variance_reading {
            VarianceReading::Range => (half + 1.0) * 0.5,
            VarianceReading::Direct => {
                let device = half.device();
                let [least, largest] = log_bounds(tables, times);
                let scale = least.iter().zip(&largest).map(|(a, b)| 1.0 / (b - a).max(1e-12)).collect::<Vec<_>>();
                (half - per_example(&least, &device)) * per_example(&scale, &device)
            }
        }
    }

    /// log of the variance, `[b, c, ...]`.
    fn log_variance<const D: usize>(self, half: Tensor<D>, tables: &Tables, times: &[f64]) -> Tensor<D> {
        match self.variance_reading {
            VarianceReading::Direct => half,
            VarianceReading::Range => {
                let device = half.device();
                let [least, largest] = log_bounds(tables, times);
                let place = (half + 1.0) * 0.5;
                place.clone() * per_example(&largest, &device) + (1.0 - place) * per_example(&least, &device)
            }
        }
    }

    /// The bound's term at each example's time, in bits per dimension, `[b]`: the divergence of the network's step from the posterior,
    /// and at t = 0 the negative log-likelihood of the 8-bit data. The mean is the prediction's, without its gradient.
    pub(super) fn bound<const D: usize>(
        self,
        half: Tensor<D>,
        x_start: Tensor<D>,
        parts: &Parts<'_, D>,
        tables: &Tables,
    ) -> Tensor<1> {
        let device = half.device();
        let log_variance = self.log_variance(half, tables, parts.batch.times());
        let mean = |x_start: Tensor<D>| posterior_mean(x_start, parts.x.clone(), tables, parts.batch.times(), &device);
        let (true_mean, mean) = (mean(parts.batch.x_start.clone()), mean(x_start.detach()));
        let [true_log_variance, _] = log_bounds(tables, parts.batch.times());
        let true_log_variance: Tensor<D> = per_example(&true_log_variance, &device);

        let divergence = (log_variance.clone() - true_log_variance.clone() - 1.0
            + (true_log_variance - log_variance.clone()).exp()
            + (true_mean - mean.clone()).square() * (-log_variance.clone()).exp())
            * 0.5;
        let likelihood = -discretised_log_likelihood(parts.batch.x_start.clone(), mean, log_variance * 0.5);

        let first: Vec<f64> = parts.batch.times().iter().map(|&t| f64::from(u8::from(t == 0.0))).collect();
        let rest: Vec<f64> = first.iter().map(|first| 1.0 - first).collect();
        let per_example = |values: &[f64]| per_example::<1>(values, &device);
        (per_example_mean(divergence) * per_example(&rest) + per_example_mean(likelihood) * per_example(&first))
            / std::f64::consts::LN_2
    }
}

/// The mean of q(x_{t-1} | x_t, x_start), Ho et al. 2020, eq. 7.
fn posterior_mean<const D: usize>(
    x_start: Tensor<D>,
    x: Tensor<D>,
    tables: &Tables,
    times: &[f64],
    device: &Device,
) -> Tensor<D> {
    let at = |table: &[f64]| per_example(&times.iter().map(|&t| table[t as usize]).collect::<Vec<_>>(), device);
    x_start * at(&tables.posterior_mean_coef1) + x * at(&tables.posterior_mean_coef2)
}

/// Values whose probability is below this count as this improbable.
const LEAST_PROBABILITY: f64 = 1e-15;

/// log of the probability of 8-bit data in [-1, 1] under a Gaussian of a mean and the logarithm of a deviation: half a level of 1/255 to
/// both sides, the outermost levels reaching to infinity (Ho et al. 2020, eq. 13).
fn discretised_log_likelihood<const D: usize>(x: Tensor<D>, mean: Tensor<D>, log_deviation: Tensor<D>) -> Tensor<D> {
    let (centred, inverse) = (x.clone() - mean, (-log_deviation).exp());
    let below = |edge: f64| normal_cdf((centred.clone() + edge) * inverse.clone());
    let (upper, lower) = (below(1.0 / 255.0), below(-1.0 / 255.0));
    let log = |p: Tensor<D>| p.clamp_min(LEAST_PROBABILITY).log();
    let inner = log(upper.clone() - lower.clone());
    let high = inner.mask_where(x.clone().greater_elem(0.999), log(-lower + 1.0));
    high.mask_where(x.lower_elem(-0.999), log(upper))
}

/// Page 1977's approximation, which published numbers were computed with; off by at most 3e-4.
fn normal_cdf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cubic = x.clone() + x.clone() * x.square() * 0.044_715;
    ((cubic * (2.0 / std::f64::consts::PI).sqrt()).tanh() + 1.0) * 0.5
}
