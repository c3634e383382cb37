//! The named schedule, with its parameters, that gives a table of betas. Not here: what else the tables reveal (`infer_diffusion.rs`), and the
//! schedules themselves.

use super::table_precision::TablePrecision;
use crate::diffusion::schedule::{self, cumulative};
use crate::diffusion::{BetaSchedule, ScheduleConfig};

/// With few steps, the reference's linear schedule exceeds 1; ours is clipped at this value.
pub(super) const LARGEST_BETA: f64 = 0.999;

/// The schedule that gives these betas, which were stored with this precision: first with default parameters, then with fitted ones.
pub(super) fn named_schedule(
    betas: &[f64],
    precision: TablePrecision,
    base: &ScheduleConfig,
) -> Option<ScheduleConfig> {
    let with = |beta_schedule| ScheduleConfig { beta_schedule, ..base.clone() };
    let defaults = [BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Sigmoid].map(with);
    let bar = cumulative(betas);
    let cosine = fit_cosine(&bar)
        .into_iter()
        .flat_map(|s| rounded(s).map(|s| ScheduleConfig { cosine_s: Some(s), ..with(BetaSchedule::Cosine) }));
    let sigmoid = fit_sigmoid(&bar).into_iter().flat_map(|(start, end)| {
        rounded(start).zip(rounded(end)).map(|(start, end)| ScheduleConfig {
            sigmoid_start: Some(start),
            sigmoid_end: Some(end),
            ..with(BetaSchedule::Sigmoid)
        })
    });
    let gives = |config: &ScheduleConfig| config.validate().is_ok() && matches(betas, precision, config);
    defaults.into_iter().chain(cosine).chain(sigmoid).find(gives)
}

/// A fitted number comes out close to the intended one: tries no digit, then 1, 3, 6, then the number as it is.
pub(super) fn rounded(x: f64) -> impl Iterator<Item = f64> + Clone {
    [x.round(), (x * 1e1).round() / 1e1, (x * 1e3).round() / 1e3, (x * 1e6).round() / 1e6, x].into_iter()
}

/// The tables are stored in f32 or less, and the reference rounds two constants of the sigmoid schedule to f32, which makes a difference where
/// `alphas_cumprod` is close to 0. For some parameters, that difference adds up: then its schedule is another one than ours.
fn matches(stored: &[f64], precision: TablePrecision, config: &ScheduleConfig) -> bool {
    /// The largest relative difference of `alphas_cumprod`: with the default parameters, rounding makes it 1e-4 at T = 4000.
    const SAME_LEVEL: f64 = 2e-4;
    let (mut bar, mut stored_bar) = (1.0_f64, 1.0_f64);
    stored.iter().zip(schedule::betas(config)).all(|(&stored, ours)| {
        let tolerance = ours * (1e-6 + (1e-7 / bar).min(1e-4)) + 1e-9;
        let stored = stored.min(LARGEST_BETA);
        // Many values that are rounded to halves do not tell their product.
        let in_halves = precision.half().map(|_| precision.rounding(stored));
        bar *= 1.0 - ours;
        stored_bar *= 1.0 - stored;
        let same_level = in_halves.is_some() || (stored_bar / bar - 1.0).abs() <= SAME_LEVEL;
        (stored - ours).abs() <= tolerance + in_halves.unwrap_or(0.0) && same_level
    })
}

/// `alphas_cumprod` at two inner points: pairs of u = (t + 1) / T and its value.
fn inner_points(bar: &[f64]) -> Option<[(f64, f64); 2]> {
    let n = bar.len();
    if n < 3 {
        return None;
    }
    Some([n / 3, 2 * n / 3].map(|index| ((index as f64 + 1.0) / n as f64, bar[index])))
}

/// The offset s of the cosine schedule, by bisection: everywhere inside (0, 1), `alphas_cumprod` falls with s.
fn fit_cosine(bar: &[f64]) -> Option<f64> {
    let [(u, target), _] = inner_points(bar)?;
    let value = |s: f64| {
        let cos = |u: f64| ((u + s) / (1.0 + s) * std::f64::consts::FRAC_PI_2).cos();
        (cos(u) / cos(0.0)).powi(2)
    };
    let (mut low, mut high) = (0.0, 10.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if value(middle) > target { low = middle } else { high = middle }
    }
    (value(low) - target).abs().le(&1e-6).then_some(low)
}

/// start and end of the sigmoid schedule for tau = 1, by Newton's method. Other temperatures give no other schedules, because only start / tau and
/// end / tau matter.
fn fit_sigmoid(bar: &[f64]) -> Option<(f64, f64)> {
    let points = inner_points(bar)?;
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let residuals = |start: f64, end: f64| {
        points.map(|(u, target)| {
            (sigmoid(end) - sigmoid(u * (end - start) + start)) / (sigmoid(end) - sigmoid(start)) - target
        })
    };
    const STEP: f64 = 1e-6;
    let (mut start, mut end) = (-3.0, 3.0);
    for _ in 0..100 {
        let [r0, r1] = residuals(start, end);
        let [a0, a1] = residuals(start + STEP, end).map(|r| r / STEP);
        let [b0, b1] = residuals(start, end + STEP).map(|r| r / STEP);
        let (a0, a1, b0, b1) = (a0 - r0 / STEP, a1 - r1 / STEP, b0 - r0 / STEP, b1 - r1 / STEP);
        let determinant = a0 * b1 - a1 * b0;
        // Short steps: far from the solution the curve is flat, and a full step would leave the plausible range.
        let step = |numerator: f64| (numerator / determinant).clamp(-0.5, 0.5);
        let (d_start, d_end) = (step(r0 * b1 - r1 * b0), step(a0 * r1 - a1 * r0));
        (start, end) = (start - d_start, end - d_end);
        let plausible = start < end;
        if !plausible {
            return None;
        }
    }
    residuals(start, end).iter().all(|r| r.abs() < 1e-6).then_some((start, end))
}

pub(super) fn describe(config: &ScheduleConfig) -> String {
    let parameters: Vec<String> =
        [("s", config.cosine_s), ("start", config.sigmoid_start), ("end", config.sigmoid_end)]
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} = {}", value?)))
            .collect();
    let parameters = if parameters.is_empty() { String::new() } else { format!(" ({})", parameters.join(", ")) };
    format!("beta_schedule {}{parameters}", config.beta_schedule.name())
}
