//! What a trainer refuses before it can go wrong.

use super::*;
use crate::diffusion::DiffusionConfig;
use crate::models::{Unet, UnetConfig};
use crate::nn::Init;

fn trainer(device: &Device) -> Result<Trainer<Unet>, TrainerError> {
    let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
    let model = Unet::new(&unet, &mut Init::new(1, device)).unwrap();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    Trainer::new(model, diffusion, TrainConfig::default(), EmaConfig::default(), &Device::flex())
}

#[test]
fn a_network_on_a_plain_device_has_nothing_to_train() {
    assert!(trainer(&Device::flex().autodiff()).is_ok());
    let error = trainer(&Device::flex()).unwrap_err();
    assert_eq!(error, TrainerError::NothingToTrain);
    assert!(error.to_string().contains("autodiff"), "{error}");
}

#[test]
#[should_panic(expected = "at least one batch")]
fn a_step_without_batches_is_a_mistake() {
    trainer(&Device::flex().autodiff()).unwrap().step(Vec::<Examples>::new());
}

/// Averages are checked last, but before anything is replaced.
#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let profile = Profile::new(0.1).unwrap();
    let mut trainer = trainer(&Device::flex().autodiff()).unwrap().with_power_emas(&[profile]).unwrap();
    let before = trainer.state();
    let other = |state: &StateDict| -> StateDict {
        let mut tensors: Vec<_> = state.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        tensors.iter_mut().flat_map(|(_, tensor)| &mut tensor.values).for_each(|value| *value += 1.0);
        tensors.into_iter().collect()
    };
    let changed = TrainerState { step: 3, ema_calls: 3, model: other(&before.model), ..before.clone() };
    let without_average = TrainerState { ema: StateDict::new(), ..changed.clone() };
    let without_power_ema = TrainerState { ema: other(&before.ema), power_emas: Vec::new(), ..changed };
    for state in [without_average, without_power_ema] {
        assert!(trainer.restore(&state).is_err());
        let after = trainer.state();
        assert_eq!((after.step, after.ema_calls), (0, 0));
        assert!(after.model == before.model && after.ema == before.ema);
    }
}
