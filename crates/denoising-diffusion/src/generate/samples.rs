//! Many samples in memory, with one byte per value where files would hold no more. Not here: drawing them.

use super::GenerateError;
use crate::data::ImageBatch;

/// The precision in which samples are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Rounded to 8 bits, as in image files.
    Bits8,
    /// As drawn.
    Float,
}

/// Samples `[count, c, h, w]` with values in [0, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    shape: [usize; 3],
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    Bits8(Vec<u8>),
    Float(Vec<f32>),
}

impl Samples {
    /// Reserves `count` samples of a shape, `[c, h, w]`; black until they are put in.
    ///
    /// # Errors
    /// [`GenerateError::NoRoom`], instead of aborting the process.
    pub fn with_room(count: usize, shape: [usize; 3], depth: Depth) -> Result<Self, GenerateError> {
        let values = match depth {
            Depth::Bits8 => Values::Bits8(zeros(count, shape)?),
            Depth::Float => Values::Float(zeros(count, shape)?),
        };
        Ok(Self { shape, values })
    }

    /// Samples from these images.
    pub fn of(images: &ImageBatch, depth: Depth) -> Self {
        let [_, c, h, w] = images.shape;
        let values = match depth {
            Depth::Bits8 => Values::Bits8(images.data.iter().map(|&value| to_8_bits(value)).collect()),
            Depth::Float => Values::Float(images.data.clone()),
        };
        Self { shape: [c, h, w], values }
    }

    /// Stores images of the same shape at positions from `first`.
    pub fn put(&mut self, first: usize, images: &ImageBatch) {
        let at = first * self.image_len()..first * self.image_len() + images.data.len();
        match &mut self.values {
            Values::Bits8(values) => {
                values[at].iter_mut().zip(&images.data).for_each(|(place, &value)| *place = to_8_bits(value))
            }
            Values::Float(values) => values[at].copy_from_slice(&images.data),
        }
    }

    /// `[c, h, w]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Number of values of a sample.
    pub fn image_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        let values = match &self.values {
            Values::Bits8(values) => values.len(),
            Values::Float(values) => values.len(),
        };
        values / self.image_len().max(1)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The precision in which they are kept.
    pub fn depth(&self) -> Depth {
        match self.values {
            Values::Bits8(_) => Depth::Bits8,
            Values::Float(_) => Depth::Float,
        }
    }

    /// The samples at these positions.
    pub fn pick(&self, places: impl Iterator<Item = usize>) -> Self {
        let len = self.image_len();
        let values = match &self.values {
            Values::Bits8(of) => Values::Bits8(places.flat_map(|place| &of[place * len..][..len]).copied().collect()),
            Values::Float(of) => Values::Float(places.flat_map(|place| &of[place * len..][..len]).copied().collect()),
        };
        Self { shape: self.shape, values }
    }

    /// The values of at most `size` samples at a time, in order.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Vec<f32>> {
        (0..self.len()).step_by(size).map(move |first| {
            let mut batch = Vec::new();
            self.append(first, size.min(self.len() - first), &mut batch);
            batch
        })
    }

    /// Appends to `into` the values of `count` samples from position `first`.
    pub fn append(&self, first: usize, count: usize, into: &mut Vec<f32>) {
        let at = first * self.image_len()..(first + count) * self.image_len();
        match &self.values {
            Values::Bits8(values) => into.extend(values[at].iter().map(|&value| f32::from(value) / 255.0)),
            Values::Float(values) => into.extend_from_slice(&values[at]),
        }
    }
}

fn to_8_bits(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// Zeros for `count` images, if there is memory for them.
fn zeros<T: Clone + Default>(count: usize, shape: [usize; 3]) -> Result<Vec<T>, GenerateError> {
    let mut zeros = room(count, shape)?;
    zeros.resize(count * shape.iter().product::<usize>(), T::default());
    Ok(zeros)
}

/// Reserves memory for `count` images of a shape, one `T` per value.
pub(super) fn room<T>(count: usize, shape: [usize; 3]) -> Result<Vec<T>, GenerateError> {
    let values = shape.iter().try_fold(count, |values, side| values.checked_mul(*side));
    let mut room = Vec::new();
    match values.map(|values| room.try_reserve_exact(values)) {
        Some(Ok(())) => Ok(room),
        _ => Err(GenerateError::NoRoom { count, shape }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(images: &ImageBatch, places: [usize; 2]) -> ImageBatch {
        let data = places.iter().flat_map(|&place| images.slice(place, 1).data).collect();
        ImageBatch { shape: [2, images.shape[1], images.shape[2], images.shape[3]], data }
    }

    #[test]
    fn samples_lie_where_they_were_put_as_exact_as_they_are_kept() {
        let images = ImageBatch::new([3, 1, 1, 2], vec![0.1, -0.2, 0.5, 1.7, 0.3, 0.4]).unwrap();
        let in_8_bits = [26.0, 0.0, 128.0, 255.0, 77.0, 102.0].map(|v: f32| v / 255.0).to_vec();
        for (depth, expected) in [(Depth::Bits8, in_8_bits), (Depth::Float, images.data.clone())] {
            let mut samples = Samples::with_room(3, [1, 1, 2], depth).unwrap();
            assert_eq!((samples.len(), samples.shape(), samples.depth()), (3, [1, 1, 2], depth));
            // Batches arrive in any order.
            samples.put(2, &images.slice(2, 1));
            samples.put(0, &images.slice(0, 2));
            assert_eq!(samples, Samples::of(&images, depth));
            let mut values = vec![7.0];
            samples.append(0, 3, &mut values);
            assert_eq!(values[1..], expected);
            values.clear();
            samples.append(1, 1, &mut values);
            assert_eq!(values, expected[2..4]);
            assert_eq!(samples.pick([2, 0].into_iter()), Samples::of(&pick(&images, [2, 0]), depth));
        }
    }

    #[test]
    fn more_than_memory_is_an_error() {
        for count in [usize::MAX, usize::MAX / 64] {
            let room = Samples::with_room(count, [1, 8, 8], Depth::Bits8);
            assert!(matches!(room, Err(GenerateError::NoRoom { count: n, shape: [1, 8, 8] }) if n == count));
        }
    }
}
