//! The loss on held-out data, by quarter of t, from the averaged network in eval behaviour.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::device::in_pool;
use crate::diffusion::{Diffusion, Draws, Examples};
use crate::models::Network;
use crate::nn::Eval;
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream, normal_batch};

/// With fewer examples than this, each is measured in all quarters: with one quarter each, some quarters would have fewer than two, and so no
/// spread.
const FEW: usize = 8;

/// Mean losses, weighted as in training, on white noise: without offset noise, even if training uses it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutLoss {
    pub mean: f64,
    /// Standard error of the mean over examples; `None` for a single one.
    pub standard_error: Option<f64>,
    /// The mean loss over the cleanest quarter of the noise levels used in training (t in `[0, T/4)`), the next quarter, ...
    pub by_quarter: [f64; 4],
    /// Number of examples measured.
    pub n: usize,
}

/// The loss on batches: tensors `[b, c, ...]`, or [`Examples`] with classes and conditions. The noise level of example `i` lies in quarter
/// `i mod 4`; with fewer than eight examples, each is measured in every quarter. A network with self-conditioning gets its own first estimate. Levels
/// and noise depend only on (seed, i), so that two measurements differ only by the network. `None` without any example.
pub fn held_out_loss<M: Network>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    batches: impl Iterator<Item = impl Into<Examples>>,
    seed: u64,
    device: &Device,
) -> Option<HeldOutLoss> {
    let mut batches = batches.map(Into::<Examples>::into);
    let mut first = Vec::new();
    let count = |batches: &[Examples]| batches.iter().map(|examples| examples.data.dims()[0]).sum::<usize>();
    while count(&first) < FEW {
        let Some(examples) = batches.next() else { break };
        first.push(examples);
    }
    let few = count(&first) < FEW;
    let times = if few { 4 } else { 1 };
    let batches = first.into_iter().map(|examples| repeated(examples, times)).chain(batches);
    let losses = losses(model, &diffusion.with_schedule_of(&**model).measuring(), batches, seed, device);
    (!losses.is_empty()).then(|| if few { of_few(&losses) } else { of_many(&losses) })
}

/// The losses of examples; the noise level of number `i` lies in quarter `i mod 4`.
fn losses<M: Network>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    batches: impl Iterator<Item = Examples>,
    seed: u64,
    device: &Device,
) -> Vec<f64> {
    let mut all = Vec::new();
    for examples in batches {
        let (dims, first) = (examples.data.dims(), all.len() as u64);
        let draws = Draws {
            times: (first..first + dims[0] as u64).map(|i| diffusion.formulation().time(stratified(seed, i))).collect(),
            noise: vec![normal_batch(seed, Purpose::HeldOut, first, 1, dims, device)],
            offset_noise: None,
            // As samplers do, so that the loss is that of the network as it is used.
            self_condition: true,
            keep_condition: Vec::new(),
        };
        let losses = in_pool(|| host_values(diffusion.loss::<M>(model, examples, &draws)));
        all.extend(losses.into_iter().map(f64::from));
    }
    all
}

/// Each example repeated `times` times in a row.
fn repeated(examples: Examples, times: usize) -> Examples {
    if times == 1 {
        return examples;
    }
    let n = examples.data.dims()[0];
    let places: Vec<i64> = (0..n * times).map(|i| (i / times) as i64).collect();
    let rows = |data: Tensor<4>| {
        let places: Tensor<1, Int> = Tensor::from_data(TensorData::new(places.clone(), [n * times]), &data.device());
        data.select(0, places)
    };
    let repeat = |row: &[f32]| row.repeat(times);
    Examples {
        data: rows(examples.data),
        classes: examples.classes.map(|of| of.into_iter().flat_map(|class| [class].repeat(times)).collect()),
        condition: examples.condition.map(rows),
        vectors: examples.vectors.map(|of| of.chunks((of.len() / n).max(1)).flat_map(repeat).collect()),
        augment_labels: None,
    }
}

/// For examples with one loss each, at least two in every quarter.
fn of_many(losses: &[f64]) -> HeldOutLoss {
    let (mut sums, mut squares, mut counts) = ([0.0; 4], [0.0; 4], [0_usize; 4]);
    for (i, loss) in losses.iter().enumerate() {
        sums[i % 4] += loss;
        squares[i % 4] += loss.powi(2);
        counts[i % 4] += 1;
    }
    let n = losses.len();
    // The variance of a mean over strata: for each, its share of the examples squared, times its variance over its count.
    let variance = (0..4).map(|q| {
        let count = counts[q] as f64;
        let within = (squares[q] - sums[q] * sums[q] / count).max(0.0) / (count - 1.0);
        (count / n as f64).powi(2) * within / count
    });
    HeldOutLoss {
        mean: sums.iter().sum::<f64>() / n as f64,
        standard_error: Some(variance.sum::<f64>().sqrt()),
        by_quarter: std::array::from_fn(|q| sums[q] / counts[q] as f64),
        n,
    }
}

/// For examples with four losses each, one in every quarter.
fn of_few(losses: &[f64]) -> HeldOutLoss {
    let n = losses.len() / 4;
    let of_examples: Vec<f64> = losses.chunks_exact(4).map(|of| of.iter().sum::<f64>() / 4.0).collect();
    let mean = of_examples.iter().sum::<f64>() / n as f64;
    let variance = of_examples.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n.max(2) - 1) as f64;
    HeldOutLoss {
        mean,
        standard_error: (n > 1).then(|| (variance / n as f64).sqrt()),
        by_quarter: std::array::from_fn(|q| losses.iter().skip(q).step_by(4).sum::<f64>() / n as f64),
        n,
    }
}

/// A number in quarter `i mod 4` of (0, 1).
fn stratified(seed: u64, i: u64) -> f64 {
    ((i % 4) as f64 + Stream::new(seed, Purpose::HeldOut, i, 0).uniform()) / 4.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::DiffusionConfig;
    use crate::models::{Unet, UnetConfig};
    use crate::nn::{EvalMode, Init};

    #[test]
    fn times_lie_in_their_quarter() {
        for i in 0..400 {
            assert_eq!((stratified(3, i) * 4.0) as u64, i % 4);
        }
    }

    /// With seven examples each counts in every quarter, with eight each in one.
    #[test]
    fn few_examples_have_a_loss_in_every_quarter_and_a_spread() {
        let few = of_few(&[1.0, 2.0, 3.0, 6.0, 3.0, 4.0, 5.0, 8.0]);
        assert_eq!(few, HeldOutLoss { mean: 4.0, standard_error: Some(1.0), by_quarter: [2.0, 3.0, 4.0, 7.0], n: 2 });
        let one = of_few(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(one, HeldOutLoss { mean: 3.0, standard_error: None, by_quarter: [1.0, 2.0, 3.0, 6.0], n: 1 });
    }

    /// Training gives it one half of the time, so that both losses exist; samplers always do.
    #[test]
    fn a_network_with_self_conditioning_gets_its_own_estimate() {
        let device = Device::flex();
        let config =
            UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, self_condition: true, ..UnetConfig::default() };
        let unet = Unet::new(&config, &mut Init::new(0, &device.clone().autodiff())).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let data = normal_batch(1, Purpose::Evaluation, 0, 0, [8, 1, 4, 4], &device);
        let measured = held_out_loss(&unet, &diffusion, [data.clone()].into_iter(), 0, &device).unwrap();
        let mean = |self_condition| {
            let draws = Draws {
                times: (0..8).map(|i| diffusion.formulation().time(stratified(0, i))).collect(),
                noise: vec![normal_batch(0, Purpose::HeldOut, 0, 1, [8, 1, 4, 4], &device)],
                offset_noise: None,
                self_condition,
                keep_condition: Vec::new(),
            };
            host_values(diffusion.loss::<Unet>(&unet, data.clone(), &draws)).iter().map(|&x| f64::from(x)).sum::<f64>()
                / 8.0
        };
        assert!(
            (measured.mean - mean(true)).abs() < 1e-6 && (measured.mean - mean(false)).abs() > 1e-4,
            "{measured:?}"
        );
    }

    #[test]
    fn quarters_and_error_of_every_number_of_examples_are_known() {
        let device = Device::flex();
        let config = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
        let unet = Unet::new(&config, &mut Init::new(0, &device.clone().autodiff())).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let measure = |n: usize, size: usize| {
            let data = normal_batch(1, Purpose::Evaluation, 0, 0, [n, 1, 4, 4], &device);
            let batches = (0..n).step_by(size).map(|at| data.clone().narrow(0, at, size.min(n - at)));
            held_out_loss(&unet, &diffusion, batches.collect::<Vec<Tensor<4>>>().into_iter(), 0, &device).unwrap()
        };
        for n in [1, 2, 3, 4, 7, 8, 9] {
            let loss = measure(n, 32);
            assert_eq!((loss.n, loss.standard_error.is_none()), (n, n == 1), "{loss:?}");
            assert!(loss.by_quarter.iter().all(|loss| *loss > 0.0), "{loss:?}");
            assert!(loss.standard_error.is_none_or(|error| error > 0.0), "{loss:?}");
            let in_parts = measure(n, 3);
            assert!((loss.mean - in_parts.mean).abs() < 1e-4 * loss.mean, "{loss:?} {in_parts:?}");
        }
        // With few examples, every quarter counts the same.
        let three = measure(3, 32);
        assert!((three.by_quarter.iter().sum::<f64>() / 4.0 - three.mean).abs() < 1e-9, "{three:?}");
    }
}
