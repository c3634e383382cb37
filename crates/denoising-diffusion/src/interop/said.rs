//! The formulation of a reference checkpoint, completed by values that the user gives for what its tensors leave open. Not here: what the tensors
//! reveal (`infer_diffusion.rs`).

use serde_json::{Map, Value};

use super::error::InteropError;
use super::inferred::Inferred;
use crate::diffusion::{DiffusionConfig, FormulationConfig};

const FORMULATION: &str = "diffusion";

/// The keys on which the meaning of the output depends most; they are not guessed if the tensors reveal nothing at all.
fn needed(formulation: &FormulationConfig) -> &'static [&'static str] {
    match formulation {
        FormulationConfig::Gaussian(_) => &["timesteps", "beta_schedule", "objective"],
        // These classes predict noise, or noise and data, whatever their options.
        FormulationConfig::LearnedVariance(_) | FormulationConfig::WeightedObjective(_) => {
            &["timesteps", "beta_schedule"]
        }
        FormulationConfig::ContinuousTime(_) => &["noise_schedule", "objective"],
        FormulationConfig::Simple(_) => &["objective"],
        FormulationConfig::Elucidated(_) | FormulationConfig::RectifiedFlow(_) => &[],
    }
}

impl Inferred {
    /// The formulation, with given keys of a [`DiffusionConfig`] (`diffusion`, `objective`, `noise_schedule`, ...). They replace what is
    /// [`assumed`](Self::assumed); a formulation other than the assumed one starts from its defaults.
    ///
    /// # Errors
    /// A key contradicts the tensors; the formulation does not have a key or a value; the tensors reveal nothing and too few keys are given.
    pub fn diffusion_with(&self, said: &Map<String, Value>) -> Result<DiffusionConfig, InteropError> {
        let config = match &self.diffusion {
            Some(told) => self.completed(told, said)?,
            None => all_said(said)?,
        };
        let config = if self.network.fourier_time() { config.for_fourier_time() } else { config };
        config.validate()?;
        Ok(config)
    }

    fn completed(&self, told: &DiffusionConfig, said: &Map<String, Value>) -> Result<DiffusionConfig, InteropError> {
        let mut config = told.clone();
        let mut all_open = false;
        if let Some(name) = said.get(FORMULATION) {
            let chosen = DiffusionConfig::try_from(Map::from_iter([(FORMULATION.to_string(), name.clone())]))?;
            if chosen.formulation.name() != told.formulation.name() {
                self.refuse_told(FORMULATION, name, told)?;
                (config.formulation, all_open) = (chosen.formulation, true);
            }
        }
        for (key, value) in said.iter().filter(|(key, _)| *key != FORMULATION) {
            let mut keys = Map::from(config.clone());
            keys.insert(key.clone(), value.clone());
            let changed = DiffusionConfig::try_from(keys)?;
            if changed != config && !all_open {
                self.refuse_told(key, value, told)?;
            }
            config = changed;
        }
        Ok(config)
    }

    fn refuse_told(&self, key: &str, said: &Value, told: &DiffusionConfig) -> Result<(), InteropError> {
        if self.assumed.contains(&key) {
            return Ok(());
        }
        let told = Map::from(told.clone()).get(key).map_or_else(|| "something else".to_string(), plain);
        Err(InteropError::Contradicted { key: key.to_string(), said: plain(said), told })
    }
}

fn all_said(said: &Map<String, Value>) -> Result<DiffusionConfig, InteropError> {
    let config = DiffusionConfig::try_from(said.clone())?;
    let missing: Vec<&str> =
        needed(&config.formulation).iter().copied().filter(|key| !said.contains_key(*key)).collect();
    if missing.is_empty() { Ok(config) } else { Err(InteropError::Untold { missing }) }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diffusion::{ElucidatedConfig, FormulationConfig, GaussianConfig, Objective, ScheduleConfig};
    use crate::models::{NetworkConfig, UnetConfig, UvitConfig};

    fn inferred(diffusion: Option<DiffusionConfig>, assumed: &[&'static str]) -> Inferred {
        let (betas, assumed) = (None, assumed.to_vec());
        Inferred { network: NetworkConfig::Unet(UnetConfig::default()), diffusion, betas, assumed, notes: Vec::new() }
    }

    fn of_tables() -> Inferred {
        let schedule = ScheduleConfig { timesteps: 50, ..ScheduleConfig::default() };
        let told = GaussianConfig { schedule, objective: Objective::PredNoise, ..Default::default() }.into();
        inferred(Some(told), &["auto_normalize"])
    }

    fn with(inferred: &Inferred, said: Value) -> Result<DiffusionConfig, String> {
        inferred.diffusion_with(said.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_assumed_is_replaced() {
        let of_tables = of_tables();
        let told = of_tables.diffusion.clone().unwrap();
        assert_eq!(with(&of_tables, json!({})), Ok(told.clone()));
        let config = with(&of_tables, json!({"auto_normalize": false})).unwrap();
        assert!(!config.shared.auto_normalize);
        assert_eq!(config.formulation, told.formulation);
    }

    #[test]
    fn what_is_told_is_not() {
        let of_tables = of_tables();
        let same =
            json!({"diffusion": "gaussian", "timesteps": 50, "objective": "pred_noise", "beta_schedule": "sigmoid"});
        assert_eq!(with(&of_tables, same), Ok(of_tables.diffusion.clone().unwrap()));
        for (said, expected) in [
            (json!({"timesteps": 60}), "`timesteps = 60` contradicts the file, whose tensors show 50"),
            (
                json!({"objective": "pred_v"}),
                "`objective = pred_v` contradicts the file, whose tensors show pred_noise",
            ),
            (
                json!({"sigmoid_tau": 0.5}),
                "`sigmoid_tau = 0.5` contradicts the file, whose tensors show something else",
            ),
            (
                json!({"diffusion": "elucidated"}),
                "`diffusion = elucidated` contradicts the file, whose tensors show gaussian",
            ),
        ] {
            assert_eq!(with(&of_tables, said), Err(expected.to_string()));
        }
    }

    #[test]
    fn another_formulation_opens_all_of_its_options() {
        let told = DiffusionConfig::from(FormulationConfig::Elucidated(ElucidatedConfig::default()));
        let guessed = inferred(Some(told), &["diffusion", "sigma_data"]);
        let config = with(&guessed, json!({"sigma_data": 0.3})).unwrap();
        let expected = ElucidatedConfig { sigma_data: 0.3, ..ElucidatedConfig::default() };
        assert_eq!(config.formulation, FormulationConfig::Elucidated(expected));
        let said = json!({"diffusion": "gaussian", "timesteps": 20, "beta_schedule": "cosine", "cosine_s": 0.02});
        let FormulationConfig::Gaussian(config) = with(&guessed, said).unwrap().formulation else { panic!() };
        assert_eq!((config.schedule.timesteps, config.schedule.cosine_s), (20, Some(0.02)));
        assert!(with(&guessed, json!({"diffusion": "gaussian", "timesteps": 1})).is_err());
        assert!(guessed.diffusion_with(json!({"diffusion": "edm"}).as_object().unwrap()).is_err());
    }

    #[test]
    fn networks_with_fourier_features_get_small_times() {
        let uvit = Inferred { network: NetworkConfig::Uvit(UvitConfig::default()), ..inferred(None, &[]) };
        let largest = |inferred: &Inferred, said| {
            let config = with(inferred, said).unwrap();
            let FormulationConfig::RectifiedFlow(config) = config.formulation else { panic!() };
            config.time_scale.unwrap_or(1000.0)
        };
        assert_eq!(largest(&uvit, json!({"diffusion": "rectified_flow"})), 1.0);
        assert_eq!(largest(&uvit, json!({"diffusion": "rectified_flow", "time_scale": 3.0})), 3.0);
        assert_eq!(largest(&inferred(None, &[]), json!({"diffusion": "rectified_flow"})), 1000.0);
    }

    #[test]
    fn where_nothing_is_told_enough_must_be_said() {
        let nothing = inferred(None, &[]);
        let missing = |said: Value| match nothing.diffusion_with(said.as_object().unwrap()) {
            Err(InteropError::Untold { missing }) => missing,
            other => panic!("{other:?}"),
        };
        assert_eq!(missing(json!({})), ["timesteps", "beta_schedule", "objective"]);
        assert_eq!(missing(json!({"timesteps": 10, "objective": "pred_v"})), ["beta_schedule"]);
        assert_eq!(missing(json!({"diffusion": "weighted_objective"})), ["timesteps", "beta_schedule"]);
        assert_eq!(missing(json!({"diffusion": "learned_variance", "timesteps": 10})), ["beta_schedule"]);
        assert_eq!(missing(json!({"diffusion": "continuous_time"})), ["noise_schedule", "objective"]);
        assert!(with(&nothing, json!({"diffusion": "elucidated"})).is_ok());
        let said = json!({"timesteps": 10, "objective": "pred_v", "beta_schedule": "linear"});
        assert_eq!(with(&nothing, said).unwrap().timesteps(), Some(10));
    }
}
