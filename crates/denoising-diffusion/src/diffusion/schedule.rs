//! Noise schedules in discrete time: their options, and every table derived from `betas`, in f64. Not here: tensors, losses, samplers.

use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;
use super::error::{DiffusionConfigError, check};

/// How noise grows with `t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// `betas` linear from `1e-4` to `0.02`, both times `1000 / T` (Ho et al. 2020).
    Linear,
    /// `alphas_cumprod` a squared cosine with offset `s` (Nichol and Dhariwal 2021, eq. 17).
    Cosine,
    /// `alphas_cumprod` a sigmoid between `start` and `end`, with temperature `tau` (Jabri et al. 2022, algorithm 5).
    #[default]
    Sigmoid,
}

impl BetaSchedule {
    /// The schedule's name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Sigmoid => "sigmoid",
        }
    }
}

/// Maximum number of noise levels: a larger number is a mistake.
const MOST_TIMESTEPS: usize = 1_000_000;

/// Options of a schedule in discrete time; `Default` is the reference's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScheduleConfig {
    /// `T`, the number of noise levels.
    pub timesteps: usize,
    pub beta_schedule: BetaSchedule,
    /// Offset of the cosine schedule (0.008 if absent).
    pub cosine_s: Option<f64>,
    /// Where the sigmoid is cut off on the left (-3 if absent).
    pub sigmoid_start: Option<f64>,
    /// Where the sigmoid is cut off on the right (3 if absent).
    pub sigmoid_end: Option<f64>,
    /// Temperature of the sigmoid (1 if absent).
    pub sigmoid_tau: Option<f64>,
    /// Shifts and scales `sqrt_alphas_cumprod` so that the last level is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
    pub zero_terminal_snr: bool,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            beta_schedule: BetaSchedule::default(),
            cosine_s: None,
            sigmoid_start: None,
            sigmoid_end: None,
            sigmoid_tau: None,
            zero_terminal_snr: false,
        }
    }
}

impl ScheduleConfig {
    /// Refuses options that contradict each other or are meaningless.
    ///
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        if self.timesteps < 2 {
            return Err(DiffusionConfigError::Timesteps(self.timesteps));
        }
        check(self.timesteps <= MOST_TIMESTEPS, "timesteps", "at most 1000000", self.timesteps as f64)?;
        self.check_parameters()?;
        let finite = |x: f64| x.is_finite();
        let (s, [start, end, tau]) = (self.offset(), self.cut_and_temperature());
        check(finite(s) && s >= 0.0, "cosine_s", "a number of at least 0", s)?;
        check(finite(start) && finite(end) && start < end, "sigmoid_start", "below `sigmoid_end`", start)?;
        check(finite(tau) && tau > 0.0, "sigmoid_tau", "a number above 0", tau)?;
        check_betas(&betas(self))
    }

    /// s of the cosine schedule.
    fn offset(&self) -> f64 {
        self.cosine_s.unwrap_or(0.008)
    }

    /// Start, end and tau of the sigmoid schedule.
    fn cut_and_temperature(&self) -> [f64; 3] {
        [self.sigmoid_start.unwrap_or(-3.0), self.sigmoid_end.unwrap_or(3.0), self.sigmoid_tau.unwrap_or(1.0)]
    }

    fn check_parameters(&self) -> Result<(), DiffusionConfigError> {
        let given = [
            ("cosine_s", self.cosine_s, BetaSchedule::Cosine),
            ("sigmoid_start", self.sigmoid_start, BetaSchedule::Sigmoid),
            ("sigmoid_end", self.sigmoid_end, BetaSchedule::Sigmoid),
            ("sigmoid_tau", self.sigmoid_tau, BetaSchedule::Sigmoid),
        ];
        for (key, value, belongs_to) in given {
            if value.is_some() && self.beta_schedule != belongs_to {
                return Err(DiffusionConfigError::OtherSchedule {
                    key,
                    belongs_to: belongs_to.name(),
                    schedule: self.beta_schedule.name(),
                });
            }
        }
        Ok(())
    }
}

/// Refuses betas that are not numbers, or that give a level no noisier than the one before: a step between such levels divides 0 by 0. After a beta of
/// 1 all levels are pure noise, so only the last can be 1.
pub(crate) fn check_betas(betas: &[f64]) -> Result<(), DiffusionConfigError> {
    let last = betas.len().saturating_sub(1);
    let good = |t: usize, beta: f64| beta > 0.0 && (beta < 1.0 || beta == 1.0 && t == last);
    match betas.iter().enumerate().position(|(t, beta)| !good(t, *beta)) {
        Some(t) => Err(DiffusionConfigError::Betas { t, beta: betas[t] }),
        None => Ok(()),
    }
}

/// `betas[t]`, t = 0..T, of the configured schedule. Linear betas above 0.999 (T below about 21) are clamped to it, like those of the other two
/// schedules: the reference lets them exceed 1, where its tables become NaN.
pub fn betas(config: &ScheduleConfig) -> Vec<f64> {
    let n = config.timesteps;
    let betas = match config.beta_schedule {
        BetaSchedule::Linear => linear_betas(n),
        BetaSchedule::Cosine => {
            let s = config.offset();
            betas_of(n, |u| ((u + s) / (1.0 + s) * std::f64::consts::FRAC_PI_2).cos().powi(2))
        }
        BetaSchedule::Sigmoid => {
            let [start, end, tau] = config.cut_and_temperature();
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x / tau).exp());
            let (v_start, v_end) = (sigmoid(start), sigmoid(end));
            betas_of(n, |u| (v_end - sigmoid(u * (end - start) + start)) / (v_end - v_start))
        }
    };
    if config.zero_terminal_snr { zero_terminal(&betas) } else { betas }
}

/// Betas whose `sqrt_alphas_cumprod` are those given, shifted so that the last is 0 and scaled so that the first is unchanged.
fn zero_terminal(betas: &[f64]) -> Vec<f64> {
    let root: Vec<f64> = cumulative(betas).into_iter().map(f64::sqrt).collect();
    let (first, last) = (root[0], root[root.len() - 1]);
    let bar: Vec<f64> = root.into_iter().map(|root| ((root - last) * first / (first - last)).powi(2)).collect();
    std::iter::once(1.0).chain(bar.iter().copied()).zip(&bar).map(|(before, bar)| 1.0 - bar / before).collect()
}

/// `alphas_cumprod[t]`, t = 0..T.
pub fn cumulative(betas: &[f64]) -> Vec<f64> {
    let product = |bar: &mut f64, beta: &f64| {
        *bar *= 1.0 - beta;
        Some(*bar)
    };
    betas.iter().scan(1.0, product).collect()
}

fn linear_betas(n: usize) -> Vec<f64> {
    let scale = 1000.0 / n as f64;
    let (first, last) = (scale * 1e-4, scale * 0.02);
    (0..n).map(|t| (first + (last - first) * t as f64 / (n - 1) as f64).min(0.999)).collect()
}

/// `betas` from a function that gives `alphas_cumprod` at u = t / T, scaled to 1 at u = 0.
fn betas_of(n: usize, alphas_cumprod: impl Fn(f64) -> f64) -> Vec<f64> {
    let bar: Vec<f64> = (0..=n).map(|t| alphas_cumprod(t as f64 / n as f64) / alphas_cumprod(0.0)).collect();
    bar.windows(2).map(|w| (1.0 - w[1] / w[0]).clamp(0.0, 0.999)).collect()
}

/// All tables of Gaussian diffusion, indexed by t = 0..T.
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
    /// Its logarithm, with the variance clamped to at least 1e-20 since it is 0 at t = 0.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0).
    pub posterior_mean_coef1: Vec<f64>,
    /// Weight of x_t in that mean.
    pub posterior_mean_coef2: Vec<f64>,
}

impl Tables {
    /// The tables of a valid configuration.
    pub fn new(config: &ScheduleConfig) -> Self {
        Self::from_betas(betas(config))
    }

    /// The tables of given betas.
    pub fn from_betas(betas: Vec<f64>) -> Self {
        let bar = cumulative(&betas);
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
            posterior_variance,
            alphas_cumprod_prev: prev,
            alphas_cumprod: bar,
            betas,
        }
    }
}

impl Tables {
    /// T.
    pub fn timesteps(&self) -> usize {
        self.betas.len()
    }

    /// The noise level at t. Between two integers, log-SNR is linear in t.
    pub fn level(&self, t: f64) -> NoiseLevel {
        let t = t.clamp(0.0, (self.timesteps() - 1) as f64);
        let (low, fraction) = (t.floor() as usize, t.fract());
        if fraction == 0.0 {
            return self.level_at(low);
        }
        let [a, b] = [low, low + 1].map(|t| self.level_at(t).log_snr());
        NoiseLevel { time: t, ..variance_preserving(a + (b - a) * fraction) }
    }

    fn level_at(&self, t: usize) -> NoiseLevel {
        NoiseLevel { alpha: self.sqrt_alphas_cumprod[t], sigma: self.sqrt_one_minus_alphas_cumprod[t], time: t as f64 }
    }

    /// The level with this log-SNR. Between two of the T levels, t is fractional; beyond them it is that of the outermost one.
    pub fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        let at = |t: usize| self.level_at(t).log_snr();
        // log_snr falls with t: search for the last t that is no noisier.
        let (mut low, mut high) = (0, self.timesteps());
        while low < high {
            let middle = (low + high) / 2;
            if at(middle) >= log_snr { low = middle + 1 } else { high = middle }
        }
        let time = match low {
            0 => 0.0,
            t if t == self.timesteps() => (t - 1) as f64,
            t if at(t) == f64::NEG_INFINITY => (t - 1) as f64,
            t => (t - 1) as f64 + (at(t - 1) - log_snr) / (at(t - 1) - at(t)),
        };
        NoiseLevel { time, ..variance_preserving(log_snr) }
    }

    /// `steps + 1` noise levels spaced as in the reference's DDIM: `steps + 1` points from -1 to T - 1, truncated to integers, -1 being clean data.
    /// `steps` in 1..=T.
    pub fn spaced_levels(&self, steps: usize) -> Vec<NoiseLevel> {
        spaced_times(self.timesteps(), steps)
            .into_iter()
            .map(|t| usize::try_from(t).map_or(NoiseLevel::CLEAN, |t| self.level_at(t)))
            .collect()
    }
}

/// The level with `alpha^2 + sigma^2 = 1` and this log-SNR; its time is left at 0.
pub fn variance_preserving(log_snr: f64) -> NoiseLevel {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    NoiseLevel { alpha: sigmoid(log_snr).sqrt(), sigma: sigmoid(-log_snr).sqrt(), time: 0.0 }
}

/// In f32, from both ends, rounded once per point, like `torch.linspace`: truncation to integers exposes any difference.
fn spaced_times(timesteps: usize, steps: usize) -> Vec<i64> {
    let (first, last) = (-1.0_f32, timesteps as f32 - 1.0);
    let step = (last - first) / steps as f32;
    let point = |k: usize| {
        if k < steps.div_ceil(2) { step.mul_add(k as f32, first) } else { (-step).mul_add((steps - k) as f32, last) }
    };
    (0..=steps).rev().map(|k| point(k) as i64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_config() -> impl Strategy<Value = ScheduleConfig> {
        let schedule = prop::sample::select(vec![BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Sigmoid]);
        (2_usize..2000, schedule).prop_map(|(timesteps, beta_schedule)| ScheduleConfig {
            timesteps,
            beta_schedule,
            ..Default::default()
        })
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
            }
        }

        #[test]
        fn a_level_is_found_by_its_log_snr(config in any_config(), u in 0.0_f64..1.0) {
            let tables = Tables::new(&config);
            let t = u * (config.timesteps - 1) as f64;
            let level = tables.level(t);
            let found = tables.level_at_log_snr(level.log_snr());
            prop_assert!((found.alpha - level.alpha).abs() < 1e-9, "{level:?} {found:?}");
            // Where noise does not grow from one t to the next, t cannot be recovered.
            let flat = (level.log_snr() - tables.level(level.time.floor() + 1.0).log_snr()).abs() < 1e-6;
            prop_assert!(flat || (found.time - t).abs() < 1e-3, "{t} {found:?}");
        }

        #[test]
        fn zero_terminal_snr_ends_in_pure_noise(config in any_config()) {
            let plain = Tables::new(&config);
            let tables = Tables::new(&ScheduleConfig { zero_terminal_snr: true, ..config });
            let last = tables.timesteps() - 1;
            prop_assert_eq!(tables.level(last as f64).alpha, 0.0);
            prop_assert!((tables.alphas_cumprod[0] - plain.alphas_cumprod[0]).abs() < 1e-9);
            prop_assert!(tables.alphas_cumprod.windows(2).all(|pair| pair[1] <= pair[0]));
        }
    }

    #[test]
    fn only_the_last_level_can_be_pure_noise() {
        assert_eq!(check_betas(&[0.1, 0.2, 1.0]), Ok(()));
        for (betas, t) in [([0.1, 1.0, 0.2], 1), ([1.0, 0.1, 0.2], 0), ([0.1, 0.2, 1.1], 2), ([0.1, f64::NAN, 0.2], 1)]
        {
            let refused = check_betas(&betas);
            assert!(matches!(refused, Err(DiffusionConfigError::Betas { t: at, .. }) if at == t), "{refused:?}");
        }
    }

    /// `list(reversed(torch.linspace(-1, T - 1, steps = S + 1).int().tolist()))` of torch, where rounding twice would differ.
    #[test]
    fn times_are_those_of_torch() {
        for (timesteps, expected) in [
            (16, &[15, 13, 12, 11, 10, 9, 8, 6, 5, 4, 3, 2, 1, 0, -1][..]),
            (32, &[31, 28, 26, 24, 21, 19, 17, 14, 12, 10, 8, 5, 3, 1, -1]),
            (
                64,
                &[
                    63, 60, 58, 56, 54, 52, 50, 48, 45, 43, 41, 39, 37, 35, 33, 30, 28, 26, 24, 22, 20, 18, 16, 13, 11,
                    9, 7, 5, 3, 1, -1,
                ],
            ),
        ] {
            assert_eq!(spaced_times(timesteps, expected.len() - 1), expected);
        }
    }
}
