//! Evaluations of a run: how large they may be, and what is measured. Nothing here affects the network in training or the order of its data. Not
//! here: when they are due (`periodic`), and which checkpoint is the best (`best`).

use std::ops::ControlFlow;
use std::time::Instant;

use super::event::{Event, StopSignal};
use super::periodic::HELD_OUT_IMAGES;
use super::replicas::AverageOnDevices;
use super::run::{Run, RunError};
use crate::data::{ImageBatch, Subset};
use crate::eval::config::EvaluateConfig;
use crate::eval::evaluate::{EvaluateError, Inception, Judged, Sets, Split, Watch, bpd, loss, measure, nll};
use crate::eval::extract::{ExtractError, Extractor, FeatureStore};
use crate::eval::flow_likelihood::{self, COST, STEPS};
use crate::eval::images::Images;
use crate::eval::likelihood::{TERMS, evaluations};
use crate::eval::metric::Metric;
use crate::eval::result::{JudgedOn, Measurement};
use crate::generate::{BatchStep, GenerateError, Request, Samples};
use crate::interop::InteropError;
use crate::models::Network;
use crate::report::log::{EvaluationRecord, Record};
use crate::sampler::SampleConfig;
use crate::task::Task;

/// Minimum number of samples, whatever the time budget.
const FEWEST: usize = 16;

/// What a run needs to evaluate.
#[derive(Clone, Debug)]
pub struct EvaluateSetup {
    pub config: EvaluateConfig,
    /// For metrics based on Inception's features.
    pub extractor: Option<Extractor>,
    /// Where the features of the data are stored.
    pub store: FeatureStore,
}

/// Estimate of how long the next evaluation will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Samples that will be drawn, and the number that the recipe asks for.
    pub samples: usize,
    pub asked: usize,
    pub seconds: f64,
    /// Share of the time for the features of the real images, which are computed once.
    pub seconds_once: f64,
}

/// Reports an evaluation's progress as events.
struct Events<'a> {
    task: Task,
    total: usize,
    stop: &'a StopSignal,
    on_event: &'a mut dyn FnMut(Event<'_>),
}

impl Watch for Events<'_> {
    fn start(&mut self, task: Task, total: usize) {
        (self.task, self.total) = (task, total);
    }

    fn done(&mut self, done: usize) -> ControlFlow<()> {
        (self.on_event)(Event::Evaluating { task: self.task, done, total: self.total });
        if self.stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(&mut self) {}

    fn not_stored(&mut self, why: &InteropError) {
        (self.on_event)(Event::NotStored { why });
    }
}

impl<M: Network> Run<M> {
    /// Evaluates the average and returns whether it is the best so far. `Break`: a stop was requested, and nothing is recorded. If an evaluation
    /// fails, nothing is recorded either, and training continues.
    pub(super) fn evaluate(
        &mut self,
        setup: &EvaluateSetup,
        step: u64,
        stop: &StopSignal,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<ControlFlow<(), bool>, RunError> {
        let started = Instant::now();
        let (samples, measurements) = match self.measurements(setup, stop, on_event) {
            Err(RunError::Evaluation(EvaluateError::Interrupted)) => return Ok(ControlFlow::Break(())),
            Err(why @ (RunError::Evaluation(_) | RunError::Samples(_))) => {
                on_event(Event::NotEvaluated { step, why: &why });
                return Ok(ControlFlow::Continue(false));
            }
            measured => measured?,
        };
        let record = EvaluationRecord {
            step,
            samples: samples as u64,
            asked: setup.config.evaluate_samples as u64,
            budget_s: setup.config.evaluate_budget_s,
            values: measurements.iter().map(|m| (m.name.clone(), m.value)).collect(),
            standard_errors: measurements.iter().filter_map(|m| Some((m.name.clone(), m.standard_error?))).collect(),
            seconds: started.elapsed().as_secs_f64(),
        };
        self.note(&Record::Evaluation(record))?;
        let best = self.best_by(setup, step)?;
        on_event(Event::Evaluation { step, measurements: &measurements, best });
        Ok(ControlFlow::Continue(best.is_some()))
    }

    /// The number of samples drawn, and the measurements.
    fn measurements(
        &self,
        setup: &EvaluateSetup,
        stop: &StopSignal,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(usize, Vec<Measurement>), RunError> {
        let average = self.trainer.averaged();
        let samples = self.evaluation_samples(setup, &average, stop, on_event)?;
        let mut events = Events { task: Task::Sample, total: 0, stop, on_event };
        Ok((samples, self.evaluate_with(setup, &average, samples, &mut events)?))
    }

    /// How many samples to draw: as many as in the previous evaluation, so that numbers are comparable; the first time, and after a resume with
    /// another number or budget, as many as the budget allows.
    fn evaluation_samples(
        &self,
        setup: &EvaluateSetup,
        average: &AverageOnDevices<M>,
        stop: &StopSignal,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, RunError> {
        let EvaluateConfig { evaluate_samples, evaluate_budget_s, .. } = setup.config;
        let same = |before: &&EvaluationRecord| {
            before.asked == evaluate_samples as u64 && before.budget_s == evaluate_budget_s
        };
        if let Some(before) = self.logged.evaluations().last().filter(same) {
            return Ok(before.samples as usize);
        }
        let expected = self.expected_time(setup, average, stop)?;
        on_event(Event::Expected(&expected));
        Ok(expected.samples)
    }

    /// Estimated from the time of two steps on one batch, and of Inception on one batch.
    fn expected_time(
        &self,
        setup: &EvaluateSetup,
        average: &AverageOnDevices<M>,
        stop: &StopSignal,
    ) -> Result<Expected, RunError> {
        let asked = setup.config.evaluate_samples;
        let sample = setup.config.sampling(&self.setup.sample);
        let wants = |needs: fn(Metric) -> bool| setup.config.metrics.iter().any(|&metric| needs(metric));
        let (mut per_sample, mut fixed, mut once) = (0.0, 0.0, 0.0);
        let measured = |metric| setup.config.metrics.contains(&metric);
        if wants(Metric::needs_samples) || measured(Metric::Bpd) || measured(Metric::Nll) {
            let batch = sample.sample_batch_size.min(asked);
            let diffusion = self.trainer.diffusion();
            let steps = diffusion.formulation().timesteps().map_or(2, |timesteps| timesteps.min(2));
            let trial = SampleConfig { sampling_timesteps: Some(steps), ..sample.clone() };
            // The first steps are slower than the rest.
            let _ = self.draw(setup, average, &trial, batch, stop, &mut |_| {})?;
            let started = Instant::now();
            let images = self.draw(setup, average, &trial, batch, stop, &mut |_| {})?;
            let per_output =
                started.elapsed().as_secs_f64() / (trial.evaluations(diffusion.formulation()) * batch) as f64;
            if wants(Metric::needs_samples) {
                // Batches are distributed over the devices; the trial ran on one.
                let share = 1.0 / (1 + average.others.len()) as f64;
                per_sample += per_output * sample.evaluations(diffusion.formulation()) as f64 * share;
            }
            let per_held_out = per_output * self.held_out_images().len() as f64;
            if measured(Metric::Bpd) {
                fixed += per_held_out * evaluations(diffusion, TERMS) as f64;
            }
            if measured(Metric::Nll) {
                fixed += per_held_out * flow_likelihood::evaluations(STEPS) as f64 * COST;
            }
            if let Some(extractor) = setup.extractor.as_ref().filter(|_| wants(Metric::needs_inception)) {
                let some = Images::from(images).spread(16);
                let started = Instant::now();
                let extracted = extractor.extract(&some, &mut |_| ControlFlow::Continue(()));
                extracted.map_err(EvaluateError::from)?;
                let per_image = started.elapsed().as_secs_f64() / some.len() as f64;
                per_sample += per_image;
                let real = self.real_images(&setup.config);
                let path =
                    setup.store.path(extractor, &real).map_err(ExtractError::from).map_err(EvaluateError::from)?;
                let known = path.is_some_and(|path| path.is_file());
                once = if known { 0.0 } else { per_image * real.len() as f64 };
            }
        }
        let samples = match setup.config.evaluate_budget_s {
            Some(budget) if per_sample > 0.0 => {
                (((budget - fixed) / per_sample) as usize).clamp(FEWEST.min(asked), asked)
            }
            _ => asked,
        };
        Ok(Expected { samples, asked, seconds: per_sample * samples as f64 + fixed + once, seconds_once: once })
    }

    fn evaluate_with(
        &self,
        setup: &EvaluateSetup,
        average: &AverageOnDevices<M>,
        samples: usize,
        events: &mut Events<'_>,
    ) -> Result<Vec<Measurement>, RunError> {
        let (metrics, seed) = (&setup.config.metrics, self.trainer.config().seed);
        let (device, diffusion) = (self.trainer.device(), self.trainer.diffusion());
        let (training, held_out) = (Images::of_data(self.setup.train.clone()), self.held_out_images());
        let mut measurements = Vec::new();
        if metrics.iter().any(|metric| metric.needs_samples()) {
            let sample = setup.config.sampling(&self.setup.sample);
            let stop = events.stop;
            let real = self.real_images(&setup.config);
            let drawn = self.draw(setup, average, &sample, samples, stop, &mut |event| (events.on_event)(event))?;
            let generated = Images::from(drawn);
            let split = Split { training: &training, held_out: &held_out };
            let sets = Sets { generated: &generated, real: &real, split: Some(split) };
            let inception =
                setup.extractor.as_ref().map(|extractor| Inception { extractor, store: Some(&setup.store) });
            let measured = measure(metrics, &sets, inception, seed, events)?;
            measurements.extend(measured.measurements);
            measurements.extend(measured.neighbours.map(|neighbours| neighbours.measurement()));
        }
        let judged = Judged { on: JudgedOn::HeldOut, images: &held_out };
        if metrics.contains(&Metric::Loss) {
            measurements.push(loss(&average.eval, diffusion, judged, seed, &device, events)?.measurement());
        }
        if metrics.contains(&Metric::Bpd) {
            measurements.push(bpd(&average.eval, diffusion, judged, seed, &device, events)?.measurement());
        }
        if metrics.contains(&Metric::Nll) {
            measurements.push(nll(&average.eval, diffusion, judged, seed, &device, events)?.measurement());
        }
        Ok(measurements)
    }

    /// The real images, training and held-out: all, or as many as the recipe says.
    fn real_images(&self, config: &EvaluateConfig) -> Images {
        let all = Subset::from(self.setup.train.dataset().clone());
        Images::of_data(config.evaluate_real.map_or(all.clone(), |n| all.spread(n)))
    }

    fn held_out_images(&self) -> Images {
        Images::of_data(self.setup.held_out.spread(HELD_OUT_IMAGES))
    }

    fn draw(
        &self,
        setup: &EvaluateSetup,
        average: &AverageOnDevices<M>,
        sample: &SampleConfig,
        count: usize,
        stop: &StopSignal,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Samples, RunError> {
        let shape = self.setup.train.dataset().shape();
        let conditions = self.conditions_of_samples(count);
        let real = self.real_images(&setup.config);
        let classes = self.classes_of_measured(count, &real);
        let vectors = self.vectors_of_samples(count);
        let request = Request {
            classes: classes.as_deref(),
            conditions: conditions.as_ref().map(|of| of as _),
            vectors: vectors.as_deref(),
            ..Request::new(sample, self.trainer.config().seed, count, [shape.channels, shape.height, shape.width])
        };
        let (batches, mut done) = (request.batches(), 0);
        let mut progress = |at: &BatchStep<'_>| {
            done += 1;
            on_event(Event::Evaluating { task: Task::Sample, done, total: batches * at.steps });
            if stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let of_drawing = |error| match error {
            GenerateError::Interrupted(_) => RunError::Evaluation(EvaluateError::Interrupted),
            GenerateError::ReadConditions(error) => RunError::Data(error),
            error => RunError::Samples(error),
        };
        let mut samples = Samples::with_room(count, request.shape, real.depth()).map_err(of_drawing)?;
        let mut take = |first, images: ImageBatch| {
            samples.put(first, &images);
            Ok(())
        };
        self.generator(average).generate_each(&request, &mut progress, &mut take).map_err(of_drawing)?;
        Ok(samples)
    }
}
