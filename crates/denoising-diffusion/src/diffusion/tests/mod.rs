//! What holds for every formulation, and which calls a denoiser makes to its network.

mod classes;
mod guided;
mod levels;
mod own;
mod rectified_flow;

use std::sync::{Arc, Mutex};

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::{Diffusion, DiffusionConfig, SharedConfig};
use crate::models::{Network, NetworkInput};
use crate::nn::Vectors;
use crate::nn::params::host_values;

/// A call of a network.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    x: Vec<f32>,
    time: Vec<f32>,
    /// The number of classes stands for "no class".
    classes: Option<Vec<i64>>,
    /// NaN stands for an unknown vector.
    vectors: Option<Vec<f32>>,
    self_conditioned: bool,
}

/// The properties of a [`Fake`].
#[derive(Clone, Copy, Debug, Default)]
struct Traits {
    num_classes: usize,
    vector_dim: usize,
    class_drop_prob: f64,
    self_condition: bool,
}

/// A network that returns `gain x + class / 10` (without classes, `gain x`) and records its calls.
#[derive(Module, Debug)]
struct Fake {
    gain: Param<Tensor<1>>,
    #[module(skip)]
    traits: Traits,
    #[module(skip)]
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Fake {
    fn new(gain: f32, traits: Traits, device: &Device) -> Self {
        let gain = Param::from_tensor(Tensor::from_floats([gain], device));
        Self { gain, traits, calls: Arc::default() }
    }

    /// The calls since the last time.
    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Network for Fake {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let classes = input.classes.clone().map(|classes| classes.into_data().convert::<i64>().try_into_vec().unwrap());
        self.calls.lock().unwrap().push(Call {
            x: host_values(input.x.clone()),
            time: host_values(input.time),
            classes,
            vectors: input.vectors.map(|Vectors { values, given }| {
                let dim = values.dims()[1];
                let given = host_values(given);
                let known = |i: usize| if given[i / dim] == 1.0 { 1.0 } else { f32::NAN };
                host_values(values).into_iter().enumerate().map(|(i, value)| value * known(i)).collect()
            }),
            self_conditioned: input.x_self_cond.is_some(),
        });
        let output = input.x * self.gain.val().reshape([1, 1, 1, 1]);
        match input.classes {
            Some(classes) => output + classes.float().reshape([-1, 1, 1, 1]) / 10.0,
            None => output,
        }
    }

    fn channels(&self) -> usize {
        1
    }

    fn num_classes(&self) -> usize {
        self.traits.num_classes
    }

    fn vector_dim(&self) -> usize {
        self.traits.vector_dim
    }

    fn class_drop_prob(&self) -> f64 {
        self.traits.class_drop_prob
    }

    fn self_condition(&self) -> bool {
        self.traits.self_condition
    }
}

/// `[b, 1, 2, 3]`, with distinct values.
fn batch(b: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..b * 6).map(|i| (i as f32 * 1.7).sin() * 0.8).collect();
    Tensor::<1>::from_floats(values.as_slice(), device).reshape([b, 1, 2, 3])
}

/// A trainer that records converts weights only for batches that need it.
#[test]
fn draws_say_whether_preparing_needs_the_network() {
    let device = Device::flex();
    for (xm_candidates, self_condition) in [(1, false), (1, true), (2, false)] {
        let traits = Traits { self_condition, ..Traits::default() };
        let network = Fake::new(0.5, traits, &device.clone().autodiff());
        let shared = SharedConfig { xm_candidates, ..SharedConfig::default() };
        let diffusion = Diffusion::new(&DiffusionConfig { shared, ..DiffusionConfig::default() }).unwrap();
        for number in 0..8 {
            let draws = diffusion.draw(1, 2 * number, number, [2, 1, 2, 3], &device);
            diffusion.prepare(&network, batch(2, &device), &draws);
            assert_eq!(
                draws.need_network(&network),
                !network.calls().is_empty(),
                "{xm_candidates} {self_condition} {number}"
            );
        }
    }
}
