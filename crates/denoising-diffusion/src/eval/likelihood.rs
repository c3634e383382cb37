//! The variational bound on the negative log-likelihood of images, in bits per dimension (Ho et al. 2020, "Denoising diffusion
//! probabilistic models", arXiv:2006.11239, eq. 5):
//!
//! `L = KL(q(x_T | x_0) || p(x_T)) + sum over t > 1 of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) - log p(x_0 | x_1)`
//!
//! p's variance is that of the posterior (the small one of ancestral sampling; for the last step that of the step before, as in Nichol & Dhariwal
//! 2021, arXiv:2102.09672) or, if the network has learned one, the learned one (ibid., eq. 15); its estimate of x_0 is clamped to the data's range,
//! and the last term is that of 8-bit values under a discretised Gaussian whose distribution function is the usual tanh approximation.
//!
//! In continuous time the bound depends only on the endpoints of the schedule (Kingma et al. 2021, "Variational diffusion models", arXiv:2107.00630,
//! section 5.1), but a sum in place of the integral depends on where its levels lie. It is taken over [`LEVELS`] levels evenly spaced in log-SNR
//! over the formulation's range, as far as the noise is no finer than [`RESOLUTION`]. The deviation of the last step is the noise of the cleanest
//! level, `sigma / alpha`: the posterior of so small a step is far narrower than what is known of x_0. This makes formulations comparable with each
//! other. Not here: the training loss, which weights the same terms differently, and the likelihood of the probability flow
//! ([`super::flow_likelihood`]).

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::result::{BitsPerDim, JudgedOn};
use crate::data::{Batch, DataError, ImageBatch};
use crate::diffusion::{Denoiser, Diffusion, Formulation, NetworkDenoiser, NoiseLevel, SharedConfig, even_in_log_snr};
use crate::models::Network;
use crate::nn::Eval;
use crate::nn::params::{from_host, host_values};
use crate::noise::{Purpose, Stream};

/// Smaller probabilities count as this one: for 8-bit values far from the mean, a float cannot tell them from 0.
const LEAST_PROBABILITY: f64 = 1e-12;

/// Number of noise levels for formulations that do not have a fixed number.
pub const LEVELS: usize = 1000;

/// The finest noise of these levels, `sigma / alpha`, on the network's scale: half a step of 8-bit values. Below it the sum would ask for digits
/// that the data do not have.
pub const RESOLUTION: f64 = 1.0 / 255.0;

/// Default number of times at which the terms are computed; between them they are interpolated.
pub const TERMS: usize = 64;

/// Why the bound, or the likelihood of the flow, cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum LikelihoodError {
    #[error(
        "bits per dimension are defined for data in [-1, 1] (auto_normalize), and for at least 2 images and 2 timesteps"
    )]
    Undefined,
    #[error("the network's output at t = {t} is not finite")]
    NotFinite { t: usize },
    #[error("the network's output or its gradient is not finite where sigma / alpha is {noise:.3}")]
    FlowNotFinite { noise: f64 },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("interrupted")]
    Interrupted,
}

/// The bound of images in [0, 1] under their conditions, a part at a time. The terms are computed at `terms` times and interpolated linearly between
/// them: in discrete time denser where noise is small, in continuous time evenly in log-SNR, and at all times if `terms` is large enough. A network
/// with self-conditioning gets its own first estimate. Noise depends only on (seed, image, t).
/// `on_batch` is called with the number of evaluations done, out of `n` times [`evaluations`].
///
/// # Errors
/// [`LikelihoodError`].
pub fn bits_per_dim<M: Network>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    parts: impl Iterator<Item = Result<Batch, DataError>>,
    terms: usize,
    seed: u64,
    device: &Device,
    on_batch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<BitsPerDim, LikelihoodError> {
    if !is_defined(diffusion.shared()) {
        return Err(LikelihoodError::Undefined);
    }
    let diffusion = diffusion.with_schedule_of::<M>(model);
    let formulation = diffusion.formulation();
    let (chain, times) = (Chain::of(formulation), times(formulation.timesteps(), terms));
    let bound = Bound { model, diffusion: &diffusion, chain: &chain, seed, device };
    // `[times, n]` and `[n]`: bits per dimension of each image.
    let (mut bits, mut prior) = (vec![Vec::new(); times.len()], Vec::new());
    for part in parts {
        let part = part?;
        let first = prior.len();
        for (k, (&t, bits)) in times.iter().zip(&mut bits).enumerate() {
            bits.extend(bound.terms(&part, first, t)?);
            if on_batch(first * times.len() + (k + 1) * part.len()).is_break() {
                return Err(LikelihoodError::Interrupted);
            }
        }
        let len = part.images.data.len() / part.len();
        prior.par_extend(part.images.data.par_chunks_exact(len).map(|image| chain.prior(image)));
    }
    if prior.len() < 2 {
        return Err(LikelihoodError::Undefined);
    }
    Ok(add_up(&times, &bits, &prior))
}

/// What is needed to compute the terms of images.
struct Bound<'a, M> {
    model: &'a Eval<M>,
    diffusion: &'a Diffusion,
    chain: &'a Chain,
    seed: u64,
    device: &'a Device,
}

impl<M: Network> Bound<'_, M> {
    /// The terms at t of images numbered from `first`.
    fn terms(&self, part: &Batch, first: usize, t: usize) -> Result<Vec<f64>, LikelihoodError> {
        let Self { model, diffusion, chain, seed, device } = *self;
        let level = chain.level(t);
        let [count, c, h, w] = part.images.shape;
        let len = c * h * w;
        let x_start: Vec<f32> = part.images.data.iter().map(|v| 2.0 * v - 1.0).collect();
        let x = TensorData::new(noised(level, &x_start, len, t, seed, first), [count, c, h, w]);
        let denoiser = told(part, diffusion.denoiser(model), device);
        let x: Tensor<4> = Tensor::from_data(x, device);
        // As samplers do, but from the same x, so that a step depends on nothing else.
        let earlier = model.self_condition().then(|| denoiser.denoise(x.clone(), level, None).x_start);
        let estimate = denoiser.denoise(x, level, earlier);
        let (estimate, variance) = (host_values(estimate.x_start), estimate.variance.map(host_values));
        if estimate.iter().chain(variance.iter().flatten()).any(|v| !v.is_finite()) {
            return Err(LikelihoodError::NotFinite { t });
        }
        let of_image = |i: usize| {
            let at = i * len..(i + 1) * len;
            chain.term(t, &x_start[at.clone()], &estimate[at.clone()], variance.as_ref().map(|v| &v[at]))
        };
        Ok((0..count).into_par_iter().map(of_image).collect())
    }
}

/// A denoiser with the conditions of the examples of a batch.
pub(super) fn told<'a, M: Network>(
    batch: &Batch,
    mut denoiser: NetworkDenoiser<'a, M>,
    device: &Device,
) -> NetworkDenoiser<'a, M> {
    if let Some(classes) = &batch.classes {
        denoiser = denoiser.with_classes(classes.clone());
    }
    if let Some(vectors) = &batch.vectors {
        denoiser = denoiser.with_vectors(vectors.clone());
    }
    match &batch.conditions {
        Some(ImageBatch { shape, data }) => denoiser.with_condition(from_host(data.clone(), *shape, device)),
        None => denoiser,
    }
}

/// Sums over t per image, then means over images.
fn add_up(times: &[usize], bits: &[Vec<f64>], prior: &[f64]) -> BitsPerDim {
    let n = prior.len();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n as f64;
    let (reconstruction, diffusion) = (&bits[0], sums_between(&times[1..], &bits[1..]));
    let totals: Vec<f64> = (0..n).map(|i| prior[i] + diffusion[i] + reconstruction[i]).collect();
    let total = mean(&totals);
    let variance = totals.iter().map(|v| (v - total).powi(2)).sum::<f64>() / (n - 1) as f64;
    BitsPerDim {
        on: JudgedOn::Given,
        n,
        total,
        standard_error: (variance / n as f64).sqrt(),
        prior: mean(prior),
        diffusion: mean(&diffusion),
        reconstruction: mean(reconstruction),
        terms: times.iter().zip(bits).map(|(&t, bits)| (t, mean(bits))).collect(),
    }
}

/// For each image, the sum of the terms over all integers from the first time to the last, interpolated linearly between the given ones.
fn sums_between(times: &[usize], bits: &[Vec<f64>]) -> Vec<f64> {
    // Over m steps, a straight line sums to m (a + b) / 2 plus half of each end; inner ends are shared.
    let mut weights = vec![0.0; times.len()];
    for (k, pair) in times.windows(2).enumerate() {
        let half = (pair[1] - pair[0]) as f64 / 2.0;
        weights[k] += half;
        weights[k + 1] += half;
    }
    weights[0] += 0.5;
    weights[times.len() - 1] += 0.5;
    let images = bits[0].len();
    (0..images).map(|i| weights.iter().zip(bits).map(|(weight, bits)| weight * bits[i]).sum()).collect()
}

/// Whether bits per dimension are defined for networks trained with these options.
pub fn is_defined(shared: &SharedConfig) -> bool {
    shared.auto_normalize
}

/// Number of evaluations of the network by [`bits_per_dim`] per image.
pub fn evaluations(diffusion: &Diffusion, terms: usize) -> usize {
    times(diffusion.formulation().timesteps(), terms).len()
}

/// 0, then times from 1 to the last: in discrete time (with this number of steps) at equal ratios, as far as integers allow, in continuous time
/// evenly; all times if `terms` is large enough.
fn times(timesteps: Option<usize>, terms: usize) -> Vec<usize> {
    let count = timesteps.unwrap_or(LEVELS);
    if terms >= count {
        return (0..count).collect();
    }
    let last = (count - 1) as f64;
    let inner = terms.max(3) - 1;
    let time = |share: f64| if timesteps.is_some() { last.powf(share) } else { 1.0 + share * (last - 1.0) };
    let mut times: Vec<usize> = (0..inner).map(|k| time(k as f64 / (inner - 1) as f64).round() as usize).collect();
    times.insert(0, 0);
    times.dedup();
    times
}

/// x_t of images in [-1, 1], numbered from `first`.
fn noised(level: NoiseLevel, x_start: &[f32], len: usize, t: usize, seed: u64, first: usize) -> Vec<f32> {
    let mut noise = vec![0.0; x_start.len()];
    noise.par_chunks_exact_mut(len).enumerate().for_each(|(i, noise)| {
        // Parts 0 and 1 belong to the held-out loss.
        Stream::new(seed, Purpose::HeldOut, (first + i) as u64, t as u32 + 2).fill_normal(noise);
    });
    noise
        .iter()
        .zip(x_start)
        .map(|(eps, x)| (level.alpha * f64::from(*x) + level.sigma * f64::from(*eps)) as f32)
        .collect()
}

/// The steps that the bound is summed over.
struct Chain {
    /// Cleanest first, after clean data.
    levels: Vec<NoiseLevel>,
    /// Standard deviation of p(x_0 | x_1).
    last_deviation: f64,
    init_deviation: f64,
}

impl Chain {
    fn of(formulation: &dyn Formulation) -> Self {
        let mut levels = match formulation.timesteps() {
            Some(timesteps) => formulation.levels(timesteps),
            None => {
                let [noisiest, cleanest] = formulation.range().map(|level| level.log_snr());
                even_in_log_snr(formulation, LEVELS, cleanest.min(-2.0 * RESOLUTION.ln()).max(noisiest + 1.0))
            }
        };
        levels.reverse();
        let last_deviation = match formulation.timesteps() {
            Some(_) => levels[2].posterior_variance(&levels[1]).sqrt(),
            None => levels[1].sigma / levels[1].alpha,
        };
        Self { levels, last_deviation, init_deviation: formulation.init_deviation() }
    }

    fn level(&self, t: usize) -> NoiseLevel {
        self.levels[t + 1]
    }

    /// The term of one image at t, in bits per dimension. `variance` is what the network has learned of p's variance: 0 for the least, 1 for the
    /// largest, linear in the logarithm between them.
    fn term(&self, t: usize, x: &[f32], estimate: &[f32], variance: Option<&[f32]>) -> f64 {
        let (of_t, of_s) = (self.level(t), self.levels[t]);
        // The last step has no posterior variance of its own.
        let least = if t == 0 { self.last_deviation.powi(2) } else { of_t.posterior_variance(&of_s) };
        let range = (of_t.variance_given(&of_s) / least).ln();
        // The weight of x_0 in the posterior's mean.
        let in_mean = if t == 0 { 1.0 } else { of_s.alpha * of_t.variance_given(&of_s) / of_t.sigma.powi(2) };
        let nats = |i: usize| {
            let (x, estimate) = (f64::from(x[i]), f64::from(estimate[i]));
            let above_least = variance.map_or(0.0, |variance| f64::from(variance[i]) * range);
            if t == 0 {
                // The posterior's mean at the last step is the estimate itself.
                return -discretised_log_probability(x, estimate, (least * above_least.exp()).sqrt());
            }
            let squared = (in_mean * (x - estimate)).powi(2) / least;
            0.5 * (above_least + (-above_least).exp_m1() + squared * (-above_least).exp())
        };
        (0..x.len()).map(nats).sum::<f64>() / (x.len() as f64 * std::f64::consts::LN_2)
    }

    /// `KL(N(alpha_T x_0, sigma_T^2) || N(0, init_deviation^2))` of an image in [0, 1], in bits per dimension.
    fn prior(&self, image: &[f32]) -> f64 {
        let last = self.levels[self.levels.len() - 1];
        let variance = (last.sigma / self.init_deviation).powi(2);
        let signal = (last.alpha / self.init_deviation).powi(2);
        let squares = image.iter().map(|&v| (2.0 * f64::from(v) - 1.0).powi(2)).sum::<f64>() / image.len() as f64;
        0.5 * (-1.0 - variance.ln() + variance + signal * squares) / std::f64::consts::LN_2
    }
}

/// Log of the probability of an 8-bit value x in [-1, 1]: half a level of 1/255 on both sides, the outermost values extending to infinity.
fn discretised_log_probability(x: f64, mean: f64, deviation: f64) -> f64 {
    let below = |edge: f64| normal_cdf((edge - mean) / deviation);
    let probability = match x {
        _ if x < -0.999 => below(x + 1.0 / 255.0),
        _ if x > 0.999 => 1.0 - below(x - 1.0 / 255.0),
        _ => below(x + 1.0 / 255.0) - below(x - 1.0 / 255.0),
    };
    probability.max(LEAST_PROBABILITY).ln()
}

/// Page 1977, "Approximations to the tail areas and the distribution function of the normal distribution"; off by at most 3e-4. Published numbers
/// were computed with it.
fn normal_cdf(x: f64) -> f64 {
    0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{GaussianConfig, GaussianDiffusion, ScheduleConfig};

    /// The reference's own `normal_kl` and `discretized_gaussian_log_likelihood` (tools/parity/golden_likelihood.py).
    #[test]
    fn terms_are_those_of_the_reference() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/likelihood.json")).unwrap();
        let numbers = |value: &serde_json::Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
        for case in golden["cases"].as_array().unwrap() {
            let schedule = ScheduleConfig {
                timesteps: golden["timesteps"].as_u64().unwrap() as usize,
                beta_schedule: serde_json::from_value(case["beta_schedule"].clone()).unwrap(),
                ..ScheduleConfig::default()
            };
            let config = GaussianConfig { schedule, ..GaussianConfig::default() };
            let chain = Chain::of(&GaussianDiffusion::new(&config));
            let image: Vec<f32> = numbers(&case["pixels"]).iter().map(|&v| v as f32 / 255.0).collect();
            let x_start: Vec<f32> = image.iter().map(|v| v * 2.0 - 1.0).collect();
            let estimate: Vec<f32> = numbers(&case["estimate"]).iter().map(|&v| v as f32).collect();
            // The reference keeps its tables in f32.
            for (t, expected) in numbers(&case["terms"]).into_iter().enumerate() {
                let got = chain.term(t, &x_start, &estimate, None);
                assert!(
                    (got - expected).abs() <= 1e-5 * expected.abs() + 1e-9,
                    "{}, t = {t}: {got}, {expected}",
                    case["beta_schedule"]
                );
            }
            let (got, expected) = (chain.prior(&image), case["prior"].as_f64().unwrap());
            assert!((got - expected).abs() <= 1e-5 * expected + 1e-9, "prior: {got}, {expected}");
        }
    }

    /// The divergence of two normal distributions by numerical integration, with a learned variance; at t = 0 the probability of the 8-bit value.
    #[test]
    fn a_learned_variance_has_its_divergence() {
        let config = GaussianConfig {
            schedule: ScheduleConfig { timesteps: 50, ..ScheduleConfig::default() },
            ..GaussianConfig::default()
        };
        let chain = Chain::of(&GaussianDiffusion::new(&config));
        let (x, estimate) = (0.2_f32, 0.35_f32);
        let density = |y: f64, mean: f64, variance: f64| {
            (-(y - mean).powi(2) / (2.0 * variance)).exp() / (2.0 * std::f64::consts::PI * variance).sqrt()
        };
        for (t, place) in [(1, 0.0), (1, 0.7), (20, 0.3), (20, 1.2), (49, 1.0)] {
            let (of_t, of_s) = (chain.level(t), chain.levels[t]);
            let (small, large) = (of_t.posterior_variance(&of_s), of_t.variance_given(&of_s));
            let variance = (f64::from(place) * large.ln() + (1.0 - f64::from(place)) * small.ln()).exp();
            let mean = |x: f32| of_s.alpha * large / of_t.sigma.powi(2) * f64::from(x);
            let step = small.sqrt() / 200.0;
            let integral: f64 = (-2000..=2000)
                .map(|k| mean(x) + f64::from(k) * step)
                .map(|y| (density(y, mean(x), small), density(y, mean(estimate), variance)))
                .map(|(q, p)| q * (q.max(1e-300) / p.max(1e-300)).ln() * step)
                .sum();
            let got = chain.term(t, &[x], &[estimate], Some(&[place])) * std::f64::consts::LN_2;
            assert!((got - integral).abs() < 1e-6 * (1.0 + integral), "t = {t}, {place}: {got}, {integral}");
        }
        assert_eq!(chain.term(20, &[x], &[estimate], Some(&[0.0])), chain.term(20, &[x], &[estimate], None));
        // Between the variance of the step before and that of the last level's noise.
        let [small, large] = [chain.last_deviation.powi(2), chain.level(0).sigma.powi(2)];
        let deviation = (0.4 * large.ln() + 0.6 * small.ln()).exp().sqrt();
        let expected = -discretised_log_probability(x.into(), estimate.into(), deviation);
        let got = chain.term(0, &[x], &[estimate], Some(&[0.4])) * std::f64::consts::LN_2;
        assert!((got - expected).abs() < 1e-6 * expected, "{got}, {expected}");
    }

    #[test]
    fn sums_of_straight_lines_are_exact() {
        let line = |t: usize| 3.0 - 0.25 * t as f64;
        for times in [vec![1, 2, 5, 9], vec![1, 9], (1..10).collect()] {
            let bits: Vec<Vec<f64>> = times.iter().map(|&t| vec![line(t)]).collect();
            let expected: f64 = (1..10).map(line).sum();
            assert!((sums_between(&times, &bits)[0] - expected).abs() < 1e-12, "{times:?}");
        }
    }

    #[test]
    fn times_begin_at_0_and_1_and_end_at_the_last() {
        let discrete =
            [(1000, 64), (1000, 3), (50, 64), (2, 1), (3, 2)].map(|(timesteps, terms)| (Some(timesteps), terms));
        for (timesteps, terms) in discrete.into_iter().chain([(None, 64), (None, 1), (None, 999)]) {
            let times = times(timesteps, terms);
            assert_eq!(&times[..2], [0, 1]);
            assert_eq!(times.last(), Some(&(timesteps.unwrap_or(LEVELS) - 1)));
            assert!(times.windows(2).all(|pair| pair[0] < pair[1]) && times.len() <= terms.max(3), "{times:?}");
        }
        assert_eq!(times(Some(10), 10), (0..10).collect::<Vec<_>>());
        assert_eq!(times(None, 2000), (0..LEVELS).collect::<Vec<_>>());
    }

    #[test]
    fn probabilities_of_all_levels_sum_to_one() {
        for (mean, deviation) in [(0.0, 0.3), (-0.98, 0.01), (0.5, 2.0)] {
            let level = |i: i32| f64::from(i) / 127.5 - 1.0;
            let total: f64 = (0..256).map(|i| discretised_log_probability(level(i), mean, deviation).exp()).sum();
            assert!((total - 1.0).abs() < 1e-9, "{total}");
        }
    }
}
