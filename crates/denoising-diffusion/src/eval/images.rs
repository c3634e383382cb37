//! Images to be measured, whatever they come from: a pass over data, each image once, in order, never mirrored; or samples in memory.
//! Not here: the loader of training, of which an evaluation consumes nothing.

use std::borrow::Cow;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use crate::data::{DataError, ImageBatch, ImageShape, Subset, spread_places};
use crate::diffusion::{Examples, NetworkDenoiser};
use crate::digest::Digest;
use crate::models::Network;
use crate::nn::params::from_host;

/// A finite, ordered set of images `[c, h, w]` with values in [0, 1].
#[derive(Clone, Debug)]
pub struct Images {
    source: Source,
    shape: [usize; 3],
    count: usize,
}

#[derive(Clone, Debug)]
enum Source {
    Data(Subset),
    Memory(Arc<Vec<f32>>),
}

impl Images {
    /// Images of a dataset.
    pub fn of_data(data: Subset) -> Self {
        let shape = data.dataset().shape();
        Self { shape: [shape.channels, shape.height, shape.width], count: data.len(), source: Source::Data(data) }
    }

    /// Samples. Their values are rounded to 8 bits, as files would hold them.
    pub fn of_samples(samples: &ImageBatch) -> Self {
        let rounded = samples.data.iter().map(|v| (v.clamp(0.0, 1.0) * 255.0).round() / 255.0);
        Self::in_memory(samples.shape, rounded.collect())
    }

    /// Samples to be compared with these images: rounded to 8 bits if these are of 8 bits, else (sequences and images of floats, images of 16
    /// bits) as they are, as these are.
    pub fn samples_like_these(&self, samples: &ImageBatch) -> Self {
        if self.are_of_8_bits() {
            Self::of_samples(samples)
        } else {
            Self::in_memory(samples.shape, samples.data.clone())
        }
    }

    fn in_memory([count, c, h, w]: [usize; 4], values: Vec<f32>) -> Self {
        Self { source: Source::Memory(values.into()), shape: [c, h, w], count }
    }

    fn are_of_8_bits(&self) -> bool {
        match &self.source {
            Source::Data(data) => data.dataset().summary().bits.iter().all(|tally| tally.value == 8),
            Source::Memory(values) => values.iter().all(|v| (v * 255.0).round() / 255.0 == *v),
        }
    }

    /// `count` images at even distances, or all if there are fewer.
    pub fn spread(&self, count: usize) -> Self {
        let count = count.min(self.count);
        match &self.source {
            _ if count == self.count => self.clone(),
            Source::Data(data) => Self::of_data(data.spread(count)),
            Source::Memory(values) => {
                let image = |place| &values[place * self.image_len()..][..self.image_len()];
                let some = spread_places(self.count, count).flat_map(image).copied().collect::<Vec<_>>();
                Self { source: Source::Memory(some.into()), shape: self.shape, count }
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

    /// What a cache of anything computed from images of data goes by: SHA-256, in hexadecimal digits, of the dataset's
    /// [`cache_key`](crate::data::Dataset::cache_key), the size the images are brought to and how, and their places in it. Computed at
    /// each call. `None` for samples, which are drawn anew each time.
    pub fn cache_key(&self) -> Option<String> {
        let Source::Data(data) = &self.source else { return None };
        let dataset = data.dataset();
        let mut digest = Digest::new();
        digest.update(dataset.cache_key());
        digest.update(format!("{:?} {:?}", dataset.resize(), dataset.shape()));
        for &index in data.indices() {
            digest.update((index as u64).to_le_bytes());
        }
        Some(digest.finish())
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

    /// All values, `[n, c h w]`, where they are if they are in memory.
    ///
    /// # Errors
    /// Those of reading.
    pub fn borrowed(&self) -> Result<Cow<'_, [f32]>, DataError> {
        match &self.source {
            Source::Memory(values) => Ok(Cow::Borrowed(values)),
            Source::Data(_) => self.values().map(Cow::Owned),
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

    /// All of them in memory, with what a network is told of them.
    ///
    /// # Errors
    /// Those of reading.
    pub fn examples(&self) -> Result<ExampleSet, DataError> {
        let [c, h, w] = self.shape;
        let images = ImageBatch { shape: [self.count, c, h, w], data: self.values()? };
        let Source::Data(data) = &self.source else { return Ok(ExampleSet::of(images)) };
        let classes = (0..self.count).map(|i| Some(data.class_of(i)? as u32)).collect();
        Ok(ExampleSet { images, classes, conditions: self.conditions(self.count)?, vectors: self.vectors(self.count) })
    }

    /// What `count` images at even distances belong to; where there are fewer, all of them, and again from the start. `None` for samples, and
    /// where the data have no conditions.
    ///
    /// # Errors
    /// Those of reading.
    pub fn conditions(&self, count: usize) -> Result<Option<ImageBatch>, DataError> {
        let Source::Data(subset) = &self.source else { return Ok(None) };
        let Some(ImageShape { channels, height, width }) = subset.dataset().condition_shape() else { return Ok(None) };
        let mut data = Vec::with_capacity(count * channels * height * width);
        for place in spread_places(self.count, count) {
            data.extend(subset.dataset().condition(subset.indices()[place])?.unwrap_or_default());
        }
        Ok(Some(ImageBatch { shape: [count, channels, height, width], data }))
    }

    /// The vectors of the same images. `None` for samples, and where the data have none.
    pub fn vectors(&self, count: usize) -> Option<Vec<f32>> {
        let Source::Data(subset) = &self.source else { return None };
        Some(subset.dataset().vectors()?.pick(spread_places(self.count, count).map(|place| subset.indices()[place])))
    }

    /// The classes of the same images. `None` for samples, and where the data have none.
    pub fn classes(&self, count: usize) -> Option<Vec<u32>> {
        let Source::Data(subset) = &self.source else { return None };
        if subset.is_empty() {
            return None;
        }
        spread_places(self.count, count).map(|place| Some(subset.class_of(place)? as u32)).collect()
    }

    /// `count` classes, each as often as its share of the images says; likewise.
    pub fn classes_by_share(&self, count: usize) -> Option<Vec<u32>> {
        let mut images_of = vec![0; self.num_classes()];
        for class in self.classes(self.count)? {
            *images_of.get_mut(class as usize)? += 1;
        }
        Some(by_share(&images_of, count))
    }

    /// Classes of the data that the images are of; 0 if there are none.
    pub fn num_classes(&self) -> usize {
        match &self.source {
            Source::Data(subset) => subset.dataset().num_classes(),
            Source::Memory(_) => 0,
        }
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

/// `count` numbers of classes, in the proportions of their images: as often as the share says, rounded down, and once more for those whose share was cut the
/// most (of equal ones the first) until there are enough. They are mixed, so that the first of them have about the same proportions.
fn by_share(images_of: &[usize], count: usize) -> Vec<u32> {
    let all: usize = images_of.iter().sum();
    let mut times: Vec<usize> = images_of.iter().map(|n| n * count / all).collect();
    let mut by_rest: Vec<usize> = (0..images_of.len()).collect();
    by_rest.sort_by_key(|&class| std::cmp::Reverse(images_of[class] * count % all));
    let missing = count - times.iter().sum::<usize>();
    for class in by_rest.into_iter().take(missing) {
        times[class] += 1;
    }
    let mut placed = Vec::with_capacity(count);
    for (class, &times) in times.iter().enumerate() {
        placed.extend((0..times).map(|k| ((k as f64 + 0.5) / times as f64, class as u32)));
    }
    placed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    placed.into_iter().map(|(_, class)| class).collect()
}

/// Examples in memory.
#[derive(Clone, Debug)]
pub struct ExampleSet {
    /// In [0, 1].
    pub images: ImageBatch,
    /// The class of each.
    pub classes: Option<Vec<u32>>,
    /// What each belongs to.
    pub conditions: Option<ImageBatch>,
    /// The vector of each, `[n, vector_dim]`.
    pub vectors: Option<Vec<f32>>,
}

impl ExampleSet {
    /// Images of which nothing is known.
    pub fn of(images: ImageBatch) -> Self {
        Self { images, classes: None, conditions: None, vectors: None }
    }

    /// The examples in batches of at most `size`, on a device.
    pub fn batches<'a>(&'a self, size: usize, device: &'a Device) -> impl Iterator<Item = Examples<4>> + 'a {
        let n = self.images.shape[0];
        (0..n).step_by(size).map(move |first| {
            let count = size.min(n - first);
            Examples {
                data: part(&self.images, first, count, device),
                classes: self.classes.as_ref().map(|classes| classes[first..first + count].to_vec()),
                condition: self.conditions.as_ref().map(|conditions| part(conditions, first, count, device)),
                vectors: self.vectors_of(first, count),
            }
        })
    }

    /// A denoiser that is told of `count` examples from `first`.
    pub(super) fn told<'a, M: Network<4>>(
        &self,
        denoiser: NetworkDenoiser<'a, 4, M>,
        first: usize,
        count: usize,
        device: &Device,
    ) -> NetworkDenoiser<'a, 4, M> {
        let denoiser = match &self.classes {
            Some(classes) => denoiser.with_classes(classes[first..first + count].to_vec()),
            None => denoiser,
        };
        let denoiser = match self.vectors_of(first, count) {
            Some(vectors) => denoiser.with_vectors(vectors),
            None => denoiser,
        };
        match &self.conditions {
            Some(conditions) => denoiser.with_condition(part(conditions, first, count, device)),
            None => denoiser,
        }
    }

    /// The vectors of `count` examples from `first`.
    fn vectors_of(&self, first: usize, count: usize) -> Option<Vec<f32>> {
        let (vectors, n) = (self.vectors.as_ref()?, self.images.shape[0]);
        let dim = vectors.len() / n.max(1);
        Some(vectors[first * dim..(first + count) * dim].to_vec())
    }
}

fn part(batch: &ImageBatch, first: usize, count: usize, device: &Device) -> Tensor<4> {
    let ImageBatch { shape, data } = batch.slice(first, count);
    from_host(data, shape, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataConfig, DataLayout, Dataset};

    fn samples() -> ImageBatch {
        ImageBatch::new([3, 1, 1, 2], vec![0.1, -0.2, 0.5, 1.7, 0.3, 0.4]).unwrap()
    }

    #[test]
    fn samples_are_rounded_as_a_file_would() {
        let images = Images::of_samples(&samples());
        let expected: Vec<f32> = [26.0, 0.0, 128.0, 255.0, 77.0, 102.0].iter().map(|v| v / 255.0).collect();
        assert_eq!(images.values().unwrap(), expected);
        assert_eq!((images.len(), images.shape(), images.cache_key()), (3, [1, 1, 2], None));
        assert_eq!(images.spread(2).values().unwrap(), expected[..4]);
        assert_eq!(images.pick(&[2, 0]).unwrap().data, [&expected[4..], &expected[..2]].concat());
    }

    #[test]
    fn samples_are_rounded_where_the_data_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signals.npy");
        crate::data::npy::write_npy_f32(&path, &[4, 1, 2], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]).unwrap();
        let config = DataConfig { path: Some(path), layout: DataLayout::Sequences, ..DataConfig::default() };
        for (config, rounded) in [(config, false), (DataConfig::default(), true)] {
            let data = Images::of_data(Subset::from(Arc::new(Dataset::open(&config).unwrap())));
            let like_these = data.samples_like_these(&samples()).values().unwrap();
            assert_eq!(like_these == samples().data, !rounded);
            assert_eq!(like_these == Images::of_samples(&samples()).values().unwrap(), rounded);
        }
        let rounded = Images::of_samples(&samples());
        assert_eq!(rounded.samples_like_these(&samples()).values().unwrap(), rounded.values().unwrap());
    }

    #[test]
    fn classes_come_in_the_proportions_of_the_images() {
        // Shares of 3.5, 2.1 and 1.4: the largest rest first.
        assert_eq!(by_share(&[50, 30, 20], 7), [0, 1, 0, 2, 0, 1, 0]);
        // Equal shares: one after the other, as in grids.
        assert_eq!(by_share(&[4, 4, 4], 8), [0, 1, 2, 0, 1, 2, 0, 1]);
        assert_eq!(by_share(&[0, 7], 3), [1, 1, 1]);
        let data = Images::of_data(Subset::from(Arc::new(Dataset::open(&DataConfig::default()).unwrap())));
        let of_all = data.classes(data.len()).unwrap();
        for count in [1, 10, 1000, 1797, 5000] {
            let drawn = data.classes_by_share(count).unwrap();
            assert_eq!(drawn.len(), count);
            for class in 0..10 {
                let times = |of: &[u32]| of.iter().filter(|&&other| other == class).count() as f64;
                let share = times(&of_all) * count as f64 / of_all.len() as f64;
                assert!((times(&drawn) - share).abs() < 1.0, "{count}, {class}");
            }
        }
        assert_eq!(data.classes(1800).unwrap()[1797..], of_all[..3]);
        assert_eq!(
            (Images::of_samples(&samples()).classes(2), Images::of_samples(&samples()).classes_by_share(2)),
            (None, None)
        );
    }

    #[test]
    fn batches_cover_data_once_in_order_and_keys_tell_sets_apart() {
        let dataset = Arc::new(Dataset::open(&DataConfig::default()).unwrap());
        let all = Images::of_data(Subset::from(dataset.clone()));
        let some = all.spread(10);
        let mut seen = Vec::new();
        some.each_batch(4, |batch| {
            seen.extend_from_slice(batch);
            Ok::<_, DataError>(())
        })
        .unwrap();
        let expected: Vec<f32> = (0..10).flat_map(|i| dataset.get(i * dataset.len() / 10).unwrap().pixels).collect();
        assert_eq!(seen, expected);
        assert_eq!(some.cache_key(), all.spread(10).cache_key());
        assert_ne!(some.cache_key(), all.cache_key());
        let (training, _) = dataset.split_held_out(0.1, 0);
        assert_ne!(Images::of_data(training.spread(10)).cache_key(), some.cache_key(), "other images of the same data");
        // One behind the other, and so are their classes where each has a folder.
        let of_some: Vec<f32> = all.spread(3).values().unwrap();
        assert_eq!(of_some, all.pick(&[0, 599, 1198]).unwrap().data);
        assert_eq!(all.classes(3), Some([0, 599, 1198].map(|i| dataset.class_of(i).unwrap() as u32).to_vec()));
    }
}
