//! `LearnedGaussianDiffusion`. Two differences: the reference clamps the posterior's variance at t = 0, which is 0, to 1e-20, so that its
//! bound saturates there without a gradient, while ours takes that of t = 1 as the paper's code does (the `floored` numbers); and it
//! leaves out the T of the sum that the bound is.

use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::schedule::Tables;
use denoising_diffusion::diffusion::{
    BetaSchedule, Denoiser, Diffusion, FormulationConfig, GuidanceConfig, LearnedVariance, LearnedVarianceConfig,
    NoiseLevel, Objective, ScheduleConfig, Threshold, VarianceReading,
};
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::models::{Network, NetworkInput, Unet};
use denoising_diffusion::nn::{Eval, EvalMode};
use denoising_diffusion::sampler::{PosteriorVariance, ddpm, ignore};
use denoising_diffusion::train::NamedGradients;

use crate::golden::{Golden, assert_close, assert_losses, draws, test_device, values};
use crate::sampling::check_trajectory;
use crate::unets::check_gradients;

const T: usize = 50;

/// `weight` is the reference's.
fn learned(timesteps: usize, variance_reading: VarianceReading, weight: f64) -> Diffusion {
    let schedule = ScheduleConfig { timesteps, beta_schedule: BetaSchedule::Cosine, ..Default::default() };
    let variance = LearnedVariance { variance_reading, vb_loss_weight: weight / timesteps as f64 };
    let config = LearnedVarianceConfig { schedule, objective: Objective::PredNoise, variance };
    Diffusion::new(&FormulationConfig::LearnedVariance(config).into()).unwrap()
}

struct Case {
    golden: Golden,
    device: Device,
    unet: Unet,
}

impl Case {
    fn open() -> Self {
        let golden = Golden::open("formulations");
        let device = test_device().autodiff();
        Self { unet: golden.unet("learned_unet", "learned.state.", &device), golden, device }
    }

    fn loss(&self, diffusion: &Diffusion, times: &str) -> Tensor<1> {
        let [images, noise] = ["image", "noise"].map(|name| self.tensor(&format!("learned.{name}")));
        diffusion.loss(&self.unet, images, &draws(self.golden.values(times), vec![noise]))
    }

    fn tensor(&self, name: &str) -> Tensor<4> {
        self.golden.tensor(name, &self.device)
    }
}

#[test]
fn losses() {
    let case = Case::open();
    let values_of = |name: &str| case.golden.values(&format!("learned.{name}")).to_vec();
    // At t = 0, example 0, the reference's bound is replaced by that of the floored table.
    let first = |weight: f32| values_of("floored.simple")[0] + weight * values_of("floored.vb")[0];
    for (name, times, weight) in [("default", "times", 0.001), ("scaled", "learned.vb_times", 1.0)] {
        let loss = values(case.loss(&learned(T, VarianceReading::Range, weight), times));
        let mut expected = values_of(&format!("{name}.per_sample"));
        expected[0] = first(weight as f32);
        assert_losses(name, &loss, &expected);
        let simple = values(case.loss(&learned(T, VarianceReading::Range, 0.0), times));
        assert_losses("without the bound", &simple, &values_of(&format!("{name}.simple")));
    }
    let loss = case.loss(&learned(T, VarianceReading::Range, 1.0), "learned.vb_times");
    assert_losses("floored", &values(loss.clone()), &values_of("floored.per_sample"));
    assert_losses("floored mean", &values(loss.mean()), &values_of("floored.mean"));
}

/// The bound alone, at the last step of a cosine schedule: a thousand bits, of which the weighted loss shows little.
#[test]
fn a_bound_of_a_thousand_bits() {
    let case = Case::open();
    let [with, without] =
        [1.0, 0.0].map(|weight| values(case.loss(&learned(T, VarianceReading::Range, weight), "times")));
    let bound: Vec<f32> = with.iter().zip(without).map(|(with, without)| with - without).collect();
    assert_losses("vb", &bound[1..], &case.golden.values("learned.default.vb")[1..]);
}

#[test]
fn gradients() {
    let case = Case::open();
    let loss = case.loss(&learned(T, VarianceReading::Range, 1.0), "learned.vb_times").mean();
    let expected = to_ours(&case.golden.under("learned.floored.grad_state.")).unwrap();
    check_gradients(NamedGradients::take(&case.unet, &mut loss.backward()), &expected);
}

/// A step by [`ddpm`] with `noise` in every element.
fn step(denoiser: &impl Denoiser<4>, x: &Tensor<4>, levels: [NoiseLevel; 2], noise: f64) -> Vec<f64> {
    let noise = [x.clone().full_like(noise)];
    let learned = PosteriorVariance::Learned;
    let out = ddpm(denoiser, x.clone(), &levels, learned, &mut noise.as_slice(), &mut ignore).unwrap();
    values(out).into_iter().map(f64::from).collect()
}

/// log of the variance of a step, element by element, from what the sampler does.
fn log_variance(denoiser: &impl Denoiser<4>, x: &Tensor<4>, levels: [NoiseLevel; 2]) -> Vec<f32> {
    const LARGE: f64 = 1e4; // so that the mean is lost in rounding, not the deviation
    let (with, without) = (step(denoiser, x, levels, LARGE), step(denoiser, x, levels, 0.0));
    with.iter().zip(without).map(|(with, without)| (2.0 * ((with - without) / LARGE).ln()) as f32).collect()
}

fn levels(diffusion: &Diffusion, t: u32) -> [NoiseLevel; 2] {
    let s = if t == 0 { NoiseLevel::CLEAN } else { diffusion.level(f64::from(t - 1)) };
    [diffusion.level(f64::from(t)), s]
}

#[test]
fn means_and_variances_of_steps() {
    let case = Case::open();
    let unet = case.unet.eval();
    let diffusion = learned(T, VarianceReading::Range, 0.001);
    let denoiser = diffusion.denoiser(&unet);
    let x = case.golden.tensor::<4>("learned.x", &test_device());
    for t in [49, 25, 1, 0] {
        let key = |what: &str| format!("learned.t{t}.{what}");
        let estimate = denoiser.denoise(x.clone(), diffusion.level(f64::from(t)), None);
        assert_close(&key("x_start"), &values(estimate.x_start), case.golden.values(&key("x_start")), 1e-4);
        let mean: Vec<f32> = step(&denoiser, &x, levels(&diffusion, t), 0.0).iter().map(|&v| v as f32).collect();
        assert_close(&key("mean"), &mean, case.golden.values(&key("mean")), 1e-4);
        let (name, got) = match t {
            // The last step adds no noise; its variance is between the bounds of the table all the same.
            0 => {
                let [small, large] = log_bounds(diffusion.tables().unwrap(), 0);
                let place = estimate.variance.unwrap();
                ("learned.floored.t0.log_variance".to_string(), values(place * (large - small) + small))
            }
            t => (key("log_variance"), log_variance(&denoiser, &x, levels(&diffusion, t))),
        };
        assert_close(&name, &got, case.golden.values(&name), 1e-4);
    }
}

/// log of the smallest and of the largest variance of the step from t.
fn log_bounds(tables: &Tables, t: usize) -> [f64; 2] {
    [tables.posterior_variance[t.max(1)].ln(), tables.betas[t].ln()]
}

#[test]
fn trajectories() {
    let case = Case::open();
    let unet = case.unet.eval();
    let diffusion = learned(20, VarianceReading::Range, 0.001);
    check_trajectory(&case.golden, "learned.ddpm", &diffusion, &unet, PosteriorVariance::Learned);
    check_trajectory(&case.golden, "learned.ddim", &diffusion, &unet, PosteriorVariance::Small);
}

/// The reference has no such reading: the equations of the bound in f64, on the network's output.
#[test]
fn a_variance_read_as_its_logarithm() {
    let case = Case::open();
    let (unet, device) = (case.unet.eval(), test_device());
    let diffusion = learned(T, VarianceReading::Direct, 1.0);
    let tables = diffusion.tables().unwrap();
    let times = case.golden.indices("learned.vb_times");
    let loss = values(case.loss(&diffusion, "learned.vb_times"));
    let simple = case.golden.values("learned.scaled.simple");
    let [images, noise] = ["image", "noise"].map(|name| case.golden.tensor::<4>(&format!("learned.{name}"), &device));
    for (b, &t) in times.iter().enumerate() {
        let at = |x: &Tensor<4>| x.clone().narrow(0, b, 1);
        let NoiseLevel { alpha, sigma, time } = diffusion.level(t as f64);
        let x_start = at(&images) * 2.0 - 1.0;
        let x = x_start.clone() * alpha + at(&noise) * sigma;
        let terms = bound(tables, t, &x_start, &x, output(&unet, &x, time));
        let expected = simple[b] + terms as f32;
        assert_losses(&format!("t = {t}"), &[loss[b]], &[expected]);
    }

    let plain = GuidanceConfig { threshold: Threshold::None, ..Default::default() };
    let denoiser = diffusion.denoiser(&unet).guided(&plain);
    let x = case.golden.tensor::<4>("learned.x", &device);
    for t in [44, 25, 1] {
        let half = values(output(&unet, &x, f64::from(t)).narrow(1, 2, 2));
        assert_close(&format!("t = {t}"), &log_variance(&denoiser, &x, levels(&diffusion, t)), &half, 1e-4);
    }
}

fn output(unet: &Eval<Unet>, x: &Tensor<4>, time: f64) -> Tensor<4> {
    let times = Tensor::full([x.dims()[0]], time, &x.device());
    unet.forward(NetworkInput::new(x.clone(), times))
}

/// Nichol and Dhariwal 2021, eqs. 4 to 6, of one example in bits per dimension, the second half of the output being log(variance).
fn bound(tables: &Tables, t: usize, x_start: &Tensor<4>, x: &Tensor<4>, output: Tensor<4>) -> f64 {
    let host = |x: &Tensor<4>| values(x.clone()).into_iter().map(f64::from).collect::<Vec<_>>();
    let (x_start, x) = (host(x_start), host(x));
    let (eps, log_variance) = (host(&output.clone().narrow(1, 0, 2)), host(&output.narrow(1, 2, 2)));
    let [c1, c2] = [tables.posterior_mean_coef1[t], tables.posterior_mean_coef2[t]];
    let bits = (0..x.len()).map(|i| {
        let predicted = tables.sqrt_recip_alphas_cumprod[t] * x[i] - tables.sqrt_recipm1_alphas_cumprod[t] * eps[i];
        let mean = c1 * predicted + c2 * x[i];
        if t == 0 {
            return -log_likelihood(x_start[i], mean, (0.5 * log_variance[i]).exp());
        }
        let (true_mean, true_variance) = (c1 * x_start[i] + c2 * x[i], tables.posterior_variance[t]);
        let variance = log_variance[i].exp();
        0.5 * ((variance / true_variance).ln() + (true_variance + (true_mean - mean).powi(2)) / variance - 1.0)
    });
    bits.sum::<f64>() / x.len() as f64 / std::f64::consts::LN_2
}

/// Of a value of 8 bits, half a level of 1/255 to both sides.
fn log_likelihood(x: f64, mean: f64, deviation: f64) -> f64 {
    let cdf = |x: f64| 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
    let below = |edge: f64| cdf((x - mean + edge) / deviation);
    let p = match x {
        x if x < -0.999 => below(1.0 / 255.0),
        x if x > 0.999 => 1.0 - below(-1.0 / 255.0),
        _ => below(1.0 / 255.0) - below(-1.0 / 255.0),
    };
    p.ln()
}
