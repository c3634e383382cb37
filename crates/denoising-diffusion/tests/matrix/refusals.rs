//! Combinations without meaning, refused with their reason before anything is computed.

use denoising_diffusion::diffusion::{Diffusion, DiffusionConfigError, FormulationConfig, NoiseLevels};
use denoising_diffusion::sampler::{PosteriorVariance, SampleConfig, SamplerKind};

use crate::variants::read;

/// Why options are refused, by whoever reads or by whoever validates them.
fn refusal(options: &str) -> String {
    match read(options) {
        Err(error) => error,
        Ok(config) => config.validate().expect_err(options).to_string(),
    }
}

#[test]
fn of_formulations() {
    for (options, reason) in [
        ("diffusion = 'learned_variance'; zero_terminal_snr = true", "says nothing about the data"),
        ("diffusion = 'weighted_objective'; zero_terminal_snr = true", "says nothing about the data"),
        (
            "diffusion = 'weighted_objective'; objective = 'pred_v'",
            "not an option of `diffusion = \"weighted_objective\"`",
        ),
        ("diffusion = 'weighted_objective'; pred_noise_loss_weight = -0.1", "at least 0"),
        ("diffusion = 'learned_variance'; vb_loss_weight = -1", "at least 0"),
        ("diffusion = 'learned_variance'; variance_reading = 'both'", "range"),
        ("timesteps = 1", "at least 2"),
        ("cosine_s = 0.1", "the schedule is \"sigmoid\""),
        ("sigmoid_start = 3; sigmoid_end = -3", "below `sigmoid_end`"),
        ("diffusion = 'continuous_time'; timesteps = 100", "but of gaussian, learned_variance, weighted_objective"),
        ("diffusion = 'continuous_time'; zero_terminal_snr = true", "but of gaussian"),
        (
            "diffusion = 'continuous_time'; noise_schedule = 'cosine'; learned_schedule_frac_gradient = 0.5",
            "belongs to `noise_schedule = \"learned\"`",
        ),
        (
            "diffusion = 'continuous_time'; noise_schedule = 'learned'; learned_schedule_frac_gradient = 1.5",
            "in [0, 1]",
        ),
        ("diffusion = 'continuous_time'; noise_schedule = 'learned'; learned_schedule_hidden_dim = 0", "at least 1"),
        ("diffusion = 'simple'; noise_d = 32; noise_d_low = 16; noise_d_high = 64", "one shifts, two interpolate"),
        ("diffusion = 'simple'; noise_d = 32; noise_d_low = 16", "one shifts, two interpolate"),
        ("diffusion = 'simple'; noise_d_high = 64", "`noise_d_low` unset"),
        ("diffusion = 'simple'; image_d = 0", "above 0"),
        ("diffusion = 'simple'; noise_schedule = 'cosine'", "but of continuous_time"),
        ("diffusion = 'elucidated'; objective = 'pred_v'", "not an option of `diffusion = \"elucidated\"`"),
        ("diffusion = 'elucidated'; sigma_data = 0", "above 0"),
        ("diffusion = 'elucidated'; sigma_min = 0", "above 0"),
        ("diffusion = 'elucidated'; p_std = 0", "above 0"),
        ("diffusion = 'elucidated'; rho = -7", "above 0"),
        ("diffusion = 'rectified_flow'; time_distribution = 'uniform'; logit_std = 1.0", "another distribution"),
        ("diffusion = 'rectified_flow'; time_distribution = 'mode'; mode_scale = 2", "in [-1, 1.75]"),
        ("diffusion = 'rectified_flow'; flow_shift = 0", "above 0"),
        ("diffusion = 'rectified_flow'; logit_std = 0", "above 0"),
        ("min_snr_gamma = 0", "above 0"),
        ("offset_noise_strength = -1", "at least 0"),
        ("diffusion = 'elucidated'; immiscible = true; xm_candidates = 3", "by its distance"),
        ("xm_candidates = -1", "xm_candidates"),
    ] {
        let refusal = refusal(options);
        assert!(refusal.contains(reason), "{options}: {refusal}");
    }
}

#[test]
fn of_schedules_given_as_numbers() {
    for formulation in FormulationConfig::all() {
        let (name, discrete) = (formulation.name(), formulation.schedule().is_some());
        let config = formulation.into();
        let given = |n: usize| Diffusion::with_betas(&config, Some(vec![0.01; n]));
        match given(7) {
            Err(error @ DiffusionConfigError::NumberOfBetas { .. }) if discrete => {
                assert_eq!(error.to_string(), "`timesteps` is 1000, but 7 betas are given");
            }
            Err(DiffusionConfigError::BetasWithoutTable { formulation }) if !discrete => assert_eq!(formulation, name),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(given(1000).is_ok(), discrete, "{name}");
    }
}

#[test]
fn of_solvers() {
    let gaussian = read("timesteps = 12").unwrap();
    let elucidated = read("diffusion = 'elucidated'").unwrap();
    let learned = read("diffusion = 'learned_variance'; timesteps = 12").unwrap();
    let default = SampleConfig::default;
    let of = |sampler| SampleConfig { sampler, ..default() };
    let variance = |sampler| SampleConfig { posterior_variance: Some(PosteriorVariance::Learned), ..of(sampler) };
    for (config, sample, reason) in [
        (
            &gaussian,
            SampleConfig { sampling_timesteps: Some(13), ..default() },
            "between 1 and `timesteps` (12), got 13",
        ),
        (&elucidated, SampleConfig { sampling_timesteps: Some(0), ..default() }, "at least 1"),
        (
            &elucidated,
            SampleConfig { sampling_timesteps: Some(1_000_001), ..default() },
            "at most 1000000, got 1000001",
        ),
        (
            &gaussian,
            SampleConfig { sampling_timesteps: Some(1_000_001), noise_levels: Some(NoiseLevels::Karras), ..default() },
            "at most 1000000, got 1000001",
        ),
        (&gaussian, variance(SamplerKind::Ddpm), "needs `diffusion = \"learned_variance\"`"),
        (&learned, variance(SamplerKind::Ddim), "belongs to ddpm"),
        (&elucidated, SampleConfig { eta: Some(0.5), ..of(SamplerKind::Heun) }, "belongs to"),
        (&elucidated, SampleConfig { s_churn: 40.0, ..of(SamplerKind::Dpmpp2m) }, "belongs to"),
        (&elucidated, SampleConfig { s_tmax: Some(0.1), s_tmin: 0.2, ..of(SamplerKind::Heun) }, "above `s_tmin`"),
        (&elucidated, SampleConfig { karras_rho: 0.0, ..default() }, "above 0"),
    ] {
        let diffusion = Diffusion::new(config).unwrap();
        let error = sample.validate(diffusion.formulation()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
