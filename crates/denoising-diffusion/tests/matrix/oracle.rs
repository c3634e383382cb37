//! A network that cannot be better: it knows the data's distribution and gives, in the words of whichever formulation it is asked by, the
//! expectation of clean data. What is then wrong with samples or with a bound is the formulation's fault or the solver's.

use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion::data::ImageBatch;
use denoising_diffusion::diffusion::{Diffusion, FormulationConfig, NoiseLevel, Output, VarianceReading};
use denoising_diffusion::eval::flow_likelihood::{DEQUANTISED, STEPS, negative_log_likelihood};
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::likelihood::bits_per_dim;
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::models::{Network, NetworkInput};
use denoising_diffusion::nn::EvalMode;
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::sampler::SampleConfig;

use crate::mlp::SHAPE;
use crate::points::{self, DEVIATION, PLACES, WEIGHTS};
use crate::sampling::solvers;
use crate::variants::{self, Variant};

#[derive(Module, Debug)]
struct Oracle {
    #[module(skip)]
    diffusion: Diffusion,
}

impl Oracle {
    /// The level that a network is told of by `time`.
    fn level(&self, time: f64) -> NoiseLevel {
        let formulation = self.diffusion.formulation();
        match &self.diffusion.config().unwrap().formulation {
            FormulationConfig::ContinuousTime(_) | FormulationConfig::Simple(_) => formulation.level_at_log_snr(time),
            FormulationConfig::Elucidated(_) => formulation.level((4.0 * time).exp()),
            FormulationConfig::RectifiedFlow(_) => {
                let sigma = time / 1000.0;
                NoiseLevel { alpha: 1.0 - sigma, sigma, time }
            }
            _ => formulation.level(time),
        }
    }

    /// The expectation of clean points given `x`, `[b, 2]`, at a level, on the network's scale.
    fn expectation(x: &Tensor<2>, NoiseLevel { alpha, sigma, .. }: NoiseLevel) -> Tensor<2> {
        let variance = (2.0 * DEVIATION).powi(2);
        let total = alpha.powi(2) * variance + sigma.powi(2);
        let place = |m: usize| row(PLACES[m].map(|v| 2.0 * v - 1.0), &x.device());
        let away = |m: usize| x.clone() - place(m) * alpha;
        let log = |m: usize| away(m).square().sum_dim(1) * (-0.5 / total) + WEIGHTS[m].ln();
        let first = sigmoid(log(0) - log(1));
        let given = |m: usize| away(m) * (alpha * variance / total) + place(m);
        given(0) * first.clone() + given(1) * (first.neg() + 1.0)
    }

    /// The whole output for `input`, `[b, 2]`, at one time: its channels, `[b, 1, 1, 2]` each.
    fn output(&self, input: Tensor<2>, time: f64) -> Tensor<4> {
        let (level, b) = (self.level(time), input.dims()[0]);
        let at = self.diffusion.formulation().prediction().coefficients(&level);
        let x = input / at.c_in;
        let x_start = Self::expectation(&x, level);
        let eps = (x - x_start.clone() * level.alpha) / level.sigma;
        let prediction = x_start.clone() * at.target_x_start + eps * at.target_noise;
        let filled = |value: f64| prediction.zeros_like() + value;
        let rest = match self.diffusion.formulation().output() {
            Output::Prediction => Vec::new(),
            Output::WithVariance(variance) => match (variance.variance_reading, self.diffusion.tables()) {
                (VarianceReading::Direct, Some(tables)) => {
                    vec![filled(tables.posterior_log_variance_clipped[(time as usize).max(1)])]
                }
                _ => vec![filled(-1.0)],
            },
            Output::Weighted(_) => vec![x_start, filled(0.0), filled(0.0)],
        };
        let channels = std::iter::once(prediction.clone()).chain(rest).map(|channel| channel.reshape([b, 1, 1, 2]));
        Tensor::cat(channels.collect(), 1)
    }
}

fn row(values: [f64; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.map(|v| v as f32).to_vec(), [1, 2]), device)
}

impl Network for Oracle {
    /// For batches that are all of one time.
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let times = host_values(input.time);
        assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
        self.output(input.x.reshape([times.len(), 2]), times[0].into())
    }

    fn channels(&self) -> usize {
        SHAPE[0]
    }

    fn out_channels(&self) -> usize {
        self.diffusion.formulation().output().channels(SHAPE[0])
    }
}

/// Samples of a distribution that is known have its shares, by every solver over every spacing.
#[test]
fn samples_of_the_best_network_are_the_data() {
    let device = Device::flex();
    let mut wrong = Vec::new();
    for Variant { name, config } in variants::own(60) {
        let diffusion = Diffusion::new(&config).unwrap();
        let oracle = Oracle { diffusion: diffusion.clone() }.eval();
        for (solver, sample) in solvers(&config, 20) {
            let sample = SampleConfig { sample_batch_size: 256, ..sample };
            let request = Request::new(&sample, 4, 256, SHAPE);
            let generator = Generator::new(&oracle, &diffusion, &device);
            let images = generator.generate(&request).unwrap();
            let shares = points::shares(&diffusion, &images.data);
            println!("{name}, {solver}: {shares:.3?}");
            if shares[0] + shares[1] < 0.93 || (shares[0] - WEIGHTS[0]).abs() > 0.12 {
                wrong.push(format!("{name}, {solver}: {shares:.3?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The entropy of the data: in bits per dimension that of 8-bit values around one place, `deviation` apart on the network's scale, and half of that
/// of the choice between two places.
fn entropy(deviation: f64) -> f64 {
    let around_a_place = (127.5 * deviation * (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt()).log2();
    let choice: f64 = -WEIGHTS.iter().map(|p| p * p.log2()).sum::<f64>();
    around_a_place + choice / 2.0
}

/// A thousand points in 8 bits.
fn held_out() -> Images {
    let images: Vec<f32> = points::values(0, 1000).into_iter().map(|v| (v * 255.0).round() / 255.0).collect();
    Images::of_samples(&ImageBatch::new([1000, SHAPE[0], SHAPE[1], SHAPE[2]], images).unwrap())
}

/// The bound of a network that cannot be better, under many levels of noise, is the entropy of the data, whatever the formulation.
#[test]
fn the_bound_of_the_best_network_is_the_entropy_of_the_data() {
    let device = Device::flex();
    let (entropy, held_out) = (entropy(2.0 * DEVIATION), held_out());
    for Variant { name, config } in variants::own(1000) {
        let diffusion = Diffusion::new(&config).unwrap();
        let oracle = Oracle { diffusion: diffusion.clone() }.eval();
        let mut on_batch = |_| ControlFlow::Continue(());
        let parts = held_out.examples(1000).unwrap();
        let bits = bits_per_dim(&oracle, &diffusion, parts, 64, 1, &device, &mut on_batch).unwrap();
        println!("{name}: {:.4} of {entropy:.4}, {:.4}", bits.total, bits.standard_error);
        // In discrete time the last steps are long.
        let most = if config.timesteps().is_some() { 0.7 } else { 0.1 };
        let above = bits.total - entropy;
        assert!(above > -3.0 * bits.standard_error && above < most, "{name}: {} of {entropy}", bits.total);
        assert!(bits.prior < 1e-3, "{name}: {}", bits.prior);
    }
}

/// So is its likelihood, but for the noise that is left at the end and that of the interval for which a value stands.
#[test]
fn the_likelihood_of_the_best_network_is_the_entropy_of_the_data() {
    let (device, held_out) = (Device::flex(), held_out());
    for Variant { name, config } in variants::own(1000) {
        let diffusion = Diffusion::new(&config).unwrap();
        let oracle = Oracle { diffusion: diffusion.clone() }.eval();
        let entropy = entropy((2.0 * DEVIATION).hypot(DEQUANTISED).hypot(DEQUANTISED));
        let [_, cleanest] = diffusion.formulation().range();
        // Where this one knows no cleaner level, it takes what there is for as noisy as the cleanest that it knows.
        let off = if cleanest.sigma / cleanest.alpha > DEQUANTISED { 0.03 } else { 5e-3 };
        let mut on_batch = |_| ControlFlow::Continue(());
        let parts = held_out.examples(500).unwrap();
        let nll = negative_log_likelihood(&oracle, &diffusion, parts, STEPS, 1, &device, &mut on_batch).unwrap();
        println!("{name}: {:.4} of {entropy:.4}, {:.4}", nll.total, nll.standard_error);
        assert!((nll.total - entropy).abs() < 3.0 * nll.standard_error + off, "{name}: {} of {entropy}", nll.total);
    }
}
