//! Noise levels and times that the reference lacks: spacing.json, from the papers' equations.

use std::path::PathBuf;

use denoising_diffusion::diffusion::schedule::{Tables, betas};
use denoising_diffusion::diffusion::{
    Diffusion, ElucidatedConfig, FormulationConfig, GaussianConfig, NoiseLevel, NoiseLevels, Objective,
    RectifiedFlowConfig, ScheduleConfig, TimeDistribution,
};
use serde_json::Value;

use crate::golden::assert_relative;

pub fn golden() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/spacing.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

fn number(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap()
}

fn count(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

fn cases<'a>(golden: &'a Value, key: &str) -> &'a [Value] {
    golden[key].as_array().unwrap()
}

/// Between the sigmas of an elucidated model.
fn check_sigmas(kind: NoiseLevels, case: &Value, rho: f64) {
    let [sigma_min, sigma_max] = ["sigma_min", "sigma_max"].map(|key| number(case, key));
    // Of another rho: the levels are those that were asked for, not the formulation's.
    let config = ElucidatedConfig { sigma_min, sigma_max, rho: 4.5, ..Default::default() };
    let diffusion = Diffusion::new(&FormulationConfig::Elucidated(config).into()).unwrap();
    let levels = kind.of(diffusion.formulation(), count(case, "n"), rho);
    let (last, levels) = levels.split_last().unwrap();
    assert_eq!(*last, NoiseLevel::CLEAN);
    let sigmas: Vec<f64> = levels.iter().map(|level| level.sigma / level.alpha).collect();
    assert_relative(kind.name(), &sigmas, &numbers(&case["sigmas"]), 1e-10);
}

#[test]
fn karras_and_log_snr() {
    let golden = golden();
    for case in cases(&golden, "karras") {
        check_sigmas(NoiseLevels::Karras, case, number(case, "rho"));
    }
    for case in cases(&golden, "exponential") {
        check_sigmas(NoiseLevels::LogSnr, case, 7.0);
    }
}

#[test]
fn trailing() {
    for case in cases(&golden(), "timesteps") {
        let schedule = ScheduleConfig { timesteps: count(case, "total"), ..Default::default() };
        let diffusion = Diffusion::new(&GaussianConfig { schedule, ..Default::default() }.into()).unwrap();
        let levels = NoiseLevels::Trailing.of(diffusion.formulation(), count(case, "n"), 7.0);
        let times: Vec<f64> = levels.iter().map(|level| level.time).collect();
        assert_eq!(times, [numbers(&case["trailing"]), vec![-1.0]].concat(), "{case}");
    }
}

#[test]
fn zero_terminal_snr() {
    for case in cases(&golden(), "zero_terminal_snr") {
        let beta_schedule = serde_json::from_value(case["beta_schedule"].clone()).unwrap();
        let schedule = ScheduleConfig { timesteps: count(case, "timesteps"), beta_schedule, ..Default::default() };
        if !case["original_betas"].is_null() {
            assert_relative("betas before", &betas(&schedule), &numbers(&case["original_betas"]), 1e-9);
        }
        let schedule = ScheduleConfig { zero_terminal_snr: true, ..schedule };
        let tables = Tables::new(&schedule);
        let at: Vec<usize> = serde_json::from_value(case["at"].clone()).unwrap_or((0..schedule.timesteps).collect());
        for (name, table) in [("alphas_cumprod", &tables.alphas_cumprod), ("betas", &tables.betas)] {
            let got: Vec<f64> = at.iter().map(|&t| table[t]).collect();
            assert_relative(&format!("{name} of {schedule:?}"), &got, &numbers(&case[name]), 1e-9);
        }
        let config = GaussianConfig { schedule, objective: Objective::PredV, ..Default::default() };
        let [noisiest, _] = Diffusion::new(&config.into()).unwrap().formulation().range();
        assert_eq!((noisiest.alpha, noisiest.sigma), (0.0, 1.0));
    }
}

fn rectified_flow(config: RectifiedFlowConfig) -> Diffusion {
    Diffusion::new(&FormulationConfig::RectifiedFlow(config).into()).unwrap()
}

/// t is a function of a number drawn evenly; how densely it lies follows from that function's slope.
#[test]
fn times_of_rectified_flow() {
    let golden = golden();
    let u = numbers(&golden["u"]);
    for case in cases(&golden, "time_distributions") {
        let mut config = RectifiedFlowConfig::default();
        match case["kind"].as_str().unwrap() {
            "logit_normal" => {
                config.time_distribution = TimeDistribution::LogitNormal;
                (config.logit_mean, config.logit_std) = (case["m"].as_f64(), case["s"].as_f64());
            }
            "mode" => {
                config.time_distribution = TimeDistribution::Mode;
                config.mode_scale = case["s"].as_f64();
            }
            "cos_map" => config.time_distribution = TimeDistribution::Cosmap,
            other => panic!("{other}"),
        }
        let diffusion = rectified_flow(config);
        // The paper's map of this one falls with u: ours starts at the other end.
        let falls = config.time_distribution == TimeDistribution::Mode;
        let share = |u: f64| if falls { 1.0 - u } else { u };
        let time = |u: f64| diffusion.formulation().time(share(u));
        let times: Vec<f64> = u.iter().map(|&u| time(u)).collect();
        assert_relative(&format!("{config:?}"), &times, &numbers(&case["t"]), 1e-9);

        const H: f64 = 1e-6;
        let densities: Vec<f64> = u.iter().map(|&u| 2.0 * H / (time(u + H) - time(u - H)).abs()).collect();
        assert_relative(&format!("density of {config:?}"), &densities, &numbers(&case["density"]), 1e-6);
    }
    let uniform = RectifiedFlowConfig { time_distribution: TimeDistribution::Uniform, ..Default::default() };
    assert_eq!(u.iter().map(|&u| rectified_flow(uniform).formulation().time(u)).collect::<Vec<_>>(), u);
}

#[test]
fn shift_of_rectified_flow() {
    for case in cases(&golden(), "shift") {
        let config = RectifiedFlowConfig { flow_shift: number(case, "s"), ..Default::default() };
        let diffusion = rectified_flow(config);
        let levels: Vec<NoiseLevel> = numbers(&case["t"]).into_iter().map(|t| diffusion.level(t)).collect();
        let sigmas: Vec<f64> = levels.iter().map(|level| level.sigma).collect();
        assert_relative(&format!("{config:?}"), &sigmas, &numbers(&case["shifted"]), 1e-12);
        for level in levels {
            assert_eq!((level.alpha, level.time), (1.0 - level.sigma, 1000.0 * level.sigma));
        }
    }
}
