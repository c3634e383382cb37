//! Checkpoints of the reference's Trainer, and plain state dicts: same weights, same outputs.

use std::path::PathBuf;

use burn::tensor::Device;
use denoising_diffusion::diffusion::{BetaSchedule, Diffusion, FormulationConfig, Objective};
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::interop::{ReferenceCheckpoint, to_ours};
use denoising_diffusion::models::{Network, NetworkInput, Unet};
use denoising_diffusion::nn::{Eval, EvalMode, Init, params};
use denoising_diffusion::sampler::{SampleConfig, SamplerKind};
use denoising_diffusion::weights::WeightsKind;

use crate::golden::{Golden, assert_close, test_device, values};

fn open(file: &str) -> ReferenceCheckpoint {
    ReferenceCheckpoint::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)).unwrap()
}

fn unet(checkpoint: &ReferenceCheckpoint, which: WeightsKind, device: &Device) -> Eval<Unet> {
    let weights = checkpoint.weights(which).unwrap();
    let config = weights.infer().unwrap().unet().unwrap().clone();
    let unet = Unet::new(&config, &mut Init::new(0, device)).unwrap();
    params::load_state_dict(unet, &to_ours(&weights.state).unwrap()).unwrap().eval()
}

#[test]
fn a_trainer_checkpoint_gives_the_references_outputs_and_samples() {
    let golden = Golden::open("import");
    let device = test_device();
    let checkpoint = open("model-1.pt");
    for (which, name) in [(WeightsKind::Ema, "ema"), (WeightsKind::Model, "model")] {
        let unet = unet(&checkpoint, which, &device);
        let input = NetworkInput::new(golden.tensor("x", &device), golden.tensor("time", &device));
        let forward = format!("forward.{name}");
        assert_close(&forward, &values(unet.forward(input)), golden.values(&forward), 1e-4);

        let config = checkpoint.weights(which).unwrap().infer().unwrap().diffusion.unwrap();
        let FormulationConfig::Gaussian(gaussian) = &config.formulation else { panic!("{config:?}") };
        assert_eq!((gaussian.objective, gaussian.schedule.beta_schedule), (Objective::PredNoise, BetaSchedule::Cosine));
        assert_eq!((config.min_snr(), config.timesteps()), (Some(5.0), Some(50)));
        let diffusion = Diffusion::new(&config).unwrap();
        let sample =
            SampleConfig { sampler: SamplerKind::Ddim, sampling_timesteps: Some(5), ..SampleConfig::default() };
        let init_noise = Some(golden.values("x_T"));
        let request = Request { init_noise, ..Request::new(&sample, 0, 4, [1, 8, 8]) };
        let images = Generator::new(&unet, &diffusion, &device).generate(&request).unwrap();
        assert_close(name, &images.data, golden.values(&format!("ddim.{name}")), 1e-4);
    }
}

#[test]
fn a_plain_state_dict_gives_the_references_output() {
    let golden = Golden::open("import");
    let device = test_device();
    let unet = unet(&open("state_dict.pt"), WeightsKind::Ema, &device);
    let input = NetworkInput {
        x_self_cond: Some(golden.tensor("plain.x_self_cond", &device)),
        ..NetworkInput::new(golden.tensor("plain.x", &device), golden.tensor("plain.time", &device))
    };
    assert_close("plain", &values(unet.forward(input)), golden.values("plain.output"), 1e-4);
}
