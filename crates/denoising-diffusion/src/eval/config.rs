//! Evaluation during training, as configured in a recipe. Not here: performing it ([`crate::train::Run`]).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::metric::{Metric, better};
use super::result::Better;
use crate::diffusion::Formulation;
use crate::sampler::{SampleConfig, SampleConfigError};

/// What a run measures while it trains. Field names are the keys of a recipe's evaluate table and, in kebab-case, flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Steps between evaluations. `None`: no evaluation.
    pub evaluate_every: Option<u64>,
    /// The metrics; never empty.
    pub metrics: Vec<Metric>,
    /// Number of samples drawn, at least 2.
    pub evaluate_samples: usize,
    /// Number of real images to compare with, evenly spaced in the data. `None`: all.
    pub evaluate_real: Option<usize>,
    /// Steps from noise to data for these samples. `None`: as for the recipe's samples.
    pub evaluate_sampling_timesteps: Option<usize>,
    /// Time limit for one evaluation, in seconds: if more is expected, fewer samples are drawn. `None`: no limit.
    pub evaluate_budget_s: Option<f64>,
    /// The number that decides which checkpoint is the best. `None`: the first measured one that has a better direction. The z of the nearest
    /// neighbours has none (copies of the training data have the lowest z); if nothing else is measured, no checkpoint is the best.
    pub best_metric: Option<String>,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self {
            evaluate_every: None,
            metrics: vec![Metric::Swd, Metric::Loss],
            evaluate_samples: 1000,
            evaluate_real: None,
            evaluate_sampling_timesteps: None,
            evaluate_budget_s: None,
            best_metric: None,
        }
    }
}

/// Why an evaluation configuration is invalid.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum EvaluateConfigError {
    #[error("`evaluate_every` is 0; leave it out if nothing is to be evaluated")]
    Never,
    #[error("`metrics` is empty")]
    NoMetrics,
    #[error("`{key}` is {got}; at least 2 are needed")]
    TooFew { key: &'static str, got: usize },
    #[error("`{key}` is {got}; {metric} needs at least {least}")]
    TooFewFor { metric: Metric, key: &'static str, least: usize, got: usize },
    #[error(transparent)]
    Sampling(#[from] SampleConfigError),
    #[error("`evaluate_budget_s` is {0}; expected a time above 0, in seconds")]
    Budget(f64),
    #[error("`best_metric` is `{best}`, which is not measured; possible values with these `metrics`: {telling}")]
    BestMetric { best: String, telling: String },
    #[error(
        "`best_metric` is `{best}`, for which neither lower nor higher is better; possible values with these `metrics`: {telling}"
    )]
    TellsNoBest { best: String, telling: String },
}

impl EvaluateConfig {
    /// Checks everything that can be checked without data and network.
    ///
    /// # Errors
    /// [`EvaluateConfigError`].
    pub fn validate(&self, sample: &SampleConfig, formulation: &dyn Formulation) -> Result<(), EvaluateConfigError> {
        if self.evaluate_every == Some(0) {
            return Err(EvaluateConfigError::Never);
        }
        if self.metrics.is_empty() {
            return Err(EvaluateConfigError::NoMetrics);
        }
        let (samples, real) = (Some(self.evaluate_samples), self.evaluate_real);
        for (key, got) in [("evaluate_samples", samples), ("evaluate_real", real)] {
            if let Some(got) = got.filter(|&got| got < 2) {
                return Err(EvaluateConfigError::TooFew { key, got });
            }
            let of_samples = self.metrics.iter().filter(|metric| metric.needs_samples());
            let wanting = of_samples.max_by_key(|metric| metric.fewest_images());
            if let (Some(&metric), Some(got)) = (wanting, got)
                && got < metric.fewest_images()
            {
                return Err(EvaluateConfigError::TooFewFor { metric, key, least: metric.fewest_images(), got });
            }
        }
        if let Some(got) = self.evaluate_sampling_timesteps {
            sample.check_steps("evaluate_sampling_timesteps", got, formulation)?;
        }
        if let Some(budget) = self.evaluate_budget_s.filter(|budget| !(*budget > 0.0 && budget.is_finite())) {
            return Err(EvaluateConfigError::Budget(budget));
        }
        match &self.best_metric {
            Some(best) => self.check_best(best),
            None => Ok(()),
        }
    }

    fn check_best(&self, best: &str) -> Result<(), EvaluateConfigError> {
        let telling: Vec<&str> = self.telling().collect();
        if telling.contains(&best) {
            return Ok(());
        }
        let telling = if telling.is_empty() { "none".to_string() } else { telling.join(", ") };
        let best = best.to_string();
        Err(if Metric::with_number(&best).is_some() && better(&best) == Better::Neither {
            EvaluateConfigError::TellsNoBest { best, telling }
        } else {
            EvaluateConfigError::BestMetric { best, telling }
        })
    }

    /// The number that decides which checkpoint is the best; `None` if no measured number can.
    pub fn best(&self) -> Option<&str> {
        self.best_metric.as_deref().or_else(|| self.telling().next())
    }

    /// The measured numbers that have a better direction, in the order of the metrics.
    fn telling(&self) -> impl Iterator<Item = &'static str> {
        let measured = self.metrics.iter().flat_map(|metric| metric.numbers()).copied();
        measured.filter(|name| better(name) != Better::Neither)
    }

    /// The sampling options for evaluations, derived from the recipe's `sample`.
    pub fn sampling(&self, sample: &SampleConfig) -> SampleConfig {
        SampleConfig {
            sampling_timesteps: self.evaluate_sampling_timesteps.or(sample.sampling_timesteps),
            num_samples: self.evaluate_samples,
            ..sample.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Diffusion, GaussianConfig, ScheduleConfig};

    fn gaussian(timesteps: usize) -> Diffusion {
        let schedule = ScheduleConfig { timesteps, ..ScheduleConfig::default() };
        Diffusion::new(&GaussianConfig { schedule, ..GaussianConfig::default() }.into()).unwrap()
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = EvaluateConfig::default();
        let sample = SampleConfig::default();
        assert_eq!(good.validate(&sample, gaussian(1000).formulation()), Ok(()));
        let diffusion = gaussian(100);
        assert_eq!(good.best(), Some("swd"));
        let refused = |change: &dyn Fn(&mut EvaluateConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.validate(&sample, diffusion.formulation()).unwrap_err()
        };
        assert_eq!(refused(&|c| c.evaluate_every = Some(0)), EvaluateConfigError::Never);
        assert_eq!(refused(&|c| c.metrics.clear()), EvaluateConfigError::NoMetrics);
        let too_few = |key| EvaluateConfigError::TooFew { key, got: 1 };
        assert_eq!(refused(&|c| c.evaluate_samples = 1), too_few("evaluate_samples"));
        assert_eq!(refused(&|c| c.evaluate_real = Some(1)), too_few("evaluate_real"));
        for (key, samples, real) in [("evaluate_samples", 5, None), ("evaluate_real", 6, Some(5))] {
            let error = refused(&|c| {
                (c.metrics, c.evaluate_samples, c.evaluate_real) = (vec![Metric::Swd, Metric::Prdc], samples, real);
            });
            assert_eq!(error, EvaluateConfigError::TooFewFor { metric: Metric::Prdc, key, least: 6, got: 5 });
        }
        assert!(matches!(
            refused(&|c| c.evaluate_sampling_timesteps = Some(101)),
            EvaluateConfigError::Sampling(SampleConfigError::SamplingTimesteps { got: 101, timesteps: 100, .. })
        ));
        assert!(matches!(refused(&|c| c.evaluate_budget_s = Some(f64::NAN)), EvaluateConfigError::Budget(_)));
        let error = refused(&|c| c.best_metric = Some("fid".into())).to_string();
        assert!(error.contains("`fid`") && error.contains("swd, loss"), "{error}");
        let unknown = refused(&|c| c.best_metric = Some("fud".into()));
        assert!(matches!(unknown, EvaluateConfigError::BestMetric { .. }));
    }

    #[test]
    fn neighbours_tell_no_best_checkpoint() {
        let config = |metrics: &[Metric]| EvaluateConfig { metrics: metrics.to_vec(), ..EvaluateConfig::default() };
        assert_eq!(config(&[Metric::Neighbours, Metric::Prdc]).best(), Some("precision"));
        assert_eq!(config(&[Metric::Neighbours]).best(), None);
        assert_eq!(
            config(&[Metric::Neighbours]).validate(&SampleConfig::default(), gaussian(1000).formulation()),
            Ok(())
        );
        let by_neighbours =
            EvaluateConfig { best_metric: Some("neighbours".into()), ..config(&[Metric::Neighbours, Metric::Loss]) };
        let error = by_neighbours.validate(&SampleConfig::default(), gaussian(1000).formulation()).unwrap_err();
        assert!(matches!(&error, EvaluateConfigError::TellsNoBest { telling, .. } if telling == "loss"), "{error}");
    }
}
