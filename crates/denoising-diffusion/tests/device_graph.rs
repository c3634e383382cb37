//! Passes that are recorded on a GPU come to what passes come to that are launched: `just test-device wgpu`. On the CPU nothing is recorded.

#[path = "common/device.rs"]
mod device;

use std::sync::Mutex;

use burn::tensor::{Device, Tensor};
use denoising_diffusion::data::DataLayout;
use denoising_diffusion::diffusion::{
    Diffusion, DiffusionConfig, ElucidatedConfig, Examples, FormulationConfig, GaussianConfig, LearnedVarianceConfig,
    Objective, WeightedObjectiveConfig,
};
use denoising_diffusion::interop::StateDict;
use denoising_diffusion::models::{
    DitConfig, Extent, ImageNetwork, KarrasUnetConfig, NetworkConfig, UnetConfig, UvitConfig,
};
use denoising_diffusion::nn::Init;
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer, TrainerState};
use device::{is_elsewhere, test_device};

/// Dropout draws from one generator per process: one training at a time.
static ALONE: Mutex<()> = Mutex::new(());

const BATCH: usize = 2;

/// A network and how it is trained; both trainings of it begin alike.
struct Case {
    network: NetworkConfig,
    diffusion: DiffusionConfig,
    train: TrainConfig,
}

impl Case {
    fn new(network: NetworkConfig, diffusion: impl Into<DiffusionConfig>) -> Self {
        Self {
            network,
            diffusion: diffusion.into(),
            train: TrainConfig { batch_size: BATCH, ..TrainConfig::default() },
        }
    }

    fn trainer(&self, device_graph: bool) -> Trainer<ImageNetwork> {
        let device = test_device();
        let network = self.network.build(&mut Init::new(1, &device.clone().autodiff())).unwrap();
        let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 1, ..EmaConfig::default() };
        let diffusion = Diffusion::new(&self.diffusion).unwrap();
        Trainer::new(network, diffusion, TrainConfig { device_graph, ..self.train.clone() }, ema, &device)
    }

    /// Some steps of both trainings, which have to do the same to the bit; of the one that records, in the end.
    fn trained(&self, steps: u64, mut between: impl FnMut(u64, &mut Trainer<ImageNetwork>)) -> Trainer<ImageNetwork> {
        let _alone = ALONE.lock();
        let [mut launched, mut recorded] = [false, true].map(|device_graph| self.trainer(device_graph));
        for step in 0..steps {
            let [a, b] = [&mut launched, &mut recorded].map(|trainer| {
                between(step, trainer);
                trainer.step((0..self.train.accumulate).map(|_| examples(step)).collect::<Vec<_>>())
            });
            assert_eq!(format!("{a:?}"), format!("{b:?}"));
        }
        assert_same(&launched.state(), &recorded.state());
        recorded
    }
}

/// The sixth step's are spoiled.
fn examples(step: u64) -> Examples<4> {
    let data = normal_batch(9, Purpose::Evaluation, BATCH as u64 * step, 0, [BATCH, 1, 8, 8], &Device::flex());
    let mut data: Tensor<4> = (data * 0.2 + 0.5).clamp(0.0, 1.0);
    if step == 5 {
        data = data.slice_fill([0..1, 0..1, 2..3, 2..3], f32::INFINITY);
    }
    Examples { classes: Some(vec![step as u32 % 3, 1]), ..data.into() }
}

fn bits(state: &StateDict) -> Vec<(String, Vec<u32>)> {
    state.iter().map(|(name, tensor)| (name.to_string(), tensor.values.iter().map(|v| v.to_bits()).collect())).collect()
}

fn assert_same(a: &TrainerState, b: &TrainerState) {
    assert_eq!((a.step, a.skipped, a.adam_steps, a.ema_calls), (b.step, b.skipped, b.adam_steps, b.ema_calls));
    for (a, b) in [(&a.model, &b.model), (&a.ema, &b.ema), (&a.adam, &b.adam)] {
        assert!(bits(a) == bits(b), "the trainings differ");
    }
}

fn unet() -> UnetConfig {
    UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() }
}

fn records() -> bool {
    is_elsewhere() && cfg!(not(feature = "fusion"))
}

/// Something holds the weights for a while, so that they move.
#[test]
fn unets_are_recorded() {
    let case = Case::new(NetworkConfig::Unet(unet()), DiffusionConfig::default());
    let mut held = None;
    let recorded = case.trained(12, |step, trainer| match step {
        7 => held = Some(trainer.model().clone()),
        8 => held = None,
        _ => {}
    });
    assert_eq!(recorded.is_recorded().map(|recorded| recorded.is_ok()), Some(records()));
}

/// Classes that are dropped now and then, offset noise, noise that is assigned, activations that are computed again.
#[test]
fn what_the_host_decides_is_not_recorded() {
    let unet = UnetConfig { num_classes: 3, class_drop_prob: 0.5, ..unet() };
    let mut case = Case::new(NetworkConfig::Unet(unet), FormulationConfig::Elucidated(ElucidatedConfig::default()));
    case.diffusion.shared.offset_noise_strength = 0.1;
    case.diffusion.shared.immiscible = true;
    case.train.checkpoint_activations = true;
    let recorded = case.trained(8, |_, _| ());
    assert_eq!(recorded.is_recorded().map(|recorded| recorded.is_ok()), Some(records()));
}

#[test]
fn a_weighted_objective_is_recorded() {
    let unet = UnetConfig { out_dim: Some(4), ..unet() };
    let case =
        Case::new(NetworkConfig::Unet(unet), FormulationConfig::WeightedObjective(WeightedObjectiveConfig::default()));
    let recorded = case.trained(8, |_, _| ());
    assert_eq!(recorded.is_recorded().map(|recorded| recorded.is_ok()), Some(records()));
}

/// DiT uploads constants in its passes, which some devices record and others do not.
#[test]
fn transformers_train_the_same_recorded_or_not() {
    let (hidden_size, depth, num_heads) = (Some(16), Some(2), Some(2));
    let dit =
        DitConfig { hidden_size, depth, num_heads, channels: 1, num_classes: 3, patch_size: 2, ..DitConfig::default() };
    let dim_mults = vec![1, 2];
    let uvit = UvitConfig { dim: 8, dim_mults, vit_depth: 1, channels: 1, vit_dropout: 0.0, ..UvitConfig::default() };
    for network in [NetworkConfig::Dit(dit), NetworkConfig::Uvit(uvit)] {
        let gaussian = GaussianConfig { objective: Objective::PredV, ..GaussianConfig::default() };
        let recorded = Case::new(network, FormulationConfig::Gaussian(gaussian)).trained(8, |_, _| ());
        assert!(recorded.is_recorded().is_some());
    }
}

#[test]
fn what_cannot_be_recorded_is_launched() {
    let dropout = UnetConfig { dropout: 0.1, ..unet() };
    let self_condition = UnetConfig { self_condition: true, ..unet() };
    let two = UnetConfig { out_dim: Some(2), ..unet() };
    let variance = FormulationConfig::LearnedVariance(LearnedVarianceConfig::default());
    let extent = Some(Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 });
    let karras = KarrasUnetConfig {
        dim: 8,
        dim_max: 8,
        channels: 1,
        num_downsamples: 1,
        attn_res: vec![],
        extent,
        ..KarrasUnetConfig::default()
    };
    let mut several = Case::new(NetworkConfig::Unet(unet()), DiffusionConfig::default());
    several.train.accumulate = 2;
    for case in [
        Case::new(NetworkConfig::Unet(dropout), DiffusionConfig::default()),
        Case::new(NetworkConfig::Unet(self_condition), DiffusionConfig::default()),
        Case::new(NetworkConfig::Unet(two), variance),
        Case::new(NetworkConfig::KarrasUnet(karras), FormulationConfig::Elucidated(ElucidatedConfig::default())),
        several,
    ] {
        let recorded = case.trained(3, |_, _| ());
        assert!(matches!(recorded.is_recorded(), Some(Err(_))), "{:?}", case.network);
    }
}
