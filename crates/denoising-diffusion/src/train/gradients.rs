//! Gradients by parameter name, and the outcome of a step with them: its losses, the norm of all gradients, and whether the step can be made. Not
//! here: the step itself (`adam`).

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Gradients, Tensor};

use super::replicas;
use super::sweep::{self, Clip, Found, Question};
use crate::nn::params::{self, Role, VisitTensor};
use crate::nn::sweeps;

/// Gradients of one backward pass, or the sum of several, flat, in the order of the network's fields. Those of one pass have the type of the tensors
/// that it was computed for; sums are f32.
#[derive(Clone, Debug, Default)]
pub struct NamedGradients {
    of: Arc<[Parameter]>,
    /// One per parameter, in the order of [`sweeps::flat`].
    tensors: Vec<Tensor<1>>,
}

/// The parameter that a gradient belongs to.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// Its index among the network's trainable tensors.
    number: usize,
}

/// The global norm of the gradients, before clipping.
#[derive(Clone, Debug, PartialEq)]
pub enum GradNorm {
    Finite(f64),
    /// The first tensor whose gradient is not finite.
    NonFinite {
        tensor: String,
    },
}

impl NamedGradients {
    /// The gradients of the trainable tensors of `model`, taken out of those of a backward pass; a tensor that the loss does not depend on has none.
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

    /// The sum with the gradients of another pass of the same network, which may cover other tensors of it.
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

    /// The same on another device, together with their loss. Waits for their device.
    pub(super) fn moved(self, loss: Tensor<1>, device: &Device) -> (Tensor<1>, Self) {
        let mut tensors = replicas::moved(self.tensors.into_iter().chain([loss]).collect(), device);
        let loss = tensors.pop().expect("as many as there were");
        (loss, Self { tensors, of: self.of })
    }

    /// The global norm of the gradients. Waits for the device.
    pub fn norm(&self) -> GradNorm {
        let no_loss = self.tensors.first().map(|gradient| Tensor::zeros([1], &gradient.device()));
        let found = self.ask(no_loss.into_iter().collect(), f64::INFINITY).read().wait();
        grad_norm(&self.of, &found.squared_norms)
    }

    /// Requests the outcome of a step with these gradients, to be clipped to a norm of `max_norm`; each of `losses` holds one value, and there is at
    /// least one.
    pub(super) fn ask(&self, losses: Vec<Tensor<1>>, max_norm: f64) -> Question {
        sweep::ask(&self.tensors, losses, max_norm)
    }

    /// The parameters that the gradients belong to.
    pub(super) fn of(&self) -> Arc<[Parameter]> {
        self.of.clone()
    }

    /// The parameters and, in the same order, their gradients.
    pub(super) fn into_parts(self) -> (Arc<[Parameter]>, Vec<Tensor<1>>) {
        (self.of, self.tensors)
    }

    /// Name and gradient of each tensor, in rows.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor<1>)> {
        let rows = |(of, gradient): (&Parameter, &Tensor<1>)| sweeps::in_rows(&of.name, gradient.clone(), &of.shape);
        self.of.iter().zip(&self.tensors).map(move |pair| (pair.0.name.as_str(), rows(pair)))
    }
}

/// The result of a step.
#[derive(Debug)]
pub(super) struct CameTo {
    pub(super) losses: Vec<f64>,
    /// The norm of all gradients before clipping and what clips them, or why the step must not be made.
    pub(super) step: Result<(f64, Clip), Spoiled>,
}

/// The first non-finite value in a step.
#[derive(Debug)]
pub(super) enum Spoiled {
    /// The loss of this batch.
    Loss(usize),
    /// The gradient of this tensor.
    Gradient(String),
}

impl CameTo {
    /// From the query's answer for the gradients of these parameters.
    pub(super) fn new(of: &[Parameter], found: Found) -> Self {
        let Found { losses, squared_norms, grad_scale } = found;
        let spoiled = losses.iter().position(|loss| !loss.is_finite());
        let step = match (spoiled, grad_norm(of, &squared_norms), grad_scale) {
            (Some(batch), ..) => Err(Spoiled::Loss(batch)),
            (None, GradNorm::NonFinite { tensor }, _) => Err(Spoiled::Gradient(tensor)),
            (None, GradNorm::Finite(norm), Some(grad_scale)) => Ok((norm, Clip::Known(grad_scale))),
            // The sum of all is too large for f32, in which the device adds.
            (None, GradNorm::Finite(_), None) => {
                let largest = of.iter().zip(&squared_norms).max_by(|(_, a), (_, b)| a.total_cmp(b));
                Err(Spoiled::Gradient(largest.map_or(String::new(), |(parameter, _)| parameter.name.clone())))
            }
        };
        Self { losses, step }
    }
}

/// The global norm of the gradients, from the squared norm of each.
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

    /// For example, a class that no example of a batch has gets no gradient.
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
