//! Infers the formulation from what the reference's diffusion classes save with their network: the name of the attribute that holds it, the tables of
//! a schedule (T and betas; `loss_weight` reveals the objective), a learned schedule, and the number of the network's output channels. Not here: the
//! network (`infer.rs`), fitting a schedule to its betas (`infer_schedule.rs`), values given by the user (`said.rs`).

use super::error::InteropError;
use super::infer_schedule::{LARGEST_BETA, describe, named_schedule, rounded};
use super::inferred::Inferred;
use super::learned_schedule;
use super::reference_weights::{ReferenceNetwork, ReferenceWeights, Wrapper};
use crate::diffusion::schedule::cumulative;
use crate::diffusion::{
    ContinuousTimeConfig, DiffusionConfig, ElucidatedConfig, FormulationConfig, GaussianConfig, LearnedVarianceConfig,
    NoiseSchedule, Objective, ScheduleConfig, SharedConfig, SimpleConfig, WeightedObjectiveConfig,
};
use crate::weights::{HostTensor, StateDict};

/// Sets `inferred.diffusion` and `inferred.betas` if anything reveals the formulation.
pub(super) fn infer_diffusion(weights: &ReferenceWeights, inferred: &mut Inferred) -> Result<(), InteropError> {
    let diffusion = if let Some(betas) = weights.tables.get("betas") {
        discrete(betas, &weights.tables, inferred)?
    } else if !weights.schedule.is_empty() {
        learned_schedule(&weights.schedule, inferred)?
    } else {
        match (weights.wrapper, inferred.network.fourier_time()) {
            (Wrapper::Model, _) if weights.kind() == ReferenceNetwork::Uvit => simple(inferred),
            (Wrapper::Net, true) => elucidated(inferred),
            (Wrapper::Model, true) => continuous_time(inferred),
            _ => {
                inferred.note("no schedule tables: timesteps, schedule and objective are unknown");
                return Ok(());
            }
        }
    };
    inferred.assume(
        &["auto_normalize", "offset_noise_strength", "immiscible", "xm_candidates"],
        "auto_normalize (taken as true), offset_noise_strength, immiscible and xm_candidates (taken as off; they matter for training \
         only)",
    );
    if !matches!(diffusion.formulation, FormulationConfig::Gaussian(_)) {
        inferred
            .assume(&["min_snr_loss_weight", "min_snr_gamma"], "min_snr_loss_weight (it matters for training only)");
    }
    inferred.diffusion = Some(diffusion);
    Ok(())
}

impl Inferred {
    fn note(&mut self, sentence: impl Into<String>) {
        self.notes.push(sentence.into());
    }

    /// Records keys that no tensor reveals; `how` describes them and their assumed values.
    fn assume(&mut self, keys: &[&'static str], how: &str) {
        self.assumed.extend(keys);
        self.note(format!("no tensor reveals {how}"));
    }
}

/// A formulation with tables. The number of output channels per channel of the data reveals the class.
fn discrete(betas: &HostTensor, tables: &StateDict, inferred: &mut Inferred) -> Result<DiffusionConfig, InteropError> {
    let (schedule, betas) = schedule_of(betas, inferred)?;
    let channels = inferred.network.channels().unwrap_or(0);
    let out_channels = inferred.network.out_channels().unwrap_or(0);
    if out_channels == 2 * channels {
        inferred.note(
            "tables, and twice the channels of the data: LearnedGaussianDiffusion, diffusion learned_variance; that class trains on \
             noise without weights, whatever `loss_weight` says",
        );
        inferred.assume(&["objective", "vb_loss_weight"], "vb_loss_weight (it matters for training only)");
        return Ok(FormulationConfig::LearnedVariance(LearnedVarianceConfig { schedule, ..Default::default() }).into());
    }
    if out_channels == 2 * channels + 2 {
        inferred.note(
            "tables, and twice the channels of the data and two: WeightedObjectiveGaussianDiffusion, diffusion weighted_objective",
        );
        inferred.assume(
            &["pred_noise_loss_weight", "pred_x_start_loss_weight"],
            "pred_noise_loss_weight and pred_x_start_loss_weight (they matter for training only)",
        );
        return Ok(
            FormulationConfig::WeightedObjective(WeightedObjectiveConfig { schedule, ..Default::default() }).into()
        );
    }
    let (objective, shared) = infer_objective(tables, &betas, inferred);
    Ok(DiffusionConfig { shared, ..GaussianConfig { schedule, objective, ..Default::default() }.into() })
}

/// The schedule of a table of betas, and the betas. If no named schedule gives them, they are kept in `inferred.betas`.
fn schedule_of(stored: &HostTensor, inferred: &mut Inferred) -> Result<(ScheduleConfig, Vec<f64>), InteropError> {
    let betas: Vec<f64> = stored.values.iter().map(|&beta| beta.into()).collect();
    if stored.shape.len() != 1 || betas.iter().any(|beta| !(0.0..).contains(beta)) {
        return Err(InteropError::NoConfiguration("the table `betas` is not a list of noise variances".to_string()));
    }
    let base = ScheduleConfig { timesteps: betas.len(), ..ScheduleConfig::default() };
    base.validate()?;
    let schedule = match named_schedule(&betas, &base) {
        Some(config) => {
            inferred.note(format!("{} with T = {} gives the table `betas`", describe(&config), betas.len()));
            config
        }
        None => {
            inferred
                .note(format!("no named schedule gives the table `betas` (T = {}); it is kept unchanged", betas.len()));
            inferred.betas = Some(betas.iter().map(|beta| beta.min(LARGEST_BETA)).collect());
            base
        }
    };
    Ok((schedule, betas))
}

fn learned_schedule(schedule: &StateDict, inferred: &mut Inferred) -> Result<DiffusionConfig, InteropError> {
    let hidden_dim = learned_schedule::hidden_dim(schedule)?;
    inferred.note(format!(
        "a learned schedule of {hidden_dim} hidden units (log_snr): ContinuousTimeGaussianDiffusion, diffusion continuous_time"
    ));
    inferred.assume(
        &["objective", "learned_schedule_frac_gradient"],
        "objective (taken as pred_noise, the only one of that class) and learned_schedule_frac_gradient (it matters for training only)",
    );
    let config = ContinuousTimeConfig {
        noise_schedule: NoiseSchedule::Learned,
        learned_schedule_hidden_dim: Some(hidden_dim),
        ..ContinuousTimeConfig::default()
    };
    Ok(FormulationConfig::ContinuousTime(config).into())
}

fn elucidated(inferred: &mut Inferred) -> DiffusionConfig {
    let config = ElucidatedConfig::default();
    inferred.note("Fourier time embedding, a network under `net.` and no tables: taken for ElucidatedDiffusion, diffusion elucidated");
    inferred.assume(
        &["diffusion", "sigma_data", "sigma_min", "sigma_max", "rho", "p_mean", "p_std"],
        &format!(
            "sigma_data (taken as {}), sigma_min, sigma_max and rho (the package's defaults are taken), p_mean and p_std (they matter \
             for training only)",
            config.sigma_data
        ),
    );
    FormulationConfig::Elucidated(config).into()
}

fn simple(inferred: &mut Inferred) -> DiffusionConfig {
    inferred.note("a UViT under `model.`: taken for simple_diffusion with its defaults, diffusion simple");
    inferred.assume(
        &["diffusion", "objective", "noise_d", "noise_d_low", "noise_d_high", "image_d"],
        "noise_d, image_d and objective (taken as that class's defaults)",
    );
    FormulationConfig::Simple(SimpleConfig::default()).into()
}

fn continuous_time(inferred: &mut Inferred) -> DiffusionConfig {
    inferred.note(
        "Fourier time embedding, a network under `model.` and no tables: taken for ContinuousTimeGaussianDiffusion with its defaults, \
         diffusion continuous_time; VParamContinuousTimeGaussianDiffusion (noise_schedule cosine, objective pred_v) and \
         simple_diffusion (diffusion simple) look the same",
    );
    inferred.assume(
        &["diffusion", "noise_schedule", "objective"],
        "noise_schedule (taken as linear) and objective (taken as pred_noise)",
    );
    FormulationConfig::ContinuousTime(ContinuousTimeConfig::default()).into()
}

/// The stored weight is `min(SNR, gamma)`, or SNR, times a factor of the SNR that depends only on the objective.
fn infer_objective(tables: &StateDict, betas: &[f64], inferred: &mut Inferred) -> (Objective, SharedConfig) {
    let weights = tables.get("loss_weight").map(|table| table.values.as_slice()).filter(|w| w.len() == betas.len());
    let objectives = [Objective::PredNoise, Objective::PredX0, Objective::PredV];
    let found = weights.and_then(|weights| {
        let snr: Vec<f64> = cumulative(betas).into_iter().map(|bar| bar / (1.0 - bar)).collect();
        let scaled = objectives.map(|objective| (objective, scaled_by_snr(objective, weights, &snr)));
        // A few weights can be mistaken for clipped ones of another objective, but hardly for its unclipped ones.
        let plain = scaled.iter().find(|(_, scaled)| is_plain(scaled)).map(|(objective, _)| (*objective, None));
        let clipped = || scaled.iter().find_map(|(objective, scaled)| Some((*objective, Some(clipping(scaled)?))));
        let (objective, weighting) = plain.or_else(clipped)?;
        Some((objective, weighting, scaled[0].1.len()))
    });
    match found {
        Some((objective, weighting, telling)) => {
            let mut shared = SharedConfig { min_snr_loss_weight: Some(weighting.is_some()), ..SharedConfig::default() };
            shared.min_snr_gamma = weighting.unwrap_or(shared.min_snr_gamma);
            let weighted = weighting.map_or(String::new(), |gamma| format!(" with min-SNR weighting, gamma {gamma}"));
            inferred.note(format!("objective {}{weighted} gives the table `loss_weight`", objective.name()));
            if telling < TELLING {
                inferred.assume(
                    &["objective", "min_snr_loss_weight", "min_snr_gamma"],
                    &format!("the objective for sure: {telling} weights fit several"),
                );
            }
            (objective, shared)
        }
        None => {
            inferred.assumed.extend(["objective", "min_snr_loss_weight"]);
            inferred.note("no objective gives the table `loss_weight`: the objective is a guess (the default)");
            (Objective::default(), SharedConfig::default())
        }
    }
}

/// The number of weights that it takes to distinguish the objectives.
const TELLING: usize = 3;

/// For each weight, the product with the factor that gives the objective's `min(SNR, gamma)`, or SNR; and SNR.
fn scaled_by_snr(objective: Objective, weights: &[f32], snr: &[f64]) -> Vec<(f64, f64)> {
    // SNR is 0 where a schedule ends in pure noise; weights there reveal nothing.
    weights
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
        .collect()
}

/// Whether the weights are the objective's, unclipped.
fn is_plain(scaled: &[(f64, f64)]) -> bool {
    !scaled.is_empty() && scaled.iter().all(|&(got, snr)| equal(got, snr))
}

/// The gamma of min-SNR clipping that gives the weights.
fn clipping(scaled: &[(f64, f64)]) -> Option<f64> {
    // SNR falls with t, so the first weight reveals the value of the clipping.
    let &(plateau, largest) = scaled.first()?;
    let gamma = rounded(plateau).find(|&gamma| equal_closely(gamma, plateau)).unwrap_or(plateau);
    (gamma < largest && scaled.iter().all(|&(got, snr)| equal(got, snr.min(gamma)))).then_some(gamma)
}

fn equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-3 * b
}

/// Equal up to the precision of f32 tables.
fn equal_closely(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * b
}

#[cfg(test)]
mod tests;
