//! A device without memory left, as CubeCL says it: a text within a panic, raised where a result is read that could not be computed. Here it
//! becomes an error that says what was asked for, what was taken and what to do. Not here: how much a network needs (`networks`).

use std::sync::{Mutex, PoisonError};

use denoising_diffusion::device::{DeviceMemory, Opened};

use crate::failure::Failure;

/// What CubeCL says before the number of bytes that it could not have, and what wgpu says, without a number.
const WITH_BYTES: [&str; 2] = ["out of device memory allocating ", "can't allocate buffer of size: "];
const WITHOUT: &str = "wgpu error: Out of Memory";

/// What a command takes memory for, and so what it can do with less.
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
    fn hint(self) -> &'static str {
        match self {
            Self::Training => {
                "a smaller --batch-size takes less memory (with --accumulate, a step is of as many images as before); so do \
                 --checkpoint-activations and, on GPUs that can, --precision bf16; checkpoints are whole, so that a run goes on \
                 with `ddpm train --resume RUN`"
            }
            Self::TrainingClassifier => "a smaller --batch-size takes less memory",
            Self::Sampling => {
                "a smaller --sample-batch-size takes less memory and gives the same images; so does, on GPUs that can, --precision bf16, \
                 with images that differ a little"
            }
            Self::Features => "a GPU with more memory free, or --device cpu",
            Self::Bench => {
                "--checkpoint-activations takes less memory, and so does, on GPUs that can, --precision bf16"
            }
        }
    }
}

/// The device that this process computes on, and what for.
static WATCHED: Mutex<Option<(Opened, Work)>> = Mutex::new(None);

/// Says what runs on which device, for the words of [`failure`].
pub fn watch(opened: &Opened, work: Work) {
    *WATCHED.lock().unwrap_or_else(PoisonError::into_inner) = Some((opened.clone(), work));
}

/// The failure behind a panic's text, if it is of this kind. Nothing that was written before is lost: results are read before anything is
/// written.
pub fn failure(panic: &str) -> Option<Failure> {
    let asked = WITH_BYTES.iter().find_map(|words| {
        let (_, rest) = panic.split_once(words)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    });
    if asked.is_none() && !panic.contains(WITHOUT) {
        return None;
    }
    let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let usage = watched.as_ref().and_then(|(opened, _)| opened.device.memory_pool_usage());
    let memory = watched.as_ref().and_then(|(opened, _)| opened.memory());
    let usage = usage.map(|usage| (usage.bytes_in_use, usage.bytes_reserved));
    let failed = Failure::failed(in_words(asked, usage, memory));
    Some(match watched {
        Some((_, work)) => failed.hint(work.hint()),
        None => failed,
    })
}

/// `asked`, bytes in use and reserved, and what the whole device has.
fn in_words(asked: Option<u64>, usage: Option<(u64, u64)>, memory: Option<DeviceMemory>) -> String {
    let asked = asked.map_or(String::new(), |bytes| format!(": {} more were needed", mib(bytes)));
    let usage = usage
        .map(|(used, reserved)| format!("{} of this process's {} on the device were in use", mib(used), mib(reserved)));
    let memory =
        memory.map(|DeviceMemory { free, total }| format!("{} of the device's {} are free", mib(free), mib(total)));
    let known: Vec<String> = usage.into_iter().chain(memory).collect();
    let known = if known.is_empty() { String::new() } else { format!(" ({})", known.join("; ")) };
    format!("the device has no memory left{asked}{known}")
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
        assert!(text.starts_with("error: the device has no memory left: 1025 MiB more were needed\nhint: "), "{text}");
        assert!(text.contains("--batch-size") && text.contains("--resume") && text.lines().count() == 2, "{text}");
        let too_big = failure("can't allocate buffer of size: 7\nbacktrace").unwrap().to_text();
        assert!(too_big.contains(": 1 MiB more"), "{too_big}");
        let graphics = failure("wgpu error: Out of Memory").unwrap().to_text();
        assert!(graphics.starts_with("error: the device has no memory left\n"), "{graphics}");
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
            for flag in work.hint().split("--").skip(1) {
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
        let words = "the device has no memory left: 3 MiB more were needed (5 MiB of this process's 8 MiB on the device were in use";
        assert_eq!(in_words(Some(3 << 20), usage, None), format!("{words})"));
        assert_eq!(in_words(Some(3 << 20), usage, memory), format!("{words}; 1 MiB of the device's 16 MiB are free)"));
        assert_eq!(
            in_words(None, None, memory),
            "the device has no memory left (1 MiB of the device's 16 MiB are free)"
        );
    }
}
