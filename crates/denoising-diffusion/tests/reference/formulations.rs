//! The formulations in discrete time beside the plain one: `WeightedObjectiveGaussianDiffusion`, and candidates of noise (`XMWrapper`).
//! `learned_variance.rs` has the third.

use burn::tensor::Tensor;
use denoising_diffusion::diffusion::{
    BetaSchedule, Denoiser, Diffusion, DiffusionConfig, Draws, FormulationConfig, GaussianConfig, GuidanceConfig,
    NoiseLevel, Objective, ObjectiveWeights, ScheduleConfig, SharedConfig, Threshold, WeightedObjectiveConfig,
};
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::nn::EvalMode;
use denoising_diffusion::sampler::{PosteriorVariance, ddpm, ignore};
use denoising_diffusion::train::NamedGradients;

use crate::golden::{Golden, assert_close, assert_each_close, assert_losses, draws, test_device, values};
use crate::sampling::check_trajectory;
use crate::unets::{check_gradients, check_gradients_among};

fn weighted(timesteps: usize, weights: ObjectiveWeights) -> Diffusion {
    let schedule = ScheduleConfig { timesteps, beta_schedule: BetaSchedule::Cosine, ..Default::default() };
    let config = FormulationConfig::WeightedObjective(WeightedObjectiveConfig { schedule, weights });
    Diffusion::new(&config.into()).unwrap()
}

#[test]
fn losses_and_gradients_of_the_weighted_objective() {
    let golden = Golden::open("formulations");
    let device = test_device().autodiff();
    let unet = golden.unet("weighted_unet", "weighted.state.", &device);
    let draws = draws(golden.values("times"), vec![golden.tensor("weighted.noise", &device)]);
    let images = golden.tensor::<4>("weighted.image", &device);
    let given = ObjectiveWeights { pred_noise_loss_weight: 0.3, pred_x_start_loss_weight: 0.7 };
    for (name, weights) in [("default", ObjectiveWeights::default()), ("given", given)] {
        let loss = weighted(50, weights).loss(&unet, images.clone(), &draws);
        let [per_sample, mean] = ["per_sample", "mean"].map(|kind| format!("weighted.{name}.{kind}"));
        assert_close(&per_sample, &values(loss.clone()), golden.values(&per_sample), 1e-4);
        assert_close(&mean, &values(loss.clone().mean()), golden.values(&mean), 1e-4);
        if name == "default" {
            let expected = to_ours(&golden.under("weighted.default.grad_state.")).unwrap();
            check_gradients(NamedGradients::take(&unet, &mut loss.mean().backward()), &expected);
        }
    }
}

#[test]
fn estimates_and_steps_of_the_weighted_objective() {
    let golden = Golden::open("formulations");
    let device = test_device();
    let unet = golden.unet("weighted_unet", "weighted.state.", &device).eval();
    let diffusion = weighted(50, ObjectiveWeights::default());
    let plain = GuidanceConfig { threshold: Threshold::None, ..Default::default() };
    let x = golden.tensor::<4>("weighted.x", &device);
    for t in [49, 25, 1, 0] {
        let key = |what: &str| format!("weighted.t{t}.{what}");
        let level = diffusion.level(f64::from(t));
        let x_start = |denoiser: &dyn Denoiser<4>| values(denoiser.denoise(x.clone(), level, None).x_start);
        // At t = 49 the noise is multiplied by 3000 on its way to x_start: in f32 the reference itself is off by 1.4e-3.
        let tolerance = if t == 49 { 2e-3 } else { 1e-4 };
        let unclipped = x_start(&diffusion.denoiser(&unet).guided(&plain));
        assert_each_close(&key("x_start_unclipped"), &unclipped, golden.values(&key("x_start_unclipped")), tolerance);

        let denoiser = diffusion.denoiser(&unet);
        assert_close(&key("x_start"), &x_start(&denoiser), golden.values(&key("x_start")), 1e-4);
        let next = if t == 0 { NoiseLevel::CLEAN } else { diffusion.level(f64::from(t - 1)) };
        let noise = [x.zeros_like()];
        let small = PosteriorVariance::Small;
        let mean = ddpm(&denoiser, x.clone(), &[level, next], small, &mut noise.as_slice(), &mut ignore).unwrap();
        assert_close(&key("mean"), &values(mean), golden.values(&key("mean")), 1e-4);
    }
}

#[test]
fn trajectory_of_the_weighted_objective() {
    let golden = Golden::open("formulations");
    let unet = golden.unet("weighted_unet", "weighted.state.", &test_device()).eval();
    let diffusion = weighted(20, ObjectiveWeights::default());
    check_trajectory(&golden, "weighted.ddpm", &diffusion, &unet, PosteriorVariance::Small);
}

const CANDIDATES: usize = 3;

/// Each image is trained on the candidate of least loss: the loss of that one, and its gradients.
#[test]
fn candidates_of_noise() {
    let golden = Golden::open("formulations");
    let device = test_device().autodiff();
    let unet = golden.unet("xm_unet", "xm.state.", &device);
    let schedule = ScheduleConfig { timesteps: 50, beta_schedule: BetaSchedule::Sigmoid, ..Default::default() };
    let gaussian = GaussianConfig { schedule, objective: Objective::PredV, ..Default::default() };
    let loss = |draws: &Draws| {
        let (min_snr, xm_candidates) = (Some(true), draws.noise.len());
        let shared = SharedConfig { min_snr_loss_weight: min_snr, xm_candidates, ..Default::default() };
        let diffusion = Diffusion::new(&DiffusionConfig { shared, ..gaussian.clone().into() }).unwrap();
        diffusion.loss(&unet, golden.tensor::<4>("xm.image", &device), draws)
    };
    // Row b * 3 + k is candidate k of image b.
    let noise: Tensor<5> = golden.tensor::<4>("xm.noise", &device).reshape([4, CANDIDATES, 1, 8, 8]);
    let candidates: Vec<Tensor<4>> = (0..CANDIDATES).map(|k| noise.clone().narrow(1, k, 1).squeeze_dim(1)).collect();

    let expected = golden.values("xm.candidate_losses");
    for (k, candidate) in candidates.iter().enumerate() {
        let alone = values(loss(&draws(golden.values("times"), vec![candidate.clone()])));
        let expected: Vec<f32> = expected.iter().skip(k).step_by(CANDIDATES).copied().collect();
        assert_losses(&format!("candidate {k}"), &alone, &expected);
    }
    let chosen = loss(&draws(golden.values("times"), candidates));
    let of_chosen = golden.indices("xm.chosen").into_iter().enumerate().map(|(b, k)| expected[b * CANDIDATES + k]);
    assert_losses("least losses", &values(chosen.clone()), &of_chosen.collect::<Vec<_>>());
    assert_close("xm.loss", &values(chosen.clone().mean()), golden.values("xm.loss"), 1e-4);
    let expected = to_ours(&golden.under("xm.grad_state.")).unwrap();
    check_gradients_among(NamedGradients::take(&unet, &mut chosen.mean().backward()), &expected);
}
