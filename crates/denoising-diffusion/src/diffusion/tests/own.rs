//! Formulations of one's own that would train silently wrong are refused.

use crate::diffusion::schedule::Tables;
use crate::diffusion::{
    Diffusion, DiffusionConfigError, Formulation, GaussianConfig, GaussianDiffusion, LearnedVariance, NoiseLevel,
    ObjectiveWeights, Output, Prediction, SharedConfig,
};
use crate::models::{LearnedScheduleOptions, ScheduleWeights};

/// Gaussian diffusion that says other things of itself.
#[derive(Clone, Debug)]
struct Own {
    inner: GaussianDiffusion,
    output: Output,
    prediction: Prediction,
    has_tables: bool,
    learns_schedule: bool,
    takes_schedule: bool,
    weight: f64,
    time_is_log_snr: bool,
}

impl Own {
    fn new(output: Output, prediction: Prediction) -> Self {
        let inner = GaussianDiffusion::new(&GaussianConfig::default());
        Self {
            inner,
            output,
            prediction,
            has_tables: true,
            learns_schedule: false,
            takes_schedule: true,
            weight: 1.0,
            time_is_log_snr: true,
        }
    }
}

impl Formulation for Own {
    fn time(&self, u: f64) -> f64 {
        self.inner.time(u)
    }

    fn level(&self, time: f64) -> NoiseLevel {
        self.inner.level(time)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        let level = self.inner.level_at_log_snr(log_snr);
        if self.time_is_log_snr { NoiseLevel { time: log_snr, ..level } } else { level }
    }

    fn prediction(&self) -> Prediction {
        self.prediction
    }

    fn loss_weight(&self, level: &NoiseLevel) -> f64 {
        let snr = (level.alpha / level.sigma).powi(2);
        if matches!(self.prediction, Prediction::XStart) { self.weight * snr } else { self.weight }
    }

    fn levels(&self, steps: usize) -> Vec<NoiseLevel> {
        self.inner.levels(steps)
    }

    fn range(&self) -> [NoiseLevel; 2] {
        self.inner.range()
    }

    fn output(&self) -> Output {
        self.output
    }

    fn default_steps(&self) -> usize {
        50
    }

    fn tables(&self) -> Option<&Tables> {
        self.inner.tables().filter(|_| self.has_tables)
    }

    fn learned_schedule(&self) -> Option<LearnedScheduleOptions> {
        let options = LearnedScheduleOptions { hidden_dim: 4, frac_gradient: 1.0, log_snr: [9.0, -9.0] };
        self.learns_schedule.then_some(options)
    }

    fn with_schedule(&self, _: ScheduleWeights) -> Option<Box<dyn Formulation>> {
        self.takes_schedule.then(|| Box::new(self.clone()) as Box<dyn Formulation>)
    }
}

fn refusal(own: Own) -> Option<String> {
    match Diffusion::of(own, SharedConfig::default()) {
        Ok(_) => None,
        Err(error @ DiffusionConfigError::Formulation(_)) => Some(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_variance_needs_the_tables_of_its_bound() {
    let own = Own::new(Output::WithVariance(LearnedVariance::default()), Prediction::Noise);
    assert_eq!(refusal(own.clone()), None);
    let said = refusal(Own { has_tables: false, ..own }).unwrap();
    assert!(said.contains("no tables for the bound"), "{said}");
}

#[test]
fn weighted_outputs_begin_with_noise() {
    let weighted = Output::Weighted(ObjectiveWeights::default());
    assert_eq!(refusal(Own::new(weighted, Prediction::Noise)), None);
    let said = refusal(Own::new(weighted, Prediction::V)).unwrap();
    assert!(said.contains("weighted output"), "{said}");
}

#[test]
fn schedules_are_learned_for_what_the_loss_reads() {
    let learned = |output, prediction| Own { learns_schedule: true, ..Own::new(output, prediction) };
    for prediction in [Prediction::Noise, Prediction::XStart, Prediction::V] {
        assert_eq!(refusal(learned(Output::Prediction, prediction)), None, "{prediction:?}");
    }
    for prediction in [Prediction::Flow, Prediction::Elucidated { sigma_data: 0.5 }] {
        let said = refusal(learned(Output::Prediction, prediction)).unwrap();
        assert!(said.contains("neither noise nor x_start nor v"), "{said}");
    }
    let said = refusal(learned(Output::Weighted(ObjectiveWeights::default()), Prediction::Noise)).unwrap();
    assert!(said.contains("more than one part"), "{said}");
    let forgets = Own { takes_schedule: false, ..learned(Output::Prediction, Prediction::V) };
    let said = refusal(forgets).unwrap();
    assert!(said.contains("`with_schedule`"), "{said}");
    for prediction in [Prediction::Noise, Prediction::XStart, Prediction::V] {
        let own = || learned(Output::Prediction, prediction);
        let said = refusal(Own { weight: 2.0, ..own() }).unwrap();
        assert!(said.contains("loss weight"), "{said}");
        let said = refusal(Own { time_is_log_snr: false, ..own() }).unwrap();
        assert!(said.contains("whose time is the log-SNR"), "{said}");
    }
    let free = Own { weight: 2.0, time_is_log_snr: false, ..Own::new(Output::Prediction, Prediction::V) };
    assert_eq!(refusal(free), None, "a schedule that is not learned");
}
