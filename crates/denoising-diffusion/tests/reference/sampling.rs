//! `GaussianDiffusion.p_sample`, `p_sample_loop`, `ddim_sample` and `interpolate` on injected noise.

use burn::tensor::Device;
use denoising_diffusion::diffusion::{BetaSchedule, Diffusion, GaussianConfig, NoiseLevel, Objective, ScheduleConfig};
use denoising_diffusion::models::Unet;
use denoising_diffusion::nn::{Eval, EvalMode};
use denoising_diffusion::sampler::{PosteriorVariance, Step, ddim, ddpm, ignore, noised_mixture};

use crate::golden::{Golden, assert_close, test_device, values};

fn gaussian(timesteps: usize, beta_schedule: BetaSchedule, objective: Objective) -> Diffusion {
    let schedule = ScheduleConfig { timesteps, beta_schedule, ..Default::default() };
    Diffusion::new(&GaussianConfig { schedule, objective, ..Default::default() }.into()).unwrap()
}

struct Case {
    golden: Golden,
    device: Device,
}

impl Case {
    fn open() -> Self {
        Self { golden: Golden::open("sampling"), device: test_device() }
    }

    fn unet(&self, key: &str, prefix: &str) -> Eval<Unet> {
        self.golden.unet(key, prefix, &self.device).eval()
    }

    fn check_trajectory(&self, name: &str, unet_key: &str, prefix: &str) {
        let options = &self.golden.config["trajectories"][name];
        let objective = serde_json::from_value(options["objective"].clone()).unwrap();
        let beta_schedule = serde_json::from_value(options["beta_schedule"].clone()).unwrap();
        let timesteps = options["timesteps"].as_u64().unwrap() as usize;
        let diffusion = gaussian(timesteps, beta_schedule, objective);
        check_trajectory(&self.golden, name, &diffusion, &self.unet(unet_key, prefix), PosteriorVariance::Small);
    }
}

/// Every image on the way, by DDIM if the trajectory has a number of steps and by ancestral sampling otherwise.
pub fn check_trajectory(
    golden: &Golden,
    name: &str,
    diffusion: &Diffusion,
    unet: &Eval<Unet>,
    variance: PosteriorVariance,
) {
    let options = &golden.config["trajectories"][name];
    let device = test_device();
    let denoiser = diffusion.denoiser(unet);
    let x = golden.tensor::<4>(&format!("{name}.x_T"), &device);
    let noises = golden.noises(&format!("{name}.noise"), &device);
    let expected = golden.tensor::<5>(&format!("{name}.images"), &device);

    let mut seen = 0;
    let mut compare = |step: &Step<'_, 4>| {
        let image = expected.clone().narrow(1, step.index + 1, 1).squeeze_dim::<4>(1);
        let got = diffusion.unnormalize(step.x.clone());
        assert_close(&format!("{name} step {}", step.index), &values(got), &values(image), 1e-4);
        seen += 1;
        std::ops::ControlFlow::Continue(())
    };
    match options["sampling_timesteps"].as_u64() {
        Some(steps) => {
            let levels = diffusion.formulation().levels(steps as usize);
            let eta = options["eta"].as_f64().unwrap();
            ddim(&denoiser, x, &levels, eta, &mut noises.as_slice(), &mut compare).unwrap();
        }
        None => {
            let levels = diffusion.formulation().levels(diffusion.tables().unwrap().timesteps());
            ddpm(&denoiser, x, &levels, variance, &mut noises.as_slice(), &mut compare).unwrap();
        }
    }
    assert_eq!(seen + 1, expected.dims()[1]);
}

#[test]
fn single_ancestral_steps() {
    let case = Case::open();
    let unet = case.unet("unet", "state.");
    for (name, objective, beta_schedule) in [
        ("pred_noise", Objective::PredNoise, BetaSchedule::Linear),
        ("pred_x0", Objective::PredX0, BetaSchedule::Cosine),
        ("pred_v", Objective::PredV, BetaSchedule::Sigmoid),
    ] {
        let diffusion = gaussian(50, beta_schedule, objective);
        for t in [0, 25, 49] {
            let next = if t == 0 { NoiseLevel::CLEAN } else { diffusion.level(f64::from(t - 1)) };
            let levels = [diffusion.level(f64::from(t)), next];
            let x = case.golden.tensor::<4>("p_sample.x", &case.device);
            let noise = [case.golden.tensor::<4>("p_sample.noise", &case.device)];
            let mut x_start = None;
            let mut keep = |step: &Step<'_, 4>| {
                x_start = Some(step.x_start.clone());
                std::ops::ControlFlow::Continue(())
            };
            let denoiser = diffusion.denoiser(&unet);
            let out = ddpm(&denoiser, x, &levels, PosteriorVariance::Small, &mut noise.as_slice(), &mut keep).unwrap();
            let key = |what: &str| format!("p_sample.{name}.t{t}.{what}");
            assert_close(&key("output"), &values(out), case.golden.values(&key("output")), 1e-4);
            if case.golden.has(&key("x_start")) {
                let got = values(x_start.unwrap());
                assert_close(&key("x_start"), &got, case.golden.values(&key("x_start")), 1e-4);
            }
        }
    }
}

#[test]
fn ancestral_trajectories() {
    Case::open().check_trajectory("ddpm", "unet", "state.");
    Case::open().check_trajectory("ddpm_noise", "unet", "state.");
}

#[test]
fn ddim_trajectories() {
    Case::open().check_trajectory("ddim_eta0", "unet", "state.");
    Case::open().check_trajectory("ddim_eta07", "unet", "state.");
}

#[test]
fn self_conditioned_trajectory() {
    Case::open().check_trajectory("ddim_self_cond", "unet_self_cond", "self_cond.state.");
}

#[test]
fn spacing_of_ddim_times() {
    let golden = Golden::open("sampling");
    for (timesteps, steps) in [(1000, 250), (1000, 50), (1000, 26), (1000, 7), (100, 90), (50, 10), (50, 1)] {
        let levels = gaussian(timesteps, BetaSchedule::Sigmoid, Objective::PredV).formulation().levels(steps);
        let times: Vec<f32> = levels.iter().map(|level| level.time as f32).collect();
        assert_eq!(times, golden.values(&format!("ddim_times.{timesteps}.{steps}")), "{timesteps} {steps}");
    }
}

/// The reference noises to t and denoises from t - 1; from the same level, we take the same steps.
#[test]
fn interpolation() {
    let case = Case::open();
    let diffusion = gaussian(50, BetaSchedule::Sigmoid, Objective::PredV);
    let all_levels = diffusion.formulation().levels(50);
    let unet = case.unet("unet", "state.");
    let tensor = |name: &str| case.golden.tensor::<4>(&format!("interpolate.{name}"), &case.device);
    let noises = case.golden.noises("interpolate.noise", &case.device);
    let level = diffusion.level(20.0);
    let pair = |name: &str| [1, 2].map(|i| tensor(&format!("{name}{i}")));
    let mixed = noised_mixture(pair("x"), 0.3, level, pair("noise"));
    let levels = &all_levels[50 - 20..];
    let denoiser = diffusion.denoiser(&unet);
    let small = PosteriorVariance::Small;
    let reference = ddpm(&denoiser, mixed, levels, small, &mut noises.as_slice(), &mut ignore).unwrap();
    assert_close("reference", &values(reference), case.golden.values("interpolate.output"), 1e-4);
}
