//! Gradients by the names of what they are of, and what a step with them comes to: its losses, the norm of all of them, and whether it can be
//! made. Not here: the step itself (`adam`).

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{FloatDType, Gradients, Tensor};

use super::sweep::{self, Clip, Finding, Found, Question};
use crate::nn::params::{self, Role, VisitTensor};
use crate::nn::sweeps;

/// Gradients of one backward pass, or the sum of several, flat, in the order of the network's fields; of the type of the tensors that the
/// backward pass was about, sums in f32.
#[derive(Clone, Debug, Default)]
pub struct NamedGradients(Vec<Named>);

/// The gradient of the parameter of this name and shape, in the order of [`sweeps::flat`].
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) gradient: Tensor<1>,
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
        struct Collect<'a>(&'a mut Gradients, NamedGradients);
        impl VisitTensor for Collect<'_> {
            fn visit<const D: usize>(&mut self, name: &str, role: Role, tensor: &Tensor<D>) {
                if role == Role::Trainable
                    && let Some(gradient) = tensor.grad_remove(self.0)
                {
                    let (shape, gradient) = (gradient.dims().to_vec(), sweeps::flat(name, gradient));
                    self.1.0.push(Named { name: name.to_string(), shape, gradient });
                }
            }
        }
        let mut collect = Collect(gradients, Self::default());
        params::visit(model, &mut collect);
        collect.1
    }

    /// The sum with the gradients of another pass of the same network.
    pub fn summed_with(self, other: Self) -> Self {
        if self.0.is_empty() {
            return other;
        }
        let f32 = FloatDType::F32;
        let sum = self.0.into_iter().zip(other.0).map(|(of, more)| {
            let gradient = of.gradient.cast(f32) + more.gradient.cast(f32);
            Named { gradient, ..of }
        });
        Self(sum.collect())
    }

    /// The norm of all gradients together. Waits for the device.
    pub fn norm(&self) -> GradNorm {
        let no_loss = self.0.first().map(|of| Tensor::zeros([1], &of.gradient.device()));
        let StepFinding { names, finding } = self.ask(no_loss.into_iter().collect(), f64::INFINITY).read();
        grad_norm(&names, &finding.wait().squared_norms)
    }

    /// Asks for what a step with these gradients comes to, which are clipped to a norm of `max_norm`; `losses` are of one value each, and there is one.
    pub(super) fn ask(&self, losses: Vec<Tensor<1>>, max_norm: f64) -> StepQuestion {
        let gradients: Vec<&Tensor<1>> = self.0.iter().map(|of| &of.gradient).collect();
        let names = self.0.iter().map(|of| of.name.clone()).collect();
        StepQuestion { names, question: sweep::ask(&gradients, losses, max_norm) }
    }

    /// One after the other.
    pub(super) fn into_named(self) -> impl Iterator<Item = Named> {
        self.0.into_iter()
    }

    /// Name and gradient of each tensor, in the order of its rows.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor<1>)> {
        self.0.iter().map(|of| (of.name.as_str(), sweeps::in_rows(&of.name, of.gradient.clone(), &of.shape)))
    }
}

/// Losses and norm of a step, to be found on the device.
#[derive(Clone, Debug)]
pub(super) struct StepQuestion {
    /// Of the gradients.
    names: Arc<[String]>,
    question: Question,
}

impl StepQuestion {
    /// Sends for what the device finds.
    pub(super) fn read(&self) -> StepFinding {
        StepFinding { names: self.names.clone(), finding: self.question.read() }
    }
}

/// Losses and norm of a step, perhaps still to be computed.
#[derive(Debug)]
pub(super) struct StepFinding {
    /// Of the gradients.
    names: Arc<[String]>,
    finding: Finding,
}

/// What was found of a step.
#[derive(Debug)]
pub(super) struct StepFound {
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

impl StepFinding {
    /// What the device makes of it by itself, if it does.
    pub(super) fn clip(&self) -> Option<Clip> {
        self.finding.clip()
    }

    /// Waits for it, as it is.
    pub(super) fn wait_for_all(self) -> Found {
        self.finding.wait()
    }

    /// Waits for it.
    pub(super) fn wait(self) -> StepFound {
        let Found { losses, squared_norms, grad_scale } = self.finding.wait();
        let spoiled = losses.iter().position(|loss| !loss.is_finite());
        let step = match (spoiled, grad_norm(&self.names, &squared_norms), grad_scale) {
            (Some(batch), ..) => Err(Spoiled::Loss(batch)),
            (None, GradNorm::NonFinite { tensor }, _) => Err(Spoiled::Gradient(tensor)),
            (None, GradNorm::Finite(norm), Some(grad_scale)) => Ok((norm, Clip::Known(grad_scale))),
            // The sum of all is too large for f32, in which a device adds.
            (None, GradNorm::Finite(_), None) => {
                let largest = self.names.iter().zip(&squared_norms).max_by(|(_, a), (_, b)| a.total_cmp(b));
                Err(Spoiled::Gradient(largest.map_or(String::new(), |(tensor, _)| tensor.clone())))
            }
        };
        StepFound { losses, step }
    }
}

/// The norm of all gradients together, of the squares of each.
fn grad_norm(names: &[String], squared_norms: &[f64]) -> GradNorm {
    match squared_norms.iter().position(|squared| !squared.is_finite()) {
        Some(first) => GradNorm::NonFinite { tensor: names[first].clone() },
        None => GradNorm::Finite(squared_norms.iter().sum::<f64>().sqrt()),
    }
}
