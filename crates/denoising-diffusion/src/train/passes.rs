//! The passes of a training step: what is drawn for them, the loss and its gradients, and what is asked about those. Not here: what follows from the
//! answer (`trainer`).

use burn::tensor::{DType, Tensor};

use super::ahead::Ahead;
use super::gradients::{NamedGradients, StepQuestion};
use super::lr::learning_rate;
use super::recording::{Recorded, Recording};
use super::trainer::{Asked, Trainer};
use crate::device::is_cpu;
use crate::diffusion::{Draws, Examples, Prepared};
use crate::models::Network;
use crate::nn::{dropout, sweeps};
use crate::noise::{Purpose, Stream};

/// What passes leave on the device.
#[derive(Clone, Debug)]
pub struct Passes {
    pub gradients: NamedGradients,
    pub question: StepQuestion,
}

impl<M> Trainer<M> {
    /// The step's passes: its gradients, and what was asked about them. A device is not waited for (but for immiscible noise, which is assigned on the
    /// host from the data); where it is not the host, what the next step needs was drawn while it works.
    pub(super) fn ask<const D: usize>(&mut self, mut batches: Vec<Examples<D>>) -> (NamedGradients, Asked)
    where
        M: Network<D>,
    {
        let parts = batches.len() as u64;
        let data = batches.iter().map(|examples| examples.data.clone().reshape([-1])).collect();
        let dims = batches.first().map(|examples| examples.data.dims());
        let recorded = self.may_record(batches.len());
        let Passes { gradients, question } =
            if recorded { self.recorded_passes(batches.remove(0)) } else { self.passes(batches) };
        let finding = question.read();
        if let (false, Some(dims)) = (is_cpu(&self.device), dims) {
            let batch = (self.step + 1) * parts;
            self.ahead = Some(Ahead::new(batch, dims, self.draw(batch, dims)));
        }
        self.step += 1;
        let c = &self.config;
        let lr = learning_rate(c.lr_schedule, c.lr, c.warmup_steps, c.steps, self.step);
        (gradients, Asked { finding, data, step: self.step, lr })
    }

    /// One after the other, in the precision of this process.
    fn passes<const D: usize>(&mut self, batches: Vec<Examples<D>>) -> Passes
    where
        M: Network<D>,
    {
        let parts = batches.len() as u64;
        let mut ahead = self.ahead.take();
        let for_data = self.for_data();
        let model = for_data.as_ref().unwrap_or(self.model());
        let (mut losses, mut sum) = (Vec::with_capacity(batches.len()), NamedGradients::default());
        for (k, examples) in batches.into_iter().enumerate() {
            let batch = self.step * parts + k as u64;
            let draws = self.drawn(&mut ahead, batch, examples.data.dims());
            self.seed_dropout(batch);
            let batch = self.diffusion.prepare(model, self.on_device(examples), &draws);
            let (loss, gradients) = self.backward(model, &batch, parts);
            losses.push(loss);
            sum = sum.summed_with(gradients);
        }
        let question = sum.ask(losses, self.config.max_grad_norm);
        Passes { gradients: sum, question }
    }

    /// Whether passes over so many batches may be [recorded](Recording): they must be made of launches alone, the same ones each time.
    fn may_record<const D: usize>(&mut self, batches: usize) -> bool
    where
        M: Network<D>,
    {
        if !self.config.device_graph || matches!(self.recording, Recording::Refused(_)) {
            return false;
        }
        let why_not = if is_cpu(&self.device) || cfg!(feature = "fusion") {
            "the device records nothing"
        } else if batches != 1 {
            "a step is of several batches (`accumulate`)"
        } else if !self.only_the_optimizer_changes_it() {
            "the optimizer is not all that changes the network"
        } else if !self.diffusion.is_decided_beforehand(self.model()) {
            "what the loss needs is not known before the network runs (self-conditioning, `xm_candidates`, learned schedule or variance)"
        } else {
            return true;
        };
        self.recording = Recording::Refused(why_not.to_string());
        false
    }

    /// The passes of a step of one batch, as they were recorded, or launched while they are not.
    fn recorded_passes<const D: usize>(&mut self, examples: Examples<D>) -> Passes
    where
        M: Network<D>,
    {
        let (number, dims) = (self.step, examples.data.dims());
        let mut ahead = self.ahead.take();
        let draws = self.drawn(&mut ahead, number, dims);
        let examples = self.on_device(examples);
        let batch = self.diffusion.prepare(self.model(), examples.clone(), &draws);
        let mut recording = std::mem::take(&mut self.recording);
        let recorded = recording.run(&batch, || {
            let other = self.diffusion.prepare(self.model(), reversed(examples), &self.draw(number + 1, dims));
            Recorded::new(&self.device, &batch, &other, |batch| self.passes_of(batch))
        });
        self.recording = recording;
        if let Some(passes) = recorded {
            return passes;
        }
        self.seed_dropout(number);
        let passes = self.passes_of(&batch);
        if dropout::Draws::now().count() > 0 {
            self.recording = Recording::Refused("the network has dropout, which draws anew for each step".to_string());
        }
        passes
    }

    /// The passes over one batch.
    fn passes_of<const D: usize>(&self, batch: &Prepared<D>) -> Passes
    where
        M: Network<D>,
    {
        let for_data = self.for_data();
        let (loss, gradients) = self.backward(for_data.as_ref().unwrap_or(self.model()), batch, 1);
        let question = gradients.ask(vec![loss], self.config.max_grad_norm);
        Passes { gradients, question }
    }

    /// The network as the step's passes use it, if that is not as it is: what computes in bf16 is narrowed once per step, not at each use.
    fn for_data<const D: usize>(&self) -> Option<M>
    where
        M: Network<D>,
    {
        let dtype = self.model().data_type();
        (dtype != DType::F32 && !self.has_buffers).then(|| sweeps::for_data(self.model().clone(), dtype))
    }

    /// What was drawn ahead, if it is for this batch; else it is drawn now.
    fn drawn<const D: usize>(&self, ahead: &mut Option<Ahead>, batch: u64, dims: [usize; D]) -> Draws<D> {
        ahead.take().and_then(|ahead| ahead.of(batch, dims)).unwrap_or_else(|| self.draw(batch, dims))
    }

    /// What chance decides about a batch of shape `dims`.
    fn draw<const D: usize>(&self, batch: u64, dims: [usize; D]) -> Draws<D> {
        self.diffusion.draw(self.config.seed, batch * dims[0] as u64, batch, dims, &self.device)
    }

    fn seed_dropout(&self, batch: u64) {
        dropout::seed(&self.device, Stream::new(self.config.seed, Purpose::Dropout, batch, 0).next_u64());
    }

    fn on_device<const D: usize>(&self, examples: Examples<D>) -> Examples<D> {
        let to_device = |tensor: Tensor<D>| tensor.to_device(&self.device);
        let condition = examples.condition.map(to_device);
        Examples { data: to_device(examples.data), condition, ..examples }
    }

    /// Loss and gradients of one batch, both divided by the number of batches in the step.
    fn backward<const D: usize>(&self, model: &M, batch: &Prepared<D>, parts: u64) -> (Tensor<1>, NamedGradients)
    where
        M: Network<D>,
    {
        let loss = self.diffusion.loss_of(model, batch).mean() / parts as f64;
        let gradients = NamedGradients::take(model, &mut loss.backward());
        (loss.inner(), gradients)
    }
}

/// The same examples in another order.
fn reversed<const D: usize>(examples: Examples<D>) -> Examples<D> {
    let Examples { data, mut classes, condition, vectors } = examples;
    if let Some(classes) = &mut classes {
        classes.reverse();
    }
    Examples { data: data.flip([0]), classes, condition: condition.map(|condition| condition.flip([0])), vectors }
}
