//! `Unet(...)`: forward passes of seven option sets, and all gradients of one; and a network put together from its parts and those of
//! `classifier_free_guidance.Unet`: the one that ours is with classes.

use burn::tensor::{Device, Int, Tensor};
use denoising_diffusion::interop::to_ours;
use denoising_diffusion::models::{Network, NetworkInput, Unet};
use denoising_diffusion::nn::EvalMode;
use denoising_diffusion::train::NamedGradients;
use denoising_diffusion::weights::StateDict;

use crate::golden::{Golden, assert_close, test_device, values};

fn check_forward(name: &str) {
    let golden = Golden::open(name);
    let device = test_device();
    let unet = golden.unet("unet", "state.", &device.clone().autodiff()).eval();
    let run = |x_self_cond: Option<&str>| {
        let (x, time) = (golden.tensor("x", &device), golden.tensor("time", &device));
        let x_self_cond = x_self_cond.map(|name| golden.tensor(name, &device));
        values(unet.forward(NetworkInput { x_self_cond, ..NetworkInput::new(x, time) }))
    };
    let with = golden.has("x_self_cond").then_some("x_self_cond");
    assert_close(name, &run(with), golden.values("output"), 1e-4);
    if golden.has("output_no_self_cond") {
        assert_close(name, &run(None), golden.values("output_no_self_cond"), 1e-4);
    }
}

#[test]
fn base() {
    check_forward("unet_base");
}

#[test]
fn rectangular_with_heads_per_stage() {
    check_forward("unet_rect");
}

#[test]
fn self_conditioned() {
    check_forward("unet_selfcond");
}

#[test]
fn full_attention_everywhere() {
    check_forward("unet_full_attn");
}

#[test]
fn random_fourier_time_and_learned_variance() {
    check_forward("unet_fourier");
}

#[test]
fn learned_fourier_time() {
    check_forward("unet_learned_fourier");
}

#[test]
fn other_theta_and_attention_in_the_middle_stage() {
    check_forward("unet_odd");
}

#[test]
fn every_gradient_of_a_whole_network() {
    let golden = Golden::open("unet_base");
    let device = test_device().autodiff();
    let unet: Unet = golden.unet("unet", "state.", &device);
    let x = golden.tensor::<4>("x", &device).require_grad();
    let output = unet.forward(NetworkInput::new(x.clone(), golden.tensor("time", &device)));
    let loss = (output * golden.tensor("cotangent", &device)).sum();

    let expected = to_ours(&golden.under("grad_state.")).unwrap();
    let mut gradients = loss.backward();
    check_gradients(NamedGradients::take(&unet, &mut gradients), &expected);
    let gradient = x.grad(&gradients).unwrap();
    assert_close("x", &values(gradient), golden.values("grad_input.x"), 1e-4);
}

#[test]
fn every_gradient_of_a_network_with_classes() {
    let golden = Golden::open("unet_classes");
    let device = test_device().autodiff();
    let unet: Unet = golden.unet("unet", "state.", &device);
    let classes = golden.values("classes").iter().map(|&class| class as i64).collect::<Vec<_>>();
    let input = |device: &Device| NetworkInput {
        classes: Some(Tensor::<1, Int>::from_ints(classes.as_slice(), device)),
        ..NetworkInput::new(golden.tensor("x", device), golden.tensor("time", device))
    };
    let output = unet.eval().forward(input(&test_device()));
    assert_close("output", &values(output), golden.values("output"), 1e-4);

    let mut input = input(&device);
    input.x = input.x.require_grad();
    let x = input.x.clone();
    let loss = (unet.forward(input) * golden.tensor("cotangent", &device)).sum();
    let mut gradients = loss.backward();
    check_gradients(NamedGradients::take(&unet, &mut gradients), &to_ours(&golden.under("grad_state.")).unwrap());
    assert_close("x", &values(x.grad(&gradients).unwrap()), golden.values("grad_input.x"), 1e-4);
}

/// Every expected gradient is there, and no other.
pub fn check_gradients(gradients: NamedGradients, expected: &StateDict) {
    assert_eq!(gradients.iter().count(), expected.len());
    check_gradients_among(gradients, expected);
}

/// Every expected gradient is there.
pub fn check_gradients_among(gradients: NamedGradients, expected: &StateDict) {
    assert!(expected.names().next().is_some(), "no gradient is expected");
    for (name, expected) in expected.iter() {
        let gradient = gradients.iter().find(|(other, _)| *other == name);
        let (_, gradient) = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
        assert_close(name, &values(gradient.clone()), &expected.values, 1e-4);
    }
}
