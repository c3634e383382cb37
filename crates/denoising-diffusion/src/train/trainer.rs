//! One step of training. Not here: where batches come from, and what is written to disk.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use thiserror::Error;

use super::adam::{Adam, GradNorm, NamedGradients};
use super::ahead::Ahead;
use super::config::TrainConfig;
use super::ema::{Ema, EmaConfig};
use super::lr::learning_rate;
use crate::device::{in_pool, is_cpu};
use crate::diffusion::{Diffusion, Draws, Examples};
use crate::interop::StateDict;
use crate::models::Network;
use crate::nn::dropout;
use crate::nn::ops::{Activations, set_activations};
use crate::nn::params::{self, MapTensor, ParamsError, Role, VisitTensor};
use crate::nn::sweeps;
use crate::noise::{Purpose, Stream};

/// A network in training, its optimizer and its moving average.
#[derive(Debug)]
pub struct Trainer<M> {
    /// Taken out only while the optimizer replaces it.
    model: Option<M>,
    ema: Ema<M>,
    adam: Adam,
    diffusion: Diffusion,
    config: TrainConfig,
    device: Device,
    step: u64,
    skipped: u64,
    skipped_in_a_row: u64,
    has_buffers: bool,
    ahead: Option<Ahead>,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// 1-based.
    pub step: u64,
    /// The weighted loss, averaged over the step's images.
    pub loss: f64,
    /// The norm of all gradients together, before clipping; NaN if the step was skipped.
    pub grad_norm: f64,
    pub lr: f64,
    pub ema_decay: f64,
    /// Set if the step was skipped: it changed neither weights, statistics, optimizer nor average.
    pub skipped: Option<NonFinite>,
}

/// The first thing in a step that was not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// `images`, `loss`, or the name of a weight or of the tensor whose gradient it is.
    pub tensor: String,
    pub kind: NonFiniteKind,
}

/// Where a value that is not finite showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFiniteKind {
    Loss,
    /// The loss was finite.
    Gradient,
}

impl std::fmt::Display for NonFiniteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loss => "loss",
            Self::Gradient => "gradient",
        })
    }
}

/// Why training cannot go on.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TrainError {
    #[error(
        "{count} steps in a row had no finite {kind}; the first tensor that was not finite in the last one: `{tensor}`"
    )]
    NonFinite { count: u64, tensor: String, kind: NonFiniteKind },
}

/// What a [`Trainer`] needs, beside its configuration, to go on where it stopped.
#[derive(Clone, Debug)]
pub struct TrainerState {
    pub step: u64,
    pub skipped: u64,
    pub skipped_in_a_row: u64,
    pub adam_steps: u64,
    pub ema_calls: u64,
    pub model: StateDict,
    pub ema: StateDict,
    pub adam: StateDict,
}

impl<M> Trainer<M> {
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    pub fn diffusion(&self) -> &Diffusion {
        &self.diffusion
    }

    /// The moving average; samples and metrics come from its `eval()`.
    pub fn ema(&self) -> &Ema<M> {
        &self.ema
    }

    /// The network in training.
    pub fn model(&self) -> &M {
        self.model.as_ref().expect("a step puts the network back")
    }

    /// Steps made, skipped ones included.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Steps skipped because something was not finite.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The plain device that evaluation runs on.
    pub fn device(&self) -> Device {
        self.device.clone().inner()
    }
}

impl<M> Trainer<M> {
    /// `model` must lie on an autodiff device; its configuration is taken as valid.
    pub fn new<const D: usize>(
        model: M,
        diffusion: Diffusion,
        config: TrainConfig,
        ema: EmaConfig,
        device: &Device,
    ) -> Self
    where
        M: Network<D>,
    {
        let model = if is_cpu(device) { model } else { sweeps::settled(model) };
        Self {
            ema: Ema::new(&model, ema),
            adam: Adam::new(config.adam()),
            has_buffers: !buffers(&model).0.is_empty(),
            model: Some(model),
            diffusion,
            config,
            device: device.clone().autodiff(),
            step: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            ahead: None,
        }
    }

    /// One optimizer step on `accumulate` batches: tensors `[b, c, ...]` of data in the data's range, or [`Examples`] with classes and conditions.
    pub fn step<const D: usize>(&mut self, batches: Vec<impl Into<Examples<D>>>) -> StepReport
    where
        M: Network<D>,
    {
        set_activations(if self.config.checkpoint_activations { Activations::Recompute } else { Activations::Keep });
        let batches = batches.into_iter().map(Into::into).collect();
        in_pool(|| self.step_in_pool(batches))
    }

    fn step_in_pool<const D: usize>(&mut self, batches: Vec<Examples<D>>) -> StepReport
    where
        M: Network<D>,
    {
        let before = if self.has_buffers { buffers(self.model()) } else { Buffers::default() };
        let lr = {
            let c = &self.config;
            learning_rate(c.lr_schedule, c.lr, c.warmup_steps, c.steps, self.step + 1)
        };
        let (loss, outcome) = self.gradients(batches);
        self.step += 1;
        let mut report =
            StepReport { step: self.step, loss, grad_norm: f64::NAN, lr, ema_decay: self.ema.decay(), skipped: None };
        match outcome {
            Ok((gradients, norm)) => {
                report.grad_norm = norm;
                self.skipped_in_a_row = 0;
                self.model = self.model.take().map(|model| self.adam.step(model, gradients, norm, lr).after_step());
                self.ema.update(self.model.as_ref().expect("just put back"));
                report.ema_decay = self.ema.decay();
            }
            Err(cause) => {
                self.skipped += 1;
                self.skipped_in_a_row += 1;
                if self.has_buffers {
                    self.restore_buffers(before);
                }
                report.skipped = Some(cause);
            }
        }
        report
    }

    /// An error once `max_skipped` steps in a row were skipped.
    pub fn check_progress(&self, report: &StepReport) -> Result<(), TrainError> {
        match &report.skipped {
            Some(cause) if self.skipped_in_a_row >= self.config.max_skipped => Err(TrainError::NonFinite {
                count: self.skipped_in_a_row,
                tensor: cause.tensor.clone(),
                kind: cause.kind,
            }),
            _ => Ok(()),
        }
    }

    /// The mean loss of the step, and its gradients with their norm, or what was not finite. The device is waited for at the end, when all
    /// of the step's work lies before it (immiscible noise, which is assigned on the host, waits for the data before) and, where the device is
    /// not the host, what the next step needs was drawn.
    fn gradients<const D: usize>(
        &mut self,
        batches: Vec<Examples<D>>,
    ) -> (f64, Result<(NamedGradients, f64), NonFinite>)
    where
        M: Network<D>,
    {
        let parts = batches.len() as u64;
        let mut ahead = self.ahead.take();
        let for_data = self.for_data();
        let model = for_data.as_ref().unwrap_or(self.model());
        let (mut losses, mut sum) = (Vec::with_capacity(batches.len()), NamedGradients::default());
        for (k, examples) in batches.into_iter().enumerate() {
            let data = examples.data.clone();
            let (batch, dims) = (self.step * parts + k as u64, data.dims());
            let draws = ahead.take().and_then(|ahead| ahead.of(batch, dims)).unwrap_or_else(|| self.draw(batch, dims));
            let (loss, gradients) = self.backward(model, examples, &draws, batch, parts);
            losses.push((loss, data));
            sum = sum.summed_with(gradients);
        }
        if let (false, Some((_, data))) = (is_cpu(&self.device), losses.first()) {
            let (batch, dims) = ((self.step + 1) * parts, data.dims());
            self.ahead = Some(Ahead::new(batch, dims, self.draw(batch, dims)));
        }
        let norm = sum.norm();
        let mut total = 0.0;
        for (loss, data) in losses {
            let value = f64::from(loss.into_scalar::<f32>());
            if !value.is_finite() {
                return (f64::NAN, Err(self.blame(data)));
            }
            total += value;
        }
        match norm {
            GradNorm::Finite(norm) => (total, Ok((sum, norm))),
            GradNorm::NonFinite { tensor } => (total, Err(NonFinite { tensor, kind: NonFiniteKind::Gradient })),
        }
    }

    /// The network as the step's passes use it, if that is not as it is: what computes in bf16 is narrowed once per step, not at each use.
    fn for_data<const D: usize>(&self) -> Option<M>
    where
        M: Network<D>,
    {
        let dtype = self.model().data_type();
        (dtype != DType::F32 && !self.has_buffers).then(|| sweeps::for_data(self.model().clone(), dtype))
    }

    /// What chance decides about a batch of shape `dims`.
    fn draw<const D: usize>(&self, batch: u64, dims: [usize; D]) -> Draws<D> {
        self.diffusion.draw(self.config.seed, batch * dims[0] as u64, batch, dims, &self.device)
    }

    /// Loss and gradients of one batch, both divided by the number of batches in the step.
    fn backward<const D: usize>(
        &self,
        model: &M,
        examples: Examples<D>,
        draws: &Draws<D>,
        batch: u64,
        parts: u64,
    ) -> (Tensor<1>, NamedGradients)
    where
        M: Network<D>,
    {
        dropout::seed(&self.device, Stream::new(self.config.seed, Purpose::Dropout, batch, 0).next_u64());
        let to_device = |tensor: Tensor<D>| tensor.to_device(&self.device);
        let examples = Examples {
            data: to_device(examples.data),
            condition: examples.condition.map(to_device),
            classes: examples.classes,
            vectors: examples.vectors,
        };
        let loss = self.diffusion.loss(model, examples, draws).mean() / parts as f64;
        let gradients = NamedGradients::take(model, &mut loss.backward());
        (loss.detach(), gradients)
    }

    /// What made a loss non-finite: the images, a weight, or neither.
    fn blame<const D: usize>(&self, images: Tensor<D>) -> NonFinite
    where
        M: Network<D>,
    {
        struct FirstBad(Option<String>);
        impl VisitTensor for FirstBad {
            fn visit<const D: usize>(&mut self, name: &str, _: Role, tensor: &Tensor<D>) {
                if self.0.is_none() && !all_finite(tensor) {
                    self.0 = Some(name.to_string());
                }
            }
        }
        let mut bad = FirstBad((!all_finite(&images)).then(|| "images".to_string()));
        params::visit(self.model(), &mut bad);
        NonFinite { tensor: bad.0.unwrap_or_else(|| "loss".to_string()), kind: NonFiniteKind::Loss }
    }

    fn restore_buffers<const D: usize>(&mut self, before: Buffers)
    where
        M: Network<D>,
    {
        // Flushes what this thread's forward pass left pending, so that nothing overwrites the restored values later.
        let _ = self.model().valid();
        self.model = self.model.take().map(|model| params::map(model, &mut { before }));
    }

    /// All that must be saved to go on later.
    pub fn state<const D: usize>(&self) -> TrainerState
    where
        M: Network<D>,
    {
        TrainerState {
            step: self.step,
            skipped: self.skipped,
            skipped_in_a_row: self.skipped_in_a_row,
            adam_steps: self.adam.steps(),
            ema_calls: self.ema.calls(),
            model: params::to_state_dict(self.model()),
            ema: self.ema.to_state_dict(),
            adam: self.adam.to_state_dict(),
        }
    }

    /// Goes on from a saved state of the same network and configuration.
    pub fn restore<const D: usize>(&mut self, state: &TrainerState) -> Result<(), ParamsError>
    where
        M: Network<D>,
    {
        let model = params::load_state_dict(self.model().clone(), &state.model)?;
        self.adam = Adam::from_state_dict(self.config.adam(), state.adam_steps, &state.adam, &model, &self.device())?;
        self.model = Some(if is_cpu(&self.device) { model } else { sweeps::settled(model) });
        self.ema.restore(&state.ema, state.ema_calls)?;
        (self.step, self.skipped, self.skipped_in_a_row) = (state.step, state.skipped, state.skipped_in_a_row);
        Ok(())
    }
}

fn all_finite<const D: usize>(tensor: &Tensor<D>) -> bool {
    params::host_values(tensor.clone()).iter().all(|value| value.is_finite())
}

/// Floating-point buffers by name, on the host.
#[derive(Default)]
struct Buffers(StateDict);

impl VisitTensor for Buffers {
    fn visit<const D: usize>(&mut self, name: &str, role: Role, tensor: &Tensor<D>) {
        if role == Role::Buffer {
            self.0.insert(name, params::host_tensor(tensor.clone()));
        }
    }
}

fn buffers<M: Module>(model: &M) -> Buffers {
    let _ = model.valid();
    let mut buffers = Buffers::default();
    params::visit(model, &mut buffers);
    buffers
}

impl MapTensor for Buffers {
    fn map<const D: usize>(&mut self, name: &str, role: Role, tensor: Tensor<D>) -> Tensor<D> {
        match self.0.get(name) {
            Some(host) if role == Role::Buffer => {
                let dims: [usize; D] = tensor.dims();
                Tensor::from_data(TensorData::new(host.values.clone(), dims), &tensor.device())
            }
            _ => tensor,
        }
    }
}
