//! The periodic work of a run: snapshots of averages, held-out loss, samples, evaluation, checkpoint. Not here: how each is done, except for
//! held-out loss and samples.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use super::event::{Event, StopSignal};
use super::run::{Run, RunError, Saving};
use crate::data::{ChannelStatistics, DataLayout, ImageShape};
use crate::diffusion::Examples;
use crate::eval::held_out::{HeldOutLoss, held_out_loss};
use crate::eval::images::Images;
use crate::generate::{BatchStep, GenerateError, Request};
use crate::models::Network;
use crate::report::log::{HeldOutRecord, Record, SamplesRecord};
use crate::report::{GridOptions, save_grid, save_sequences};

/// Maximum number of held-out images in each measurement, in batches of the training size.
pub(super) const HELD_OUT_IMAGES: usize = 512;
/// Number of training images whose brightness and colours samples are compared with.
const STATISTICS_IMAGES: usize = 256;

/// Outcome of a step's periodic work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Periodic {
    NotDue,
    Done,
    /// The run was asked to stop; the rest is done when it is resumed.
    GivenUp,
}

/// The kinds of work that a step ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    snapshots: bool,
    held_out: bool,
    samples: bool,
    save: bool,
    evaluate: bool,
}

impl<M: Network> Run<M> {
    fn due(&self, step: u64) -> Due {
        let config = self.trainer.config();
        let last = step == config.steps;
        let is_due = |interval: u64| step > 0 && interval > 0 && (step.is_multiple_of(interval) || last);
        let [held_out, samples, save] =
            [config.held_out_interval(), config.sample_interval(), config.save_every].map(is_due);
        let evaluate =
            self.setup.evaluate.as_ref().is_some_and(|setup| setup.config.evaluate_every.is_some_and(is_due));
        let snapshots = !self.trainer.sigma_rels().is_empty() && is_due(self.setup.snapshot_every);
        Due { snapshots, held_out, samples, save, evaluate }
    }

    /// Whether there is periodic work after this step.
    pub(super) fn is_due(&self, step: u64) -> bool {
        self.due(step) != Due { snapshots: false, held_out: false, samples: false, save: false, evaluate: false }
    }

    /// Does the work that is due: snapshots, unless they exist already; held-out loss, samples, evaluation and checkpoint, unless they are in the
    /// log already.
    pub(super) fn periodic(
        &mut self,
        step: u64,
        stop: &StopSignal,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Periodic, RunError> {
        if !self.is_due(step) {
            return Ok(Periodic::NotDue);
        }
        self.check_folder()?;
        let Due { snapshots, held_out, samples, save, evaluate } = self.due(step);
        if snapshots {
            self.save_snapshots(step)?;
        }
        if held_out && !self.logged.has("held_out", step) && self.measure_held_out(step, stop, on_event)?.is_break() {
            return Ok(Periodic::GivenUp);
        }
        if samples && !self.logged.has("samples", step) && self.draw_samples(step, stop, on_event)?.is_break() {
            return Ok(Periodic::GivenUp);
        }
        let best = match self.setup.evaluate.clone().filter(|_| evaluate) {
            None => false,
            // A process may have been killed between the evaluation and what follows from it.
            Some(setup) if self.logged.has("evaluation", step) => self.best_by(&setup, step)?.is_some(),
            Some(setup) => match self.evaluate(&setup, step, stop, on_event)? {
                ControlFlow::Continue(is_best) => is_best,
                ControlFlow::Break(()) => return Ok(Periodic::GivenUp),
            },
        };
        if (save || best) && !self.logged.has("checkpoint", step) {
            self.save(Saving::Due, on_event)?;
        } else if best {
            // The checkpoint that the run was resumed from had not been evaluated.
            self.mark_best()?;
        }
        Ok(Periodic::Done)
    }

    /// Measures the loss on held-out images, if there are any. A request to stop abandons the measurement: `Break`.
    fn measure_held_out(
        &mut self,
        step: u64,
        stop: &StopSignal,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<ControlFlow<()>, RunError> {
        let some = self.setup.held_out.spread(HELD_OUT_IMAGES);
        if some.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let device = self.trainer.device();
        let (mut given_up, mut read) = (false, Ok(()));
        let mut batches = some.batches(self.trainer.config().batch_size)?;
        let examples = std::iter::from_fn(|| {
            given_up = stop.is_requested();
            let batch = batches.next().filter(|_| !given_up)?;
            batch.map_err(|error| read = Err(error)).ok().map(|batch| Examples::of(batch, &device))
        });
        let seed = self.trainer.config().seed;
        let eval = self.trainer.ema().eval().for_predictions();
        let loss = held_out_loss(&eval, self.trainer.diffusion(), examples, seed, &device);
        read?;
        if given_up {
            return Ok(ControlFlow::Break(()));
        }
        if let Some(loss) = loss {
            let HeldOutLoss { mean: held_out_loss, by_quarter: held_out_loss_by_quarter, .. } = loss;
            self.note(&Record::HeldOut(HeldOutRecord { step, held_out_loss, held_out_loss_by_quarter }))?;
            on_event(Event::HeldOut { step, loss: &loss });
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Statistics of evenly spaced training images, read once.
    fn data_statistics(&mut self) -> Result<ChannelStatistics, RunError> {
        if self.data_statistics.is_none() {
            let some = Images::of_data(self.setup.train.spread(STATISTICS_IMAGES));
            let places: Vec<usize> = (0..some.len()).collect();
            self.data_statistics = Some(some.pick(&places)?.channel_statistics());
        }
        Ok(self.data_statistics.clone().unwrap_or_default())
    }

    /// Draws a grid from the averaged network, with the same noise every time. A request to stop abandons the grid: `Break`. Non-finite samples are
    /// reported, and training continues.
    fn draw_samples(
        &mut self,
        step: u64,
        stop: &StopSignal,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<ControlFlow<()>, RunError> {
        let ImageShape { channels, height, width } = self.setup.train.dataset().shape();
        let count = self.setup.sample.num_samples;
        // All at once, because they are drawn beside the samples.
        let conditions = self.conditions_of_samples(count).map(|of| of.all()).transpose()?;
        let classes = self.classes_of_samples(count);
        let vectors = self.vectors_of_samples(count);
        let request = Request {
            classes: classes.as_deref(),
            conditions: conditions.as_ref().map(|of| of as _),
            vectors: vectors.as_deref(),
            ..Request::new(&self.setup.sample, self.trainer.config().seed, count, [channels, height, width])
        };
        let mut progress = |at: &BatchStep<'_>| {
            on_event(Event::Sampling { first: at.first, step: at.step, steps: at.steps });
            if stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let average = self.trainer.averaged();
        let images = match self.generator(&average).generate_watched(&request, &mut progress) {
            Ok(images) => images,
            Err(GenerateError::Interrupted(_)) => return Ok(ControlFlow::Break(())),
            Err(why) => {
                on_event(Event::NotSampled { step, why: &why });
                return Ok(ControlFlow::Continue(()));
            }
        };
        let dataset = self.setup.train.dataset();
        let sequences = dataset.layout() == DataLayout::Sequences;
        let file = format!("samples/step-{step:08}.{}", if sequences { "svg" } else { "png" });
        let path = self.setup.dir.join(&file);
        if sequences {
            save_sequences(&path, &images, dataset.value_range())?;
        } else {
            // Slices are stacked vertically: one column per volume.
            let columns = NonZeroUsize::new(images.shape[0]).filter(|_| dataset.layout() == DataLayout::Volumes);
            let beside = conditions.as_ref().and_then(|conditions| images.beside(conditions));
            match &beside {
                Some(pairs) => save_grid(&path, pairs, GridOptions::of_pairs(count))?,
                None => {
                    save_grid(&path, &images, GridOptions { columns, ..GridOptions::of_classes(classes.as_deref()) })?;
                }
            }
        }
        let (of_samples, of_data) = (images.channel_statistics(), self.data_statistics()?);
        self.note(&Record::Samples(SamplesRecord {
            step,
            count: count as u64,
            file,
            mean: of_samples.mean.clone(),
            deviation: of_samples.deviation.clone(),
            data_mean: of_data.mean.clone(),
            data_deviation: of_data.deviation.clone(),
        }))?;
        on_event(Event::Samples { step, path: &path, of_samples: &of_samples, of_data: &of_data });
        Ok(ControlFlow::Continue(()))
    }
}
