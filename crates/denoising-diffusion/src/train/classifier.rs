//! One step in the training of a classifier of noisy images (Dhariwal and Nichol 2021, arXiv:2105.05233, section 4): predicting the class of each
//! image, at a noise level drawn from the formulation's training distribution. Not here: where batches come from, and what is written to disk
//! (`classifier_run`).

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::adam::{Adam, AdamConfig};
use super::config::{TrainConfigError, not_zero, value};
use super::ema::{Ema, EmaConfig};
use super::gradients::{CameTo, NamedGradients, Spoiled};
use super::lr::{LrSchedule, learning_rate};
use super::step_report::{NonFinite, NonFiniteKind, TrainError, TrainerError};
use super::sweep::Clip;
use crate::device::in_pool;
use crate::diffusion::{Diffusion, Draws};
use crate::models::Classifier;
use crate::nn::dropout;
use crate::nn::params::{host_values, num_trainable};
use crate::noise::{Purpose, Stream};

/// Number of consecutive steps without a finite loss and gradient that ends training.
const MAX_SKIPPED: u64 = 10;

/// Options of [`ClassifierTrainer`] and the loop around it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierTrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Images per step.
    pub batch_size: usize,
    pub lr: f64,
    pub lr_schedule: LrSchedule,
    pub warmup_steps: u64,
    /// Gradients are scaled down so that their global norm is at most this.
    pub max_grad_norm: f64,
    /// Seeds weights, data order, noise levels, noise and dropout.
    pub seed: u64,
    /// Steps between measurements on held-out images, each of which writes the file; if absent, a tenth of the steps.
    pub measure_every: Option<u64>,
    /// The average that is measured and written; a decay of 0 gives the weights in training.
    pub ema: EmaConfig,
}

impl Default for ClassifierTrainConfig {
    fn default() -> Self {
        Self {
            steps: 10_000,
            batch_size: 64,
            lr: 3e-4,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 100,
            max_grad_norm: 1.0,
            seed: 0,
            measure_every: None,
            // Updated at every step, since such trainings are short.
            ema: EmaConfig { ema_update_every: 1, ..EmaConfig::default() },
        }
    }
}

impl ClassifierTrainConfig {
    /// # Errors
    /// [`TrainConfigError`] naming the option.
    pub fn validate(&self) -> Result<(), TrainConfigError> {
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("measure_every", self.measure_interval()),
            ("warmup_steps", if self.lr_schedule == LrSchedule::InverseSqrt { self.warmup_steps } else { 1 }),
        ];
        for (key, count) in counts {
            not_zero(key, count)?;
        }
        value(self.lr > 0.0 && self.lr.is_finite(), "lr", "a finite number above 0", self.lr)?;
        value(self.max_grad_norm > 0.0, "max_grad_norm", "above 0 (`inf` clips nothing)", self.max_grad_norm)?;
        self.ema.validate()
    }

    /// Steps between measurements.
    pub fn measure_interval(&self) -> u64 {
        self.measure_every.unwrap_or(self.steps.div_ceil(10))
    }

    /// With the decays of the paper, which are PyTorch's default.
    fn adam(&self) -> AdamConfig {
        AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: self.max_grad_norm }
    }
}

/// A classifier in training, its optimizer and its moving average.
#[derive(Debug)]
pub struct ClassifierTrainer {
    /// `None` only while the optimizer replaces it.
    model: Option<Classifier>,
    ema: Ema<Classifier>,
    adam: Adam,
    diffusion: Diffusion,
    config: ClassifierTrainConfig,
    device: Device,
    step: u64,
    skipped_in_a_row: u64,
}

/// Report of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierStep {
    /// Counted from 1.
    pub step: u64,
    /// Mean of `-ln p(y | x)` over the batch, in nats.
    pub loss: f64,
    /// Share of the batch whose class had the highest probability.
    pub accuracy: f64,
    /// The global norm of the gradients before clipping; NaN if the step was skipped.
    pub grad_norm: f64,
    pub lr: f64,
    /// Set if the step was skipped: it changed neither weights, optimizer nor average.
    pub skipped: Option<NonFinite>,
}

/// Results of a batch's forward and backward pass.
struct Pass {
    loss: f64,
    accuracy: f64,
    /// The gradients with their norm and clipping factor, or why the step must be skipped.
    step: Result<(NamedGradients, f64, Clip), NonFinite>,
}

impl ClassifierTrainer {
    /// `model` must be on an autodiff device; `diffusion` must contain the schedule that its network learned, if any.
    ///
    /// # Errors
    /// Invalid options, and a classifier that has nothing to train, as on a device without autodiff.
    pub fn new(
        model: Classifier,
        diffusion: Diffusion,
        config: ClassifierTrainConfig,
        device: &Device,
    ) -> Result<Self, TrainerError> {
        config.validate()?;
        if num_trainable(&model) == 0 {
            return Err(TrainerError::NothingToTrain);
        }
        Ok(Self {
            ema: Ema::new(&model, config.ema),
            adam: Adam::new(config.adam()),
            model: Some(model),
            diffusion,
            config,
            device: device.clone().autodiff(),
            step: 0,
            skipped_in_a_row: 0,
        })
    }

    pub fn config(&self) -> &ClassifierTrainConfig {
        &self.config
    }

    pub fn diffusion(&self) -> &Diffusion {
        &self.diffusion
    }

    /// The moving average, which is measured and written.
    pub fn ema(&self) -> &Ema<Classifier> {
        &self.ema
    }

    /// The classifier in training.
    pub fn model(&self) -> &Classifier {
        self.model.as_ref().expect("a step puts the classifier back")
    }

    /// Steps made, skipped ones included.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// The plain device that evaluation runs on.
    pub fn device(&self) -> Device {
        self.device.clone().inner()
    }

    /// One optimizer step on images `[b, c, h, w]` in the data's range and their classes. The result depends only on the seed, the step number and
    /// the batch.
    ///
    /// # Errors
    /// If this is the last of 10 consecutive steps without a finite loss and gradient; those before it are only skipped.
    pub fn step(&mut self, images: Tensor<4>, classes: &[u32]) -> Result<ClassifierStep, TrainError> {
        let c = &self.config;
        let lr = learning_rate(c.lr_schedule, c.lr, c.warmup_steps, c.steps, self.step + 1);
        let Pass { loss, accuracy, step } = in_pool(|| self.pass(images.to_device(&self.device), classes));
        self.step += 1;
        let mut report = ClassifierStep { step: self.step, loss, accuracy, grad_norm: f64::NAN, lr, skipped: None };
        match step {
            Ok((gradients, norm, clip)) => {
                report.grad_norm = norm;
                self.skipped_in_a_row = 0;
                in_pool(|| self.advance(gradients, &clip, lr));
            }
            Err(NonFinite { tensor, kind }) if self.skipped_in_a_row + 1 >= MAX_SKIPPED => {
                return Err(TrainError::NonFinite { count: MAX_SKIPPED, tensor, kind });
            }
            Err(cause) => {
                self.skipped_in_a_row += 1;
                report.skipped = Some(cause);
            }
        }
        Ok(report)
    }

    /// Changes weights, moments and average.
    fn advance(&mut self, gradients: NamedGradients, clip: &Clip, lr: f64) {
        self.model = self.model.take().map(|model| self.adam.step_clipped(model, gradients, clip, lr));
        self.ema.update(self.model.as_ref().expect("just put back"));
    }

    fn pass(&self, images: Tensor<4>, classes: &[u32]) -> Pass {
        let (seed, b) = (self.config.seed, classes.len());
        let draws: Draws = self.diffusion.draw(seed, self.step * b as u64, self.step, images.dims(), &self.device);
        dropout::seed(&self.device, Stream::new(seed, Purpose::Dropout, self.step, 0).next_u64());
        let input = self.diffusion.noised_input(images, &draws);
        let log_p = log_softmax(self.model().forward(input.x, input.time), 1);
        let labels: Vec<i64> = classes.iter().map(|&class| class.into()).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [b, 1]), &self.device);
        let own = log_p.clone().gather(1, labels); // [b, 1]
        let right = own.clone().inner().greater_equal(log_p.inner().max_dim(1)).float();
        let loss = own.mean().neg();
        let gradients = NamedGradients::take(self.model(), &mut loss.backward());
        let found = gradients.ask(vec![loss.inner()], self.config.adam().max_grad_norm).read().wait();
        let CameTo { losses, step } = CameTo::new(&gradients.of(), found);
        let step = match step {
            Ok((norm, clip)) => Ok((gradients, norm, clip)),
            Err(Spoiled::Loss(_)) => Err(NonFinite { tensor: "loss".to_string(), kind: NonFiniteKind::Loss }),
            Err(Spoiled::Gradient(tensor)) => Err(NonFinite { tensor, kind: NonFiniteKind::Gradient }),
        };
        Pass { loss: losses.iter().sum(), accuracy: f64::from(host_values(right).iter().sum::<f32>()) / b as f64, step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::DiffusionConfig;
    use crate::models::ClassifierConfig;
    use crate::nn::Init;

    #[test]
    fn what_cannot_be_trained_is_refused() {
        let new = |config: ClassifierTrainConfig, device: &Device| {
            let classifier =
                ClassifierConfig { dim: 4, dim_mults: vec![1], channels: 1, ..ClassifierConfig::default() };
            let model = Classifier::new(&classifier, &mut Init::new(0, device)).unwrap();
            let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
            ClassifierTrainer::new(model, diffusion, config, &Device::flex()).map(drop)
        };
        let (plain, autodiff) = (Device::flex(), Device::flex().autodiff());
        assert_eq!(new(ClassifierTrainConfig::default(), &autodiff), Ok(()));
        assert_eq!(new(ClassifierTrainConfig::default(), &plain), Err(TrainerError::NothingToTrain));
        let steps = ClassifierTrainConfig { steps: 0, ..ClassifierTrainConfig::default() };
        assert_eq!(new(steps, &autodiff), Err(TrainConfigError::Zero { key: "steps" }.into()));
    }
}
