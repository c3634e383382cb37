//! The likelihood against what is known in closed form, by quadrature, or by another computation. That every formulation and network has one is
//! tested in `tests/matrix`.

use super::*;
use crate::data::ImageBatch;
use crate::diffusion::{DiffusionConfig, ElucidatedConfig, Estimate, FormulationConfig, NoiseLevel};
use crate::eval::images::Images;
use crate::models::{Unet, UnetConfig};
use crate::nn::Init;
use crate::testing::largest_difference;
use crate::train::{EmaConfig, TrainConfig, Trainer};

const DEVICE: fn() -> Device = Device::flex;

fn go_on(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn tensor(values: Vec<f32>, dims: [usize; 4]) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values, dims), &DEVICE())
}

/// Levels of one kind: alpha 1, or `alpha^2 + sigma^2 = 1`.
#[derive(Clone, Copy)]
enum Levels {
    Exploding,
    Preserving,
}

impl Levels {
    fn at(self, log_snr: f64) -> NoiseLevel {
        let s = (-0.5 * log_snr).exp();
        let alpha = match self {
            Self::Exploding => 1.0,
            Self::Preserving => 1.0 / s.hypot(1.0),
        };
        NoiseLevel { alpha, sigma: alpha * s, time: 0.0 }
    }

    /// From s = 0.01 to s = 150.
    fn flow(self, steps: usize) -> Flow {
        let deviation = match self {
            Self::Exploding => 150.0,
            Self::Preserving => 150_f64.hypot(1.0),
        };
        Flow { from: 0.01_f64.ln(), to: 150_f64.ln(), steps, deviation, cleanest: NoiseLevel::CLEAN }
    }
}

/// The estimate for data from several normal distributions, all of whose values have the same deviation: `places` are `[m, d]`.
struct Mixture {
    levels: Levels,
    places: Vec<Vec<f64>>,
    shares: Vec<f64>,
    variance: f64,
}

impl Denoiser<4> for Mixture {
    fn denoise(&self, x: Tensor<4>, level: NoiseLevel, _: Option<Tensor<4>>) -> Estimate<4> {
        let dims = x.dims();
        let (b, d) = (dims[0], dims[1..].iter().product::<usize>());
        let y = x.reshape([b, d]) / level.alpha;
        let total = self.variance + (level.sigma / level.alpha).powi(2);
        let away = |place: &Vec<f64>| {
            let place: Vec<f32> = place.iter().map(|&v| v as f32).collect();
            y.clone() - Tensor::from_data(TensorData::new(place, [1, d]), &DEVICE())
        };
        let logs = self.places.iter().zip(&self.shares);
        let logs = logs.map(|(place, share)| away(place).square().sum_dim(1) * (-0.5 / total) + share.ln());
        let shares = burn::tensor::activation::softmax(Tensor::cat(logs.collect(), 1), 1);
        // y less the expected noise.
        let noise = self.places.iter().enumerate().map(|(m, place)| away(place) * shares.clone().narrow(1, m, 1));
        let noise = noise.reduce(|sum, one| sum + one).unwrap_or_else(|| y.zeros_like());
        Estimate::of((y - noise * (1.0 - self.variance / total)).reshape(dims))
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.levels.at(log_snr)
    }
}

impl Mixture {
    /// `-log2` of the density at y and s, per dimension.
    fn known(&self, y: &[f64], s: f64) -> f64 {
        let total = self.variance + s * s;
        let density = |place: &Vec<f64>| -> f64 {
            let one = |(y, p): (&f64, &f64)| (-(y - p).powi(2) / (2.0 * total)).exp() / (2.0 * PI * total).sqrt();
            y.iter().zip(place).map(one).product()
        };
        let all: f64 = self.places.iter().zip(&self.shares).map(|(place, share)| share * density(place)).sum();
        -all.log2() / y.len() as f64
    }
}

/// Normal data, each value with a mean and a variance of its own.
struct Normal {
    levels: Levels,
    means: Vec<f64>,
    variances: Vec<f64>,
}

impl Denoiser<4> for Normal {
    fn denoise(&self, x: Tensor<4>, level: NoiseLevel, _: Option<Tensor<4>>) -> Estimate<4> {
        let [_, c, h, w] = x.dims();
        let noise = (level.sigma / level.alpha).powi(2);
        let of = |f: &dyn Fn(f64, f64) -> f64| {
            let values = self.means.iter().zip(&self.variances).map(|(&mean, &variance)| f(mean, variance) as f32);
            tensor(values.collect(), [1, c, h, w])
        };
        let (of_mean, of_y) = (of(&|mean, variance| mean * noise / (variance + noise)), of(&|_, v| v / (v + noise)));
        Estimate::of(x / level.alpha * of_y + of_mean)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.levels.at(log_snr)
    }
}

/// The results of a flow for images in [-1, 1], in bits per dimension, without the width of intervals.
fn bits<D: Denoiser<4>>(flow: &Flow, denoiser: &D, images: &[Vec<f64>], signs: &[Vec<f32>]) -> Vec<f64> {
    let dims = [images.len(), 1, 1, images[0].len()];
    let data = tensor(images.iter().flatten().map(|&v| v as f32).collect(), dims);
    let signs = tensor(signs.concat(), dims);
    let (densities, _) = flow.densities(denoiser, data, signs, &mut go_on).unwrap();
    densities.into_iter().map(|density| density.prior + density.volume).collect()
}

/// Values whose variances lie as far apart as those of the principal components of images. Every sign gives the exact divergence here.
#[test]
fn normal_data_have_the_density_that_is_known_and_the_error_falls_with_the_fourth_power() {
    let variances: Vec<f64> = vec![30.0, 3.0, 0.3, 0.1, 0.03, 1e-3, 1e-5, 0.0];
    let means: Vec<f64> = (0..8).map(|i| f64::from(i) / 4.0 - 0.9).collect();
    for levels in [Levels::Exploding, Levels::Preserving] {
        let normal = Normal { levels, means: means.clone(), variances: variances.clone() };
        let s = levels.flow(1).from.exp();
        let image = |z: f64| -> Vec<f64> {
            let each = means.iter().zip(&variances).enumerate();
            each.map(|(i, (mean, v))| mean + (v + s * s).sqrt() * z * (i as f64).cos()).collect()
        };
        let images = [image(1.0), image(-1.5), image(0.0)];
        let signs = [vec![1.0; 8], vec![-1.0; 8], vec![1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0]];
        // The density of the data, and the one that the flow has because it ends in a normal distribution that is not quite that of the data there.
        let of_image = |image: &[f64], of_value: &dyn Fn(f64, f64) -> f64| {
            let each = image.iter().zip(&means).zip(&variances).map(|((y, mean), v)| of_value(y - mean, *v) / LN_2);
            each.sum::<f64>() / 8.0
        };
        let normal_bits = |off: f64, variance: f64| 0.5 * ((2.0 * PI * variance).ln() + off * off / variance);
        let (end, deviation) = (levels.flow(1).to.exp(), levels.flow(1).deviation);
        let (mut of_data, mut of_flow) = (Vec::new(), Vec::new());
        for image in &images {
            of_data.push(of_image(image, &|off, v| normal_bits(off, v + s * s)));
            let moved = image.iter().zip(&means).zip(&variances).map(|((y, mean), v)| {
                let growth = ((v + end * end) / (v + s * s)).sqrt();
                (normal_bits(mean + (y - mean) * growth, deviation * deviation) - growth.ln()) / LN_2
            });
            of_flow.push(moved.sum::<f64>() / 8.0);
        }
        let error = |steps: usize, known: &[f64]| {
            largest_difference(&bits(&levels.flow(steps), &normal, &images, &signs), known)
        };
        let errors = [8, 16, 32, 64].map(|steps| error(steps, &of_flow));
        println!("{errors:?}, {}", error(64, &of_data));
        assert!(errors[2] < 2e-4 && errors[3] < 3e-5, "{errors:?}");
        assert!(errors[0] / errors[1] > 8.0 && errors[1] / errors[2] > 8.0, "{errors:?}");
        assert!(error(64, &of_data) < 1e-3);
    }
}

#[test]
fn mixtures_have_the_density_that_is_known() {
    let places = vec![vec![-1.0, -1.0], vec![0.2, 0.9], vec![1.0, -0.3]];
    let images: Vec<Vec<f64>> =
        [[-1.02, -0.97], [0.2, 0.9], [1.05, -0.2], [0.35, 0.75], [-1.2, -0.85]].map(|image| image.to_vec()).into();
    for levels in [Levels::Exploding, Levels::Preserving] {
        let mixture =
            Mixture { levels, places: places.clone(), shares: vec![0.5, 0.2, 0.3], variance: 0.1_f64.powi(2) };
        let flow = levels.flow(2 * STEPS);
        // In two dimensions, the mean over both pairs of signs is the trace.
        let [equal, unlike] =
            [[1.0, 1.0], [1.0, -1.0]].map(|signs| bits(&flow, &mixture, &images, &vec![signs.to_vec(); images.len()]));
        for (image, (equal, unlike)) in images.iter().zip(equal.into_iter().zip(unlike)) {
            let (got, known) = ((equal + unlike) / 2.0, mixture.known(image, flow.from.exp()));
            println!("{image:?}: {got}, {known}");
            assert!((got - known).abs() < 5e-3, "{image:?}: {got}, {known}");
        }
    }
}

/// A network of one value, trained a little on two places.
fn trained(config: &UnetConfig, shape: [usize; 3], steps: u64) -> (Eval<Unet>, Diffusion) {
    let diffusion = Diffusion::new(&FormulationConfig::Elucidated(ElucidatedConfig::default()).into()).unwrap();
    let unet = Unet::new(config, &mut Init::new(3, &DEVICE().autodiff())).unwrap();
    let train = TrainConfig { batch_size: 16, lr: 1e-2, ..TrainConfig::default() };
    let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 0, ema_decay: 0.5, ..EmaConfig::default() };
    let mut trainer = Trainer::new(unet, diffusion.clone(), train, ema, &DEVICE()).unwrap();
    let [c, h, w] = shape;
    for step in 0..steps {
        let values = (0..16 * c * h * w).map(|i| if (i as u64 + step).is_multiple_of(3) { 0.2 } else { 0.7 }).collect();
        trainer.step(vec![tensor(values, [16, c, h, w])]);
    }
    (trainer.ema().eval(), diffusion)
}

fn tiny() -> UnetConfig {
    UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() }
}

/// Whatever a network has learned, its density over all images is 1.
#[test]
fn the_density_of_a_network_is_one_in_all() {
    let (unet, diffusion) = trained(&tiny(), [1, 1, 1], 30);
    let unclipped = GuidanceConfig { threshold: Threshold::None, ..GuidanceConfig::default() };
    let denoiser = diffusion.denoiser(&unet).guided(&unclipped);
    let s = 0.02_f64;
    let flow = Flow { from: s.ln(), steps: 64, ..Flow::of(diffusion.formulation(), 64) };
    let width = s / 4.0;
    let images: Vec<Vec<f64>> = (-600..=600).map(|k| vec![f64::from(k) * width]).collect();
    let densities = bits(&flow, &denoiser, &images, &vec![vec![1.0]; images.len()]);
    let all: f64 = densities.iter().map(|bits| (-bits).exp2() * width).sum();
    println!("{all}");
    assert!((all - 1.0).abs() < 0.02, "{all}");
}

/// The mean over all vectors of signs is the divergence: that of a Jacobian by differences, on a path by another method.
#[test]
fn signs_estimate_the_divergence_of_a_network() {
    let (unet, diffusion) = trained(&tiny(), [1, 2, 2], 30);
    let unclipped = GuidanceConfig { threshold: Threshold::None, ..GuidanceConfig::default() };
    let denoiser = diffusion.denoiser(&unet).guided(&unclipped);
    let flow = Flow { from: 0.1_f64.ln(), to: 10_f64.ln(), deviation: 10.0, ..Flow::of(diffusion.formulation(), 32) };
    let image = vec![-0.5, 0.4, 0.3, -0.7];
    let signs = |of: u32| (0..4).map(|k| if of >> k & 1 == 0 { -1.0 } else { 1.0 }).collect::<Vec<f32>>();
    let signs: Vec<Vec<f32>> = (0..16).map(signs).collect();
    let all = {
        let data = tensor([0; 16].iter().flat_map(|_| image.iter().map(|&v| v as f32)).collect(), [16, 1, 2, 2]);
        let signs = tensor(signs.concat(), [16, 1, 2, 2]);
        flow.densities(&denoiser, data, signs, &mut go_on).unwrap().0
    };
    let estimate = |y: &[Vec<f64>], tau: f64| -> Vec<f64> {
        let level = denoiser.level_at_log_snr(-2.0 * tau);
        let x = tensor(y.iter().flatten().map(|&v| (v * level.alpha) as f32).collect(), [y.len(), 1, 2, 2]);
        host_values(denoiser.denoise(x, level, None).x_start).into_iter().map(f64::from).collect()
    };
    // The midpoint rule in y.
    let (steps, mut y, mut divergence) = (200, image.clone(), 0.0);
    let step = (flow.to - flow.from) / f64::from(steps);
    for k in 0..steps {
        let tau = flow.from + f64::from(k) * step;
        let slope = |y: &[f64], tau: f64| -> Vec<f64> {
            y.iter().zip(estimate(&[y.to_vec()], tau)).map(|(y, estimate)| y - estimate).collect()
        };
        let moved = |y: &[f64], by: &[f64], times: f64| -> Vec<f64> {
            y.iter().zip(by).map(|(y, by)| y + by * times).collect()
        };
        let middle = moved(&y, &slope(&y, tau), step / 2.0);
        let tau = tau + step / 2.0;
        let off = 0.01 * tau.exp().max(1.0);
        let around: Vec<Vec<f64>> = (0..8)
            .map(|k| {
                moved(
                    &middle,
                    &(0..4).map(|i| if i == k / 2 { off } else { 0.0 }).collect::<Vec<_>>(),
                    [1.0, -1.0][k % 2],
                )
            })
            .collect();
        let around = estimate(&around, tau);
        let trace: f64 = (0..4).map(|i| (around[2 * i * 4 + i] - around[(2 * i + 1) * 4 + i]) / (2.0 * off)).sum();
        divergence += step * (4.0 - trace);
        y = moved(&y, &slope(&middle, tau), step);
    }
    let squares: f64 = y.iter().map(|y| (y / 10.0).powi(2)).sum();
    let expected = (0.5 * (4.0 * (2.0 * PI * 100.0).ln() + squares) - divergence) / (4.0 * LN_2);
    let got = all.iter().map(|density| density.prior + density.volume).sum::<f64>() / 16.0;
    println!("{got}, {expected}; {all:?}");
    assert!((got - expected).abs() < 2e-3, "{got}, {expected}");
    assert!(
        all.iter().any(|density| (density.volume - all[0].volume).abs() > 1e-3),
        "all signs give the same: {all:?}"
    );
}

fn images(count: usize, side: usize) -> Images {
    let data = (0..count * side * side).map(|i| (i * i % 251) as f32 / 255.0).collect();
    Images::of_samples(&ImageBatch::new([count, 1, side, side], data).unwrap())
}

#[test]
fn results_depend_on_the_seed_and_not_on_the_batch() {
    let (unet, diffusion) = trained(&tiny(), [1, 4, 4], 3);
    let images = images(7, 4);
    let nll = |size: usize, seed: u64| {
        let parts = images.examples(size).unwrap();
        negative_log_likelihood(&unet, &diffusion, parts, 4, seed, &DEVICE(), &mut go_on).unwrap()
    };
    let (whole, parts) = (nll(7, 0), nll(2, 0));
    assert_eq!(whole, nll(7, 0));
    assert_ne!(whole.total, nll(7, 1).total);
    assert!((whole.total - parts.total).abs() < 1e-5 && (whole.standard_error - parts.standard_error).abs() < 1e-5);
    let sum = whole.prior + whole.volume + whole.interval;
    assert!((sum - whole.total).abs() < 1e-12 && whole.n == 7 && whole.standard_error > 0.0, "{whole:?}");
    // The terms are the volume's, at the beginnings of steps.
    let [first, second] = [whole.terms[0].0, whole.terms[1].0];
    let about: f64 = whole.terms.iter().map(|(_, rate)| rate * (first - second)).sum();
    println!("{about}, {}", whole.volume);
}

/// Calls are told of all evaluations, and can stop after any.
#[test]
fn work_is_told_and_can_be_stopped() {
    let (unet, diffusion) = trained(&tiny(), [1, 4, 4], 1);
    let images = images(3, 4);
    let told = |stop_at: usize| {
        let mut told = Vec::new();
        let mut on_batch = |done| {
            told.push(done);
            if done >= stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let parts = images.examples(2).unwrap();
        let nll = negative_log_likelihood(&unet, &diffusion, parts, 1, 0, &DEVICE(), &mut on_batch);
        (told, nll.map(|nll| nll.n))
    };
    let (done, n) = told(usize::MAX);
    assert_eq!((done, n.unwrap()), (vec![2, 4, 6, 8, 9, 10, 11, 12], 3));
    let (done, stopped) = told(4);
    assert!(done == [2, 4] && matches!(stopped, Err(LikelihoodError::Interrupted)), "{done:?}");
}

/// Values stay within their intervals, and signs are signs.
#[test]
fn noise_is_of_its_image() {
    let batch = |count: usize, data: Vec<f32>| {
        Images::of_samples(&ImageBatch::new([count, 1, 1, 50], data).unwrap())
            .examples(9)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
    };
    let values: Vec<f32> = (0..100).map(|i| (i % 2) as f32).collect();
    let (both, second) = (batch(2, values.clone()), batch(1, values[50..].to_vec()));
    let (drawn, of_second) = (dequantised(&both, 5, 0), dequantised(&second, 5, 1));
    assert_eq!(drawn[50..], of_second);
    assert_eq!(signs(&both, 5, 0)[50..], signs(&second, 5, 1));
    assert!(signs(&both, 5, 0).iter().all(|v| v.abs() == 1.0));
    let plus = signs(&both, 5, 0).iter().filter(|&&v| v > 0.0).count();
    assert!((25..75).contains(&plus), "{plus}");
    for (value, drawn) in values.iter().zip(&drawn) {
        assert!((f64::from(2.0 * value - 1.0) - f64::from(*drawn)).abs() <= WIDTH / 2.0 + 1e-6);
    }
    assert_ne!(drawn[..50], drawn[50..]);
}

/// Up to the formulation's noisiest level, or where hardly any signal is left.
#[test]
fn paths_end_where_sampling_begins() {
    let flow = |options: &str| {
        let config: DiffusionConfig = toml::from_str(options).unwrap();
        let flow = Flow::of(Diffusion::new(&config).unwrap().formulation(), 1);
        assert!((flow.from.exp() / DEQUANTISED - 1.0).abs() < 1e-9);
        (flow.to.exp(), flow.deviation)
    };
    let near = |got: (f64, f64), to: f64, deviation: f64| {
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.02;
        assert!(close(got.0, to) && close(got.1, deviation), "{got:?}");
    };
    near(flow("diffusion = 'elucidated'"), 80.0, 80.0);
    near(flow("diffusion = 'elucidated'\nsigma_min = 0.01\nsigma_max = 20"), 20.0, 20.0);
    near(flow("diffusion = 'elucidated'\nsigma_max = 2000"), NOISIEST, NOISIEST);
    near(flow("diffusion = 'rectified_flow'"), NOISIEST, NOISIEST);
    near(flow("diffusion = 'gaussian'\nbeta_schedule = 'linear'"), 157.0, 157.0);
    let (to, deviation) = flow("diffusion = 'gaussian'\nbeta_schedule = 'linear'\nzero_terminal_snr = true");
    assert!(to < NOISIEST && to > 100.0 && (deviation - to.hypot(1.0)).abs() < 1e-6 * to, "{to} {deviation}");
}
