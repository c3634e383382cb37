//! What a program keeps of its kernels between runs does not change what it computes. By itself in its process: where that is kept is said once,
//! before a device is opened.
#![cfg(feature = "persistence")]

#[path = "common/device.rs"]
mod device;

use burn::tensor::{Device, Tensor};
use denoising_diffusion::device::{keep_kernels_in, multiplies_in_tf32};
use denoising_diffusion::models::{Network, NetworkInput, Unet, UnetConfig};
use denoising_diffusion::nn::{EvalMode, Init};
use denoising_diffusion::noise::{Purpose, normal_batch};

/// A U-Net has normalisations with a bias, with a residual and with both, which are kernels of one name.
#[test]
fn networks_are_those_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    keep_kernels_in(folder.path()).unwrap();
    let (cpu, device) = (Device::flex(), device::test_device());
    let x = normal_batch::<4>(0, Purpose::Evaluation, 0, 0, [2, 1, 8, 8], &cpu).into_data();
    let outputs = |device: &Device| {
        let config = UnetConfig { dim: 8, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
        let unet = Unet::new(&config, &mut Init::new(1, device)).unwrap().eval();
        let (x, time) = (Tensor::from_data(x.clone(), device), Tensor::from_floats([1.0, 700.0], device));
        let output: Tensor<4> = unet.predict(NetworkInput::new(x, time));
        output.into_data().try_into_vec::<f32>().unwrap()
    };
    let tolerance = if multiplies_in_tf32(&device) { 2e-2 } else { 1e-4 };
    for (got, expected) in outputs(&device).into_iter().zip(outputs(&cpu)) {
        assert!((got - expected).abs() < tolerance, "{got}, {expected}");
    }
}
