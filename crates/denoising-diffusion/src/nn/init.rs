//! Initial weights, as PyTorch's layers draw them by default, from our own streams: parameter `k` of a network depends on
//! (seed, k) alone.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

use crate::noise::{Purpose, Stream};

/// Draws the parameters of one network, in the order in which its layers ask for them.
#[derive(Debug)]
pub struct Init {
    seed: u64,
    device: Device,
    drawn: u64,
}

impl Init {
    /// Parameters from `seed` on `device` (an autodiff device for training, a plain one for evaluation alone).
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { seed, device: device.clone(), drawn: 0 }
    }

    /// The device that parameters are made on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn stream(&mut self) -> Stream {
        self.drawn += 1;
        Stream::new(self.seed, Purpose::Init, self.drawn, 0)
    }

    fn parameter<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        let tensor = Tensor::from_data(TensorData::new(values, shape), &self.device);
        let trainable = self.device.is_autodiff();
        Param::initialized(ParamId::new(), if trainable { tensor.require_grad() } else { tensor })
    }

    /// Uniform in `[-1/sqrt(fan_in), 1/sqrt(fan_in)]`: PyTorch's default of linear and convolution layers, weight and bias.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], fan_in: usize) -> Param<Tensor<D>> {
        self.uniform_within(shape, 1.0 / (fan_in as f64).sqrt())
    }

    /// Uniform in `[-bound, bound]`.
    pub fn uniform_within<const D: usize>(&mut self, shape: [usize; D], bound: f64) -> Param<Tensor<D>> {
        let mut stream = self.stream();
        let values = (0..shape.iter().product()).map(|_| ((2.0 * stream.uniform() - 1.0) * bound) as f32).collect();
        self.parameter(values, shape)
    }

    /// Uniform in `[-bound, bound]`, every slice along the first dimension `times` times in a row; `shape[0]` is a multiple of `times`.
    pub fn uniform_repeated<const D: usize>(
        &mut self,
        shape: [usize; D],
        bound: f64,
        times: usize,
    ) -> Param<Tensor<D>> {
        let slice: usize = shape[1..].iter().product();
        let mut stream = self.stream();
        let mut draw = || ((2.0 * stream.uniform() - 1.0) * bound) as f32;
        let slices = (0..shape[0] / times).flat_map(|_| (0..slice).map(|_| draw()).collect::<Vec<_>>().repeat(times));
        let values = slices.collect();
        self.parameter(values, shape)
    }

    /// Standard normal.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.normal_of(shape, 1.0)
    }

    /// Normal with mean 0.
    pub fn normal_of<const D: usize>(&mut self, shape: [usize; D], deviation: f64) -> Param<Tensor<D>> {
        let mut values = vec![0.0; shape.iter().product()];
        self.stream().fill_normal(&mut values);
        values.iter_mut().for_each(|value| *value *= deviation as f32);
        self.parameter(values, shape)
    }

    /// All zeros.
    pub fn zeros<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.parameter(vec![0.0; shape.iter().product()], shape)
    }

    /// All ones.
    pub fn ones<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.parameter(vec![1.0; shape.iter().product()], shape)
    }
}
