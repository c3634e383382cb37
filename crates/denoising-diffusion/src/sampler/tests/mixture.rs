//! Data whose denoiser is known exactly and whose probability flow can be followed to any accuracy: a mixture of normal distributions in the plane.
//! All in f64 on the host; tensors `[b, 2]` are f32.

use std::cell::Cell;

use burn::tensor::{Device, Tensor, TensorData};

use crate::diffusion::{Denoiser, Estimate, NoiseLevel};
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream};
use crate::testing::largest;

pub type Point = [f64; 2];

/// How alpha depends on `sigma / alpha`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    VariancePreserving,
    Edm,
    Flow,
}

pub const FAMILIES: [Family; 3] = [Family::VariancePreserving, Family::Edm, Family::Flow];

impl Family {
    /// The level with this `sigma / alpha`.
    pub fn level(self, s: f64) -> NoiseLevel {
        let alpha = match self {
            Self::VariancePreserving => 1.0 / s.hypot(1.0),
            Self::Edm => 1.0,
            Self::Flow => 1.0 / (1.0 + s),
        };
        NoiseLevel { alpha, sigma: alpha * s, time: s }
    }

    /// `n + 1` levels equally far apart in the logarithm of `sigma / alpha`.
    pub fn log_spaced(self, from: f64, to: f64, n: usize) -> Vec<NoiseLevel> {
        spaced(from.ln(), to.ln(), n).map(|u| self.level(u.exp())).collect()
    }

    /// The levels of Karras et al. 2022, eq. 5 with rho = 7.
    pub fn karras(self, from: f64, to: f64, n: usize) -> Vec<NoiseLevel> {
        spaced(from.powf(1.0 / 7.0), to.powf(1.0 / 7.0), n).map(|u| self.level(u.powi(7))).collect()
    }
}

/// Straight paths at equal steps of time from pure noise (alpha = 0) down to `to`.
pub fn flow_from_pure_noise(to: f64, n: usize) -> Vec<NoiseLevel> {
    spaced(1.0, to, n).map(|t| NoiseLevel { alpha: 1.0 - t, sigma: t, time: t }).collect()
}

pub fn to_clean(mut levels: Vec<NoiseLevel>) -> Vec<NoiseLevel> {
    levels.push(NoiseLevel::CLEAN);
    levels
}

fn spaced(from: f64, to: f64, n: usize) -> impl Iterator<Item = f64> {
    (0..=n).map(move |i| from + (to - from) * i as f64 / n as f64)
}

/// One normal distribution of the mixture: mean, and the covariance `[[a, b], [b, c]]` as `[a, b, c]`.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    pub weight: f64,
    pub mean: Point,
    pub covariance: [f64; 3],
}

#[derive(Clone, Debug)]
pub struct Mixture {
    pub family: Family,
    pub modes: Vec<Mode>,
    /// Counts calls of `denoise`.
    pub calls: Cell<usize>,
}

impl Mixture {
    /// Three modes, none of them symmetric to another.
    pub fn three(family: Family) -> Self {
        let mode = |weight, mean, covariance| Mode { weight, mean, covariance };
        let modes = vec![
            mode(0.5, [0.8, 0.2], [0.10, 0.03, 0.06]),
            mode(0.3, [-0.7, 0.6], [0.06, -0.02, 0.08]),
            mode(0.2, [-0.1, -0.8], [0.08, 0.0, 0.05]),
        ];
        Self { family, modes, calls: Cell::new(0) }
    }

    /// Mean and covariance of the whole mixture.
    pub fn moments(&self) -> (Point, [f64; 3]) {
        let expectation = |f: &dyn Fn(&Mode) -> f64| self.modes.iter().map(|m| m.weight * f(m)).sum::<f64>();
        let mean = [0, 1].map(|k| expectation(&|m| m.mean[k]));
        let second = |i: usize, j: usize, k: usize| expectation(&|m| m.covariance[k] + m.mean[i] * m.mean[j]);
        let products = [mean[0] * mean[0], mean[0] * mean[1], mean[1] * mean[1]];
        (mean, [second(0, 0, 0) - products[0], second(0, 1, 1) - products[1], second(1, 1, 2) - products[2]])
    }

    /// The expectation of x_start given `x = alpha x_start + sigma eps`: that of each mode,
    /// `mean + alpha covariance (alpha^2 covariance + sigma^2)^-1 (x - alpha mean)`, weighted by how probable the mode makes x.
    pub fn expectation(&self, x: Point, alpha: f64, sigma: f64) -> Point {
        let conditionals: Vec<(f64, Point)> = self.modes.iter().map(|m| m.given(x, alpha, sigma)).collect();
        let most = conditionals.iter().map(|c| c.0).fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut total) = ([0.0; 2], 0.0);
        for (log_weight, mean) in conditionals {
            let weight = (log_weight - most).exp();
            total += weight;
            sum = [sum[0] + weight * mean[0], sum[1] + weight * mean[1]];
        }
        sum.map(|v| v / total)
    }

    /// x at the last level, following the probability flow from x at the first by Runge and Kutta's classical method. In
    /// `x / alpha` and `ln(sigma / alpha)`: `dy / du = y - x_start`; from pure noise down to `sigma / alpha` = 9 first along straight
    /// paths, `dx / dt = eps - x_start`.
    pub fn flow(&self, x: Point, levels: &[NoiseLevel]) -> Point {
        let (first, last) = (levels[0], levels[levels.len() - 1]);
        let (mut x, mut from) = (x, first.sigma / first.alpha);
        if first.alpha == 0.0 {
            let velocity = |x: Point, t: f64| {
                let d = self.expectation(x, 1.0 - t, t);
                [0, 1].map(|k| (x[k] - (1.0 - t) * d[k]) / t - d[k])
            };
            x = runge_kutta(x, 1.0, 0.9, 2000, velocity);
            (x, from) = (x.map(|v| v / 0.1), 9.0);
        } else {
            x = x.map(|v| v / first.alpha);
        }
        let slope = |y: Point, u: f64| {
            let d = self.expectation(y, 1.0, u.exp());
            [y[0] - d[0], y[1] - d[1]]
        };
        let y = runge_kutta(x, from.ln(), (last.sigma / last.alpha).ln(), 2000, slope);
        y.map(|v| v * last.alpha)
    }
}

impl Mode {
    /// The logarithm of weight times density of `x` (up to a constant), and the expectation of x_start, if x_start is from this mode.
    fn given(&self, x: Point, alpha: f64, sigma: f64) -> (f64, Point) {
        let [a, b, c] = self.covariance;
        let total = [alpha * alpha * a + sigma * sigma, alpha * alpha * b, alpha * alpha * c + sigma * sigma];
        let determinant = total[0] * total[2] - total[1] * total[1];
        let r = [x[0] - alpha * self.mean[0], x[1] - alpha * self.mean[1]];
        let solved =
            [(total[2] * r[0] - total[1] * r[1]) / determinant, (total[0] * r[1] - total[1] * r[0]) / determinant];
        let log_weight = self.weight.ln() - 0.5 * (determinant.ln() + r[0] * solved[0] + r[1] * solved[1]);
        let mean = [
            self.mean[0] + alpha * (a * solved[0] + b * solved[1]),
            self.mean[1] + alpha * (b * solved[0] + c * solved[1]),
        ];
        (log_weight, mean)
    }
}

impl Denoiser<2> for Mixture {
    fn denoise(&self, x: Tensor<2>, level: NoiseLevel, _: Option<Tensor<2>>) -> Estimate<2> {
        self.calls.set(self.calls.get() + 1);
        let estimates = points(x).into_iter().map(|x| self.expectation(x, level.alpha, level.sigma));
        Estimate::of(tensor(&estimates.collect::<Vec<_>>()))
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.family.level((-0.5 * log_snr).exp())
    }
}

fn runge_kutta(mut y: Point, from: f64, to: f64, steps: usize, slope: impl Fn(Point, f64) -> Point) -> Point {
    let h = (to - from) / steps as f64;
    let plus = |y: Point, k: Point, h: f64| [y[0] + h * k[0], y[1] + h * k[1]];
    for i in 0..steps {
        let u = from + h * i as f64;
        let k1 = slope(y, u);
        let k2 = slope(plus(y, k1, 0.5 * h), u + 0.5 * h);
        let k3 = slope(plus(y, k2, 0.5 * h), u + 0.5 * h);
        let k4 = slope(plus(y, k3, h), u + h);
        y = [0, 1].map(|j| y[j] + h / 6.0 * (k1[j] + 2.0 * k2[j] + 2.0 * k3[j] + k4[j]));
    }
    y
}

pub fn tensor(points: &[Point]) -> Tensor<2> {
    let values: Vec<f32> = points.iter().flatten().map(|&v| v as f32).collect();
    Tensor::from_data(TensorData::new(values, [points.len(), 2]), &Device::flex())
}

pub fn points(x: Tensor<2>) -> Vec<Point> {
    host_values(x).chunks(2).map(|pair| [f64::from(pair[0]), f64::from(pair[1])]).collect()
}

/// x at a noisy level: `sigma z`, or spread like the data if they are not drowned in noise.
pub fn start(level: NoiseLevel, count: usize) -> Tensor<2> {
    let mut values = vec![0.0; 2 * count];
    Stream::new(5, Purpose::SampleInit, 0, 0).fill_normal(&mut values);
    let deviation = (level.sigma.powi(2) + 0.5 * level.alpha.powi(2)).sqrt();
    Tensor::<2>::from_data(TensorData::new(values, [count, 2]), &Device::flex()) * deviation
}

/// The greatest distance of a point of `a` from its partner in `b`.
pub fn distance(a: &[Point], b: &[Point]) -> f64 {
    assert_eq!(a.len(), b.len());
    largest(a.iter().zip(b).map(|(a, b)| (a[0] - b[0]).hypot(a[1] - b[1])))
}
