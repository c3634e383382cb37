//! Formulations described in words. Not here: the formulations.

use denoising_diffusion::diffusion::{DiffusionConfig, FormulationConfig};
use denoising_diffusion::recipe::plain;
use toml::Table;

/// A formulation in one line: its name, and the options that differ from the default.
pub fn in_words(diffusion: &DiffusionConfig) -> String {
    let name = diffusion.formulation.name();
    let all = FormulationConfig::all();
    let default = all.iter().find(|formulation| formulation.name() == name).cloned().unwrap_or_default();
    let table = |config: &DiffusionConfig| Table::try_from(config).unwrap_or_default();
    let (own, usual) = (table(diffusion), table(&default.into()));
    let mut parts = vec![name.to_string()];
    // The options that a reader looks for first, shown even at their default.
    let first = ["timesteps", "beta_schedule", "noise_schedule", "objective", "time_distribution"];
    parts.extend(first.iter().filter_map(|key| Some(format!("{key} {}", plain(own.get(*key)?)))));
    let changed = own.iter().filter(|(key, value)| usual.get(*key) != Some(value) && !first.contains(&key.as_str()));
    parts.extend(changed.map(|(key, value)| format!("{key} {}", plain(value))));
    parts.join(", ")
}
