//! The options of a formulation and of training with it, as one flat table of keys: `diffusion = "NAME"`, the options of that formulation, and the
//! options that all formulations share. [`FormulationConfig`] is the list of formulations.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::continuous_time::{ContinuousTimeConfig, SimpleConfig};
use super::elucidated::{Elucidated, ElucidatedConfig};
use super::error::{DiffusionConfigError, check};
use super::formulation::{Formulation, Output};
use super::gaussian::GaussianConfig;
use super::learned_variance::LearnedVarianceConfig;
use super::rectified_flow::{RectifiedFlow, RectifiedFlowConfig};
use super::schedule::{ScheduleConfig, Tables, check_betas};
use super::weighted_objective::WeightedObjectiveConfig;

#[cfg(test)]
mod tests;

/// Most noise candidates per example: each is a pass through the network.
const MOST_CANDIDATES: usize = 1000;

/// Which formulation, with its own options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "diffusion", rename_all = "snake_case")]
pub enum FormulationConfig {
    Gaussian(GaussianConfig),
    LearnedVariance(LearnedVarianceConfig),
    WeightedObjective(WeightedObjectiveConfig),
    ContinuousTime(ContinuousTimeConfig),
    Simple(SimpleConfig),
    Elucidated(ElucidatedConfig),
    RectifiedFlow(RectifiedFlowConfig),
}

impl Default for FormulationConfig {
    fn default() -> Self {
        Self::Gaussian(GaussianConfig::default())
    }
}

impl FormulationConfig {
    /// Every formulation with its default options.
    pub fn all() -> [Self; 7] {
        [
            Self::Gaussian(GaussianConfig::default()),
            Self::LearnedVariance(LearnedVarianceConfig::default()),
            Self::WeightedObjective(WeightedObjectiveConfig::default()),
            Self::ContinuousTime(ContinuousTimeConfig::default()),
            Self::Simple(SimpleConfig::default()),
            Self::Elucidated(ElucidatedConfig::default()),
            Self::RectifiedFlow(RectifiedFlowConfig::default()),
        ]
    }

    /// The name in configuration files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gaussian(_) => "gaussian",
            Self::LearnedVariance(_) => "learned_variance",
            Self::WeightedObjective(_) => "weighted_objective",
            Self::ContinuousTime(_) => "continuous_time",
            Self::Simple(_) => "simple",
            Self::Elucidated(_) => "elucidated",
            Self::RectifiedFlow(_) => "rectified_flow",
        }
    }

    /// One-line description for the user.
    pub fn about(&self) -> &'static str {
        match self {
            Self::Gaussian(_) => "T noise levels; predicts noise, data or v (Ho et al. 2020)",
            Self::LearnedVariance(_) => "the same, with a learned variance for each step (Nichol and Dhariwal 2021)",
            Self::WeightedObjective(_) => "the same, mixing predicted noise and data by learned weights",
            Self::ContinuousTime(_) => "linear, cosine or learned log-SNR over continuous t (Kingma et al. 2021)",
            Self::Simple(_) => "cosine log-SNR, shifted for the image size (Hoogeboom et al. 2023)",
            Self::Elucidated(_) => "EDM: preconditioned network, log-normal sigma (Karras et al. 2022)",
            Self::RectifiedFlow(_) => {
                "flow matching: straight paths, predicted velocity (Liu et al. 2022, Esser et al. 2024)"
            }
        }
    }

    /// The schedule options, for formulations in discrete time.
    pub fn schedule(&self) -> Option<&ScheduleConfig> {
        match self {
            Self::Gaussian(config) => Some(&config.schedule),
            Self::LearnedVariance(config) => Some(&config.schedule),
            Self::WeightedObjective(config) => Some(&config.schedule),
            _ => None,
        }
    }

    /// Checks the formulation's own options.
    fn validate(&self) -> Result<(), DiffusionConfigError> {
        match self {
            Self::Gaussian(config) => config.validate(),
            Self::LearnedVariance(config) => config.validate(),
            Self::WeightedObjective(config) => config.validate(),
            Self::ContinuousTime(config) => config.validate(),
            Self::Simple(config) => config.validate(),
            Self::Elucidated(config) => config.validate(),
            Self::RectifiedFlow(config) => config.validate(),
        }
    }

    /// Builds the formulation from valid options; `betas`, if given, replace the named schedule.
    pub(crate) fn build(&self, betas: Option<Vec<f64>>) -> Result<Box<dyn Formulation>, DiffusionConfigError> {
        let tables = |schedule: &ScheduleConfig| match &betas {
            Some(betas) if betas.len() != schedule.timesteps => {
                Err(DiffusionConfigError::NumberOfBetas { expected: schedule.timesteps, got: betas.len() })
            }
            Some(betas) => check_betas(betas).map(|()| Tables::from_betas(betas.clone())),
            None => Ok(Tables::new(schedule)),
        };
        if betas.is_some() && self.schedule().is_none() {
            return Err(DiffusionConfigError::BetasWithoutTable { formulation: self.name() });
        }
        Ok(match self {
            Self::Gaussian(c) => Box::new(c.build(tables(&c.schedule)?)),
            Self::LearnedVariance(c) => Box::new(c.build(tables(&c.schedule)?)),
            Self::WeightedObjective(c) => Box::new(c.build(tables(&c.schedule)?)),
            Self::ContinuousTime(c) => Box::new(c.build()),
            Self::Simple(c) => Box::new(c.build()),
            Self::Elucidated(c) => Box::new(Elucidated(*c)),
            Self::RectifiedFlow(c) => Box::new(RectifiedFlow(*c)),
        })
    }

    /// All keys of the formulation, including those without a default.
    fn keys(&self) -> Vec<String> {
        keys_of(self).into_iter().filter(|key| key != TAG).collect()
    }
}

fn keys_of(options: &impl Serialize) -> Vec<String> {
    let Ok(Value::Object(keys)) = serde_json::to_value(options) else { return Vec::new() };
    keys.into_iter().map(|(key, _)| key).collect()
}

fn read_table<T: DeserializeOwned>(table: Map<String, Value>) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::Object(table))
}

fn malformed(key: &str, error: &serde_json::Error) -> DiffusionConfigError {
    DiffusionConfigError::Malformed { key: key.to_string(), problem: error.to_string() }
}

const TAG: &str = "diffusion";

/// A formulation and the options that all formulations share; `Default` is the reference's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct DiffusionConfig {
    pub formulation: FormulationConfig,
    pub shared: SharedConfig,
}

/// The options that all formulations share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharedConfig {
    /// Whether data lie in [0, 1] and are mapped to [-1, 1] for the network, and samples back; otherwise data are used as they are.
    pub auto_normalize: bool,
    /// Strength of noise that is constant within each channel (about 0.1 allows very dark or bright samples); 0 is off.
    pub offset_noise_strength: f64,
    /// Whether the loss is weighted as a loss on `x_start` with weight `min(SNR, gamma)` (Hang et al. 2023); if absent, only for `simple`.
    pub min_snr_loss_weight: Option<bool>,
    /// `gamma` of the above.
    pub min_snr_gamma: f64,
    /// Assigns noise to the images of a batch so that the sum of distances is minimal (Li et al. 2024).
    pub immiscible: bool,
    /// Number of noises drawn per image, of which the one with the least loss is trained on (forward explorative modelling); 1 is off.
    pub xm_candidates: usize,
    /// Whether the times of a batch are spread evenly, from a start drawn for the batch, so that the loss varies less from step to step (Kingma et al.
    /// 2021, arXiv:2107.00630, appendix I.1); otherwise each is drawn by itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stratified_times: bool,
}

impl Default for SharedConfig {
    fn default() -> Self {
        Self {
            auto_normalize: true,
            offset_noise_strength: 0.0,
            min_snr_loss_weight: None,
            min_snr_gamma: 5.0,
            immiscible: false,
            xm_candidates: 1,
            stratified_times: false,
        }
    }
}

impl SharedConfig {
    /// All its keys: some are absent where they have no value or their default.
    pub const KEYS: [&str; 7] = [
        "auto_normalize",
        "offset_noise_strength",
        "min_snr_loss_weight",
        "min_snr_gamma",
        "immiscible",
        "xm_candidates",
        "stratified_times",
    ];

    /// Refuses meaningless options, and options that contradict each other or the network's output.
    pub(super) fn validate(&self, output: Output) -> Result<(), DiffusionConfigError> {
        let Self { min_snr_gamma: gamma, offset_noise_strength: offset, xm_candidates, .. } = *self;
        check(gamma.is_finite() && gamma > 0.0, "min_snr_gamma", "a number above 0", gamma)?;
        check(offset.is_finite() && offset >= 0.0, "offset_noise_strength", "a number of at least 0", offset)?;
        check((1..=MOST_CANDIDATES).contains(&xm_candidates), "xm_candidates", "1 to 1000", xm_candidates as f64)?;
        match output {
            Output::WithVariance(_) if offset > 0.0 => contradiction(
                "offset_noise_strength",
                "`diffusion = \"learned_variance\"`",
                "the bound that trains the variance assumes white noise",
            ),
            Output::Weighted(_) if self.min_snr_loss_weight == Some(true) => contradiction(
                "min_snr_loss_weight",
                "`diffusion = \"weighted_objective\"`",
                "its loss sums the errors of noise and of data, so no single weight turns it into an error of data",
            ),
            _ if self.immiscible && xm_candidates > 1 => contradiction(
                "immiscible",
                "`xm_candidates` above 1",
                "one chooses noise by its distance, the other by its loss",
            ),
            _ => Ok(()),
        }
    }

    /// The gamma of `min(SNR, gamma)` if the loss is weighted by it, explicitly or by `default`.
    pub(super) fn min_snr(&self, default: bool) -> Option<f64> {
        self.min_snr_loss_weight.unwrap_or(default).then_some(self.min_snr_gamma)
    }
}

fn contradiction(option: &'static str, with: &str, why: &'static str) -> Result<(), DiffusionConfigError> {
    Err(DiffusionConfigError::Contradiction { option, with: with.to_string(), why })
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        FormulationConfig::default().into()
    }
}

impl From<FormulationConfig> for DiffusionConfig {
    fn from(formulation: FormulationConfig) -> Self {
        Self { formulation, shared: SharedConfig::default() }
    }
}

impl From<GaussianConfig> for DiffusionConfig {
    fn from(config: GaussianConfig) -> Self {
        FormulationConfig::Gaussian(config).into()
    }
}

impl DiffusionConfig {
    /// Refuses options that contradict each other or are meaningless.
    ///
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        self.formulation.validate()?;
        self.shared.validate(self.output())?;
        if let FormulationConfig::Gaussian(GaussianConfig { loss_weight: Some(_), .. }) = &self.formulation
            && self.min_snr().is_some()
        {
            return contradiction("loss_weight", "`min_snr_loss_weight`", "both set the weights of the loss");
        }
        Ok(())
    }

    /// The gamma of `min(SNR, gamma)` if the loss is weighted by it.
    pub fn min_snr(&self) -> Option<f64> {
        self.shared.min_snr(matches!(self.formulation, FormulationConfig::Simple(_)))
    }

    /// Whether the noisiest level is pure noise by a change of the schedule.
    pub fn has_zero_terminal_snr(&self) -> bool {
        self.formulation.schedule().is_some_and(|schedule| schedule.zero_terminal_snr)
    }

    /// T, if the number of noise levels is finite.
    pub fn timesteps(&self) -> Option<usize> {
        self.formulation.schedule().map(|schedule| schedule.timesteps)
    }

    /// Output channels of a network for data with `channels` channels.
    pub fn out_channels(&self, channels: usize) -> usize {
        self.output().channels(channels)
    }

    /// The parts of the output of a network.
    fn output(&self) -> Output {
        match &self.formulation {
            FormulationConfig::LearnedVariance(config) => Output::WithVariance(config.variance),
            FormulationConfig::WeightedObjective(config) => Output::Weighted(config.weights),
            _ => Output::Prediction,
        }
    }

    /// For a network that embeds time by Fourier features: passes it small times, if the formulation has that option and it was not set explicitly.
    pub fn for_fourier_time(self) -> Self {
        match self.formulation {
            FormulationConfig::RectifiedFlow(config) => {
                Self { formulation: FormulationConfig::RectifiedFlow(config.for_fourier_time()), ..self }
            }
            _ => self,
        }
    }

    /// All keys, including those without a value.
    pub(crate) fn keys(&self) -> Vec<String> {
        keys_of(&self.formulation).into_iter().chain(SharedConfig::KEYS.map(str::to_string)).collect()
    }

    /// Fills in the options that depend on the size of the data.
    pub fn for_size(&self, height: usize, width: usize) -> Self {
        let mut config = self.clone();
        if let FormulationConfig::Simple(simple) = &mut config.formulation {
            simple.image_d.get_or_insert(((height * width) as f64).sqrt());
        }
        config
    }
}

/// Keys without a value are left out.
impl From<DiffusionConfig> for Map<String, Value> {
    fn from(config: DiffusionConfig) -> Self {
        let table = |value: Result<Value, serde_json::Error>| match value {
            Ok(Value::Object(table)) => table,
            _ => Self::new(),
        };
        let mut all = table(serde_json::to_value(&config.formulation));
        all.extend(table(serde_json::to_value(&config.shared)));
        all.retain(|_, value| !value.is_null());
        all
    }
}

impl TryFrom<Map<String, Value>> for DiffusionConfig {
    type Error = DiffusionConfigError;

    fn try_from(mut keys: Map<String, Value>) -> Result<Self, DiffusionConfigError> {
        let name = match keys.remove(TAG) {
            Some(Value::String(name)) => name,
            Some(other) => other.to_string(),
            None => FormulationConfig::default().name().to_string(),
        };
        let all = FormulationConfig::all();
        let names = || all.iter().map(FormulationConfig::name).collect::<Vec<_>>().join(", ");
        let Some(formulation) = all.iter().find(|formulation| formulation.name() == name) else {
            return Err(DiffusionConfigError::UnknownFormulation { name, known: names() });
        };
        let (shared, mut own): (Vec<_>, Map<_, _>) = {
            let (shared, own): (Vec<_>, Vec<_>) =
                keys.into_iter().partition(|(key, _)| SharedConfig::KEYS.contains(&key.as_str()));
            (shared, own.into_iter().collect())
        };
        let known = formulation.keys();
        if let Some(key) = own.keys().find(|key| !known.contains(key)) {
            let owners = all.iter().filter(|other| other.keys().contains(key)).map(FormulationConfig::name).collect();
            return Err(DiffusionConfigError::UnknownKey {
                key: key.clone(),
                formulation: formulation.name(),
                owners,
                known: known.join(", "),
            });
        }
        own.insert(TAG.to_string(), name.into());
        // One by one, so that an error names its key. All have defaults.
        for (key, value) in own.iter().filter(|(key, _)| *key != TAG) {
            let alone = Map::from_iter([(TAG.to_string(), own[TAG].clone()), (key.clone(), value.clone())]);
            read_table::<FormulationConfig>(alone).map_err(|error| malformed(key, &error))?;
        }
        for (key, value) in &shared {
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            read_table::<SharedConfig>(alone).map_err(|error| malformed(key, &error))?;
        }
        let whole = |error: serde_json::Error| malformed(TAG, &error);
        Ok(Self {
            formulation: read_table(own).map_err(whole)?,
            shared: read_table(shared.into_iter().collect()).map_err(whole)?,
        })
    }
}
