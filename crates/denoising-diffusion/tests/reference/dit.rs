//! `diffusers.DiTTransformer2DModel`: forward pass and every gradient, with classes and without one.

use burn::tensor::Device;
use denoising_diffusion::models::{Dit, DitConfig, Network, NetworkInput};
use denoising_diffusion::nn::{EvalMode, Init, params};
use denoising_diffusion::train::NamedGradients;

use crate::golden::{Golden, assert_close, test_device, values};
use crate::unets::check_gradients;

fn check(name: &str) {
    let golden = Golden::open(name);
    let device = test_device().autodiff();
    let config: DitConfig = serde_json::from_value(golden.config["dit"].clone()).unwrap();
    let dit = Dit::new(&config, &mut Init::new(0, &device)).unwrap();
    let dit = params::load_state_dict(dit, &golden.under("state.")).unwrap();
    let input = |device: &Device| NetworkInput {
        classes: Some(golden.tensor::<1>("classes", device).int()),
        ..NetworkInput::new(golden.tensor("x", device), golden.tensor("time", device))
    };
    let expected = golden.values("output");
    assert_close(name, &values(dit.eval().forward(input(&test_device()))), expected, 1e-4);

    let mut input = input(&device);
    let x = input.x.clone().require_grad();
    input.x = x.clone();
    let output = dit.forward(input);
    assert_close(name, &values(output.clone().inner()), expected, 1e-4);
    let mut gradients = (output * golden.tensor("cotangent", &device)).sum().backward();
    let gradient = x.grad(&gradients).unwrap();
    assert_close("x", &values(gradient), golden.values("grad_input.x"), 1e-4);
    check_gradients(NamedGradients::take(&dit, &mut gradients), &golden.under("grad_state."));
}

#[test]
fn patches_of_four_pixels() {
    check("dit_square");
}

#[test]
fn a_token_for_each_pixel_and_another_number_of_output_channels() {
    check("dit_patch1");
}
