//! The loss on data that training does not see, by quarter of t, from the averaged network in eval behaviour.

use burn::tensor::{Device, Tensor};

use crate::diffusion::{Draws, GaussianDiffusion};
use crate::models::Network;
use crate::nn::Eval;
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream, normal_batch};

/// Mean losses, weighted as in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutLoss {
    pub mean: f64,
    /// The loss over t in `[0, T/4)`, `[T/4, T/2)`, ...
    pub by_quarter: [f64; 4],
    /// Examples measured.
    pub n: usize,
}

/// The loss on batches `[b, c, ...]`. Example `i` has its t in quarter `i mod 4`; t and noise depend on (seed, i) alone, so that
/// two measurements differ by the network only. `None` without any example.
pub fn held_out_loss<const D: usize, M: Network<D>>(
    model: &Eval<M>,
    diffusion: &GaussianDiffusion,
    batches: impl Iterator<Item = Tensor<D>>,
    seed: u64,
    device: &Device,
) -> Option<HeldOutLoss> {
    let timesteps = diffusion.config().timesteps;
    let (mut sums, mut counts, mut first) = ([0.0; 4], [0_usize; 4], 0_u64);
    for images in batches {
        let b = images.dims()[0] as u64;
        let draws = Draws {
            t: (first..first + b).map(|i| stratified_time(seed, i, timesteps)).collect(),
            noise: normal_batch(seed, Purpose::HeldOut, first, 1, images.dims(), device),
            offset_noise: None,
            self_condition: false,
        };
        // On a thread of the pool, so that none of the network's parallel loops has to wake one up.
        let losses =
            denoising_diffusion_kernels::without_sleep(|| host_values(diffusion.loss::<D, M>(model, images, &draws)));
        for (i, loss) in (first..).zip(losses) {
            sums[(i % 4) as usize] += f64::from(loss);
            counts[(i % 4) as usize] += 1;
        }
        first += b;
    }
    let n: usize = counts.iter().sum();
    let by_quarter = std::array::from_fn(|q| sums[q] / counts[q].max(1) as f64);
    (n > 0).then(|| HeldOutLoss { mean: sums.iter().sum::<f64>() / n as f64, by_quarter, n })
}

/// A time in quarter `i mod 4` of 0..T.
fn stratified_time(seed: u64, i: u64, timesteps: usize) -> usize {
    let within = Stream::new(seed, Purpose::HeldOut, i, 0).uniform();
    let time = ((i % 4) as f64 + within) / 4.0 * timesteps as f64;
    (time as usize).min(timesteps - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_in_their_quarter() {
        for i in 0..400 {
            assert_eq!(stratified_time(3, i, 1000) / 250, (i % 4) as usize);
        }
    }
}
