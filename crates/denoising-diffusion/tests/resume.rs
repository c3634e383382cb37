//! A training that stops and goes on, and one that does not wait for its steps, on the device of the tests: `just test-device wgpu`. Every network
//! and formulation on the CPU: `matrix`.

#[path = "common/device.rs"]
mod device;
#[path = "common/state.rs"]
mod state;

use std::sync::Mutex;

use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig};
use denoising_diffusion::models::{Unet, UnetConfig};
use denoising_diffusion::nn::Init;
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::post_hoc::Profile;
use denoising_diffusion::train::{EmaConfig, NonFiniteKind, StepReport, TrainConfig, Trainer, TrainerState};
use denoising_diffusion::weights::StateDict;
use device::test_device;
use state::bits;

/// Dropout draws from one generator per process: one training at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn trainer(seed: u64, dropout: f64, device: &Device) -> Trainer<Unet> {
    let config = UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, dropout, ..UnetConfig::default() };
    let model = Unet::new(&config, &mut Init::new(seed, &device.clone().autodiff())).unwrap();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 1, ..EmaConfig::default() };
    let profiles = [0.05, 0.2].map(|sigma_rel| Profile::new(sigma_rel).unwrap());
    let config = TrainConfig { batch_size: 2, ..TrainConfig::default() };
    Trainer::new(model, diffusion, config, ema, device).unwrap().with_power_emas(&profiles).unwrap()
}

fn data(step: u64) -> Tensor<4> {
    let data = normal_batch(9, Purpose::Evaluation, 2 * step, 0, [2, 1, 8, 8], &Device::flex());
    (data * 0.2 + 0.5).clamp(0.0, 1.0)
}

fn train(trainer: &mut Trainer<Unet>, steps: std::ops::Range<u64>) -> f64 {
    let mut loss = f64::NAN;
    for step in steps {
        let report = trainer.step(vec![data(step)]);
        assert!(report.skipped.is_none(), "{report:?}");
        loss = report.loss;
    }
    loss
}

#[test]
fn a_resumed_training_gives_the_same_bits() {
    let _alone = ALONE.lock();
    let device = test_device();
    let new = |seed| trainer(seed, 0.1, &device);
    let (mut whole, mut begun, mut resumed) = (new(1), new(1), new(2));
    train(&mut whole, 0..3);
    train(&mut begun, 0..2);
    let state = begun.state();
    resumed.restore(&state).unwrap();
    train(&mut resumed, 2..3);
    let (whole, resumed) = (whole.state(), resumed.state());
    assert_same(&whole, &resumed);
    assert!(bits(&resumed.model) != bits(&state.model));
}

fn assert_same(a: &TrainerState, b: &TrainerState) {
    state::assert_same(a, b);
    assert_eq!((a.power_emas.len(), b.power_emas.len()), (2, 2));
    for (a, b) in a.power_emas.iter().zip(&b.power_emas) {
        assert_eq!(a.sigma_rel, b.sigma_rel);
        assert!(bits(&a.weights) == bits(&b.weights), "the averages of {} differ", a.sigma_rel);
    }
}

/// Steps that change nothing among them: the first, two in a row, and the last.
#[test]
fn steps_in_flight_come_to_the_same() {
    let _alone = ALONE.lock();
    let device = test_device();
    let batches = |step: u64| match step {
        0 | 3 | 4 | 6 => vec![data(step), data(step + 10).slice_fill([0..1, 0..1, 2..3, 2..3], f32::INFINITY)],
        _ => vec![data(step), data(step + 10)],
    };
    let (mut waiting, mut flying) = (trainer(1, 0.1, &device), trainer(1, 0.1, &device));
    let initial = waiting.state();
    let waited: Vec<StepReport> = (0..7).map(|step| waiting.step(batches(step))).collect();
    let mut flown: Vec<StepReport> = (0..7).filter_map(|step| flying.submit(batches(step))).collect();
    let in_flight = 7 - flown.len();
    assert_eq!(in_flight, usize::from(cfg!(not(feature = "fusion")) && device != Device::flex()));
    // Whoever asks for the state waits, and the report is still told.
    let state = flying.state();
    flown.extend(flying.settle());
    assert!(flying.settle().is_none());
    let in_words = |reports: &[StepReport]| reports.iter().map(|report| format!("{report:?}")).collect::<Vec<_>>();
    assert_eq!(in_words(&waited), in_words(&flown));
    assert_same(&waiting.state(), &state);
    assert_eq!((state.step, state.skipped, state.skipped_in_a_row, state.adam_steps), (7, 4, 1, 3));
    let skipped = |step: usize| flown[step].skipped.clone().map(|cause| (cause.tensor, cause.kind));
    assert_eq!([0, 3, 4, 6].map(skipped), [(); 4].map(|()| Some(("images".to_string(), NonFiniteKind::Loss))));

    // A first step that changes nothing leaves no trace but its count.
    let mut spoiled = trainer(1, 0.1, &device);
    let told = spoiled.submit(batches(0));
    let state = spoiled.state();
    assert_same(&state, &TrainerState { step: 1, skipped: 1, skipped_in_a_row: 1, ..initial });
    assert_eq!(told.or_else(|| spoiled.settle()).unwrap().step, 1);
}

/// Time is counted in steps that changed something: those that were skipped weigh nothing.
#[test]
fn averages_weigh_the_steps_that_changed_something() {
    let _alone = ALONE.lock();
    let mut trainer = trainer(1, 0.0, &test_device());
    let mut weights: Vec<Vec<f64>> = Vec::new();
    let values = |state: &StateDict| {
        state.iter().flat_map(|(_, tensor)| tensor.values.iter().copied().map(f64::from)).collect::<Vec<_>>()
    };
    for step in 0..9 {
        let spoiled = [0, 3, 4].contains(&step);
        let data = if spoiled { data(step).slice_fill([0..1, 0..1, 2..3, 2..3], f32::NAN) } else { data(step) };
        assert_eq!(trainer.step(vec![data]).skipped.is_some(), spoiled);
        if !spoiled {
            weights.push(values(&trainer.state().model));
        }
    }
    let t = weights.len() as f64;
    for average in trainer.state().power_emas {
        let exponent = Profile::new(average.sigma_rel).unwrap().exponent();
        let integral = |tau: f64| (tau / t).powf(exponent + 1.0);
        let largest = values(&average.weights).into_iter().enumerate().map(|(i, got)| {
            let parts = weights
                .iter()
                .zip(1..)
                .map(|(w, tau)| w[i] * (integral(f64::from(tau)) - integral(f64::from(tau) - 1.0)));
            (got - parts.sum::<f64>()).abs()
        });
        let largest = largest.fold(0.0, |most: f64, off| if off.is_nan() { f64::INFINITY } else { most.max(off) });
        assert!(largest < 1e-6, "{}: {largest}", average.sigma_rel);
    }
}

/// Without dropout, which each device draws by itself.
#[test]
fn a_training_goes_on_on_another_device() {
    let _alone = ALONE.lock();
    let (here, there) = (test_device(), Device::flex());
    let mut begun = trainer(1, 0.0, &here);
    train(&mut begun, 0..2);
    let state = begun.state();
    let loss = train(&mut begun, 2..3);
    let mut elsewhere = trainer(2, 0.0, &there);
    elsewhere.restore(&state).unwrap();
    let moved = elsewhere.state();
    assert!(bits(&moved.adam) == bits(&state.adam) && bits(&moved.ema) == bits(&state.ema));
    let continued = train(&mut elsewhere, 2..3);
    assert!((continued - loss).abs() < 1e-4 * loss, "{continued}, {loss}");
}
