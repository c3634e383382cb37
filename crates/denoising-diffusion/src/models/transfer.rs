//! A network that starts from the weights of another one, as far as the two agree: fine-tuning. Not here: weights that must fit exactly
//! (`nn::params::load_state_dict`), and where weights come from.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Input, NetworkConfig};
use crate::nn::params::{MapTensor, Role, from_host, host_values, map};
use crate::weights::{HostTensor, StateDict};

/// What a network took over from the weights that it started from. Tensors are named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transfer {
    /// Taken over as they are.
    pub taken: Vec<String>,
    /// Taken over for the inputs that the other network had; the weights of new ones are zeros (in a norm, what they are in a new network).
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

/// What is known of weights besides their values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// The network that starts from the weights, and the one that they belong to. If they are not known, no layer can have new inputs.
    pub networks: Option<[&'a NetworkConfig; 2]>,
    /// For each class of the network its number in the other one, if it is known there; `None`: the numbers are the same in both.
    pub classes: Option<&'a [Option<usize>]>,
}

/// Replaces each tensor of `model` by the one of the same name and shape in `state`; weights of classes that are not known there keep what was drawn
/// for them.
///
/// A layer that a condition, classes or self-conditioning newly enter keeps its weights and gets zeros for the new inputs, and a layer by which
/// vectors enter for the first time starts at zero: a network that is given something new begins by computing what it did without (as in
/// InstructPix2Pix, arXiv:2211.09800). Layers whose inputs differ otherwise start fresh.
///
/// There are two exceptions. A `Uvit` with `dual_patchnorm` normalises a new condition together with the data. The weights of `KarrasUnet` have one
/// norm, so everything that is new to it, and another number of classes, changes its output from the start.
pub fn start_from<M: Module>(model: M, state: &StateDict, origin: &Origin) -> (M, Transfer) {
    let mut taking = Taking { state, origin, same_vectors: false, done: Transfer::default() };
    let model = map(model, &mut taking);
    let mut done = taking.done;
    let used = done.taken.iter().chain(&done.widened).chain(&done.renumbered);
    let used: Vec<&str> = used.map(|name| own_name(name)).collect();
    done.unused = state.names().filter(|name| !used.contains(&own_name(name))).map(str::to_string).collect();
    (model, done)
}

struct Taking<'a> {
    state: &'a StateDict,
    origin: &'a Origin<'a>,
    /// Whether vectors are as long as in the other network; others mean something else.
    same_vectors: bool,
    done: Transfer,
}

/// The values of a tensor that was found in the other network, and how many of them are not from there.
enum Match {
    Taken(Vec<f32>),
    Widened(Vec<f32>, usize),
    Renumbered(Vec<f32>, usize),
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
        if FIRST_OF_VECTORS.contains(&own_name(name)) {
            self.same_vectors = self.find(name).is_some_and(|host| host.shape == shape);
        }
        let other_vectors = own_name(name).starts_with(OF_VECTORS) && !self.same_vectors;
        let host = self.find(name).filter(|_| !other_vectors);
        let found = host.and_then(|host| self.matched(own_name(name), host, &tensor));
        let (names, values, fresh) = match found {
            Some(Match::Taken(values)) => (&mut self.done.taken, Some(values), 0),
            Some(Match::Widened(values, fresh)) => (&mut self.done.widened, Some(values), fresh),
            Some(Match::Renumbered(values, fresh)) => (&mut self.done.renumbered, Some(values), fresh),
            None => {
                let zeros = own_name(name).starts_with(LAST_OF_VECTORS).then(|| vec![0.0; count]);
                (&mut self.done.fresh, zeros, count)
            }
        };
        names.push(name.to_string());
        self.done.values += count;
        self.done.fresh_values += fresh;
        match values {
            Some(values) => from_host(values, shape, &tensor.device()),
            None => tensor,
        }
    }
}

impl<'a> Taking<'a> {
    /// A network beside a learned schedule has other names than alone.
    fn find(&self, name: &str) -> Option<&'a HostTensor> {
        let beside = || self.state.get(&format!("{BESIDE_SCHEDULE}{name}"));
        self.state.get(name).or_else(|| self.state.get(own_name(name))).or_else(beside)
    }

    /// What the tensor of this name takes over from `host`, if they fit.
    fn matched<const D: usize>(&self, name: &str, host: &HostTensor, tensor: &Tensor<D>) -> Option<Match> {
        let of_classes = OF_CLASSES.iter().find(|(table, _)| *table == name);
        if let (Some(&(_, dim)), Some(classes)) = (of_classes, self.origin.classes)
            && let Some((values, fresh)) = renumbered(host, tensor, dim, classes)
        {
            return Some(Match::Renumbered(values, fresh));
        }
        if let Some([own, theirs]) = self.origin.networks.map(|both| both.map(|network| network.inputs_of(name)))
            && own != theirs
            && !theirs.is_empty()
        {
            let (values, fresh) = widened(host, tensor, &sources(&own, &theirs)?)?;
            return Some(Match::Widened(values, fresh));
        }
        (host.shape == tensor.dims()).then(|| Match::Taken(host.values.clone()))
    }
}

/// What [`Scheduled`](super::Scheduled) puts before the names of its network.
const BESIDE_SCHEDULE: &str = "network.";

fn own_name(name: &str) -> &str {
    name.strip_prefix(BESIDE_SCHEDULE).unwrap_or(name)
}

/// For each input of a layer the input of the other network's that is the same, if there is one. `None` if the other's has inputs that this one does
/// not have, or another number of one kind.
fn sources(own: &[(Input, usize)], theirs: &[(Input, usize)]) -> Option<Vec<Option<usize>>> {
    let (mut sources, mut at, mut rest) = (Vec::new(), 0, theirs);
    for &(input, count) in own {
        match rest.split_first() {
            Some((&(other, others), after)) if other == input => {
                if others != count {
                    return None;
                }
                sources.extend((at..at + count).map(Some));
                (at, rest) = (at + count, after);
            }
            _ => sources.extend(std::iter::repeat_n(None, count)),
        }
    }
    rest.is_empty().then_some(sources)
}

/// Weights `[out, in, ..]` for inputs from these `sources`: zeros for new ones, and the number of these zeros. A tensor of rank 1 has inputs only, and
/// keeps its own values for the new ones: they are those of a norm. `None` if the shapes differ in anything else.
fn widened<const D: usize>(
    host: &HostTensor,
    tensor: &Tensor<D>,
    sources: &[Option<usize>],
) -> Option<(Vec<f32>, usize)> {
    let (own, theirs, dim) = (tensor.dims(), &host.shape, usize::from(D > 1));
    let known = sources.iter().flatten().count();
    if !differ_along(dim, &own, theirs) || own[dim] != sources.len() || theirs[dim] != known {
        return None;
    }
    let before = if D == 1 { host_values(tensor.clone()) } else { vec![0.0; own.iter().product()] };
    Some((chosen(host, before, dim, sources), (own[dim] - known) * others(&own, dim)))
}

/// Whether two shapes are of one rank and the same but for one dimension.
fn differ_along(dim: usize, own: &[usize], theirs: &[usize]) -> bool {
    own.len() == theirs.len() && (0..own.len()).all(|at| at == dim || own[at] == theirs[at])
}

/// The number of values for each index of a dimension.
fn others(shape: &[usize], dim: usize) -> usize {
    shape[..dim].iter().chain(&shape[dim + 1..]).product()
}

/// The `values` of a tensor in which each slice along `dim` that has a source is replaced by that slice of `host`.
fn chosen(host: &HostTensor, mut values: Vec<f32>, dim: usize, sources: &[Option<usize>]) -> Vec<f32> {
    let (own, theirs) = (sources.len(), host.shape[dim]);
    let (outer, inner): (usize, usize) = (host.shape[..dim].iter().product(), host.shape[dim + 1..].iter().product());
    for block in 0..outer {
        for (to, from) in sources.iter().enumerate().filter_map(|(to, from)| Some((to, (*from)?))) {
            let [to, from] = [(own, to), (theirs, from)].map(|(n, at)| (block * n + at) * inner);
            values[to..to + inner].copy_from_slice(&host.values[from..from + inner]);
        }
    }
    values
}

/// The values of `tensor`, which has one slice per class along `dim`, with those of the classes that `host` has, and the number of values of the
/// other classes. A further slice stands for "no class". `None` if the two do not fit.
fn renumbered<const D: usize>(
    host: &HostTensor,
    tensor: &Tensor<D>,
    dim: usize,
    classes: &[Option<usize>],
) -> Option<(Vec<f32>, usize)> {
    let (own, theirs) = (tensor.dims(), &host.shape);
    if !differ_along(dim, &own, theirs) {
        return None;
    }
    let mut from = classes.to_vec();
    if own[dim] == classes.len() + 1 {
        from.push(theirs[dim].checked_sub(1));
    }
    if own[dim] != from.len() || from.iter().flatten().any(|&class| class >= theirs[dim]) {
        return None;
    }
    let new = from.iter().filter(|from| from.is_none()).count();
    let values = chosen(host, host_values(tensor.clone()), dim, &from);
    Some((values, new * others(&own, dim)))
}

#[cfg(test)]
mod tests;
