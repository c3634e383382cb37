//! A batch of images on the host. Not here: where images come from, and how they are drawn.

use thiserror::Error;

/// A batch of images on the host, `[n, c, h, w]` in row-major order.
///
/// Pixels are nominally in `[0, 1]`. When an image is quantised, values outside are clamped, and values that are not finite are an error.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// `[n, c, h, w]`: images, channels, rows, columns.
    pub shape: [usize; 4],
    /// `n * c * h * w` pixels.
    pub data: Vec<f32>,
}

/// Mean and deviation of the values of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelStatistics {
    pub mean: Vec<f64>,
    pub deviation: Vec<f64>,
}

impl ChannelStatistics {
    /// Whether images are almost constant beside others: a twentieth of their deviation at most, in every channel.
    pub fn is_faint_beside(&self, other: &Self) -> bool {
        self.deviation.iter().zip(&other.deviation).all(|(own, other)| *own < 0.05 * other)
    }
}

impl ImageBatch {
    /// A batch whose `data` fills `shape` exactly.
    ///
    /// # Errors
    /// [`ImageBatchError::Empty`] if a dimension is zero, [`ImageBatchError::Length`] if the length of `data` is not the product of `shape`.
    pub fn new(shape: [usize; 4], data: Vec<f32>) -> Result<Self, ImageBatchError> {
        let batch = Self { shape, data };
        batch.validate()?;
        Ok(batch)
    }

    /// Each image after its condition, `[2 n, c, h, w]`; if one of the two is grey and the other in colour, both come in colour. `None` if sizes
    /// differ, or if numbers of channels differ otherwise.
    pub fn beside(&self, conditions: &Self) -> Option<Self> {
        let shape = Self::shape_beside(self.shape, conditions.shape)?;
        let ([n, c, h, w], k) = (self.shape, conditions.shape[1]);
        let (channels, plane) = (shape[1], h * w);
        let mut data = Vec::with_capacity(2 * n * channels * plane);
        for i in 0..n {
            for (batch, own) in [(conditions, k), (self, c)] {
                let image = &batch.data[i * own * plane..][..own * plane];
                (0..channels / own).for_each(|_| data.extend_from_slice(image));
            }
        }
        Some(Self { shape, data })
    }

    /// The shape of [`beside`](Self::beside)'s result for images and conditions of these shapes.
    pub fn shape_beside([n, c, h, w]: [usize; 4], conditions: [usize; 4]) -> Option<[usize; 4]> {
        let k = conditions[1];
        let drawn = matches!((c, k), (1 | 3, 1 | 3)) || c == k;
        (drawn && conditions == [n, k, h, w]).then_some([2 * n, c.max(k), h, w])
    }

    /// `count` images starting at `first`, all of which must exist.
    pub fn slice(&self, first: usize, count: usize) -> Self {
        let [_, c, h, w] = self.shape;
        let size = c * h * w;
        Self { shape: [count, c, h, w], data: self.data[first * size..(first + count) * size].to_vec() }
    }

    /// Mean and deviation of each channel.
    pub fn channel_statistics(&self) -> ChannelStatistics {
        let [n, c, h, w] = self.shape;
        let plane = h * w;
        let of = |channel: usize| {
            let plane_of = move |i: usize| &self.data[(i * c + channel) * plane..][..plane];
            let values = || (0..n).flat_map(plane_of).map(|&value| f64::from(value));
            let count = (n * plane).max(1) as f64;
            let mean = values().sum::<f64>() / count;
            (mean, (values().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt())
        };
        let (mean, deviation) = (0..c).map(of).unzip();
        ChannelStatistics { mean, deviation }
    }

    /// Checks what [`ImageBatch::new`] guarantees, because the fields are public.
    pub(crate) fn validate(&self) -> Result<(), ImageBatchError> {
        let shape = self.shape;
        if shape.contains(&0) {
            return Err(ImageBatchError::Empty { shape });
        }
        let expected = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        if expected != Some(self.data.len()) {
            return Err(ImageBatchError::Length { shape, expected, actual: self.data.len() });
        }
        Ok(())
    }
}

/// Why values are not a batch of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ImageBatchError {
    /// A dimension is zero.
    #[error("images of shape {shape:?} ([n, c, h, w]) are empty: every dimension must be at least 1")]
    Empty {
        /// `[n, c, h, w]`.
        shape: [usize; 4],
    },
    /// The length of the data is not the product of the shape.
    #[error("images of shape {shape:?} ([n, c, h, w]) need {} pixels, but {actual} were given",
        expected.map_or_else(|| "more than addressable".to_owned(), |count| count.to_string()))]
    Length {
        /// `[n, c, h, w]`.
        shape: [usize; 4],
        /// The product of `shape`; `None` when it overflows.
        expected: Option<usize>,
        /// Length of the data.
        actual: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_must_fill_its_shape() {
        assert!(ImageBatch::new([1, 2, 3, 4], vec![0.0; 24]).is_ok());
        let error = ImageBatch::new([1, 2, 3, 4], vec![0.0; 23]).unwrap_err();
        assert!(matches!(error, ImageBatchError::Length { expected: Some(24), actual: 23, .. }));
        let error = ImageBatch::new([0, 1, 8, 8], vec![]).unwrap_err();
        assert!(matches!(error, ImageBatchError::Empty { shape: [0, 1, 8, 8] }));
        let error = ImageBatch::new([usize::MAX, 2, 1, 1], vec![]).unwrap_err();
        assert!(matches!(error, ImageBatchError::Length { expected: None, .. }));
    }

    #[test]
    fn a_slice_is_of_whole_images() {
        let batch = ImageBatch::new([3, 2, 1, 2], (0..12).map(|i| i as f32).collect()).unwrap();
        assert_eq!(batch.slice(1, 1), ImageBatch::new([1, 2, 1, 2], vec![4.0, 5.0, 6.0, 7.0]).unwrap());
        assert_eq!(batch.slice(0, 3), batch);
    }

    #[test]
    fn statistics_are_of_each_channel() {
        let batch = ImageBatch::new([2, 2, 1, 2], vec![0.0, 1.0, 0.5, 0.5, 1.0, 0.0, 0.5, 0.5]).unwrap();
        let of = batch.channel_statistics();
        assert_eq!((&of.mean[..], &of.deviation[..]), (&[0.5, 0.5][..], &[0.5, 0.0][..]));
        let faint = ChannelStatistics { mean: vec![0.5; 2], deviation: vec![0.02, 0.0] };
        let data = ChannelStatistics { mean: vec![0.5; 2], deviation: vec![0.5, 0.1] };
        assert!(faint.is_faint_beside(&data) && !of.is_faint_beside(&data) && !data.is_faint_beside(&faint));
    }
}
