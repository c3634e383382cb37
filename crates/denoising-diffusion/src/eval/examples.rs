//! Examples on the host, with what a network is told of them. Not here: where they come from (`images`).

use burn::tensor::{Device, Tensor};

use crate::data::{Batch, ImageBatch, ImageShape};
use crate::diffusion::{Examples, NetworkDenoiser};
use crate::models::Network;
use crate::nn::params::from_host;

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

    /// A batch of data whose images have a shape `[c, h, w]`, and their conditions another.
    pub(super) fn of_batch(batch: Batch, [c, h, w]: [usize; 3], of_conditions: Option<ImageShape>) -> Self {
        let n = batch.indices.len();
        let conditions = batch.conditions.zip(of_conditions).map(|(data, ImageShape { channels, height, width })| {
            ImageBatch { shape: [n, channels, height, width], data }
        });
        let images = ImageBatch { shape: [n, c, h, w], data: batch.images };
        Self { images, classes: batch.classes, conditions, vectors: batch.vectors }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.images.shape[0]
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same on a device.
    pub fn on(self, device: &Device) -> Examples {
        Examples {
            data: on(self.images, device),
            classes: self.classes,
            condition: self.conditions.map(|conditions| on(conditions, device)),
            vectors: self.vectors,
        }
    }

    /// A denoiser that is told of these examples.
    pub(super) fn told<'a, M: Network>(
        &self,
        mut denoiser: NetworkDenoiser<'a, M>,
        device: &Device,
    ) -> NetworkDenoiser<'a, M> {
        if let Some(classes) = &self.classes {
            denoiser = denoiser.with_classes(classes.clone());
        }
        if let Some(vectors) = &self.vectors {
            denoiser = denoiser.with_vectors(vectors.clone());
        }
        match &self.conditions {
            Some(conditions) => denoiser.with_condition(on(conditions.clone(), device)),
            None => denoiser,
        }
    }
}

fn on(ImageBatch { shape, data }: ImageBatch, device: &Device) -> Tensor<4> {
    from_host(data, shape, device)
}
