//! Whether samples are copies: their distances to the training images, which are read a block at a time. Not here: conclusions from the distances
//! (`metrics::neighbours`).

use super::evaluate::{EvaluateError, Split, Watch};
use super::images::Images;
use super::metric::{self, Metric, MetricError};
use super::metrics::neighbours::NearestTraining;
use super::pixels::{bearable, of_one_shape, table};
use super::result::Neighbours;
use crate::data::spread_places;
use crate::task::Task;

/// Number of values of training images that samples are compared with at a time, and the minimum number of images in such a block.
const BLOCK_PIXELS: usize = 1 << 25;
const FEWEST_IN_BLOCK: usize = 64;

/// Distances of generated and held-out images to their nearest training images. All training images are used, a block at a time; of the generated
/// and the held-out images, as many as memory allows, evenly spaced.
pub(super) fn neighbours(
    generated: &Images,
    split: Split<'_>,
    watch: &mut dyn Watch,
) -> Result<Neighbours, EvaluateError> {
    of_one_shape(Metric::Neighbours, generated, split.training)?;
    let compared = bearable(generated);
    let mut found = neighbours_of(&compared, split, watch)?;
    // Pairs identify samples by their numbers among all samples, and images by their positions in the data.
    for pair in &mut found.closest {
        pair.generated = spread_places(generated.len(), compared.len()).nth(pair.generated).unwrap_or_default();
        pair.training = split.training.place_in_data(pair.training);
    }
    Ok(found)
}

fn neighbours_of(generated: &Images, split: Split<'_>, watch: &mut dyn Watch) -> Result<Neighbours, EvaluateError> {
    let (metric, Split { training, held_out }) = (Metric::Neighbours, split);
    let failed = |source: MetricError| EvaluateError::Metric { metric, source };
    let (samples, unseen) = (generated.values()?, bearable(held_out).values()?);
    let samples = table(&samples, generated).map_err(failed)?;
    let unseen = table(&unseen, held_out).map_err(failed)?;
    let mut nearest = [NearestTraining::of(samples), NearestTraining::of(unseen)];
    let size = (BLOCK_PIXELS / training.image_len().max(1)).max(FEWEST_IN_BLOCK);
    watch.start(Task::Compare, training.len());
    let seen = training.each_block(size, |block| {
        let block = table(block, training).map_err(failed)?;
        nearest.iter_mut().try_for_each(|nearest| nearest.see(block)).map_err(|error| failed(error.into()))?;
        if watch.done(nearest[0].seen()).is_break() { Err(EvaluateError::Interrupted) } else { Ok(()) }
    });
    watch.finish();
    seen?;
    let n_training = nearest[0].seen();
    let [generated, held_out] = nearest.map(|nearest| nearest.finish().map_err(|error| failed(error.into())));
    metric::neighbours(generated?, held_out?, n_training, training.image_len()).map_err(failed)
}
