//! Weighted objective: the network predicts the noise, the clean data, and two weights per pixel whose softmax mixes the estimates that
//! the two predictions give (the reference's own formulation; no paper). Output: `[noise, x_start, 2 weights]` along the channels.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use serde::{Deserialize, Serialize};

use super::error::{DiffusionConfigError, check};
use super::formulation::Output;
use super::gaussian::{GaussianDiffusion, refuse_noise_at_zero_snr};
use super::loss::{Parts, per_example_mean};
use super::prediction::Objective;
use super::prepared::Number;
use super::schedule::{ScheduleConfig, Tables};

/// Options; `Default` is the reference's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WeightedObjectiveConfig {
    #[serde(flatten)]
    pub schedule: ScheduleConfig,
    #[serde(flatten)]
    pub weights: ObjectiveWeights,
}

/// Weights of the two single predictions in the loss; that of the mixture is 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectiveWeights {
    pub pred_noise_loss_weight: f64,
    pub pred_x_start_loss_weight: f64,
}

impl Default for ObjectiveWeights {
    fn default() -> Self {
        Self { pred_noise_loss_weight: 0.1, pred_x_start_loss_weight: 0.1 }
    }
}

impl WeightedObjectiveConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        self.schedule.validate()?;
        refuse_noise_at_zero_snr(&self.schedule, Objective::PredNoise)?;
        let ObjectiveWeights { pred_noise_loss_weight: noise, pred_x_start_loss_weight: x_start } = self.weights;
        let good = |weight: f64| weight.is_finite() && weight >= 0.0;
        check(good(noise), "pred_noise_loss_weight", "a number of at least 0", noise)?;
        check(good(x_start), "pred_x_start_loss_weight", "a number of at least 0", x_start)
    }

    pub(super) fn build(&self, tables: Tables) -> GaussianDiffusion {
        GaussianDiffusion {
            output: Output::Weighted(self.weights),
            ..GaussianDiffusion::with_tables(tables, Objective::PredNoise)
        }
    }
}

/// Bound on the estimate from predicted noise in training: at high noise that estimate's error is a large multiple of the noise's error. Sampling
/// does not clamp it, like the reference; there the mixture is kept within the data's range.
const LIMIT: f64 = 2.0;

/// Splits an output for data of `c` channels into noise, clean data and the mixing weights (each `[b, 1, h, w]`, summing to 1).
fn split<const D: usize>(output: Tensor<D>, c: usize) -> ([Tensor<D>; 2], [Tensor<D>; 2]) {
    let weights = softmax(output.clone().narrow(1, 2 * c, 2), 1);
    let part = |first: usize| output.clone().narrow(1, first, c);
    ([part(0), part(c)], [weights.clone().narrow(1, 0, 1), weights.narrow(1, 1, 1)])
}

/// The mixture, from an output at `x`. `c_skip` and `c_out` are those of noise prediction.
pub(super) fn x_start<const D: usize>(
    output: Tensor<D>,
    x: Tensor<D>,
    c_skip: Tensor<D>,
    c_out: Tensor<D>,
) -> Tensor<D> {
    let ([noise, x_start], [a, b]) = split(output, x.dims()[1]);
    (x * c_skip + noise * c_out) * a + x_start * b
}

/// The loss of each example, `[b]`.
pub(super) fn loss(output: Tensor<4>, weights: ObjectiveWeights, parts: &Parts<'_>) -> Tensor<1> {
    let ([noise, pred_x_start], [a, b]) = split(output, parts.batch.x_start.dims()[1]);
    let from_noise = parts.x.clone() * parts.number(Number::CSkip) + noise.clone() * parts.number(Number::COut);
    let mixture = from_noise.clamp(-LIMIT, LIMIT) * a + pred_x_start.clone() * b;
    let error = |got: Tensor<4>, wanted: &Tensor<4>| per_example_mean((got - wanted.clone()).square());
    error(mixture, &parts.batch.x_start)
        + error(pred_x_start, &parts.batch.x_start) * weights.pred_x_start_loss_weight
        + error(noise, &parts.batch.noise) * weights.pred_noise_loss_weight
}
