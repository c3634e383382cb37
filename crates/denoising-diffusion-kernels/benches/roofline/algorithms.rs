//! Compares direct computation with Winograd's method, on which the choice of `ConvAlgorithm::Auto` is based, and work in f32 with that in bf16.

use denoising_diffusion_kernels::attention::Factors;
use denoising_diffusion_kernels::conv::{Conv2dShape, ConvAlgorithm};
use denoising_diffusion_kernels::multiplies_bf16;

use super::cases::Case;
use super::time;
use super::work::{Pass, Work};

/// Numbers of images and their side, starting with one tile of 4 x 4 outputs.
const IMAGES: [(usize, usize); 11] =
    [(1, 4), (4, 4), (8, 4), (16, 4), (1, 8), (4, 8), (1, 16), (1, 32), (4, 5), (16, 7), (32, 14)];
/// Number of calls of each algorithm per round.
const ROUND: usize = 5;
const CHANNELS: [usize; 7] = [4, 8, 16, 32, 64, 128, 512];

/// Prints, for each pass, how many times faster the second algorithm is, by images and channels.
pub fn print_table(algorithms: [ConvAlgorithm; 2]) {
    let [first, second] = algorithms;
    for pass in [Pass::Forward, Pass::InputGrad, Pass::WeightGrad] {
        println!("\n{}: time of {first:?} / time of {second:?}\n", pass.name());
        let heads: Vec<String> = CHANNELS.iter().map(|c| format!(" {c} |")).collect();
        println!("| images | tiles |{}\n|---|---|{}", heads.concat(), "---|".repeat(CHANNELS.len()));
        for (batch, side) in IMAGES {
            let cells: Vec<String> =
                CHANNELS.iter().map(|&c| format!(" {:.2} |", ratio(algorithms, pass, batch, side, c))).collect();
            println!("| {batch} of {side}^2 | {} |{}", batch * side.div_ceil(4).pow(2), cells.concat());
        }
    }
}

fn ratio(algorithms: [ConvAlgorithm; 2], pass: Pass, batch: usize, side: usize, channels: usize) -> f64 {
    let shape = Conv2dShape {
        batch,
        height: side,
        width: side,
        upsample: 1,
        in_channels: channels,
        out_channels: channels,
        kernel: [3, 3],
        stride: 1,
        padding: [1; 2],
    };
    let work = |algorithm| Work::Conv { shape, algorithm, pass };
    let [first, second] = fastest(algorithms.map(work));
    first / second
}

/// The fastest call of each, in seconds.
fn fastest(work: [Work; 2]) -> [f64; 2] {
    let mut calls = work.map(|work| work.prepare());
    // In turn, so that other work of the machine affects both.
    let rounds: Vec<[f64; 2]> = (0..4).map(|_| calls.each_mut().map(|call| time(&mut **call, Some(ROUND)).0)).collect();
    [0, 1].map(|i| rounds.iter().map(|round| round[i]).fold(f64::INFINITY, f64::min))
}

/// As [`print_table`] for f32 and bf16; then prints the fastest call of each convolution and full attention in f32 and in bf16, its rate in bf16, and
/// how many times faster that is.
pub fn print_bf16(cases: &[Case]) {
    if !multiplies_bf16() {
        return println!("this machine has no matrix unit for bf16");
    }
    print_table([ConvAlgorithm::Auto, ConvAlgorithm::Bf16]);
    println!();
    for case in cases {
        let in_bf16 = match case.work {
            Work::Conv { shape, algorithm: ConvAlgorithm::Auto, pass } => {
                Work::Conv { shape, algorithm: ConvAlgorithm::Bf16, pass }
            }
            Work::Attention { shape, linear: false, pass, .. } => {
                Work::Attention { shape, linear: false, factors: Factors::Bf16, pass }
            }
            _ => continue,
        };
        let [auto, bf16] = fastest([case.work, in_bf16]);
        let (rate, ratio) = (case.work.flops() as f64 / bf16 * 1e-9, auto / bf16);
        let name = case.name();
        println!("{name:44} {:8.3} ms {:8.3} ms {rate:8.1} GFLOP/s {ratio:6.2}", auto * 1e3, bf16 * 1e3);
    }
}
