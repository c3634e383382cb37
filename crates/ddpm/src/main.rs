//! `ddpm`: train, sample, evaluate and inspect denoising diffusion models. Arguments become a validated plan, the plan becomes calls of the
//! library. No mathematics here.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (after a checkpoint).

mod cache;
mod classifier;
mod commands;
mod evaluation;
mod failure;
mod formulations;
mod image_source;
mod inception;
mod interrupt;
mod machine;
mod numbers;
mod opening;
mod out_of_memory;
mod output;
mod panics;
mod plan;
mod recipe_flags;
mod recipes;
mod report_page;
mod sample_output;
mod sampling;
mod weights;

use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use denoising_diffusion_kernels::memory::CachingAllocator;

use commands::{
    average, bench, convert, devices, edit, eval, fid, info, inspect, list, sample, stats, train, train_classifier,
};
use failure::Result;
use panics::without_panic;

/// A training step reuses the memory of the step before it.
#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator::new();

/// Train, sample, evaluate and inspect denoising diffusion models.
#[derive(Debug, Parser)]
#[command(name = "ddpm", version, max_term_width = 120, arg_required_else_help = true, disable_help_flag = true)]
struct Cli {
    /// Print this help
    // The short form, a line or two for each option, is all the help that there is.
    #[arg(short, long, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::TrainArgs>),
    TrainClassifier(Box<train_classifier::TrainClassifierArgs>),
    Sample(Box<sample::SampleArgs>),
    Inpaint(Box<edit::InpaintArgs>),
    Vary(Box<edit::VaryArgs>),
    Interpolate(Box<edit::InterpolateArgs>),
    Eval(Box<eval::EvalArgs>),
    Fid(Box<fid::FidArgs>),
    Stats(stats::StatsArgs),
    Inspect(inspect::InspectArgs),
    Info(info::InfoArgs),
    Average(average::AverageArgs),
    Convert(Box<convert::ConvertArgs>),
    Devices(devices::DevicesArgs),
    List(list::ListArgs),
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell.
    Completions {
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let Cli { command, .. } = Cli::parse();
    #[cfg(unix)]
    interrupt::survive_limits_of_files();
    let result = without_panic(|| match command {
        Command::Train(args) => train::run(&args),
        Command::TrainClassifier(args) => train_classifier::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Inpaint(args) => edit::inpaint(&args),
        Command::Vary(args) => edit::vary(&args),
        Command::Interpolate(args) => edit::interpolate(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Fid(args) => fid::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Average(args) => average::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::List(args) => list::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions { shell } => completions(shell),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Whether the running command has a flag, given with its dashes.
fn takes(flag: &str) -> bool {
    static COMMAND: LazyLock<Option<clap::Command>> = LazyLock::new(|| {
        let name = std::env::args_os().nth(1)?;
        Cli::command().find_subcommand(&name).cloned()
    });
    let long = flag.trim_start_matches('-');
    COMMAND.as_ref().is_some_and(|command| command.get_arguments().any(|arg| arg.get_long() == Some(long)))
}

fn completions(shell: Shell) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ddpm", &mut script);
    output::result(String::from_utf8_lossy(&script).trim_end())
}
