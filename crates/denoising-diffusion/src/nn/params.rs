//! A network's parameters and buffers by name, as one list of tensors of any rank: read to the host, written from the host, replaced. Names are the
//! paths of fields (`downs.0.block1.proj.weight`); the variant of an enum adds nothing to them. Not here: operations on many of them at once
//! (`nn::sweeps`).
//!
//! Burn keys optimizer state by identifiers drawn at random in each process; we key everything by name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use thiserror::Error;

use super::Init;
use crate::weights::{HostTensor, StateDict};

/// The role of a tensor in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Changed by the optimizer.
    Trainable,
    /// A floating-point tensor that the optimizer does not change: running statistics, fixed frequencies.
    Buffer,
}

/// Why tensors do not match a network.
#[derive(Debug, Error, PartialEq)]
pub enum ParamsError {
    #[error("tensor `{name}` is missing")]
    Missing { name: String },
    #[error("tensor `{name}` has shape {got:?}, but the network needs {expected:?}")]
    Shape { name: String, expected: Vec<usize>, got: Vec<usize> },
    #[error("{} tensors do not belong to the network: {}", names.len(), names.join(", "))]
    Surplus { names: Vec<String> },
}

/// The path to the current field.
#[derive(Debug, Default)]
pub(super) struct Path {
    names: Vec<Option<String>>,
    /// Names of the types along the path.
    layers: Vec<String>,
}

impl Path {
    pub(super) fn enter(&mut self, name: &str, container: &str) {
        self.names.push((!container.starts_with("Enum:")).then(|| name.to_string()));
        self.layers.push(container.trim_start_matches("Struct:").to_string());
    }

    pub(super) fn exit(&mut self) {
        self.names.pop();
        self.layers.pop();
    }

    pub(super) fn name(&self) -> String {
        self.names.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// The type that the field belongs to.
    pub(super) fn layer(&self) -> &str {
        self.layers.last().map_or("", String::as_str)
    }
}

/// A function of a floating-point tensor of any rank.
pub trait VisitTensor {
    fn visit<const D: usize>(&mut self, name: &str, role: Role, tensor: &Tensor<D>);
}

/// A function that replaces a floating-point tensor of any rank.
pub trait MapTensor {
    fn map<const D: usize>(&mut self, name: &str, role: Role, tensor: Tensor<D>) -> Tensor<D>;
}

struct Visiting<'a, V>(Path, &'a mut V);

impl<V: VisitTensor> ModuleVisitor for Visiting<'_, V> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.0.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.1.visit(&self.0.name(), role(param), &param.val());
    }
}

struct Mapping<'a, F>(Path, &'a mut F);

impl<F: MapTensor> ModuleMapper for Mapping<'_, F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.0.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (name, role) = (self.0.name(), role(&param));
        let (id, tensor, mapper) = param.consume();
        let (autodiff, grad) = (tensor.is_autodiff(), tensor.is_require_grad());
        let plain = if autodiff { tensor.inner() } else { tensor };
        let mapped = self.1.map(&name, role, plain);
        let value = if autodiff { Tensor::from_inner(mapped).set_require_grad(grad) } else { mapped };
        Param::from_mapped_value(id, value, mapper)
    }
}

fn role<const D: usize>(param: &Param<Tensor<D>>) -> Role {
    if param.val().is_require_grad() { Role::Trainable } else { Role::Buffer }
}

/// Calls `visitor` on every floating-point tensor, in the order of the fields. Running statistics are only up to date in a copy made by `eval()`, in
/// which every tensor has [`Role::Buffer`], because nothing is trained there.
pub fn visit<M: Module>(module: &M, visitor: &mut impl VisitTensor) {
    module.visit(&mut Visiting(Path::default(), visitor));
}

/// Replaces every floating-point tensor. The function gets plain tensors; whether gradients are required stays as it was.
pub fn map<M: Module>(module: M, mapper: &mut impl MapTensor) -> M {
    module.map(&mut Mapping(Path::default(), mapper))
}

/// Makes Burn draw every parameter whose drawing its own layers have postponed.
pub fn draw<M: Module>(module: &M) {
    struct Touch;
    impl VisitTensor for Touch {
        fn visit<const D: usize>(&mut self, _: &str, _: Role, _: &Tensor<D>) {}
    }
    visit(module, &mut Touch);
}

/// The number of trainable values.
pub fn num_trainable<M: Module>(module: &M) -> usize {
    struct Count(usize);
    impl VisitTensor for Count {
        fn visit<const D: usize>(&mut self, _: &str, role: Role, tensor: &Tensor<D>) {
            if role == Role::Trainable {
                self.0 += tensor.dims().iter().product::<usize>();
            }
        }
    }
    let mut count = Count(0);
    visit(module, &mut count);
    count.0
}

/// Names and shapes of all tensors of a network that was made with [`Init::counting`].
pub fn counted_shapes<M: Module>(module: &M, init: &Init) -> BTreeMap<String, Vec<usize>> {
    struct Shapes<'a>(Path, &'a Init, BTreeMap<String, Vec<usize>>);
    impl ModuleVisitor for Shapes<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let shape = self.1.shape_of(param.id).map_or_else(|| param.val().dims().to_vec(), <[usize]>::to_vec);
            self.2.insert(self.0.name(), shape);
        }
    }
    let mut shapes = Shapes(Path::default(), init, BTreeMap::new());
    module.visit(&mut shapes);
    shapes.2
}

/// Every floating-point tensor, read to the host. Networks here have no integer tensors.
pub fn to_state_dict<M: Module>(module: &M) -> StateDict {
    struct Read(StateDict);
    impl VisitTensor for Read {
        fn visit<const D: usize>(&mut self, name: &str, _: Role, tensor: &Tensor<D>) {
            self.0.insert(name, host_tensor(tensor.clone()));
        }
    }
    let mut read = Read(StateDict::default());
    visit(&module.valid(), &mut read);
    read.0
}

/// A tensor's shape and values on the host.
pub fn host_tensor<const D: usize>(tensor: Tensor<D>) -> HostTensor {
    let shape = tensor.dims().to_vec();
    HostTensor { shape, values: host_values(tensor) }
}

/// A tensor's values on the host.
pub fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("a float tensor converts to f32")
}

/// A tensor on a device with these values, in row-major order; there must be as many as `shape` has.
pub fn from_host<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Replaces every floating-point tensor by the one with its name. Nothing is skipped: missing tensors, surplus tensors and wrong shapes are errors.
pub fn load_state_dict<M: Module>(module: M, state: &StateDict) -> Result<M, ParamsError> {
    check_state_dict(&module, state)?;
    struct Write<'a>(&'a StateDict);
    impl MapTensor for Write<'_> {
        fn map<const D: usize>(&mut self, name: &str, _: Role, tensor: Tensor<D>) -> Tensor<D> {
            match self.0.get(name) {
                Some(host) => from_host(host.values.clone(), tensor.dims(), &tensor.device()),
                None => tensor,
            }
        }
    }
    Ok(map(module, &mut Write(state)))
}

/// Checks that `state` holds exactly the network's tensors.
pub fn check_state_dict<M: Module>(module: &M, state: &StateDict) -> Result<(), ParamsError> {
    struct Check<'a> {
        state: &'a StateDict,
        error: Option<ParamsError>,
        known: std::collections::BTreeSet<String>,
    }
    impl VisitTensor for Check<'_> {
        fn visit<const D: usize>(&mut self, name: &str, _: Role, tensor: &Tensor<D>) {
            self.known.insert(name.to_string());
            let error = match self.state.get(name) {
                None => ParamsError::Missing { name: name.to_string() },
                Some(host) if host.shape != tensor.dims() => ParamsError::Shape {
                    name: name.to_string(),
                    expected: tensor.dims().to_vec(),
                    got: host.shape.clone(),
                },
                Some(_) => return,
            };
            self.error.get_or_insert(error);
        }
    }
    let mut check = Check { state, error: None, known: Default::default() };
    visit(module, &mut check);
    if let Some(error) = check.error {
        return Err(error);
    }
    let surplus: Vec<String> = state.names().filter(|name| !check.known.contains(*name)).map(str::to_string).collect();
    if surplus.is_empty() { Ok(()) } else { Err(ParamsError::Surplus { names: surplus }) }
}
