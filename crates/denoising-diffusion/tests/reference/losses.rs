//! `GaussianDiffusion.forward(image, times, noise=..., loss_reduction="none")` and its gradients.

use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::{
    BetaSchedule, Draws, GaussianConfig, GaussianDiffusion, Objective, least_distance_assignment,
};
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::models::Unet;
use denoising_diffusion::train::NamedGradients;

use crate::golden::{Golden, assert_close, values};
use crate::unets::check_gradients;

const SCHEDULES: [(&str, BetaSchedule); 3] =
    [("linear", BetaSchedule::Linear), ("cosine", BetaSchedule::Cosine), ("sigmoid", BetaSchedule::Sigmoid)];
const OBJECTIVES: [(&str, Objective); 3] =
    [("pred_noise", Objective::PredNoise), ("pred_x0", Objective::PredX0), ("pred_v", Objective::PredV)];

fn config() -> GaussianConfig {
    GaussianConfig { timesteps: 50, beta_schedule: BetaSchedule::Cosine, ..GaussianConfig::default() }
}

struct Case {
    golden: Golden,
    device: Device,
    unet: Unet,
}

impl Case {
    fn open() -> Self {
        let golden = Golden::open("losses");
        let device = Device::flex().autodiff();
        Self { unet: golden.unet("unet", "state.", &device), golden, device }
    }

    fn draws(&self) -> Draws<4> {
        let noise = self.golden.tensor("noise", &self.device);
        Draws { t: self.golden.indices("times"), noise, offset_noise: None, self_condition: false }
    }

    fn loss(&self, unet: &Unet, config: GaussianConfig, draws: &Draws<4>) -> Tensor<1> {
        let diffusion = GaussianDiffusion::new(&config).unwrap();
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
                let config = GaussianConfig { beta_schedule, objective, min_snr_loss_weight, ..config() };
                let loss = case.loss(&case.unet, config, &case.draws());
                case.check(&format!("loss.{schedule_name}.{objective_name}.{kind}"), loss);
            }
        }
    }
}

#[test]
fn gradients_of_a_loss() {
    let case = Case::open();
    let config = GaussianConfig { objective: Objective::PredNoise, min_snr_loss_weight: true, ..config() };
    let loss = case.loss(&case.unet, config, &case.draws()).mean();
    let expected = to_ours(&case.golden.under("gradient.grad_state.")).unwrap();
    check_gradients(NamedGradients::take(&case.unet, &mut loss.backward()), &expected);
}

#[test]
fn data_as_it_is() {
    let case = Case::open();
    let config = GaussianConfig { beta_schedule: BetaSchedule::Sigmoid, auto_normalize: false, ..config() };
    case.check("no_auto_normalize", case.loss(&case.unet, config, &case.draws()));
}

#[test]
fn offset_noise_is_in_x_t_and_target() {
    let case = Case::open();
    let offset = case.golden.tensor::<2>("offset.noise", &case.device).reshape([4, 1, 1, 1]);
    let draws = Draws { offset_noise: Some(offset), ..case.draws() };
    for (name, objective) in OBJECTIVES {
        let config = GaussianConfig { objective, offset_noise_strength: 0.1, ..config() };
        case.check(&format!("offset.{name}"), case.loss(&case.unet, config, &draws));
    }
}

#[test]
fn self_conditioning_makes_a_first_pass_without_gradients() {
    let case = Case::open();
    let unet = case.golden.unet("unet_self_cond", "self_cond.state.", &case.device);
    let config = GaussianConfig { beta_schedule: BetaSchedule::Linear, ..config() };
    let draws = |self_condition| Draws { self_condition, ..case.draws() };
    case.check("self_cond.off", case.loss(&unet, config.clone(), &draws(false)));
    let loss = case.loss(&unet, config, &draws(true));
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

    let config = GaussianConfig {
        objective: Objective::PredNoise,
        min_snr_loss_weight: true,
        immiscible: true,
        auto_normalize: false,
        ..config()
    };
    let draws = Draws {
        t: case.golden.indices("immiscible.times"),
        noise: case.golden.tensor("immiscible.noise", &case.device),
        offset_noise: None,
        self_condition: false,
    };
    let images = case.golden.tensor::<4>("immiscible.x_start", &case.device);
    let loss = GaussianDiffusion::new(&config).unwrap().loss(&case.unet, images, &draws);
    assert_close("immiscible.loss", &values(loss), case.golden.values("immiscible.loss"), 1e-4);
}
