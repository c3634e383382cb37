//! What a network's output means: all readings are linear in the noisy data and the output. Not here: where noise levels come from (the
//! formulations), and outputs of several parts (`learned_variance`, `weighted_objective`).

use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;

/// What the network predicts, for formulations that offer a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Objective {
    /// The noise `eps` (Ho et al. 2020).
    #[serde(rename = "pred_noise", alias = "eps")]
    PredNoise,
    /// The clean data `x_start`.
    #[serde(rename = "pred_x0", alias = "x_start")]
    PredX0,
    /// The velocity `v = alpha eps - sigma x_start` (Salimans and Ho 2022, appendix D).
    #[default]
    #[serde(rename = "pred_v", alias = "v")]
    PredV,
}

impl Objective {
    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::PredNoise => "pred_noise",
            Self::PredX0 => "pred_x0",
            Self::PredV => "pred_v",
        }
    }
}

/// How a network's output `F` gives the clean data: `x_start = c_skip x + c_out F(c_in x, time)`.
#[derive(Clone, Copy, Debug)]
pub enum Prediction {
    Noise,
    XStart,
    V,
    /// The preconditioned residual of Karras et al. 2022, table 1; levels have alpha = 1.
    Elucidated {
        sigma_data: f64,
    },
    /// `eps - x_start`, the velocity of the straight path with alpha = 1 - sigma (Liu et al. 2022, arXiv:2209.03003, eq. 1).
    Flow,
    /// Any other linear reading.
    Linear(fn(&NoiseLevel) -> Coefficients),
}

/// The coefficients of a [`Prediction`] at one noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    pub c_in: f64,
    pub c_skip: f64,
    pub c_out: f64,
    /// The training target is `target_x_start x_start + target_noise eps`.
    pub target_x_start: f64,
    pub target_noise: f64,
}

impl From<Objective> for Prediction {
    fn from(objective: Objective) -> Self {
        match objective {
            Objective::PredNoise => Self::Noise,
            Objective::PredX0 => Self::XStart,
            Objective::PredV => Self::V,
        }
    }
}

impl Prediction {
    /// At a level with sigma above 0. At pure noise, predicted noise says nothing about the data; there the estimate is 0, the middle of the data's
    /// range, rather than a difference of rounding errors divided by alpha.
    pub fn coefficients(self, level: &NoiseLevel) -> Coefficients {
        let NoiseLevel { alpha, sigma, .. } = *level;
        let (c_in, [c_skip, c_out], [target_x_start, target_noise]) = match self {
            Self::Linear(coefficients) => return coefficients(level),
            Self::Noise if level.is_pure_noise() => (1.0, [0.0, 0.0], [0.0, 1.0]),
            Self::Noise => (1.0, [1.0 / alpha, -sigma / alpha], [0.0, 1.0]),
            Self::XStart => (1.0, [0.0, 1.0], [1.0, 0.0]),
            Self::V => (1.0, [alpha, -sigma], [-sigma, alpha]),
            Self::Flow => (1.0, [1.0, -sigma], [-1.0, 1.0]),
            Self::Elucidated { sigma_data } => {
                let total = sigma.hypot(sigma_data);
                let skip = (sigma_data / total).powi(2);
                (1.0 / total, [skip, sigma * sigma_data / total], [sigma / (sigma_data * total), -sigma_data / total])
            }
        };
        Coefficients { c_in, c_skip, c_out, target_x_start, target_noise }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// An output that hits its target gives back the clean data.
        #[test]
        fn target_and_reading_are_inverse(log_snr in -8.0_f64..8.0, x_start in -1.0_f64..1.0, eps in -3.0_f64..3.0) {
            let vp = 1.0 / (1.0 + (-log_snr).exp());
            let vp = NoiseLevel { alpha: vp.sqrt(), sigma: (1.0 - vp).sqrt(), time: 0.0 };
            let ve = NoiseLevel { alpha: 1.0, sigma: (-0.5 * log_snr).exp(), time: 0.0 };
            let flow = 1.0 / (1.0 + (0.5 * log_snr).exp());
            let flow = NoiseLevel { alpha: 1.0 - flow, sigma: flow, time: 0.0 };
            for (prediction, level) in [
                (Prediction::Noise, vp),
                (Prediction::XStart, vp),
                (Prediction::V, vp),
                (Prediction::Elucidated { sigma_data: 0.5 }, ve),
                (Prediction::Flow, flow),
            ] {
                let c = prediction.coefficients(&level);
                let x = level.alpha * x_start + level.sigma * eps;
                let target = c.target_x_start * x_start + c.target_noise * eps;
                prop_assert!((c.c_skip * x + c.c_out * target - x_start).abs() < 1e-9, "{prediction:?}");
            }
        }
    }
}
