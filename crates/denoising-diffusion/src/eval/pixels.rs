//! Metrics of pixels: two sets of images of equal shape, read once for all metrics. Not here: the mathematics (`metrics`), and distances to training
//! images (`copies`).

use std::ops::ControlFlow;

use super::evaluate::{EvaluateError, Watch};
use super::images::Images;
use super::metric::{self, Metric, MetricError};
use super::metrics::features::Features;
use super::metrics::table_error::TableError;
use super::result::Measurement;
use crate::task::Task;

/// Maximum number of image values that a pixel metric holds in memory, 1 GiB of f32; of larger sets, evenly spaced images are used.
const MOST_PIXELS: usize = 1 << 28;

/// Compares the pixels of two sets of images of equal shape.
pub(super) fn by_pixels(
    metrics: &[Metric],
    generated: &Images,
    real: &Images,
    seed: u64,
    watch: &mut dyn Watch,
) -> Result<Vec<Measurement>, EvaluateError> {
    let Some(&first) = metrics.first() else { return Ok(Vec::new()) };
    of_one_shape(first, generated, real)?;
    let (generated, real) = (bearable(generated), bearable(real));
    let images = generated.len() + real.len();
    watch.start(Task::Pixels, images * (1 + metrics.len()));
    let measured = in_passes(metrics, &generated, &real, seed, &mut Passes { watch: &mut *watch, images, before: 0 });
    watch.finish();
    measured
}

/// Passes over all images: one that reads them, then one for each metric.
struct Passes<'a> {
    watch: &'a mut dyn Watch,
    /// Number of images in each pass.
    images: usize,
    /// Number of images in earlier passes, or in earlier sets of this one.
    before: usize,
}

fn in_passes(
    metrics: &[Metric],
    generated: &Images,
    real: &Images,
    seed: u64,
    passes: &mut Passes<'_>,
) -> Result<Vec<Measurement>, EvaluateError> {
    let (of_generated, of_real) = (passes.read(generated)?, passes.read(real)?);
    let [_, _, width] = real.shape();
    let mut measure = |metric: Metric| {
        let (generated, real) = (table(&of_generated, generated)?, table(&of_real, real)?);
        passes.compare(|on_share| match metric {
            Metric::Spectrum => metric::spectrum(real, generated, width, seed, on_share),
            _ => metric::swd(real, generated, seed, on_share),
        })
    };
    let failed = |metric, source| match source {
        MetricError::Table(TableError::Interrupted) => EvaluateError::Interrupted,
        source => EvaluateError::Metric { metric, source },
    };
    metrics.iter().map(|&metric| measure(metric).map_err(|source| failed(metric, source))).collect()
}

impl Passes<'_> {
    /// All values of a set.
    fn read(&mut self, images: &Images) -> Result<Vec<f32>, EvaluateError> {
        let mut values = Vec::with_capacity(images.len() * images.image_len());
        images.each_small_batch(|batch| {
            values.extend_from_slice(batch);
            let done = self.before + values.len() / images.image_len();
            if self.watch.done(done).is_break() { Err(EvaluateError::Interrupted) } else { Ok(()) }
        })?;
        self.before += images.len();
        Ok(values)
    }

    /// One metric.
    fn compare<T>(&mut self, measure: impl FnOnce(&mut dyn FnMut(f64) -> ControlFlow<()>) -> T) -> T {
        let Self { watch, images, before } = self;
        let measured = measure(&mut |share| watch.done(*before + (share * *images as f64) as usize));
        *before += *images;
        measured
    }
}

/// As many of the images as fit in memory as pixels, evenly spaced.
pub(super) fn bearable(images: &Images) -> Images {
    images.spread(MOST_PIXELS / images.image_len().max(1))
}

pub(super) fn of_one_shape(metric: Metric, generated: &Images, real: &Images) -> Result<(), EvaluateError> {
    let (generated, real) = (generated.shape(), real.shape());
    if generated == real { Ok(()) } else { Err(EvaluateError::Shapes { metric, generated, real }) }
}

pub(super) fn table<'a>(values: &'a [f32], images: &Images) -> Result<Features<'a>, MetricError> {
    Ok(Features::new(values, images.image_len())?)
}
