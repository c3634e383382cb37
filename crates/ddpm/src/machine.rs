//! Where the work runs: device and threads.

use std::path::PathBuf;
use std::thread::available_parallelism;

use burn::tensor::{Device, FloatDType};
use clap::Args;
use denoising_diffusion::device::{DeviceChoice, Opened, is_cpu, multiplies_in_tf32, open};
use denoising_diffusion::nn::ops::Precision;
use denoising_diffusion::recipe::ArithmeticConfig;

use crate::failure::{Failure, Result};
use crate::numbers::at_least;
use crate::out_of_memory::Work;
use crate::output::note;
use crate::recipe_flags::PRECISION;
use crate::{cache, out_of_memory, panics};

/// Flags of commands that compute as something else says.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, or a GPU such as cuda:0 (`ddpm devices` lists them)
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    device: DeviceChoice,
    /// Threads to compute with [default: the number of physical cores]
    #[arg(long, value_name = "N", value_parser = at_least(1_u16), help_heading = "Machine")]
    threads: Option<u16>,
}

/// Flags of commands that compute.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Convolutions without Winograd's algorithm: slower, and a digit more exact
    #[arg(long, help_heading = "Machine")]
    precise: bool,
}

/// Flags of commands that run a network of the user's.
#[derive(Args, Clone, Debug)]
pub struct NetworkMachineArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[arg(long, help = PRECISION, value_name = "PRECISION", default_value = "f32", help_heading = "Machine")]
    precision: Precision,
}

/// A device and the number of threads, ready to use.
#[derive(Clone, Debug)]
pub struct Machine {
    opened: Opened,
    /// The device in words.
    pub name: String,
    pub threads: usize,
    /// Where kernels of the device will be kept, if none are yet.
    new_kernels: Option<PathBuf>,
}

impl NetworkMachineArgs {
    /// Starts the threads. To be called once, before anything computes.
    pub fn start(&self, work: Work) -> Result<Machine> {
        let MachineArgs { device, precise } = &self.machine;
        device.start(ArithmeticConfig { precise: *precise, precision: self.precision }, work)
    }
}

impl MachineArgs {
    /// Starts the threads. To be called once, before anything computes.
    pub fn start(&self, work: Work) -> Result<Machine> {
        self.device.start(ArithmeticConfig { precise: self.precise, precision: Precision::F32 }, work)
    }
}

impl DeviceArgs {
    /// Starts the threads. To be called once, before anything computes.
    pub fn start(&self, arithmetic: ArithmeticConfig, work: Work) -> Result<Machine> {
        let machine = self.describe(arithmetic)?;
        rayon::ThreadPoolBuilder::new()
            .num_threads(machine.threads)
            .build_global()
            .map_err(|error| Failure::from(error).context(format!("cannot start {} threads", machine.threads)))?;
        arithmetic.set();
        out_of_memory::watch(&machine.opened, work);
        if let Some(kept) = &machine.new_kernels {
            let (name, kept) = (&machine.name, kept.display());
            note(format!(
                "{name}: the first steps try out kernels, which can take minutes; which were the fastest is kept in {kept}"
            ));
        }
        Ok(machine)
    }

    /// Without starting any threads.
    pub fn describe(&self, arithmetic: ArithmeticConfig) -> Result<Machine> {
        let threads = self.threads.map_or_else(default_threads, usize::from);
        let new_kernels = cache::keep_kernels().filter(|file| !file.exists());
        let opened = open(self.device);
        panics::forget();
        let opened = opened.map_err(|error| Failure::usage(format!("--device {}: {error}", self.device)))?;
        let device = &opened.device;
        let abilities = Abilities {
            tf32: multiplies_in_tf32(device),
            bf16: !is_cpu(device) && device.supports_dtype(FloatDType::BF16),
        };
        let name = name_in(arithmetic.precision, &opened.in_words(), abilities)?;
        let new_kernels = new_kernels.filter(|_| !is_cpu(device));
        Ok(Machine { name, opened, threads, new_kernels })
    }
}

/// What a device can compute in beside f32.
#[derive(Clone, Copy, Debug)]
struct Abilities {
    tf32: bool,
    bf16: bool,
}

/// A device in words, with what it computes in where that is not f32 throughout.
fn name_in(precision: Precision, device: &str, Abilities { tf32, bf16 }: Abilities) -> Result<String> {
    match precision {
        Precision::F32 if !tf32 => Ok(device.to_string()),
        Precision::F32 | Precision::Tf32 if tf32 => Ok(format!("{device}, matrices in tf32")),
        Precision::Bf16 if bf16 => Ok(format!("{device} in bf16")),
        _ => Err(Failure::usage(format!("--precision {precision}: {device} does not compute in {precision}")).hint(
            "choose a GPU that does (`ddpm devices`), such as cuda:0, or leave --precision out; a run goes on in the precision that it began in",
        )),
    }
}

impl Machine {
    pub fn device(&self) -> &Device {
        &self.opened.device
    }
}

/// Physical cores, as far as this process may use them: arithmetic gains nothing from a second thread on the same core.
pub fn default_threads() -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_computed_in() {
        let name = |precision, tf32, bf16| name_in(precision, "gpu", Abilities { tf32, bf16 }).ok();
        assert_eq!(name(Precision::F32, false, true).unwrap(), "gpu");
        assert_eq!(name(Precision::F32, true, true).unwrap(), "gpu, matrices in tf32");
        assert_eq!(name(Precision::Tf32, true, false).unwrap(), "gpu, matrices in tf32");
        assert_eq!(name(Precision::Bf16, true, true).unwrap(), "gpu in bf16");
        assert_eq!(name(Precision::Tf32, false, true), None);
        assert_eq!(name(Precision::Bf16, true, false), None);
    }
}
