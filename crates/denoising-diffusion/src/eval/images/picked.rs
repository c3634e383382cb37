//! Images by their places, read when they are asked for. Not here: which places.

use std::ops::Range;

use super::{Images, Source};
use crate::data::{DataError, ImageBatch};
use crate::generate::Conditions;

/// Images in any order, as often as needed, read when they are asked for: the conditions of samples.
#[derive(Clone, Debug)]
pub struct Picked {
    pub(super) from: Images,
    pub(super) places: Vec<usize>,
    pub(super) shape: [usize; 3],
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Images,
    /// The condition of each image.
    Conditions,
}

impl Picked {
    /// All of them.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn all(&self) -> Result<ImageBatch, DataError> {
        self.of(0..self.places.len())
    }
}

impl Conditions for Picked {
    fn shape(&self) -> [usize; 4] {
        let [c, h, w] = self.shape;
        [self.places.len(), c, h, w]
    }

    fn of(&self, numbers: Range<usize>) -> Result<ImageBatch, DataError> {
        let places = &self.places[numbers];
        let (What::Conditions, Source::Data(subset)) = (self.what, &self.from.source) else {
            return self.from.pick(places);
        };
        let [c, h, w] = self.shape;
        let mut data = Vec::with_capacity(places.len() * c * h * w);
        for &place in places {
            data.extend(subset.dataset().condition(subset.indices()[place])?.unwrap_or_default());
        }
        Ok(ImageBatch { shape: [places.len(), c, h, w], data })
    }
}
