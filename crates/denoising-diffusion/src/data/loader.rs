//! Training batches: endless, shuffled anew in every epoch, reproducible, resumable.
//!
//! Epochs follow each other without gaps, so a batch may span two of them, and all images are seen equally often. Batch `k` is a pure function of the
//! data, the batch size, the seed and `k`. Not here: moving a batch to a device, and the map to [-1, 1].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::order::{Mirror, epoch_permutation, flip_coin, locate};
use super::prefetch::Prefetcher;
use super::subset::check_batch_size;
use super::{DataError, Flip, ImageBatch, Subset};

/// Number of epoch orders kept at a time; threads only work on neighbouring batches.
const ORDERS_KEPT: usize = 4;

/// How training batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Images per batch, at least 1 and at most the number of images.
    pub batch_size: usize,
    /// Determines order and mirroring.
    pub seed: u64,
    /// Horizontal mirroring.
    pub flip: Flip,
    /// Number of threads that read and decode; 0: chosen automatically. Does not affect the batches.
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
    /// Index of each image in the dataset.
    pub indices: Vec<usize>,
}

impl Batch {
    /// Images without classes, conditions and vectors, numbered from `first`.
    pub fn of(images: ImageBatch, first: usize) -> Self {
        let indices = (first..first + images.shape[0]).collect();
        Self { index: 0, images, classes: None, conditions: None, vectors: None, indices }
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
    /// The batch size is 0 or larger than the data, or no thread can be started.
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
        let workers = subset.worker_count(config.workers);
        let order = Order::new(subset, config);
        let prefetcher = Prefetcher::start(workers, first..u64::MAX, move |k| order.subset.batch(k, order.images(k)))?;
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

/// Which images make up which batch.
struct Order {
    subset: Subset,
    batch_size: u64,
    seed: u64,
    flip: Flip,
    epochs: Mutex<BTreeMap<u64, Arc<[usize]>>>,
}

impl Order {
    fn new(subset: Subset, config: LoaderConfig) -> Self {
        let flip = match config.flip {
            Flip::Auto => subset.dataset().natural_flip(),
            explicit => explicit,
        };
        Self { subset, batch_size: config.batch_size as u64, seed: config.seed, flip, epochs: Mutex::default() }
    }

    /// Dataset indices of batch `k`, and which of its images are mirrored.
    fn images(&self, k: u64) -> Vec<(usize, Mirror)> {
        let start = k.saturating_mul(self.batch_size);
        (start..start.saturating_add(self.batch_size))
            .map(|position| {
                let (epoch, place) = locate(position, self.subset.len());
                let image = self.subset.indices()[self.epoch(epoch)[place]];
                let mirror = match self.flip {
                    Flip::Off => Mirror::Keep,
                    Flip::On | Flip::Auto => flip_coin(self.seed, epoch, image),
                };
                (image, mirror)
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
