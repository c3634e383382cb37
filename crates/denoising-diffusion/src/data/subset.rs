//! A dataset seen through a list of indices, and a plain pass over it in order.
//!
//! Training and held-out parts are subsets of one dataset. The pass is for evaluation: each image once, in order, never mirrored. Not here: the
//! endless shuffled order for training (`loader`).

use std::sync::Arc;

use super::loader::Batch;
use super::order::Mirror;
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
            let images = subset.indices[start..end].iter().map(|&index| (index, Mirror::Keep));
            subset.batch(k, images.collect())
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
    pub(super) fn batch(&self, index: u64, images: Vec<(usize, Mirror)>) -> Result<Batch, DataError> {
        let room = |ImageShape { channels, height, width }: ImageShape| {
            let shape = [images.len(), channels, height, width];
            ImageBatch { shape, data: vec![0.0; shape.iter().product()] }
        };
        let (of_images, of_conditions) = (self.dataset.shape(), self.dataset.condition_shape());
        let mut pixels = room(of_images);
        for (&(image, mirror), out) in images.iter().zip(pixels.data.chunks_exact_mut(of_images.len())) {
            self.dataset.write_image(image, mirror, out)?;
        }
        let mut conditions = of_conditions.map(room);
        if let Some((conditions, shape)) = conditions.as_mut().zip(of_conditions) {
            for (&(image, mirror), out) in images.iter().zip(conditions.data.chunks_exact_mut(shape.len())) {
                self.dataset.write_condition(image, mirror, out)?;
            }
        }
        let indices: Vec<usize> = images.into_iter().map(|(image, _)| image).collect();
        let classes = self.dataset.classes().map(|classes| indices.iter().map(|&image| classes[image]).collect());
        let vectors = self.dataset.vectors().map(|vectors| vectors.pick(indices.iter().copied()));
        Ok(Batch { index, images: pixels, classes, conditions, vectors, indices })
    }
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
