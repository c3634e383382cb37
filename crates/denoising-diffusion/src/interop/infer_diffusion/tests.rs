//! How the reference's tables are interpreted.

use std::path::Path;

use super::super::{read_safetensors, reference_layout};
use super::*;
use crate::diffusion::schedule;
use crate::diffusion::{BetaSchedule, Diffusion, Objective, SharedConfig};
use crate::models::UnetConfig;

fn inferred(tables: &StateDict) -> Result<Inferred, InteropError> {
    let config = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
    ReferenceWeights { state: unet(&config), tables: tables.clone(), ..ReferenceWeights::default() }.infer()
}

fn unet(config: &UnetConfig) -> StateDict {
    let zeros = |shape: &[usize]| HostTensor::new(shape, vec![0.0; shape.iter().product()]).unwrap();
    let layout = reference_layout(config).unwrap();
    layout.into_iter().map(|p| (p.reference, zeros(&p.reference_shape))).collect()
}

fn tables(betas: &[f64], weights: &[f64]) -> StateDict {
    let table = |values: &[f64]| HostTensor::new([values.len()], values.iter().map(|&x| x as f32).collect()).unwrap();
    [("betas".to_string(), table(betas)), ("loss_weight".to_string(), table(weights))].into_iter().collect()
}

fn tables_of(config: &DiffusionConfig) -> StateDict {
    tables_from(&Diffusion::new(config).unwrap())
}

fn tables_from(diffusion: &Diffusion) -> StateDict {
    let computed = diffusion.tables().unwrap();
    let levels = (0..computed.timesteps()).map(|t| diffusion.level(t as f64));
    tables(&computed.betas, &levels.map(|level| diffusion.loss_weight(&level)).collect::<Vec<_>>())
}

fn gaussian(config: &DiffusionConfig) -> &GaussianConfig {
    let FormulationConfig::Gaussian(config) = &config.formulation else { panic!("{config:?}") };
    config
}

/// Tables computed by the reference, for its three schedules with and without parameters, three objectives, with and without
/// min-SNR weighting (gamma 5).
#[test]
fn the_references_tables_are_recognised() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/schedules.safetensors");
    let (golden, _) = read_safetensors(&path).unwrap();
    for (set, expected) in [
        ("linear.t1000", (1000, BetaSchedule::Linear, None, None, None)),
        ("linear.t50", (50, BetaSchedule::Linear, None, None, None)),
        ("cosine.t1000", (1000, BetaSchedule::Cosine, None, None, None)),
        ("cosine_s.t50", (50, BetaSchedule::Cosine, Some(0.02), None, None)),
        ("sigmoid.t1000", (1000, BetaSchedule::Sigmoid, None, None, None)),
        ("sigmoid.t50", (50, BetaSchedule::Sigmoid, None, None, None)),
        // start -2, end 4, tau 0.7: the same as these at tau 1.
        ("sigmoid_kwargs.t50", (50, BetaSchedule::Sigmoid, None, Some(-2.857143), Some(5.714286))),
    ] {
        for objective in [Objective::PredNoise, Objective::PredX0, Objective::PredV] {
            for weighting in ["plain", "min_snr"] {
                let key = format!("{set}.loss_weight.{}.{weighting}", objective.name());
                let mut tables = StateDict::new();
                tables.insert("betas", golden.get(&format!("{set}.betas")).unwrap().clone());
                tables.insert("loss_weight", golden.get(&key).unwrap().clone());
                let found = inferred(&tables).unwrap();
                assert_eq!(found.betas, None, "{key}: {:?}", found.notes);
                let config = found.diffusion.unwrap();
                let GaussianConfig { schedule, objective: found_objective, .. } = gaussian(&config);
                let found_schedule = (
                    schedule.timesteps,
                    schedule.beta_schedule,
                    schedule.cosine_s,
                    schedule.sigmoid_start,
                    schedule.sigmoid_end,
                );
                assert_eq!(found_schedule, expected, "{key}");
                assert_eq!((schedule.sigmoid_tau, schedule.zero_terminal_snr), (None, false), "{key}");
                assert_eq!(*found_objective, objective, "{key}");
                let SharedConfig { min_snr_loss_weight, min_snr_gamma, .. } = config.shared;
                assert_eq!((min_snr_loss_weight, min_snr_gamma), (Some(weighting == "min_snr"), 5.0), "{key}");
            }
        }
    }
}

/// The state dict of a class that was converted to half precision with its network.
#[test]
fn tables_in_half_precision_are_recognised() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/schedules.safetensors");
    let (golden, _) = read_safetensors(&path).unwrap();
    type Round = fn(f32) -> f32;
    let halves: [(&str, Round); 2] =
        [("f16", |x| half::f16::from_f32(x).to_f32()), ("bf16", |x| half::bf16::from_f32(x).to_f32())];
    for set in ["linear.t1000", "linear.t50", "cosine.t1000", "cosine_s.t50", "sigmoid.t1000", "sigmoid.t50"] {
        for objective in [Objective::PredNoise, Objective::PredX0, Objective::PredV] {
            for (name, rounded) in halves {
                for gamma in [None, Some(5.0)] {
                    let weighting = if gamma.is_some() { "min_snr" } else { "plain" };
                    let table = |key: String| {
                        let HostTensor { shape, values } = golden.get(&key).unwrap().clone();
                        HostTensor::new(shape, values.into_iter().map(rounded).collect()).unwrap()
                    };
                    let mut tables = StateDict::new();
                    let key = format!("{set}.loss_weight.{}.{weighting}", objective.name());
                    tables.insert("betas", table(format!("{set}.betas")));
                    tables.insert("loss_weight", table(key.clone()));
                    let found = inferred(&tables).unwrap();
                    let config = found.diffusion.unwrap();
                    let told = (gaussian(&config).objective, config.min_snr());
                    assert_eq!(told, (objective, gamma), "{name} {key}: {:?}", found.notes);
                    assert!(!found.assumed.contains(&"objective") && found.betas.is_none(), "{name} {key}");
                    let GaussianConfig { schedule, .. } = gaussian(&config);
                    assert!(set.starts_with(schedule.beta_schedule.name()), "{name} {key}");
                    let exact = golden.get(&format!("{set}.betas")).unwrap();
                    let ours = schedule::betas(schedule);
                    assert!(ours.iter().zip(&exact.values).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5), "{key}");
                }
            }
        }
    }
}

/// Where no name gives rounded betas, neither is the SNR known exactly.
#[test]
fn the_objective_of_an_own_schedule_in_half_precision_is_recognised() {
    let betas: Vec<f64> = (0..40).map(|t| 0.01 + 0.002 * f64::from(t * t % 17)).collect();
    let schedule = ScheduleConfig { timesteps: 40, ..ScheduleConfig::default() };
    for objective in [Objective::PredNoise, Objective::PredX0, Objective::PredV] {
        let config = GaussianConfig { schedule: schedule.clone(), objective, ..GaussianConfig::default() }.into();
        let mut whole = tables_from(&Diffusion::with_betas(&config, Some(betas.clone())).unwrap());
        for name in ["betas", "loss_weight"] {
            let HostTensor { shape, values } = whole.remove(name).unwrap();
            let values = values.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect();
            whole.insert(name, HostTensor::new(shape, values).unwrap());
        }
        let found = inferred(&whole).unwrap();
        assert_eq!(gaussian(&found.diffusion.unwrap()).objective, objective, "{:?}", found.notes);
        assert!(found.betas.is_some() && !found.assumed.contains(&"objective"));
    }
}

/// The betas of the reference: its two constants are rounded to f32, which for small tau makes other levels of them.
fn sigmoid_betas(timesteps: u32, start: f64, end: f64, tau: f64) -> Vec<f64> {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let in_f32 = |x: f64| f64::from(sigmoid(f64::from(x as f32)) as f32);
    let (v_start, v_end) = (in_f32(start / tau), in_f32(end / tau));
    let bar = |t: u32| {
        let u = f64::from(t) / f64::from(timesteps);
        (v_end - sigmoid((u * (end - start) + start) / tau)) / (v_end - v_start)
    };
    (0..timesteps).map(|t| (1.0 - bar(t + 1) / bar(t)).clamp(0.0, 0.999)).collect()
}

#[test]
fn a_schedule_that_rounding_makes_another_one_is_kept() {
    for (tau, is_kept) in [(0.5, true), (0.3, true), (0.7, false)] {
        let betas = sigmoid_betas(1000, 0.0, 3.0, tau);
        let found = inferred(&tables(&betas, &[1.0; 1000])).unwrap();
        assert_eq!(found.betas.is_some(), is_kept, "{tau}: {:?}", found.notes);
        let used = found.betas.unwrap_or_else(|| schedule::betas(&gaussian(&found.diffusion.unwrap()).schedule));
        let last = |betas: &[f64]| *schedule::cumulative(betas).last().unwrap();
        assert!((last(&used) / last(&betas) - 1.0).abs() < 1e-3, "{tau}");
    }
}

#[test]
fn a_level_that_is_no_noisier_than_the_one_before_is_named() {
    let mut betas = sigmoid_betas(1000, 0.0, 3.0, 0.5);
    betas[900] = 0.0;
    let error = inferred(&tables(&betas, &[1.0; 1000])).unwrap_err();
    assert!(matches!(error, InteropError::Level { t: 900, .. }), "{error}");
    assert!(error.to_string().contains("level 900 of the stored noise schedule"), "{error}");
}

#[test]
fn gamma_and_parameters_are_fitted() {
    for gamma in [0.5, 5.0, 7.25] {
        let schedule = ScheduleConfig {
            timesteps: 200,
            beta_schedule: BetaSchedule::Sigmoid,
            sigmoid_start: Some(-4.5),
            sigmoid_end: Some(2.0),
            ..ScheduleConfig::default()
        };
        let formulation = GaussianConfig { schedule, objective: Objective::PredX0, ..Default::default() }.into();
        let shared = SharedConfig { min_snr_loss_weight: Some(true), min_snr_gamma: gamma, ..SharedConfig::default() };
        let config = DiffusionConfig { shared, ..formulation };
        assert_eq!(inferred(&tables_of(&config)).unwrap().diffusion.unwrap(), config);
    }
}

#[test]
fn close_parameters_are_told_apart() {
    let schedule =
        ScheduleConfig { beta_schedule: BetaSchedule::Cosine, cosine_s: Some(0.0081), ..ScheduleConfig::default() };
    let config = GaussianConfig { schedule, ..GaussianConfig::default() }.into();
    let found = inferred(&tables_of(&config)).unwrap().diffusion.unwrap();
    assert_eq!(gaussian(&found).schedule.cosine_s, Some(0.0081));
}

#[test]
fn another_schedule_is_kept_as_it_is() {
    let betas: Vec<f64> = (0..40).map(|t| 0.01 + 0.002 * f64::from(t * t % 17)).collect();
    let schedule = ScheduleConfig { timesteps: 40, ..ScheduleConfig::default() };
    let config = GaussianConfig { schedule, ..GaussianConfig::default() }.into();
    let found = inferred(&tables_from(&Diffusion::with_betas(&config, Some(betas.clone())).unwrap())).unwrap();
    let kept = found.betas.unwrap();
    assert!(kept.iter().zip(&betas).all(|(a, b)| (a - b).abs() < 1e-8) && kept.len() == 40);
    assert_eq!(gaussian(&found.diffusion.unwrap()).objective, Objective::PredV);
    assert!(!found.assumed.contains(&"objective"));
}

#[test]
fn few_steps_of_the_linear_schedule_pass_one() {
    // The reference's betas at T = 10: 0.01 to 2, in equal steps.
    let betas: Vec<f64> = (0..10).map(|t| 0.01 + 1.99 * f64::from(t) / 9.0).collect();
    let found = inferred(&tables(&betas, &[1.0; 10])).unwrap();
    assert_eq!(gaussian(&found.diffusion.unwrap()).schedule.beta_schedule, BetaSchedule::Linear);
    assert_eq!(found.betas, None);
}

#[test]
fn a_strange_weight_leaves_the_objective_open() {
    let schedule = ScheduleConfig { timesteps: 30, ..ScheduleConfig::default() };
    let found = inferred(&tables(&schedule::betas(&schedule), &[0.3; 30])).unwrap();
    assert!(found.assumed.contains(&"objective"));
    let mut without = tables_of(&GaussianConfig { schedule, ..GaussianConfig::default() }.into());
    without.remove("loss_weight");
    let found = inferred(&without).unwrap();
    assert!(found.assumed.contains(&"objective"));
    assert!(found.notes.iter().any(|note| note.contains("there is no table `loss_weight`")), "{:?}", found.notes);
}

/// Two and three weights of v look like clipped ones of other objectives.
#[test]
fn few_weights_are_read_as_unclipped_ones_first() {
    for (timesteps, beta_schedule, is_assumed) in
        [(2, BetaSchedule::Cosine, true), (3, BetaSchedule::Linear, false), (3, BetaSchedule::Sigmoid, false)]
    {
        for objective in [Objective::PredNoise, Objective::PredX0, Objective::PredV] {
            let schedule = ScheduleConfig { timesteps, beta_schedule, ..ScheduleConfig::default() };
            let found =
                inferred(&tables_of(&GaussianConfig { schedule, objective, ..Default::default() }.into())).unwrap();
            let config = found.diffusion.as_ref().unwrap();
            assert_eq!((gaussian(config).objective, config.min_snr()), (objective, None), "{timesteps}");
            assert_eq!(found.assumed.contains(&"objective"), is_assumed, "{:?}", found.notes);
        }
    }
}

/// The reference's betas at T = 3 exceed 1, so only the first of its weights is meaningful.
#[test]
fn one_weight_leaves_the_objective_open() {
    let betas = [1.0 / 30.0, 3.35, 20.0 / 3.0];
    let found = inferred(&tables(&betas, &[29.0 / 30.0, 0.0, 0.0])).unwrap();
    let config = found.diffusion.unwrap();
    assert_eq!((gaussian(&config).objective, config.min_snr()), (Objective::PredV, None));
    assert!(found.assumed.contains(&"objective"));
    assert!(found.notes.iter().any(|note| note.contains("its one telling weight fits several")), "{:?}", found.notes);
}

#[test]
fn what_is_no_schedule_is_refused() {
    for betas in [vec![0.1, f64::NAN], vec![-0.1, 0.1], vec![0.1], vec![]] {
        let weights = vec![1.0; betas.len()];
        assert!(inferred(&tables(&betas, &weights)).is_err(), "{betas:?}");
    }
    for betas in [vec![0.0; 8], vec![1.0; 8], vec![f64::INFINITY; 8], vec![1e30; 3]] {
        // Absurd, but not for this module to judge; it only has to terminate.
        let _ = inferred(&tables(&betas, &[1.0; 8]));
    }
}

/// A U-Net of one channel with `out_dim` output channels, with or without a Fourier time embedding, saved with the tables of `weights`.
fn inferred_of(out_dim: usize, fourier: bool, weights: ReferenceWeights) -> Inferred {
    let config = UnetConfig {
        dim: 4,
        dim_mults: vec![1],
        channels: 1,
        out_dim: Some(out_dim),
        learned_sinusoidal_cond: fourier,
        ..UnetConfig::default()
    };
    ReferenceWeights { state: unet(&config), ..weights }.infer().unwrap()
}

/// The class trains on noise, whatever `objective` it is given; the package's default, pred_v, leaves its trace in `loss_weight` only.
#[test]
fn channels_tell_the_classes_with_tables() {
    let schedule = ScheduleConfig { timesteps: 30, ..ScheduleConfig::default() };
    let of_v = GaussianConfig { schedule: schedule.clone(), objective: Objective::PredV, ..Default::default() }.into();
    let weights = ReferenceWeights { wrapper: Wrapper::Model, tables: tables_of(&of_v), ..Default::default() };
    let formulation = |out_dim| inferred_of(out_dim, false, weights.clone()).diffusion.unwrap().formulation;
    let learned = LearnedVarianceConfig { schedule: schedule.clone(), ..LearnedVarianceConfig::default() };
    assert_eq!(learned.objective, Objective::PredNoise);
    assert_eq!(formulation(2), FormulationConfig::LearnedVariance(learned));
    let weighted = WeightedObjectiveConfig { schedule, ..WeightedObjectiveConfig::default() };
    assert_eq!(formulation(4), FormulationConfig::WeightedObjective(weighted));
    assert_eq!(formulation(1), of_v.formulation);
}

#[test]
fn a_schedule_without_name_is_kept_for_every_class_with_tables() {
    let betas: Vec<f64> = (0..40).map(|t| 0.01 + 0.002 * f64::from(t * t % 17)).collect();
    let weights = ReferenceWeights { tables: tables(&betas, &[1.0; 40]), ..ReferenceWeights::default() };
    for out_dim in [1, 2, 4] {
        let found = inferred_of(out_dim, false, weights.clone());
        let diffusion = Diffusion::with_betas(&found.diffusion.unwrap(), found.betas).unwrap();
        let kept = &diffusion.tables().unwrap().betas;
        assert!(kept.iter().zip(&betas).all(|(a, b)| (a - b).abs() < 1e-8));
    }
}

#[test]
fn without_tables_the_attribute_and_the_time_embedding_decide() {
    for (wrapper, fourier, expected) in [
        (Wrapper::Net, true, Some("elucidated")),
        (Wrapper::Model, true, Some("continuous_time")),
        (Wrapper::None, true, None),
        (Wrapper::Net, false, None),
        (Wrapper::Model, false, None),
        (Wrapper::None, false, None),
    ] {
        let found = inferred_of(1, fourier, ReferenceWeights { wrapper, ..ReferenceWeights::default() });
        let name = found.diffusion.map(|config| config.formulation.name());
        assert_eq!(name, expected, "{wrapper:?} {fourier}");
        assert_eq!(found.assumed.contains(&"diffusion"), expected.is_some());
    }
}

/// The other classes without tables ask their network for attributes that a KarrasUnet lacks.
#[test]
fn a_karras_unet_without_tables_is_of_simple_diffusion() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/karras_image.safetensors");
    let state = read_safetensors(&path).unwrap().0.strip_prefix("state.");
    let found = ReferenceWeights { state, wrapper: Wrapper::Model, ..Default::default() }.infer().unwrap();
    let FormulationConfig::Simple(config) = found.diffusion.clone().unwrap().formulation else { panic!("{found:?}") };
    assert_eq!(config.objective, Objective::PredV);
    assert!(found.assumed.contains(&"diffusion") && found.assumed.contains(&"objective"));
}
