//! `GaussianDiffusion.forward(image, times, noise=..., loss_reduction="none")` and its gradients.

use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::{
    BetaSchedule, Diffusion, DiffusionConfig, Draws, GaussianConfig, Objective, ScheduleConfig, SharedConfig,
    least_distance_assignment,
};
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::models::Unet;
use denoising_diffusion::train::NamedGradients;

use crate::golden::{Golden, assert_close, draws, test_device, values};
use crate::unets::check_gradients;

const SCHEDULES: [(&str, BetaSchedule); 3] =
    [("linear", BetaSchedule::Linear), ("cosine", BetaSchedule::Cosine), ("sigmoid", BetaSchedule::Sigmoid)];
const OBJECTIVES: [(&str, Objective); 3] =
    [("pred_noise", Objective::PredNoise), ("pred_x0", Objective::PredX0), ("pred_v", Objective::PredV)];

fn config(beta_schedule: BetaSchedule, objective: Objective, shared: SharedConfig) -> DiffusionConfig {
    let schedule = ScheduleConfig { timesteps: 50, beta_schedule, ..Default::default() };
    DiffusionConfig { shared, ..GaussianConfig { schedule, objective, ..Default::default() }.into() }
}

fn min_snr(on: bool) -> SharedConfig {
    SharedConfig { min_snr_loss_weight: Some(on), ..Default::default() }
}

struct Case {
    golden: Golden,
    device: Device,
    unet: Unet,
}

impl Case {
    fn open() -> Self {
        let golden = Golden::open("losses");
        let device = test_device().autodiff();
        Self { unet: golden.unet("unet", "state.", &device), golden, device }
    }

    fn draws(&self) -> Draws {
        let noise = self.golden.tensor("noise", &self.device);
        draws(self.golden.values("times"), vec![noise])
    }

    fn loss(&self, unet: &Unet, config: &DiffusionConfig, draws: &Draws) -> Tensor<1> {
        let diffusion = Diffusion::new(config).unwrap();
        diffusion.loss(unet, self.golden.tensor::<4>("image", &self.device), draws)
    }

    fn check(&self, name: &str, loss: Tensor<1>) {
        let per_sample = format!("{name}.per_sample");
        assert_close(&per_sample, &values(loss.clone()), self.golden.values(&per_sample), 1e-4);
        let mean = format!("{name}.mean");
        assert_close(&mean, &values(loss.mean()), self.golden.values(&mean), 1e-4);
    }
}

#[test]
fn objectives_schedules_and_weights() {
    let case = Case::open();
    for (schedule_name, beta_schedule) in SCHEDULES {
        for (objective_name, objective) in OBJECTIVES {
            for (kind, min_snr_loss_weight) in [("plain", false), ("min_snr", true)] {
                let config = config(beta_schedule, objective, min_snr(min_snr_loss_weight));
                let loss = case.loss(&case.unet, &config, &case.draws());
                case.check(&format!("loss.{schedule_name}.{objective_name}.{kind}"), loss);
            }
        }
    }
}

#[test]
fn gradients_of_a_loss() {
    let case = Case::open();
    let config = config(BetaSchedule::Cosine, Objective::PredNoise, min_snr(true));
    let loss = case.loss(&case.unet, &config, &case.draws()).mean();
    let expected = to_ours(&case.golden.under("gradient.grad_state.")).unwrap();
    check_gradients(NamedGradients::take(&case.unet, &mut loss.backward()), &expected);
}

#[test]
fn data_as_it_is() {
    let case = Case::open();
    let shared = SharedConfig { auto_normalize: false, ..Default::default() };
    let config = config(BetaSchedule::Sigmoid, Objective::PredV, shared);
    case.check("no_auto_normalize", case.loss(&case.unet, &config, &case.draws()));
}

#[test]
fn offset_noise_is_in_x_t_and_target() {
    let case = Case::open();
    let offset = case.golden.tensor::<2>("offset.noise", &case.device).reshape([4, 1, 1, 1]);
    let draws = Draws { offset_noise: Some(offset), ..case.draws() };
    for (name, objective) in OBJECTIVES {
        let shared = SharedConfig { offset_noise_strength: 0.1, ..Default::default() };
        let config = config(BetaSchedule::Cosine, objective, shared);
        case.check(&format!("offset.{name}"), case.loss(&case.unet, &config, &draws));
    }
}

#[test]
fn self_conditioning_makes_a_first_pass_without_gradients() {
    let case = Case::open();
    let unet = case.golden.unet("unet_self_cond", "self_cond.state.", &case.device);
    let config = config(BetaSchedule::Linear, Objective::PredV, SharedConfig::default());
    let draws = |self_condition| Draws { self_condition, ..case.draws() };
    case.check("self_cond.off", case.loss(&unet, &config, &draws(false)));
    let loss = case.loss(&unet, &config, &draws(true));
    case.check("self_cond.on", loss.clone());
    let expected = to_ours(&case.golden.under("self_cond.on.grad_state.")).unwrap();
    check_gradients(NamedGradients::take(&unet, &mut loss.mean().backward()), &expected);
}

#[test]
fn immiscible_noise_is_assigned_as_scipy_assigns_it_and_shared_by_x_t_and_target() {
    let case = Case::open();
    let x_start = case.golden.host("immiscible.x_start");
    let noise = case.golden.values("immiscible.noise");
    let assignment = least_distance_assignment(&x_start.values, noise, 64);
    assert_eq!(assignment, case.golden.indices("immiscible.assignment"));

    let shared = SharedConfig { immiscible: true, auto_normalize: false, ..min_snr(true) };
    let config = config(BetaSchedule::Cosine, Objective::PredNoise, shared);
    let noise = case.golden.tensor("immiscible.noise", &case.device);
    let draws = draws(case.golden.values("immiscible.times"), vec![noise]);
    let images = case.golden.tensor::<4>("immiscible.x_start", &case.device);
    let loss = Diffusion::new(&config).unwrap().loss(&case.unet, images, &draws);
    assert_close("immiscible.loss", &values(loss), case.golden.values("immiscible.loss"), 1e-4);
}
