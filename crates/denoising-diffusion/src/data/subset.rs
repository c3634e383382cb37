//! A dataset seen through a list of indices, and a plain pass over it in order.
//!
//! Training and held-out parts are subsets of one dataset. The pass is for evaluation: each image once, in order, never mirrored. Not here: the
//! endless shuffled order for training (`loader`).

use std::sync::Arc;

use super::augment::Scratch;
use super::loader::Batch;
use super::order::{Mirror, View};
use super::prefetch::{Prefetcher, usual_workers};
use super::{DataError, Dataset, ImageBatch, ImageShape};

/// Some images of a dataset, in a fixed order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Subset {
    dataset: Arc<Dataset>,
    indices: Arc<[usize]>,
}

impl From<Arc<Dataset>> for Subset {
    /// All images, in the order of the data.
    fn from(dataset: Arc<Dataset>) -> Self {
        let indices = (0..dataset.len()).collect();
        Self { dataset, indices }
    }
}

impl Subset {
    /// `indices` must be valid for `dataset`.
    pub(super) fn of(dataset: Arc<Dataset>, indices: Vec<usize>) -> Self {
        Self { dataset, indices: indices.into() }
    }

    /// `count` images of this subset, evenly spaced, or all if it has fewer. (The first images of a folder per class would all be of one class.)
    pub fn spread(&self, count: usize) -> Self {
        let places = spread_places(self.len(), count.min(self.len()));
        Self::of(self.dataset.clone(), places.map(|place| self.indices[place]).collect())
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// True if there are none, as in the held-out part of a small dataset.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The dataset that this is a part of.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// Indices into the dataset.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// Class of the image at `position` of this subset, below [`num_classes`](Self::num_classes). `None` without classes and past
    /// the end.
    pub fn class_of(&self, position: usize) -> Option<usize> {
        self.dataset.class_of(*self.indices.get(position)?)
    }

    /// Number of classes of the whole dataset, so that a class has the same number in all parts; 0 if it has none.
    pub fn num_classes(&self) -> usize {
        self.dataset.num_classes()
    }

    /// Name of each class, if the dataset has classes.
    pub fn class_names(&self) -> Option<&[String]> {
        self.dataset.class_names()
    }

    /// Each image once, in order, `batch_size` at a time; the last batch may be smaller. Files are decoded
    /// ahead by worker threads.
    ///
    /// # Errors
    /// `batch_size` is 0, or no thread can be started.
    pub fn batches(&self, batch_size: usize) -> Result<Batches, DataError> {
        check_batch_size(batch_size)?;
        let subset = self.clone();
        let count = self.len().div_ceil(batch_size) as u64;
        let prefetcher = Prefetcher::start(self.worker_count(0), 0..count, move |k| {
            let start = k as usize * batch_size;
            let end = (start + batch_size).min(subset.len());
            let views = subset.indices[start..end].iter().map(|&index| (index, View::Plain(Mirror::Keep)));
            subset.batch(k, &views.collect::<Vec<_>>())
        })?;
        Ok(Batches { prefetcher })
    }

    /// Number of threads for a pass: `asked_for`, or what suits the source.
    pub(super) fn worker_count(&self, asked_for: usize) -> usize {
        match asked_for {
            0 if self.dataset.is_in_memory() => 1,
            0 => usual_workers(),
            n => n,
        }
    }

    /// Reads the given images of the dataset into one batch.
    pub(super) fn batch(&self, index: u64, views: &[(usize, View)]) -> Result<Batch, DataError> {
        let dataset = &self.dataset;
        let images = seen(views, dataset.shape(), |image, mirror, out| dataset.write_image(image, mirror, out))?;
        let conditions = dataset
            .condition_shape()
            .map(|shape| seen(views, shape, |image, mirror, out| dataset.write_condition(image, mirror, out)));
        let indices: Vec<usize> = views.iter().map(|&(image, _)| image).collect();
        let classes = dataset.classes().map(|classes| indices.iter().map(|&image| classes[image]).collect());
        let vectors = dataset.vectors().map(|vectors| vectors.pick(indices.iter().copied()));
        let labels: Vec<f32> = views
            .iter()
            .filter_map(|(_, view)| match view {
                View::Plain(_) => None,
                View::Augmented(drawn) => Some(drawn.labels()),
            })
            .flatten()
            .collect();
        let augment_labels = (!labels.is_empty()).then_some(labels);
        Ok(Batch { index, images, classes, conditions: conditions.transpose()?, vectors, augment_labels, indices })
    }
}

/// A batch of images of this shape as they are seen; `write` writes one, mirrored or not.
fn seen(
    views: &[(usize, View)],
    shape: ImageShape,
    write: impl Fn(usize, Mirror, &mut [f32]) -> Result<(), DataError>,
) -> Result<ImageBatch, DataError> {
    let ImageShape { channels, height, width } = shape;
    let of_batch = [views.len(), channels, height, width];
    let mut data = vec![0.0; of_batch.iter().product()];
    let (mut scratch, mut plain) = (Scratch::default(), Vec::new());
    for (&(image, view), out) in views.iter().zip(data.chunks_exact_mut(shape.len())) {
        match view {
            View::Plain(mirror) => write(image, mirror, out)?,
            View::Augmented(drawn) => {
                plain.resize(shape.len(), 0.0);
                write(image, Mirror::Keep, &mut plain)?;
                drawn.apply(&plain, [channels, height, width], out, &mut scratch);
            }
        }
    }
    Ok(ImageBatch { shape: of_batch, data })
}

pub(super) fn check_batch_size(batch_size: usize) -> Result<(), DataError> {
    if batch_size == 0 {
        return Err(DataError::Setting { key: "batch_size", value: "0".into(), expected: "at least 1 image" });
    }
    Ok(())
}

/// One pass over a [`Subset`]; an iterator of batches.
#[derive(Debug)]
pub struct Batches {
    prefetcher: Prefetcher<Batch>,
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.prefetcher.next()
    }
}

/// `count` evenly spaced places out of `len`, in order; if `count` exceeds `len`, all of them, then again from the start.
pub(crate) fn spread_places(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = if len == 0 { 0 } else { count };
    (0..count).map(move |i| if count <= len { i * len / count } else { i % len })
}
