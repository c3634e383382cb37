//! Several linear layers with the same input, as one matrix product: their weights are gathered into one matrix, and the columns of the result are
//! separated again. Both are operations with their own backward pass, because Burn's take a launch per part, and more in the backward pass.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Cube, TensorMetadata};
use burn::tensor::{Shape, Slice, Tensor};

use super::gather::gather;

type Primitive = FloatTensor<Cube>;
type Tracked = FloatTensor<Autodiff<Cube>>;

/// The largest number of layers at once.
const LAYERS: usize = 64;
/// The largest number of values of all weights: they are copied, and for more the memory of the copy matters more than the launches.
const VALUES: usize = 1 << 26;

/// `x weight^T + bias` for each pair of `weight [c_out, c_in]` and `bias [c_out]`; `None` if tensors differ in kind or are too many. `x [b, c_in]` is
/// on a GPU.
pub fn linears(x: &Tensor<2>, layers: &[(Tensor<2>, Tensor<1>)]) -> Option<Vec<Tensor<2>>> {
    let kind = (x.is_autodiff(), x.dtype());
    let all_same = layers.iter().all(|(weight, bias)| {
        (weight.is_autodiff(), weight.dtype()) == kind && (bias.is_autodiff(), bias.dtype()) == kind
    });
    let sizes: Vec<usize> = layers.iter().map(|(weight, _)| weight.dims()[0]).collect();
    if !all_same || layers.len() > LAYERS || sizes.iter().sum::<usize>() * x.dims()[1] > VALUES {
        return None;
    }
    let weight = gathered(layers.iter().map(|(weight, _)| weight.clone()).collect())?;
    let bias = gathered(layers.iter().map(|(_, bias)| bias.clone()).collect())?;
    let weight: Tensor<2> = weight.reshape([sizes.iter().sum(), x.dims()[1]]);
    columns(x.clone().matmul(weight.transpose()) + bias.unsqueeze(), sizes)
}

/// The values of these tensors, concatenated.
fn gathered<const D: usize>(tensors: Vec<Tensor<D>>) -> Option<Tensor<1>> {
    if tensors.iter().any(Tensor::is_autodiff) {
        let tracked = tensors.into_iter().map(|tensor| tensor.try_into_primitive::<Autodiff<Cube>>().ok());
        return Some(Tensor::from_primitive::<Autodiff<Cube>>(gather_tracked(tracked.collect::<Option<_>>()?)));
    }
    let plain = tensors.into_iter().map(|tensor| tensor.try_into_primitive::<Cube>().ok());
    Some(Tensor::from_primitive::<Cube>(in_sequence(plain.collect::<Option<_>>()?)))
}

/// Splits a matrix by columns, with these numbers of columns.
fn columns(matrix: Tensor<2>, sizes: Vec<usize>) -> Option<Vec<Tensor<2>>> {
    if matrix.is_autodiff() {
        let parts = split_tracked(matrix.try_into_primitive::<Autodiff<Cube>>().ok()?, sizes);
        return Some(parts.into_iter().map(Tensor::from_primitive::<Autodiff<Cube>>).collect());
    }
    let matrix = matrix.try_into_primitive::<Cube>().ok()?;
    Some(split(&matrix, &sizes).into_iter().map(Tensor::from_primitive::<Cube>).collect())
}

fn in_sequence(tensors: Vec<Primitive>) -> Primitive {
    let flat = |tensor: Primitive| {
        let values = tensor.shape().num_elements();
        Cube::float_reshape(tensor, Shape::from([1, values]))
    };
    let row = gather(tensors.into_iter().map(flat).collect());
    let values = row.shape().num_elements();
    Cube::float_reshape(row, Shape::from([values]))
}

/// Splits into views if the device's alignment allows that.
fn split(matrix: &Primitive, sizes: &[usize]) -> Vec<Primitive> {
    let rows = matrix.shape()[0];
    let mut from = 0;
    let part = |&size: &usize| {
        from += size;
        Cube::float_slice(matrix.clone(), &[range(0, rows), range(from - size, from)])
    };
    sizes.iter().map(part).collect()
}

fn range(from: usize, to: usize) -> Slice {
    Slice::from(from..to)
}

/// The backward pass of [`in_sequence`], for tensors of these shapes.
#[derive(Clone, Debug)]
struct Gather;

fn gather_tracked(tensors: Vec<Tracked>) -> Tracked {
    let last = tensors.len() - 1;
    // The tape takes a number of parents that is known at compile time: the last one stands in for missing ones.
    let nodes = std::array::from_fn(|i| tensors[i.min(last)].node());
    let tensors: Vec<Primitive> = tensors.into_iter().map(|tensor| tensor.into_primitive()).collect();
    let shapes: Vec<Shape> = tensors.iter().map(TensorMetadata::shape).collect();
    let all = in_sequence(tensors);
    match Gather.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(shapes, all),
        OpsKind::UnTracked(prepared) => prepared.finish(all),
    }
}

impl Backward<Cube, LAYERS> for Gather {
    type State = Vec<Shape>;

    fn backward(self, ops: Ops<Self::State, LAYERS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let all = grads.consume::<Cube>(&ops.node);
        let mut from = 0;
        for (shape, parent) in ops.state.into_iter().zip(&ops.parents) {
            let to = from + shape.num_elements();
            if let Some(parent) = parent {
                let part = Cube::float_slice(all.clone(), &[range(from, to)]);
                grads.register::<Cube>(parent.id, Cube::float_reshape(part, shape));
            }
            from = to;
        }
    }
}

/// What the parts of a matrix leave for its gradient. Each part is a node that puts its gradient here. The matrix has a node of its own, which runs
/// after all of them; its own gradient, which the first part registers, has no meaning.
struct Parts {
    sizes: Vec<usize>,
    gradients: Vec<Option<Primitive>>,
}

/// Shared by the nodes of all parts.
#[derive(Clone)]
struct SharedParts(Arc<Mutex<Parts>>);

impl SharedParts {
    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedParts")
    }
}

#[derive(Clone, Debug)]
struct Whole;

#[derive(Clone, Debug)]
struct Part(usize);

fn split_tracked(matrix: Tracked, sizes: Vec<usize>) -> Vec<Tracked> {
    let node = matrix.node();
    let matrix = matrix.into_primitive();
    let parts = split(&matrix, &sizes);
    let shared = SharedParts(Arc::new(Mutex::new(Parts { gradients: vec![None; sizes.len()], sizes })));
    let whole = match Whole.prepare::<NoCheckpointing>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(shared.clone(), matrix),
        OpsKind::UnTracked(prepared) => prepared.finish(matrix),
    };
    let part = |(i, part)| match Part(i).prepare::<NoCheckpointing>([whole.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(shared.clone(), part),
        OpsKind::UnTracked(prepared) => prepared.finish(part),
    };
    parts.into_iter().enumerate().map(part).collect()
}

impl Backward<Cube, 1> for Part {
    type State = SharedParts;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<Cube>(&ops.node);
        let mut parts = ops.state.lock();
        let is_first = parts.gradients.iter().all(Option::is_none);
        parts.gradients[self.0] = Some(gradient.clone());
        if let ([Some(parent)], true) = (&ops.parents, is_first) {
            grads.register::<Cube>(parent.id, gradient);
        }
    }
}

impl Backward<Cube, 1> for Whole {
    type State = SharedParts;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let like = grads.consume::<Cube>(&ops.node);
        let mut parts = ops.state.lock();
        let sizes = std::mem::take(&mut parts.sizes);
        let gradients = std::mem::take(&mut parts.gradients);
        // A part without a gradient contributes nothing.
        let nothing = |size: usize| {
            let shape = Shape::from([like.shape()[0], size]);
            Cube::float_zeros(shape, &like.device.clone(), like.dtype().into())
        };
        let all = gradients.into_iter().zip(sizes).map(|(gradient, size)| gradient.unwrap_or_else(|| nothing(size)));
        if let [Some(parent)] = &ops.parents {
            grads.register::<Cube>(parent.id, gather(all.collect()));
        }
    }
}
