//! Initial weights, distributed as in PyTorch's layers, from our own streams: parameter `k` of a network depends only on (seed, k).

use std::collections::BTreeMap;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

use crate::noise::{Purpose, Stream};

/// Draws the parameters of one network, in the order in which its layers request them.
#[derive(Debug)]
pub struct Init {
    seed: u64,
    device: Device,
    drawn: u64,
    values: u64,
    /// Of the parameters that were only counted.
    shapes: BTreeMap<ParamId, Vec<usize>>,
    work: Work,
}

/// What is done when a layer requests a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Draw,
    /// It is all zeros.
    Zero,
    /// Its values are only counted; it stays empty.
    Count,
}

impl Init {
    /// Parameters from `seed` on `device` (an autodiff device for training, a plain one for evaluation only).
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { seed, device: device.clone(), drawn: 0, values: 0, shapes: BTreeMap::new(), work: Work::Draw }
    }

    /// Makes networks whose parameters are all zeros, because those of a file take their place.
    pub fn zeros_for_loading(device: &Device) -> Self {
        Self { work: Work::Zero, ..Self::new(0, device) }
    }

    /// Makes networks with empty parameters, to count the [values](Self::values) that they would have. Such a network cannot be run.
    pub fn counting() -> Self {
        Self { work: Work::Count, ..Self::new(0, &Device::flex()) }
    }

    /// The device that parameters are made on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of values of all parameters so far, [`u64::MAX`] if there are more.
    pub fn values(&self) -> u64 {
        self.values
    }

    /// The shape that a parameter which was only counted would have.
    pub(super) fn shape_of(&self, parameter: ParamId) -> Option<&[usize]> {
        self.shapes.get(&parameter).map(Vec::as_slice)
    }

    /// A parameter with values from `fill`, which is given their number.
    fn parameter<const D: usize>(
        &mut self,
        shape: [usize; D],
        fill: impl FnOnce(&mut Stream, usize) -> Vec<f32>,
    ) -> Param<Tensor<D>> {
        let count = shape.iter().fold(1, |count: usize, &side| count.saturating_mul(side));
        self.drawn += 1;
        self.values = self.values.saturating_add(count as u64);
        let id = ParamId::new();
        let (values, shape) = match self.work {
            Work::Draw => (fill(&mut Stream::new(self.seed, Purpose::Init, self.drawn, 0), count), shape),
            Work::Zero => (vec![0.0; count], shape),
            Work::Count => {
                self.shapes.insert(id, shape.to_vec());
                (Vec::new(), [0; D])
            }
        };
        let tensor = Tensor::from_data(TensorData::new(values, shape), &self.device);
        let trainable = self.device.is_autodiff();
        Param::initialized(id, if trainable { tensor.require_grad() } else { tensor })
    }

    /// Uniform in `[-1/sqrt(fan_in), 1/sqrt(fan_in)]`: PyTorch's default for weights and biases of linear layers and convolutions.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], fan_in: usize) -> Param<Tensor<D>> {
        self.uniform_within(shape, 1.0 / (fan_in as f64).sqrt())
    }

    /// Uniform in `[-bound, bound]`.
    pub fn uniform_within<const D: usize>(&mut self, shape: [usize; D], bound: f64) -> Param<Tensor<D>> {
        self.parameter(shape, |stream, count| (0..count).map(|_| within(stream, bound)).collect())
    }

    /// Uniform in `[-bound, bound]`, with every slice along the first dimension repeated `times` times in a row; `shape[0]` is a multiple of `times`.
    pub fn uniform_repeated<const D: usize>(
        &mut self,
        shape: [usize; D],
        bound: f64,
        times: usize,
    ) -> Param<Tensor<D>> {
        self.parameter(shape, |stream, _| {
            let slice: usize = shape[1..].iter().product();
            let mut slices = Vec::new();
            for _ in 0..shape[0] / times {
                slices.extend((0..slice).map(|_| within(stream, bound)).collect::<Vec<_>>().repeat(times));
            }
            slices
        })
    }

    /// Standard normal.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.normal_of(shape, 1.0)
    }

    /// Normal with mean 0.
    pub fn normal_of<const D: usize>(&mut self, shape: [usize; D], deviation: f64) -> Param<Tensor<D>> {
        self.parameter(shape, |stream, count| {
            let mut values = vec![0.0; count];
            stream.fill_normal(&mut values);
            values.iter_mut().for_each(|value| *value *= deviation as f32);
            values
        })
    }

    /// All zeros.
    pub fn zeros<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.same(shape, 0.0)
    }

    /// All ones.
    pub fn ones<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.same(shape, 1.0)
    }

    /// Takes no number of a stream, so that later parameters do not depend on it.
    fn same<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        let drawn = self.drawn;
        let parameter = self.parameter(shape, |_, count| vec![value; count]);
        self.drawn = drawn;
        parameter
    }
}

fn within(stream: &mut Stream, bound: f64) -> f32 {
    ((2.0 * stream.uniform() - 1.0) * bound) as f32
}
