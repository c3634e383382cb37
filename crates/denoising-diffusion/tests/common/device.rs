//! Where tests compute that can do so elsewhere than on the CPU: `just test-device wgpu`.

use burn::tensor::Device;
use denoising_diffusion::device::{DeviceChoice, open};

/// Names another device than the CPU.
const VARIABLE: &str = "DDPM_TEST_DEVICE";

fn named() -> DeviceChoice {
    std::env::var(VARIABLE).map_or(DeviceChoice::Cpu, |name| name.parse().unwrap())
}

/// Whether tests compute elsewhere than on the CPU.
#[allow(dead_code, reason = "not every test binary asks")]
pub fn is_elsewhere() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Where tests compute.
pub fn test_device() -> Device {
    open(named()).unwrap().device
}

/// The one after it, if there is another of its kind.
#[allow(dead_code, reason = "not every test binary asks")]
pub fn second_device() -> Option<Device> {
    let DeviceChoice::Gpu { backend, index } = named() else { return None };
    open(DeviceChoice::Gpu { backend, index: index + 1 }).ok().map(|opened| opened.device)
}
