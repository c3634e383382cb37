//! What a network gives and the gradients of its parameters, to be compared with the same computed otherwise.

use burn::tensor::{DType, Device, Int, Tensor};
use denoising_diffusion::data::augment;
use denoising_diffusion::models::{Network, NetworkInput};
use denoising_diffusion::nn::Vectors;
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::train::NamedGradients;

use super::device::test_device;

/// Where networks are trained.
pub fn device() -> Device {
    test_device().autodiff()
}

pub fn noise<const D: usize>(index: u64, dims: [usize; D]) -> Tensor<D> {
    normal_batch(1, Purpose::SampleInit, index, 0, dims, &device())
}

/// Two examples with all that the network can be told.
pub fn input(network: &impl Network, [h, w]: [usize; 2]) -> NetworkInput {
    let (c, told) = (network.channels(), network.condition_channels());
    let vectors = (network.vector_dim() > 0).then(|| {
        let rows = (0..2 * network.vector_dim()).map(|i| (i as f32).sin()).collect();
        Vectors::of_rows(rows, network.vector_dim(), |row| row == 0, &device())
    });
    NetworkInput {
        x: noise(0, [2, c, h, w]),
        time: Tensor::from_floats([3.0, 700.0], &device()),
        x_self_cond: network.self_condition().then(|| noise(2, [2, c, h, w])),
        classes: (network.num_classes() > 0).then(|| Tensor::<1, Int>::from_ints([0, 1], &device())),
        condition: (told > 0).then(|| noise(4, [2, told, h, w])),
        vectors,
        augment_labels: network.augment_labels().then(|| noise(8, [2, augment::LABELS])),
    }
}

/// The output, and the gradients of a sum of it, by parameter.
pub fn outcome(network: &impl Network, size: [usize; 2]) -> Vec<(String, Vec<f32>)> {
    let output = network.predict(input(network, size));
    assert_eq!(output.dtype(), DType::F32);
    let cotangent = noise(6, output.dims());
    let gradients = NamedGradients::take(network, &mut (output.clone() * cotangent).sum().backward());
    let gradients = gradients.iter().map(|(name, gradient)| {
        assert_eq!(gradient.dtype(), DType::F32, "{name}");
        (name.to_string(), host_values(gradient.clone()))
    });
    std::iter::once(("output".to_string(), host_values(output))).chain(gradients).collect()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Checks that each part of an [`outcome`] that was computed otherwise differs by at most `allowed(part, its size, the largest size)`, and returns the
/// differences, relative to the sizes; the output's first.
pub fn assert_close(
    name: &str,
    exact: &[(String, Vec<f32>)],
    other: &[(String, Vec<f32>)],
    allowed: impl Fn(&str, f64, f64) -> f64,
) -> Vec<f64> {
    assert_eq!(exact.len(), other.len(), "{name}: gradients");
    let largest = exact.iter().map(|(_, v)| norm(v.iter().copied())).fold(0.0, f64::max);
    let mut differences = Vec::with_capacity(exact.len());
    for ((what, exact), (also, other)) in exact.iter().zip(other) {
        assert_eq!(what, also, "{name}");
        let difference = norm(exact.iter().zip(other).map(|(a, b)| a - b));
        let size = norm(exact.iter().copied());
        assert!(difference <= allowed(what, size, largest), "{name}, {what}: {difference} of {size}");
        differences.push(difference / size.max(1e-12));
    }
    differences
}
