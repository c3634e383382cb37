//! Learned variance (Nichol and Dhariwal 2021, arXiv:2102.09672): in addition to its prediction the network outputs the variance of the step from t
//! to t - 1, trained by the variational bound of that step. Output: `[prediction, variance]` along the channels.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::error::{DiffusionConfigError, check};
use super::formulation::Output;
use super::gaussian::{GaussianDiffusion, refuse_noise_at_zero_snr};
use super::loss::{Parts, per_example, per_example_mean};
use super::prediction::Objective;
use super::prepared::Number;
use super::schedule::{ScheduleConfig, Tables};

/// How the second half of the output encodes the variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceReading {
    /// Interpolation between the logarithms of the posterior's variance (-1) and of beta (1), eq. 15.
    #[default]
    Range,
    /// The logarithm of the variance itself.
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

/// What distinguishes this formulation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LearnedVariance {
    pub variance_reading: VarianceReading,
    /// lambda: weight of the bound, in bits per dimension, relative to the squared error (eq. 16). The bound is a sum over all T steps, of which an
    /// example draws one, so that its term counts T times.
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

/// q(x_{t-1} | x_t, x_start) at a time, and the bounds of its variance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Posterior {
    /// log of the least variance of the step. At t = 0 that variance is 0 and has no logarithm, so the value at t = 1 is used, as in the paper's
    /// code.
    pub(super) least_log_variance: f64,
    /// log of the largest variance.
    pub(super) largest_log_variance: f64,
    /// Coefficient of x_start in the posterior mean (Ho et al. 2020, eq. 7).
    pub(super) of_x_start: f64,
    /// Coefficient of x_t.
    pub(super) of_x: f64,
    /// Whether t = 0, so that x_{t-1} is the data.
    pub(super) is_first: bool,
}

impl Posterior {
    pub(super) fn at(tables: &Tables, time: f64) -> Self {
        let t = time as usize;
        Self {
            least_log_variance: tables.posterior_log_variance_clipped[t.max(1)],
            largest_log_variance: tables.betas[t].ln(),
            of_x_start: tables.posterior_mean_coef1[t],
            of_x: tables.posterior_mean_coef2[t],
            is_first: time == 0.0,
        }
    }
}

impl LearnedVariance {
    /// Where the variance lies between the least (0) and the largest (1), on a logarithmic scale, at times that the network was trained on; a solver
    /// with longer steps uses the same position between the bounds of its steps.
    pub(super) fn place<const D: usize>(self, half: Tensor<D>, tables: &Tables, times: &[f64]) -> Tensor<D> {
        match self.variance_reading {
            VarianceReading::Range => (half + 1.0) * 0.5,
            VarianceReading::Direct => {
                let device = half.device();
                let at = |of: fn(Posterior) -> f64| {
                    per_example(&times.iter().map(|&t| of(Posterior::at(tables, t))).collect::<Vec<_>>(), &device)
                };
                (half - at(|at| at.least_log_variance))
                    * at(|at| 1.0 / (at.largest_log_variance - at.least_log_variance).max(1e-12))
            }
        }
    }

    /// log of the variance, `[b, c, h, w]`.
    fn log_variance(self, half: Tensor<4>, parts: &Parts<'_>) -> Tensor<4> {
        match self.variance_reading {
            VarianceReading::Direct => half,
            VarianceReading::Range => {
                let place = (half + 1.0) * 0.5;
                place.clone() * parts.number(Number::LargestLogVariance)
                    + (1.0 - place) * parts.number(Number::LeastLogVariance)
            }
        }
    }

    /// The bound's term at each example's time, in bits per dimension, `[b]`: the divergence of the network's step from the posterior, and at t = 0
    /// the negative log-likelihood of the 8-bit data. The mean is that of the prediction, without its gradient.
    pub(super) fn bound(self, half: Tensor<4>, x_start: Tensor<4>, parts: &Parts<'_>) -> Tensor<1> {
        let log_variance = self.log_variance(half, parts);
        let mean = |x_start: Tensor<4>| {
            x_start * parts.number(Number::PosteriorXStart) + parts.x.clone() * parts.number(Number::PosteriorX)
        };
        let (true_mean, mean) = (mean(parts.batch.x_start.clone()), mean(x_start.detach()));
        let true_log_variance = parts.number(Number::LeastLogVariance);

        let divergence = (log_variance.clone() - true_log_variance.clone() - 1.0
            + (true_log_variance - log_variance.clone()).exp()
            + (true_mean - mean.clone()).square() * (-log_variance.clone()).exp())
            * 0.5;
        let likelihood = -discretised_log_likelihood(parts.batch.x_start.clone(), mean, log_variance * 0.5);

        let first = parts.batch.number(Number::IsFirst);
        (per_example_mean(divergence) * (1.0 - first.clone()) + per_example_mean(likelihood) * first)
            / std::f64::consts::LN_2
    }
}

/// Smaller probabilities count as this one.
const LEAST_PROBABILITY: f64 = 1e-15;

/// log of the probability of 8-bit data in [-1, 1] under a Gaussian, given its mean and log deviation: half a level of 1/255 on both sides, the
/// outermost levels extending to infinity (Ho et al. 2020, eq. 13).
fn discretised_log_likelihood<const D: usize>(x: Tensor<D>, mean: Tensor<D>, log_deviation: Tensor<D>) -> Tensor<D> {
    let (centred, inverse) = (x.clone() - mean, (-log_deviation).exp());
    let below = |edge: f64| normal_cdf((centred.clone() + edge) * inverse.clone());
    let (upper, lower) = (below(1.0 / 255.0), below(-1.0 / 255.0));
    let log = |p: Tensor<D>| p.clamp_min(LEAST_PROBABILITY).log();
    let inner = log(upper.clone() - lower.clone());
    let high = inner.mask_where(x.clone().greater_elem(0.999), log(-lower + 1.0));
    high.mask_where(x.lower_elem(-0.999), log(upper))
}

/// The approximation of Page 1977, which published numbers were computed with; off by at most 3e-4.
fn normal_cdf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cubic = x.clone() + x.clone() * x.square() * 0.044_715;
    ((cubic * (2.0 / std::f64::consts::PI).sqrt()).tanh() + 1.0) * 0.5
}
