//! `KarrasUnet(...)`, `KarrasUnet1D(...)` and `KarrasUnet3D(...)`: options told from tensors, forward passes of seven option sets, every gradient
//! of one of each rank and of attention to space and time apart; and what training does to the weights.

use burn::tensor::{Device, Int, Tensor};
use denoising_diffusion::data::DataLayout;
use denoising_diffusion::diffusion::{Diffusion, ElucidatedConfig, FormulationConfig};
use denoising_diffusion::interop::{ReferenceWeights, infer_karras_unet, karras_unet_to_ours};
use denoising_diffusion::models::{
    DownsampleType, Extent, KarrasUnet, KarrasUnetConfig, Network, NetworkInput, PerStage,
};
use denoising_diffusion::nn::{EvalMode, Init, params};
use denoising_diffusion::noise::{Purpose, normal_batch};
use denoising_diffusion::train::{EmaConfig, NamedGradients, TrainConfig, Trainer};
use denoising_diffusion::weights::{HostTensor, StateDict};

use crate::golden::{Golden, allowed, assert_close, test_device, values};
use crate::unets::check_gradients;

fn extent(golden: &Golden) -> Extent {
    match golden.host("x").shape[2..] {
        [width] => Extent { layout: DataLayout::Sequences, depth: 1, height: 1, width },
        [height, width] => Extent { layout: DataLayout::Images, depth: 1, height, width },
        [depth, height, width] => Extent { layout: DataLayout::Volumes, depth, height, width },
        _ => unreachable!(),
    }
}

/// As it is told from the tensors, with what they do not tell.
fn config(golden: &Golden) -> KarrasUnetConfig {
    let told = infer_karras_unet(&golden.under("state."), extent(golden)).unwrap();
    let options = &golden.config["karras_unet"];
    let number = |key: &str, default: f64| options[key].as_f64().unwrap_or(default);
    let count = |key: &str| options[key].as_u64().unwrap() as usize;
    assert_eq!((told.dim, told.channels, told.fourier_dim), (count("dim"), count("channels"), count("fourier_dim")));
    assert_eq!(told.num_downsamples, count("num_downsamples"));
    assert_eq!(told.num_classes as u64, options["num_classes"].as_u64().unwrap_or(0));
    assert_eq!(told.self_condition, options["self_condition"].as_bool().unwrap_or(false));
    let types: Option<Vec<DownsampleType>> = serde_json::from_value(options["downsample_types"].clone()).unwrap();
    KarrasUnetConfig {
        mp_cat_t: number("mp_cat_t", 0.5),
        mp_add_emb_t: number("mp_add_emb_t", 0.5),
        downsample_types: types.map_or(PerStage::All(DownsampleType::All), PerStage::Each),
        ..told
    }
}

fn network(golden: &Golden, device: &Device) -> KarrasUnet {
    let network = KarrasUnet::new(&config(golden), &mut Init::new(0, device)).unwrap();
    params::load_state_dict(network, &karras_unet_to_ours(&golden.under("state.")).unwrap()).unwrap()
}

/// Data of any rank as they are carried.
fn carried(golden: &Golden, name: &str, device: &Device) -> Tensor<4> {
    let shape = &golden.host(name).shape;
    let (width, rows) = (shape[shape.len() - 1], shape[2..shape.len() - 1].iter().product());
    let flat = golden.values(name);
    Tensor::<1>::from_floats(flat, device).reshape([shape[0], shape[1], rows, width])
}

fn input(golden: &Golden, device: &Device) -> NetworkInput {
    let classes =
        golden.has("classes").then(|| golden.indices("classes").iter().map(|&c| c as i64).collect::<Vec<_>>());
    NetworkInput {
        x_self_cond: golden.has("x_self_cond").then(|| carried(golden, "x_self_cond", device)),
        classes: classes.map(|classes| Tensor::<1, Int>::from_ints(classes.as_slice(), device)),
        ..NetworkInput::new(carried(golden, "x", device), golden.tensor("time", device))
    }
}

fn check_forward(name: &str) -> Golden {
    let golden = Golden::open(name);
    let device = test_device();
    let output = network(&golden, &device.clone().autodiff()).eval().forward(input(&golden, &device));
    assert_close(name, &values(output), golden.values("output"), 1e-4);
    golden
}

fn check(name: &str) {
    let golden = check_forward(name);
    let device = test_device().autodiff();
    let network = KarrasUnet::new(&KarrasUnetConfig { dropout: 0.0, ..config(&golden) }, &mut Init::new(0, &device));
    let state = karras_unet_to_ours(&golden.under("state.")).unwrap();
    let network = params::load_state_dict(network.unwrap(), &state).unwrap();
    let mut input = input(&golden, &device);
    let x = input.x.clone().require_grad();
    input.x = x.clone();
    let mut gradients = (network.forward(input) * carried(&golden, "cotangent", &device)).sum().backward();
    let expected = karras_unet_to_ours(&golden.under("grad_state.")).unwrap();
    check_gradients(NamedGradients::take(&network, &mut gradients), &expected);
    assert_close("x", &values(x.grad(&gradients).unwrap()), golden.values("grad_input.x"), 1e-4);
}

/// Also those that tell nothing of the configuration.
#[test]
fn every_tensor_must_be_there_in_its_shape() {
    for name in ["image", "image_classes", "image_selfcond", "sequence", "volume", "volume_factorized", "volume_types"]
    {
        let state = Golden::open(&format!("karras_{name}")).under("state.");
        let inferred = |state| ReferenceWeights { state, ..ReferenceWeights::default() }.infer();
        assert!(inferred(state.clone()).is_ok(), "{name}: {:?}", inferred(state.clone()));
        let refused = |change: &dyn Fn(&mut StateDict)| {
            let mut state = state.clone();
            change(&mut state);
            inferred(state).unwrap_err().to_string()
        };
        let one = || HostTensor::new([1, 1], vec![0.0]).unwrap();
        let text = refused(&|state| drop(state.remove("downs.0.block2.2.weight")));
        assert!(text.contains("`downs.0.block.conv2.weight`") && text.contains("missing"), "{text}");
        let text = refused(&|state| drop(state.insert("to_time_emb.1.weight", one())));
        assert!(text.contains("`time_emb.weight` must have shape"), "{text}");
        let text = refused(&|state| drop(state.insert("mids.9.to_emb.0.weight", one())));
        assert!(text.contains("1 tensor belongs to no part of a KarrasUnet"), "{text}");
    }
}

#[test]
fn images() {
    check("karras_image");
}

#[test]
fn images_with_classes() {
    check_forward("karras_image_classes");
}

#[test]
fn images_with_an_earlier_estimate() {
    check_forward("karras_image_selfcond");
}

#[test]
fn sequences() {
    check("karras_sequence");
}

#[test]
fn volumes() {
    check("karras_volume");
}

#[test]
fn volumes_halved_by_type() {
    check_forward("karras_volume_types");
}

#[test]
fn volumes_attended_to_in_space_then_in_time() {
    check("karras_volume_factorized");
}

/// Weights stay of unit size in training; a forward pass, in whatever behaviour, changes none of them.
#[test]
fn weights_are_forced_to_unit_size_by_steps_alone() {
    let golden = Golden::open("karras_image");
    let device = test_device();
    let model = network(&golden, &device.clone().autodiff());
    let before = params::to_state_dict(&model);
    let _ = model.forward(input(&golden, &device.clone().autodiff()));
    assert_eq!(params::to_state_dict(&model), before);

    let diffusion = Diffusion::new(&FormulationConfig::Elucidated(ElucidatedConfig::default()).into()).unwrap();
    let train = TrainConfig { batch_size: 2, lr: 1e-2, ..TrainConfig::default() };
    let mut trainer = Trainer::new(model, diffusion, train, EmaConfig::default(), &device).unwrap();
    for step in 0..3 {
        let data = normal_batch(step, Purpose::Evaluation, 0, 0, [2, 2, 4, 4], &device);
        trainer.step(vec![data]);
    }
    let after = params::to_state_dict(trainer.model());
    assert_ne!(after, before);
    for (name, tensor) in after.iter().filter(|(name, _)| name.ends_with(".weight")) {
        for row in tensor.values.chunks(tensor.values.len() / tensor.shape[0]) {
            let mean = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
            assert!((mean - 1.0).abs() < allowed(1e-4), "{name}: {mean}");
        }
    }
    let eval = trainer.ema().eval();
    let averaged = params::to_state_dict(&*eval);
    let _ = eval.forward(input(&golden, &device));
    assert_eq!(params::to_state_dict(&*eval), averaged);
}
