//! The negative log-likelihood of images in bits per dimension, by the probability-flow ODE (Song et al. 2021, "Score-based generative modeling
//! through stochastic differential equations", arXiv:2011.13456, section 4.3 and appendix D.2). In `y = x / alpha` and `s = sigma / alpha`, with the
//! network's estimate `D` of clean data, it is
//!
//! `dy / ds = (y - D(y, s)) / s`,  `ln p(y at s_min) = ln p(y at s_max) + integral from s_min to s_max of div((y - D) / s) ds`
//!
//! (eq. 39), and p at `s_max` is the normal distribution that sampling starts from. It is the density of what the deterministic samplers draw, up to
//! their own error, if they stop at `s_min` and clip nothing.
//!
//! - The equation is solved in `tau = ln s` for `z = y / q`, `q = sqrt(1 + s^2)`, which data of variance 1 keep: `dz / dtau = z / q^2 - D / q`. The
//!   method is Runge-Kutta's of fourth order, in equal steps, so that no image's result depends on the others of its batch. With exact estimates
//!   this was several times as exact as solving for `y`, or in the steps of EDM, for as many evaluations.
//! - The divergence is `v . J v` for a vector `v` of random signs, one for each image and all of its path (Hutchinson 1990; Grathwohl et al. 2019,
//!   arXiv:1810.01367): without bias, and its error averages out over images.
//! - `s_min` is [`DEQUANTISED`] for every formulation. Any `s_min` gives the density of some distribution, so none is wrong: a coarser one blurs what
//!   the network knows, and below a finer one the density of a perfect network, which has learned from 8-bit values, falls to zero between those.
//!   Below the cleanest level that it was trained on (s is about 0.01 in discrete time), the network is told of that one.
//! - A formulation whose noisiest level has no signal, or hardly any, starts at its noisiest one with s up to [`NOISIEST`].
//!
//! An 8-bit value stands for the interval of half a level of 1/255 on both sides, as in the [variational bound](super::likelihood). The mean of
//! `-ln p` over uniform noise in these intervals is at least the negative logarithm of their probability (Theis et al. 2016, arXiv:1511.01844, section
//! 3.1). One draw is taken for each image, so the expectation of the result is an upper bound. Data that are not of 8 bits are measured by the same
//! intervals: the result is that of their values to 1/255 of their range. Code of the paper adds noise in [0, 1) to values of 0 to 255, divides by
//! 256, and adds log2(256 / 2) = 7 bits; that moves black and white by half a level from what the network was trained on.
//!
//! Not here: the variational bound ([`super::likelihood`]). A network that takes an earlier estimate gets none, as there.

use std::f64::consts::{LN_2, PI};
use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::likelihood::{LikelihoodError, is_defined, told};
use super::result::{JudgedOn, NegativeLogLikelihood};
use crate::data::{Batch, DataError};
use crate::device::in_pool;
use crate::diffusion::{Denoiser, Diffusion, Formulation, GuidanceConfig, NoiseLevel, Threshold};
use crate::models::Network;
use crate::nn::Eval;
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream};

/// Default number of steps.
pub const STEPS: usize = 32;

/// Evaluations of the network and its gradient in each step.
const STAGES: usize = 4;

/// What an evaluation with its gradient takes, in evaluations without.
pub const COST: f64 = 3.0;

/// The finest noise, `sigma / alpha`: the standard deviation of the noise by which 8-bit values become intervals, `2 / 255 / sqrt(12)`.
pub const DEQUANTISED: f64 = 0.002_264_117;

/// The coarsest noise, `sigma / alpha`. Data of variance 1 change the distribution there by 1e-6 bits per dimension.
pub const NOISIEST: f64 = 1000.0;

/// Width of the interval for which an 8-bit value stands, on the network's scale.
const WIDTH: f64 = 2.0 / 255.0;

/// Number of evaluations of the network, each with its gradient, per image.
pub fn evaluations(steps: usize) -> usize {
    STAGES * steps
}

/// The negative log-likelihood of images in [0, 1] under their conditions, a part at a time, in `steps` steps (1 or
/// more). A network with self-conditioning gets no earlier estimate: what a path depends on must be where it is. Noise depends only on (seed, image).
/// `on_batch` is called with the number of evaluations done, out of `n` times [`evaluations`].
///
/// # Errors
/// [`LikelihoodError`].
pub fn negative_log_likelihood<M: Network>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    parts: impl Iterator<Item = Result<Batch, DataError>>,
    steps: usize,
    seed: u64,
    device: &Device,
    on_batch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<NegativeLogLikelihood, LikelihoodError> {
    if !is_defined(diffusion.shared()) {
        return Err(LikelihoodError::Undefined);
    }
    let flow = Flow::of(diffusion.with_schedule_of::<M>(model).formulation(), steps);
    // What is clipped has another flow.
    let unclipped = GuidanceConfig { threshold: Threshold::None, ..GuidanceConfig::default() };
    let (mut all, mut terms) = (Vec::<Density>::new(), vec![0.0; steps]);
    for part in parts {
        let part = part?;
        let (first, b) = (all.len(), part.len());
        let denoiser = told(&part, diffusion.denoiser(model), device).guided(&unclipped);
        let image = |of: Vec<f32>| Tensor::from_data(TensorData::new(of, part.images.shape), device);
        let (data, signs) = (image(dequantised(&part, seed, first)), image(signs(&part, seed, first)));
        let mut on_evaluation = |done: usize| on_batch(first * evaluations(steps) + done * b);
        let (densities, rates) = flow.densities(&denoiser, data, signs, &mut on_evaluation)?;
        all.extend(densities);
        terms.iter_mut().zip(rates).for_each(|(term, rate)| *term += rate);
    }
    if all.len() < 2 {
        return Err(LikelihoodError::Undefined);
    }
    let of_step = |(k, term): (usize, f64)| (-2.0 * flow.tau(k as f64), term / all.len() as f64);
    Ok(NegativeLogLikelihood { terms: terms.into_iter().enumerate().map(of_step).collect(), ..add_up(&all) })
}

/// The image in [-1, 1] and a uniform draw from the interval for which each of its values stands.
fn dequantised(part: &Batch, seed: u64, first: usize) -> Vec<f32> {
    let mut values = part.images.data.clone();
    let len = values.len() / part.len();
    values.par_chunks_exact_mut(len).enumerate().for_each(|(i, image)| {
        let mut stream = Stream::new(seed, Purpose::Likelihood, (first + i) as u64, 0);
        for v in image {
            *v = (2.0 * f64::from(*v) - 1.0 + WIDTH * (stream.uniform() - 0.5)) as f32;
        }
    });
    values
}

/// A random sign for each value.
fn signs(part: &Batch, seed: u64, first: usize) -> Vec<f32> {
    let mut values = vec![0.0; part.images.data.len()];
    let len = values.len() / part.len();
    values.par_chunks_exact_mut(len).enumerate().for_each(|(i, image)| {
        let mut stream = Stream::new(seed, Purpose::Likelihood, (first + i) as u64, 1);
        for of_32 in image.chunks_mut(32) {
            let bits = stream.next_u32();
            of_32.iter_mut().enumerate().for_each(|(k, v)| *v = if bits >> k & 1 == 0 { -1.0 } else { 1.0 });
        }
    });
    values
}

/// `-log2` of the density of one image, per dimension: that of where its path ends, and how much larger volumes are there.
#[derive(Clone, Copy, Debug)]
struct Density {
    prior: f64,
    volume: f64,
}

/// Means over images.
fn add_up(all: &[Density]) -> NegativeLogLikelihood {
    let n = all.len() as f64;
    let mean = |of: &dyn Fn(&Density) -> f64| all.iter().map(of).sum::<f64>() / n;
    let (prior, volume, interval) = (mean(&|d| d.prior), mean(&|d| d.volume), -WIDTH.log2());
    let variance = mean(&|d| (d.prior + d.volume - prior - volume).powi(2)) * n / (n - 1.0);
    NegativeLogLikelihood {
        on: JudgedOn::Given,
        n: all.len(),
        total: prior + volume + interval,
        standard_error: (variance / n).sqrt(),
        prior,
        volume,
        interval,
        terms: Vec::new(),
    }
}

/// The range of the path, in `tau = ln(sigma / alpha)`, its steps, and the distribution at its end.
struct Flow {
    from: f64,
    to: f64,
    steps: usize,
    /// The standard deviation of y at the end.
    deviation: f64,
    /// The cleanest level that networks are told of.
    cleanest: NoiseLevel,
}

impl Flow {
    fn of(formulation: &dyn Formulation, steps: usize) -> Self {
        let [noisiest, cleanest] = formulation.range();
        let noise = |log_snr: f64| (-0.5 * log_snr).exp();
        let noisiest = match formulation.timesteps() {
            _ if noise(noisiest.log_snr()) <= NOISIEST => noisiest,
            // A network in discrete time knows no level between its last ones.
            Some(timesteps) => formulation
                .levels(timesteps)
                .into_iter()
                .find(|level| noise(level.log_snr()) <= NOISIEST && !level.is_clean())
                .unwrap_or(noisiest),
            None => formulation.level_at_log_snr(-2.0 * NOISIEST.ln()),
        };
        let end = noise(noisiest.log_snr());
        // Where a path ends before the noisiest level, what lies there is data of variance 1 with noise.
        let deviation = match end < noise(formulation.range()[0].log_snr()) {
            true => end.hypot(1.0),
            false => formulation.init_deviation() / noisiest.alpha,
        };
        let to = end.ln();
        Self { from: DEQUANTISED.ln().min(to), to, steps, deviation, cleanest }
    }

    /// `tau` after a number of steps.
    fn tau(&self, step: f64) -> f64 {
        self.from + (self.to - self.from) * step / self.steps as f64
    }

    /// For each of the images `[b, c, h, w]`, on the network's scale; and for each step, the sum over images of what a unit of log-SNR adds to
    /// `volume` at its beginning. `on_evaluation` is called with the number of evaluations done.
    fn densities<D: Denoiser<4>>(
        &self,
        denoiser: &D,
        data: Tensor<4>,
        signs: Tensor<4>,
        on_evaluation: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(Vec<Density>, Vec<f64>), LikelihoodError> {
        let [b, c, h, w] = data.dims();
        let bits = 1.0 / ((c * h * w) as f64 * LN_2);
        let (mut z, mut divergence) = (data / scale(self.from), vec![0.0; b]);
        let (mut done, mut rates) = (0, Vec::with_capacity(self.steps));
        let mut at = |z: Tensor<4>, step: f64| {
            let rate = self.rate(denoiser, z, self.tau(step), &signs)?;
            done += 1;
            if on_evaluation(done).is_break() { Err(LikelihoodError::Interrupted) } else { Ok(rate) }
        };
        let step = (self.to - self.from) / self.steps as f64;
        for k in 0..self.steps {
            let k = k as f64;
            let first = at(z.clone(), k)?;
            let second = at(z.clone() + first.z.clone() * (step / 2.0), k + 0.5)?;
            let third = at(z.clone() + second.z.clone() * (step / 2.0), k + 0.5)?;
            let fourth = at(z.clone() + third.z.clone() * step, k + 1.0)?;
            // log-SNR falls by two per unit of tau.
            rates.push(first.divergence.iter().sum::<f64>() * -0.5 * bits);
            let stages = [(first, 1.0), (second, 2.0), (third, 2.0), (fourth, 1.0)];
            for (rate, weight) in stages {
                z = z + rate.z * (weight * step / 6.0);
                divergence.iter_mut().zip(rate.divergence).for_each(|(sum, one)| *sum += one * weight * step / 6.0);
            }
        }
        // The density of y at the beginning is that of z there, divided by q for each dimension.
        let variance = (self.deviation / scale(self.to)).powi(2);
        let squares = host_values(z.square());
        let of_image = |(squares, divergence): (&[f32], f64)| Density {
            prior: 0.5 / LN_2 * (2.0 * PI * variance).ln()
                + squares.iter().map(|&v| f64::from(v)).sum::<f64>() * 0.5 * bits / variance,
            volume: scale(self.from).log2() - divergence * bits,
        };
        let densities: Vec<Density> = squares.chunks_exact(c * h * w).zip(divergence).map(of_image).collect();
        if densities.iter().any(|density| !density.prior.is_finite()) {
            return Err(LikelihoodError::FlowNotFinite { noise: self.to.exp() });
        }
        Ok((densities, rates))
    }

    /// At z, `[b, c, h, w]`.
    fn rate<D: Denoiser<4>>(
        &self,
        denoiser: &D,
        z: Tensor<4>,
        tau: f64,
        signs: &Tensor<4>,
    ) -> Result<Rate, LikelihoodError> {
        let ([b, c, h, w], q) = (z.dims(), scale(tau));
        let mut level = denoiser.level_at_log_snr(-2.0 * tau);
        if level.log_snr() > self.cleanest.log_snr() {
            level.time = self.cleanest.time;
        }
        let x = (z.clone() * (q * level.alpha)).autodiff().require_grad();
        let estimate = denoiser.denoise(x.clone(), level, None).x_start;
        let along = (estimate.clone() * signs.clone()).sum();
        let gradients = in_pool(|| along.backward());
        // J in z is alpha q times that in x; the estimate is divided by q.
        let jacobian = x.grad(&gradients).map(|of| (of * signs.clone()).reshape([b, c * h * w]).sum_dim(1));
        let jacobian = jacobian.map_or(vec![0.0; b], host_values);
        let kept = 1.0 / (q * q);
        let divergence = jacobian.into_iter().map(|of| (c * h * w) as f64 * kept - level.alpha * f64::from(of));
        let divergence: Vec<f64> = divergence.collect();
        if divergence.iter().any(|of| !of.is_finite()) {
            return Err(LikelihoodError::FlowNotFinite { noise: tau.exp() });
        }
        Ok(Rate { z: z * kept - estimate.inner() / q, divergence })
    }
}

/// `dz / dtau`, and an estimate of its divergence for each image.
struct Rate {
    z: Tensor<4>,
    divergence: Vec<f64>,
}

/// `q`, by which y is divided.
fn scale(tau: f64) -> f64 {
    tau.exp().hypot(1.0)
}

#[cfg(test)]
mod tests;
