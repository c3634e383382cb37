//! Where the work runs: device and threads.

use std::path::PathBuf;
use std::thread::available_parallelism;

use burn::tensor::Device;
use clap::Args;
use denoising_diffusion::device::{DeviceChoice, Opened, computes_in_bf16, is_cpu, multiplies_in_tf32, open};
use denoising_diffusion::nn::ops::Precision;
use denoising_diffusion::recipe::ArithmeticConfig;

use crate::failure::{Failure, Result};
use crate::out_of_memory::Work;
use crate::output::note;
use crate::recipe_flags::PRECISION;
use crate::{cache, out_of_memory, panics};

#[derive(Args, Clone, Debug)]
struct ThreadsArgs {
    /// Threads to compute with, at most 1024 [default: the number of physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Machine")]
    threads: Option<u16>,
}

#[derive(Args, Clone, Debug)]
struct PreciseArgs {
    /// Compute convolutions without Winograd's algorithm: slower, and one digit more exact
    #[arg(long, help_heading = "Machine")]
    precise: bool,
}

/// Flags of a training, whose recipe says how it computes.
#[derive(Args, Clone, Debug)]
pub struct DevicesArgs {
    /// Where to compute: auto, cpu, or a GPU such as cuda:0 (see `ddpm devices`); or several of a kind, such as cuda:0,cuda:1, which share the
    /// batches of samples and, in training, those of each step (--accumulate)
    #[arg(
        long = "device",
        value_name = "DEVICES",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "Machine"
    )]
    devices: Vec<DeviceChoice>,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// Flags of commands that compute.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Where to compute: auto, cpu, or a GPU such as cuda:0 (see `ddpm devices`)
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    device: DeviceChoice,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    exactness: PreciseArgs,
}

/// Flags of commands that run a network of the user's.
#[derive(Args, Clone, Debug)]
pub struct NetworkMachineArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[arg(long, help = PRECISION, value_name = "PRECISION", default_value = "f32", help_heading = "Machine")]
    precision: Precision,
}

/// Flags of commands that draw samples from a network of the user's, on one device or more.
#[derive(Args, Clone, Debug)]
pub struct NetworkDevicesArgs {
    #[command(flatten)]
    devices: DevicesArgs,
    #[command(flatten)]
    exactness: PreciseArgs,
    #[arg(long, help = PRECISION, value_name = "PRECISION", default_value = "f32", help_heading = "Machine")]
    precision: Precision,
}

/// Devices and the number of threads, ready to use.
#[derive(Clone, Debug)]
pub struct Machine {
    opened: Opened,
    /// Additional devices that share the work.
    others: Vec<Device>,
    /// Description of the devices.
    pub name: String,
    pub threads: usize,
    /// Where tuned kernels of the device will be stored, if none are stored yet.
    new_kernels: Option<PathBuf>,
}

impl NetworkMachineArgs {
    /// Starts the threads. Must be called once, before any computation.
    pub fn start(&self, work: Work) -> Result<Machine> {
        self.machine.start_in(self.precision, work)
    }
}

impl NetworkDevicesArgs {
    /// Starts the threads. Must be called once, before any computation.
    pub fn start(&self, work: Work) -> Result<Machine> {
        self.devices.start(ArithmeticConfig { precise: self.exactness.precise, precision: self.precision }, work)
    }
}

impl MachineArgs {
    /// Starts the threads. Must be called once, before any computation.
    pub fn start(&self, work: Work) -> Result<Machine> {
        self.start_in(Precision::F32, work)
    }

    fn start_in(&self, precision: Precision, work: Work) -> Result<Machine> {
        let arithmetic = ArithmeticConfig { precise: self.exactness.precise, precision };
        Machine::describe(&[self.device], &self.threads, arithmetic)?.started(arithmetic, work)
    }
}

impl DevicesArgs {
    /// Starts the threads. Must be called once, before any computation.
    pub fn start(&self, arithmetic: ArithmeticConfig, work: Work) -> Result<Machine> {
        self.describe(arithmetic)?.started(arithmetic, work)
    }

    /// Without starting any threads.
    pub fn describe(&self, arithmetic: ArithmeticConfig) -> Result<Machine> {
        check_kinds(&self.devices)?;
        Machine::describe(&self.devices, &self.threads, arithmetic)
    }
}

/// Checks that these devices can share the work: each is listed once, and all are of one kind, so that they compute in the same types.
fn check_kinds(devices: &[DeviceChoice]) -> Result {
    let kind = |device: &DeviceChoice| match device {
        DeviceChoice::Gpu { backend, .. } => Some(*backend),
        DeviceChoice::Auto | DeviceChoice::Cpu => None,
    };
    let [first, others @ ..] = devices else { return Ok(()) };
    let shown = devices.iter().map(DeviceChoice::to_string).collect::<Vec<_>>().join(",");
    if !others.is_empty() && devices.iter().any(|device| kind(device).is_none() || kind(device) != kind(first)) {
        return Err(Failure::usage(format!(
            "--device {shown}: several devices must be GPUs of one kind, such as cuda:0,cuda:1"
        )));
    }
    match (0..others.len()).find(|&i| others[i..].contains(&devices[i])) {
        Some(twice) => Err(Failure::usage(format!("--device {shown}: {} is named twice", devices[twice]))),
        None => Ok(()),
    }
}

/// The types that a device can compute in besides f32.
#[derive(Clone, Copy, Debug)]
struct Abilities {
    tf32: bool,
    bf16: bool,
}

/// Description of a device, with its arithmetic unless that is f32 throughout.
fn name_in(precision: Precision, device: &str, Abilities { tf32, bf16 }: Abilities) -> Result<String> {
    match precision {
        Precision::F32 if !tf32 => Ok(device.to_string()),
        Precision::F32 | Precision::Tf32 if tf32 => Ok(format!("{device}, matrices in tf32")),
        Precision::Bf16 if bf16 => Ok(format!("{device} in bf16")),
        _ => Err(Failure::usage(format!("--precision {precision}: {device} does not compute in {precision}")).hint(
            "choose a device that does (see `ddpm devices`), such as --device cuda:0, or leave out --precision; CPUs need AMX for bf16; a \
             run can only be resumed in the precision it was started with",
        )),
    }
}

impl Machine {
    fn describe(choices: &[DeviceChoice], threads: &ThreadsArgs, arithmetic: ArithmeticConfig) -> Result<Self> {
        let threads = threads.threads.map_or_else(default_threads, usize::from);
        let new_kernels = cache::keep_kernels().filter(|file| !file.exists());
        let mut opened = choices.iter().map(|&choice| opened(choice)).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> =
            opened.iter().map(|opened| name_of(opened, arithmetic.precision)).collect::<Result<_>>()?;
        let others = opened.split_off(1).into_iter().map(|opened| opened.device).collect();
        let opened = opened.remove(0);
        if arithmetic.precise && arithmetic.precision == Precision::Bf16 && is_cpu(&opened.device) {
            return Err(Failure::usage("--precise and --precision bf16 exclude each other on the CPU"));
        }
        let new_kernels = new_kernels.filter(|_| !is_cpu(&opened.device));
        Ok(Self { name: names.join(" and "), opened, others, threads, new_kernels })
    }

    fn started(self, arithmetic: ArithmeticConfig, work: Work) -> Result<Self> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build_global()
            .map_err(|error| Failure::from(error).context(format!("cannot start {} threads", self.threads)))?;
        arithmetic.set_on(&self.opened.device);
        out_of_memory::watch(&self.opened, work);
        if let Some(kept) = &self.new_kernels {
            let (name, kept) = (&self.name, kept.display());
            note(format!(
                "{name}: the first steps try out kernels, which can take minutes; the fastest ones are remembered in {kept}"
            ));
        }
        Ok(self)
    }

    pub fn device(&self) -> &Device {
        &self.opened.device
    }

    /// Checks that each device has something to do in a step of `accumulate` batches.
    pub fn check_shares(&self, accumulate: usize) -> Result {
        let devices = 1 + self.others.len();
        if accumulate >= devices {
            return Ok(());
        }
        let batches = if accumulate == 1 { "one".to_string() } else { accumulate.to_string() };
        Err(Failure::usage(format!(
            "{devices} devices need at least {devices} batches per step, but a step has {batches}"
        ))
        .hint(format!("use --accumulate {devices}; a smaller --batch-size keeps the number of images per step")))
    }

    /// The devices besides [`device`](Self::device).
    pub fn others(&self) -> &[Device] {
        &self.others
    }
}

fn opened(choice: DeviceChoice) -> Result<Opened> {
    let opened = open(choice);
    panics::forget();
    let opened = opened.map_err(|error| Failure::usage(format!("--device {choice}: {error}")))?;
    for broken in &opened.passed_over {
        note(format!("warning: {broken}; computing on {}", opened.in_words()));
    }
    Ok(opened)
}

/// Description of the device, with its arithmetic.
fn name_of(opened: &Opened, precision: Precision) -> Result<String> {
    let device = &opened.device;
    let abilities = Abilities { tf32: multiplies_in_tf32(device), bf16: computes_in_bf16(device) };
    name_in(precision, &opened.in_words(), abilities)
}

/// Physical cores that this process may use: arithmetic gains nothing from a second thread on the same core.
pub fn default_threads() -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_devices_are_of_a_kind() {
        let check = |words: &str| {
            let devices: Vec<DeviceChoice> = words.split(',').map(|word| word.parse().unwrap()).collect();
            check_kinds(&devices).err().map(|failure| format!("{failure:?}"))
        };
        for devices in ["auto", "cpu", "cuda:3", "cuda:0,cuda:1", "rocm:2,rocm:0,rocm:1"] {
            assert_eq!(check(devices), None, "{devices}");
        }
        for devices in ["cuda:0,cpu", "auto,cuda:1", "cuda:0,vulkan:0", "cpu,cpu"] {
            assert!(check(devices).unwrap().contains("of one kind"), "{devices}");
        }
        assert!(
            check("cuda:1,cuda:0,cuda:1").unwrap().contains("--device cuda:1,cuda:0,cuda:1: cuda:1 is named twice")
        );
    }

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
