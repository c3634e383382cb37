//! Gradients by the names of what they are of, and what a step with them comes to: its losses, the norm of all of them, and whether it can be
//! made. Not here: the step itself (`adam`).

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Gradients, Tensor};

use super::replicas;
use super::sweep::{self, Clip, Found, Question};
use crate::nn::params::{self, Role, VisitTensor};
use crate::nn::sweeps;

/// Gradients of one backward pass, or the sum of several, flat, in the order of the network's fields; of the type of the tensors that the
/// backward pass was about, sums in f32.
#[derive(Clone, Debug, Default)]
pub struct NamedGradients {
    of: Arc<[Parameter]>,
    /// Of each, in the order of [`sweeps::flat`].
    tensors: Vec<Tensor<1>>,
}

/// What a gradient is of.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// Its number among the network's trainable tensors.
    number: usize,
}

/// The norm of all gradients together, before clipping.
#[derive(Clone, Debug, PartialEq)]
pub enum GradNorm {
    Finite(f64),
    /// The first tensor whose gradient is not finite.
    NonFinite {
        tensor: String,
    },
}

impl NamedGradients {
    /// The gradients with respect to the trainable tensors of `model`, taken out of those of a backward pass; a tensor that the
    /// loss does not depend on has none.
    pub fn take<M: Module>(model: &M, gradients: &mut Gradients) -> Self {
        struct Collect<'a> {
            from: &'a mut Gradients,
            seen: usize,
            of: Vec<Parameter>,
            tensors: Vec<Tensor<1>>,
        }
        impl VisitTensor for Collect<'_> {
            fn visit<const D: usize>(&mut self, name: &str, role: Role, tensor: &Tensor<D>) {
                if role != Role::Trainable {
                    return;
                }
                if let Some(gradient) = tensor.grad_remove(self.from) {
                    let shape = gradient.dims().to_vec();
                    self.of.push(Parameter { name: name.to_string(), shape, number: self.seen });
                    self.tensors.push(sweeps::flat(name, gradient));
                }
                self.seen += 1;
            }
        }
        let mut collect = Collect { from: gradients, seen: 0, of: Vec::new(), tensors: Vec::new() };
        params::visit(model, &mut collect);
        Self { of: collect.of.into(), tensors: collect.tensors }
    }

    /// The sum with the gradients of another pass of the same network, which may have been about other tensors of it.
    pub fn summed_with(self, other: Self) -> Self {
        if self.tensors.is_empty() {
            return other;
        }
        let wide = |gradient: Tensor<1>| gradient.cast(FloatDType::F32);
        let numbered = |Self { of, tensors }| {
            tensors.into_iter().enumerate().map(move |(i, gradient)| (of[i].clone(), wide(gradient)))
        };
        let (mut one, mut other) = (numbered(self).peekable(), numbered(other).peekable());
        let mut sum = (Vec::new(), Vec::new());
        loop {
            let number = |next: Option<&(Parameter, _)>| next.map_or(usize::MAX, |(of, _)| of.number);
            let first = number(one.peek()).min(number(other.peek()));
            let next = [&mut one, &mut other].map(|gradients| gradients.next_if(|(of, _)| of.number == first));
            let Some((of, gradient)) = next.into_iter().flatten().reduce(|(of, a), (_, b)| (of, a + b)) else { break };
            sum.0.push(of);
            sum.1.push(gradient);
        }
        Self { of: sum.0.into(), tensors: sum.1 }
    }

    /// The same on another device, with the loss that they are of. Waits for theirs.
    pub(super) fn moved(self, loss: Tensor<1>, device: &Device) -> (Tensor<1>, Self) {
        let mut tensors = replicas::moved(self.tensors.into_iter().chain([loss]).collect(), device);
        let loss = tensors.pop().expect("as many as there were");
        (loss, Self { tensors, of: self.of })
    }

    /// The norm of all gradients together. Waits for the device.
    pub fn norm(&self) -> GradNorm {
        let no_loss = self.tensors.first().map(|gradient| Tensor::zeros([1], &gradient.device()));
        let found = self.ask(no_loss.into_iter().collect(), f64::INFINITY).read().wait();
        grad_norm(&self.of, &found.squared_norms)
    }

    /// Asks for what a step with these gradients comes to, which are clipped to a norm of `max_norm`; `losses` are of one value each, and there is one.
    pub(super) fn ask(&self, losses: Vec<Tensor<1>>, max_norm: f64) -> Question {
        sweep::ask(&self.tensors, losses, max_norm)
    }

    /// What they are of.
    pub(super) fn of(&self) -> Arc<[Parameter]> {
        self.of.clone()
    }

    /// What they are of, and as many gradients.
    pub(super) fn into_parts(self) -> (Arc<[Parameter]>, Vec<Tensor<1>>) {
        (self.of, self.tensors)
    }

    /// Name and gradient of each tensor, in the order of its rows.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor<1>)> {
        let rows = |(of, gradient): (&Parameter, &Tensor<1>)| sweeps::in_rows(&of.name, gradient.clone(), &of.shape);
        self.of.iter().zip(&self.tensors).map(move |pair| (pair.0.name.as_str(), rows(pair)))
    }
}

/// What a step came to.
#[derive(Debug)]
pub(super) struct CameTo {
    pub(super) losses: Vec<f64>,
    /// The norm of all gradients before clipping, and what clips them; or why there must be no step.
    pub(super) step: Result<(f64, Clip), Spoiled>,
}

/// The first thing in a step that is not finite.
#[derive(Debug)]
pub(super) enum Spoiled {
    /// Of which batch.
    Loss(usize),
    /// Of which tensor.
    Gradient(String),
}

impl CameTo {
    /// By what was found of the gradients of these parameters.
    pub(super) fn new(of: &[Parameter], found: Found) -> Self {
        let Found { losses, squared_norms, grad_scale } = found;
        let spoiled = losses.iter().position(|loss| !loss.is_finite());
        let step = match (spoiled, grad_norm(of, &squared_norms), grad_scale) {
            (Some(batch), ..) => Err(Spoiled::Loss(batch)),
            (None, GradNorm::NonFinite { tensor }, _) => Err(Spoiled::Gradient(tensor)),
            (None, GradNorm::Finite(norm), Some(grad_scale)) => Ok((norm, Clip::Known(grad_scale))),
            // The sum of all is too large for f32, in which a device adds.
            (None, GradNorm::Finite(_), None) => {
                let largest = of.iter().zip(&squared_norms).max_by(|(_, a), (_, b)| a.total_cmp(b));
                Err(Spoiled::Gradient(largest.map_or(String::new(), |(parameter, _)| parameter.name.clone())))
            }
        };
        Self { losses, step }
    }
}

/// The norm of all gradients together, of the squares of each.
fn grad_norm(of: &[Parameter], squared_norms: &[f64]) -> GradNorm {
    match squared_norms.iter().position(|squared| !squared.is_finite()) {
        Some(first) => GradNorm::NonFinite { tensor: of[first].name.clone() },
        None => GradNorm::Finite(squared_norms.iter().sum::<f64>().sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::tensor::Device;

    use super::*;

    #[derive(Module, Debug)]
    struct Three {
        a: Param<Tensor<1>>,
        b: Param<Tensor<1>>,
        c: Param<Tensor<1>>,
    }

    /// A class that no example of a batch has, say, has no gradient there.
    #[test]
    fn batches_may_be_about_different_tensors() {
        let number = |value: f32| Param::from_tensor(Tensor::from_floats([value], &Device::flex().autodiff()));
        let three = Three { a: number(1.0), b: number(2.0), c: number(3.0) };
        let take = |loss: Tensor<1>| NamedGradients::take(&three, &mut loss.backward());
        let of_a_and_c = || take(three.a.val() * 2.0 + three.c.val() * 3.0);
        let of_b_and_c = || take(three.b.val() * 5.0 + three.c.val() * 7.0);
        for sum in [of_a_and_c().summed_with(of_b_and_c()), of_b_and_c().summed_with(of_a_and_c())] {
            let values: Vec<_> = sum.iter().map(|(name, gradient)| (name, gradient.into_scalar::<f32>())).collect();
            assert_eq!(values, [("a", 2.0), ("b", 5.0), ("c", 10.0)]);
        }
    }
}
