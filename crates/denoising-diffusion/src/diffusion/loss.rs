//! The training loss of every formulation. Not here: what is drawn, and how levels are made from it (`process`, the formulations).

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::denoiser::NoiseLevel;
use super::formulation::Output;
use super::immiscible::least_distance_assignment;
use super::learned_variance::Posterior;
use super::prediction::Prediction;
use super::prepared::{Levels, Number, Prepared, Told};
use super::process::{Diffusion, Draws};
use super::weighted_objective;
use crate::data::{Batch, ImageBatch, augment};
use crate::models::{Network, NetworkInput};
use crate::nn::params::{from_host, host_values};
use crate::nn::{TrainNoGrad, Vectors};

/// A batch that a network is trained on.
#[derive(Clone, Debug)]
pub struct Examples {
    /// `[b, c, h, w]` as the data gives them, in [0, 1] with `auto_normalize`.
    pub data: Tensor<4>,
    /// The class of each example, for networks that take classes.
    pub classes: Option<Vec<u32>>,
    /// `[b, condition channels, h, w]` in the same range, for networks that take a condition.
    pub condition: Option<Tensor<4>>,
    /// The vector of each example, `[b, vector_dim]` in row-major order, for networks that take vectors.
    pub vectors: Option<Vec<f32>>,
    /// How each example was [augmented](augment), `[b, 9]` in row-major order, for networks that are told; absent where none was.
    pub augment_labels: Option<Vec<f32>>,
}

impl From<Tensor<4>> for Examples {
    fn from(data: Tensor<4>) -> Self {
        Self { data, classes: None, condition: None, vectors: None, augment_labels: None }
    }
}

impl Examples {
    /// A batch of data on a device.
    pub fn of(batch: Batch, device: &Device) -> Self {
        let on = |ImageBatch { shape, data }: ImageBatch| from_host(data, shape, device);
        Self {
            data: on(batch.images),
            classes: batch.classes,
            condition: batch.conditions.map(on),
            vectors: batch.vectors,
            augment_labels: batch.augment_labels,
        }
    }

    /// The same examples on this device.
    pub fn on(self, device: &Device) -> Self {
        let condition = self.condition.map(|condition| condition.to_device(device));
        Self { data: self.data.to_device(device), condition, ..self }
    }
}

/// The levels of a schedule in training: log-SNR `[b]`, alpha and sigma `[b, 1, 1, 1]`.
pub(super) struct Learned {
    log_snr: Tensor<1>,
    alpha: Tensor<4>,
    sigma: Tensor<4>,
}

/// A noised batch and what it was made from.
pub(super) struct Parts<'a> {
    pub batch: &'a Prepared,
    pub x: Tensor<4>,
    /// Used in place of the batch's own levels.
    learned: Option<Learned>,
    prediction: Prediction,
}

impl Parts<'_> {
    /// A number of each example, `[b, 1, 1, 1]`. Schedules are learned only for single predictions, which use the levels of `Learned`.
    pub fn number(&self, number: Number) -> Tensor<4> {
        self.batch.shaped(number)
    }

    /// The network's time input, `[b]`.
    fn time(&self) -> Tensor<1> {
        match &self.learned {
            None => self.batch.number(Number::Time),
            Some(Learned { log_snr, .. }) => log_snr.clone(),
        }
    }

    fn input(&self) -> Tensor<4> {
        match (&self.learned, self.prediction) {
            (None, Prediction::Elucidated { .. } | Prediction::Linear(_)) => self.x.clone() * self.number(Number::CIn),
            _ => self.x.clone(),
        }
    }

    pub fn network_input(&self, x_self_cond: Option<Tensor<4>>) -> NetworkInput {
        let Told { classes, condition, vectors, augment_labels } = self.batch.told.clone();
        NetworkInput { x: self.input(), time: self.time(), x_self_cond, classes, condition, vectors, augment_labels }
    }

    fn target(&self) -> Tensor<4> {
        let (x_start, noise) = (self.batch.x_start.clone(), self.batch.noise.clone());
        match (&self.learned, self.prediction) {
            (_, Prediction::Noise) => noise,
            (_, Prediction::XStart) => x_start,
            (Some(Learned { alpha, sigma, .. }), _) => noise * alpha.clone() - x_start * sigma.clone(),
            (None, _) => x_start * self.number(Number::TargetXStart) + noise * self.number(Number::TargetNoise),
        }
    }

    /// The estimate of x_start that a prediction gives.
    fn x_start_of(&self, prediction: Tensor<4>) -> Tensor<4> {
        let x = self.x.clone();
        match (&self.learned, self.prediction) {
            (_, Prediction::XStart) => prediction,
            (Some(Learned { alpha, sigma, .. }), Prediction::Noise) => (x - prediction * sigma.clone()) / alpha.clone(),
            (Some(Learned { alpha, sigma, .. }), _) => x * alpha.clone() - prediction * sigma.clone(),
            (None, _) => x * self.number(Number::CSkip) + prediction * self.number(Number::COut),
        }
    }

    /// The weight of each example, `[b]`. That of a learned schedule without min-SNR is its formulation's: `formulation::check_consistent`.
    fn weight(&self, diffusion: &Diffusion) -> Tensor<1> {
        // In terms of log-SNR, so that the gradient reaches it.
        let Some(Learned { log_snr, .. }) = &self.learned else { return self.batch.number(Number::Weight) };
        let snr = log_snr.clone().exp();
        let clipped = diffusion.min_snr.map(|gamma| snr.clone().clamp_max(gamma));
        match (self.prediction, clipped) {
            (Prediction::XStart, clipped) => clipped.unwrap_or(snr),
            (_, None) => snr.ones_like(),
            (Prediction::Noise, Some(clipped)) => clipped / snr,
            (_, Some(clipped)) => clipped / (snr + 1.0),
        }
    }
}

impl Diffusion {
    /// The weighted loss of each example, `[b]`. Everything must be on the network's device. With several noise candidates, each example is trained
    /// on the one with the least loss, found without gradients.
    pub fn loss<M: Network>(&self, model: &M, examples: impl Into<Examples>, draws: &Draws) -> Tensor<1> {
        self.loss_of(model, &self.prepare(model, examples, draws))
    }

    /// A batch ready for the loss: everything decided by the host and by chance is decided, and the earlier estimate for self-conditioning is made.
    /// With several noise candidates, each example gets the one with the least loss, found without gradients.
    ///
    /// # Panics
    /// If the data have other channels than the network takes, which would broadcast.
    pub fn prepare<M: Network>(&self, model: &M, examples: impl Into<Examples>, draws: &Draws) -> Prepared {
        let examples: Examples = examples.into();
        assert_eq!(examples.data.dims()[1], model.channels(), "channels of the data, and those that the network takes");
        let classes = kept(model, examples.classes, &draws.keep_condition);
        let classes = classes_tensor(model.num_classes(), classes.as_deref(), &examples.data.device());
        let condition = examples.condition.filter(|_| model.condition_channels() > 0);
        let told = Told {
            classes,
            condition: condition.map(|condition| self.normalize(condition)),
            vectors: kept_vectors(model, examples.vectors, &draws.keep_condition, &examples.data.device()),
            augment_labels: examples.augment_labels.filter(|_| model.augment_labels()).map(|labels| {
                let b = labels.len() / augment::LABELS;
                from_host(labels, [b, augment::LABELS], &examples.data.device())
            }),
        };
        let learned = model.noise_schedule().is_some() && self.formulation.learned_schedule().is_some();
        let mut levels = self.levels_at(&draws.times);
        if learned {
            levels = Levels { levels: Vec::new(), weights: Vec::new(), ..levels };
        }
        let batch = |x_start: &Tensor<4>, noise| {
            let mut batch = Prepared::new(x_start.clone(), noise, told.clone(), levels.clone());
            batch.x_self_cond = model.self_condition().then(|| self.x_self_cond(model, &batch, draws.self_condition));
            batch
        };
        let x_start = self.normalize(examples.data);
        let noise = self.noise(model, &x_start, &batch, draws);
        batch(&x_start, noise)
    }

    /// The weighted loss of each example of a [prepared](Self::prepare) batch, `[b]`.
    pub fn loss_of<M: Network>(&self, model: &M, batch: &Prepared) -> Tensor<1> {
        let parts = self.noised(model, batch);
        let output = model.predict(parts.network_input(batch.x_self_cond.clone()));
        match self.formulation.output() {
            Output::Prediction => per_example_mean((output - parts.target()).square()) * parts.weight(self),
            Output::Weighted(weights) => weighted_objective::loss(output, weights, &parts),
            Output::WithVariance(variance) => {
                let c = parts.x.dims()[1];
                let (prediction, half) = (output.clone().narrow(1, 0, c), output.narrow(1, c, c));
                let simple = per_example_mean((prediction.clone() - parts.target()).square()) * parts.weight(self);
                let Some(tables) = self.tables() else { return simple };
                let bound = variance.bound(half, parts.x_start_of(prediction), &parts);
                simple + bound * (variance.vb_loss_weight * tables.timesteps() as f64)
            }
        }
    }

    /// The levels at these times.
    pub(super) fn levels_at(&self, times: &[f64]) -> Levels {
        let levels: Vec<NoiseLevel> = times.iter().map(|&time| self.level(time)).collect();
        Levels {
            times: times.to_vec(),
            prediction: self.formulation.prediction(),
            weights: levels.iter().map(|level| self.loss_weight(level)).collect(),
            levels,
            posteriors: self.posteriors(times),
        }
    }

    /// The posteriors at these times, if the variance is learned.
    fn posteriors(&self, times: &[f64]) -> Vec<Posterior> {
        match (self.formulation.output(), self.tables()) {
            (Output::WithVariance(_), Some(tables)) => times.iter().map(|&t| Posterior::at(tables, t)).collect(),
            _ => Vec::new(),
        }
    }

    /// The earlier estimate that a network gets: one made without gradients if `to_be_one`, else zeros.
    fn x_self_cond<M: Network>(&self, model: &M, batch: &Prepared, to_be_one: bool) -> Tensor<4> {
        if !to_be_one {
            return batch.x_start.zeros_like();
        }
        let parts = self.noised(model, batch);
        self.x_start(TrainNoGrad::of(model).predict(parts.network_input(None)), &parts).detach()
    }

    /// The estimate of x_start that a whole output gives.
    fn x_start(&self, output: Tensor<4>, parts: &Parts<'_>) -> Tensor<4> {
        match self.formulation.output() {
            Output::Prediction => parts.x_start_of(output),
            Output::WithVariance(_) => parts.x_start_of(output.narrow(1, 0, parts.x.dims()[1])),
            Output::Weighted(_) => {
                let [skip, out] = [parts.number(Number::CSkip), parts.number(Number::COut)];
                weighted_objective::x_start(output, parts.x.clone(), skip, out)
            }
        }
    }

    fn noised<'a, M: Network>(&self, model: &M, batch: &'a Prepared) -> Parts<'a> {
        let learned = match (model.noise_schedule(), self.formulation.learned_schedule()) {
            (Some(schedule), Some(_)) => {
                let log_snr = schedule.forward(batch.number(Number::FormulationTime));
                let root = |log_snr: Tensor<1>| {
                    let shape = number_shape::<4>(batch.x_start.dims()[0]);
                    burn::tensor::activation::sigmoid(log_snr).sqrt().reshape(shape)
                };
                Some(Learned { alpha: root(log_snr.clone()), sigma: root(-log_snr.clone()), log_snr })
            }
            _ => None,
        };
        self.noised_at(batch, learned)
    }

    /// The batch noised to the given levels of a schedule in training, or to its own.
    pub(super) fn noised_at<'a>(&self, batch: &'a Prepared, learned: Option<Learned>) -> Parts<'a> {
        let (alpha, sigma) = match &learned {
            Some(Learned { alpha, sigma, .. }) => (alpha.clone(), sigma.clone()),
            None => (batch.shaped(Number::Alpha), batch.shaped(Number::Sigma)),
        };
        let x = batch.x_start.clone() * alpha + batch.noise.clone() * sigma;
        Parts { batch, x, learned, prediction: self.formulation.prediction() }
    }

    /// Noise with the offset that was drawn for it, if any.
    pub(super) fn with_offset(&self, noise: &Tensor<4>, draws: &Draws) -> Tensor<4> {
        match &draws.offset_noise {
            Some(offset) => noise.clone() + offset.clone() * self.shared.offset_noise_strength,
            None => noise.clone(),
        }
    }

    /// The noise that x_t and the target share: chosen among the candidates, with the offset added, reassigned within the batch if immiscible.
    fn noise<M: Network>(
        &self,
        model: &M,
        x_start: &Tensor<4>,
        batch: &impl Fn(&Tensor<4>, Tensor<4>) -> Prepared,
        draws: &Draws,
    ) -> Tensor<4> {
        let shared = &self.shared;
        let candidates: Vec<Tensor<4>> = draws.noise.iter().map(|noise| self.with_offset(noise, draws)).collect();
        if let [noise] = &candidates[..] {
            return if shared.immiscible { assigned(x_start, noise.clone()) } else { noise.clone() };
        }
        let probe = TrainNoGrad::of(model);
        let losses: Vec<Vec<f32>> = candidates
            .iter()
            .map(|noise| host_values(self.loss_of::<M>(&probe, &batch(x_start, noise.clone()))))
            .collect();
        let chosen = (0..x_start.dims()[0]).map(|i| {
            let least = (0..losses.len()).min_by(|&a, &b| losses[a][i].total_cmp(&losses[b][i])).unwrap_or(0);
            candidates[least].clone().narrow(0, i, 1)
        });
        Tensor::cat(chosen.collect(), 0)
    }
}

/// The noise of a batch, reassigned by least total distance.
fn assigned(x_start: &Tensor<4>, noise: Tensor<4>) -> Tensor<4> {
    let size = noise.dims()[1..].iter().product();
    let order = least_distance_assignment(&host_values(x_start.clone()), &host_values(noise.clone()), size);
    let order: Vec<i64> = order.into_iter().map(|i| i as i64).collect();
    let b = order.len();
    let order = Tensor::from_data(TensorData::new(order, [b]), &noise.device());
    noise.select(0, order)
}

/// The classes, dropped where the draw is below the network's probability. Only training draws: measurements drop nothing.
fn kept<M: Network>(model: &M, classes: Option<Vec<u32>>, draws: &[f64]) -> Option<Vec<u32>> {
    let mut classes = classes?;
    for (class, draw) in classes.iter_mut().zip(draws) {
        if *draw < model.class_drop_prob() {
            *class = model.num_classes() as u32;
        }
    }
    Some(classes)
}

/// The vectors as network input, unknown where the class would be dropped; `None` for a network that takes none.
fn kept_vectors<M: Network>(model: &M, vectors: Option<Vec<f32>>, draws: &[f64], device: &Device) -> Option<Vectors> {
    let dim = model.vector_dim();
    let rows = vectors.filter(|_| dim > 0)?;
    let given = |i: usize| draws.get(i).is_none_or(|&draw| draw >= model.class_drop_prob());
    Some(Vectors::of_rows(rows, dim, given, device))
}

/// The classes as network input; `None` for a network that takes none.
pub(super) fn classes_tensor(num_classes: usize, classes: Option<&[u32]>, device: &Device) -> Option<Tensor<1, Int>> {
    let classes: Vec<i64> = classes.filter(|_| num_classes > 0)?.iter().map(|&class| class.into()).collect();
    let b = classes.len();
    Some(Tensor::from_data(TensorData::new(classes, [b]), device))
}

/// `[b, 1, ...]`: the shape of one number per example, to multiply a batch of rank `D`.
pub(super) fn number_shape<const D: usize>(b: usize) -> [usize; D] {
    std::array::from_fn(|k| if k == 0 { b } else { 1 })
}

/// One number per example, shaped to multiply a batch of rank `D`.
pub(super) fn per_example<const D: usize>(values: &[f64], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let shape = number_shape(values.len());
    from_host(values, shape, device)
}

/// The mean over everything but the batch axis, `[b]`.
pub(super) fn per_example_mean<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let b = x.dims()[0];
    x.reshape([b as i32, -1]).mean_dim(1).reshape([b])
}
