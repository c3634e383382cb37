//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// How the learning rate changes after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// It stays constant.
    #[default]
    Constant,
    /// Half a cosine that would reach 0 one step after the last (Loshchilov and Hutter 2017): every step trains something.
    Cosine,
    /// `lr / sqrt(max(step / warmup, 1))` (Karras et al. 2023, "Analyzing and improving the training dynamics", eq. 67), with
    /// `warmup_steps` the step at which the decay begins.
    InverseSqrt,
}

/// The learning rate at `step` (1-based) of `steps`: linear from `lr / warmup` to `lr` over the first `warmup` steps, then following the schedule.
pub fn learning_rate(schedule: LrSchedule, lr: f64, warmup: u64, steps: u64, step: u64) -> f64 {
    if step <= warmup {
        return lr * step as f64 / warmup as f64;
    }
    match schedule {
        LrSchedule::Constant => lr,
        LrSchedule::Cosine => {
            let done = (step - 1 - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
            lr * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
        }
        LrSchedule::InverseSqrt => lr / (step as f64 / warmup.max(1) as f64).max(1.0).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_linear_and_joins_the_schedule() {
        for schedule in [LrSchedule::Constant, LrSchedule::Cosine, LrSchedule::InverseSqrt] {
            assert_eq!(learning_rate(schedule, 1.0, 10, 110, 1), 0.1);
            assert_eq!(learning_rate(schedule, 1.0, 10, 110, 10), 1.0);
            assert!((learning_rate(schedule, 1.0, 10, 110, 11) - 1.0).abs() < 0.05);
        }
    }

    #[test]
    fn every_step_of_a_cosine_trains_and_it_ends_near_zero() {
        assert_eq!(learning_rate(LrSchedule::Cosine, 1.0, 0, 1, 1), 1.0);
        let rates: Vec<f64> = (11..=110).map(|step| learning_rate(LrSchedule::Cosine, 1.0, 10, 110, step)).collect();
        assert_eq!(rates[0], 1.0);
        assert!(rates.windows(2).all(|pair| pair[1] < pair[0]));
        assert!((1e-4..3e-4).contains(&rates[99]), "{}", rates[99]);
    }

    #[test]
    fn ends_are_as_described() {
        assert_eq!(learning_rate(LrSchedule::Constant, 0.5, 0, 100, 100), 0.5);
        assert!((learning_rate(LrSchedule::Cosine, 1.0, 10, 110, 61) - 0.5).abs() < 1e-12);
        assert!((learning_rate(LrSchedule::InverseSqrt, 1.0, 25, 100, 100) - 0.5).abs() < 1e-12);
    }
}
