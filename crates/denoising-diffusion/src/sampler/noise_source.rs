//! Sources of noise for samplers.

use burn::tensor::{Device, Tensor};

use crate::noise::{Purpose, normal_batch};

/// Standard normal noise, by step.
pub trait NoiseSource<const D: usize> {
    /// The noise that step `index` adds to a batch of shape `dims`.
    fn step(&mut self, index: usize, dims: [usize; D]) -> Tensor<D>;
}

/// Noise of samples number `first`, `first + 1`, ... of a seed: independent of the batch size.
#[derive(Clone, Debug)]
pub struct SeededNoise {
    seed: u64,
    first: u64,
    device: Device,
}

impl SeededNoise {
    pub fn new(seed: u64, first: u64, device: &Device) -> Self {
        Self { seed, first, device: device.clone() }
    }

    /// The initial noise, x_T.
    pub fn init<const D: usize>(&self, dims: [usize; D]) -> Tensor<D> {
        normal_batch(self.seed, Purpose::SampleInit, self.first, 0, dims, &self.device)
    }
}

impl<const D: usize> NoiseSource<D> for SeededNoise {
    fn step(&mut self, index: usize, dims: [usize; D]) -> Tensor<D> {
        normal_batch(self.seed, Purpose::SampleStep, self.first, index as u32, dims, &self.device)
    }
}

/// Noise given as a list, one tensor per step.
impl<const D: usize> NoiseSource<D> for &[Tensor<D>] {
    fn step(&mut self, index: usize, _: [usize; D]) -> Tensor<D> {
        self[index].clone()
    }
}
