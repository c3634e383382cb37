//! `ContinuousTimeGaussianDiffusion`, `VParamContinuousTimeGaussianDiffusion` and `simple_diffusion.GaussianDiffusion`.

use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::{
    ContinuousTimeConfig, Denoiser, Diffusion, DiffusionConfig, FormulationConfig, GuidanceConfig, NoiseLevel,
    NoiseSchedule, Objective, SharedConfig, SimpleConfig, Threshold,
};
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::models::{LearnedSchedule, Network, Scheduled, Unet};
use denoising_diffusion::nn::{Eval, EvalMode, Init, params};
use denoising_diffusion::sampler::{PosteriorVariance, Step, ddpm, ignore};
use denoising_diffusion::train::NamedGradients;
use denoising_diffusion::weights::StateDict;

use crate::golden::{Golden, allowed, assert_close, assert_relative, draws, test_device, values};
use crate::unets::{check_gradients, check_gradients_among};

const STEPS: usize = 8;
const HIDDEN: usize = 8;

fn continuous(noise_schedule: NoiseSchedule, objective: Objective) -> FormulationConfig {
    let learned_schedule_hidden_dim = (noise_schedule == NoiseSchedule::Learned).then_some(HIDDEN);
    let config = ContinuousTimeConfig { noise_schedule, objective, learned_schedule_hidden_dim, ..Default::default() };
    FormulationConfig::ContinuousTime(config)
}

/// Those of the golden file, by name.
fn simple(golden: &Golden, name: &str, objective: Objective) -> FormulationConfig {
    let options = &golden.config["simple"][name];
    FormulationConfig::Simple(SimpleConfig {
        objective,
        noise_d: options["noise_d"].as_f64(),
        noise_d_low: options["noise_d_low"].as_f64(),
        noise_d_high: options["noise_d_high"].as_f64(),
        image_d: golden.config["image_size"].as_f64(),
    })
}

fn diffusion(formulation: FormulationConfig, min_snr: bool) -> Diffusion {
    let shared = SharedConfig { min_snr_loss_weight: Some(min_snr), ..Default::default() };
    Diffusion::new(&DiffusionConfig { formulation, shared }).unwrap()
}

fn unet(golden: &Golden, device: &Device) -> Unet {
    golden.unet("unet", "state.", device)
}

/// Where the layers of a learned schedule stand in ours and in the reference.
const LAYERS: [(&str, &str); 3] = [("first", "net.1.net"), ("hidden", "net.2.fn.0.net"), ("last", "net.2.fn.2.net")];

/// The U-Net and the learned schedule of the golden file.
fn scheduled(golden: &Golden, config: &FormulationConfig, device: &Device) -> Scheduled<Unet> {
    let options = diffusion(config.clone(), false).formulation().learned_schedule().unwrap();
    let mut state = StateDict::new();
    for (ours, theirs) in LAYERS {
        for leaf in ["weight", "bias"] {
            state.insert(format!("{ours}.{leaf}"), golden.host(&format!("learned.schedule.{theirs}.{leaf}")).clone());
        }
    }
    let noise_schedule = LearnedSchedule::new(&mut Init::new(0, device), options);
    let noise_schedule = params::load_state_dict(noise_schedule, &state).unwrap();
    Scheduled { network: unet(golden, device), noise_schedule }
}

fn check_losses(golden: &Golden, key: &str, network: &impl Network, diffusion: &Diffusion) -> Tensor<1> {
    let device = test_device().autodiff();
    let draws = draws(golden.values("times"), vec![golden.tensor("noise", &device)]);
    let loss = diffusion.loss(network, golden.tensor::<4>("image", &device), &draws);
    let [per_sample, mean] = ["per_sample", "mean"].map(|kind| format!("{key}.{kind}"));
    assert_close(&per_sample, &values(loss.clone()), golden.values(&per_sample), 1e-4);
    assert_close(&mean, &values(loss.clone().mean()), golden.values(&mean), 1e-4);
    loss
}

#[test]
fn log_snr_at_times() {
    let golden = Golden::open("formulations_continuous");
    let grid = golden.values_f64("grid");
    let learned = continuous(NoiseSchedule::Learned, Objective::PredNoise);
    let network = scheduled(&golden, &learned, &test_device());
    let v = Objective::PredV;
    for (name, config) in [
        ("linear", continuous(NoiseSchedule::Linear, v)),
        ("cosine", continuous(NoiseSchedule::Cosine, v)),
        ("learned", learned),
        ("simple_plain", simple(&golden, "plain", v)),
        ("simple_shifted", simple(&golden, "shifted", v)),
        ("simple_interpolated", simple(&golden, "interpolated", v)),
    ] {
        let diffusion = diffusion(config, false).with_schedule_of(&network);
        let expected = golden.values_f64(&format!("log_snr_exact.{name}"));
        // cos(pi / 2) is nothing but rounding: the cosine's last number has no meaning, but that it is very small.
        let n = if name == "cosine" { grid.len() - 1 } else { grid.len() };
        let levels: Vec<NoiseLevel> = grid.iter().map(|&t| diffusion.level(t)).collect();
        assert!(n == grid.len() || levels[n].time < -30.0);
        for (level, expected) in levels[..n].iter().zip(&expected) {
            // Of numbers that pass through 0, the error of those of order 1.
            let error = |log_snr: f64| (log_snr - expected).abs() / expected.abs().max(1.0);
            // The reference rounds the ends of a learned schedule to f32.
            let tolerance = if name == "learned" { 5e-7 } else { 1e-9 };
            assert!(
                error(level.time) < tolerance && error(level.log_snr()) < tolerance,
                "{name}: {level:?} {expected}"
            );
            assert!((level.alpha.powi(2) + level.sigma.powi(2) - 1.0).abs() < 1e-12);
        }
    }
}

#[test]
fn losses_and_gradients_of_predicted_noise() {
    let golden = Golden::open("formulations_continuous");
    let unet = unet(&golden, &test_device().autodiff());
    for (name, schedule) in [("linear", NoiseSchedule::Linear), ("cosine", NoiseSchedule::Cosine)] {
        for (weight, min_snr) in [("plain", false), ("min_snr", true)] {
            let diffusion = diffusion(continuous(schedule, Objective::PredNoise), min_snr);
            let loss = check_losses(&golden, &format!("loss.{name}.{weight}"), &unet, &diffusion);
            if (name, min_snr) == ("linear", true) {
                let expected = to_ours(&golden.under("linear.grad_state.")).unwrap();
                check_gradients(NamedGradients::take(&unet, &mut loss.mean().backward()), &expected);
            }
        }
    }
}

#[test]
fn losses_and_gradients_of_predicted_v() {
    let golden = Golden::open("formulations_continuous");
    let unet = unet(&golden, &test_device().autodiff());
    let diffusion = diffusion(continuous(NoiseSchedule::Cosine, Objective::PredV), false);
    let loss = check_losses(&golden, "loss.v", &unet, &diffusion);
    let expected = to_ours(&golden.under("v.grad_state.")).unwrap();
    check_gradients_among(NamedGradients::take(&unet, &mut loss.mean().backward()), &expected);
}

#[test]
fn losses_of_simple_diffusion() {
    let golden = Golden::open("formulations_continuous");
    let unet = unet(&golden, &test_device().autodiff());
    for name in ["plain", "shifted", "interpolated"] {
        for (objective_name, objective) in [("v", Objective::PredV), ("eps", Objective::PredNoise)] {
            for (weight, min_snr) in [("plain", false), ("min_snr", true)] {
                let diffusion = diffusion(simple(&golden, name, objective), min_snr);
                check_losses(&golden, &format!("loss.simple_{name}.{objective_name}.{weight}"), &unet, &diffusion);
            }
        }
    }
}

/// The schedule's gradients are `frac_gradient` times those of the whole; the network's do not depend on it.
#[test]
fn losses_and_gradients_of_a_learned_schedule() {
    let golden = Golden::open("formulations_continuous");
    for (weight, min_snr) in [("plain", false), ("min_snr", true)] {
        for (name, frac) in [("1", 1.0), ("0.3", 0.3)] {
            let mut config = continuous(NoiseSchedule::Learned, Objective::PredNoise);
            let FormulationConfig::ContinuousTime(options) = &mut config else { unreachable!() };
            options.learned_schedule_frac_gradient = Some(frac);
            let network = scheduled(&golden, &config, &test_device().autodiff());
            let diffusion = diffusion(config, min_snr);
            let loss = check_losses(&golden, &format!("loss.learned.{weight}"), &network, &diffusion);
            let gradients = NamedGradients::take(&network, &mut loss.mean().backward());
            let expected = golden.under(&format!("learned.{weight}.frac{name}.grad_state."));
            check_schedule_gradients(&gradients, &expected.strip_prefix("log_snr."));
            let of_network = to_ours(&expected.strip_prefix("model.")).unwrap().with_prefix("network.");
            check_gradients_among(gradients, &of_network);
        }
    }
}

/// These are small: each relative to the largest of its tensor. That of the last bias is 0 but for rounding: it moves the whole schedule,
/// which then is moved back between its ends.
fn check_schedule_gradients(gradients: &NamedGradients, expected: &StateDict) {
    for (ours, theirs) in LAYERS {
        for leaf in ["weight", "bias"] {
            let name = format!("noise_schedule.{ours}.{leaf}");
            let (_, gradient) = gradients.iter().find(|(other, _)| *other == name).unwrap();
            let (got, expected) =
                (values(gradient.clone()), &expected.get(&format!("{theirs}.{leaf}")).unwrap().values);
            let largest = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
            let tolerance = if largest < 1e-6 { 1e-6 } else { 1e-4 * largest };
            for (a, b) in got.iter().zip(expected) {
                assert!((a - b).abs() <= allowed(tolerance), "{name}: {a} in place of {b}, values up to {largest}");
            }
        }
    }
}

/// Without the clamp of x_start, from t = 0.6 to 0.475.
#[test]
fn single_steps() {
    let golden = Golden::open("formulations_continuous");
    let device = test_device();
    let unet = unet(&golden, &device).eval();
    let x = golden.tensor::<4>("x", &device);
    for (name, config) in [
        ("linear", continuous(NoiseSchedule::Linear, Objective::PredNoise)),
        ("cosine", continuous(NoiseSchedule::Cosine, Objective::PredNoise)),
        ("v", continuous(NoiseSchedule::Cosine, Objective::PredV)),
    ] {
        let diffusion = diffusion(config, false);
        let unclipped = GuidanceConfig { threshold: Threshold::None, ..Default::default() };
        let denoiser = diffusion.denoiser(&unet).guided(&unclipped);
        let levels = [0.6, 0.475].map(|t| diffusion.level(t));
        let (small, noise) = (PosteriorVariance::Small, [x.zeros_like()]);
        let mean = ddpm(&denoiser, x.clone(), &levels, small, &mut noise.as_slice(), &mut ignore).unwrap();
        let key = |what: &str| format!("{name}.unclipped.{what}");
        assert_close(&key("mean"), &values(mean), golden.values(&key("mean")), 1e-4);
        let variance = levels[0].posterior_variance(&levels[1]);
        assert_relative(&key("variance"), &[variance as f32], golden.values(&key("variance")), 1e-5);
    }
}

#[test]
fn trajectories() {
    let golden = Golden::open("formulations_continuous");
    let device = test_device();
    let unet = unet(&golden, &device).eval();
    let eps = Objective::PredNoise;
    for (name, config) in [
        ("linear", continuous(NoiseSchedule::Linear, eps)),
        ("cosine", continuous(NoiseSchedule::Cosine, eps)),
        ("v", continuous(NoiseSchedule::Cosine, Objective::PredV)),
        ("simple_v", simple(&golden, "interpolated", Objective::PredV)),
        ("simple_eps", simple(&golden, "shifted", eps)),
    ] {
        check_trajectory(&golden, name, &diffusion(config, false), &unet);
    }
    let learned = continuous(NoiseSchedule::Learned, eps);
    let network = scheduled(&golden, &learned, &device).eval();
    check_trajectory(&golden, "learned", &diffusion(learned, false), &network);
}

/// Ours end in clean data, the reference's in a level of log_snr(0): every step but the last is that of our own levels, all of them are
/// those of the reference's. The network feels the last digits of log-SNR, so that x is compared on the reference's.
fn check_trajectory(golden: &Golden, name: &str, diffusion: &Diffusion, network: &Eval<impl Network>) {
    let device = test_device();
    let key = |what: &str| format!("ddpm_{name}.{what}");
    let denoiser = diffusion.denoiser(network);
    let log_snrs = golden.values(&key("log_snr"));
    let theirs: Vec<NoiseLevel> =
        log_snrs.iter().map(|&log_snr| denoiser.level_at_log_snr(f64::from(log_snr))).collect();

    let ours = denoiser.levels(Default::default(), STEPS, 7.0);
    assert!(ours.len() == theirs.len() && ours[STEPS] == NoiseLevel::CLEAN);
    let of_cosine = matches!(name, "cosine" | "v"); // at t = 1 it is rounding, see log_snr_at_times
    for (ours, theirs) in ours[usize::from(of_cosine)..STEPS].iter().zip(&theirs[usize::from(of_cosine)..]) {
        assert!((ours.time - theirs.time).abs() < 2e-5, "{name}: {ours:?} {theirs:?}");
    }

    let images = golden.tensor::<5>(&key("images"), &device);
    let image = |step: usize| images.clone().narrow(1, step, 1).squeeze_dim::<4>(1);
    // The reference's last step adds no noise.
    let mut noises = golden.noises(&key("noise"), &device);
    noises.push(noises[0].zeros_like());
    // From noise that an f32 shows nothing beside, the reference reads clean data as rounding errors over alpha = 4e-8, cut to +-1; we read 0.
    let first = usize::from(name == "cosine");
    let compare_until = |last: usize| {
        move |step: &Step<'_, 4>| {
            let index = step.index + first;
            if index < last {
                let what = format!("{name} step {index}");
                assert_close(&what, &values(step.x.clone()), &values(image(index + 1)), 1e-4);
            }
            std::ops::ControlFlow::Continue(())
        }
    };
    let small = PosteriorVariance::Small;
    for levels in [theirs.clone(), [&theirs[..STEPS], &[NoiseLevel::CLEAN]].concat()] {
        let last = if levels[STEPS].is_clean() { STEPS - 1 } else { STEPS };
        let mut noise = &noises[first..];
        ddpm(&denoiser, image(first), &levels[first..], small, &mut noise, &mut compare_until(last)).unwrap();
    }
}
