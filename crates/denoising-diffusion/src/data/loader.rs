//! Training batches: endless, shuffled anew in every epoch, reproducible, resumable.
//!
//! Epochs follow each other without gaps, so a batch may span two of them, and all images are seen equally often. Batch `k` is a pure function of the
//! data, the batch size, the seed and `k`. Not here: moving a batch to a device, and the map to [-1, 1].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::augment::AugmentPlan;
use super::order::{Mirror, View, augmentation, epoch_permutation, flip_coin, locate};
use super::prefetch::{Prefetcher, check_workers, usual_workers};
use super::subset::check_batch_size;
use super::{DataError, DataLayout, Flip, ImageBatch, Subset};

/// Number of epoch orders kept at a time; threads only work on neighbouring batches.
const ORDERS_KEPT: usize = 4;

/// How training batches are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Images per batch, at least 1 and at most the number of images.
    pub batch_size: usize,
    /// Determines order and mirroring.
    pub seed: u64,
    /// Horizontal mirroring.
    pub flip: Flip,
    /// Probability of each of the transformations of [`augment`](super::augment), in [0, 1]; mirroring is then one of them. Images only.
    pub augment: f64,
    /// Number of threads that read and decode, at most 1024; 0: chosen automatically. Does not affect the batches.
    pub workers: usize,
}

/// A batch of examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Number of the batch, from 0.
    pub index: u64,
    /// `[b, c, h, w]`, in [0, 1].
    pub images: ImageBatch,
    /// Class of each image, below [`Dataset::num_classes`](super::Dataset::num_classes), if the source has classes.
    pub classes: Option<Vec<u32>>,
    /// `[b, condition channels, h, w]`, in [0, 1], if the data have conditions.
    pub conditions: Option<ImageBatch>,
    /// `[b, vector_dim]`, scaled, if the data have vectors.
    pub vectors: Option<Vec<f32>>,
    /// `[b, 9]` in row-major order: how each image was [augmented](super::augment), in a loader that does so.
    pub augment_labels: Option<Vec<f32>>,
    /// Index of each image in the dataset.
    pub indices: Vec<usize>,
}

impl Batch {
    /// Images without classes, conditions and vectors, numbered from `first`.
    pub fn of(images: ImageBatch, first: usize) -> Self {
        let indices = (first..first + images.shape[0]).collect();
        Self { index: 0, images, classes: None, conditions: None, vectors: None, augment_labels: None, indices }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.images.shape[0]
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An endless sequence of training batches, decoded ahead by worker threads.
#[derive(Debug)]
pub struct Loader {
    prefetcher: Prefetcher<Batch>,
}

impl Loader {
    /// Starts at batch 0.
    ///
    /// # Errors
    /// The batch size is 0 or larger than the data, data other than images are to be augmented, there are too many workers, or no thread can be
    /// started.
    pub fn new(images: impl Into<Subset>, config: LoaderConfig) -> Result<Self, DataError> {
        Self::start_at(images, config, 0)
    }

    /// Starts at batch `first`, as if the earlier ones had been delivered.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn start_at(images: impl Into<Subset>, config: LoaderConfig, first: u64) -> Result<Self, DataError> {
        let subset = images.into();
        check_batch_size(config.batch_size)?;
        if config.batch_size > subset.len() {
            return Err(DataError::BatchTooLarge { batch_size: config.batch_size, images: subset.len() });
        }
        check_augment(config.augment, &subset)?;
        check_workers(config.workers)?;
        let workers = match config.workers {
            0 if config.augment > 0.0 => usual_workers(),
            asked_for => subset.worker_count(asked_for),
        };
        let order = Order::new(subset, config);
        let end = u64::MAX / order.batch_size;
        let prefetcher = Prefetcher::start(workers, first..end, move |k| order.subset.batch(k, &order.views(k)))?;
        Ok(Self { prefetcher })
    }

    /// The next batch. After an error, the next call returns the batch after the failed one.
    ///
    /// # Errors
    /// A file that could be read when the data were opened no longer can.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let end = DataError::OutOfBatches(self.position());
        self.prefetcher.next().unwrap_or(Err(end))
    }

    /// Number of the next batch, which a checkpoint stores for [`Loader::start_at`].
    pub fn position(&self) -> u64 {
        self.prefetcher.position()
    }
}

/// Augmentation has a probability, and is of images.
fn check_augment(augment: f64, subset: &Subset) -> Result<(), DataError> {
    let refused = |expected| Err(DataError::Setting { key: "augment", value: augment.to_string(), expected });
    match subset.dataset().layout() {
        _ if !(0.0..=1.0).contains(&augment) => refused("a probability from 0 to 1"),
        DataLayout::Sequences | DataLayout::Volumes if augment > 0.0 => refused("0: only images are augmented"),
        _ => Ok(()),
    }
}

/// Which images make up which batch.
struct Order {
    subset: Subset,
    batch_size: u64,
    seed: u64,
    flip: Flip,
    augment: Option<AugmentPlan>,
    epochs: Mutex<BTreeMap<u64, Arc<[usize]>>>,
}

impl Order {
    fn new(subset: Subset, config: LoaderConfig) -> Self {
        let flip = match config.flip {
            Flip::Auto => subset.dataset().natural_flip(),
            explicit => explicit,
        };
        let plan = AugmentPlan { probability: config.augment, x_flip: flip != Flip::Off };
        Self {
            subset,
            batch_size: config.batch_size as u64,
            seed: config.seed,
            flip,
            augment: (config.augment > 0.0).then_some(plan),
            epochs: Mutex::default(),
        }
    }

    /// Dataset indices of batch `k`, and how its images are seen.
    fn views(&self, k: u64) -> Vec<(usize, View)> {
        let start = k.saturating_mul(self.batch_size);
        (start..start.saturating_add(self.batch_size))
            .map(|position| {
                let (epoch, place) = locate(position, self.subset.len());
                let image = self.subset.indices()[self.epoch(epoch)[place]];
                let view = match (&self.augment, self.flip) {
                    (Some(plan), _) => View::Augmented(augmentation(plan, self.seed, position)),
                    (None, Flip::Off) => View::Plain(Mirror::Keep),
                    (None, Flip::On | Flip::Auto) => View::Plain(flip_coin(self.seed, epoch, image)),
                };
                (image, view)
            })
            .collect()
    }

    fn epoch(&self, epoch: u64) -> Arc<[usize]> {
        let mut epochs = self.epochs.lock().unwrap_or_else(|e| e.into_inner());
        let order = epochs
            .entry(epoch)
            .or_insert_with(|| epoch_permutation(self.seed, epoch, self.subset.len()).into())
            .clone();
        while epochs.len() > ORDERS_KEPT {
            epochs.pop_first();
        }
        order
    }
}
