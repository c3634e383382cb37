//! The loss on data that training does not see, by quarter of t, from the averaged network in eval behaviour.

use burn::tensor::Device;

use crate::device::in_pool;
use crate::diffusion::{Diffusion, Draws, Examples};
use crate::models::Network;
use crate::nn::Eval;
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream, normal_batch};

/// Mean losses, weighted as in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutLoss {
    pub mean: f64,
    /// Of the mean, over examples within their quarters; 0 with fewer than two of them in a quarter.
    pub standard_error: f64,
    /// The loss over the cleanest quarter of the noise levels that training draws (t in `[0, T/4)`), the next one, ...
    pub by_quarter: [f64; 4],
    /// Examples measured.
    pub n: usize,
}

/// The loss on batches: tensors `[b, c, ...]`, or [`Examples`] with classes and conditions. Example `i` has its noise level in quarter `i mod 4`; level and noise depend on (seed, i) alone, so that
/// two measurements differ by the network only. `None` without any example.
pub fn held_out_loss<const D: usize, M: Network<D>>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    batches: impl Iterator<Item = impl Into<Examples<D>>>,
    seed: u64,
    device: &Device,
) -> Option<HeldOutLoss> {
    let diffusion = diffusion.with_schedule_of(&**model).measuring();
    let (mut sums, mut squares, mut counts, mut first) = ([0.0; 4], [0.0; 4], [0_usize; 4], 0_u64);
    for examples in batches {
        let examples: Examples<D> = examples.into();
        let dims = examples.data.dims();
        let b = dims[0] as u64;
        let draws = Draws {
            times: (first..first + b).map(|i| diffusion.formulation().time(stratified(seed, i))).collect(),
            noise: vec![normal_batch(seed, Purpose::HeldOut, first, 1, dims, device)],
            offset_noise: None,
            self_condition: false,
            keep_condition: Vec::new(),
        };
        let losses = in_pool(|| host_values(diffusion.loss::<D, M>(model, examples, &draws)));
        for (i, loss) in (first..).zip(losses) {
            sums[(i % 4) as usize] += f64::from(loss);
            squares[(i % 4) as usize] += f64::from(loss).powi(2);
            counts[(i % 4) as usize] += 1;
        }
        first += b;
    }
    let n: usize = counts.iter().sum();
    let by_quarter = std::array::from_fn(|q| sums[q] / counts[q].max(1) as f64);
    // The variance of a mean over strata: within each, its share of the examples squared, times its variance over its count.
    let variance = (0..4).filter(|&q| counts[q] > 1).map(|q| {
        let count = counts[q] as f64;
        let within = (squares[q] - sums[q] * sums[q] / count).max(0.0) / (count - 1.0);
        (count / n as f64).powi(2) * within / count
    });
    let standard_error = variance.sum::<f64>().sqrt();
    (n > 0).then(|| HeldOutLoss { mean: sums.iter().sum::<f64>() / n as f64, standard_error, by_quarter, n })
}

/// A share of the training examples in quarter `i mod 4` of (0, 1).
fn stratified(seed: u64, i: u64) -> f64 {
    ((i % 4) as f64 + Stream::new(seed, Purpose::HeldOut, i, 0).uniform()) / 4.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_in_their_quarter() {
        for i in 0..400 {
            assert_eq!((stratified(3, i) * 4.0) as u64, i % 4);
        }
    }
}
