//! Flags that have no effect in combination with the others: these cause a warning, since the rest of the command line still makes sense. Not here:
//! options that contradict each other, which are refused.

use denoising_diffusion::diffusion::{GuidanceConfig, NoiseLevels, Threshold};
use denoising_diffusion::sampler::SampleConfig;

use crate::output::note;
use crate::recipe_flags::RecipeFlags;

/// Warns about given flags that change nothing.
pub fn tell_ignored(said: &RecipeFlags, sample: &SampleConfig, guidance: &GuidanceConfig) {
    for (flag, _) in said.iter() {
        if let Some(needs) = needs(flag.key, sample, guidance) {
            note(format!("warning: {} has no effect without {needs}", flag.name()));
        }
    }
}

/// If a setting has no effect: what it would need.
fn needs(key: &str, sample: &SampleConfig, guidance: &GuidanceConfig) -> Option<&'static str> {
    let (ignored, needs) = match key {
        "rescale_phi" | "keep_parallel" | "guidance_norm_threshold" | "guidance_interval" => {
            (!guides(guidance), "--guidance")
        }
        "threshold_quantile" => (guidance.threshold != Threshold::Dynamic, "--threshold dynamic"),
        "karras_rho" => (sample.noise_levels != Some(NoiseLevels::Karras), "--noise-levels karras"),
        "s_tmin" | "s_tmax" | "s_noise" => (sample.s_churn == 0.0, "--s-churn"),
        _ => (false, ""),
    };
    ignored.then_some(needs)
}

/// Whether two predictions are combined. With CFG++ they are, even at a scale of 1.
pub fn guides(guidance: &GuidanceConfig) -> bool {
    guidance.guidance != 1.0 || guidance.cfg_plus_plus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_without_effect_name_what_they_need() {
        let (mut sample, mut guidance) = (SampleConfig::default(), GuidanceConfig::default());
        let keys = ["rescale_phi", "guidance_interval", "threshold_quantile", "karras_rho", "s_noise", "eta"];
        let all = |sample: &SampleConfig, guidance: &GuidanceConfig| keys.map(|key| needs(key, sample, guidance));
        let missing = ["--guidance", "--guidance", "--threshold dynamic", "--noise-levels karras", "--s-churn"];
        assert_eq!(all(&sample, &guidance)[..5], missing.map(Some));
        assert_eq!(all(&sample, &guidance)[5], None);
        (guidance.guidance, guidance.threshold) = (2.0, Threshold::Dynamic);
        (sample.noise_levels, sample.s_churn) = (Some(NoiseLevels::Karras), 1.0);
        assert_eq!(all(&sample, &guidance), [None; 6]);
    }
}
