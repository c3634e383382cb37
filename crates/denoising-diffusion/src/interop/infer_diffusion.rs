//! Tells the options of Gaussian diffusion from the tables that the reference's `GaussianDiffusion` saves with its network: T and
//! the schedule from `betas`, the objective and its weighting from `loss_weight`. Not here: the network (`infer.rs`).

use super::error::InteropError;
use super::infer::Inferred;
use super::state_dict::StateDict;
use crate::diffusion::schedule::{self, cumulative};
use crate::diffusion::{BetaSchedule, DiffusionConfig, GaussianConfig, Objective, ScheduleConfig, SharedConfig};

/// Fills in `inferred.diffusion` and `inferred.betas` if there is a `betas` table.
pub(super) fn infer_diffusion(tables: &StateDict, inferred: &mut Inferred) -> Result<(), InteropError> {
    let Some(stored) = tables.get("betas") else {
        inferred.notes.push("no schedule tables: timesteps, schedule and objective cannot be told".to_string());
        return Ok(());
    };
    let betas: Vec<f64> = stored.values.iter().map(|&beta| beta.into()).collect();
    if stored.shape.len() != 1 || betas.iter().any(|beta| !(0.0..).contains(beta)) {
        return Err(InteropError::NoConfiguration("the table `betas` is no list of noise variances".to_string()));
    }
    let base = ScheduleConfig { timesteps: betas.len(), ..ScheduleConfig::default() };
    base.validate()?;
    let schedule = match named_schedule(&betas, &base) {
        Some(config) => {
            inferred.notes.push(format!("{} with T = {} gives the table `betas`", describe(&config), betas.len()));
            config
        }
        None => {
            inferred
                .notes
                .push(format!("no named schedule gives the table `betas` (T = {}); it is kept as it is", betas.len()));
            inferred.betas = Some(betas.iter().map(|beta| beta.min(LARGEST_BETA)).collect());
            base
        }
    };
    let (objective, shared) = infer_objective(tables, &betas, inferred);
    inferred.assumed.extend(["auto_normalize", "offset_noise_strength", "immiscible"]);
    inferred.notes.push(
        "no table tells auto_normalize (taken as true), offset_noise_strength and immiscible (taken as off; they matter for \
         training only)"
            .to_string(),
    );
    let formulation = GaussianConfig { schedule, objective }.into();
    inferred.diffusion = Some(DiffusionConfig { shared, ..formulation });
    Ok(())
}

/// The reference's linear schedule passes 1 at few steps; ours is cut here.
const LARGEST_BETA: f64 = 0.999;

/// The schedule that gives these betas: first with default parameters, then with fitted ones.
fn named_schedule(betas: &[f64], base: &ScheduleConfig) -> Option<ScheduleConfig> {
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
    defaults.into_iter().chain(cosine).chain(sigmoid).find(|config| config.validate().is_ok() && matches(betas, config))
}

/// A fitted number comes out next to the one that was meant: 3 digits first, then 6, then as it is.
fn rounded(x: f64) -> impl Iterator<Item = f64> + Clone {
    [(x * 1e3).round() / 1e3, (x * 1e6).round() / 1e6, x].into_iter()
}

/// The tables are stored in f32, and the reference rounds two constants of the sigmoid schedule to f32, which shows where
/// `alphas_cumprod` is nearly used up.
fn matches(stored: &[f64], config: &ScheduleConfig) -> bool {
    let mut before = 1.0;
    stored.iter().zip(schedule::betas(config)).all(|(&stored, ours)| {
        let tolerance = ours * (1e-6 + 1e-7 / before) + 1e-9;
        before *= 1.0 - ours;
        (stored.min(LARGEST_BETA) - ours).abs() <= tolerance
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

/// The offset s of the cosine schedule, by bisection: `alphas_cumprod` falls with s everywhere inside (0, 1).
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

/// start and end of the sigmoid schedule at tau = 1, by Newton's method. A temperature does nothing that they cannot do: only
/// start / tau and end / tau enter.
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
        // Short steps: far from the solution the curve is flat and a whole step leaves the plausible range.
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

fn describe(config: &ScheduleConfig) -> String {
    let parameters: Vec<String> =
        [("s", config.cosine_s), ("start", config.sigmoid_start), ("end", config.sigmoid_end)]
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} = {}", value?)))
            .collect();
    let parameters = if parameters.is_empty() { String::new() } else { format!(" ({})", parameters.join(", ")) };
    format!("beta_schedule {}{parameters}", config.beta_schedule.name())
}

/// The stored weight is `min(SNR, gamma)`, or SNR, times a factor of the SNR that only the objective decides.
fn infer_objective(tables: &StateDict, betas: &[f64], inferred: &mut Inferred) -> (Objective, SharedConfig) {
    let weights = tables.get("loss_weight").map(|table| table.values.as_slice()).filter(|w| w.len() == betas.len());
    let found = weights.and_then(|weights| {
        let snr: Vec<f64> = cumulative(betas).into_iter().map(|bar| bar / (1.0 - bar)).collect();
        [Objective::PredNoise, Objective::PredX0, Objective::PredV]
            .into_iter()
            .find_map(|objective| Some((objective, weighting(objective, weights, &snr)?)))
    });
    match found {
        Some((objective, weighting)) => {
            let mut shared = SharedConfig { min_snr_loss_weight: Some(weighting.is_some()), ..SharedConfig::default() };
            shared.min_snr_gamma = weighting.unwrap_or(shared.min_snr_gamma);
            let weighted = weighting.map_or(String::new(), |gamma| format!(" with min-SNR weighting, gamma {gamma}"));
            inferred.notes.push(format!("objective {}{weighted} gives the table `loss_weight`", objective.name()));
            (objective, shared)
        }
        None => {
            inferred.assumed.extend(["objective", "min_snr_loss_weight"]);
            inferred
                .notes
                .push("no objective gives the table `loss_weight`: the objective is a guess (the default)".to_string());
            (Objective::default(), SharedConfig::default())
        }
    }
}

/// `Some(None)`: the weights are this objective's without clipping; `Some(Some(gamma))`: with min-SNR clipping.
fn weighting(objective: Objective, weights: &[f32], snr: &[f64]) -> Option<Option<f64>> {
    // SNR is 0 where a schedule ends in pure noise, and no weight can be read there.
    let clipped: Vec<(f64, f64)> = weights
        .iter()
        .zip(snr)
        .filter(|(weight, snr)| weight.is_finite() && snr.is_finite() && **snr > 0.0)
        .map(|(&weight, &snr)| {
            let factor = match objective {
                Objective::PredNoise => snr,
                Objective::PredX0 => 1.0,
                Objective::PredV => snr + 1.0,
            };
            (f64::from(weight) * factor, snr)
        })
        .collect();
    let equal = |a: f64, b: f64| (a - b).abs() <= 1e-3 * b;
    // SNR falls with t, so the first weight shows where it was clipped.
    let &(plateau, largest) = clipped.first()?;
    if clipped.iter().all(|&(got, snr)| equal(got, snr)) {
        return Some(None);
    }
    let gamma = rounded(plateau).find(|&gamma| equal_closely(gamma, plateau)).unwrap_or(plateau);
    (gamma < largest && clipped.iter().all(|&(got, snr)| equal(got, snr.min(gamma)))).then_some(Some(gamma))
}

/// Within what f32 tables leave open.
fn equal_closely(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * b
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{TensorData, infer, read_safetensors, reference_layout};
    use super::*;
    use crate::models::unet_config::UnetConfig;

    fn inferred(tables: &StateDict) -> Result<Inferred, InteropError> {
        let config = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
        let zeros = |shape: &[usize]| TensorData::new(shape, vec![0.0; shape.iter().product()]).unwrap();
        let layout = reference_layout(&config).unwrap();
        let unet = layout.into_iter().map(|p| (p.reference, zeros(&p.reference_shape))).collect();
        infer(&unet, tables)
    }

    fn tables(betas: &[f64], weights: &[f64]) -> StateDict {
        let table =
            |values: &[f64]| TensorData::new([values.len()], values.iter().map(|&x| x as f32).collect()).unwrap();
        [("betas".to_string(), table(betas)), ("loss_weight".to_string(), table(weights))].into_iter().collect()
    }

    fn tables_of(config: &GaussianConfig) -> StateDict {
        tables_from(&schedule::Tables::new(config))
    }

    fn tables_from(computed: &schedule::Tables) -> StateDict {
        tables(&computed.betas, &computed.loss_weight)
    }

    /// Tables computed by the reference, for its three schedules with and without parameters, three objectives, with and without
    /// min-SNR weighting (gamma 5).
    #[test]
    fn the_references_tables_are_recognised() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/schedules.safetensors");
        let (golden, _) = read_safetensors(&path).unwrap();
        for (set, expected) in [
            ("linear.t1000", (1000, BetaSchedule::Linear, None, None, None)),
            ("linear.t50", (50, BetaSchedule::Linear, None, None, None)),
            ("cosine.t1000", (1000, BetaSchedule::Cosine, None, None, None)),
            ("cosine_s.t50", (50, BetaSchedule::Cosine, Some(0.02), None, None)),
            ("sigmoid.t1000", (1000, BetaSchedule::Sigmoid, None, None, None)),
            ("sigmoid.t50", (50, BetaSchedule::Sigmoid, None, None, None)),
            // start -2, end 4, tau 0.7: the same as these at tau 1.
            ("sigmoid_kwargs.t50", (50, BetaSchedule::Sigmoid, None, Some(-2.857143), Some(5.714286))),
        ] {
            for objective in [Objective::PredNoise, Objective::PredX0, Objective::PredV] {
                for weighting in ["plain", "min_snr"] {
                    let key = format!("{set}.loss_weight.{}.{weighting}", name(objective));
                    let mut tables = StateDict::new();
                    tables.insert("betas", golden.get(&format!("{set}.betas")).unwrap().clone());
                    tables.insert("loss_weight", golden.get(&key).unwrap().clone());
                    let found = inferred(&tables).unwrap();
                    assert_eq!(found.betas, None, "{key}: {:?}", found.notes);
                    let config = found.diffusion.unwrap();
                    let schedule = (
                        config.timesteps,
                        config.beta_schedule,
                        config.cosine_s,
                        config.sigmoid_start,
                        config.sigmoid_end,
                    );
                    assert_eq!(schedule, expected, "{key}");
                    assert_eq!(config.objective, objective, "{key}");
                    assert_eq!(
                        (config.min_snr_loss_weight, config.min_snr_gamma),
                        (weighting == "min_snr", 5.0),
                        "{key}"
                    );
                }
            }
        }
    }

    #[test]
    fn gamma_and_parameters_are_fitted() {
        for gamma in [0.5, 5.0, 7.25] {
            let config = GaussianConfig {
                timesteps: 200,
                objective: Objective::PredX0,
                beta_schedule: BetaSchedule::Sigmoid,
                sigmoid_start: Some(-4.5),
                sigmoid_end: Some(2.0),
                min_snr_loss_weight: true,
                min_snr_gamma: gamma,
                ..GaussianConfig::default()
            };
            assert_eq!(inferred(&tables_of(&config)).unwrap().diffusion.unwrap(), config);
        }
    }

    #[test]
    fn close_parameters_are_told_apart() {
        let config =
            GaussianConfig { beta_schedule: BetaSchedule::Cosine, cosine_s: Some(0.0081), ..GaussianConfig::default() };
        assert_eq!(inferred(&tables_of(&config)).unwrap().diffusion.unwrap().cosine_s, Some(0.0081));
    }

    #[test]
    fn another_schedule_is_kept_as_it_is() {
        let betas: Vec<f64> = (0..40).map(|t| 0.01 + 0.002 * f64::from(t * t % 17)).collect();
        let computed = schedule::Tables::from_betas(betas.clone(), &GaussianConfig::default());
        let found = inferred(&tables_from(&computed)).unwrap();
        let kept = found.betas.unwrap();
        assert!(kept.iter().zip(&betas).all(|(a, b)| (a - b).abs() < 1e-8) && kept.len() == 40);
        assert_eq!(found.diffusion.unwrap().objective, Objective::PredV);
        assert!(!found.assumed.contains(&"objective"));
    }

    #[test]
    fn few_steps_of_the_linear_schedule_pass_one() {
        // The reference's betas at T = 10: 0.01 to 2, in equal steps.
        let betas: Vec<f64> = (0..10).map(|t| 0.01 + 1.99 * f64::from(t) / 9.0).collect();
        let found = inferred(&tables(&betas, &[1.0; 10])).unwrap();
        assert_eq!(found.diffusion.unwrap().beta_schedule, BetaSchedule::Linear);
        assert_eq!(found.betas, None);
    }

    #[test]
    fn a_strange_weight_leaves_the_objective_open() {
        let config = GaussianConfig { timesteps: 30, ..GaussianConfig::default() };
        let found = inferred(&tables(&schedule::betas(&config), &[0.3; 30])).unwrap();
        assert!(found.assumed.contains(&"objective"));
        let mut without = tables_of(&config);
        without.remove("loss_weight");
        assert!(inferred(&without).unwrap().assumed.contains(&"objective"));
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for betas in [vec![0.1, f64::NAN], vec![-0.1, 0.1], vec![0.1], vec![]] {
            let weights = vec![1.0; betas.len()];
            assert!(inferred(&tables(&betas, &weights)).is_err(), "{betas:?}");
        }
        for betas in [vec![0.0; 8], vec![1.0; 8], vec![f64::INFINITY; 8], vec![1e30; 3]] {
            // Absurd, but not for this module to judge; it must come to an end.
            let _ = inferred(&tables(&betas, &[1.0; 8]));
        }
    }
}
