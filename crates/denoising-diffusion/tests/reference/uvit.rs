//! `simple_diffusion.UViT(...)`: forward passes of six option sets, every gradient of five. Two networks are put together from parts
//! (`tools/parity/uvit.py` says why): one behind a Haar transform, and one with classes.

use burn::tensor::{Device, Int, Tensor};
use denoising_diffusion::interop::{ReferenceWeights, infer_uvit, uvit_to_ours};
use denoising_diffusion::models::{Network, NetworkInput, PerStage, Uvit, UvitConfig};
use denoising_diffusion::nn::{EvalMode, Init, params};
use denoising_diffusion::train::NamedGradients;
use denoising_diffusion::weights::{HostTensor, StateDict};

use crate::golden::{Golden, assert_close, test_device, values};
use crate::unets::check_gradients;

fn config(golden: &Golden) -> UvitConfig {
    serde_json::from_value(golden.config["uvit"].clone()).unwrap()
}

fn network(golden: &Golden, device: &Device) -> Uvit {
    let uvit = Uvit::new(&config(golden), &mut Init::new(0, device)).unwrap();
    params::load_state_dict(uvit, &uvit_to_ours(&golden.under("state.")).unwrap()).unwrap()
}

fn input(golden: &Golden, device: &Device) -> NetworkInput {
    let classes =
        golden.has("classes").then(|| golden.indices("classes").iter().map(|&c| c as i64).collect::<Vec<_>>());
    NetworkInput {
        classes: classes.map(|classes| Tensor::<1, Int>::from_ints(classes.as_slice(), device)),
        ..NetworkInput::new(golden.tensor("x", device), golden.tensor("time", device))
    }
}

fn check_forward(name: &str) -> Golden {
    let golden = Golden::open(name);
    let uvit = network(&golden, &test_device().autodiff());
    let x = golden.host("x").shape.clone();
    uvit.check_size(x[2], x[3]).unwrap();
    let output = uvit.eval().forward(input(&golden, &test_device()));
    assert_close(name, &values(output), golden.values("output"), 1e-4);
    golden
}

fn check(name: &str) {
    let golden = check_forward(name);
    let device = test_device().autodiff();
    let uvit = network(&golden, &device);
    let mut input = input(&golden, &device);
    let x = input.x.clone().require_grad();
    input.x = x.clone();
    let mut gradients = (uvit.forward(input) * golden.tensor("cotangent", &device)).sum().backward();
    let expected = uvit_to_ours(&golden.under("grad_state.")).unwrap();
    check_gradients(NamedGradients::take(&uvit, &mut gradients), &expected);
    assert_close("x", &values(x.grad(&gradients).unwrap()), golden.values("grad_input.x"), 1e-4);
}

#[test]
fn base() {
    check("uvit_base");
}

/// The reference's dropout of 0.2 is off in eval behaviour.
#[test]
fn factors_per_stage_and_another_number_of_output_channels() {
    check_forward("uvit_factors");
}

#[test]
fn patches() {
    check("uvit_patches");
}

#[test]
fn patches_normalised_twice() {
    check("uvit_dual_patchnorm");
}

#[test]
fn behind_a_haar_transform() {
    check("uvit_haar");
}

#[test]
fn with_classes() {
    check("uvit_classes");
}

/// Also those that tell nothing of the configuration.
#[test]
fn every_tensor_must_be_there_in_its_shape() {
    for name in ["base", "factors", "patches", "dual_patchnorm", "haar", "classes"] {
        let state = Golden::open(&format!("uvit_{name}")).under("state.");
        let inferred = |state| ReferenceWeights { state, ..ReferenceWeights::default() }.infer();
        assert!(inferred(state.clone()).is_ok(), "{name}");
        let refused = |change: &dyn Fn(&mut StateDict)| {
            let mut state = state.clone();
            change(&mut state);
            inferred(state).unwrap_err().to_string()
        };
        let one = || HostTensor::new([1], vec![0.0]).unwrap();
        let text = refused(&|state| drop(state.remove("downs.0.0.block2.proj.weight")));
        assert!(text.contains("`downs.0.block1.block2.proj.weight`") && text.contains("missing"), "{text}");
        let text = refused(&|state| drop(state.insert("ups.0.1.mlp.1.bias", one())));
        assert!(text.contains("`ups.0.block1.mlp.bias` must have shape"), "{text}");
        let text = refused(&|state| drop(state.insert("vit.layers.99.0.k_scale", one())));
        assert!(text.contains("1 tensor belongs to no part of a UViT"), "{text}");
    }
}

#[test]
fn the_configuration_is_told_from_the_tensors() {
    for name in ["base", "factors", "patches", "dual_patchnorm"] {
        let golden = Golden::open(&format!("uvit_{name}"));
        let told = infer_uvit(&golden.under("state.")).unwrap();
        let given = config(&golden);
        let dropout = UvitConfig::default().vit_dropout;
        assert_eq!(told, UvitConfig { vit_dropout: dropout, ..given }, "{name}");
    }
    let factors = infer_uvit(&Golden::open("uvit_factors").under("state.")).unwrap().downsample_factor;
    assert_eq!(factors, PerStage::Each(vec![1, 3]));
    let mut state = Golden::open("uvit_base").under("state.");
    assert!(infer_uvit(&state).is_ok());
    state.insert("mid_attn.mem_kv", state.get("time_mlp.0.weights").unwrap().clone());
    assert!(uvit_to_ours(&state).unwrap_err().to_string().contains("mid_attn.mem_kv"));
}
