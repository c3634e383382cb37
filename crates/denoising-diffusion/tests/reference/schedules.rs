//! `GaussianDiffusion(...)`'s registered buffers.

use denoising_diffusion::diffusion::schedule::Tables;
use denoising_diffusion::diffusion::{
    Diffusion, DiffusionConfig, GaussianConfig, Objective, ScheduleConfig, SharedConfig,
};
use serde_json::Value;

use crate::golden::{Golden, assert_close};

fn config_of(set: &Value) -> ScheduleConfig {
    let kwargs = &set["schedule_fn_kwargs"];
    let sigmoid = |key: &str| kwargs[key].as_f64();
    ScheduleConfig {
        timesteps: set["timesteps"].as_u64().unwrap() as usize,
        beta_schedule: serde_json::from_value(set["beta_schedule"].clone()).unwrap(),
        cosine_s: kwargs["s"].as_f64(),
        sigmoid_start: sigmoid("start"),
        sigmoid_end: sigmoid("end"),
        sigmoid_tau: sigmoid("tau"),
        ..Default::default()
    }
}

#[test]
fn every_table_of_every_schedule() {
    let golden = Golden::open("schedules");
    for (name, set) in golden.config["sets"].as_object().unwrap() {
        let config = config_of(set);
        let tables = Tables::new(&config);
        // The reference rounds two of the sigmoid schedule's constants to f32; we do not.
        let tolerance = if name.starts_with("sigmoid") { 1e-4 } else { 1e-6 };
        for (table, ours) in [
            ("betas", &tables.betas),
            ("alphas_cumprod", &tables.alphas_cumprod),
            ("alphas_cumprod_prev", &tables.alphas_cumprod_prev),
            ("sqrt_alphas_cumprod", &tables.sqrt_alphas_cumprod),
            ("sqrt_one_minus_alphas_cumprod", &tables.sqrt_one_minus_alphas_cumprod),
            ("log_one_minus_alphas_cumprod", &tables.log_one_minus_alphas_cumprod),
            ("sqrt_recip_alphas_cumprod", &tables.sqrt_recip_alphas_cumprod),
            ("sqrt_recipm1_alphas_cumprod", &tables.sqrt_recipm1_alphas_cumprod),
            ("posterior_variance", &tables.posterior_variance),
            ("posterior_log_variance_clipped", &tables.posterior_log_variance_clipped),
            ("posterior_mean_coef1", &tables.posterior_mean_coef1),
            ("posterior_mean_coef2", &tables.posterior_mean_coef2),
        ] {
            let ours: Vec<f32> = ours.iter().map(|&v| v as f32).collect();
            assert_close(&format!("{name}.{table}"), &ours, golden.values(&format!("{name}.{table}")), tolerance);
        }
        check_loss_weights(&golden, name, &config, tolerance);
    }
}

fn check_loss_weights(golden: &Golden, set: &str, schedule: &ScheduleConfig, tolerance: f32) {
    let objectives =
        [("pred_noise", Objective::PredNoise), ("pred_x0", Objective::PredX0), ("pred_v", Objective::PredV)];
    for (objective_name, objective) in objectives {
        for (kind, min_snr_loss_weight) in [("plain", false), ("min_snr", true)] {
            let shared = SharedConfig { min_snr_loss_weight: Some(min_snr_loss_weight), ..Default::default() };
            let config = DiffusionConfig {
                shared,
                ..GaussianConfig { schedule: schedule.clone(), objective, ..Default::default() }.into()
            };
            let diffusion = Diffusion::new(&config).unwrap();
            let weight = |t| diffusion.loss_weight(&diffusion.level(t as f64)) as f32;
            let ours: Vec<f32> = (0..schedule.timesteps).map(weight).collect();
            let name = format!("{set}.loss_weight.{objective_name}.{kind}");
            assert_close(&name, &ours, golden.values(&name), tolerance);
        }
    }
}
