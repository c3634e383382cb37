//! Training steps and samples whose networks are recorded on a GPU come to what those come to that are launched: `just test-device wgpu`. On the CPU
//! nothing is recorded.

#[path = "common/device.rs"]
mod device;
#[path = "common/state.rs"]
mod state;

use std::sync::Mutex;

use burn::tensor::{Device, Tensor};
use denoising_diffusion::data::{DataLayout, ImageBatch, augment};
use denoising_diffusion::diffusion::{
    ContinuousTimeConfig, Diffusion, DiffusionConfig, ElucidatedConfig, Examples, FormulationConfig, GaussianConfig,
    GuidanceConfig, LearnedVarianceConfig, NoiseSchedule, Objective, WeightedObjectiveConfig,
};
use denoising_diffusion::generate::{Generator, Request};
use denoising_diffusion::models::{
    Calls, DitConfig, Extent, ImageNetwork, KarrasUnetConfig, LearnedSchedule, LearnedScheduleOptions, Network,
    NetworkConfig, NetworkInput, RecordingState, Scheduled, UnetConfig, UvitConfig,
};
use denoising_diffusion::nn::{Eval, EvalMode, Init};
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::sampler::SampleConfig;
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};
use device::{is_elsewhere, test_device};
use state::assert_same;

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
        self.trainer_of(self.network.build(&mut init()).unwrap(), device_graph)
    }

    fn trainer_of<M: Network>(&self, network: M, device_graph: bool) -> Trainer<M> {
        let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 1, ..EmaConfig::default() };
        let diffusion = Diffusion::new(&self.diffusion).unwrap();
        Trainer::new(network, diffusion, TrainConfig { device_graph, ..self.train.clone() }, ema, &test_device())
            .unwrap()
    }

    /// Some steps of both trainings, which have to do the same to the bit; of the one that records, in the end.
    fn trained(&self, steps: u64, between: impl FnMut(u64, &mut Trainer<ImageNetwork>)) -> Trainer<ImageNetwork> {
        trained([false, true].map(|device_graph| self.trainer(device_graph)), steps, between)
    }
}

fn init() -> Init {
    Init::new(1, &test_device().autodiff())
}

fn trained<M: Network>(
    [mut launched, mut recorded]: [Trainer<M>; 2],
    steps: u64,
    mut between: impl FnMut(u64, &mut Trainer<M>),
) -> Trainer<M> {
    let _alone = ALONE.lock();
    let parts = launched.config().accumulate;
    for step in 0..steps {
        let [a, b] = [&mut launched, &mut recorded].map(|trainer| {
            between(step, trainer);
            trainer.step((0..parts).map(|part| examples(step, part)).collect::<Vec<_>>())
        });
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }
    assert_same(&launched.state(), &recorded.state());
    recorded
}

/// With all that a network may be told, which differs from step to step. The sixth step's are spoiled.
fn examples(step: u64, part: usize) -> Examples {
    let data =
        normal_batch(9, Purpose::Evaluation, BATCH as u64 * step, part as u32, [BATCH, 1, 8, 8], &Device::flex());
    let mut data: Tensor<4> = (data * 0.2 + 0.5).clamp(0.0, 1.0);
    let condition = Some(1.0 - data.clone());
    let vectors = Some((0..2 * BATCH).map(|i| (step as f32 + 0.5 * i as f32).sin()).collect());
    if step == 5 {
        data = data.slice_fill([0..1, 0..1, 2..3, 2..3], f32::INFINITY);
    }
    let augment_labels = Some((0..augment::LABELS * BATCH).map(|i| (step as f32 + 0.3 * i as f32).cos()).collect());
    Examples { data, classes: Some(vec![step as u32 % 3, 1]), condition, vectors, augment_labels }
}

fn unet() -> UnetConfig {
    UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() }
}

fn dit() -> DitConfig {
    let (hidden_size, depth, num_heads) = (Some(16), Some(2), Some(2));
    DitConfig { hidden_size, depth, num_heads, channels: 1, num_classes: 3, patch_size: 2, ..DitConfig::default() }
}

fn uvit() -> UvitConfig {
    let dim_mults = vec![1, 2];
    UvitConfig { dim: 8, dim_mults, vit_depth: 1, channels: 1, vit_dropout: 0.0, ..UvitConfig::default() }
}

fn karras() -> KarrasUnetConfig {
    KarrasUnetConfig {
        dim: 8,
        dim_max: 8,
        channels: 1,
        num_downsamples: 1,
        attn_res: vec![],
        extent: Some(Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 }),
        ..KarrasUnetConfig::default()
    }
}

fn records() -> bool {
    is_elsewhere() && cfg!(not(feature = "fusion"))
}

/// Where it can be, and refused elsewhere.
fn assert_state(state: &RecordingState) {
    match state {
        RecordingState::Recorded if records() => {}
        RecordingState::Refused(_) if !records() => {}
        otherwise => panic!("{otherwise:?}"),
    }
}

fn assert_recorded<M: Network>(trainer: &Trainer<M>) {
    assert_state(&trainer.recording_state());
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
    assert_recorded(&recorded);
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
    assert_recorded(&recorded);
}

/// A network that is told all there is to be told.
fn told() -> UnetConfig {
    UnetConfig {
        num_classes: 3,
        vector_dim: 2,
        condition_channels: 1,
        self_condition: true,
        augment_labels: true,
        ..unet()
    }
}

#[test]
fn what_a_network_is_told_is_not_recorded() {
    let unet = UnetConfig { class_drop_prob: 0.3, ..told() };
    let recorded = Case::new(NetworkConfig::Unet(unet), DiffusionConfig::default()).trained(12, |_, _| ());
    assert_recorded(&recorded);
}

/// Outputs of several parts, passes before the step's own, several batches.
#[test]
fn formulations_of_all_kinds_are_recorded() {
    let two = UnetConfig { out_dim: Some(2), ..unet() };
    let variance = FormulationConfig::LearnedVariance(LearnedVarianceConfig::default());
    let four = UnetConfig { out_dim: Some(4), ..unet() };
    let weighted = FormulationConfig::WeightedObjective(WeightedObjectiveConfig::default());
    let earlier = UnetConfig { self_condition: true, ..unet() };
    let mut candidates = Case::new(NetworkConfig::Unet(unet()), DiffusionConfig::default());
    candidates.diffusion.shared.xm_candidates = 3;
    let mut several = Case::new(NetworkConfig::Unet(earlier.clone()), DiffusionConfig::default());
    several.train.accumulate = 2;
    for case in [
        Case::new(NetworkConfig::Unet(two), variance),
        Case::new(NetworkConfig::Unet(four), weighted),
        Case::new(NetworkConfig::Unet(earlier), DiffusionConfig::default()),
        candidates,
        several,
    ] {
        let recorded = case.trained(8, |_, _| ());
        assert_recorded(&recorded);
    }
}

#[test]
fn a_schedule_that_is_learned_is_recorded() {
    let learned = ContinuousTimeConfig { noise_schedule: NoiseSchedule::Learned, ..ContinuousTimeConfig::default() };
    let case = Case::new(NetworkConfig::Unet(unet()), FormulationConfig::ContinuousTime(learned));
    let trainers = [false, true].map(|device_graph| {
        let network = case.network.build(&mut init()).unwrap();
        let options = LearnedScheduleOptions { hidden_dim: 16, frac_gradient: 1.0, log_snr: [13.3, -5.0] };
        let noise_schedule = LearnedSchedule::new(&mut init(), options);
        case.trainer_of(Scheduled { network, noise_schedule }, device_graph)
    });
    let recorded = trained(trainers, 8, |_, _| ());
    assert_recorded(&recorded);
}

/// DiT uploads constants in its passes, which some devices record and others do not.
#[test]
fn transformers_train_the_same_recorded_or_not() {
    let gaussian = GaussianConfig { objective: Objective::PredV, ..GaussianConfig::default() };
    let elucidated = FormulationConfig::Elucidated(ElucidatedConfig::default());
    for (network, formulation) in
        [(NetworkConfig::Dit(dit()), FormulationConfig::Gaussian(gaussian)), (NetworkConfig::Uvit(uvit()), elucidated)]
    {
        let recorded = Case::new(network, formulation).trained(8, |_, _| ());
        assert_ne!(recorded.recording_state(), RecordingState::NotTried);
    }
}

/// Each replay drops out anew, and each of two batches for itself; so does the pass of self-conditioning, which is launched if it is drawn.
#[test]
fn networks_with_dropout_train_the_same_recorded_or_not() {
    let dropout = UnetConfig { dropout: 0.1, self_condition: true, ..unet() };
    let mut case = Case::new(NetworkConfig::Unet(dropout), DiffusionConfig::default());
    case.train.accumulate = 2;
    let recorded = case.trained(8, |_, _| ());
    assert_recorded(&recorded);
}

/// Forced norms are a sweep of the step, which leaves weights where they are, and as they are if the step is skipped.
#[test]
fn networks_with_forced_norms_train_the_same_recorded_or_not() {
    let elucidated = FormulationConfig::Elucidated(ElucidatedConfig::default());
    let recorded = Case::new(NetworkConfig::KarrasUnet(karras()), elucidated).trained(8, |_, _| ());
    assert_recorded(&recorded);
}

/// How samples are drawn of networks.
struct Drawing {
    diffusion: DiffusionConfig,
    guidance: GuidanceConfig,
    sample: SampleConfig,
}

impl Drawing {
    fn new(diffusion: impl Into<DiffusionConfig>) -> Self {
        // The last batch is a smaller one.
        let sample = SampleConfig { sampling_timesteps: Some(6), sample_batch_size: 3, ..SampleConfig::default() };
        Self { diffusion: diffusion.into(), guidance: GuidanceConfig::default(), sample }
    }

    /// Samples for which `model` is launched and recorded, which have to be the same to the bit; whether it could be recorded.
    fn drawn(&self, model: &NetworkConfig, weak: Option<&NetworkConfig>) -> RecordingState {
        let _alone = ALONE.lock();
        let diffusion = Diffusion::new(&self.diffusion).unwrap();
        let build = |seed, network: &NetworkConfig| -> Eval<ImageNetwork> {
            network.build(&mut Init::new(seed, &test_device().autodiff())).unwrap().eval().for_predictions()
        };
        let (model, weak) = (build(1, model), weak.map(|network| build(2, network)));
        let draw = |device_graph| {
            let calls = |model| Calls::new(model, device_graph);
            let weak = weak.as_ref().map(calls);
            let generator = Generator {
                guidance: self.guidance.clone(),
                weak,
                ..Generator::new(calls(&model), &diffusion, &test_device())
            };
            let conditions = (Network::condition_channels(&*model) > 0).then(|| ImageBatch {
                shape: [7, 1, 8, 8],
                data: (0..7 * 64).map(|i| (i as f32).cos().abs()).collect(),
            });
            let vectors: Vec<f32> = (0..7 * Network::vector_dim(&*model)).map(|i| (i as f32).sin()).collect();
            let request = Request {
                classes: (Network::num_classes(&*model) > 0).then_some(&[0, 1, 2, 0, 1, 2, 0]),
                conditions: conditions.as_ref().map(|of| of as _),
                vectors: (!vectors.is_empty()).then_some(&vectors),
                ..Request::new(&self.sample, 3, 7, [1, 8, 8])
            };
            let images = generator.generate(&request).unwrap();
            (images, generator.model.recording_state())
        };
        let (launched, _) = draw(false);
        let (recorded, state) = draw(true);
        let bits = |images: &ImageBatch| images.data.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&launched) == bits(&recorded), "the samples differ");
        state
    }
}

/// With guidance in a part of the levels only, so that batches are of two sizes, and in all of them by a weaker network.
#[test]
fn samples_of_recorded_networks_are_those_of_launched_ones() {
    let classes = NetworkConfig::Unet(UnetConfig { num_classes: 3, ..unet() });
    let mut drawing = Drawing::new(DiffusionConfig::default());
    drawing.guidance.guidance = 2.0;
    drawing.guidance.guidance_interval = Some([0.3, 5.0]);
    assert_state(&drawing.drawn(&classes, None));
    drawing.guidance.guidance_interval = None;
    let weak = NetworkConfig::Unet(UnetConfig { dim_mults: vec![1], num_classes: 3, ..unet() });
    assert_state(&drawing.drawn(&classes, Some(&weak)));
    let earlier = NetworkConfig::Unet(UnetConfig { self_condition: true, ..unet() });
    assert_state(&drawing.drawn(&earlier, None));
    assert_state(&drawing.drawn(&NetworkConfig::Unet(told()), None));
}

/// Networks that upload constants, which some devices record and others do not.
#[test]
fn samples_are_the_same_recorded_or_not() {
    let drawing = Drawing::new(FormulationConfig::Elucidated(ElucidatedConfig::default()));
    for network in [NetworkConfig::Dit(dit()), NetworkConfig::Uvit(uvit()), NetworkConfig::KarrasUnet(karras())] {
        assert_ne!(drawing.drawn(&network, None), RecordingState::NotTried, "{network:?}");
    }
}

/// Also where the same network is recorded for inputs that none are asked of.
#[test]
fn what_gradients_are_asked_of_is_launched() {
    let _alone = ALONE.lock();
    let model: Eval<ImageNetwork> = NetworkConfig::Unet(unet()).build(&mut init()).unwrap().eval();
    let x = normal_batch(3, Purpose::Evaluation, 0, 0, [BATCH, 1, 8, 8], &test_device());
    let gradient = |device_graph| -> Vec<f32> {
        let calls = Calls::new(&model, device_graph);
        let input = |x: Tensor<4>| NetworkInput::new(x.clone(), Tensor::from_floats([3.0, 700.0], &x.device()));
        (0..4).for_each(|_| _ = calls.predict(input(x.clone())));
        assert_eq!(calls.recording_state() == RecordingState::Recorded, device_graph && records());
        let x = x.clone().autodiff().require_grad();
        let mut gradients = calls.predict(input(x.clone())).square().sum().backward();
        x.grad_remove(&mut gradients).unwrap().into_data().try_to_vec().unwrap()
    };
    let launched = gradient(false);
    assert!(launched.iter().any(|value| *value != 0.0));
    assert_eq!(gradient(true), launched);
}
