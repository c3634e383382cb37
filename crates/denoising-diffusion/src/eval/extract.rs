//! From images to features, and a store of features on disk, so that those of a folder are computed only once. Not here: the network.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use serde_json::json;
use thiserror::Error;

use super::images::Images;
use super::inception::{CLASSES, FeatureBlock, ImageInput, InceptionV3, InputError, Output, SIDE};
use super::result;
use crate::data::DataError;
use crate::device::{in_pool, is_cpu, largest_tensor, multiplies_in_tf32};
use crate::digest;
use crate::interop::{self, InteropError, Metadata};
use crate::nn::params::host_values;
use crate::weights::TensorView;

/// Batch size of Inception on the CPU: larger batches are no faster and take more memory.
const BATCH_ON_CPU: usize = 4;
/// Batch size on a GPU, which smaller batches would leave idle; the default of pytorch-fid. Smaller where a tensor cannot be as large as that.
const BATCH_ON_GPU: usize = 50;
/// Bytes of the largest tensor in Inception for an image: 64 channels of 147x147, in f32.
const LARGEST_TENSOR: u64 = 147 * 147 * 64 * 4;

/// Inception with the name of its weights.
#[derive(Clone, Debug)]
pub struct Extractor {
    pub network: InceptionV3,
    pub block: FeatureBlock,
    /// SHA-256 of the weights' file.
    pub digest: String,
    /// Colour behind transparent pixels: red, green, blue in [0, 1].
    pub background: [f32; 3],
}

/// Inception's output for images.
#[derive(Clone, Debug, PartialEq)]
pub struct Extracted {
    pub n: usize,
    pub dims: usize,
    /// `[n, dims]`
    pub features: Vec<f32>,
    /// `[n, 1008]`, with the final block only.
    pub logits: Option<Vec<f32>>,
}

/// Why features could not be computed.
#[derive(Debug, Error)]
pub enum ExtractError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("image {image} has features that are not finite")]
    NotFinite { image: usize },
    #[error("interrupted")]
    Interrupted,
}

/// Images in a batch on a GPU whose largest tensor has as many bytes.
fn batch_on_gpu(largest_tensor: Option<u64>) -> usize {
    let most = largest_tensor.map_or(BATCH_ON_GPU as u64, |bytes| bytes / LARGEST_TENSOR);
    most.clamp(1, BATCH_ON_GPU as u64) as usize
}

/// Called with the number of images done; can stop the extraction.
pub type OnImages<'a> = &'a mut dyn FnMut(usize) -> ControlFlow<()>;

impl Extractor {
    /// Name, weights and preprocessing for images of a shape, for reports.
    ///
    /// # Errors
    /// Images that Inception cannot take.
    pub fn describe(&self, shape: [usize; 3]) -> Result<result::Extractor, InputError> {
        Ok(result::Extractor {
            name: "Inception-v3 (FID, 2015-12-05)".to_string(),
            dims: self.block.dims(),
            digest: self.digest.clone(),
            preprocessing: self.preprocessing(shape)?,
        })
    }

    /// The preprocessing of images of a shape, in words.
    ///
    /// # Errors
    /// Images that Inception cannot take.
    pub fn preprocessing(&self, shape: [usize; 3]) -> Result<String, InputError> {
        Ok(ImageInput::new(shape, self.background)?.describe())
    }

    /// The features of images, in order.
    ///
    /// # Errors
    /// Images that cannot be read or that Inception cannot take, features that are not finite, and a request to stop.
    pub fn extract(&self, images: &Images, on_images: OnImages<'_>) -> Result<Extracted, ExtractError> {
        let input = ImageInput::new(images.shape(), self.background)?;
        let dims = self.block.dims();
        let mut features = Vec::with_capacity(images.len() * dims);
        let mut logits = Vec::new();
        let on_cpu = is_cpu(self.network.device());
        let size = if on_cpu { BATCH_ON_CPU } else { batch_on_gpu(largest_tensor(self.network.device())) };
        let mut take = |(count, output): (usize, Output)| {
            features.extend_from_slice(&host_values(output.features)[..count * dims]);
            logits.extend(output.logits.into_iter().flat_map(|of| host_values(of).into_iter().take(count * CLASSES)));
            match on_images(features.len() / dims) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ExtractError::Interrupted),
            }
        };
        // The batch that a GPU works on while the next one is prepared.
        let mut in_flight = None;
        images.each_batch(size, |batch| {
            let count = batch.len() / images.image_len();
            let mut prepared = input.prepare(batch);
            // On a GPU all batches have the same size, for which its kernels are tuned.
            let size = if on_cpu { count } else { size.min(images.len()) };
            prepared.resize(size * SIDE * SIDE * 3, 0.0);
            let x = TensorData::new(prepared, [size, SIDE, SIDE, 3]);
            let output = in_pool(|| self.network.forward(Tensor::from_data(x, self.network.device()), self.block));
            in_flight.replace((count, output)).map_or(Ok(()), &mut take)
        })?;
        in_flight.map_or(Ok(()), take)?;
        if let Some(at) = features.iter().position(|value| !value.is_finite()) {
            return Err(ExtractError::NotFinite { image: at / dims });
        }
        let logits = (self.block == FeatureBlock::Final).then_some(logits);
        Ok(Extracted { n: images.len(), dims, features, logits })
    }
}

/// Features on disk, keyed by what they were computed from.
#[derive(Clone, Debug)]
pub struct FeatureStore {
    folder: PathBuf,
}

const FEATURES: &str = "features";
const LOGITS: &str = "logits";

impl FeatureStore {
    /// A store in a folder, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The path of the features of these images by this extractor. The name contains a digest of everything they depend on: the images and their
    /// preparation ([`Images::cache_key`]), weights, block and preprocessing. `None` for samples.
    ///
    /// # Errors
    /// Images that Inception cannot take.
    pub fn path(&self, extractor: &Extractor, images: &Images) -> Result<Option<PathBuf>, InputError> {
        let Some(cache_key) = images.cache_key() else { return Ok(None) };
        let mut key = json!({
            "images": cache_key,
            "n": images.len(),
            "weights": extractor.digest,
            "block": extractor.block.dims(),
            "preprocessing": extractor.preprocessing(images.shape())?,
        });
        // Features computed in TF32 differ by about a thousandth from those in f32.
        if multiplies_in_tf32(extractor.network.device()) {
            key["arithmetic"] = "tf32".into();
        }
        Ok(Some(self.folder.join(format!("{:.32}.safetensors", digest::of_bytes(key.to_string())))))
    }

    /// Stored features, if they are complete; otherwise `None`.
    pub fn load(&self, path: &Path) -> Option<Extracted> {
        let (mut state, _) = interop::read_safetensors(path).ok()?;
        let features = state.remove(FEATURES)?;
        let [n, dims] = features.shape[..] else { return None };
        let logits = state.remove(LOGITS).filter(|logits| logits.shape == [n, CLASSES]);
        if dims == FeatureBlock::Final.dims() && logits.is_none() {
            return None;
        }
        Some(Extracted { n, dims, features: features.values, logits: logits.map(|logits| logits.values) })
    }

    /// Stores features.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn save(&self, path: &Path, extracted: &Extracted) -> Result<(), InteropError> {
        std::fs::create_dir_all(&self.folder).map_err(|source| InteropError::Io {
            action: "create",
            path: self.folder.clone(),
            source,
        })?;
        let Extracted { n, dims, features, logits } = extracted;
        let (of_features, of_logits) = ([*n, *dims], [*n, CLASSES]);
        let mut tensors = BTreeMap::from([(FEATURES, TensorView { shape: &of_features, values: features })]);
        if let Some(values) = logits {
            tensors.insert(LOGITS, TensorView { shape: &of_logits, values });
        }
        interop::write_tensor_views(path, &tensors, &Metadata::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fit_into_what_a_gpu_can_hold() {
        let of = |mib: u64| batch_on_gpu(Some(mib << 20));
        // The least that Vulkan allows, and the usual.
        assert_eq!([of(1), of(128), of(2048)], [1, 24, BATCH_ON_GPU]);
        assert_eq!(batch_on_gpu(None), BATCH_ON_GPU);
    }

    #[test]
    fn what_is_stored_comes_back_and_damage_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = FeatureStore::new(folder.path().join("features"));
        let path = folder.path().join("features/some.safetensors");
        let few = Extracted { n: 3, dims: 64, features: (0..192).map(|i| i as f32).collect(), logits: None };
        let all = Extracted {
            n: 2,
            dims: FeatureBlock::Final.dims(),
            features: vec![0.5; 2 * FeatureBlock::Final.dims()],
            logits: Some(vec![-1.0; 2 * CLASSES]),
        };
        for extracted in [few, all] {
            store.save(&path, &extracted).unwrap();
            assert_eq!(store.load(&path), Some(extracted));
        }
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(store.load(&path), None);
        let wrong = Extracted { n: 3, dims: 64, features: vec![0.0; 5], logits: None };
        assert!(store.save(&path, &wrong).is_err());
    }
}
