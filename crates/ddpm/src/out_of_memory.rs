//! Out-of-memory panics of CubeCL: their text is recognised in a panic, which is raised where a result is read that could not be computed, and
//! becomes an error that says what was requested, what is in use and what to do. Not here: how much memory a training needs (the library estimates
//! it).

use std::sync::{Mutex, PoisonError};

use denoising_diffusion::device::{DeviceMemory, Opened};

use crate::failure::Failure;

/// CubeCL's text before the number of bytes that could not be allocated; before the size of a tensor that is larger than the device allocates in one
/// piece (a quarter of CUDA's memory, 2 GiB on most of Vulkan), however much is free; and wgpu's text, without a number.
const NO_MEMORY: &str = "out of device memory allocating ";
const TOO_LARGE: &str = "can't allocate buffer of size: ";
const NO_MEMORY_UNCOUNTED: &str = "wgpu error: Out of Memory";

/// What could not be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// Memory, with the number of bytes if known.
    Memory(Option<u64>),
    /// A tensor, with its number of bytes.
    Tensor(u64),
}

impl Refused {
    /// Parses a panic's text.
    fn told_by(panic: &str) -> Option<Self> {
        let bytes_after = |words| {
            let (_, rest) = panic.split_once(words)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let uncounted = || panic.contains(NO_MEMORY_UNCOUNTED).then_some(Self::Memory(None));
        bytes_after(NO_MEMORY)
            .map(|bytes| Self::Memory(Some(bytes)))
            .or_else(|| bytes_after(TOO_LARGE).map(Self::Tensor))
            .or_else(uncounted)
    }
}

/// What a command uses memory for; this decides the hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Training,
    TrainingClassifier,
    /// A network without gradients, in batches.
    Sampling,
    /// Features of images, a few at a time.
    Features,
    Bench,
}

impl Work {
    fn hint(self, refused: Refused) -> &'static str {
        match self {
            Self::Training if matches!(refused, Refused::Tensor(_)) => {
                "start a new run with a smaller --batch-size (--accumulate keeps the number of images per step) or, on GPUs that support \
                 it, with --precision bf16: both are fixed for the life of a run"
            }
            Self::Training => {
                "use a smaller --batch-size (--accumulate keeps the number of images per step), --checkpoint-activations or, on GPUs that \
                 support it, --precision bf16; of these, only `ddpm train --resume RUN --checkpoint-activations` can continue this run"
            }
            Self::TrainingClassifier => "use a smaller --batch-size",
            Self::Sampling => {
                "use a smaller --sample-batch-size, which gives the same images, or, on GPUs that support it, --precision bf16, which \
                 changes them a little"
            }
            Self::Features => "use a GPU with more free memory, or --device cpu",
            Self::Bench if matches!(refused, Refused::Tensor(_)) => "use --precision bf16 on GPUs that support it",
            Self::Bench => "use --checkpoint-activations or, on GPUs that support it, --precision bf16",
        }
    }
}

/// The device that this process computes on, and its work there.
static WATCHED: Mutex<Option<(Opened, Work)>> = Mutex::new(None);

/// Records what runs on which device, for the text of [`failure`].
pub fn watch(opened: &Opened, work: Work) {
    *WATCHED.lock().unwrap_or_else(PoisonError::into_inner) = Some((opened.clone(), work));
}

/// The failure for a panic's text, if the panic is of this kind. Nothing that was written before is lost: results are read before anything is
/// written.
pub fn failure(panic: &str) -> Option<Failure> {
    let refused = Refused::told_by(panic)?;
    let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let usage = watched.as_ref().and_then(|(opened, _)| opened.device.memory_pool_usage());
    let memory = watched.as_ref().and_then(|(opened, _)| opened.memory());
    let usage = usage.map(|usage| (usage.bytes_in_use, usage.bytes_reserved));
    let failed = Failure::failed(in_words(refused, usage, memory));
    Some(match watched {
        Some((_, work)) => failed.hint(work.hint(refused)),
        None => failed,
    })
}

/// Describes what was refused, the bytes in use and reserved, and the memory of the whole device.
fn in_words(refused: Refused, usage: Option<(u64, u64)>, memory: Option<DeviceMemory>) -> String {
    let refused = match refused {
        Refused::Memory(Some(bytes)) => format!("the device is out of memory: {} more were needed", mib(bytes)),
        Refused::Memory(None) => "the device is out of memory".to_string(),
        Refused::Tensor(bytes) => {
            format!("a tensor of {} is larger than the device can allocate in one piece", mib(bytes))
        }
    };
    let usage = usage
        .map(|(used, reserved)| format!("{} of this process's {} on the device were in use", mib(used), mib(reserved)));
    let memory =
        memory.map(|DeviceMemory { free, total }| format!("{} of the device's {} are free", mib(free), mib(total)));
    let known: Vec<String> = usage.into_iter().chain(memory).collect();
    let known = if known.is_empty() { String::new() } else { format!(" ({})", known.join("; ")) };
    format!("{refused}{known}")
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn what_cubecl_says_becomes_an_error_with_a_hint() {
        watch(&Opened::cpu(), Work::Training);
        let reading = "panicked at float.rs:1: Error while reading data: Some(out of device memory allocating 1073741825 bytes 0: x)";
        let text = failure(reading).unwrap().to_text();
        assert!(text.starts_with("error: the device is out of memory: 1025 MiB more were needed\nhint: "), "{text}");
        assert!(text.contains("--batch-size") && text.contains("--resume") && text.lines().count() == 2, "{text}");
        let too_large = failure("can't allocate buffer of size: 7\nbacktrace").unwrap().to_text();
        assert!(
            too_large
                .starts_with("error: a tensor of 1 MiB is larger than the device can allocate in one piece\nhint: ")
        );
        assert!(too_large.contains("--batch-size") && !too_large.contains("--checkpoint-activations"), "{too_large}");
        let graphics = failure("wgpu error: Out of Memory").unwrap().to_text();
        assert!(graphics.starts_with("error: the device is out of memory\n"), "{graphics}");
        assert!(failure("index out of bounds").is_none());
    }

    #[test]
    fn hints_name_flags_of_their_commands() {
        let cli = crate::Cli::command();
        for (command, work) in [
            ("train", Work::Training),
            ("train-classifier", Work::TrainingClassifier),
            ("sample", Work::Sampling),
            ("inpaint", Work::Sampling),
            ("vary", Work::Sampling),
            ("interpolate", Work::Sampling),
            ("eval", Work::Sampling),
            ("fid", Work::Sampling),
            ("stats", Work::Features),
            ("bench", Work::Bench),
        ] {
            let command = cli.find_subcommand(command).unwrap();
            let hints = [Refused::Memory(None), Refused::Tensor(1)].map(|refused| work.hint(refused));
            for flag in hints.iter().flat_map(|hint| hint.split("--").skip(1)) {
                let flag = flag.split(|c: char| !c.is_ascii_lowercase() && c != '-').next();
                assert!(
                    command.get_arguments().any(|known| known.get_long() == flag),
                    "{} {flag:?}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn what_is_in_use_is_said() {
        let usage = Some((5 << 20, 8 << 20));
        let memory = Some(DeviceMemory { free: 1 << 20, total: 16 << 20 });
        let words = "the device is out of memory: 3 MiB more were needed (5 MiB of this process's 8 MiB on the device were in use";
        assert_eq!(in_words(Refused::Memory(Some(3 << 20)), usage, None), format!("{words})"));
        assert_eq!(
            in_words(Refused::Memory(Some(3 << 20)), usage, memory),
            format!("{words}; 1 MiB of the device's 16 MiB are free)")
        );
        assert_eq!(
            in_words(Refused::Memory(None), None, memory),
            "the device is out of memory (1 MiB of the device's 16 MiB are free)"
        );
    }
}
