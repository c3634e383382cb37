//! Where the work runs: device and threads.

use std::thread::available_parallelism;

use burn::tensor::Device;
use clap::Args;
use denoising_diffusion::nn::ops::{ConvPrecision, set_conv_precision};

use crate::failure::{Failure, Result};

/// Flags of every command that computes.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Where to compute: auto or cpu
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device, help_heading = "Machine")]
    device: DeviceKind,
    /// Threads to compute with [default: the number of physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Machine")]
    threads: Option<u16>,
    /// Convolutions without Winograd's algorithm: slower, and a digit more exact
    #[arg(long, help_heading = "Machine")]
    precise: bool,
}

/// The devices of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceKind {
    Cpu,
}

fn parse_device(text: &str) -> std::result::Result<DeviceKind, String> {
    match text {
        "auto" | "cpu" => Ok(DeviceKind::Cpu),
        _ => Err("this build computes on the CPU only: auto, cpu".to_string()),
    }
}

/// A device and the number of threads, ready to use.
#[derive(Clone, Debug)]
pub struct Machine {
    pub device: Device,
    /// The device in words.
    pub name: &'static str,
    pub threads: usize,
}

impl MachineArgs {
    /// Starts the threads. To be called once, before anything computes.
    pub fn start(&self) -> Result<Machine> {
        let machine = self.describe();
        rayon::ThreadPoolBuilder::new()
            .num_threads(machine.threads)
            .build_global()
            .map_err(|error| Failure::from(error).context(format!("cannot start {} threads", machine.threads)))?;
        set_conv_precision(if self.precise { ConvPrecision::Precise } else { ConvPrecision::Fast });
        Ok(machine)
    }

    /// Without starting anything.
    pub fn describe(&self) -> Machine {
        let threads = self.threads.map_or_else(default_threads, usize::from);
        match self.device {
            DeviceKind::Cpu => Machine { device: Device::flex(), name: "cpu", threads },
        }
    }
}

/// Physical cores, as far as this process may use them: arithmetic gains nothing from a second thread on the same core.
fn default_threads() -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}
