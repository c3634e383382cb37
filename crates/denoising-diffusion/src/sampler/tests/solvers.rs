//! Every solver under one signature.

use burn::tensor::{Device, Tensor};

use crate::diffusion::{Denoiser, Estimate, NoiseLevel};
use crate::sampler::*;

type Levels<'a> = &'a [NoiseLevel];
/// For a denoiser of points in the plane, without a callback.
pub type Solver = fn(&dyn Denoiser<2>, Tensor<2>, Levels<'_>) -> Result<Tensor<2>, Interrupted>;

/// A `dyn Denoiser` as a `Denoiser`.
pub struct By<'a>(pub &'a dyn Denoiser<2>);

impl Denoiser<2> for By<'_> {
    fn denoise(&self, x: Tensor<2>, level: NoiseLevel, x_self_cond: Option<Tensor<2>>) -> Estimate<2> {
        self.0.denoise(x, level, x_self_cond)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.0.level_at_log_snr(log_snr)
    }
}

/// A source for solvers that must not draw.
struct NoNoise;

impl NoiseSource<2> for NoNoise {
    fn step(&mut self, _: usize, _: [usize; 2]) -> Tensor<2> {
        panic!("a deterministic solver drew noise")
    }
}

pub const DDIM: Solver = |d, x, l| ddim(&By(d), x, l, 0.0, &mut NoNoise, &mut ignore);
pub const EULER: Solver = |d, x, l| euler(&By(d), x, l, &Churn::default(), &mut NoNoise, &mut ignore);
const ANCESTRAL_0: Solver = |d, x, l| euler_ancestral(&By(d), x, l, 0.0, &mut NoNoise, &mut ignore);
pub const HEUN: Solver = |d, x, l| heun(&By(d), x, l, &Churn::default(), &mut NoNoise, &mut ignore);
pub const DPMPP_2M: Solver = |d, x, l| dpmpp_2m(&By(d), x, l, &mut ignore);
pub const DPMPP_2S: Solver = |d, x, l| dpmpp_2s(&By(d), x, l, &mut ignore);
const DPMPP_SDE_2M_0: Solver = |d, x, l| dpmpp_sde_2m(&By(d), x, l, 0.0, &mut NoNoise, &mut ignore);
pub const DPMPP_3M: Solver = |d, x, l| dpmpp_sde_3m(&By(d), x, l, 0.0, &mut NoNoise, &mut ignore);
pub const UNIPC_2: Solver = |d, x, l| unipc(&By(d), x, l, UnipcOrder::Second, &mut ignore);
pub const UNIPC_3: Solver = |d, x, l| unipc(&By(d), x, l, UnipcOrder::Third, &mut ignore);
pub const LMS: Solver = |d, x, l| lms(&By(d), x, l, &mut ignore);

pub const DETERMINISTIC: [(&str, Solver); 11] = [
    ("ddim", DDIM),
    ("euler", EULER),
    ("euler_ancestral", ANCESTRAL_0),
    ("heun", HEUN),
    ("dpmpp_2m", DPMPP_2M),
    ("dpmpp_2s", DPMPP_2S),
    ("dpmpp_sde_2m", DPMPP_SDE_2M_0),
    ("dpmpp_sde_3m", DPMPP_3M),
    ("unipc 2", UNIPC_2),
    ("unipc 3", UNIPC_3),
    ("lms", LMS),
];

pub const CHURN: Churn = Churn { s_churn: 40.0, s_tmin: 0.05, s_tmax: 5.0, s_noise: 1.0 };

pub fn seeded() -> SeededNoise {
    SeededNoise::new(3, 0, &Device::flex())
}

pub const STOCHASTIC: [(&str, Solver); 9] = [
    ("ddim", |d, x, l| ddim(&By(d), x, l, 0.7, &mut seeded(), &mut ignore)),
    ("ddpm", |d, x, l| ddpm(&By(d), x, l, PosteriorVariance::Small, &mut seeded(), &mut ignore)),
    ("euler_ancestral", |d, x, l| euler_ancestral(&By(d), x, l, 1.0, &mut seeded(), &mut ignore)),
    ("euler with churn", |d, x, l| euler(&By(d), x, l, &CHURN, &mut seeded(), &mut ignore)),
    ("heun with churn", |d, x, l| heun(&By(d), x, l, &CHURN, &mut seeded(), &mut ignore)),
    ("dpmpp_sde_2m", |d, x, l| dpmpp_sde_2m(&By(d), x, l, 1.0, &mut seeded(), &mut ignore)),
    ("dpmpp_sde_2m, eta 0.5", |d, x, l| dpmpp_sde_2m(&By(d), x, l, 0.5, &mut seeded(), &mut ignore)),
    ("dpmpp_sde_3m", |d, x, l| dpmpp_sde_3m(&By(d), x, l, 1.0, &mut seeded(), &mut ignore)),
    ("dpmpp_sde_3m, eta 0.5", |d, x, l| dpmpp_sde_3m(&By(d), x, l, 0.5, &mut seeded(), &mut ignore)),
];
