//! The Inception-v3 network that defines FID, as in pytorch-fid 0.3.0: Szegedy et al. 2015 ("Rethinking the Inception architecture for computer
//! vision", arXiv:1512.00567) with the weights of TensorFlow's 2015-12-05 graph, average pooling that does not count padding, and a maximum in the
//! last block's pooling branch.
//!
//! Eval behaviour only: batch normalisation is folded into the convolutions when the weights are read. Not here: training, other feature extractors,
//! and what is computed from features.

mod blocks;
mod input;
mod weights;

use std::collections::BTreeSet;

use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor};

use self::blocks::{BlockA, BlockB, BlockC, BlockD, BlockE, Conv, Read, max_pool};
use crate::interop::InteropError;
use crate::nn::ops::Pooling;
use crate::weights::StateDict;

pub use self::input::{ImageInput, InputError, SIDE};
pub use self::weights::{InceptionWeights, OFFICIAL_DIGEST, Verification, WeightsError, drawn_weights};

/// Where features are taken, selected by their number (pytorch-fid's `--dims`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FeatureBlock {
    /// After the first max pooling: 64.
    First,
    /// After the second max pooling: 192.
    Second,
    /// Before the auxiliary classifier: 768.
    PreAux,
    /// After the last average pooling: 2048, which is meant by FID without qualification.
    #[default]
    Final,
}

impl FeatureBlock {
    /// All of them, in the order of the network.
    pub const ALL: [Self; 4] = [Self::First, Self::Second, Self::PreAux, Self::Final];

    /// Number of features per image.
    pub fn dims(self) -> usize {
        match self {
            Self::First => 64,
            Self::Second => 192,
            Self::PreAux => 768,
            Self::Final => 2048,
        }
    }

    /// The block with this number of features.
    pub fn of_dims(dims: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|block| block.dims() == dims)
    }
}

/// Number of classes of the last layer.
pub const CLASSES: usize = 1008;

/// The network, on a device.
#[derive(Clone, Debug)]
pub struct InceptionV3 {
    stem: [Conv; 3],
    second: [Conv; 2],
    mixed_5: [BlockA; 3],
    mixed_6a: BlockB,
    mixed_6: [BlockC; 4],
    mixed_7a: BlockD,
    mixed_7: [BlockE; 2],
    /// Without its bias, as the Inception Score needs it.
    fc: Tensor<2>,
    device: Device,
}

/// The network's output for a batch.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[b, dims]`, averaged over positions.
    pub features: Tensor<2>,
    /// `[b, 1008]`, without the last layer's bias; only if the final block was requested.
    pub logits: Option<Tensor<2>>,
}

impl InceptionV3 {
    /// From a `state_dict` with torchvision's names.
    ///
    /// # Errors
    /// A tensor is missing, has another shape or values that are not finite, or does not belong to the network.
    pub fn new(state: &StateDict, device: &Device) -> Result<Self, WeightsError> {
        if let Some(name) = state.non_finite().first() {
            return Err(WeightsError::NotFinite { name: (*name).to_string() });
        }
        let mut used = BTreeSet::new();
        let mut source = |name: &str, shape: &[usize]| {
            let values = state.require(name, shape)?.values.clone();
            used.insert(name.to_string());
            Ok(values)
        };
        let network = Self::read(&mut Read::new(&mut source, device), device)?;
        // Counters of batches, which newer files have, are not part of the network.
        let surplus = |name: &&str| !used.contains(*name) && !name.ends_with(".num_batches_tracked");
        let unknown: Vec<&str> = state.names().filter(surplus).collect();
        match unknown.first() {
            None => Ok(network),
            Some(first) => Err(WeightsError::Unknown { count: unknown.len(), first: (*first).to_string() }),
        }
    }

    fn read(r: &mut Read<'_>, device: &Device) -> Result<Self, InteropError> {
        Ok(Self {
            stem: [
                r.conv("Conv2d_1a_3x3", [3, 32], [3, 3], 2, [0, 0])?,
                r.conv("Conv2d_2a_3x3", [32, 32], [3, 3], 1, [0, 0])?,
                r.same("Conv2d_2b_3x3", [32, 64], [3, 3])?,
            ],
            second: [
                r.same("Conv2d_3b_1x1", [64, 80], [1, 1])?,
                r.conv("Conv2d_4a_3x3", [80, 192], [3, 3], 1, [0, 0])?,
            ],
            mixed_5: [
                BlockA::read(r, "Mixed_5b", 192, 32)?,
                BlockA::read(r, "Mixed_5c", 256, 64)?,
                BlockA::read(r, "Mixed_5d", 288, 64)?,
            ],
            mixed_6a: BlockB::read(r, "Mixed_6a", 288)?,
            mixed_6: [
                BlockC::read(r, "Mixed_6b", 768, 128)?,
                BlockC::read(r, "Mixed_6c", 768, 160)?,
                BlockC::read(r, "Mixed_6d", 768, 160)?,
                BlockC::read(r, "Mixed_6e", 768, 192)?,
            ],
            mixed_7a: BlockD::read(r, "Mixed_7a", 768)?,
            mixed_7: [
                BlockE::read(r, "Mixed_7b", 1280, Pooling::Mean)?,
                BlockE::read(r, "Mixed_7c", 2048, Pooling::Max)?,
            ],
            fc: r.linear("fc", [2048, CLASSES])?,
            device: device.clone(),
        })
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Features of `x [b, 299, 299, 3]` in [-1, 1], as [`ImageInput`] makes it.
    pub fn forward(&self, x: Tensor<4>, block: FeatureBlock) -> Output {
        let features = |x: Tensor<4>| Output { features: spatial_mean(x), logits: None };
        let x = max_pool(Conv::chain(&self.stem, x)); // [b, 73, 73, 64]
        if block == FeatureBlock::First {
            return features(x);
        }
        let x = max_pool(Conv::chain(&self.second, x)); // [b, 35, 35, 192]
        if block == FeatureBlock::Second {
            return features(x);
        }
        let x = self.mixed_5.iter().fold(x, |x, block| block.forward(x)); // [b, 35, 35, 288]
        let x = self.mixed_6a.forward(x); // [b, 17, 17, 768]
        let x = self.mixed_6.iter().fold(x, |x, block| block.forward(x));
        if block == FeatureBlock::PreAux {
            return features(x);
        }
        let x = self.mixed_7a.forward(x); // [b, 8, 8, 1280]
        let x = self.mixed_7.iter().fold(x, |x, block| block.forward(x)); // [b, 8, 8, 2048]
        let features = spatial_mean(x);
        let logits = linear(features.clone(), self.fc.clone(), None);
        Output { features, logits: Some(logits) }
    }
}

/// `[b, h, w, c]` to `[b, c]`.
fn spatial_mean(x: Tensor<4>) -> Tensor<2> {
    let [b, h, w, c] = x.dims();
    x.reshape([b, h * w, c]).mean_dim(1).reshape([b, c])
}
