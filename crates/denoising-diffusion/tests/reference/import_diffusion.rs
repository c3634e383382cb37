//! State dicts of the reference's diffusion classes: what their tensors tell of the formulation, and the same estimates of clean data.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use denoising_diffusion::data::ImageShape;
use denoising_diffusion::diffusion::{
    Denoiser, Diffusion, DiffusionConfig, Estimate, FormulationConfig, GuidanceConfig, NoiseLevel, Threshold,
};
use denoising_diffusion::interop::{ReferenceCheckpoint, ReferenceKind, ReferenceWeights, to_reference};
use denoising_diffusion::model_file::{ModelCard, ModelFile};
use denoising_diffusion::models::ImageNetwork;
use denoising_diffusion::nn::Eval;
use denoising_diffusion::weights::WeightsKind;
use serde_json::{Map, Value, json};

use crate::golden::{Golden, assert_close, test_device, values};

/// A checkpoint as a model file of ours, written and read again.
struct Case {
    name: &'static str,
    golden: Golden,
    device: Device,
    unet: Eval<ImageNetwork>,
    diffusion: Diffusion,
}

fn weights(name: &str) -> ReferenceWeights {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/formulation_{name}.pt"));
    let checkpoint = ReferenceCheckpoint::open(&path).unwrap();
    assert_eq!(checkpoint.kind(), ReferenceKind::Diffusion, "{name}");
    checkpoint.weights(WeightsKind::Ema).unwrap()
}

impl Case {
    fn open(name: &'static str, said: Value) -> Self {
        let weights = weights(name);
        let inferred = weights.infer().unwrap();
        let Value::Object(said) = said else { panic!("{said}") };
        let diffusion = inferred.diffusion_with(&said).unwrap();
        let image = ImageShape { channels: inferred.network.channels().unwrap(), height: 8, width: 8 };
        let card = ModelCard {
            betas: inferred.betas,
            weights: WeightsKind::Model,
            ..ModelCard::new(inferred.network, diffusion, image)
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        ModelFile { card, state: weights.to_ours().unwrap() }.write(&path).unwrap();
        let device = test_device();
        let (unet, diffusion) = ModelFile::read(&path).unwrap().build(&device).unwrap();
        Self { name, golden: Golden::open("import_diffusion"), device, unet, diffusion }
    }

    /// Of both examples, each at its time, without limit.
    fn denoised(&self, times: [f64; 2]) -> [(NoiseLevel, Estimate<4>); 2] {
        let free = GuidanceConfig { threshold: Threshold::None, ..GuidanceConfig::default() };
        let denoiser = self.diffusion.denoiser(&self.unet).guided(&free);
        let x: Tensor<4> = self.golden.tensor("x", &self.device);
        [0, 1].map(|i| {
            let level = self.diffusion.level(times[i]);
            (level, denoiser.denoise(x.clone().narrow(0, i, 1), level, None))
        })
    }

    fn assert_x_start(&self, denoised: &[(NoiseLevel, Estimate<4>); 2]) {
        let got: Vec<f32> = denoised.iter().flat_map(|(_, estimate)| values(estimate.x_start.clone())).collect();
        assert_close(self.name, &got, self.golden.values(&format!("{}.x_start", self.name)), 1e-4);
    }

    fn assert_log_snr(&self, time: f64) {
        let got = self.diffusion.level(time).log_snr() as f32;
        let expected = self.golden.values(&format!("{}.log_snr", self.name));
        assert_close("log_snr", &[got], expected, 1e-5);
    }
}

#[test]
fn learned_variance() {
    let case = Case::open("learned_variance", json!({}));
    assert_eq!(case.diffusion.config().unwrap().formulation.name(), "learned_variance");
    let times = [12.0, 3.0];
    let denoised = case.denoised(times);
    case.assert_x_start(&denoised);
    let tables = case.diffusion.tables().unwrap();
    let log_variances = denoised.into_iter().zip(times).flat_map(|((_, estimate), t)| {
        let [small, large] = [tables.posterior_log_variance_clipped[t as usize], tables.betas[t as usize].ln()];
        values(estimate.variance.unwrap() * (large - small) + small)
    });
    let expected = case.golden.values("learned_variance.log_variance");
    assert_close("log_variance", &log_variances.collect::<Vec<_>>(), expected, 1e-5);
}

#[test]
fn weighted_objective() {
    let case = Case::open("weighted_objective", json!({}));
    assert_eq!(case.diffusion.config().unwrap().formulation.name(), "weighted_objective");
    case.assert_x_start(&case.denoised([12.0, 3.0]));
}

#[test]
fn continuous_time_with_a_learned_schedule() {
    let case = Case::open("continuous_learned", json!({}));
    assert_eq!(case.diffusion.config().unwrap().formulation.name(), "continuous_time");
    case.assert_log_snr(0.6);
    case.assert_x_start(&case.denoised([0.6; 2]));

    let weights = weights("continuous_learned");
    let back = to_reference(&weights.to_ours().unwrap(), weights.infer().unwrap().unet().unwrap()).unwrap();
    assert_eq!((back.strip_prefix("model."), back.len()), (weights.state.clone(), weights.state.len() + 6));
    assert!(weights.schedule.iter().all(|(name, tensor)| back.get(name) == Some(tensor)));
}

/// Nothing in the file tells v from noise, nor cosine from linear.
#[test]
fn continuous_time_as_someone_says() {
    let case = Case::open("continuous_v", json!({"objective": "pred_v", "noise_schedule": "cosine"}));
    case.assert_log_snr(0.6);
    case.assert_x_start(&case.denoised([0.6; 2]));
}

#[test]
fn elucidated() {
    let case = Case::open("elucidated", json!({}));
    assert_eq!(case.diffusion.config().unwrap().formulation.name(), "elucidated");
    case.assert_x_start(&case.denoised([0.7; 2]));
}

/// The options that the checkpoints were made with, as far as a state dict tells them.
#[test]
fn told_options_are_those_that_were_used() {
    let golden = Golden::open("import_diffusion");
    for (name, case) in golden.config["cases"].as_object().unwrap() {
        let inferred = weights(name).infer().unwrap();
        for (key, used) in case["unet"].as_object().unwrap() {
            let unet = serde_json::to_value(inferred.unet()).unwrap();
            assert_eq!(&unet[key], used, "{name}: {key}, {:?}", inferred.notes);
        }
        let told: Map<String, Value> = inferred.diffusion.clone().unwrap().into();
        for (key, used) in case["diffusion"].as_object().unwrap() {
            let ours = if key == "learned_schedule_net_hidden_dim" { "learned_schedule_hidden_dim" } else { key };
            if let Some(told) = told.get(ours).filter(|_| !inferred.assumed.contains(&ours)) {
                assert_eq!(told, used, "{name}: {key}, {:?}", inferred.notes);
            }
        }
        let mut told: Vec<&str> =
            told.keys().map(String::as_str).filter(|key| !inferred.assumed.contains(key)).collect();
        told.sort_unstable();
        let expected: &[&str] = match name.as_str() {
            "learned_variance" => &["beta_schedule", "diffusion", "timesteps", "variance_reading", "zero_terminal_snr"],
            "weighted_objective" => &["beta_schedule", "diffusion", "timesteps", "zero_terminal_snr"],
            "continuous_learned" => &["diffusion", "learned_schedule_hidden_dim", "noise_schedule"],
            _ => &[],
        };
        assert_eq!(told, expected, "{name}");
    }
}

/// simple_diffusion around this U-Net saves what a class of continuous time saves.
#[test]
fn another_formulation_is_named_by_someone() {
    let inferred = weights("continuous_v").infer().unwrap();
    let said = |said: Value| inferred.diffusion_with(said.as_object().unwrap());
    let config: DiffusionConfig = said(json!({"diffusion": "simple", "noise_d": 64.0, "image_d": 8.0})).unwrap();
    let FormulationConfig::Simple(simple) = config.formulation else { panic!("{config:?}") };
    assert_eq!((simple.noise_d, simple.image_d), (Some(64.0), Some(8.0)));
    let error = said(json!({"sigma_data": 0.5})).unwrap_err();
    assert!(format!("{error:?}").contains("sigma_data"), "{error:?}");
}
