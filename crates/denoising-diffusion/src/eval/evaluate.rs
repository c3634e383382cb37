//! The sequence of an evaluation: features once, from the store if they are there; then each requested metric. Not here: the mathematics, drawing
//! samples, and where results are shown.

use std::ops::ControlFlow;

use burn::tensor::Device;
use thiserror::Error;

use super::copies::neighbours;
use super::extract::{ExtractError, Extracted, Extractor, FeatureStore};
use super::flow_likelihood::{self, STEPS, negative_log_likelihood};
use super::held_out::{HeldOutLoss, held_out_loss};
use super::images::Images;
use super::likelihood::{LikelihoodError, TERMS, bits_per_dim, evaluations};
use super::metric::{self, FidInput, Metric, MetricError};
use super::pixels::by_pixels;
use super::result::{BitsPerDim, JudgedOn, LossByTime, Measurement, NegativeLogLikelihood, Neighbours};
use crate::data::DataError;
use crate::diffusion::{Diffusion, Examples};
use crate::interop::InteropError;
use crate::models::Network;
use crate::nn::Eval;
use crate::task::Task;

/// Number of held-out images that go through the network at a time.
const BATCH: usize = 32;
/// Maximum number of image values that go through the network at a time if its gradient is needed, for which all of its layers stay in memory: 32
/// images of 3x64x64, two of 3x256x256.
const MOST_DIFFERENTIATED: usize = 32 * 3 * 64 * 64;

/// Is informed of an evaluation's progress, and can stop it.
pub trait Watch {
    /// A part of the work of `total` steps begins.
    fn start(&mut self, task: Task, total: usize);
    /// `done` steps of it are complete.
    fn done(&mut self, done: usize) -> ControlFlow<()>;
    /// The part has ended.
    fn finish(&mut self);
    /// Features could not be stored for next time; the evaluation continues.
    fn not_stored(&mut self, why: &InteropError);
}

/// The images that an evaluation compares.
#[derive(Clone, Copy, Debug)]
pub struct Sets<'a> {
    pub generated: &'a Images,
    /// What samples should look like: all of the data.
    pub real: &'a Images,
    /// The images that the network was trained on and those that it was not, if known.
    pub split: Option<Split<'a>>,
}

/// The data, split into training and held-out images.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    pub training: &'a Images,
    pub held_out: &'a Images,
}

/// The images that a network is judged on.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    pub on: JudgedOn,
    pub images: &'a Images,
}

/// The feature extractor, and the store of features.
#[derive(Clone, Copy, Debug)]
pub struct Inception<'a> {
    pub extractor: &'a Extractor,
    pub store: Option<&'a FeatureStore>,
}

/// The results of comparing sets of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    pub measurements: Vec<Measurement>,
    pub neighbours: Option<Neighbours>,
}

/// Why an evaluation failed.
#[derive(Debug, Error)]
pub enum EvaluateError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{metric} cannot be measured")]
    Metric { metric: Metric, source: MetricError },
    #[error(transparent)]
    Extract(ExtractError),
    #[error("{metric} cannot be measured")]
    Likelihood { metric: Metric, source: LikelihoodError },
    #[error("{metric} needs the weights of Inception")]
    NoInception { metric: Metric },
    #[error("{metric} needs to know which images were trained on and which were held out")]
    NoSplit { metric: Metric },
    #[error("{what}: {n} images; at least 2 are needed")]
    TooFew { what: &'static str, n: usize },
    #[error(
        "generated images are {generated:?} (channels, height, width), real ones {real:?}: {metric} compares pixels"
    )]
    Shapes { metric: Metric, generated: [usize; 3], real: [usize; 3] },
    #[error("interrupted")]
    Interrupted,
}

impl From<ExtractError> for EvaluateError {
    fn from(error: ExtractError) -> Self {
        match error {
            ExtractError::Interrupted => Self::Interrupted,
            ExtractError::Data(error) => Self::Data(error),
            error => Self::Extract(error),
        }
    }
}

/// The features of images: from the store if they are there, otherwise computed and stored.
///
/// # Errors
/// [`ExtractError`]. A store that cannot be written is only reported to `watch`.
pub fn features(from: Inception<'_>, images: &Images, watch: &mut dyn Watch) -> Result<Extracted, ExtractError> {
    let Inception { extractor, store } = from;
    let stored = match store {
        Some(store) => store.path(extractor, images)?.map(|path| (store, path)),
        None => None,
    };
    if let Some(found) = stored.as_ref().and_then(|(store, path)| store.load(path)).filter(|f| f.n == images.len()) {
        return Ok(found);
    }
    watch.start(Task::Features, images.len());
    let extracted = extractor.extract(images, &mut |done| watch.done(done));
    watch.finish();
    let extracted = extracted?;
    if let Some((store, path)) = stored
        && let Err(error) = store.save(&path, &extracted)
    {
        watch.not_stored(&error);
    }
    Ok(extracted)
}

/// Measures those metrics that compare sets of images; others are ignored. `inception` may be absent if no metric needs it.
///
/// # Errors
/// [`EvaluateError`].
pub fn measure(
    metrics: &[Metric],
    sets: &Sets<'_>,
    inception: Option<Inception<'_>>,
    seed: u64,
    watch: &mut dyn Watch,
) -> Result<Measured, EvaluateError> {
    for (what, images) in [("the generated set", sets.generated), ("the real set", sets.real)] {
        if images.len() < 2 {
            return Err(EvaluateError::TooFew { what, n: images.len() });
        }
    }
    let mut measured = Measured::default();
    if let Some(&metric) = metrics.iter().find(|metric| metric.needs_inception()) {
        let from = inception.ok_or(EvaluateError::NoInception { metric })?;
        let generated = features(from, sets.generated, watch)?;
        let real = if metrics.iter().any(|metric| metric.needs_inception() && *metric != Metric::Is) {
            Some(features(from, sets.real, watch)?)
        } else {
            None
        };
        for &metric in metrics.iter().filter(|metric| metric.needs_inception()) {
            measured.measurements.extend(by_features(metric, real.as_ref(), &generated, seed)?);
        }
    }
    let of_pixels: Vec<Metric> =
        metrics.iter().copied().filter(|metric| matches!(metric, Metric::Swd | Metric::Spectrum)).collect();
    measured.measurements.extend(by_pixels(&of_pixels, sets.generated, sets.real, seed, watch)?);
    if metrics.contains(&Metric::Neighbours) {
        let split = sets.split.ok_or(EvaluateError::NoSplit { metric: Metric::Neighbours })?;
        measured.neighbours = Some(neighbours(sets.generated, split, watch)?);
    }
    Ok(measured)
}

fn by_features(
    metric: Metric,
    real: Option<&Extracted>,
    generated: &Extracted,
    seed: u64,
) -> Result<Vec<Measurement>, EvaluateError> {
    let result = match (metric, real) {
        (Metric::Fid, Some(real)) => {
            metric::fid(FidInput::Features(real), FidInput::Features(generated), seed).map(|fid| vec![fid])
        }
        (Metric::Kid, Some(real)) => metric::kid(real, generated, seed).map(|kid| vec![kid]),
        (Metric::Prdc, Some(real)) => metric::prdc_all(real, generated),
        (Metric::Is, _) => metric::is(generated, seed).map(|is| vec![is]),
        _ => Ok(Vec::new()),
    };
    result.map_err(|source| EvaluateError::Metric { metric, source })
}

/// The held-out loss by quarter of t.
///
/// # Errors
/// Images that cannot be read, fewer than two of them, and a request to stop.
pub fn loss<M: Network>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    judged: Judged<'_>,
    seed: u64,
    device: &Device,
    watch: &mut dyn Watch,
) -> Result<LossByTime, EvaluateError> {
    let Judged { on, images } = judged;
    let mut parts = images.examples(BATCH)?;
    watch.start(Task::Loss, images.len());
    let (mut done, mut ended) = (0, Ok(()));
    let batches = std::iter::from_fn(|| {
        // The batches before this one.
        if watch.done(done).is_break() {
            ended = Err(EvaluateError::Interrupted);
            return None;
        }
        let part = parts.next()?.map_err(|error| ended = Err(error.into())).ok()?;
        done += part.len();
        Some(Examples::of(part, device))
    });
    let loss = held_out_loss(model, diffusion, batches.fuse(), seed, device);
    watch.finish();
    ended?;
    match loss {
        Some(HeldOutLoss { mean, standard_error: Some(standard_error), by_quarter: quarters, n }) => {
            Ok(LossByTime { on, n, mean, standard_error, quarters })
        }
        _ => Err(EvaluateError::TooFew { what: on.images(), n: images.len() }),
    }
}

/// The variational bound in bits per dimension.
///
/// # Errors
/// As [`loss`]; also a network or data for which the bound is not defined.
pub fn bpd<M: Network>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    judged: Judged<'_>,
    seed: u64,
    device: &Device,
    watch: &mut dyn Watch,
) -> Result<BitsPerDim, EvaluateError> {
    let Judged { on, images } = judged;
    if images.len() < 2 {
        return Err(EvaluateError::TooFew { what: on.images(), n: images.len() });
    }
    let parts = images.examples(BATCH)?;
    watch.start(Task::Loss, images.len() * evaluations(diffusion, TERMS));
    let bits = bits_per_dim(model, diffusion, parts, TERMS, seed, device, &mut |done| watch.done(done));
    watch.finish();
    bits.map(|bits| BitsPerDim { on, ..bits }).map_err(|error| of_likelihood(Metric::Bpd, error))
}

/// The negative log-likelihood by the probability flow, in bits per dimension.
///
/// # Errors
/// As [`bpd`].
pub fn nll<M: Network>(
    model: &Eval<M>,
    diffusion: &Diffusion,
    judged: Judged<'_>,
    seed: u64,
    device: &Device,
    watch: &mut dyn Watch,
) -> Result<NegativeLogLikelihood, EvaluateError> {
    let Judged { on, images } = judged;
    if images.len() < 2 {
        return Err(EvaluateError::TooFew { what: on.images(), n: images.len() });
    }
    let parts = images.examples((MOST_DIFFERENTIATED / images.image_len().max(1)).clamp(1, BATCH))?;
    watch.start(Task::Loss, images.len() * flow_likelihood::evaluations(STEPS));
    let nll = negative_log_likelihood(model, diffusion, parts, STEPS, seed, device, &mut |done| watch.done(done));
    watch.finish();
    nll.map(|nll| NegativeLogLikelihood { on, ..nll }).map_err(|error| of_likelihood(Metric::Nll, error))
}

fn of_likelihood(metric: Metric, error: LikelihoodError) -> EvaluateError {
    match error {
        LikelihoodError::Interrupted => EvaluateError::Interrupted,
        LikelihoodError::Data(error) => EvaluateError::Data(error),
        source => EvaluateError::Likelihood { metric, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageBatch;
    use crate::diffusion::DiffusionConfig;
    use crate::models::{Unet, UnetConfig};
    use crate::nn::{EvalMode, Init};

    struct Silent;

    impl Watch for Silent {
        fn start(&mut self, _: Task, _: usize) {}
        fn done(&mut self, _: usize) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
        fn finish(&mut self) {}
        fn not_stored(&mut self, _: &InteropError) {}
    }

    /// Images of one pixel per row and column, drawn by a rule.
    fn images(count: usize, side: usize) -> Images {
        let data = (0..count * side * side).map(|i| (i * i % 251) as f32 / 255.0).collect();
        Images::of_samples(&ImageBatch::new([count, 1, side, side], data).unwrap())
    }

    fn failure(metric: Metric, generated: &Images, real: &Images) -> EvaluateError {
        measure(&[metric], &Sets { generated, real, split: None }, None, 0, &mut Silent).unwrap_err()
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let (one, few, large) = (images(1, 4), images(5, 4), images(5, 6));
        assert!(matches!(failure(Metric::Swd, &one, &few), EvaluateError::TooFew { n: 1, .. }));
        assert!(matches!(failure(Metric::Swd, &few, &large), EvaluateError::Shapes { .. }));
        assert!(matches!(failure(Metric::Fid, &few, &few), EvaluateError::NoInception { metric: Metric::Fid }));
        assert!(matches!(failure(Metric::Neighbours, &few, &few), EvaluateError::NoSplit { .. }));
    }

    #[test]
    fn pixels_alone_are_enough_for_swd_and_neighbours() {
        let (real, held_out) = (images(40, 4), images(9, 4));
        let sets = Sets { generated: &real, real: &real, split: Some(Split { training: &real, held_out: &held_out }) };
        let measured = measure(&[Metric::Swd, Metric::Neighbours], &sets, None, 0, &mut Silent).unwrap();
        assert_eq!(measured.measurements.len(), 1);
        assert_eq!(measured.measurements[0].value, 0.0, "a set is at no distance from itself");
        assert_eq!(measured.neighbours.unwrap().exact_copies, 40);
    }

    /// Records the images that were passed; asks to stop once this many were.
    #[derive(Default)]
    struct Passed {
        total: usize,
        done: Vec<usize>,
        stop_at: Option<usize>,
        finished: bool,
    }

    impl Watch for Passed {
        fn start(&mut self, task: Task, total: usize) {
            assert_eq!(task, Task::Pixels);
            self.total = total;
        }
        fn done(&mut self, done: usize) -> ControlFlow<()> {
            self.done.push(done);
            if self.stop_at.is_some_and(|at| done >= at) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        fn finish(&mut self) {
            self.finished = true;
        }
        fn not_stored(&mut self, _: &InteropError) {}
    }

    #[test]
    fn metrics_of_pixels_tell_how_far_they_are_and_stop_when_asked() {
        let (generated, real) = (images(20, 4), images(40, 4));
        let sets = Sets { generated: &generated, real: &real, split: None };
        let measured = |stop_at| {
            let mut passed = Passed { stop_at, ..Passed::default() };
            let measured = measure(&[Metric::Swd, Metric::Spectrum], &sets, None, 0, &mut passed);
            assert!(passed.finished);
            (passed, measured)
        };
        let (passed, all) = measured(None);
        assert_eq!(all.unwrap().measurements.len(), 2);
        assert_eq!((passed.total, passed.done.last()), (3 * 60, Some(&(3 * 60))), "read, and compared twice");
        assert!(passed.done.is_sorted() && passed.done.len() > 6, "{:?}", passed.done);
        for at in [1, 20, 60, 61, 120, 121, 180] {
            let (passed, stopped) = measured(Some(at));
            assert!(matches!(stopped, Err(EvaluateError::Interrupted)), "{at}");
            assert_eq!(passed.done.iter().filter(|done| **done >= at).count(), 1, "nothing is done after it");
        }
    }

    /// Records the events; asks to stop once this many steps are done.
    struct Told {
        done: Vec<usize>,
        stop_at: usize,
    }

    impl Watch for Told {
        fn start(&mut self, _: Task, total: usize) {
            assert_eq!(total, 40);
        }
        fn done(&mut self, done: usize) -> ControlFlow<()> {
            self.done.push(done);
            if done >= self.stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        fn finish(&mut self) {}
        fn not_stored(&mut self, _: &InteropError) {}
    }

    #[test]
    fn the_loss_tells_of_every_batch_and_stops_after_any() {
        let device = Device::flex();
        let config = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
        let unet = Unet::new(&config, &mut Init::new(0, &device.clone().autodiff())).unwrap().eval();
        let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
        let held_out = images(40, 4);
        let told = |stop_at: usize| {
            let mut told = Told { done: Vec::new(), stop_at };
            let judged = Judged { on: JudgedOn::HeldOut, images: &held_out };
            let loss = loss(&unet, &diffusion, judged, 0, &device, &mut told);
            (told.done, loss)
        };
        let (done, loss) = told(usize::MAX);
        assert_eq!((done, loss.unwrap().n), (vec![0, 32, 40], 40));
        for (stop_at, expected) in [(0, vec![0]), (32, vec![0, 32]), (40, vec![0, 32, 40])] {
            let (done, loss) = told(stop_at);
            assert_eq!(done, expected);
            assert!(matches!(loss, Err(EvaluateError::Interrupted)), "{stop_at}");
        }
    }
}
