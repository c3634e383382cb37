//! Tells the options of Gaussian diffusion from the tables that the reference's `GaussianDiffusion` saves with its network: T and
//! the schedule from `betas`, the objective and its weighting from `loss_weight`. Not here: the network (`infer.rs`).

use super::error::InteropError;
use super::infer::Inferred;
use super::infer_schedule::{LARGEST_BETA, describe, named_schedule, rounded};
use super::state_dict::StateDict;
use crate::diffusion::schedule::cumulative;
use crate::diffusion::{DiffusionConfig, GaussianConfig, Objective, ScheduleConfig, SharedConfig};

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
mod tests;
