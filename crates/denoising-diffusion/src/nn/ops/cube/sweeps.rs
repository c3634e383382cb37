//! The kernels of `optim` on Burn's tensors.

use burn::backend::Cube;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use denoising_diffusion_kernels::optim::AdamStep;

use crate::nn::params::host_values;

use super::optim;

/// One Adam step on parameters: of each, weights, both moments and gradient to the first three after it. All flat, none of them on the tape.
pub fn adam(step: &AdamStep, all: Vec<([Tensor<1>; 3], Tensor<1>)>) -> Vec<[Tensor<1>; 3]> {
    let all = all.into_iter().map(|([w, m, v], gradient)| [w, m, v, gradient].map(primitive)).collect();
    optim::adam(step, all).into_iter().map(|swept| swept.map(tensor::<1>)).collect()
}

/// `average + weight (w - average)` of each pair of flat tensors; `w` itself with a weight of 1.
pub fn lerp(all: Vec<[Tensor<1>; 2]>, weight: f64) -> Vec<Tensor<1>> {
    let all = all.into_iter().map(|pair| pair.map(primitive)).collect();
    optim::lerp(all, weight).into_iter().map(tensor::<1>).collect()
}

/// Flat tensors in another type; those that are of it already stay as they are.
pub fn cast(all: Vec<Tensor<1>>, dtype: DType) -> Vec<Tensor<1>> {
    optim::cast(all.into_iter().map(primitive).collect(), dtype).into_iter().map(tensor::<1>).collect()
}

/// The same values in memory of their own.
pub fn copied(all: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    optim::copied(all.into_iter().map(primitive).collect()).into_iter().map(tensor::<1>).collect()
}

/// The sum of squares of each of these flat tensors. The device is waited for once, not for each of them.
pub fn squared_norms(gradients: &[&Tensor<1>]) -> Vec<f64> {
    let all = gradients.iter().map(|&gradient| primitive(gradient.clone())).collect();
    let Some(squares) = optim::squares(all) else { return Vec::new() };
    let sums = host_values(tensor::<2>(squares.sums));
    let sum = |places: std::ops::Range<usize>| sums[places].iter().map(|&part| f64::from(part)).sum();
    squares.places.into_iter().map(sum).collect()
}

fn primitive(tensor: Tensor<1>) -> CubeTensor {
    tensor.try_into_primitive::<Cube>().expect("asked before whether our kernels can take it")
}

fn tensor<const D: usize>(primitive: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(primitive)
}
