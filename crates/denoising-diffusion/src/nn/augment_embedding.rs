//! The embedding of how a training image was augmented, which is added to that of the noise level. Not here: augmentation
//! (`data::augment`).

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Init, ops};

/// Linear, SiLU, linear, none of them with a bias: the labels of an unchanged image, which are 0, add nothing.
#[derive(Module, Debug)]
pub struct AugmentEmbedding {
    /// `[dim_out, labels]`
    pub weight1: Param<Tensor<2>>,
    /// `[dim_out, dim_out]`
    pub weight2: Param<Tensor<2>>,
}

impl AugmentEmbedding {
    pub fn new(init: &mut Init, labels: usize, dim_out: usize) -> Self {
        Self { weight1: init.uniform([dim_out, labels], labels), weight2: init.uniform([dim_out, dim_out], dim_out) }
    }

    /// `[b, labels] -> [b, dim_out]`
    pub fn forward(&self, labels: Tensor<2>) -> Tensor<2> {
        ops::silu(labels.matmul(self.weight1.val().transpose())).matmul(self.weight2.val().transpose())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::params::host_values;

    #[test]
    fn labels_of_zero_add_nothing() {
        let device = Device::flex();
        let embedding = AugmentEmbedding::new(&mut Init::new(3, &device), 9, 4);
        assert_eq!(host_values(embedding.forward(Tensor::zeros([2, 9], &device))), [0.0; 8]);
        assert!(host_values(embedding.forward(Tensor::ones([1, 9], &device))).iter().all(|&value| value != 0.0));
    }
}
