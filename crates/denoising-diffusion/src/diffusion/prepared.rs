//! A training batch ready for the loss: tensors on the network's device, and the numbers that belong to its noise levels. Not here: how they are
//! drawn and chosen (`process`, `loss`).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Int, Tensor};

use super::denoiser::NoiseLevel;
use super::learned_variance::Posterior;
use super::loss::{number_shape, per_example};
use super::prediction::{Coefficients, Prediction};
use crate::nn::Vectors;
use crate::recording::{Place, other_classes, other_values, other_vectors, place_of_fields};

/// A network's inputs for a batch besides noisy data and levels.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub classes: Option<Tensor<1, Int>>,
    pub condition: Option<Tensor<4>>,
    pub vectors: Option<Vectors>,
    pub augment_labels: Option<Tensor<2>>,
}

/// A number that belongs to an example's noise level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Number {
    /// The formulation's time.
    FormulationTime,
    /// The network's time input.
    Time,
    Alpha,
    Sigma,
    /// Weight of the example's loss.
    Weight,
    CIn,
    CSkip,
    COut,
    TargetXStart,
    TargetNoise,
    LeastLogVariance,
    LargestLogVariance,
    PosteriorXStart,
    PosteriorX,
    IsFirst,
}

/// The noise levels of a batch.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    pub times: Vec<f64>,
    pub prediction: Prediction,
    /// One per example; empty if the schedule is being trained.
    pub levels: Vec<NoiseLevel>,
    /// One per example, or empty likewise.
    pub weights: Vec<f64>,
    /// One per example, if the variance of a step is learned.
    pub posteriors: Vec<Posterior>,
}

impl Levels {
    fn number(&self, number: Number) -> Vec<f64> {
        let level = |of: fn(&NoiseLevel) -> f64| self.levels.iter().map(of).collect();
        let coefficient = |of: fn(Coefficients) -> f64| {
            self.levels.iter().map(|level| of(self.prediction.coefficients(level))).collect()
        };
        let posterior = |of: fn(&Posterior) -> f64| self.posteriors.iter().map(of).collect();
        match number {
            Number::FormulationTime => self.times.clone(),
            Number::Time => level(|level| level.time),
            Number::Alpha => level(|level| level.alpha),
            Number::Sigma => level(|level| level.sigma),
            Number::Weight => self.weights.clone(),
            Number::CIn => coefficient(|at| at.c_in),
            Number::CSkip => coefficient(|at| at.c_skip),
            Number::COut => coefficient(|at| at.c_out),
            Number::TargetXStart => coefficient(|at| at.target_x_start),
            Number::TargetNoise => coefficient(|at| at.target_noise),
            Number::LeastLogVariance => posterior(|posterior| posterior.least_log_variance),
            Number::LargestLogVariance => posterior(|posterior| posterior.largest_log_variance),
            Number::PosteriorXStart => posterior(|posterior| posterior.of_x_start),
            Number::PosteriorX => posterior(|posterior| posterior.of_x),
            Number::IsFirst => posterior(|posterior| f64::from(u8::from(posterior.is_first))),
        }
    }
}

/// A prepared batch, see [`Diffusion::prepare`](super::Diffusion::prepare).
#[derive(Debug)]
pub struct Prepared {
    pub(super) x_start: Tensor<4>,
    pub(super) noise: Tensor<4>,
    pub(super) told: Told,
    /// The network's own estimate, or zeros, for networks that take one.
    pub(super) x_self_cond: Option<Tensor<4>>,
    levels: Levels,
    /// The numbers requested so far, `[b]`.
    numbers: Mutex<BTreeMap<Number, Tensor<1>>>,
}

impl Prepared {
    pub(super) fn new(x_start: Tensor<4>, noise: Tensor<4>, told: Told, levels: Levels) -> Self {
        Self { x_start, noise, told, x_self_cond: None, levels, numbers: Mutex::default() }
    }

    /// A batch like this one, with other data, and of which a network is told and shown other things. Noise and its levels are for whoever draws them:
    /// made up, they might not be those of a formulation.
    pub(crate) fn with_other_data(self) -> Self {
        let Told { classes, condition, vectors, augment_labels } = &self.told;
        Self {
            x_start: other_values(&self.x_start),
            told: Told {
                classes: classes.as_ref().map(other_classes),
                condition: condition.as_ref().map(other_values),
                vectors: vectors.as_ref().map(other_vectors),
                augment_labels: augment_labels.as_ref().map(other_values),
            },
            x_self_cond: self.x_self_cond.as_ref().map(other_values),
            ..self
        }
    }

    /// A number of each example, `[b]`: the same tensor on every call.
    pub(super) fn number(&self, number: Number) -> Tensor<1> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = || per_example(&self.levels.number(number), &self.x_start.device());
        numbers.entry(number).or_insert_with(tensor).clone()
    }

    /// The same number, `[b, 1, 1, 1]`.
    pub(super) fn shaped(&self, number: Number) -> Tensor<4> {
        self.number(number).reshape(number_shape::<4>(self.x_start.dims()[0]))
    }
}

impl Place for Prepared {
    fn in_own_memory(&self) -> Self {
        let (x_start, noise) = (self.x_start.in_own_memory(), self.noise.in_own_memory());
        let own = Self::new(x_start, noise, self.told.in_own_memory(), self.levels.clone());
        Self { x_self_cond: self.x_self_cond.in_own_memory(), ..own }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.x_start.is_like(&other.x_start)
            && self.told.is_like(&other.told)
            && self.x_self_cond.is_like(&other.x_self_cond)
    }

    fn take_over(&mut self, other: &Self) {
        self.x_start.take_over(&other.x_start);
        self.noise.take_over(&other.noise);
        self.told.take_over(&other.told);
        self.x_self_cond.take_over(&other.x_self_cond);
        self.levels = other.levels.clone();
        for (number, own) in self.numbers.get_mut().unwrap_or_else(PoisonError::into_inner) {
            own.take_over(&other.number(*number));
        }
    }
}

place_of_fields!(Told { classes, condition, vectors, augment_labels });

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::nn::params::host_values;

    fn batch(size: usize, value: f32, classes: Option<i64>, condition: bool) -> Prepared {
        let device = Device::flex();
        let data = || Tensor::full([size, 1, 2, 2], value, &device);
        let classes = classes.map(|class| Tensor::from_data(TensorData::new(vec![class; size], [size]), &device));
        let level = NoiseLevel { alpha: f64::from(value), sigma: 0.5, time: 0.0 };
        let levels = Levels {
            times: vec![0.0; size],
            prediction: Prediction::Noise,
            levels: vec![level; size],
            weights: vec![1.0; size],
            posteriors: Vec::new(),
        };
        let told = Told { classes, condition: condition.then(data), vectors: None, augment_labels: None };
        Prepared::new(data(), data(), told, levels)
    }

    #[test]
    fn what_belongs_to_one_batch_alone_makes_it_another_kind() {
        let with_class = batch(2, 1.0, Some(1), false);
        assert!(with_class.is_like(&batch(2, 3.0, Some(0), false)));
        for other in [
            batch(3, 1.0, Some(1), false),
            batch(2, 1.0, None, false),
            batch(2, 1.0, Some(1), true),
            Prepared { x_self_cond: Some(with_class.noise.clone()), ..batch(2, 1.0, Some(1), false) },
        ] {
            assert!(!with_class.is_like(&other) && !other.is_like(&with_class));
        }
    }

    #[test]
    fn recordings_are_tried_with_batches_that_differ_in_everything() {
        let with_all = || {
            let batch = batch(2, 0.5, Some(1), true);
            let vectors = Some(Vectors::of_rows(vec![0.0; 4], 2, |i| i == 0, &Device::flex()));
            let x_self_cond = Some(batch.noise.clone());
            let augment_labels = Some(Tensor::zeros([2, 9], &Device::flex()));
            Prepared { told: Told { vectors, augment_labels, ..batch.told.clone() }, x_self_cond, ..batch }
        };
        let (own, other) = (with_all(), with_all().with_other_data());
        assert!(own.is_like(&other));
        let values = |batch: &Prepared| {
            let Told { classes, condition, vectors, augment_labels } = batch.told.clone();
            let vectors = vectors.unwrap();
            let of_data = [batch.x_start.clone(), batch.x_self_cond.clone().unwrap(), condition.unwrap()];
            let of_data = of_data.map(host_values).concat();
            let labels = [augment_labels.unwrap(), vectors.values, vectors.given].map(host_values).concat();
            [of_data, host_values(classes.unwrap().float()), labels].concat()
        };
        let (own, other) = (values(&own), values(&other));
        assert!(own.iter().zip(&other).all(|(own, other)| own != other), "{own:?} {other:?}");
    }

    #[test]
    fn a_batch_takes_over_all_of_another() {
        let (mut own, other) = (batch(2, 1.0, Some(1), true).in_own_memory(), batch(2, 3.0, Some(2), true));
        assert_eq!(host_values(own.number(Number::Alpha)), [1.0; 2]);
        own.take_over(&other);
        let values = |batch: &Prepared| {
            let classes = batch.told.classes.clone().unwrap().float();
            let condition = batch.told.condition.clone().unwrap();
            let numbers = [Number::Alpha, Number::Weight].map(|number| host_values(batch.number(number)));
            let data = [batch.x_start.clone(), batch.noise.clone(), condition].map(host_values);
            (host_values(classes), data, numbers)
        };
        assert_eq!(values(&own), values(&other));
    }
}
