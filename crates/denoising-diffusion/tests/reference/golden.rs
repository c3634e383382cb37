//! Reading golden files, and comparing with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion::device::multiplies_in_tf32;
use denoising_diffusion::diffusion::Draws;
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::models::{Unet, UnetConfig};
use denoising_diffusion::nn::{Init, params};
use denoising_diffusion::weights::{HostTensor, StateDict};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

#[path = "../common/device.rs"]
mod device;
pub use device::test_device;

/// How much less exact other devices may be, which sum in other orders and have other exponentials.
const SLACK: f32 = 10.0;
/// And those that multiply matrices with 11 bits of a mantissa in place of 24 (TF32): what is 3e-4 in each product was up to a tenth in the gradients of
/// small networks with many layers.
const SLACK_OF_TF32: f32 = 2000.0;
/// Of a product, and of a loss.
const TOLERANCE_OF_TF32: f32 = 1e-3;

fn in_tf32() -> bool {
    static IN_TF32: OnceLock<bool> = OnceLock::new();
    device::is_elsewhere() && *IN_TF32.get_or_init(|| multiplies_in_tf32(&test_device()))
}

/// What a comparison allows on the device of the tests, where it allows `tolerance` on the CPU.
pub fn allowed(tolerance: f32) -> f32 {
    match device::is_elsewhere() {
        true if in_tf32() => TOLERANCE_OF_TF32.max(SLACK_OF_TF32 * tolerance),
        true => SLACK * tolerance,
        false => tolerance,
    }
}

/// A golden file: tensors as f32, and the configuration in its metadata.
pub struct Golden {
    tensors: BTreeMap<String, HostTensor>,
    /// Those that are f64 in the file, as they are.
    f64s: BTreeMap<String, Vec<f64>>,
    pub config: Value,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::F32 => numbers(view.data(), |b: [u8; 4]| f32::from_le_bytes(b)),
                Dtype::F64 => numbers(view.data(), |b: [u8; 8]| f64::from_le_bytes(b) as f32),
                Dtype::I64 => numbers(view.data(), |b: [u8; 8]| i64::from_le_bytes(b) as f32),
                Dtype::U8 => numbers(view.data(), |b: [u8; 1]| f32::from(b[0])),
                other => panic!("{name} is {other:?}"),
            };
            (name.to_string(), HostTensor { shape: view.shape().to_vec(), values })
        });
        let f64s = file.iter().filter(|(_, view)| view.dtype() == Dtype::F64);
        let f64s = f64s.map(|(name, view)| (name.to_string(), numbers(view.data(), f64::from_le_bytes))).collect();
        let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
        Self { tensors: tensors.collect(), f64s, config: serde_json::from_str(&metadata["config"]).unwrap() }
    }

    pub fn host(&self, name: &str) -> &HostTensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn values(&self, name: &str) -> &[f32] {
        &self.host(name).values
    }

    pub fn values_f64(&self, name: &str) -> Vec<f64> {
        self.f64s.get(name).unwrap_or_else(|| panic!("no f64 tensor {name}")).clone()
    }

    pub fn indices(&self, name: &str) -> Vec<usize> {
        self.values(name).iter().map(|&v| v as usize).collect()
    }

    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let host = self.host(name);
        let shape: [usize; D] = host.shape.clone().try_into().unwrap_or_else(|_| panic!("{name}: {:?}", host.shape));
        Tensor::from_data(TensorData::new(host.values.clone(), shape), device)
    }

    /// `[draws, b, c, h, w]` as one tensor per draw.
    pub fn noises(&self, name: &str, device: &Device) -> Vec<Tensor<4>> {
        self.tensor::<5>(name, device).iter_dim(0).map(|one| one.squeeze_dim(0)).collect()
    }

    /// The tensors under a prefix, without it.
    pub fn under(&self, prefix: &str) -> StateDict {
        let mut state = StateDict::new();
        for (name, tensor) in &self.tensors {
            if let Some(name) = name.strip_prefix(prefix) {
                state.insert(name, tensor.clone());
            }
        }
        state
    }

    /// The U-Net whose options stand under `key`, with the parameters under `prefix`, on `device`.
    pub fn unet(&self, key: &str, prefix: &str, device: &Device) -> Unet {
        let config: UnetConfig = serde_json::from_value(self.config[key].clone()).unwrap();
        let unet = Unet::new(&config, &mut Init::new(0, device)).unwrap();
        params::load_state_dict(unet, &to_ours(&self.under(prefix)).unwrap()).unwrap()
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|chunk| read(chunk.try_into().unwrap())).collect()
}

/// The largest difference of two values: infinite, if one is not a number.
pub fn largest_difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len(), "numbers of values");
    let differences = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, difference| if difference.is_nan() { f32::INFINITY } else { most.max(difference) })
}

/// The largest difference is at most `tolerance * max(1, largest expected value)`.
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
    let worst = largest_difference(got, expected);
    assert!(worst <= allowed(tolerance) * scale, "{what}: differs by {worst:e}, values up to {scale}");
}

/// Each difference is at most `tolerance * max(1, the expected value)`: for numbers of very different size.
pub fn assert_each_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        // Written so that NaN fails.
        assert!((a - b).abs() <= allowed(tolerance) * b.abs().max(1.0), "{what}: {a} in place of {b} at {i}");
    }
}

/// Each difference is at most `tolerance` times the expected value, however small that is.
pub fn assert_relative<T: Copy + Into<f64>>(what: &str, got: &[T], expected: &[T], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let (a, b): (f64, f64) = ((*a).into(), (*b).into());
        assert!((a - b).abs() <= tolerance * b.abs(), "{what}: {a} in place of {b} at {i}");
    }
}

/// Losses, which differ by at most a ten thousandth of their value.
pub fn assert_losses(what: &str, got: &[f32], expected: &[f32]) {
    assert_relative(what, got, expected, if in_tf32() { TOLERANCE_OF_TF32.into() } else { 1e-4 });
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    params::host_values(tensor)
}

/// Draws of these times and candidates of noise, and nothing else.
pub fn draws(times: &[f32], noise: Vec<Tensor<4>>) -> Draws {
    let times = times.iter().map(|&t| t.into()).collect();
    Draws { times, noise, offset_noise: None, self_condition: false, keep_condition: Vec::new() }
}
