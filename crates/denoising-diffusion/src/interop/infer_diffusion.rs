//! Infers the formulation from what the reference's diffusion classes save with their network: the name of the attribute that holds it, the tables of
//! a schedule (T and betas; `loss_weight` reveals the objective), a learned schedule, and the number of the network's output channels. Not here: the
//! network (`infer.rs`), fitting a schedule to its betas (`infer_schedule.rs`), the objective (`infer_objective.rs`), values given by the user (`said.rs`).

use super::error::InteropError;
use super::infer_objective::infer_objective;
use super::infer_schedule::{LARGEST_BETA, describe, named_schedule};
use super::inferred::Inferred;
use super::learned_schedule;
use super::reference_weights::{ReferenceNetwork, ReferenceWeights, Wrapper};
use super::table_precision::TablePrecision;
use crate::diffusion::schedule::{self, check_betas};
use crate::diffusion::{
    ContinuousTimeConfig, DiffusionConfig, DiffusionConfigError, ElucidatedConfig, FormulationConfig, GaussianConfig,
    LearnedVarianceConfig, NoiseSchedule, ScheduleConfig, SimpleConfig, WeightedObjectiveConfig,
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
            (Wrapper::Model, _) if weights.kind() != ReferenceNetwork::Unet => simple(weights.kind(), inferred),
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
    pub(super) fn note(&mut self, sentence: impl Into<String>) {
        self.notes.push(sentence.into());
    }

    /// Records keys that no tensor reveals; `how` describes them and their assumed values.
    pub(super) fn assume(&mut self, keys: &[&'static str], how: &str) {
        self.assumed.extend(keys);
        self.note(format!("no tensor reveals {how}"));
    }
}

/// A formulation with tables. The number of output channels per channel of the data reveals the class.
fn discrete(betas: &HostTensor, tables: &StateDict, inferred: &mut Inferred) -> Result<DiffusionConfig, InteropError> {
    let (schedule, levels) = schedule_of(betas, inferred)?;
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
    let (objective, shared) = infer_objective(tables, &levels, inferred);
    Ok(DiffusionConfig { shared, ..GaussianConfig { schedule, objective, ..Default::default() }.into() })
}

/// Betas, and how exactly they are known.
pub(super) struct Levels {
    pub betas: Vec<f64>,
    pub precision: TablePrecision,
}

/// The schedule of a table of betas, and the betas. If no named schedule gives them, they are kept in `inferred.betas`.
fn schedule_of(stored: &HostTensor, inferred: &mut Inferred) -> Result<(ScheduleConfig, Levels), InteropError> {
    let betas: Vec<f64> = stored.values.iter().map(|&beta| beta.into()).collect();
    if stored.shape.len() != 1 || betas.iter().any(|beta| !(0.0..).contains(beta)) {
        return Err(InteropError::NoConfiguration("the table `betas` is not a list of noise variances".to_string()));
    }
    let base = ScheduleConfig { timesteps: betas.len(), ..ScheduleConfig::default() };
    base.validate()?;
    let precision = TablePrecision::of(&stored.values);
    let in_halves = precision.half().map_or(String::new(), |name| format!(" (stored in {name})"));
    if let Some(config) = named_schedule(&betas, precision, &base) {
        inferred.note(format!("{} with T = {} gives the table `betas`{in_halves}", describe(&config), betas.len()));
        let levels = match precision.half() {
            Some(_) => Levels { betas: schedule::betas(&config), precision: TablePrecision::F32 },
            None => Levels { betas, precision },
        };
        return Ok((config, levels));
    }
    inferred.note(format!(
        "no named schedule gives the table `betas` (T = {}){in_halves}; it is kept unchanged",
        betas.len()
    ));
    let kept: Vec<f64> = betas.iter().map(|beta| beta.min(LARGEST_BETA)).collect();
    if let Err(DiffusionConfigError::Betas { t, beta }) = check_betas(&kept) {
        return Err(InteropError::Level { t, beta });
    }
    inferred.betas = Some(kept);
    Ok((base, Levels { betas, precision }))
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

/// The class without tables that can hold a UViT or a KarrasUnet: the other ones ask networks for attributes that these lack.
fn simple(network: ReferenceNetwork, inferred: &mut Inferred) -> DiffusionConfig {
    inferred.note(format!(
        "a {} under `model.` without tables: taken for simple_diffusion with its defaults, diffusion simple",
        network.name()
    ));
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

#[cfg(test)]
mod tests;
