//! What a file written by `ddpm convert --to reference` states of its network in its metadata: the arguments of the reference's classes, or, for
//! formulations that it has in another form, our options. Not here: writing them (`ddpm`), and what tensors reveal (`infer.rs`).

use serde_json::{Map, Value};

use super::infer_schedule::named_schedule;
use super::inferred::Inferred;
use super::safetensors_file::Metadata;
use super::table_precision::TablePrecision;
use crate::data::ImageSize;
use crate::diffusion::schedule::{self, check_betas};
use crate::diffusion::{DiffusionConfig, FormulationConfig, ScheduleConfig};
use crate::models::{NetworkConfig, UnetConfig};

const NETWORK: &str = "unet";
const DIFFUSION: &str = "diffusion";

/// Only what is read here: the arguments of the network, and of its diffusion class.
pub(super) fn stated(metadata: &Metadata) -> Metadata {
    let wanted = metadata.iter().filter(|(key, _)| [NETWORK, DIFFUSION].contains(&key.as_str()));
    wanted.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The size of the data. The class for images with classes states one side, which is no size.
pub(super) fn size(stated: &Metadata) -> Option<ImageSize> {
    let arguments = arguments(stated, DIFFUSION)?;
    let side = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok()).filter(|&side| side > 0);
    if let Some(length) = arguments.get("seq_length") {
        return Some(ImageSize { height: 1, width: side(length)? });
    }
    let [height, width] = arguments.get("image_size")?.as_array()?.as_slice() else { return None };
    Some(ImageSize { height: side(height)?, width: side(width)? })
}

/// Options of the network that its tensors do not reveal. Metadata of other programs mean nothing here.
pub(super) fn complete_network(stated: &Metadata, inferred: &mut Inferred) {
    let (Some(said), NetworkConfig::Unet(unet)) = (arguments(stated, NETWORK), &inferred.network) else { return };
    let mut completed = Inferred { network: NetworkConfig::Unet(with_options(unet, &said)), ..inferred.clone() };
    completed.assumed.retain(|key| !said.contains_key(*key));
    if let Some(heads) = said.get("attn_heads").and_then(Value::as_u64).filter(|_| unet.mid_attn_heads.is_some()) {
        let Ok(with_heads) = completed.with_mid_attn_heads(heads as usize) else { return };
        completed = with_heads;
        completed.assumed.retain(|key| *key != "mid_attn_heads");
    }
    if completed.network.validate().is_ok() {
        completed.note("the metadata of the file state the network's options");
        *inferred = completed;
    }
}

fn with_options(unet: &UnetConfig, said: &Map<String, Value>) -> UnetConfig {
    let number = |key: &str, own: f64| said.get(key).and_then(Value::as_f64).unwrap_or(own);
    UnetConfig {
        sinusoidal_pos_emb_theta: number("sinusoidal_pos_emb_theta", unet.sinusoidal_pos_emb_theta),
        dropout: number("dropout", unet.dropout),
        class_drop_prob: number("class_drop_prob", number("cond_drop_prob", unet.class_drop_prob)),
        ..unet.clone()
    }
}

/// Sets `inferred.diffusion` and `inferred.betas`, if the formulation is stated.
pub(super) fn complete_diffusion(stated: &Metadata, inferred: &mut Inferred) -> bool {
    let Some(said) = arguments(stated, DIFFUSION) else { return false };
    let betas = said.get("betas").and_then(|betas| serde_json::from_value::<Vec<f64>>(betas.clone()).ok());
    let options = if said.contains_key("diffusion") { said } else { options_of(said) };
    let Ok(mut config) = DiffusionConfig::try_from(options) else { return false };
    let are_valid = |betas: &Vec<f64>| check_betas(betas).is_ok() && config.timesteps() == Some(betas.len());
    if config.validate().is_err() || !betas.as_ref().is_none_or(are_valid) {
        return false;
    }
    inferred.note("the metadata of the file state the formulation");
    inferred.betas = betas.filter(|betas| !is_named(betas, &mut config));
    inferred.diffusion = Some(config);
    true
}

/// Whether the betas have a name here: some classes have none for them.
fn is_named(betas: &[f64], config: &mut DiffusionConfig) -> bool {
    let FormulationConfig::Gaussian(gaussian) = &mut config.formulation else { return false };
    // These numbers were not rounded to f32, so that they are those of the schedule or of another one, such as the same with zero terminal SNR.
    let same =
        |ours: &ScheduleConfig| schedule::betas(ours).iter().zip(betas).all(|(ours, beta)| (ours - beta).abs() < 1e-9);
    let named = named_schedule(betas, TablePrecision::F32, &gaussian.schedule).filter(same);
    let is_named = named.is_some();
    gaussian.schedule = named.unwrap_or_else(|| gaussian.schedule.clone());
    is_named
}

/// Our options from the arguments of GaussianDiffusion.
fn options_of(mut said: Map<String, Value>) -> Map<String, Value> {
    let parameters = said.remove("schedule_fn_kwargs");
    for (key, value) in parameters.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let prefix = if key == "s" { "cosine_" } else { "sigmoid_" };
        said.insert(format!("{prefix}{key}"), value.clone());
    }
    for key in ["betas", "image_size", "seq_length"] {
        said.remove(key);
    }
    said.retain(|_, value| !value.is_null());
    said
}

fn arguments(stated: &Metadata, class: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(stated.get(class)?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diffusion::{BetaSchedule, GaussianConfig, Objective};

    fn inferred() -> Inferred {
        let (network, assumed) =
            (NetworkConfig::Unet(UnetConfig::default()), vec!["dropout", "sinusoidal_pos_emb_theta"]);
        Inferred { network, diffusion: None, betas: None, assumed, notes: Vec::new() }
    }

    fn metadata(key: &str, value: Value) -> Metadata {
        Metadata::from([(key.to_string(), value.to_string())])
    }

    fn gaussian(said: Value) -> (Option<GaussianConfig>, Option<Vec<f64>>) {
        let mut inferred = inferred();
        let was_set = complete_diffusion(&metadata("diffusion", said), &mut inferred);
        assert_eq!(was_set, inferred.diffusion.is_some());
        let config = inferred.diffusion.map(|config| match config.formulation {
            FormulationConfig::Gaussian(config) => config,
            other => panic!("{other:?}"),
        });
        (config, inferred.betas)
    }

    #[test]
    fn arguments_of_the_class_are_read() {
        let said = json!({"timesteps": 50, "objective": "pred_x0", "beta_schedule": "sigmoid", "image_size": [8, 9],
                          "schedule_fn_kwargs": {"start": -2.0, "tau": 0.7}, "min_snr_loss_weight": true});
        let (config, betas) = gaussian(said.clone());
        let GaussianConfig { schedule, objective, .. } = config.unwrap();
        assert_eq!((schedule.timesteps, objective, betas), (50, Objective::PredX0, None));
        assert_eq!((schedule.sigmoid_start, schedule.sigmoid_tau), (Some(-2.0), Some(0.7)));
        assert_eq!(size(&metadata("diffusion", said)), Some(ImageSize { height: 8, width: 9 }));
        let said = json!({"timesteps": 3, "objective": "pred_v", "beta_schedule": null, "betas": [0.1, 0.2, 0.3],
                          "seq_length": 16});
        let (config, betas) = gaussian(said.clone());
        assert_eq!((config.unwrap().schedule.timesteps, betas), (3, Some(vec![0.1, 0.2, 0.3])));
        assert_eq!(size(&metadata("diffusion", said)), Some(ImageSize { height: 1, width: 16 }));
        let cosine = json!({"timesteps": 9, "objective": "pred_v", "beta_schedule": "cosine",
                            "schedule_fn_kwargs": {"s": 0.02}, "image_size": 8});
        let config = gaussian(cosine.clone()).0.unwrap();
        assert_eq!((config.schedule.beta_schedule, config.schedule.cosine_s), (BetaSchedule::Cosine, Some(0.02)));
        assert_eq!(size(&metadata("diffusion", cosine)), None);
    }

    #[test]
    fn what_is_not_ours_is_passed_over() {
        for said in [json!("unet"), json!({"steps": 7}), json!({"timesteps": 1}), json!([1, 2])] {
            assert_eq!(gaussian(said), (None, None));
        }
        let wrong = json!({"timesteps": 3, "objective": "pred_v", "betas": [0.1, 0.2]});
        assert_eq!(gaussian(wrong), (None, None));
        let mut inferred = inferred();
        complete_network(&metadata("unet", json!({"dropout": 7.0})), &mut inferred);
        assert_eq!(inferred, self::inferred());
    }

    #[test]
    fn options_of_the_network_are_no_longer_assumed() {
        let mut inferred = inferred();
        complete_network(&metadata("unet", json!({"sinusoidal_pos_emb_theta": 500.0, "dropout": 0.1})), &mut inferred);
        let unet = inferred.unet().unwrap();
        assert_eq!((unet.sinusoidal_pos_emb_theta, unet.dropout), (500.0, 0.1));
        assert!(inferred.assumed.is_empty());
    }
}
