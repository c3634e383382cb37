//! Why a configuration does not describe a formulation.

use thiserror::Error;

/// Why a [`DiffusionConfig`](super::DiffusionConfig) is invalid.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum DiffusionConfigError {
    #[error("`timesteps` must be at least 2, got {0}")]
    Timesteps(usize),
    #[error("`{key}` belongs to `beta_schedule = \"{belongs_to}\"`, but the schedule is \"{schedule}\"")]
    OtherSchedule { key: &'static str, belongs_to: &'static str, schedule: &'static str },
    #[error("`{key}` must be {expected}, got {got}")]
    Value { key: &'static str, expected: &'static str, got: f64 },
    #[error(
        "beta of noise level {t} is {beta}, but must be above 0 and below 1 (the last may be 1): change the parameters of \
         the schedule"
    )]
    Betas { t: usize, beta: f64 },
    #[error("`{option}` cannot be used with {with}: {why}")]
    Contradiction { option: &'static str, with: String, why: &'static str },
    #[error("unknown formulation \"{name}\"; expected one of {known}")]
    UnknownFormulation { name: String, known: String },
    #[error(
        "`{key}` is not an option of `diffusion = \"{formulation}\"`{}; its options are {known}",
        of_another(owners)
    )]
    UnknownKey { key: String, formulation: &'static str, owners: Vec<&'static str>, known: String },
    #[error("`{key}` has an invalid value: {problem}")]
    Malformed { key: String, problem: String },
    #[error("`timesteps` is {expected}, but {got} betas are given")]
    NumberOfBetas { expected: usize, got: usize },
    #[error("the formulation contradicts itself: {0}")]
    Formulation(&'static str),
    #[error("a schedule can be given as betas for formulations in discrete time only, not for \"{formulation}\"")]
    BetasWithoutTable { formulation: &'static str },
}

fn of_another(owners: &[&'static str]) -> String {
    if owners.is_empty() { String::new() } else { format!(" (but of {})", owners.join(", ")) }
}

/// An error unless `ok`.
pub(super) fn check(ok: bool, key: &'static str, expected: &'static str, got: f64) -> Result<(), DiffusionConfigError> {
    if ok { Ok(()) } else { Err(DiffusionConfigError::Value { key, expected, got }) }
}
