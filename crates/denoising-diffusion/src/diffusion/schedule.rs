//! The noise schedule: every table derived from `betas`, in f64. Not here: tensors, losses, samplers.

use super::config::{BetaSchedule, GaussianConfig, Objective};

/// `betas[t]`, t = 0..T, of the configured schedule. Linear betas above 0.999 (T below about 21) are cut there, as the
/// other two schedules are: the reference lets them pass 1, where its tables become NaN.
pub fn betas(config: &GaussianConfig) -> Vec<f64> {
    let n = config.timesteps;
    match config.beta_schedule {
        BetaSchedule::Linear => linear_betas(n),
        BetaSchedule::Cosine => {
            let s = config.cosine_s.unwrap_or(0.008);
            betas_of(n, |u| ((u + s) / (1.0 + s) * std::f64::consts::FRAC_PI_2).cos().powi(2))
        }
        BetaSchedule::Sigmoid => {
            let (start, end) = (config.sigmoid_start.unwrap_or(-3.0), config.sigmoid_end.unwrap_or(3.0));
            let tau = config.sigmoid_tau.unwrap_or(1.0);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x / tau).exp());
            let (v_start, v_end) = (sigmoid(start), sigmoid(end));
            betas_of(n, |u| (v_end - sigmoid(u * (end - start) + start)) / (v_end - v_start))
        }
    }
}

fn linear_betas(n: usize) -> Vec<f64> {
    let scale = 1000.0 / n as f64;
    let (first, last) = (scale * 1e-4, scale * 0.02);
    (0..n).map(|t| (first + (last - first) * t as f64 / (n - 1) as f64).min(0.999)).collect()
}

/// `betas` of a function that gives `alphas_cumprod` at u = t / T, scaled to 1 at u = 0.
fn betas_of(n: usize, alphas_cumprod: impl Fn(f64) -> f64) -> Vec<f64> {
    let bar: Vec<f64> = (0..=n).map(|t| alphas_cumprod(t as f64 / n as f64) / alphas_cumprod(0.0)).collect();
    bar.windows(2).map(|w| (1.0 - w[1] / w[0]).clamp(0.0, 0.999)).collect()
}

/// Every table of Gaussian diffusion, indexed by t = 0..T.
#[derive(Clone, Debug)]
pub struct Tables {
    pub betas: Vec<f64>,
    pub alphas_cumprod: Vec<f64>,
    pub alphas_cumprod_prev: Vec<f64>,
    pub sqrt_alphas_cumprod: Vec<f64>,
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    pub log_one_minus_alphas_cumprod: Vec<f64>,
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    /// Variance of q(x_{t-1} | x_t, x_0), Ho et al. 2020, eq. 7.
    pub posterior_variance: Vec<f64>,
    /// Its logarithm, the variance cut at 1e-20 since it is 0 at t = 0.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0).
    pub posterior_mean_coef1: Vec<f64>,
    /// Weight of x_t in it.
    pub posterior_mean_coef2: Vec<f64>,
    /// Weight of each t in the loss.
    pub loss_weight: Vec<f64>,
}

impl Tables {
    /// The tables of a valid configuration.
    pub fn new(config: &GaussianConfig) -> Self {
        Self::from_betas(betas(config), config)
    }

    /// The tables of given betas; `config` decides only the loss weight.
    pub fn from_betas(betas: Vec<f64>, config: &GaussianConfig) -> Self {
        let bar: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        let prev: Vec<f64> = std::iter::once(1.0).chain(bar.iter().copied()).take(bar.len()).collect();
        let map = |f: &dyn Fn(f64) -> f64| bar.iter().map(|&a| f(a)).collect::<Vec<_>>();
        let posterior =
            |f: &dyn Fn(f64, f64, f64) -> f64| (0..bar.len()).map(|t| f(betas[t], bar[t], prev[t])).collect::<Vec<_>>();
        let posterior_variance = posterior(&|beta, bar, prev| beta * (1.0 - prev) / (1.0 - bar));
        Self {
            sqrt_alphas_cumprod: map(&|a| a.sqrt()),
            sqrt_one_minus_alphas_cumprod: map(&|a| (1.0 - a).sqrt()),
            log_one_minus_alphas_cumprod: map(&|a| (1.0 - a).ln()),
            sqrt_recip_alphas_cumprod: map(&|a| (1.0 / a).sqrt()),
            sqrt_recipm1_alphas_cumprod: map(&|a| (1.0 / a - 1.0).sqrt()),
            posterior_log_variance_clipped: posterior_variance.iter().map(|v| v.max(1e-20).ln()).collect(),
            posterior_mean_coef1: posterior(&|beta, bar, prev| beta * prev.sqrt() / (1.0 - bar)),
            posterior_mean_coef2: posterior(&|beta, bar, prev| (1.0 - prev) * (1.0 - beta).sqrt() / (1.0 - bar)),
            loss_weight: map(&|a| loss_weight(a / (1.0 - a), config)),
            posterior_variance,
            alphas_cumprod_prev: prev,
            alphas_cumprod: bar,
            betas,
        }
    }
}

/// Weight of the squared error of the configured objective at a signal-to-noise ratio: the one that makes a loss on
/// `x_start` weighed by `min(SNR, gamma)` (or by SNR) out of it (Hang et al. 2023, section 3.4).
fn loss_weight(snr: f64, config: &GaussianConfig) -> f64 {
    let clipped = if config.min_snr_loss_weight { snr.min(config.min_snr_gamma) } else { snr };
    match config.objective {
        Objective::PredNoise => clipped / snr,
        Objective::PredX0 => clipped,
        Objective::PredV => clipped / (snr + 1.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_config() -> impl Strategy<Value = GaussianConfig> {
        let schedule = prop::sample::select(vec![BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Sigmoid]);
        let objective = prop::sample::select(vec![Objective::PredNoise, Objective::PredX0, Objective::PredV]);
        (2_usize..2000, schedule, objective, any::<bool>()).prop_map(
            |(timesteps, beta_schedule, objective, min_snr)| GaussianConfig {
                timesteps,
                beta_schedule,
                objective,
                min_snr_loss_weight: min_snr,
                ..Default::default()
            },
        )
    }

    proptest! {
        /// Noise only grows, nothing is NaN, and the posterior's mean is a point of the line from x_t to x_0.
        #[test]
        fn tables_make_sense_for_any_number_of_steps(config in any_config()) {
            let tables = Tables::new(&config);
            prop_assert!(tables.betas.iter().all(|beta| (0.0..=0.999).contains(beta)));
            prop_assert!(tables.alphas_cumprod.windows(2).all(|pair| pair[1] <= pair[0]));
            prop_assert!(tables.alphas_cumprod.iter().all(|bar| *bar > 0.0 && *bar <= 1.0));
            for t in 1..config.timesteps {
                // The mean of q(x_{t-1} | x_t, x_0) at x_t = sqrt(bar_t) x_0 is sqrt(bar_{t-1}) x_0.
                let mean = tables.posterior_mean_coef1[t]
                    + tables.posterior_mean_coef2[t] * tables.sqrt_alphas_cumprod[t];
                prop_assert!((mean - tables.alphas_cumprod_prev[t].sqrt()).abs() < 1e-9);
                prop_assert!(tables.posterior_variance[t] <= tables.betas[t] + 1e-12);
                prop_assert!(tables.loss_weight[t].is_finite() && tables.loss_weight[t] >= 0.0);
            }
        }
    }
}
