//! A training that stops and goes on, on the device of the tests: `just test-device wgpu`. Every network and formulation on the CPU: `matrix`.

#[path = "common/device.rs"]
mod device;

use std::sync::Mutex;

use burn::tensor::Device;
use denoising_diffusion::diffusion::{Diffusion, DiffusionConfig};
use denoising_diffusion::interop::StateDict;
use denoising_diffusion::models::{Unet, UnetConfig};
use denoising_diffusion::nn::Init;
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::train::{EmaConfig, TrainConfig, Trainer};
use device::test_device;

/// Dropout draws from one generator per process: one training at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn trainer(seed: u64, dropout: f64, device: &Device) -> Trainer<Unet> {
    let config = UnetConfig { dim: 8, dim_mults: vec![1, 2], channels: 1, dropout, ..UnetConfig::default() };
    let model = Unet::new(&config, &mut Init::new(seed, &device.clone().autodiff())).unwrap();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let ema = EmaConfig { ema_update_every: 1, ema_update_after_step: 1, ..EmaConfig::default() };
    Trainer::new(model, diffusion, TrainConfig { batch_size: 2, ..TrainConfig::default() }, ema, device)
}

fn train(trainer: &mut Trainer<Unet>, steps: std::ops::Range<u64>) -> f64 {
    let mut loss = f64::NAN;
    for step in steps {
        let data = normal_batch(9, Purpose::Evaluation, 2 * step, 0, [2, 1, 8, 8], &Device::flex());
        let report = trainer.step(vec![(data * 0.2 + 0.5).clamp(0.0, 1.0)]);
        assert!(report.skipped.is_none(), "{report:?}");
        loss = report.loss;
    }
    loss
}

fn bits(state: &StateDict) -> Vec<(String, Vec<u32>)> {
    state.iter().map(|(name, tensor)| (name.to_string(), tensor.values.iter().map(|v| v.to_bits()).collect())).collect()
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
    for (a, b) in [(&whole.model, &resumed.model), (&whole.ema, &resumed.ema), (&whole.adam, &resumed.adam)] {
        assert!(bits(a) == bits(b), "a resumed training differs");
    }
    assert!(bits(&resumed.model) != bits(&state.model));
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
