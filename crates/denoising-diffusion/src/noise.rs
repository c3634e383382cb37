//! Counter-based random streams. Every number is a function of (seed, purpose, index, part) and is drawn on the host, so noise never depends on batch
//! size, number of threads, device, or how often a run was resumed.
//!
//! Not here: how counters become numbers (`denoising_diffusion_kernels::random`), the draws of dropout (`nn::Dropout`), and Burn's own generator,
//! which is global to the process and only used by layers that are not ours.

use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion_kernels::random::{normal_pair, normals, philox4x32_10};
use rayon::prelude::*;

/// What a stream is for. Streams of different purposes never share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights; index: the parameter's position in the network.
    Init = 1,
    /// The noise level of a training example; index: its number since the start of training. The start of stratified levels; index: the number of the
    /// batch, part: 1.
    TrainTime = 2,
    /// The noise of a training example; index: its number, part: the candidate, of which there are several with forward explorative modelling.
    TrainNoise = 3,
    /// The offset noise of a training example; index: its number.
    OffsetNoise = 4,
    /// The coin of self-conditioning; index: the number of the batch.
    SelfCondition = 5,
    /// x_T of a sample; index: the sample's number.
    SampleInit = 6,
    /// Noise added while sampling; index: the sample's number, part: the step.
    SampleStep = 7,
    /// Keys of dropout masks, and seeds of Burn's generator; index: the number of the batch, part: 0 before the loss, 1 for the loss.
    Dropout = 8,
    /// Noise levels and noise of held-out examples; index: the example, part: 0 for the level, 1 for the noise of the loss, t + 2 for that of the
    /// bound's term t.
    HeldOut = 9,
    /// Draws of metrics (subsets, resampling, directions); index and part are up to the metric.
    Evaluation = 10,
    /// Whether a training example keeps its condition; index: its number.
    DropCondition = 11,
    /// How a training image is augmented; index: the number of the example.
    Augment = 12,
    /// Draws of the likelihood; index: the held-out example, part: 0 for the noise that makes intervals of values, 1 for the signs.
    Likelihood = 13,
}

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    index: u64,
    part: u32,
    block: u32,
    buffer: [u32; 4],
    used: usize,
}

impl Stream {
    /// The stream of (seed, purpose, index, part).
    pub fn new(seed: u64, purpose: Purpose, index: u64, part: u32) -> Self {
        let key = mix(seed ^ mix(purpose as u64));
        Self { key: [key as u32, (key >> 32) as u32], index, part, block: 0, buffer: [0; 4], used: 4 }
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.buffer = philox4x32_10(self.counter(), self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in the open interval (0, 1), never 0 or 1.
    pub fn uniform(&mut self) -> f64 {
        (f64::from(self.next_u32()) + 0.5) / 4_294_967_296.0
    }

    /// Uniform in (0, 1), from 52 random bits.
    pub fn uniform_f64(&mut self) -> f64 {
        ((self.next_u64() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Uniform in 0..n (n at most 2^32; the bias is less than n / 2^64).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Fills `out` with standard normal numbers.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        let at_a_time = if self.used == 4 { out.len() / 4 * 4 } else { 0 };
        let (many, rest) = out.split_at_mut(at_a_time);
        normals(self.counter(), self.key, many);
        self.block += (many.len() / 4) as u32;
        for pair in rest.chunks_mut(2) {
            let numbers = normal_pair([self.next_u32(), self.next_u32()]);
            pair.copy_from_slice(&numbers[..pair.len()]);
        }
    }

    fn counter(&self) -> [u32; 4] {
        [self.block, self.part, self.index as u32, (self.index >> 32) as u32]
    }
}

/// Standard normal noise for a batch `[b, ...]` of shape `dims`: example `i` from the stream (seed, purpose, first + i, part).
pub fn normal_batch<const D: usize>(
    seed: u64,
    purpose: Purpose,
    first: u64,
    part: u32,
    dims: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let size: usize = dims[1..].iter().product();
    let mut values = vec![0.0_f32; dims[0] * size];
    values.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, chunk)| {
        Stream::new(seed, purpose, first + i as u64, part).fill_normal(chunk);
    });
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// A well-mixed function of 64 bits (the finaliser of SplitMix64, Steele et al. 2014).
pub fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal() {
        let mut values = vec![0.0; 200_001];
        Stream::new(7, Purpose::TrainNoise, 3, 0).fill_normal(&mut values);
        let n = values.len() as f64;
        let moment = |k: i32| values.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.1, "{} {}", moment(3), moment(4));
    }

    #[test]
    fn many_numbers_at_once_are_those_of_one_pair_after_the_other() {
        for (before, count) in [(0, 70), (1, 9), (2, 9), (3, 4), (4, 1)] {
            let stream = || {
                let mut stream = Stream::new(7, Purpose::TrainNoise, 3, 0);
                (0..before).for_each(|_| _ = stream.next_u32());
                stream
            };
            let (mut at_once, mut in_pairs) = (vec![0.0; count], vec![0.0; count]);
            let [mut one, mut other] = [stream(), stream()];
            one.fill_normal(&mut at_once);
            in_pairs.chunks_mut(2).for_each(|pair| other.fill_normal(pair));
            assert_eq!((at_once, one.next_u32()), (in_pairs, other.next_u32()), "after {before} words");
        }
    }

    #[test]
    fn noise_of_an_example_does_not_depend_on_the_batch() {
        let device = Device::flex();
        let draw = |first: u64, b: usize| {
            normal_batch::<2>(1, Purpose::SampleInit, first, 0, [b, 5], &device)
                .into_data()
                .try_to_vec::<f32>()
                .unwrap()
        };
        let whole = draw(0, 6);
        assert_eq!(whole[10..20], draw(2, 2));
        assert_ne!(whole[0..5], whole[5..10]);
    }

    #[test]
    fn streams_differ_by_seed_purpose_index_and_part() {
        let first = |seed, purpose, index, part| Stream::new(seed, purpose, index, part).next_u64();
        let base = first(1, Purpose::Init, 1, 1);
        for other in [
            first(2, Purpose::Init, 1, 1),
            first(1, Purpose::TrainTime, 1, 1),
            first(1, Purpose::Init, 2, 1),
            first(1, Purpose::Init, 1, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut stream = Stream::new(0, Purpose::TrainTime, 0, 0);
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            counts[stream.below(10)] += 1;
        }
        assert!(counts.iter().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }
}
