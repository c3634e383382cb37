//! `ElucidatedDiffusion`.

use burn::tensor::Tensor;
use denoising_diffusion::diffusion::{
    Denoiser, Diffusion, Draws, ElucidatedConfig, FormulationConfig, GuidanceConfig, NoiseLevel, Threshold,
};
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::models::Unet;
use denoising_diffusion::nn::{Eval, EvalMode};
use denoising_diffusion::sampler::{Churn, Step, dpmpp_2m, heun};
use denoising_diffusion::train::NamedGradients;

use crate::golden::{Golden, assert_close, assert_relative, draws, test_device, values};
use crate::unets::{check_gradients, check_gradients_among};

const STEPS: usize = 8;

fn elucidated() -> Diffusion {
    Diffusion::new(&FormulationConfig::Elucidated(ElucidatedConfig::default()).into()).unwrap()
}

fn unclipped() -> GuidanceConfig {
    GuidanceConfig { threshold: Threshold::None, ..Default::default() }
}

#[test]
fn preconditioning() {
    let golden = Golden::open("formulations_edm");
    let device = test_device();
    let unet = golden.unet("unet", "state.", &device).eval();
    let diffusion = elucidated();
    let x = golden.tensor::<4>("denoiser.x", &device);
    let of_row = |name: &str, row: usize| golden.values(name)[row * 128..][..128].to_vec();
    for (row, &sigma) in golden.values("denoiser.sigma").iter().enumerate() {
        let level = diffusion.level(sigma.into());
        let at = diffusion.formulation().prediction().coefficients(&level);
        for (name, ours) in [
            ("c_in", at.c_in),
            ("c_skip", at.c_skip),
            ("c_out", at.c_out),
            // The weight of the error of x_start that makes the weight of the prediction's one.
            ("loss_weight", diffusion.loss_weight(&level) / at.c_out.powi(2)),
        ] {
            let name = format!("denoiser.{name}");
            assert_relative(&name, &[ours as f32], &[golden.values(&name)[row]], 1e-6);
        }
        assert_close("c_noise", &[level.time as f32], &[golden.values("denoiser.c_noise")[row]], 1e-6);

        let x = x.clone().narrow(0, row, 1);
        let x_start = |denoiser: &dyn Denoiser<4>| values(denoiser.denoise(x.clone(), level, None).x_start);
        let unclipped = x_start(&diffusion.denoiser(&unet).guided(&unclipped()));
        assert_close(&format!("D at sigma {sigma}"), &unclipped, &of_row("denoiser.output", row), 1e-4);
        let clamped = x_start(&diffusion.denoiser(&unet));
        assert_close(&format!("clamped D at sigma {sigma}"), &clamped, &of_row("denoiser.clamped", row), 1e-4);
    }
}

#[test]
fn noise_levels() {
    let golden = Golden::open("formulations_edm");
    for (name, options) in golden.config["schedules"].as_object().unwrap() {
        let config = FormulationConfig::Elucidated(serde_json::from_value(options.clone()).unwrap());
        let diffusion = Diffusion::new(&config.into()).unwrap();
        for n in [8, 18, 32] {
            let levels = diffusion.formulation().levels(n);
            let sigmas: Vec<f64> = levels.iter().map(|level| level.sigma).collect();
            let expected = golden.values_f64(&format!("sigmas_exact.{name}.n{n}"));
            assert_relative(&format!("{name} {n}"), &sigmas, &expected, 1e-12);
            assert!(levels.iter().all(|level| level.alpha == 1.0) && levels[n] == NoiseLevel::CLEAN);
        }
    }
}

/// Losses per sample and their mean; the latter for its gradients.
fn loss(golden: &Golden, unet: &Unet, data: &str, expected: &str, self_condition: bool) -> Tensor<1> {
    let device = test_device().autodiff();
    let noise = golden.tensor(&format!("{data}.noise"), &device);
    let draws = Draws { self_condition, ..draws(golden.values("loss.sigma"), vec![noise]) };
    let loss = elucidated().loss(unet, golden.tensor::<4>(&format!("{data}.image"), &device), &draws);
    let [per_sample, mean] = ["per_sample", "mean"].map(|kind| format!("{expected}.{kind}"));
    assert_close(&per_sample, &values(loss.clone()), golden.values(&per_sample), 1e-4);
    assert_close(&mean, &values(loss.clone().mean()), golden.values(&mean), 1e-4);
    loss.mean()
}

#[test]
fn losses_and_gradients() {
    let golden = Golden::open("formulations_edm");
    let unet = golden.unet("unet", "state.", &test_device().autodiff());
    let loss = loss(&golden, &unet, "loss", "loss", false);
    let expected = to_ours(&golden.under("loss.grad_state.")).unwrap();
    check_gradients(NamedGradients::take(&unet, &mut loss.backward()), &expected);
}

#[test]
fn self_conditioning() {
    let golden = Golden::open("formulations_edm");
    let unet = golden.unet("unet_self_cond", "self_cond.state.", &test_device().autodiff());
    loss(&golden, &unet, "self_cond", "self_cond.off", false);
    let loss = loss(&golden, &unet, "self_cond", "self_cond.on", true);
    let expected = to_ours(&golden.under("self_cond.on.grad_state.")).unwrap();
    check_gradients_among(NamedGradients::take(&unet, &mut loss.backward()), &expected);

    // The first pass alone: each example at its own sigma.
    let diffusion = elucidated();
    let (device, unet) = (test_device(), unet.eval());
    let denoiser = diffusion.denoiser(&unet).guided(&unclipped());
    let [images, noise] = ["image", "noise"].map(|name| golden.tensor::<4>(&format!("self_cond.{name}"), &device));
    for (row, &sigma) in golden.values("loss.sigma").iter().enumerate() {
        let of_row = |x: &Tensor<4>| x.clone().narrow(0, row, 1);
        let x = of_row(&images) * 2.0 - 1.0 + of_row(&noise) * sigma;
        let x_start = denoiser.denoise(x, diffusion.level(sigma.into()), None).x_start;
        let expected = &golden.values("self_cond.x_self_cond")[row * 64..][..64];
        assert_close("first pass", &values(x_start), expected, 1e-4);
    }
}

struct Trajectory {
    golden: Golden,
    name: &'static str,
    unet: Eval<Unet>,
    x: Tensor<4>,
    levels: Vec<NoiseLevel>,
}

impl Trajectory {
    fn open(name: &'static str, unet: &str, prefix: &str) -> Self {
        let (golden, device) = (Golden::open("formulations_edm"), test_device());
        let unet = golden.unet(unet, prefix, &device).eval();
        let x = Self::image(&golden, name, 0);
        Self { golden, name, unet, x, levels: elucidated().formulation().levels(STEPS) }
    }

    fn image(golden: &Golden, name: &str, step: usize) -> Tensor<4> {
        golden.tensor::<5>(&format!("{name}.images"), &test_device()).narrow(1, step, 1).squeeze_dim(1)
    }

    /// Every step: x is of order sigma.
    fn check(&self) -> impl FnMut(&Step<'_, 4>) -> std::ops::ControlFlow<()> {
        |step| {
            let expected = values(Self::image(&self.golden, self.name, step.index + 1));
            assert_close(&format!("{} step {}", self.name, step.index), &values(step.x.clone()), &expected, 1e-4);
            std::ops::ControlFlow::Continue(())
        }
    }

    fn check_heun(&self, s_churn: f64, noise: &[Tensor<4>]) {
        let number = |key: &str| self.golden.config["elucidated"][key].as_f64().unwrap();
        let churn = Churn { s_churn, s_tmin: number("S_tmin"), s_tmax: number("S_tmax"), s_noise: number("S_noise") };
        let diffusion = elucidated();
        let (denoiser, mut noise) = (diffusion.denoiser(&self.unet), noise);
        heun(&denoiser, self.x.clone(), &self.levels, &churn, &mut noise, &mut self.check()).unwrap();
    }
}

#[test]
fn heun_trajectories() {
    Trajectory::open("heun_churn0", "unet", "state.").check_heun(0.0, &[]);
    Trajectory::open("heun_self_cond", "unet_self_cond", "self_cond.state.").check_heun(0.0, &[]);
    let trajectory = Trajectory::open("heun_churn80", "unet", "state.");
    trajectory.check_heun(80.0, &trajectory.golden.noises("heun_churn80.noise", &test_device()));
}

#[test]
fn dpmpp_trajectory() {
    let trajectory = Trajectory::open("dpmpp", "unet", "state.");
    let diffusion = elucidated();
    let denoiser = diffusion.denoiser(&trajectory.unet).guided(&unclipped());
    dpmpp_2m(&denoiser, trajectory.x.clone(), &trajectory.levels, &mut trajectory.check()).unwrap();
}
