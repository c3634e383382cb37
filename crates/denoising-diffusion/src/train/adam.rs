//! Adam with decoupled weight decay and clipping by the global norm; its state is keyed by parameter names.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use denoising_diffusion_kernels::optim::AdamStep;
use serde::{Deserialize, Serialize};

use super::gradients::NamedGradients;
use super::sweep::{self, Clip};
use crate::nn::ops;
use crate::nn::params::{self, ParamsError, Role, VisitTensor};
use crate::nn::sweeps::{self, Field};
use crate::weights::StateDict;

/// Options of [`Adam`] (Kingma and Ba 2015; AdamW: Loshchilov and Hutter 2019); `Default` is the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Each step shrinks all weights by the learning rate times this, as in PyTorch's AdamW.
    pub weight_decay: f64,
    /// Gradients are scaled down so that their global norm is at most this.
    pub max_grad_norm: f64,
}

/// Both moments of each parameter, and the number of steps.
#[derive(Clone, Debug)]
pub struct Adam {
    config: AdamConfig,
    moments: BTreeMap<String, Moments>,
    steps: u64,
}

/// The moments of one parameter of this shape, flat.
#[derive(Clone, Debug)]
struct Moments {
    tensors: [Tensor<1>; 2],
    shape: Vec<usize>,
}

impl Adam {
    pub fn new(config: AdamConfig) -> Self {
        Self { config, moments: BTreeMap::new(), steps: 0 }
    }

    /// One step; `norm` is the gradients' norm before clipping. As in PyTorch's `clip_grad_norm_`, the factor is
    /// `max_grad_norm / (norm + 1e-6)`, at most 1.
    pub fn step<M: Module>(&mut self, model: M, gradients: NamedGradients, norm: f64, lr: f64) -> M {
        self.step_clipped(model, gradients, &Clip::Known(sweep::grad_scale(norm, self.config.max_grad_norm)), lr)
    }

    /// [`step`](Self::step) with a clipping factor that may be known only on the device. If the device finds that the step must not be made, nothing
    /// changes but the count, see [`take_back`](Self::take_back).
    pub(super) fn step_clipped<M: Module>(&mut self, model: M, gradients: NamedGradients, clip: &Clip, lr: f64) -> M {
        self.steps += 1;
        let step = AdamStep {
            lr,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            step: self.steps,
            grad_scale: 1.0,
        };
        let (of, gradients) = gradients.into_parts();
        let mut gradients = of.iter().zip(gradients).peekable();
        let moments = &mut self.moments;
        let mut names = Vec::new();
        let takes = |field: Field<'_>| {
            let (of, gradient) = gradients.next_if(|(of, _)| of.name == field.name)?;
            let (name, Moments { tensors, shape }) = moments.remove_entry(field.name).unwrap_or_else(|| {
                let tensors = zeros(field.shape.num_elements(), &gradient.device());
                (of.name.clone(), Moments { tensors, shape: of.shape.clone() })
            });
            names.push((name, shape));
            Some((tensors, gradient))
        };
        let mut swept = Vec::new();
        let sweep = |taken: Vec<(Tensor<1>, ([Tensor<1>; 2], Tensor<1>))>| {
            let all = taken.into_iter().map(|(w, ([m, v], gradient))| ([w, m, v], gradient)).collect();
            let (weights, moments): (Vec<_>, Vec<_>) =
                sweep::adam(&step, clip, all).into_iter().map(|[w, m, v]| (w, [m, v])).unzip();
            swept = moments;
            weights
        };
        let model = sweeps::replace(model, takes, sweep);
        let named = names.into_iter().zip(swept).map(|((name, shape), tensors)| (name, Moments { tensors, shape }));
        self.moments.extend(named);
        model
    }

    /// Undoes the count of the latest [`step_clipped`](Self::step_clipped), which turned out to change nothing.
    pub(super) fn take_back(&mut self) {
        self.steps -= 1;
    }

    /// The number of steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Both moments as `<name>.exp_avg` and `<name>.exp_avg_sq`, flat; empty before the first step.
    pub fn to_state_dict(&self) -> StateDict {
        let mut state = StateDict::default();
        if self.steps == 0 {
            return state;
        }
        for (name, Moments { tensors, shape }) in &self.moments {
            for (moment, kind) in tensors.iter().zip(["exp_avg", "exp_avg_sq"]) {
                let rows = sweeps::in_rows(name, moment.clone(), shape);
                state.insert(format!("{name}.{kind}"), params::host_tensor(rows));
            }
        }
        state
    }

    /// The state after `steps` steps, written by [`to_state_dict`](Self::to_state_dict) for the same `model`: both moments of each trainable tensor
    /// that has had a gradient, and nothing else.
    pub fn from_state_dict<M: Module>(
        config: AdamConfig,
        steps: u64,
        state: &StateDict,
        model: &M,
        device: &Device,
    ) -> Result<Self, ParamsError> {
        struct Expected(Vec<(String, Vec<usize>)>);
        impl VisitTensor for Expected {
            fn visit<const D: usize>(&mut self, name: &str, role: Role, tensor: &Tensor<D>) {
                if role == Role::Trainable {
                    self.0.push((name.to_string(), tensor.dims().to_vec()));
                }
            }
        }
        let mut adam = Self { steps, ..Self::new(config) };
        if steps == 0 {
            return Ok(adam);
        }
        let mut expected = Expected(Vec::new());
        params::visit(model, &mut expected);
        let read = |of: &str, kind: &str, shape: &[usize]| {
            let (name, size) = (format!("{of}.{kind}"), shape.iter().product());
            let Some(host) = state.get(&name) else { return Err(ParamsError::Missing { name }) };
            if host.shape != [size] {
                return Err(ParamsError::Shape { name, expected: vec![size], got: host.shape.clone() });
            }
            Ok(sweeps::from_rows(of, Tensor::from_floats(host.values.as_slice(), device), shape))
        };
        for (name, shape) in expected.0 {
            // This tensor has had no gradient yet.
            if ["exp_avg", "exp_avg_sq"].iter().all(|kind| state.get(&format!("{name}.{kind}")).is_none()) {
                continue;
            }
            let moments = vec![read(&name, "exp_avg", &shape)?, read(&name, "exp_avg_sq", &shape)?];
            let tensors = ops::copied(moments).try_into().expect("as many copies");
            adam.moments.insert(name, Moments { tensors, shape });
        }
        if state.names().count() == 2 * adam.moments.len() {
            return Ok(adam);
        }
        let known = |name: &str| name.rsplit_once(".exp_avg").is_some_and(|(of, _)| adam.moments.contains_key(of));
        Err(ParamsError::Surplus { names: state.names().filter(|name| !known(name)).map(str::to_string).collect() })
    }
}

/// The moments of a parameter before the first step, in the memory where they will stay.
fn zeros(size: usize, device: &Device) -> [Tensor<1>; 2] {
    device.memory_persistent_allocations((), |()| [(); 2].map(|()| Tensor::zeros([size], device)))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::super::gradients::GradNorm;
    use super::*;
    use crate::nn::sweeps::tests::devices;
    use crate::nn::{Conv2d, Init, Linear};
    use crate::noise::{Purpose, Stream};

    /// Identifies the memory of a tensor.
    fn memory<const D: usize>(tensor: Tensor<D>) -> String {
        #[cfg(all(feature = "cube", not(feature = "fusion")))]
        if let Ok(cube) = tensor.clone().try_into_primitive::<burn::backend::Cube>() {
            return format!("{:?}", cube.handle.memory.descriptor().id);
        }
        format!("{:p}", tensor.try_into_primitive::<Flex>().unwrap().storage::<f32>())
    }

    /// Weights and moments of a large network are updated in place.
    #[test]
    fn a_step_writes_in_place() {
        // The memory of tensors that Burn's fusion delays cannot be observed.
        let on_cpu_only = cfg!(feature = "fusion");
        for device in devices().into_iter().filter(|device| !on_cpu_only || crate::device::is_cpu(device)) {
            let device = device.autodiff();
            let mut model = Linear::new(&mut Init::new(0, &device), 300, 200);
            let mut adam =
                Adam::new(AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 });
            let mut memories = Vec::new();
            for _ in 0..3 {
                let loss = model.weight.val().square().sum();
                let gradients = NamedGradients::take(&model, &mut loss.backward());
                let GradNorm::Finite(norm) = gradients.norm() else { panic!("not finite") };
                model = adam.step(model, gradients, norm, 1e-3);
                let moment = adam.moments["weight"].tensors[0].clone();
                memories.push([memory(model.weight.val().inner()), memory(moment)]);
            }
            assert!(memories.windows(2).all(|pair| pair[0] == pair[1]), "{device:?}: {memories:?}");
        }
    }

    /// A parameter that the loss does not depend on has no moments, in files neither.
    #[test]
    fn tensors_without_gradients_go_on_without_moments() {
        let device = Device::flex().autodiff();
        let model = Linear::new(&mut Init::new(0, &device), 3, 2);
        let config = AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
        let mut adam = Adam::new(config);
        let gradients = NamedGradients::take(&model, &mut model.weight.val().square().sum().backward());
        let model = adam.step(model, gradients, 1.0, 1e-3);
        let state = adam.to_state_dict();
        assert_eq!(state.names().collect::<Vec<_>>(), ["weight.exp_avg", "weight.exp_avg_sq"]);
        let read = |state: &StateDict| Adam::from_state_dict(config, 1, state, &model, &device.clone().inner());
        assert_eq!(read(&state).unwrap().to_state_dict().get("weight.exp_avg"), state.get("weight.exp_avg"));
        let mut half = state.clone();
        half.remove("weight.exp_avg_sq");
        assert!(matches!(read(&half), Err(ParamsError::Missing { .. })));
    }

    /// Whatever order a device sweeps in, the order in files is the same.
    #[test]
    fn states_of_all_devices_are_the_same() {
        let states = devices().into_iter().map(|device| {
            let device = device.autodiff();
            let mut model = Conv2d::new(&mut Init::new(0, &device), 5, 4, 3);
            let config = AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
            let mut adam = Adam::new(config);
            let mut step = |adam: &mut Adam| {
                let mut x = vec![0.0; 2 * 6 * 6 * 5];
                Stream::new(3, Purpose::Init, adam.steps(), 0).fill_normal(&mut x);
                let x = Tensor::<4>::from_data(TensorData::new(x, [2, 6, 6, 5]), &device);
                let gradients = NamedGradients::take(&model, &mut model.forward(x).square().sum().backward());
                let GradNorm::Finite(norm) = gradients.norm() else { panic!("not finite") };
                model = adam.step(model.clone(), gradients, norm, 1e-3);
            };
            step(&mut adam);
            step(&mut adam);
            let state = adam.to_state_dict();
            let read = Adam::from_state_dict(config, 2, &state, &model, &device.clone().inner()).unwrap();
            assert_eq!(read.to_state_dict().get("weight.exp_avg"), state.get("weight.exp_avg"));
            (state, params::to_state_dict(&model))
        });
        let states: Vec<_> = states.collect();
        for (adam, model) in &states {
            for (ours, first) in [(adam, &states[0].0), (model, &states[0].1)] {
                for name in first.names() {
                    let (ours, first) = (&ours.get(name).unwrap().values, &first.get(name).unwrap().values);
                    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
                    assert!(ours.iter().zip(first).all(near), "{name}: {ours:?}, {first:?}");
                }
            }
        }
    }
}
