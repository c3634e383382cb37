//! A batch of training as the loss takes it: tensors on the network's device, and the numbers that its noise levels come with. Not here: how they are
//! drawn and chosen (`process`, `loss`).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Int, Tensor};

use super::denoiser::NoiseLevel;
use super::loss::per_example;
use super::prediction::Prediction;
use crate::nn::Vectors;

/// What a network is told of a batch beside levels of noise.
#[derive(Clone, Debug)]
pub(super) struct Told<const D: usize> {
    pub classes: Option<Tensor<1, Int>>,
    pub condition: Option<Tensor<D>>,
    pub vectors: Option<Vectors>,
}

/// A number that an example's noise level comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Number {
    /// What the network is told.
    Time,
    Alpha,
    Sigma,
    /// Of the example's loss.
    Weight,
    CIn,
    CSkip,
    COut,
    TargetXStart,
    TargetNoise,
}

/// The noise levels of a batch.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    pub times: Vec<f64>,
    pub prediction: Prediction,
    /// Of each example; of none, where the schedule is being trained.
    pub levels: Vec<NoiseLevel>,
    /// Of each example, likewise.
    pub weights: Vec<f64>,
}

impl Levels {
    fn number(&self, number: Number) -> Vec<f64> {
        let of = |(level, &weight): (&NoiseLevel, &f64)| {
            let coefficients = || self.prediction.coefficients(level);
            match number {
                Number::Time => level.time,
                Number::Alpha => level.alpha,
                Number::Sigma => level.sigma,
                Number::Weight => weight,
                Number::CIn => coefficients().c_in,
                Number::CSkip => coefficients().c_skip,
                Number::COut => coefficients().c_out,
                Number::TargetXStart => coefficients().target_x_start,
                Number::TargetNoise => coefficients().target_noise,
            }
        };
        self.levels.iter().zip(&self.weights).map(of).collect()
    }
}

/// See [`Diffusion::prepare`](super::Diffusion::prepare).
#[derive(Debug)]
pub struct Prepared<const D: usize> {
    pub(super) x_start: Tensor<D>,
    pub(super) noise: Tensor<D>,
    pub(super) told: Told<D>,
    /// Whether the network is given an estimate of its own.
    pub(super) self_condition: bool,
    levels: Levels,
    /// Those that were asked for, `[b]`.
    numbers: Mutex<BTreeMap<Number, Tensor<1>>>,
}

impl<const D: usize> Prepared<D> {
    pub(super) fn new(
        x_start: Tensor<D>,
        noise: Tensor<D>,
        told: Told<D>,
        levels: Levels,
        self_condition: bool,
    ) -> Self {
        Self { x_start, noise, told, self_condition, levels, numbers: Mutex::default() }
    }

    /// The same values in memory that nobody else holds.
    pub(crate) fn in_own_memory(&self) -> Self {
        let told = Told {
            classes: self.told.classes.as_ref().map(own_classes),
            condition: self.told.condition.as_ref().map(own),
            vectors: self.told.vectors.as_ref().map(|v| Vectors { values: own(&v.values), given: own(&v.given) }),
        };
        Self::new(own(&self.x_start), own(&self.noise), told, self.levels.clone(), self.self_condition)
    }

    /// Whether both have the same tensors, of the same shapes.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let shapes = |batch: &Self| {
            let Told { classes, condition, vectors } = &batch.told;
            let classes = classes.as_ref().map(Tensor::dims);
            let condition = condition.as_ref().map(Tensor::dims);
            (batch.x_start.dims(), classes, condition, vectors.as_ref().map(|vectors| vectors.values.dims()))
        };
        shapes(self) == shapes(other) && self.self_condition == other.self_condition
    }

    /// Becomes `other`, which is [like](Self::is_like) it; all tensors stay where they lie if nobody else holds them.
    pub(crate) fn take_over(&mut self, other: &Self) {
        assign(&mut self.x_start, &other.x_start);
        assign(&mut self.noise, &other.noise);
        if let (Some(own), Some(other)) = (&mut self.told.classes, &other.told.classes) {
            assign_classes(own, other);
        }
        if let (Some(own), Some(other)) = (&mut self.told.condition, &other.told.condition) {
            assign(own, other);
        }
        if let (Some(own), Some(other)) = (&mut self.told.vectors, &other.told.vectors) {
            assign(&mut own.values, &other.values);
            assign(&mut own.given, &other.given);
        }
        self.levels = other.levels.clone();
        for (number, own) in self.numbers.get_mut().unwrap_or_else(PoisonError::into_inner) {
            assign(own, &other.number(*number));
        }
    }

    /// The formulation's time of each example.
    pub(super) fn times(&self) -> &[f64] {
        &self.levels.times
    }

    /// A number of each example, `[b]`: the same tensor each time.
    pub(super) fn number(&self, number: Number) -> Tensor<1> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = || per_example(&self.levels.number(number), &self.x_start.device());
        numbers.entry(number).or_insert_with(tensor).clone()
    }

    /// The same, `[b, 1, ...]`.
    pub(super) fn shaped(&self, number: Number) -> Tensor<D> {
        let b = self.x_start.dims()[0];
        self.number(number).reshape(std::array::from_fn::<_, D, _>(|k| if k == 0 { b } else { 1 }))
    }
}

/// The same values in memory that nobody else holds.
fn own<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    let mut own = tensor.zeros_like();
    assign(&mut own, tensor);
    own
}

/// In place, if nobody else holds `to`.
fn assign<const D: usize>(to: &mut Tensor<D>, from: &Tensor<D>) {
    let all: [_; D] = from.dims().map(|size| 0..size);
    to.inplace(|to| to.slice_assign(all, from.clone()));
}

fn own_classes(classes: &Tensor<1, Int>) -> Tensor<1, Int> {
    let mut own = classes.zeros_like();
    assign_classes(&mut own, classes);
    own
}

fn assign_classes(to: &mut Tensor<1, Int>, from: &Tensor<1, Int>) {
    to.inplace(|to| to.slice_assign(0..from.dims()[0], from.clone()));
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::nn::params::host_values;

    fn batch(size: usize, value: f32, classes: Option<i64>, condition: bool) -> Prepared<4> {
        let device = Device::flex();
        let data = || Tensor::full([size, 1, 2, 2], value, &device);
        let classes = classes.map(|class| Tensor::from_data(TensorData::new(vec![class; size], [size]), &device));
        let level = NoiseLevel { alpha: f64::from(value), sigma: 0.5, time: 0.0 };
        let levels = Levels {
            times: vec![0.0; size],
            prediction: Prediction::Noise,
            levels: vec![level; size],
            weights: vec![1.0; size],
        };
        let told = Told { classes, condition: condition.then(data), vectors: None };
        Prepared::new(data(), data(), told, levels, false)
    }

    #[test]
    fn what_belongs_to_one_batch_alone_makes_it_another_kind() {
        let with_class = batch(2, 1.0, Some(1), false);
        assert!(with_class.is_like(&batch(2, 3.0, Some(0), false)));
        for other in [
            batch(3, 1.0, Some(1), false),
            batch(2, 1.0, None, false),
            batch(2, 1.0, Some(1), true),
            Prepared { self_condition: true, ..batch(2, 1.0, Some(1), false) },
        ] {
            assert!(!with_class.is_like(&other) && !other.is_like(&with_class));
        }
    }

    #[test]
    fn a_batch_takes_over_all_of_another() {
        let (mut own, other) = (batch(2, 1.0, Some(1), true).in_own_memory(), batch(2, 3.0, Some(2), true));
        assert_eq!(host_values(own.number(Number::Alpha)), [1.0; 2]);
        own.take_over(&other);
        let values = |batch: &Prepared<4>| {
            let classes = batch.told.classes.clone().unwrap().float();
            let condition = batch.told.condition.clone().unwrap();
            let numbers = [Number::Alpha, Number::Weight].map(|number| host_values(batch.number(number)));
            let data = [batch.x_start.clone(), batch.noise.clone(), condition].map(host_values);
            (host_values(classes), data, numbers)
        };
        assert_eq!(values(&own), values(&other));
    }
}
