//! The passes of a training step: their random draws, the loss and its gradients, and the query for losses and norms. Not here: what follows from
//! the answer (`trainer`).

use std::borrow::Borrow;
use std::cell::LazyCell;

use burn::tensor::{DType, Device, Tensor};

use super::ahead::Ahead;
use super::gradients::NamedGradients;
use super::lr::learning_rate;
use super::recording::{RecordedPasses, Recording};
use super::replicas::{self, At, Replica};
use super::sweep::Question;
use super::trainer::{Asked, Trainer};
use crate::device::is_cpu;
use crate::diffusion::{Draws, Examples, Prepared};
use crate::models::Network;
use crate::nn::ops::DropoutKey;
use crate::nn::{dropout, sweeps};
use crate::noise::{Purpose, Stream};
use crate::recording::{place_of_fields, why_not_on};

/// Results of the passes, still on the device.
#[derive(Clone, Debug)]
pub struct Passes {
    pub gradients: NamedGradients,
    pub question: Question,
}

/// A batch ready for the passes.
#[derive(Debug)]
pub struct Batch {
    prepared: Prepared,
    /// Determines what dropout drops.
    dropout: DropoutKey,
}

place_of_fields!(Batch { prepared, dropout });

impl Batch {
    fn with_other_data(self) -> Self {
        Self { prepared: self.prepared.with_other_data(), ..self }
    }
}

impl<M: Network> Trainer<M> {
    /// Runs the step's passes: returns the gradients, and the pending query about them. Does not wait for the device (except for immiscible noise,
    /// which the host assigns from the data); if the device is not the host, the next step's random draws are made meanwhile.
    pub(super) fn ask(&mut self, batches: Vec<Examples>) -> (NamedGradients, Asked) {
        let parts = batches.len() as u64;
        let data = batches.iter().map(|examples| examples.data.clone().reshape([-1])).collect();
        let dims = batches.first().map(|examples| examples.data.dims());
        let Passes { gradients, question } = self.passes_or_recorded(batches);
        // Before the answer is requested: that call returns only when the device has been given all work before it.
        if let (false, Some(dims)) = (is_cpu(&self.device), dims) {
            let batch = (self.step + 1) * parts;
            self.ahead = Some(Ahead::new(batch, dims, self.draw(batch, dims, &self.device)));
        }
        let finding = question.read();
        self.step += 1;
        let c = &self.config;
        let lr = learning_rate(c.lr_schedule, c.lr, c.warmup_steps, c.steps, self.step);
        let of = gradients.of();
        (gradients, Asked { finding, of, data, step: self.step, lr })
    }

    /// The step's passes, replayed if recorded, else launched.
    fn passes_or_recorded(&mut self, batches: Vec<Examples>) -> Passes {
        if !self.may_record() {
            return self.passes(batches);
        }
        if !self.recording.warms_up() {
            return self.recorded_passes(batches);
        }
        let passes = self.passes(batches);
        self.drops_out = dropout::Draws::now().count() > 0;
        passes
    }

    /// Launches the passes over one batch after the other, preparing each batch just before. Several devices take turns, in the order of the
    /// trainer's own and then its replicas.
    fn passes(&mut self, batches: Vec<Examples>) -> Passes {
        let (first, mut ahead) = (self.step * batches.len() as u64, self.ahead.take());
        let for_data = self.for_data();
        let mut replicas = std::mem::take(&mut self.replicas);
        let model = for_data.as_ref().unwrap_or(self.model());
        replicas::follow(&mut replicas, model);
        let places: Vec<_> = std::iter::once(self.here(model)).chain(replicas.iter().map(Replica::place)).collect();
        let prepared = batches.into_iter().enumerate().map(|(k, examples)| {
            let (batch, at) = (first + k as u64, places[k % places.len()]);
            let draws = self.drawn(&mut ahead, batch, examples.data.dims(), at.device);
            self.prepared(at, batch, examples.on(at.device), &draws)
        });
        let passes = self.passes_of(&places, prepared);
        self.replicas = replicas;
        passes
    }

    /// Whether passes may be [recorded](Recording): they must consist only of launches, the same ones each time.
    fn may_record(&mut self) -> bool {
        if !self.config.device_graph || matches!(self.recording, Recording::Refused(_)) {
            return false;
        }
        let why_not = if let Some(why_not) = why_not_on(&self.device) {
            why_not
        } else if !self.only_steps_change_it() {
            "the network has running statistics, which its passes change"
        } else if !self.replicas.is_empty() {
            "several devices share the batches of a step"
        } else {
            return true;
        };
        self.recording = Recording::Refused(why_not.to_string());
        false
    }

    /// The passes, replayed if recorded, else launched.
    fn recorded_passes(&mut self, batches: Vec<Examples>) -> Passes {
        let (mut recording, ahead) = (std::mem::take(&mut self.recording), self.ahead.take());
        let passes = self.passes_of_recording(&mut recording, ahead, batches);
        self.recording = recording;
        passes
    }

    fn passes_of_recording(
        &self,
        recording: &mut Recording,
        mut ahead: Option<Ahead>,
        batches: Vec<Examples>,
    ) -> Passes {
        let parts = batches.len() as u64;
        let first = self.step * parts;
        let batches: Vec<_> = batches.into_iter().map(|examples| examples.on(&self.device)).collect();
        // Only the passes of the loss are replayed, and with them a conversion of their own. This one is needed in some of the steps.
        let for_data = LazyCell::new(|| self.for_data());
        let mut prepared = |first: u64, batches: Vec<Examples>| -> Vec<Batch> {
            let prepare = |(batch, examples): (u64, Examples)| {
                let draws = self.drawn(&mut ahead, batch, examples.data.dims(), &self.device);
                let converted = if draws.need_network(self.model()) { for_data.as_ref() } else { None };
                let model = converted.unwrap_or(self.model());
                let Batch { prepared, dropout } = self.prepared(self.here(model), batch, examples, &draws);
                // Without dropout, the upload is not needed.
                let dropout = if self.drops_out { dropout.on_device(&self.device) } else { dropout };
                Batch { prepared, dropout }
            };
            (first..).zip(batches).map(prepare).collect()
        };
        let now = prepared(first, batches.clone());
        let recorded = recording.run(&now, || {
            // Noise, its levels and what dropout drops are those of the next step, all else is made up.
            let others = prepared(first + parts, batches).into_iter().map(Batch::with_other_data).collect();
            RecordedPasses::new(&self.device, [&others, &now], |batches| self.launched(batches))
        });
        recorded.unwrap_or_else(|| self.launched(&now))
    }

    /// Launches the passes over prepared batches.
    fn launched(&self, batches: &[Batch]) -> Passes {
        let for_data = self.for_data();
        self.passes_of(&[self.here(for_data.as_ref().unwrap_or(self.model()))], batches)
    }

    /// The passes over these batches of the network as data use it, on devices that take turns: the sum of their gradients, in the order of the
    /// batches, whatever the number of devices. No device is waited for before work has been submitted to all.
    fn passes_of<B: Borrow<Batch>>(
        &self,
        places: &[At<'_, M>],
        batches: impl IntoIterator<Item = B, IntoIter: ExactSizeIterator>,
    ) -> Passes {
        let batches = batches.into_iter();
        let parts = batches.len();
        let (mut losses, mut sum) = (Vec::with_capacity(parts), NamedGradients::default());
        let mut asked = Vec::with_capacity(places.len());
        for (k, batch) in batches.enumerate() {
            asked.push(self.backward(places[asked.len()].model, batch.borrow(), parts));
            if asked.len() < places.len() && k + 1 < parts {
                continue;
            }
            for (place, (loss, gradients)) in asked.drain(..).enumerate() {
                let (loss, gradients) = match place {
                    0 => (loss, gradients),
                    _ => gradients.moved(loss, &self.device()),
                };
                losses.push(loss);
                sum = sum.summed_with(gradients);
            }
        }
        let question = sum.ask(losses, self.config.max_grad_norm);
        Passes { gradients: sum, question }
    }

    /// The network in the form used for data, if it differs: layers that compute in bf16 are converted once per step, not at each use.
    fn for_data(&self) -> Option<M> {
        let dtype = self.model().data_type();
        (dtype != DType::F32 && !self.has_buffers).then(|| sweeps::for_data(self.model().clone(), dtype))
    }

    /// The trainer's own place, with the network as data use it.
    fn here<'a>(&'a self, model: &'a M) -> At<'a, M> {
        At { device: &self.device, model }
    }

    /// The draws made ahead on the trainer's own device, if they are for this batch; else new ones.
    fn drawn(&self, ahead: &mut Option<Ahead>, batch: u64, dims: [usize; 4], device: &Device) -> Draws {
        ahead.take().and_then(|ahead| ahead.of(batch, dims)).unwrap_or_else(|| self.draw(batch, dims, device))
    }

    /// The random draws for a batch of shape `dims`.
    fn draw(&self, batch: u64, dims: [usize; 4], device: &Device) -> Draws {
        self.diffusion.draw(self.config.seed, batch * dims[0] as u64, batch, dims, device)
    }

    /// Prepares the batch with this number. The dropout draws made by the network up to then are not those of the loss: their number is random.
    fn prepared(&self, at: At<'_, M>, batch: u64, examples: Examples, draws: &Draws) -> Batch {
        let [before, loss] = [0, 1].map(|part| Stream::new(self.config.seed, Purpose::Dropout, batch, part).next_u64());
        dropout::seed(at.device, before);
        Batch { prepared: self.diffusion.prepare(at.model, examples, draws), dropout: dropout::key(loss) }
    }

    /// Loss and gradients of one batch, both divided by the number of batches in the step.
    fn backward(&self, model: &M, batch: &Batch, parts: usize) -> (Tensor<1>, NamedGradients) {
        dropout::begin(batch.dropout.clone());
        let loss = self.diffusion.loss_of(model, &batch.prepared).mean() / parts as f64;
        let gradients = NamedGradients::take(model, &mut loss.backward());
        dropout::let_go();
        (loss.inner(), gradients)
    }
}
