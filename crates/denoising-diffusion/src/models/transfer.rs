//! A network that starts from the weights of another one, as far as the two agree: fine-tuning. Not here: weights that must fit exactly
//! (`nn::params::load_state_dict`), and where weights come from.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::nn::params::{MapTensor, Role, from_host, host_values, map};
use crate::weights::{HostTensor, StateDict};

/// What a network took over from the weights that it started from. Tensors are named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transfer {
    /// Taken over as they are.
    pub taken: Vec<String>,
    /// Taken over, with zeros for inputs that the other network did not have.
    pub widened: Vec<String>,
    /// Taken over class by class.
    pub renumbered: Vec<String>,
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
///
/// A layer by which vectors enter for the first time starts at zero, for the same reason. (Not in `KarrasUnet`, whose weights have one norm: classes,
/// vectors and conditions that are new to it, and another number of classes, change its output from the start.)
///
/// `classes` holds for each class of `model` its number in the other network, if it is known there; the others keep what was drawn for them. `None`
/// stands for the same numbers in both.
pub fn start_from<M: Module>(model: M, state: &StateDict, classes: Option<&[Option<usize>]>) -> (M, Transfer) {
    let mut taking = Taking { state, classes, same_vectors: false, done: Transfer::default() };
    let model = map(model, &mut taking);
    let mut done = taking.done;
    let used = done.taken.iter().chain(&done.widened).chain(&done.renumbered);
    let used: Vec<&str> = used.map(|name| own_name(name)).collect();
    done.unused = state.names().filter(|name| !used.contains(&own_name(name))).map(str::to_string).collect();
    (model, done)
}

struct Taking<'a> {
    state: &'a StateDict,
    classes: Option<&'a [Option<usize>]>,
    /// Whether vectors are as long as in the other network; others mean something else.
    same_vectors: bool,
    done: Transfer,
}

/// The tensors that hold something for each class, and the dimension along which they do. That of `Dit` ends with "no class".
const OF_CLASSES: [(&str, usize); 3] = [("classes_emb.weight", 0), ("y_embedder.weight", 0), ("class_emb.weight", 1)];

/// What embeds vectors; the weights that they are multiplied by, which come first (the second in `KarrasUnet`); and the layer whose output is added to
/// the embedding of the noise level.
const OF_VECTORS: &str = "vector_emb.";
const FIRST_OF_VECTORS: [&str; 2] = ["vector_emb.linear1.weight", "vector_emb.weight"];
const LAST_OF_VECTORS: &str = "vector_emb.linear2.";

impl MapTensor for Taking<'_> {
    fn map<const D: usize>(&mut self, name: &str, _: Role, tensor: Tensor<D>) -> Tensor<D> {
        let shape = tensor.dims();
        let count = shape.iter().product::<usize>();
        self.done.values += count;
        let of_classes = OF_CLASSES.iter().find(|(table, _)| *table == own_name(name));
        if FIRST_OF_VECTORS.contains(&own_name(name)) {
            self.same_vectors = self.find(name).is_some_and(|host| host.shape == shape);
        }
        let other_vectors = own_name(name).starts_with(OF_VECTORS) && !self.same_vectors;
        let values = match self.find(name).filter(|_| !other_vectors) {
            Some(host)
                if let (Some(&(_, dim)), Some(classes)) = (of_classes, self.classes)
                    && let Some(values) = renumbered(host, &tensor, dim, classes) =>
            {
                self.done.renumbered.push(name.to_string());
                values
            }
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
                if !own_name(name).starts_with(LAST_OF_VECTORS) {
                    return tensor;
                }
                vec![0.0; count]
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

/// The values of `tensor`, which has one slice per class along `dim`, with those of the classes that `host` has. A further slice stands for "no
/// class". `None` if the two do not fit.
fn renumbered<const D: usize>(
    host: &HostTensor,
    tensor: &Tensor<D>,
    dim: usize,
    classes: &[Option<usize>],
) -> Option<Vec<f32>> {
    let (own, theirs) = (tensor.dims(), &host.shape);
    if theirs.len() != D || (0..D).any(|at| at != dim && own[at] != theirs[at]) {
        return None;
    }
    let mut from = classes.to_vec();
    if own[dim] == classes.len() + 1 {
        from.push(theirs[dim].checked_sub(1));
    }
    if own[dim] != from.len() || from.iter().flatten().any(|&class| class >= theirs[dim]) {
        return None;
    }
    let (inner, outer): (usize, usize) = (own[dim + 1..].iter().product(), own[..dim].iter().product());
    let mut values = host_values(tensor.clone());
    for block in 0..outer {
        for (class, from) in from.iter().enumerate().filter_map(|(class, from)| Some((class, (*from)?))) {
            let [to, from] = [(own[dim], class), (theirs[dim], from)].map(|(n, class)| (block * n + class) * inner);
            values[to..to + inner].copy_from_slice(&host.values[from..from + inner]);
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Int, TensorData};

    use super::*;
    use crate::data::DataLayout;
    use crate::models::{
        DitConfig, Extent, KarrasUnetConfig, Network, NetworkConfig, NetworkInput, Unet, UnetConfig, Uvit, UvitConfig,
    };
    use crate::nn::params::{host_values, to_state_dict};
    use crate::nn::{EvalMode, Init, Vectors};

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
        let (to, transfer) = start_from(unet(UnetConfig::default(), 2), &to_state_dict(&from), None);
        assert_eq!(to_state_dict(&to), to_state_dict(&from));
        assert_eq!((transfer.share(), transfer.fresh.len(), transfer.unused.len()), (1.0, 0, 0));
        assert!(to.init_conv.weight.val().is_require_grad(), "it can be trained");
    }

    #[test]
    fn a_new_condition_and_new_classes_change_nothing_at_first() {
        let from = unet(UnetConfig::default(), 1);
        let config = UnetConfig { condition_channels: 3, num_classes: 5, ..UnetConfig::default() };
        let (to, transfer) = start_from(unet(config, 2), &to_state_dict(&from), None);
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
    fn new_vectors_change_nothing_at_first() {
        let device = Device::flex();
        let config = |vector_dim| UvitConfig {
            dim: 8,
            dim_mults: vec![1, 2],
            vit_depth: 1,
            attn_heads: 2,
            attn_dim_head: 8,
            channels: 1,
            vector_dim,
            ..UvitConfig::default()
        };
        let uvit = |vector_dim, seed| {
            Uvit::new(&config(vector_dim), &mut Init::new(seed, &device.clone().autodiff())).unwrap()
        };
        let (unet_from, uvit_from) = (unet(UnetConfig::default(), 1), uvit(0, 1));
        let told = UnetConfig { vector_dim: 3, ..UnetConfig::default() };
        let (unet_to, _) = start_from(unet(told, 2), &to_state_dict(&unet_from), None);
        let (uvit_to, _) = start_from(uvit(3, 2), &to_state_dict(&uvit_from), None);
        let plain = NetworkInput::new(ramp(1), Tensor::from_floats([0.3], &device));
        let vectors = Vectors::of_rows(vec![1.0, -2.0, 0.5], 3, |_| true, &device);
        let told = NetworkInput { vectors: Some(vectors), ..plain.clone() };
        assert_eq!(output(&unet_from, plain.clone()), output(&unet_to, told.clone()));
        assert_eq!(host_values(uvit_from.eval().forward(plain)), host_values(uvit_to.eval().forward(told)));
        // Vectors of another length are new, too.
        for vector_dim in [2, 4] {
            let other = UnetConfig { vector_dim, ..UnetConfig::default() };
            let (other, transfer) = start_from(unet(other, 3), &to_state_dict(&unet_to), None);
            assert_eq!((transfer.widened.len(), transfer.fresh.len()), (0, 5), "{transfer:?}");
            let last = to_state_dict(&other).get("vector_emb.linear2.weight").unwrap().values.clone();
            assert!(last.iter().all(|v| *v == 0.0));
        }
    }

    /// Classes 0, 1, 2 of the new network are class 2, a new one and class 0 of the other, which has five.
    #[test]
    fn classes_are_taken_over_by_their_numbers_in_the_other_network() {
        let (device, classes) = (Device::flex().autodiff(), [Some(2), None, Some(0)]);
        let (dim, dim_mults, channels) = (8, vec![1, 2], 1);
        let networks = |num_classes| {
            [
                NetworkConfig::Unet(UnetConfig {
                    dim,
                    dim_mults: dim_mults.clone(),
                    channels,
                    num_classes,
                    ..UnetConfig::default()
                }),
                NetworkConfig::Uvit(UvitConfig {
                    dim,
                    dim_mults: dim_mults.clone(),
                    channels,
                    num_classes,
                    vit_depth: 1,
                    ..UvitConfig::default()
                }),
                NetworkConfig::Dit(DitConfig {
                    hidden_size: Some(8),
                    depth: Some(1),
                    num_heads: Some(1),
                    channels,
                    num_classes,
                    ..DitConfig::default()
                }),
                NetworkConfig::KarrasUnet(KarrasUnetConfig {
                    dim,
                    num_downsamples: 1,
                    extent: Some(Extent { layout: DataLayout::Images, depth: 1, height: 8, width: 8 }),
                    channels,
                    num_classes,
                    ..KarrasUnetConfig::default()
                }),
            ]
        };
        // One row per class.
        let rows = |state: &StateDict, (table, dim): (&str, usize)| {
            let host = state.get(table).unwrap();
            let (n, others) = (host.shape[dim], host.shape[1 - dim]);
            let at = |class: usize, k: usize| if dim == 0 { class * others + k } else { k * n + class };
            let row = |class| (0..others).map(|k| host.values[at(class, k)]).collect::<Vec<f32>>();
            (0..n).map(row).collect::<Vec<_>>()
        };
        let tables = [OF_CLASSES[0], OF_CLASSES[0], OF_CLASSES[1], OF_CLASSES[2]];
        for ((five, three), table) in networks(5).into_iter().zip(networks(3)).zip(tables) {
            let from = to_state_dict(&five.build(&mut Init::new(1, &device)).unwrap());
            let own = three.build(&mut Init::new(2, &device)).unwrap();
            let before = rows(&to_state_dict(&own), table);
            let (to, transfer) = start_from(own, &from, Some(&classes));
            assert_eq!((&transfer.renumbered[..], transfer.share()), (&[table.0.to_string()][..], 1.0), "{three:?}");
            let (from, to) = (rows(&from, table), rows(&to_state_dict(&to), table));
            assert_eq!([&to[0], &to[1], &to[2]], [&from[2], &before[1], &from[0]]);
            assert_eq!(to.get(3), (to.len() == 4).then(|| from.last().unwrap()), "no class");
        }
    }

    #[test]
    fn other_shapes_stay_fresh_and_what_is_not_used_is_named() {
        let from = unet(UnetConfig { num_classes: 5, ..UnetConfig::default() }, 1);
        let own = unet(UnetConfig { num_classes: 3, ..UnetConfig::default() }, 2);
        let before = to_state_dict(&own);
        let (to, transfer) = start_from(own, &to_state_dict(&from), None);
        assert_eq!(transfer.fresh, ["classes_emb.weight"]);
        assert_eq!(transfer.unused, ["classes_emb.weight"]);
        assert_eq!(to_state_dict(&to).get("classes_emb.weight"), before.get("classes_emb.weight"));
        assert!(transfer.share() < 1.0 && transfer.share() > 0.9);
    }

    #[test]
    fn a_network_beside_a_learned_schedule_is_the_same_network() {
        let from = to_state_dict(&unet(UnetConfig::default(), 1));
        for state in [from.clone().with_prefix(BESIDE_SCHEDULE), from.clone()] {
            let (to, transfer) = start_from(unet(UnetConfig::default(), 2), &state, None);
            assert_eq!((to_state_dict(&to), transfer.unused), (from.clone(), vec![]));
        }
    }
}
