//! Images to be measured, from any source: one pass over data, each image once, in order, never mirrored; or samples in memory. Not here: the
//! training loader, which evaluations do not affect.

use std::sync::Arc;

use crate::data::{Batch, DataError, DataLayout, ImageBatch, ImageShape, Subset, spread_places};
use crate::digest::Digest;
use crate::generate::{Depth, Samples};

mod picked;

pub use picked::Picked;
use picked::What;

/// Number of images read at a time where no batch is needed, and of their values. Several such batches for each thread are in memory.
const AT_ONCE: usize = 16;
const VALUES_AT_ONCE: usize = 1 << 22;

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
    Drawn(Arc<Samples>),
}

/// Examples in consecutive parts.
pub type Parts<'a> = Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>;

impl Images {
    /// Images of a dataset.
    pub fn of_data(data: Subset) -> Self {
        let shape = data.dataset().shape();
        Self { shape: [shape.channels, shape.height, shape.width], count: data.len(), source: Source::Data(data) }
    }

    /// Samples. Their values are rounded to 8 bits, as files would hold them.
    pub fn of_samples(samples: &ImageBatch) -> Self {
        Samples::of(samples, Depth::Bits8).into()
    }

    /// The precision in which samples to be compared with these images are kept: 8 bits if these have 8 bits, otherwise (sequences, and images of
    /// floats or 16 bits) as drawn.
    pub fn depth(&self) -> Depth {
        match &self.source {
            Source::Data(data) if data.dataset().summary().bits.iter().all(|tally| tally.value == 8) => Depth::Bits8,
            Source::Data(_) => Depth::Float,
            Source::Drawn(samples) => samples.depth(),
        }
    }

    /// `count` evenly spaced images, or all if there are fewer.
    pub fn spread(&self, count: usize) -> Self {
        let count = count.min(self.count);
        match &self.source {
            _ if count == self.count => self.clone(),
            Source::Data(data) => Self::of_data(data.spread(count)),
            Source::Drawn(samples) => samples.pick(spread_places(self.count, count)).into(),
        }
    }

    /// `[c, h, w]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The kind of the examples; samples in memory are taken for images.
    pub fn layout(&self) -> DataLayout {
        match &self.source {
            Source::Data(data) => data.dataset().layout(),
            Source::Drawn(_) => DataLayout::Images,
        }
    }

    /// The position of an image in the whole dataset, of which these may be a part; for samples, `place` itself.
    pub fn place_in_data(&self, place: usize) -> usize {
        match &self.source {
            Source::Data(data) => data.indices()[place],
            Source::Drawn(_) => place,
        }
    }

    /// All images of the dataset, of which these may be a part; for samples, these.
    pub fn whole_data(&self) -> Self {
        match &self.source {
            Source::Data(data) => Self::of_data(Subset::from(data.dataset().clone())),
            Source::Drawn(_) => self.clone(),
        }
    }

    /// Number of values of an image.
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

    /// Key for caching anything computed from images of data: the hexadecimal SHA-256 of the dataset's
    /// [`cache_key`](crate::data::Dataset::cache_key), the target size and how images are resized to it, and their positions in the dataset.
    /// Computed at each call. `None` for samples, which are drawn anew each time.
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
    /// Errors of reading, and those of `f`.
    pub fn each_batch<E: From<DataError>>(
        &self,
        size: usize,
        mut f: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.source {
            Source::Data(data) => data.batches(size)?.try_for_each(|batch| f(&batch?.images.data)),
            Source::Drawn(samples) => samples.batches(size).try_for_each(|batch| f(&batch)),
        }
    }

    /// Calls `f` with batches, `[b, c, h, w]`, in order, as small as suits reading.
    ///
    /// # Errors
    /// As [`each_batch`](Self::each_batch).
    pub fn each_small_batch<E: From<DataError>>(&self, f: impl FnMut(&[f32]) -> Result<(), E>) -> Result<(), E> {
        self.each_batch((VALUES_AT_ONCE / self.image_len().max(1)).clamp(1, AT_ONCE), f)
    }

    /// Calls `f` with blocks of at least `size` images, but for the last, in order. Only small batches are read ahead, so a block may be as large as
    /// memory allows for one.
    ///
    /// # Errors
    /// As [`each_batch`](Self::each_batch).
    pub fn each_block<E: From<DataError>>(
        &self,
        size: usize,
        mut f: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (enough, mut block) = (size * self.image_len(), Vec::new());
        self.each_small_batch(|batch| -> Result<(), E> {
            block.extend_from_slice(batch);
            if block.len() < enough {
                return Ok(());
            }
            f(&block)?;
            block.clear();
            Ok(())
        })?;
        if block.is_empty() { Ok(()) } else { f(&block) }
    }

    /// All values, `[n, c h w]`.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn values(&self) -> Result<Vec<f32>, DataError> {
        let mut all = Vec::with_capacity(self.count * self.image_len());
        self.each_small_batch(|batch| {
            all.extend_from_slice(batch);
            Ok::<_, DataError>(())
        })?;
        Ok(all)
    }

    /// All examples in order, at most `size` at a time, with classes and conditions.
    ///
    /// # Errors
    /// Errors of reading, each in place of the examples that could not be read.
    pub fn examples(&self, size: usize) -> Result<Parts<'_>, DataError> {
        Ok(match &self.source {
            Source::Data(data) => Box::new(data.batches(size)?),
            Source::Drawn(samples) => {
                let [c, h, w] = self.shape;
                let of = move |data: Vec<f32>| ImageBatch { shape: [data.len() / (c * h * w), c, h, w], data };
                Box::new(samples.batches(size).enumerate().map(move |(k, data)| Ok(Batch::of(of(data), k * size))))
            }
        })
    }

    /// The condition images of `count` evenly spaced images; if there are fewer, those of all of them, repeated from the start. `None` for samples,
    /// and for data without conditions.
    pub fn conditions(&self, count: usize) -> Option<Picked> {
        let Source::Data(subset) = &self.source else { return None };
        let ImageShape { channels, height, width } = subset.dataset().condition_shape()?;
        let places = spread_places(self.count, count).collect();
        Some(Picked { from: self.clone(), places, shape: [channels, height, width], what: What::Conditions })
    }

    /// The images at these positions, to be read when they are needed.
    pub fn picked(&self, places: Vec<usize>) -> Picked {
        Picked { from: self.clone(), places, shape: self.shape, what: What::Images }
    }

    /// The vectors of the same images. `None` for samples, and for data without vectors.
    pub fn vectors(&self, count: usize) -> Option<Vec<f32>> {
        let Source::Data(subset) = &self.source else { return None };
        Some(subset.dataset().vectors()?.pick(spread_places(self.count, count).map(|place| subset.indices()[place])))
    }

    /// The classes of the same images. `None` for samples, and for data without classes.
    pub fn classes(&self, count: usize) -> Option<Vec<u32>> {
        let Source::Data(subset) = &self.source else { return None };
        if subset.is_empty() {
            return None;
        }
        spread_places(self.count, count).map(|place| Some(subset.class_of(place)? as u32)).collect()
    }

    /// `count` classes, each in proportion to its number of images. `None` likewise.
    pub fn classes_by_share(&self, count: usize) -> Option<Vec<u32>> {
        let mut images_of = vec![0; self.num_classes()];
        for class in self.classes(self.count)? {
            *images_of.get_mut(class as usize)? += 1;
        }
        Some(by_share(&images_of, count))
    }

    /// Number of classes in the data; 0 if there are none.
    pub fn num_classes(&self) -> usize {
        match &self.source {
            Source::Data(subset) => subset.dataset().num_classes(),
            Source::Drawn(_) => 0,
        }
    }

    /// The images at these positions.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn pick(&self, places: &[usize]) -> Result<ImageBatch, DataError> {
        let [c, h, w] = self.shape;
        let mut data = Vec::with_capacity(places.len() * self.image_len());
        for &place in places {
            match &self.source {
                Source::Data(subset) => data.extend(subset.dataset().get(subset.indices()[place])?.pixels),
                Source::Drawn(samples) => samples.append(place, 1, &mut data),
            }
        }
        Ok(ImageBatch { shape: [places.len(), c, h, w], data })
    }
}

impl From<Samples> for Images {
    fn from(samples: Samples) -> Self {
        Self { shape: samples.shape(), count: samples.len(), source: Source::Drawn(Arc::new(samples)) }
    }
}

/// `count` class numbers, in proportion to their numbers of images: each class gets its share, rounded down, and those with the largest remainders
/// (of equal ones the first) one more, until there are enough. They are mixed, so that any first part has about the same proportions.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataConfig, Dataset};
    use crate::generate::Conditions;

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
    fn samples_are_kept_as_exact_as_the_data_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signals.npy");
        crate::data::npy::write_npy_f32(&path, &[4, 1, 2], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]).unwrap();
        let config = DataConfig { path: Some(path), layout: DataLayout::Sequences, ..DataConfig::default() };
        for (config, depth) in [(config, Depth::Float), (DataConfig::default(), Depth::Bits8)] {
            let data = Images::of_data(Subset::from(Arc::new(Dataset::open(&config).unwrap())));
            assert_eq!(data.depth(), depth);
        }
        assert_eq!(Images::from(Samples::of(&samples(), Depth::Float)).values().unwrap(), samples().data);
    }

    #[test]
    fn examples_come_in_parts_with_what_belongs_to_them() {
        let data = Images::of_data(Subset::from(Arc::new(Dataset::open(&DataConfig::default()).unwrap()))).spread(7);
        let parts: Vec<Batch> = data.examples(3).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(parts.iter().map(Batch::len).collect::<Vec<_>>(), [3, 3, 1]);
        let values: Vec<f32> = parts.iter().flat_map(|part| part.images.data.clone()).collect();
        assert_eq!(values, data.values().unwrap());
        let classes: Vec<u32> = parts.iter().flat_map(|part| part.classes.clone().unwrap()).collect();
        assert_eq!(classes, data.classes(7).unwrap());
        let drawn: Vec<Batch> = Images::of_samples(&samples()).examples(2).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(drawn.iter().map(Batch::len).collect::<Vec<_>>(), [2, 1]);
        assert!(drawn.iter().all(|part| part.classes.is_none()));
    }

    #[test]
    fn blocks_are_collected_from_small_batches() {
        let data = Images::of_data(Subset::from(Arc::new(Dataset::open(&DataConfig::default()).unwrap()))).spread(70);
        let sizes = |size| {
            let (mut sizes, mut values) = (Vec::new(), Vec::new());
            data.each_block(size, |block| {
                sizes.push(block.len() / 64);
                values.extend_from_slice(block);
                Ok::<_, DataError>(())
            })
            .unwrap();
            assert_eq!(values, data.values().unwrap());
            sizes
        };
        assert_eq!(sizes(32), [32, 32, 6]);
        assert_eq!(sizes(20), [32, 32, 6]);
        assert_eq!((sizes(35), sizes(1000)), (vec![48, 22], vec![70]));
        // Images of 1,024 x 1,024 would fill gigabytes if 16 at a time were read ahead by each thread.
        let large = Images::of_samples(&ImageBatch::new([3, 3, 1024, 1024], vec![0.0; 9 << 20]).unwrap());
        let mut batches = Vec::new();
        large
            .each_small_batch(|batch| {
                batches.push(batch.len() >> 20);
                Ok::<_, DataError>(())
            })
            .unwrap();
        assert_eq!(batches, [3, 3, 3]);
    }

    #[test]
    fn classes_come_in_the_proportions_of_the_images() {
        // Shares of 3.5, 2.1 and 1.4: the largest remainder first.
        assert_eq!(by_share(&[50, 30, 20], 7), [0, 1, 0, 2, 0, 1, 0]);
        // Equal shares: in turn, as in grids.
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
        let picked = all.picked(vec![599, 0, 599]);
        assert_eq!(picked.all().unwrap(), all.pick(&[599, 0, 599]).unwrap());
        assert_eq!((picked.shape(), picked.of(1..2).unwrap()), ([3, 1, 8, 8], all.pick(&[0]).unwrap()));
        assert_eq!(all.classes(3), Some([0, 599, 1198].map(|i| dataset.class_of(i).unwrap() as u32).to_vec()));
    }
}
