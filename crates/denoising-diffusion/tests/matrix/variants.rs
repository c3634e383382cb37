//! The configurations: each formulation alone, with each of its own options that changes the mathematics, and with each option that all
//! formulations share. Written as a user writes them, so that reading flat keys is part of every test.

use denoising_diffusion::diffusion::{DiffusionConfig, FormulationConfig};

/// A configuration that makes sense, and how it was written.
#[derive(Clone, Debug)]
pub struct Variant {
    pub name: String,
    pub config: DiffusionConfig,
}

/// Options of one formulation.
const OWN: [(&str, &str); 31] = [
    ("gaussian", "objective = 'pred_noise'"),
    ("gaussian", "objective = 'pred_x0'"),
    ("gaussian", "objective = 'pred_v'"),
    ("gaussian", "beta_schedule = 'linear'"),
    ("gaussian", "beta_schedule = 'cosine'"),
    ("gaussian", "zero_terminal_snr = true"),
    ("gaussian", "zero_terminal_snr = true; objective = 'pred_x0'"),
    ("learned_variance", "variance_reading = 'direct'"),
    ("learned_variance", "objective = 'pred_x0'"),
    ("learned_variance", "objective = 'pred_v'; zero_terminal_snr = true"),
    ("weighted_objective", "beta_schedule = 'linear'"),
    ("weighted_objective", "pred_noise_loss_weight = 0.5; pred_x_start_loss_weight = 0.0"),
    ("continuous_time", "noise_schedule = 'cosine'"),
    ("continuous_time", "noise_schedule = 'cosine'; objective = 'pred_v'"),
    ("continuous_time", "noise_schedule = 'learned'; learned_schedule_hidden_dim = 16"),
    ("continuous_time", "noise_schedule = 'learned'; learned_schedule_frac_gradient = 0.3; objective = 'pred_v'"),
    ("continuous_time", "noise_schedule = 'learned'; learned_schedule_hidden_dim = 16; objective = 'pred_x0'"),
    ("continuous_time", "objective = 'pred_v'"),
    ("continuous_time", "objective = 'pred_x0'"),
    ("simple", "noise_d = 32; image_d = 64"),
    ("simple", "noise_d_low = 32; noise_d_high = 64; image_d = 128"),
    ("simple", "objective = 'pred_noise'"),
    ("simple", "objective = 'pred_x0'"),
    ("elucidated", "sigma_data = 0.3"),
    ("elucidated", "sigma_min = 0.01; sigma_max = 20; rho = 3; p_mean = -0.4; p_std = 1.0"),
    ("rectified_flow", "time_distribution = 'uniform'"),
    ("rectified_flow", "logit_mean = -0.5; logit_std = 0.8"),
    ("rectified_flow", "time_distribution = 'mode'"),
    ("rectified_flow", "time_distribution = 'mode'; mode_scale = -0.5"),
    ("rectified_flow", "time_distribution = 'cosmap'"),
    ("rectified_flow", "flow_shift = 3.0"),
];

/// Options that all formulations share.
const SHARED: [&str; 6] = [
    "auto_normalize = false",
    "immiscible = true",
    "min_snr_loss_weight = false",
    "min_snr_loss_weight = true",
    "offset_noise_strength = 0.1",
    "xm_candidates = 3",
];

/// What of all this has no meaning.
const REFUSED: [(&str, &str); 2] =
    [("learned_variance", "offset_noise_strength = 0.1"), ("weighted_objective", "min_snr_loss_weight = true")];

/// A configuration from options, divided by semicolons.
pub fn read(options: &str) -> Result<DiffusionConfig, String> {
    toml::from_str(&options.replace(';', "\n")).map_err(|error: toml::de::Error| error.to_string())
}

/// Options of a formulation, of `timesteps` noise levels if its time is discrete.
fn variant(formulation: &FormulationConfig, options: &str, timesteps: usize) -> Variant {
    let name = formulation.name();
    let timesteps = formulation.schedule().map_or(String::new(), |_| format!("timesteps = {timesteps};"));
    let config = read(&format!("diffusion = '{name}'; {timesteps} {options}")).unwrap();
    Variant { name: format!("{name}: {options}"), config }
}

/// Every formulation with its defaults, then with its own options.
pub fn own(timesteps: usize) -> Vec<Variant> {
    let all = FormulationConfig::all();
    let of = |formulation: &FormulationConfig| {
        let options = OWN.iter().filter(|(owner, _)| *owner == formulation.name()).map(|(_, options)| *options);
        let variants = std::iter::once("").chain(options).map(|options| variant(formulation, options, timesteps));
        variants.collect::<Vec<_>>()
    };
    let variants: Vec<Variant> = all.iter().flat_map(of).collect();
    assert_eq!(variants.len(), all.len() + OWN.len(), "an option of a formulation that does not exist");
    variants
}

/// Every formulation with each of the shared options, where that makes sense.
pub fn shared(timesteps: usize) -> Vec<Variant> {
    let all = FormulationConfig::all();
    let mut variants = Vec::new();
    for formulation in &all {
        for options in SHARED {
            let variant = variant(formulation, options, timesteps);
            let refused = REFUSED.contains(&(formulation.name(), options));
            assert_eq!(variant.config.validate().is_err(), refused, "{}", variant.name);
            if !refused {
                variants.push(variant);
            }
        }
    }
    variants
}
