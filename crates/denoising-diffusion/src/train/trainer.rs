//! One step of training. Not here: where batches come from, and what is written to disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::adam::Adam;
use super::ahead::Ahead;
use super::buffers::Buffers;
use super::config::TrainConfig;
use super::ema::{Ema, EmaConfig};
use super::gradients::{CameTo, NamedGradients, Parameter, Spoiled};
use super::power_ema::{PowerEma, PowerEmaError};
use super::recording::Recording;
use super::replicas::Replica;
use super::step_report::{NonFinite, NonFiniteKind, StepReport, TrainError, TrainerError};
use super::sweep::{self, Clip, Finding};
use crate::device::{in_pool, is_cpu};
use crate::diffusion::{Diffusion, Examples};
use crate::models::{Network, RecordingState};
use crate::nn::MP_EPS;
use crate::nn::ops::{Activations, set_activations};
use crate::nn::params::{self, ParamsError, Role, VisitTensor};
use crate::nn::sweeps::{self, Field};
use crate::post_hoc::Profile;
use crate::weights::StateDict;

#[cfg(test)]
mod tests;

/// A network in training, its optimizer and its moving average.
///
/// Only one training at a time per process: what dropout drops, and whether activations are kept, are process-wide settings, as Burn's operations
/// carry no context. Two trainers that step concurrently may get each other's settings.
#[derive(Debug)]
pub struct Trainer<M> {
    /// `None` only while the optimizer replaces it.
    pub(super) model: Option<M>,
    ema: Ema<M>,
    power_emas: Vec<PowerEma<M>>,
    adam: Adam,
    pub(super) diffusion: Diffusion,
    pub(super) config: TrainConfig,
    pub(super) device: Device,
    /// Copies on other devices, which take turns with this one.
    pub(super) replicas: Vec<Replica<M>>,
    pub(super) step: u64,
    skipped: u64,
    skipped_in_a_row: u64,
    pub(super) has_buffers: bool,
    forced_norms: BTreeSet<String>,
    pub(super) ahead: Option<Ahead>,
    pub(super) recording: Recording,
    /// Whether the passes that were launched last used dropout.
    pub(super) drops_out: bool,
    in_flight: Option<Asked>,
    /// Report of a finished step that has not been returned yet.
    settled: Option<StepReport>,
}

/// A submitted step whose result may still be pending.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) finding: Finding,
    /// The parameters of its gradients.
    pub(super) of: Arc<[Parameter]>,
    /// The data of each batch, to find the cause of a non-finite loss.
    pub(super) data: Vec<Tensor<1>>,
    pub(super) step: u64,
    pub(super) lr: f64,
}

/// What a [`Trainer`] needs, in addition to its configuration, to resume.
#[derive(Clone, Debug)]
pub struct TrainerState {
    pub step: u64,
    pub skipped: u64,
    pub skipped_in_a_row: u64,
    pub adam_steps: u64,
    pub ema_calls: u64,
    pub model: StateDict,
    pub ema: StateDict,
    pub power_emas: Vec<PowerEmaState>,
    pub adam: StateDict,
}

/// A post-hoc average ([`crate::post_hoc`]).
#[derive(Clone, Debug, PartialEq)]
pub struct PowerEmaState {
    pub sigma_rel: f64,
    pub weights: StateDict,
}

impl<M> Trainer<M> {
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    pub fn diffusion(&self) -> &Diffusion {
        &self.diffusion
    }

    /// The moving average; its `eval()` is used for samples and metrics.
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

    /// Steps skipped since the last one that was not.
    pub(super) fn skipped_in_a_row(&self) -> u64 {
        self.skipped_in_a_row
    }

    /// Steps that changed something, as far as known without waiting.
    pub(super) fn adam_steps(&self) -> u64 {
        self.adam.steps()
    }

    /// Whether the passes of steps are recorded (`device_graph`), or why they cannot be.
    pub fn recording_state(&self) -> RecordingState {
        match &self.recording {
            Recording::Launched(_) => RecordingState::NotTried,
            Recording::Recorded(_) => RecordingState::Recorded,
            Recording::Refused(why) => RecordingState::Refused(why.clone()),
        }
    }

    /// Lengths of the post-hoc averages.
    pub(super) fn sigma_rels(&self) -> Vec<f64> {
        self.power_emas.iter().map(|average| average.profile().sigma_rel()).collect()
    }

    /// The plain device that evaluation runs on.
    pub fn device(&self) -> Device {
        self.device.clone().inner()
    }
}

impl<M: Network> Trainer<M> {
    /// A trainer before its first step. `model` must be on an autodiff device.
    ///
    /// # Errors
    /// Invalid options, or a network that does not fit the formulation or has nothing to train, as on a device without autodiff.
    pub fn new(
        model: M,
        diffusion: Diffusion,
        config: TrainConfig,
        ema: EmaConfig,
        device: &Device,
    ) -> Result<Self, TrainerError> {
        config.validate()?;
        ema.validate()?;
        diffusion.check_training(&model)?;
        if params::num_trainable(&model) == 0 {
            return Err(TrainerError::NothingToTrain);
        }
        let model = if is_cpu(device) { model } else { sweeps::settled(model) };
        Ok(Self {
            ema: Ema::new(&model, ema),
            power_emas: Vec::new(),
            adam: Adam::new(config.adam()),
            has_buffers: !Buffers::of(&model).is_empty(),
            forced_norms: forced_norms(&model),
            model: Some(model),
            diffusion,
            config,
            device: device.clone().autodiff(),
            replicas: Vec::new(),
            step: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            ahead: None,
            recording: Recording::default(),
            drops_out: false,
            in_flight: None,
            settled: None,
        })
    }

    /// Also keeps averages of these profiles, in addition to [`ema`](Self::ema), from which others can be made later ([`crate::post_hoc`]).
    ///
    /// # Errors
    /// If called after the first step, which the averages would miss; two profiles of the same length; a network with running statistics, which
    /// cannot be averaged this way.
    pub fn with_power_emas(mut self, profiles: &[Profile]) -> Result<Self, PowerEmaError> {
        let twice = |(i, profile): (usize, &Profile)| profiles[..i].contains(profile).then_some(profile.sigma_rel());
        if let Some(sigma_rel) = profiles.iter().enumerate().find_map(twice) {
            return Err(PowerEmaError::Twice { sigma_rel });
        }
        if self.step > 0 || self.in_flight.is_some() {
            return Err(PowerEmaError::Begun);
        }
        if self.has_buffers && !profiles.is_empty() {
            return Err(PowerEmaError::RunningStatistics);
        }
        self.power_emas = profiles.iter().map(|&profile| PowerEma::new(self.model(), profile)).collect();
        Ok(self)
    }

    /// One optimizer step on `accumulate` batches: tensors `[b, c, h, w]` of data in the data's range, or [`Examples`] with classes and conditions.
    /// Waits until it is complete. If a [submitted](Self::submit) step is in flight, it is completed first, and its report is lost unless
    /// [`settle`](Self::settle) has returned it.
    ///
    /// Noise, times and dropout are keyed by the number of an example, which assumes batches of this size and steps of `accumulate` batches: if
    /// batch sizes or their number vary, some examples reuse the random numbers of earlier ones.
    ///
    /// # Panics
    /// No batch at all: there would be no loss.
    pub fn step(&mut self, batches: Vec<impl Into<Examples>>) -> StepReport {
        self.settle();
        match self.submit(batches) {
            Some(report) => report,
            None => self.settle().expect("a step that is in flight"),
        }
    }

    /// Submits a [`step`](Self::step) without waiting for it, if possible: on a GPU, with a network whose weights only the optimizer changes. The
    /// step is then in flight, the device itself makes sure that nothing changes if something is not finite, and the report is that of the previous
    /// step; its own is returned by the next `submit` or by [`settle`](Self::settle). The results are the same as with `step`.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub fn submit(&mut self, batches: Vec<impl Into<Examples>>) -> Option<StepReport> {
        assert!(!batches.is_empty(), "a step takes at least one batch");
        set_activations(if self.config.checkpoint_activations { Activations::Recompute } else { Activations::Keep });
        let batches = batches.into_iter().map(Into::into).collect();
        in_pool(|| self.submit_in_pool(batches))
    }

    /// Waits for the step in flight and returns its report; `None` if it was returned already.
    pub fn settle(&mut self) -> Option<StepReport> {
        let Some(asked) = self.in_flight.take() else { return self.settled.take() };
        let (mut report, _) = self.came_to(asked);
        if report.skipped.is_some() {
            self.adam.take_back();
            self.ema.take_back();
        }
        report.ema_decay = self.ema.decay();
        Some(report)
    }

    fn submit_in_pool(&mut self, batches: Vec<Examples>) -> Option<StepReport> {
        let before = if self.has_buffers { Buffers::of(self.model()) } else { Buffers::default() };
        let (gradients, asked) = self.ask(batches);
        // The optimizer's step count depends on the outcome of the previous step.
        let earlier = self.settle();
        if let (Some(clip), true) = (asked.finding.clip(), self.only_steps_change_it()) {
            self.advance(gradients, &clip, asked.lr);
            self.in_flight = Some(asked);
            return earlier;
        }
        let lr = asked.lr;
        let (mut report, clip) = self.came_to(asked);
        match clip {
            Some(clip) => self.advance(gradients, &clip, lr),
            None if self.has_buffers => self.model = self.model.take().map(|model| before.restored(model)),
            None => {}
        }
        report.ema_decay = self.ema.decay();
        Some(report)
    }

    /// Whether only optimizer steps change the network, and forward passes do not.
    pub(super) fn only_steps_change_it(&self) -> bool {
        !self.has_buffers
    }

    /// Changes weights, moments and average, unless `clip` forbids it.
    fn advance(&mut self, gradients: NamedGradients, clip: &Clip, lr: f64) {
        self.model = self.model.take().map(|model| {
            let model = self.adam.step_clipped(model, gradients, clip, lr);
            if self.forced_norms.is_empty() {
                return model;
            }
            let rows = |field: Field<'_>| self.forced_norms.contains(field.name).then(|| field.shape[0]);
            sweeps::replace(model, rows, |taken| sweep::unit_rows(taken, MP_EPS, clip))
        });
        let model = self.model.as_ref().expect("just put back");
        self.ema.update_clipped(model, clip);
        for average in &mut self.power_emas {
            average.update(model, self.adam.steps(), clip);
        }
    }

    /// Waits for the result of a step and counts it. The decay is filled in later: the average may not have been updated yet.
    fn came_to(&mut self, Asked { finding, of, data, step, lr }: Asked) -> (StepReport, Option<Clip>) {
        let CameTo { losses, step: found } = CameTo::new(&of, finding.wait());
        let loss: f64 = losses.iter().sum();
        let mut report = StepReport { step, loss, grad_norm: f64::NAN, lr, ema_decay: f64::NAN, skipped: None };
        match found {
            Ok((norm, clip)) => {
                report.grad_norm = norm;
                self.skipped_in_a_row = 0;
                return (report, Some(clip));
            }
            Err(Spoiled::Loss(batch)) => {
                report.loss = f64::NAN;
                report.skipped = Some(self.blame(&data[batch]));
            }
            Err(Spoiled::Gradient(tensor)) => {
                report.skipped = Some(NonFinite { tensor, kind: NonFiniteKind::Gradient });
            }
        }
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        (report, None)
    }

    /// An error once `max_skipped` consecutive steps were skipped.
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

    /// The cause of a non-finite loss: the images, a weight, or neither.
    fn blame(&self, images: &Tensor<1>) -> NonFinite {
        struct FirstBad(Option<String>);
        impl VisitTensor for FirstBad {
            fn visit<const D: usize>(&mut self, name: &str, _: Role, tensor: &Tensor<D>) {
                if self.0.is_none() && !all_finite(tensor) {
                    self.0 = Some(name.to_string());
                }
            }
        }
        let mut bad = FirstBad((!all_finite(images)).then(|| "images".to_string()));
        params::visit(self.model(), &mut bad);
        NonFinite { tensor: bad.0.unwrap_or_else(|| "loss".to_string()), kind: NonFiniteKind::Loss }
    }

    /// All that must be saved in order to resume. Waits for the step in flight, whose report is returned by the next [`settle`](Self::settle) or
    /// [`submit`](Self::submit).
    pub fn state(&mut self) -> TrainerState {
        self.settled = self.settle();
        TrainerState {
            step: self.step,
            skipped: self.skipped,
            skipped_in_a_row: self.skipped_in_a_row,
            adam_steps: self.adam.steps(),
            ema_calls: self.ema.calls(),
            model: params::to_state_dict(self.model()),
            ema: self.ema.to_state_dict(),
            power_emas: self.power_emas().collect(),
            adam: self.adam.to_state_dict(),
        }
    }

    /// The averages that [`with_power_emas`](Self::with_power_emas) added. No step may be in flight.
    pub(super) fn power_emas(&self) -> impl Iterator<Item = PowerEmaState> {
        self.power_emas.iter().map(PowerEma::state)
    }

    /// Resumes from a saved state of the same network and configuration.
    ///
    /// # Errors
    /// The state does not fit; then nothing has changed.
    pub fn restore(&mut self, state: &TrainerState) -> Result<(), ParamsError> {
        let model = params::load_state_dict(self.model().clone(), &state.model)?;
        let adam = Adam::from_state_dict(self.config.adam(), state.adam_steps, &state.adam, &model, &self.device())?;
        let (mut ema, mut power_emas) = (self.ema.clone(), self.power_emas.clone());
        ema.restore(&state.ema, state.ema_calls)?;
        power_emas.iter_mut().try_for_each(|average| average.restore(&state.power_emas))?;
        self.model = Some(if is_cpu(&self.device) { model } else { sweeps::settled(model) });
        (self.adam, self.ema, self.power_emas) = (adam, ema, power_emas);
        (self.step, self.skipped, self.skipped_in_a_row) = (state.step, state.skipped, state.skipped_in_a_row);
        (self.ahead, self.in_flight, self.settled) = (None, None, None);
        self.recording = Recording::default();
        Ok(())
    }
}

/// The tensors whose [norms are forced](Network::forces_norm_of).
fn forced_norms<M: Network>(model: &M) -> BTreeSet<String> {
    struct Forced<'a, M>(&'a M, BTreeSet<String>);
    impl<M: Network> VisitTensor for Forced<'_, M> {
        fn visit<const D: usize>(&mut self, name: &str, role: Role, _: &Tensor<D>) {
            if role == Role::Trainable && self.0.forces_norm_of(name) {
                self.1.insert(name.to_string());
            }
        }
    }
    let mut forced = Forced(model, BTreeSet::new());
    params::visit(model, &mut forced);
    forced.1
}

fn all_finite<const D: usize>(tensor: &Tensor<D>) -> bool {
    params::host_values(tensor.clone()).iter().all(|value| value.is_finite())
}
