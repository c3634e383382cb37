//! A network that starts from the weights of another one, as far as the two agree: fine-tuning. Not here: weights that must fit exactly
//! (`nn::params::load_state_dict`), and where weights come from.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::nn::params::{MapTensor, Role, from_host, map};
use crate::weights::{HostTensor, StateDict};

/// What a network took over from the weights that it started from. Tensors are named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transfer {
    /// Taken over as they are.
    pub taken: Vec<String>,
    /// Taken over, with zeros for inputs that the other network did not have.
    pub widened: Vec<String>,
    /// Not in the other network, or of another shape there: these keep the values that were drawn for them.
    pub fresh: Vec<String>,
    /// In the other network only.
    pub unused: Vec<String>,
    values: usize,
    fresh_values: usize,
}

impl Transfer {
    /// The share of the network's values that were taken over.
    pub fn share(&self) -> f64 {
        1.0 - self.fresh_values as f64 / self.values.max(1) as f64
    }
}

/// Replaces each tensor of `model` by the one of the same name and shape in `state`.
///
/// A layer with more inputs than in `state` (weights `[out, in, ..]`) gets zeros for the further ones. In the networks of this library these are what a
/// condition or a class adds, which come last: a network that is given one begins by computing what it did without (as in InstructPix2Pix,
/// arXiv:2211.09800).
pub fn start_from<M: Module>(model: M, state: &StateDict) -> (M, Transfer) {
    let mut taking = Taking { state, done: Transfer::default() };
    let model = map(model, &mut taking);
    let mut done = taking.done;
    let used: Vec<&str> = done.taken.iter().chain(&done.widened).map(|name| own_name(name)).collect();
    done.unused = state.names().filter(|name| !used.contains(&own_name(name))).map(str::to_string).collect();
    (model, done)
}

struct Taking<'a> {
    state: &'a StateDict,
    done: Transfer,
}

impl MapTensor for Taking<'_> {
    fn map<const D: usize>(&mut self, name: &str, _: Role, tensor: Tensor<D>) -> Tensor<D> {
        let shape = tensor.dims();
        let count = shape.iter().product::<usize>();
        self.done.values += count;
        let values = match self.find(name) {
            Some(host) if host.shape == shape => {
                self.done.taken.push(name.to_string());
                host.values.clone()
            }
            Some(host) if has_fewer_inputs(&host.shape, &shape) => {
                self.done.widened.push(name.to_string());
                widened(host, &shape)
            }
            _ => {
                self.done.fresh.push(name.to_string());
                self.done.fresh_values += count;
                return tensor;
            }
        };
        from_host(values, shape, &tensor.device())
    }
}

impl<'a> Taking<'a> {
    /// A network beside a learned schedule has other names than alone.
    fn find(&self, name: &str) -> Option<&'a HostTensor> {
        let beside = || self.state.get(&format!("{BESIDE_SCHEDULE}{name}"));
        self.state.get(name).or_else(|| self.state.get(own_name(name))).or_else(beside)
    }
}

/// What [`Scheduled`](super::Scheduled) puts before the names of its network.
const BESIDE_SCHEDULE: &str = "network.";

fn own_name(name: &str) -> &str {
    name.strip_prefix(BESIDE_SCHEDULE).unwrap_or(name)
}

/// Whether weights `[out, in, ..]` differ from others in having fewer inputs, and in nothing else.
fn has_fewer_inputs(from: &[usize], to: &[usize]) -> bool {
    from.len() == to.len() && from.len() > 1 && from[1] < to[1] && from[0] == to[0] && from[2..] == to[2..]
}

/// The same weights `[out, in, ..]` with zeros for further inputs.
fn widened(host: &HostTensor, to: &[usize]) -> Vec<f32> {
    let row_len = |shape: &[usize]| shape[1..].iter().product::<usize>();
    let (own, wanted) = (row_len(&host.shape), row_len(to));
    let widen = |row: &[f32]| row.iter().copied().chain(std::iter::repeat_n(0.0, wanted - own)).collect::<Vec<_>>();
    host.values.chunks_exact(own).flat_map(widen).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Int, TensorData};

    use super::*;
    use crate::models::{Network, NetworkInput, Unet, UnetConfig};
    use crate::nn::params::{host_values, to_state_dict};
    use crate::nn::{EvalMode, Init};

    fn unet(config: UnetConfig, seed: u64) -> Unet {
        let config = UnetConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..config };
        Unet::new(&config, &mut Init::new(seed, &Device::flex().autodiff())).unwrap()
    }

    fn ramp(channels: usize) -> Tensor<4> {
        let values: Vec<f32> = (0..channels * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        Tensor::from_data(TensorData::new(values, [1, channels, 8, 8]), &Device::flex())
    }

    fn output(model: &Unet, input: NetworkInput) -> Vec<f32> {
        host_values(model.eval().forward(input))
    }

    #[test]
    fn equal_networks_become_the_same() {
        let from = unet(UnetConfig::default(), 1);
        let (to, transfer) = start_from(unet(UnetConfig::default(), 2), &to_state_dict(&from));
        assert_eq!(to_state_dict(&to), to_state_dict(&from));
        assert_eq!((transfer.share(), transfer.fresh.len(), transfer.unused.len()), (1.0, 0, 0));
        assert!(to.init_conv.weight.val().is_require_grad(), "it can be trained");
    }

    #[test]
    fn a_new_condition_and_new_classes_change_nothing_at_first() {
        let from = unet(UnetConfig::default(), 1);
        let config = UnetConfig { condition_channels: 3, num_classes: 5, ..UnetConfig::default() };
        let (to, transfer) = start_from(unet(config, 2), &to_state_dict(&from));
        assert!(transfer.widened.contains(&"init_conv.weight".to_string()), "{:?}", transfer.widened);
        assert!(transfer.fresh.iter().all(|name| name.contains("classes")), "{:?}", transfer.fresh);
        let device = Device::flex();
        let plain = NetworkInput::new(ramp(1), Tensor::from_floats([3.0], &device));
        let told = NetworkInput {
            classes: Some(Tensor::<1, Int>::from_ints([2], &device)),
            condition: Some(ramp(3)),
            ..plain.clone()
        };
        let (before, after) = (output(&from, plain), output(&to, told));
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-5), "{before:?}\n{after:?}");
    }

    #[test]
    fn other_shapes_stay_fresh_and_what_is_not_used_is_named() {
        let from = unet(UnetConfig { num_classes: 5, ..UnetConfig::default() }, 1);
        let own = unet(UnetConfig { num_classes: 3, ..UnetConfig::default() }, 2);
        let before = to_state_dict(&own);
        let (to, transfer) = start_from(own, &to_state_dict(&from));
        assert_eq!(transfer.fresh, ["classes_emb.weight"]);
        assert_eq!(transfer.unused, ["classes_emb.weight"]);
        assert_eq!(to_state_dict(&to).get("classes_emb.weight"), before.get("classes_emb.weight"));
        assert!(transfer.share() < 1.0 && transfer.share() > 0.9);
    }

    #[test]
    fn a_network_beside_a_learned_schedule_is_the_same_network() {
        let from = to_state_dict(&unet(UnetConfig::default(), 1));
        for state in [from.clone().with_prefix(BESIDE_SCHEDULE), from.clone()] {
            let (to, transfer) = start_from(unet(UnetConfig::default(), 2), &state);
            assert_eq!((to_state_dict(&to), transfer.unused), (from.clone(), vec![]));
        }
    }
}
