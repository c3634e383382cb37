//! The list of solvers: name, cost, options and how each is run.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::config::SampleConfig;
use super::ddpm::{PosteriorVariance, WithinBounds};
use super::dpmpp_2s::has_halfway;
use super::heun::has_two_slopes;
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted};
use super::{
    UnipcOrder, ddim, ddpm, dpmpp_2m, dpmpp_2s, dpmpp_sde_2m, dpmpp_sde_3m, euler, euler_ancestral, heun, lms, unipc,
};
use crate::diffusion::{Denoiser, FormulationConfig, GuidanceConfig, NoiseLevel};

/// A solver. The default is the best one measured for Gaussian diffusion at 10 to 250 evaluations (docs/samplers.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    Ddpm,
    Ddim,
    Euler,
    EulerAncestral,
    Heun,
    #[serde(rename = "dpmpp_2m")]
    Dpmpp2m,
    #[serde(rename = "dpmpp_2s")]
    Dpmpp2s,
    #[default]
    #[serde(rename = "dpmpp_sde_2m")]
    DpmppSde2m,
    #[serde(rename = "dpmpp_sde_3m")]
    DpmppSde3m,
    Unipc,
    Lms,
}

impl SamplerKind {
    /// All solvers.
    pub const ALL: [Self; 11] = [
        Self::Ddpm,
        Self::Ddim,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Dpmpp2m,
        Self::Dpmpp2s,
        Self::DpmppSde2m,
        Self::DpmppSde3m,
        Self::Unipc,
        Self::Lms,
    ];

    /// The default for a formulation and guidance: the best one measured at up to 50 evaluations (docs/samplers.md).
    pub fn usual(formulation: &FormulationConfig, guidance: &GuidanceConfig) -> Self {
        let usual = match formulation {
            FormulationConfig::Elucidated(_) => Self::Dpmpp2m,
            FormulationConfig::RectifiedFlow(_) => Self::Euler,
            _ => Self::default(),
        };
        if guidance.cfg_plus_plus && !usual.renoises() { Self::Ddim } else { usual }
    }

    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_ancestral",
            Self::Heun => "heun",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Dpmpp2s => "dpmpp_2s",
            Self::DpmppSde2m => "dpmpp_sde_2m",
            Self::DpmppSde3m => "dpmpp_sde_3m",
            Self::Unipc => "unipc",
            Self::Lms => "lms",
        }
    }

    /// One-line description for the user.
    pub fn about(self) -> &'static str {
        match self {
            Self::Ddpm => "ancestral sampling, noise in every step (Ho et al. 2020)",
            Self::Ddim => "deterministic, or with noise (--eta) (Song et al. 2020)",
            Self::Euler => "first order in sigma, with churn (Karras et al. 2022)",
            Self::EulerAncestral => "first order, noise in every step (--eta)",
            Self::Heun => "second order, two evaluations per step, with churn (Karras et al. 2022)",
            Self::Dpmpp2m => "DPM-Solver++, second order from two steps (Lu et al. 2022)",
            Self::Dpmpp2s => "DPM-Solver++, second order, two evaluations per step (Lu et al. 2022)",
            Self::DpmppSde2m => "DPM-Solver++ as a stochastic solver, noise set by --eta (Lu et al. 2022)",
            Self::DpmppSde3m => "the same of third order (k-diffusion)",
            Self::Unipc => "predictor and corrector of second order (Zhao et al. 2023)",
            Self::Lms => "linear multistep, fourth order",
        }
    }

    /// Evaluations of the network from the first level to the last.
    pub fn evaluations(self, levels: &[NoiseLevel]) -> usize {
        let evaluations_of = |pair: &[NoiseLevel]| {
            let pair = [pair[0], pair[1]];
            let second = match self {
                Self::Heun => has_two_slopes(pair),
                Self::Dpmpp2s => has_halfway(pair),
                _ => false,
            };
            1 + usize::from(second)
        };
        levels.windows(2).map(evaluations_of).sum()
    }

    /// The default eta, for solvers with this option.
    pub fn default_eta(self) -> Option<f64> {
        match self {
            Self::Ddim => Some(0.0),
            Self::EulerAncestral | Self::DpmppSde2m | Self::DpmppSde3m => Some(1.0),
            _ => None,
        }
    }

    /// Whether evenly spaced log-SNR serves the solver better than evenly spaced t: those that are exact for estimates that are polynomials in log-SNR.
    pub(super) fn prefers_log_snr(self) -> bool {
        matches!(self, Self::Dpmpp2m | Self::Dpmpp2s | Self::DpmppSde2m | Self::DpmppSde3m | Self::Unipc)
    }

    /// Whether noise is added on the way unless an option says otherwise.
    pub fn is_stochastic(self) -> bool {
        self == Self::Ddpm || self.default_eta().is_some_and(|eta| eta > 0.0)
    }

    /// Whether the solver supports churn.
    pub fn churns(self) -> bool {
        matches!(self, Self::Euler | Self::Heun)
    }

    /// Whether the direction back to noise may come from a different estimate (CFG++): solvers of the form `x_s = alpha_s x_start + sigma_s eps`.
    pub fn renoises(self) -> bool {
        matches!(self, Self::Ddim | Self::Euler | Self::EulerAncestral)
    }
}

impl SampleConfig {
    /// From `x` at `levels[0]` to the last level with the configured solver.
    ///
    /// # Errors
    /// [`Interrupted`] if the callback ends sampling.
    pub fn run<const D: usize>(
        &self,
        denoiser: &impl Denoiser<D>,
        x: Tensor<D>,
        levels: &[NoiseLevel],
        noise: &mut impl NoiseSource<D>,
        callback: &mut Callback<'_, D>,
    ) -> Result<Tensor<D>, Interrupted> {
        let (eta, churn) = (self.eta(), self.churn());
        match self.sampler {
            SamplerKind::Ddpm => match self.posterior_variance {
                Some(variance) => ddpm(denoiser, x, levels, variance, noise, callback),
                None => ddpm(&WithinBounds(denoiser), x, levels, PosteriorVariance::Learned, noise, callback),
            },
            SamplerKind::Ddim => ddim(denoiser, x, levels, eta, noise, callback),
            SamplerKind::Euler => euler(denoiser, x, levels, &churn, noise, callback),
            SamplerKind::EulerAncestral => euler_ancestral(denoiser, x, levels, eta, noise, callback),
            SamplerKind::Heun => heun(denoiser, x, levels, &churn, noise, callback),
            SamplerKind::Dpmpp2m => dpmpp_2m(denoiser, x, levels, callback),
            SamplerKind::Dpmpp2s => dpmpp_2s(denoiser, x, levels, callback),
            SamplerKind::DpmppSde2m => dpmpp_sde_2m(denoiser, x, levels, eta, noise, callback),
            SamplerKind::DpmppSde3m => dpmpp_sde_3m(denoiser, x, levels, eta, noise, callback),
            SamplerKind::Unipc => unipc(denoiser, x, levels, UnipcOrder::Second, callback),
            SamplerKind::Lms => lms(denoiser, x, levels, callback),
        }
    }
}
