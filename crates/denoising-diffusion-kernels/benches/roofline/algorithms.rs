//! Compares direct computation with Winograd's method; the choice of `ConvAlgorithm::Auto` is based on this.

use denoising_diffusion_kernels::conv::{Conv2dShape, ConvAlgorithm};

use super::time;
use super::work::{Pass, Work};

/// Numbers of images and their side, starting with one tile of 4 x 4 outputs.
const IMAGES: [(usize, usize); 11] =
    [(1, 4), (4, 4), (8, 4), (16, 4), (1, 8), (4, 8), (1, 16), (1, 32), (4, 5), (16, 7), (32, 14)];
/// Number of calls of each algorithm per round.
const ROUND: usize = 5;
const CHANNELS: [usize; 7] = [4, 8, 16, 32, 64, 128, 512];

/// Prints, for each pass, how many times faster Winograd's method is, by images and channels.
pub fn print_table() {
    for pass in [Pass::Forward, Pass::InputGrad, Pass::WeightGrad] {
        println!("\n{}: time of Direct / time of Winograd\n", pass.name());
        let heads: Vec<String> = CHANNELS.iter().map(|c| format!(" {c} |")).collect();
        println!("| images | tiles |{}\n|---|---|{}", heads.concat(), "---|".repeat(CHANNELS.len()));
        for (batch, side) in IMAGES {
            let cells: Vec<String> =
                CHANNELS.iter().map(|&c| format!(" {:.2} |", ratio(pass, batch, side, c))).collect();
            println!("| {batch} of {side}^2 | {} |{}", batch * side.div_ceil(4).pow(2), cells.concat());
        }
    }
}

fn ratio(pass: Pass, batch: usize, side: usize, channels: usize) -> f64 {
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
    let [mut direct, mut winograd] = [ConvAlgorithm::Direct, ConvAlgorithm::Winograd]
        .map(|algorithm| Work::Conv { shape, algorithm, pass }.prepare());
    // In turn, so that other work of the machine affects both.
    let rounds: Vec<[f64; 2]> =
        (0..4).map(|_| [&mut direct, &mut winograd].map(|call| time(&mut **call, Some(ROUND)).0)).collect();
    let best = |i: usize| rounds.iter().map(|round| round[i]).fold(f64::INFINITY, f64::min);
    best(0) / best(1)
}
