//! Measures the speed of the kernels, and how close it is to the machine's limits.
//!
//! ```text
//! cargo bench -p denoising-diffusion-kernels --bench roofline -- [--only SUBSTRING] [--rounds N] [--all] [--json] [--serve] [--algorithms] [--bf16]
//! ```
//!
//! Measures the machine's peaks ([`peaks`]), then every kernel at the sizes of two networks ([`cases`]), by default for about 0.15 s each, and prints
//! the fastest and the median call. The bound is the larger of two times: that of the floating-point operations at the peak rate, and that of all
//! inputs and outputs, once each, at the rate of a copy (within the cache if they are at most 16 MiB, since every call works on the same memory). The
//! share is the bound divided by the fastest call. Convolutions are counted as if they were computed directly, so Winograd's may exceed 100 %; their
//! second share only counts the products that Winograd's method needs, and nothing for its transforms. Elementwise work counts as no operations, so a
//! share far below 100 % may be the most that a kernel with exponentials, roots or divisions can reach. A share above 100 % means that the cache kept
//! part of what is counted as memory.
//!
//! `--only` selects the kernels whose name contains the text, `--all` adds sizes, `--rounds` sets the number of calls, `--json` prints an object per
//! line, the peaks first. `--serve` prints a line with the peaks and the cases, then reads lines from stdin: for the name of a kernel it runs it and
//! prints its line; for `peaks` it measures the peaks again, keeps the higher, and prints them. `--algorithms` compares the two algorithms of 3 x 3
//! convolutions instead, `--bf16` f32 and bf16 ([`algorithms`]). RAYON_NUM_THREADS sets the number of threads. Memory and threads are as in a program
//! that trains: a caching allocator, and calls from a thread of the pool.

mod algorithms;
mod cases;
mod peaks;
mod work;

use std::hint::black_box;
use std::io::BufRead;
use std::time::{Duration, Instant};

use cases::{Case, cases};
use denoising_diffusion_kernels::conv::ConvAlgorithm;
use denoising_diffusion_kernels::memory::CachingAllocator;
use peaks::Peaks;

#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator::new();

/// How long a kernel is called repeatedly, and the least number of calls.
const TIME: Duration = Duration::from_millis(150);
const LEAST_CALLS: usize = 5;
/// Number of calls before the measured ones.
const WARM_UP: usize = 2;

/// Number of measurements of the peaks at the start.
const PEAK_ROUNDS: usize = 3;

#[derive(Default)]
struct Args {
    only: String,
    rounds: Option<usize>,
    all: bool,
    json: bool,
    serve: bool,
    algorithms: bool,
    bf16: bool,
}

fn main() {
    let args = parse(std::env::args().skip(1)).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    rayon::scope(|_| run(&args));
}

fn parse(mut given: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(arg) = given.next() {
        let mut value = || given.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            // Added by cargo.
            "--bench" => {}
            "--only" => args.only = value()?,
            "--rounds" => {
                let rounds = value()?.parse().ok().filter(|&rounds: &usize| rounds > 0);
                args.rounds = Some(rounds.ok_or("--rounds needs a number of at least 1")?);
            }
            "--all" => args.all = true,
            "--json" => args.json = true,
            "--serve" => args.serve = true,
            "--algorithms" => args.algorithms = true,
            "--bf16" => args.bf16 = true,
            _ => {
                return Err(format!(
                    "unknown argument {arg}; there are --only, --rounds, --all, --json, --serve, --algorithms, --bf16"
                ));
            }
        }
    }
    Ok(args)
}

fn run(args: &Args) {
    if args.algorithms {
        return algorithms::print_table([ConvAlgorithm::Direct, ConvAlgorithm::Winograd]);
    }
    let mut cases = cases(args.all);
    cases.retain(|case| case.name().contains(&args.only));
    if args.bf16 {
        return algorithms::print_bf16(&cases);
    }
    let mut peaks = Peaks::default();
    for _ in 0..PEAK_ROUNDS {
        peaks.measure();
    }
    if args.serve {
        return serve(args, &mut peaks, &cases);
    }
    if args.json {
        println!("{{{}}}", peaks_json(&peaks));
    } else {
        print_head(&peaks);
    }
    for case in &cases {
        let measured = Measured::new(case, args.rounds, &peaks);
        println!("{}", if args.json { format!("{{{}}}", measured.json()) } else { measured.row() });
    }
}

/// Answers each line on stdin with one on stdout.
fn serve(args: &Args, peaks: &mut Peaks, cases: &[Case]) {
    let described = |case: &Case| format!("{{{}, {}}}", names_json(case), case.work.json());
    let listed: Vec<_> = cases.iter().map(described).collect();
    println!("{{{}, \"cases\": [{}]}}", peaks_json(peaks), listed.join(", "));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let answer = if line == "peaks" {
            peaks.measure();
            peaks_json(peaks)
        } else {
            match cases.iter().find(|case| case.name() == line) {
                Some(case) => Measured::new(case, args.rounds, peaks).json(),
                None => format!("\"error\": \"no kernel {}\"", line.escape_default()),
            }
        };
        println!("{{{answer}}}");
    }
}

/// A kernel's times, and the bounds that they are compared with.
struct Measured<'a> {
    case: &'a Case,
    fastest: f64,
    median: f64,
    /// The rate of the fastest call and its unit.
    rate: (f64, &'static str),
    bound: peaks::Bound,
    /// The least time of Winograd's method.
    winograd: Option<f64>,
}

impl<'a> Measured<'a> {
    fn new(case: &'a Case, rounds: Option<usize>, peaks: &Peaks) -> Self {
        let mut call = case.work.prepare();
        let (fastest, median) = time(&mut *call, rounds);
        let (flops, bytes) = (case.work.flops(), case.work.bytes());
        let (units, unit) = if flops > 0 { (flops, "GFLOP/s") } else { (bytes, "GB/s") };
        let winograd = case.work.winograd_flops().map(|flops| peaks.bound(flops, bytes).seconds);
        let rate = (units as f64 / fastest * 1e-9, unit);
        Self { case, fastest, median, rate, bound: peaks.bound(flops, bytes), winograd }
    }

    fn json(&self) -> String {
        let (rate, unit) = self.rate;
        let winograd = self.winograd.map_or("null".to_string(), |seconds| format!("{:.6}", seconds * 1e3));
        format!(
            "{}, \"ms\": {:.6}, \"median_ms\": {:.6}, \"rate\": {rate:.3}, \"unit\": \"{unit}\", \"bound\": \"{}\", \
             \"bound_ms\": {:.6}, \"winograd_bound_ms\": {winograd}, \"share\": {:.4}",
            names_json(self.case),
            self.fastest * 1e3,
            self.median * 1e3,
            self.bound.by,
            self.bound.seconds * 1e3,
            self.bound.seconds / self.fastest,
        )
    }

    fn row(&self) -> String {
        let (rate, unit) = self.rate;
        let percent = |seconds: f64| format!("{:.0} %", 100.0 * seconds / self.fastest);
        format!(
            "{:28} {:16} {:9.3} ms {:9.3} ms {rate:8.1} {unit:7}  {:8}{:>6}{:>11}",
            self.case.kernel,
            self.case.shape,
            self.fastest * 1e3,
            self.median * 1e3,
            self.bound.by,
            percent(self.bound.seconds),
            self.winograd.map(percent).unwrap_or_default(),
        )
        .trim_end()
        .to_string()
    }
}

/// The fastest and the median call, in seconds.
fn time(call: &mut dyn FnMut(), rounds: Option<usize>) -> (f64, f64) {
    for _ in 0..WARM_UP {
        call();
    }
    let begin = Instant::now();
    let mut found = Vec::new();
    while rounds.map_or(begin.elapsed() < TIME || found.len() < LEAST_CALLS, |rounds| found.len() < rounds) {
        let start = Instant::now();
        black_box(&mut *call)();
        found.push(start.elapsed().as_secs_f64());
    }
    found.sort_by(f64::total_cmp);
    (found[0], found[found.len() / 2])
}

fn print_head(peaks: &Peaks) {
    println!(
        "{} threads; peaks: {:.1} GFLOP/s ({}), {:.1} GB/s in memory, {:.1} GB/s in the cache\n",
        rayon::current_num_threads(),
        peaks.gflops,
        peaks.arithmetic(),
        peaks.memory,
        peaks.cache,
    );
    println!(
        "{:28} {:16} {:>12} {:>12} {:>8} {:7}  {:8}{:>6}{:>11}",
        "kernel", "shape", "fastest", "median", "rate", "", "bound", "share", "Winograd's",
    );
}

fn names_json(case: &Case) -> String {
    format!("\"name\": \"{}\", \"kernel\": \"{}\", \"shape\": \"{}\"", case.name(), case.kernel, case.shape)
}

fn peaks_json(peaks: &Peaks) -> String {
    format!(
        "\"threads\": {}, \"arithmetic\": \"{}\", \"peak_gflops\": {:.2}, \"memory_gbs\": {:.2}, \"cache_gbs\": {:.2}",
        rayon::current_num_threads(),
        peaks.arithmetic(),
        peaks.gflops,
        peaks.memory,
        peaks.cache,
    )
}
