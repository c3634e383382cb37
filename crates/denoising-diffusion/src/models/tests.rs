//! The U-Net's conditioning on a class. Its numbers are compared with the reference in `tests/reference/unets.rs`.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{Network, NetworkInput, Unet, UnetConfig};
use crate::interop::reference_layout;
use crate::models::PerStage;
use crate::nn::{EvalMode, Init, TrainNoGrad, params};
use crate::noise::{Purpose, Stream};
use crate::testing::largest_difference;
use crate::train::NamedGradients;
use crate::weights::{HostTensor, StateDict};

const CLASSES: usize = 5;

fn config() -> UnetConfig {
    UnetConfig {
        dim: 4,
        dim_mults: vec![1, 2],
        channels: 1,
        num_classes: CLASSES,
        attn_heads: PerStage::All(1),
        attn_dim_head: PerStage::All(4),
        ..UnetConfig::default()
    }
}

fn unconditional() -> UnetConfig {
    UnetConfig { num_classes: 0, ..config() }
}

fn unet(config: &UnetConfig, device: &Device) -> Unet {
    Unet::new(config, &mut Init::new(3, device)).unwrap()
}

/// The same image at the same noise level for each class.
fn input(classes: Option<&[i64]>, device: &Device) -> NetworkInput {
    let b = classes.map_or(1, <[i64]>::len);
    let mut image = vec![0.0; 16];
    Stream::new(1, Purpose::SampleInit, 0, 0).fill_normal(&mut image);
    let x = Tensor::from_data(TensorData::new(image.repeat(b), [b, 1, 4, 4]), device);
    NetworkInput {
        classes: classes.map(|c| Tensor::from_ints(c, device)),
        ..NetworkInput::new(x, Tensor::full([b], 7.0, device))
    }
}

/// One output of 16 values per class.
fn outputs(unet: &Unet, classes: Option<&[i64]>) -> Vec<Vec<f32>> {
    let values = params::host_values(unet.eval().forward(input(classes, &Device::flex())));
    values.chunks(16).map(<[f32]>::to_vec).collect()
}

#[test]
fn the_output_depends_on_the_class_of_its_example_alone() {
    let unet = unet(&config(), &Device::flex());
    let all = outputs(&unet, Some(&[0, 1, 2, 3, 4, 5]));
    for (i, one) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| largest_difference(one, other) > 1e-3), "class {i} is like another");
    }
    let reversed = outputs(&unet, Some(&[5, 4, 3, 2, 1, 0]));
    assert!(all.iter().zip(reversed.iter().rev()).all(|(a, b)| largest_difference(a, b) < 1e-6));
}

#[test]
fn absent_classes_are_no_class() {
    let unet = unet(&config(), &Device::flex());
    assert_eq!(unet.num_classes(), CLASSES);
    assert_eq!(outputs(&unet, None), outputs(&unet, Some(&[CLASSES as i64])));
}

#[test]
#[should_panic]
fn an_index_past_no_class_panics_on_the_cpu() {
    outputs(&unet(&config(), &Device::flex()), Some(&[CLASSES as i64 + 1]));
}

#[test]
fn an_unconditional_network_ignores_classes() {
    let unet = unet(&unconditional(), &Device::flex());
    assert_eq!(unet.num_classes(), 0);
    assert_eq!(outputs(&unet, Some(&[2])), outputs(&unet, None));
}

/// The part of the blocks' linear layers that reads the class, set to zeros: what remains is the network without classes.
#[test]
fn without_the_class_columns_the_network_is_the_unconditional_one() {
    let device = Device::flex();
    let (mut with, mut without) = (StateDict::new(), StateDict::new());
    let time_dim = config().time_dim();
    for (name, tensor) in params::to_state_dict(&unet(&config(), &device)).iter() {
        if name.ends_with(".mlp.weight") {
            let rows = tensor.values.chunks(2 * time_dim).map(|row| &row[..time_dim]);
            let zeros = vec![0.0; time_dim];
            let silenced = rows.clone().flat_map(|row| [row, &zeros].concat()).collect();
            with.insert(name, HostTensor::new(tensor.shape.clone(), silenced).unwrap());
            let kept = rows.flatten().copied().collect();
            without.insert(name, HostTensor::new([tensor.shape[0], time_dim], kept).unwrap());
        } else {
            with.insert(name, tensor.clone());
            if !name.contains("classes_") {
                without.insert(name, tensor.clone());
            }
        }
    }
    let with = params::load_state_dict(unet(&config(), &device), &with).unwrap();
    let without = params::load_state_dict(unet(&unconditional(), &device), &without).unwrap();
    let expected = &outputs(&without, None)[0];
    for output in outputs(&with, Some(&[0, 3, 5])) {
        assert!(largest_difference(&output, expected) < 1e-6, "{output:?} {expected:?}");
    }
}

fn gradients(classes: Option<&[i64]>) -> StateDict {
    let device = Device::flex().autodiff();
    let unet = unet(&config(), &device);
    let loss = unet.forward(input(classes, &device)).square().sum();
    let found = NamedGradients::take(&unet, &mut loss.backward());
    found.iter().map(|(name, gradient)| (name.to_string(), params::host_tensor(gradient.clone()))).collect()
}

#[test]
fn gradients_reach_the_rows_that_were_used() {
    let any = |values: &[f32]| values.iter().any(|value| *value != 0.0);
    let rows = |state: &StateDict| -> Vec<bool> {
        state.get("classes_emb.weight").unwrap().values.chunks(config().dim).map(any).collect()
    };
    let null = |state: &StateDict| any(&state.get("null_classes_emb").unwrap().values);
    let used = gradients(Some(&[3, 1, 3]));
    assert_eq!(rows(&used), [false, true, false, true, false]);
    assert!(!null(&used));
    let dropped = gradients(None);
    assert_eq!(rows(&dropped), [false; CLASSES]);
    assert!(null(&dropped));
    assert!(any(&dropped.get("classes_mlp.linear1.weight").unwrap().values));
}

/// Class weights are drawn in addition to those of an unconditional network, whose weights stay the same for each seed.
#[test]
fn names_and_shapes_are_those_of_the_layout() {
    for config in [config(), unconditional()] {
        let unet = unet(&config, &Device::flex().autodiff());
        let state = params::to_state_dict(&unet);
        let layout = reference_layout(&config).unwrap();
        assert_eq!(state.len(), layout.len());
        for parameter in &layout {
            state.require(&parameter.ours, &parameter.our_shape).unwrap();
        }
        assert_eq!(params::num_trainable(&unet), state.value_count());
    }
}

/// All four modes: the class embedding is on the network's device, wherever the image is.
#[test]
fn classes_are_taken_in_every_mode() {
    let (plain, tracked) = (Device::flex(), Device::flex().autodiff());
    let unet = unet(&config(), &tracked);
    let expected = outputs(&unet, Some(&[2]))[0].clone();
    let close = |output: Tensor<4>| assert!(largest_difference(&params::host_values(output), &expected) < 1e-6);
    close(unet.forward(input(Some(&[2]), &tracked)));
    close(TrainNoGrad::of(&unet).forward(input(Some(&[2]), &tracked)));
    for device in [&plain, &tracked] {
        let mut guided = input(Some(&[2]), &plain);
        guided.classes = Some(Tensor::<1, Int>::from_ints([2], device));
        guided.x = guided.x.autodiff().require_grad();
        let x = guided.x.clone();
        let output = unet.eval().forward(guided);
        let gradient = x.grad(&output.clone().sum().backward()).unwrap();
        assert!(params::host_values(gradient).iter().any(|value| *value != 0.0));
        close(output.inner());
    }
}
