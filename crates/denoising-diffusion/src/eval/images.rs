//! Images to be measured, whatever they come from: a pass over data, each image once, in order, never mirrored; or samples in memory.
//! Not here: the loader of training, of which an evaluation consumes nothing.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::data::{DataError, Subset};
use crate::report::ImageBatch;

/// A finite, ordered set of images `[c, h, w]` with values in [0, 1].
#[derive(Clone, Debug)]
pub struct Images {
    source: Source,
    shape: [usize; 3],
    count: usize,
    digest: String,
}

#[derive(Clone, Debug)]
enum Source {
    Data(Subset),
    Memory(Arc<Vec<f32>>),
}

impl Images {
    /// Images of a dataset. They are known by the dataset's digest, the size they are brought to and their places in it.
    pub fn of_data(data: Subset) -> Self {
        let shape = data.dataset().shape();
        let mut sha = Sha256::new();
        sha.update(data.dataset().digest());
        sha.update(format!("{:?} {:?}", data.dataset().resize(), shape));
        for &index in data.indices() {
            sha.update((index as u64).to_le_bytes());
        }
        Self {
            shape: [shape.channels, shape.height, shape.width],
            count: data.len(),
            digest: hex(sha),
            source: Source::Data(data),
        }
    }

    /// Samples. Their values are rounded to 8 bits, as files would hold them.
    pub fn of_samples(samples: &ImageBatch) -> Self {
        let [count, c, h, w] = samples.shape;
        let values: Vec<f32> = samples.data.iter().map(|v| (v.clamp(0.0, 1.0) * 255.0).round() / 255.0).collect();
        let mut sha = Sha256::new();
        sha.update(format!("{:?}", samples.shape));
        values.iter().for_each(|v| sha.update([(v * 255.0) as u8]));
        Self { source: Source::Memory(values.into()), shape: [c, h, w], count, digest: hex(sha) }
    }

    /// The first `count` images, or all if there are fewer.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.count);
        match &self.source {
            _ if count == self.count => self.clone(),
            Source::Data(data) => Self::of_data(data.first(count)),
            Source::Memory(values) => {
                let [c, h, w] = self.shape;
                let data = values[..count * c * h * w].to_vec();
                Self::of_samples(&ImageBatch { shape: [count, c, h, w], data })
            }
        }
    }

    /// `[c, h, w]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Values of an image.
    pub fn image_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether they are data rather than samples.
    pub fn are_data(&self) -> bool {
        matches!(self.source, Source::Data(_))
    }

    /// SHA-256 of what the images are, in hexadecimal digits: equal digests, equal images.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Calls `f` with batches of at most `size` images, `[b, c, h, w]`, in order.
    ///
    /// # Errors
    /// Those of reading, and those of `f`.
    pub fn each_batch<E: From<DataError>>(
        &self,
        size: usize,
        mut f: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.source {
            Source::Data(data) => data.batches(size)?.try_for_each(|batch| f(&batch?.images)),
            Source::Memory(values) => values.chunks(size * self.image_len()).try_for_each(f),
        }
    }

    /// All values, `[n, c h w]`.
    ///
    /// # Errors
    /// Those of reading.
    pub fn values(&self) -> Result<Vec<f32>, DataError> {
        let mut all = Vec::with_capacity(self.count * self.image_len());
        self.each_batch(256, |batch| {
            all.extend_from_slice(batch);
            Ok::<_, DataError>(())
        })?;
        Ok(all)
    }

    /// The images at some places.
    ///
    /// # Errors
    /// Those of reading.
    pub fn pick(&self, places: &[usize]) -> Result<ImageBatch, DataError> {
        let [c, h, w] = self.shape;
        let mut data = Vec::with_capacity(places.len() * self.image_len());
        for &place in places {
            match &self.source {
                Source::Data(subset) => data.extend(subset.dataset().get(subset.indices()[place])?.pixels),
                Source::Memory(values) => {
                    data.extend_from_slice(&values[place * self.image_len()..][..self.image_len()])
                }
            }
        }
        Ok(ImageBatch { shape: [places.len(), c, h, w], data })
    }
}

fn hex(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataConfig, Dataset};

    fn samples() -> ImageBatch {
        ImageBatch::new([3, 1, 1, 2], vec![0.1, -0.2, 0.5, 1.7, 0.3, 0.4]).unwrap()
    }

    #[test]
    fn samples_are_rounded_as_a_file_would() {
        let images = Images::of_samples(&samples());
        let expected: Vec<f32> = [26.0, 0.0, 128.0, 255.0, 77.0, 102.0].iter().map(|v| v / 255.0).collect();
        assert_eq!(images.values().unwrap(), expected);
        assert_eq!((images.len(), images.shape(), images.are_data()), (3, [1, 1, 2], false));
        assert_eq!(images.first(2).values().unwrap(), expected[..4]);
        assert_eq!(images.pick(&[2, 0]).unwrap().data, [&expected[4..], &expected[..2]].concat());
    }

    #[test]
    fn batches_cover_data_once_in_order_and_digests_tell_sets_apart() {
        let dataset = Arc::new(Dataset::open(&DataConfig::default()).unwrap());
        let all = Images::of_data(Subset::from(dataset.clone()));
        let some = all.first(10);
        let mut seen = Vec::new();
        some.each_batch(4, |batch| {
            seen.extend_from_slice(batch);
            Ok::<_, DataError>(())
        })
        .unwrap();
        let expected: Vec<f32> = (0..10).flat_map(|i| dataset.get(i).unwrap().pixels).collect();
        assert_eq!(seen, expected);
        assert_eq!(some.digest(), all.first(10).digest());
        assert_ne!(some.digest(), all.digest());
    }
}
