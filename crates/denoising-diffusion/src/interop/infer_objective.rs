//! What the network predicts and how its loss is weighted, from the reference's table `loss_weight`. Not here: what else the tables reveal
//! (`infer_diffusion.rs`).

use super::infer_diffusion::Levels;
use super::infer_schedule::rounded;
use super::inferred::Inferred;
use super::table_precision::TablePrecision;
use crate::diffusion::{Objective, SharedConfig};
use crate::weights::StateDict;

/// The number of weights that it takes to distinguish the objectives.
const TELLING: usize = 3;

/// What is further off reveals nothing.
const FAR_OFF: f64 = 0.1;

/// The stored weight is `min(SNR, gamma)`, or SNR, times a factor of the SNR that depends only on the objective.
pub(super) fn infer_objective(
    tables: &StateDict,
    levels: &Levels,
    inferred: &mut Inferred,
) -> (Objective, SharedConfig) {
    let weights = tables.get("loss_weight").map(|table| table.values.as_slice());
    let weights = weights.filter(|weights| weights.len() == levels.betas.len());
    let objectives = [Objective::PredNoise, Objective::PredX0, Objective::PredV];
    let found = weights.and_then(|weights| {
        let snr = snr_of(levels);
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
                let fit = if telling == 1 { "its one telling weight fits" } else { "its two telling weights fit" };
                inferred.assumed.extend(["objective", "min_snr_loss_weight", "min_snr_gamma"]);
                inferred.note(format!("the objective is not certain: {fit} several"));
            }
            (objective, shared)
        }
        None => {
            inferred.assumed.extend(["objective", "min_snr_loss_weight"]);
            inferred.note(match weights {
                Some(_) => "no objective gives the table `loss_weight`: the objective is a guess (the default)",
                None => "there is no table `loss_weight`: the objective is a guess (the default)",
            });
            (Objective::default(), SharedConfig::default())
        }
    }
}

/// An SNR that may be off by this share of it, because it is a product of rounded numbers.
struct Snr {
    value: f64,
    error: f64,
}

fn snr_of(levels: &Levels) -> Vec<Snr> {
    let (mut bar, mut error) = (1.0, 0.0);
    let at = |&beta: &f64| {
        error += levels.precision.rounding(beta) / (1.0 - beta).abs();
        bar *= 1.0 - beta;
        Snr { value: bar / (1.0 - bar), error: error / (1.0 - bar) }
    };
    levels.betas.iter().map(at).collect()
}

/// A weight times the factor that gives the objective's `min(SNR, gamma)`, or SNR.
struct Scaled {
    got: f64,
    snr: f64,
    /// How far off these may be because of rounding.
    slack: f64,
}

impl Scaled {
    fn equals(&self, expected: f64) -> bool {
        (self.got - expected).abs() <= 1e-3 * expected + self.slack
    }
}

/// The weights that reveal something, scaled. SNR is 0 where a schedule ends in pure noise, and halves become 0 or infinite.
fn scaled_by_snr(objective: Objective, weights: &[f32], snr: &[Snr]) -> Vec<Scaled> {
    let precision = TablePrecision::of(weights);
    let scaled = |(&weight, snr): (&f32, &Snr)| {
        let (weight, value) = (f64::from(weight), snr.value);
        let rounding = precision.rounding(weight) / weight;
        let tells = weight.is_finite() && value.is_finite() && value > 0.0;
        let factor = match objective {
            Objective::PredNoise => value,
            Objective::PredX0 => 1.0,
            Objective::PredV => value + 1.0,
        };
        let got = weight * factor;
        (tells && rounding < FAR_OFF && snr.error < FAR_OFF).then_some(Scaled {
            got,
            snr: value,
            slack: got * (rounding + snr.error),
        })
    };
    weights.iter().zip(snr).filter_map(scaled).collect()
}

/// Whether the weights are the objective's, unclipped.
fn is_plain(scaled: &[Scaled]) -> bool {
    !scaled.is_empty() && scaled.iter().all(|at| at.equals(at.snr))
}

/// The roundest gamma of min-SNR clipping that gives the weights.
fn clipping(scaled: &[Scaled]) -> Option<f64> {
    // SNR falls with t, so the first weights reveal the value of the clipping, their mean better than each.
    let first = scaled.first()?;
    let plateau: Vec<f64> = scaled.iter().take_while(|at| at.snr > 2.0 * first.got).map(|at| at.got).collect();
    let mean = if plateau.is_empty() { first.got } else { plateau.iter().sum::<f64>() / plateau.len() as f64 };
    let gives = |&gamma: &f64| {
        let is_close = (gamma - mean).abs() <= 1e-5 * gamma + first.slack;
        is_close && gamma < first.snr && scaled.iter().all(|at| at.equals(at.snr.min(gamma)))
    };
    rounded(mean).find(gives)
}
