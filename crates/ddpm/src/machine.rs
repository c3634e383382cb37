//! Where the work runs: device and threads.

use std::thread::available_parallelism;

use burn::tensor::{Device, FloatDType};
use clap::Args;
use denoising_diffusion::device::{DeviceChoice, is_cpu, open};
use denoising_diffusion::models::NetworkConfig;
use denoising_diffusion::nn::ops::{ConvPrecision, Precision, set_conv_precision, set_precision};

use crate::failure::{Failure, Result};
use crate::{out_of_memory, panics};

/// Flags of every command that computes.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Where to compute: auto, cpu, or a GPU such as cuda:0 (`ddpm devices` lists them)
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    device: DeviceChoice,
    /// Threads to compute with [default: the number of physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Machine")]
    threads: Option<u16>,
    /// Convolutions without Winograd's algorithm: slower, and a digit more exact
    #[arg(long, help_heading = "Machine")]
    precise: bool,
    /// What networks compute in: f32, or bf16 on GPUs that can (weights, norms, softmax and losses stay f32)
    #[arg(long, value_name = "PRECISION", default_value = "f32", help_heading = "Machine")]
    precision: Precision,
}

/// A device and the number of threads, ready to use.
#[derive(Clone, Debug)]
pub struct Machine {
    pub device: Device,
    /// The device in words.
    pub name: String,
    pub threads: usize,
    precision: Precision,
}

impl Machine {
    /// Refuses a network that cannot compute in the precision that was asked for.
    pub fn check_network(&self, network: &NetworkConfig) -> Result {
        if self.precision == Precision::F32 || network.takes_bf16() {
            return Ok(());
        }
        Err(Failure::usage(format!("--precision {}: this network computes in f32 only", self.precision))
            .hint("unet, unet1d and dit compute in bf16"))
    }

    /// Where a network is trained; with `checkpoint_activations` one that computes them again in the backward pass.
    pub fn training_device(&self, checkpoint_activations: bool) -> Device {
        let device = self.device.clone().autodiff();
        // On the CPU our own blocks do it.
        if checkpoint_activations && !is_cpu(&device) { device.gradient_checkpointing() } else { device }
    }
}

impl MachineArgs {
    /// Starts the threads. To be called once, before anything computes.
    pub fn start(&self) -> Result<Machine> {
        let machine = self.describe()?;
        rayon::ThreadPoolBuilder::new()
            .num_threads(machine.threads)
            .build_global()
            .map_err(|error| Failure::from(error).context(format!("cannot start {} threads", machine.threads)))?;
        set_conv_precision(if self.precise { ConvPrecision::Precise } else { ConvPrecision::Fast });
        set_precision(machine.precision);
        out_of_memory::watch(&machine.device);
        Ok(machine)
    }

    /// Without starting any threads.
    pub fn describe(&self) -> Result<Machine> {
        let threads = self.threads.map_or_else(default_threads, usize::from);
        let opened = open(self.device);
        panics::forget();
        let opened = opened.map_err(|error| Failure::usage(format!("--device {}: {error}", self.device)))?;
        let (device, precision) = (opened.device.clone(), self.precision);
        let bf16 = precision == Precision::Bf16;
        if bf16 && (is_cpu(&device) || !device.supports_dtype(FloatDType::BF16)) {
            let failure = Failure::usage(format!("--precision bf16: {} does not compute in bf16", opened.in_words()));
            return Err(
                failure.hint("leave --precision out, or choose a GPU that does (`ddpm devices`), such as cuda:0")
            );
        }
        let name = if bf16 { format!("{} in bf16", opened.in_words()) } else { opened.in_words() };
        Ok(Machine { name, device, threads, precision })
    }
}

/// Physical cores, as far as this process may use them: arithmetic gains nothing from a second thread on the same core.
pub fn default_threads() -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}
