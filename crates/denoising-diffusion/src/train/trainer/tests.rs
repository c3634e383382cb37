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
