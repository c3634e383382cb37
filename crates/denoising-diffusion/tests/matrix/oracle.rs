//! A network that cannot be better: it knows the data's distribution and gives, in the words of whichever formulation it is asked by, the
//! expectation of clean data. What is then wrong with samples or with a bound is the formulation's fault or the solver's.

use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion::data::ImageBatch;
use denoising_diffusion::diffusion::{Diffusion, FormulationConfig, NoiseLevel, Output, VarianceReading};
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

    /// The expectation of the clean point given x at a level, on the network's scale.
    fn expectation(x: [f64; 2], NoiseLevel { alpha, sigma, .. }: NoiseLevel) -> [f64; 2] {
        let places = PLACES.map(|place| place.map(|v| 2.0 * v - 1.0));
        let variance = (2.0 * DEVIATION).powi(2);
        let total = alpha.powi(2) * variance + sigma.powi(2);
        let logs: [f64; 2] = std::array::from_fn(|m| {
            let square: f64 = (0..2).map(|k| (x[k] - alpha * places[m][k]).powi(2)).sum();
            WEIGHTS[m].ln() - 0.5 * square / total
        });
        let first = 1.0 / (1.0 + (logs[1] - logs[0]).exp());
        std::array::from_fn(|k| {
            let given = |m: usize| places[m][k] + alpha * variance / total * (x[k] - alpha * places[m][k]);
            first * given(0) + (1.0 - first) * given(1)
        })
    }

    /// The whole output, `[channels of the output, 2]`.
    fn output(&self, input: [f64; 2], time: f64) -> Vec<f64> {
        let level = self.level(time);
        let at = self.diffusion.formulation().prediction().coefficients(&level);
        let x = input.map(|v| v / at.c_in);
        let x_start = Self::expectation(x, level);
        let eps = |k: usize| (x[k] - level.alpha * x_start[k]) / level.sigma;
        let prediction = [0, 1].map(|k| at.target_x_start * x_start[k] + at.target_noise * eps(k));
        let rest: Vec<f64> = match self.diffusion.formulation().output() {
            Output::Prediction => Vec::new(),
            Output::WithVariance(variance) => match (variance.variance_reading, self.diffusion.tables()) {
                (VarianceReading::Direct, Some(tables)) => {
                    vec![tables.posterior_log_variance_clipped[(time as usize).max(1)]; 2]
                }
                _ => vec![-1.0; 2],
            },
            Output::Weighted(_) => x_start.into_iter().chain([0.0; 4]).collect(),
        };
        prediction.into_iter().chain(rest).collect()
    }
}

impl Network for Oracle {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let (b, device) = (input.x.dims()[0], input.x.device());
        let (x, times) = (host_values(input.x), host_values(input.time));
        let outputs =
            x.chunks(2).zip(times).flat_map(|(x, time)| self.output([0, 1].map(|k| x[k].into()), time.into()));
        let outputs: Vec<f32> = outputs.map(|v| v as f32).collect();
        let channels = outputs.len() / (2 * b);
        Tensor::from_data(TensorData::new(outputs, [b, channels, 1, 2]), &device)
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

/// The bound of a network that cannot be better, under many levels of noise, is the entropy of the data, whatever the formulation: in
/// bits per dimension that of 8-bit values around one place, and half of that of the choice between two places.
#[test]
fn the_bound_of_the_best_network_is_the_entropy_of_the_data() {
    let device = Device::flex();
    let around_a_place = (255.0 * DEVIATION * (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt()).log2();
    let choice: f64 = -WEIGHTS.iter().map(|p| p * p.log2()).sum::<f64>();
    let entropy = around_a_place + choice / 2.0;
    let images: Vec<f32> = points::values(0, 1000).into_iter().map(|v| (v * 255.0).round() / 255.0).collect();
    let held_out = Images::of_samples(&ImageBatch::new([1000, SHAPE[0], SHAPE[1], SHAPE[2]], images).unwrap());
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
