//! Where tests compute that can do so elsewhere than on the CPU: `just test-device wgpu`.

use burn::tensor::Device;
use denoising_diffusion::device::{DeviceChoice, open};

/// Names another device than the CPU.
const VARIABLE: &str = "DDPM_TEST_DEVICE";

/// Whether tests compute elsewhere than on the CPU.
#[allow(dead_code, reason = "not every test binary asks")]
pub fn is_elsewhere() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Where tests compute.
pub fn test_device() -> Device {
    match std::env::var(VARIABLE) {
        Ok(name) => open(name.parse().unwrap()).unwrap().device,
        Err(_) => open(DeviceChoice::Cpu).unwrap().device,
    }
}
