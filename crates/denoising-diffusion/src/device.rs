//! Devices: which ones this build and this machine have, their names, and opening one. Not here: what runs on them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn::tensor::{Device, FloatDType, Tensor};
use denoising_diffusion_kernels::multiplies_bf16;
use thiserror::Error;

/// Interfaces for programming GPUs. Each is a cargo feature of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Cuda,
    Rocm,
    Metal,
    Vulkan,
    /// Any graphics API of the system.
    Wgpu,
}

impl Backend {
    /// All backends, in order of preference.
    pub const ALL: [Self; 5] = [Self::Cuda, Self::Rocm, Self::Metal, Self::Vulkan, Self::Wgpu];

    /// The name in `--device` and of the cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
        }
    }

    /// Whether it is part of this build.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Wgpu => cfg!(feature = "wgpu"),
        }
    }

    /// The devices of this backend on this machine, none of them opened; an error if the backend is not part of this build.
    fn compiled_devices(self) -> Result<Vec<Device>, DeviceError> {
        if self.is_compiled() { Ok(self.devices()) } else { Err(DeviceError::NotCompiled(self.name())) }
    }

    /// The names of its devices beside them.
    fn numbered(self, devices: Vec<Device>) -> impl Iterator<Item = (Device, DeviceChoice)> {
        let name = move |(index, device)| (device, DeviceChoice::Gpu { backend: self, index });
        devices.into_iter().enumerate().map(name)
    }

    /// The devices of this backend on this machine; empty without a driver.
    fn devices(self) -> Vec<Device> {
        let found = catch_unwind(|| match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec(),
            #[cfg(feature = "rocm")]
            Self::Rocm => Device::enumerate(burn::tensor::DeviceType::Rocm).into_vec(),
            #[cfg(feature = "metal")]
            Self::Metal => Device::enumerate(burn::tensor::DeviceType::Metal).into_vec(),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Device::enumerate(burn::tensor::DeviceType::Vulkan).into_vec(),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec(),
            #[allow(unreachable_patterns, reason = "all backends may be compiled in")]
            _ => Vec::new(),
        });
        found.unwrap_or_default()
    }
}

/// A device as named by `--device`: `auto`, `cpu`, `cuda`, `vulkan:1`, ...
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that works, else the CPU.
    #[default]
    Auto,
    Cpu,
    Gpu {
        backend: Backend,
        index: usize,
    },
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu { backend, index } => write!(f, "{}:{index}", backend.name()),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { found: text.to_owned() };
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            (name, index) => {
                let backend = Backend::ALL.into_iter().find(|backend| backend.name() == name).ok_or_else(unknown)?;
                Ok(Self::Gpu { backend, index: index.unwrap_or(0) })
            }
        }
    }
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    #[error(
        "`{found}` is not a device; expected auto, cpu, or one of cuda, rocm, metal, vulkan and wgpu, with a number if there are several (cuda:1)"
    )]
    Unknown { found: String },
    #[error("this build does not support {0}: build with `--features {0}`")]
    NotCompiled(&'static str),
    #[error("{backend} finds {} on this machine", devices_in_words(*found))]
    NotThere { backend: &'static str, found: usize },
    #[error("{device} does not work: {reason}")]
    Broken { device: String, reason: String },
}

fn devices_in_words(count: usize) -> String {
    match count {
        0 => "no device".into(),
        1 => "one device, number 0,".into(),
        n => format!("{n} devices, numbers 0 to {},", n - 1),
    }
}

/// A device of this machine.
#[derive(Clone, Debug)]
pub struct Opened {
    pub device: Device,
    /// `cpu`, `cuda:0`, ...
    pub choice: DeviceChoice,
    /// The hardware's own name, if it has one.
    pub hardware: Option<String>,
    /// GPUs that [`DeviceChoice::Auto`] would have chosen if they worked.
    pub passed_over: Vec<DeviceError>,
}

/// The memory of a device, shared by all processes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    pub free: u64,
    pub total: u64,
}

impl Opened {
    /// The device's memory, if its driver reports it: on CUDA.
    pub fn memory(&self) -> Option<DeviceMemory> {
        match self.choice {
            #[cfg(feature = "cuda")]
            DeviceChoice::Gpu { backend: Backend::Cuda, index } => catch_unwind(|| {
                let (free, total) = cudarc::driver::CudaContext::new(index).ok()?.mem_get_info().ok()?;
                Some(DeviceMemory { free: free as u64, total: total as u64 })
            })
            .ok()
            .flatten(),
            _ => None,
        }
    }

    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::flex(), choice: DeviceChoice::Cpu, hardware: None, passed_over: Vec::new() }
    }

    /// `vulkan:0 (llvmpipe)`.
    pub fn in_words(&self) -> String {
        match &self.hardware {
            Some(hardware) => format!("{} ({hardware})", self.choice),
            None => self.choice.to_string(),
        }
    }
}

/// Stores what a GPU's first steps take minutes to find out (which of several kernels is the fastest for a shape) in a folder, for later runs of any
/// program that uses the same folder. Must be called before a device is opened. Returns the file, which exists once something was stored; `None` in
/// a build without the feature `persistence`. A file that cannot be written is ignored, and everything is found out again.
pub fn keep_kernels_in(folder: &Path) -> Option<PathBuf> {
    #[cfg(feature = "persistence")]
    {
        use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
        use burn_cubecl::cubecl::environment;
        // Set here, as the configuration that is otherwise read at the first use of a device also names a folder, and would take precedence.
        // Compiled kernels are not stored, whatever the user's configuration says: CubeCL 0.11 looks them up by a hash that does not distinguish
        // which of several optional buffers a kernel has, so that a normalisation with a bias was run in place of one with a residual.
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = false;
        // Refused if it was set or read before.
        let _ = CubeClRuntimeConfig::try_set(config);
        environment::set_root(folder);
        Some(environment::path())
    }
    #[cfg(not(feature = "persistence"))]
    {
        let _ = folder;
        None
    }
}

/// Runs `work` on a thread of rayon's pool: from any other thread, each of its parallel loops would wait for a pool thread to wake up.
pub(crate) fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    one_stream();
    rayon::scope(|_| work())
}

/// Makes all work on a GPU from now on run in the order in which it was submitted, whichever threads submitted it. By default CubeCL 0.11 has a
/// queue of work per thread, and memory that one thread changes in place can be read by another thread before it is changed.
fn one_stream() {
    #[cfg(feature = "cube")]
    cubecl_environment::stream::set_policy(cubecl_environment::stream::StreamPolicy::Single);
}

/// Opens a device and computes something on it, so that a device that does not work is detected before any other work is done. Other devices are left
/// alone: they may be somebody else's, or hang.
///
/// # Errors
/// A device that this build or this machine does not have, or that fails.
pub fn open(choice: DeviceChoice) -> Result<Opened, DeviceError> {
    one_stream();
    choose(choice, Backend::compiled_devices, try_out)
}

/// See [`open`]. Of what `devices` lists, only as many are tried out as it takes.
fn choose(
    choice: DeviceChoice,
    devices: impl Fn(Backend) -> Result<Vec<Device>, DeviceError>,
    mut try_out: impl FnMut(Device, DeviceChoice) -> Result<Opened, DeviceError>,
) -> Result<Opened, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Opened::cpu()),
        DeviceChoice::Auto => {
            let all =
                Backend::ALL.into_iter().flat_map(|backend| backend.numbered(devices(backend).unwrap_or_default()));
            let mut passed_over = Vec::new();
            let mut working = all
                .filter_map(|(device, choice)| try_out(device, choice).map_err(|broken| passed_over.push(broken)).ok());
            let opened = working.find(|gpu| !gpu.is_software()).unwrap_or_else(Opened::cpu);
            Ok(Opened { passed_over, ..opened })
        }
        DeviceChoice::Gpu { backend, index } => {
            let mut found = devices(backend)?;
            if index >= found.len() {
                return Err(DeviceError::NotThere { backend: backend.name(), found: found.len() });
            }
            try_out(found.swap_remove(index), choice)
        }
    }
}

/// The devices of a backend, each opened and tested.
///
/// # Errors
/// [`DeviceError::NotCompiled`]. Devices that fail are errors in the list.
pub fn list(backend: Backend) -> Result<Vec<Result<Opened, DeviceError>>, DeviceError> {
    one_stream();
    let devices = backend.numbered(backend.compiled_devices()?);
    Ok(devices.map(|(device, choice)| try_out(device, choice)).collect())
}

impl Opened {
    /// Whether this is a CPU presented as a GPU, such as Mesa's llvmpipe: it is slower than the CPU itself, and never chosen automatically.
    fn is_software(&self) -> bool {
        let software = ["llvmpipe", "lavapipe", "SwiftShader", "WARP", "Microsoft Basic Render"];
        self.hardware.as_ref().is_some_and(|name| software.iter().any(|known| name.contains(known)))
    }
}

/// Tests a device, catching panics: drivers and their compilers fail with them. An exponential is a function that GPUs have in a library.
fn try_out(device: Device, choice: DeviceChoice) -> Result<Opened, DeviceError> {
    let sum = || Tensor::<1>::from_floats([0.0, std::f32::consts::LN_2], &device).exp().sum().into_scalar::<f32>();
    let reason = match catch_unwind(AssertUnwindSafe(sum)) {
        Ok(sum) if (sum - 3.0).abs() < 1e-3 => {
            let hardware = hardware(&device);
            return Ok(Opened { device, choice, hardware, passed_over: Vec::new() });
        }
        Ok(other) => format!("e^0 + e^(ln 2) gives {other}"),
        Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => in_short(text),
            (None, Some(text)) => in_short(text),
            (None, None) => "its driver fails".into(),
        },
    };
    Err(DeviceError::Broken { device: choice.to_string(), reason })
}

/// What a panic says, on one line.
fn in_short(panic: &str) -> String {
    if panic.contains("libdevice") {
        return "kernels need a file of the CUDA toolkit, nvvm/libdevice/libdevice.10.bc, which is neither below $CUDA_PATH nor below \
                /usr/local/cuda (it is also in the Python package nvidia-cuda-nvcc-cu12)"
            .into();
    }
    panic.replace('\n', " ")
}

#[cfg(any(feature = "cuda", feature = "rocm", feature = "metal", feature = "vulkan", feature = "wgpu"))]
fn hardware(device: &Device) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| device.identity())).ok().flatten().map(|identity| identity.name)
}

#[cfg(not(any(feature = "cuda", feature = "rocm", feature = "metal", feature = "vulkan", feature = "wgpu")))]
fn hardware(_: &Device) -> Option<String> {
    None
}

/// Whether f32 matrices are multiplied in TF32, which has an 11-bit mantissa, on a device: Burn does so if the GPU's tensor cores can.
pub fn multiplies_in_tf32(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return crate::nn::ops::cube::multiplies_in_tf32(device);
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

/// Bytes of the largest tensor that a device can hold, if it has such a limit.
pub(crate) fn largest_tensor(device: &Device) -> Option<u64> {
    #[cfg(feature = "cube")]
    return crate::nn::ops::cube::largest_tensor(device);
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        None
    }
}

/// Whether a device computes in bf16 with sums in f32. On the CPU: whether it has a matrix unit for bf16 (Intel's AMX, on Linux); only the products
/// of convolutions, of layers on every pixel or patch, and of full attention are in bf16 there.
pub fn computes_in_bf16(device: &Device) -> bool {
    if is_cpu(device) { multiplies_bf16() } else { device.supports_dtype(FloatDType::BF16) }
}

/// Whether a device is the CPU, with or without gradients.
pub fn is_cpu(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

#[cfg(test)]
mod tests;
